//! Small rules that several parts of the model share, and the place in the model where they are applied.

use service_kit::field::Checks;
use url::{Host, Url};

/// Characters that names and versions must not hold.
pub(super) const FORBIDDEN: &str = "~!@#;:%^*()+={}|\\<>\"',&$[]/";

pub(super) const FORBIDDEN_RULE: &str = "must not contain any of ~!@#;:%^*()+={}|\\<>\"',&$[]/";

/// The most characters of a URL.
const URL: usize = 2_048;

/// The most bytes of a certificate or a key.
const PEM: usize = 64 * 1024;

pub(super) fn has_forbidden(text: &str) -> bool {
    text.chars().any(|c| FORBIDDEN.contains(c))
}

/// A place in the model; fields are named relative to it.
pub(super) struct Scope<'a> {
    checks: &'a mut Checks,
    path: String,
}

impl<'a> Scope<'a> {
    pub(super) fn root(checks: &'a mut Checks) -> Self {
        Self { checks, path: String::new() }
    }

    /// The place of a part: `security`, `endpoints[3]`.
    pub(super) fn inside(&mut self, part: &str) -> Scope<'_> {
        let path = self.path_of(part);
        Scope { checks: self.checks, path }
    }

    fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    pub(super) fn that(&mut self, holds: bool, field: &str, rule: &str) {
        if !holds {
            self.checks.that(false, &self.path_of(field), rule);
        }
    }

    pub(super) fn printable(&mut self, field: &str, value: &str) {
        self.that(!value.chars().any(char::is_control), field, "must not contain control characters");
    }

    /// One line of `min` to `max` characters.
    pub(super) fn line(&mut self, field: &str, value: &str, min: usize, max: usize) {
        let path = self.path_of(field);
        self.checks.length(&path, value, min, max).printable(&path, value, false);
    }

    /// Lines of at most `max` characters.
    pub(super) fn text(&mut self, field: &str, value: &str, max: usize) {
        let path = self.path_of(field);
        self.checks.length(&path, value, 0, max).printable(&path, value, true);
    }

    pub(super) fn at_most(&mut self, field: &str, count: usize, most: usize) {
        self.that(count <= most, field, &format!("must have at most {most} entries"));
    }

    pub(super) fn up_to(&mut self, field: &str, value: u32, most: u32) {
        self.that(value <= most, field, &format!("must be 0 to {most}"));
    }

    /// A name of HTTP syntax (header, cookie, method) of at most `max` characters, or nothing.
    pub(super) fn token(&mut self, field: &str, value: &str, max: usize) {
        self.line(field, value, 0, max);
        let rule = "must consist of letters, digits and !#$%&'*+-.^_`|~";
        self.that(value.is_empty() || is_token(value), field, rule);
    }

    /// A list of OAuth scopes.
    pub(super) fn scopes(&mut self, field: &str, scopes: &[String]) {
        self.at_most(field, scopes.len(), 500);
        for (i, scope) in scopes.iter().enumerate().take(500) {
            let field = format!("{field}[{i}]");
            let plain = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            self.line(&field, scope, 1, 256);
            self.that(
                scope.bytes().all(plain),
                &field,
                "must be ASCII without spaces, quotes and backslashes",
            );
        }
    }

    /// An absolute http or https URL with a host, without credentials.
    pub(super) fn http_url(&mut self, field: &str, value: &str) {
        self.line(field, value, 1, URL);
        if value.is_empty() {
            return;
        }
        let rule = "must be an absolute http or https URL with a host";
        match Url::parse(value) {
            Ok(url) if is_http(value) && has_plain_host(&url) => {
                let bare = url.username().is_empty() && url.password().is_none();
                self.that(bare, field, "must not contain a user name or password");
                self.that(url.fragment().is_none(), field, "must not have a fragment");
            }
            _ => self.that(false, field, rule),
        }
    }

    /// An absolute URL of any scheme that a browser does not run, or nothing.
    pub(super) fn callback_url(&mut self, field: &str, value: &str) {
        self.line(field, value, 0, URL);
        let runs = |url: &Url| matches!(url.scheme(), "javascript" | "data" | "vbscript" | "file" | "blob");
        let good = value.is_empty()
            || (!value.contains(char::is_whitespace) && Url::parse(value).is_ok_and(|url| !runs(&url)));
        self.that(good, field, "must be an absolute URL");
    }

    /// PEM blocks with a label that `ends` so, or nothing.
    pub(super) fn pem(&mut self, field: &str, value: &str, ends: &str) {
        self.that(value.len() <= PEM, field, "must have at most 65,536 bytes");
        if !value.is_empty() && value.len() <= PEM {
            self.that(is_pem(value, ends), field, &format!("must be PEM: -----BEGIN {ends}-----"));
        }
    }
}

pub(super) fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

/// Whether a URL has a host that can be a name or an address: the URL parser also takes `{host}`.
pub(super) fn has_plain_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        }
        Some(_) => true,
        None => false,
    }
}

/// Stricter than the URL parser, which mends `http:host`, backslashes and line breaks.
fn is_http(text: &str) -> bool {
    let after = |scheme: &str| {
        let head = text.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
    };
    let rest = after("http://").or_else(|| after("https://")).unwrap_or_default();
    !rest.is_empty()
        && !rest.starts_with(['/', '?', '#', ':'])
        && !text.contains(|c: char| c.is_whitespace() || c == '\\')
}

/// One or more PEM blocks and nothing else.
fn is_pem(text: &str, ends: &str) -> bool {
    let mut blocks = 0;
    let mut label: Option<&str> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(begun) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) {
            if label.is_some() || !begun.ends_with(ends) {
                return false;
            }
            label = Some(begun);
        } else if let Some(ended) = line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----"))
        {
            if label.take() != Some(ended) {
                return false;
            }
            blocks += 1;
        } else if label.is_none() || !line.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)) {
            return false;
        }
    }
    blocks > 0 && label.is_none()
}
