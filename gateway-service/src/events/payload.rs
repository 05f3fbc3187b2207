//! What payloads must hold: fields and their rules. What is wrong with one is told field by field; fields
//! that a type does not name are kept, for gateways of another age.

use proto::time::Timestamp;
use serde_json::{Map, Value};

/// The longest text of a field that sets no other limit, in characters.
const MAX_TEXT: usize = 1_024;

/// A field of a payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Field {
    name: &'static str,
    rule: Rule,
    required: bool,
}

/// What a field may hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// 1 to 64 of letters, digits, `.`, `_` and `-`.
    Id,
    /// Text of 1 to 1,024 characters, none of them a control character.
    Text,
    /// RFC 3339.
    Time,
    /// A whole number, not negative.
    Count,
    /// `true` or `false`.
    Flag,
    /// Text that is itself a JSON object.
    JsonText,
    /// A list of objects with these fields.
    List(&'static [Field]),
}

/// A field that must be there.
pub(crate) const fn required(name: &'static str, rule: Rule) -> Field {
    Field { name, rule, required: true }
}

/// A field that may be absent or null.
pub(crate) const fn optional(name: &'static str, rule: Rule) -> Field {
    Field { name, rule, required: false }
}

/// What is wrong with a payload: paths within it (empty for the whole), and the rules that are broken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldErrors(pub(crate) Vec<(String, String)>);

impl FieldErrors {
    /// The payload as a whole is wrong.
    pub(super) fn whole(rule: impl Into<String>) -> Self {
        Self(vec![(String::new(), rule.into())])
    }

    /// Where they are, for a payload that is itself the field `payload`.
    pub(crate) fn within<'a>(&'a self, payload: &'a str) -> impl Iterator<Item = (String, &'a str)> + 'a {
        self.0.iter().map(move |(path, rule)| match path.as_str() {
            "" => (payload.to_owned(), rule.as_str()),
            path => (format!("{payload}.{path}"), rule.as_str()),
        })
    }
}

/// Notes what is wrong with an object whose path is `at`.
pub(super) fn check(fields: &[Field], object: &Map<String, Value>, at: &str, errors: &mut FieldErrors) {
    for field in fields {
        let path = if at.is_empty() { field.name.to_owned() } else { format!("{at}.{}", field.name) };
        match object.get(field.name) {
            None | Some(Value::Null) if field.required => errors.0.push((path, "is required".to_owned())),
            None | Some(Value::Null) => {}
            Some(value) => field.rule.check(value, path, errors),
        }
    }
}

impl Rule {
    fn check(&self, value: &Value, path: String, errors: &mut FieldErrors) {
        if let (Self::List(fields), Value::Array(entries)) = (self, value) {
            for (at, entry) in entries.iter().enumerate() {
                let path = format!("{path}[{at}]");
                match entry {
                    Value::Object(object) => check(fields, object, &path, errors),
                    _ => errors.0.push((path, "must be an object".to_owned())),
                }
            }
        } else if !self.holds(value) {
            errors.0.push((path, self.wanted().to_owned()));
        }
    }

    fn holds(&self, value: &Value) -> bool {
        let text = value.as_str();
        match self {
            Self::Id => text.is_some_and(is_name),
            Self::Text => text.is_some_and(|text| {
                (1..=MAX_TEXT).contains(&text.chars().count()) && !text.chars().any(char::is_control)
            }),
            Self::Time => text.is_some_and(|text| Timestamp::parse_rfc3339(text).is_some()),
            Self::Count => value.as_u64().is_some(),
            Self::Flag => value.is_boolean(),
            Self::JsonText => {
                text.is_some_and(|text| serde_json::from_str::<Map<String, Value>>(text).is_ok())
            }
            Self::List(_) => false,
        }
    }

    fn wanted(&self) -> &'static str {
        match self {
            Self::Id => "must be text of 1 to 64 letters, digits, dots, underscores and hyphens",
            Self::Text => "must be text of 1 to 1024 characters without control characters",
            Self::Time => "must be a time of RFC 3339",
            Self::Count => "must be a whole number that is not negative",
            Self::Flag => "must be true or false",
            Self::JsonText => "must be text that holds a JSON object",
            Self::List(_) => "must be a list",
        }
    }
}

/// Whether text is 1 to 64 of letters, digits, `.`, `_` and `-`.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
