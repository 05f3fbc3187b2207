//! References of one call of a batch to the answer of another: `{login.body.user.id}`, `{list.body.list[0].id}`.
//!
//! ```text
//! reference = "{" id ".body" *( "." name / "[" index "]" ) "}"
//! id        = 1*64( letter / digit / "_" / "-" )
//! name      = 1*( letter / digit / "_" )
//! index     = 1*9 digit
//! ```
//!
//! Anything else between braces is no reference: refused in a path, plain text in a body.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// What stays as it is in a path (RFC 3986 `unreserved`).
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A place in the body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// Whose answer.
    pub(super) id: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Member(String),
    Index(usize),
}

/// A piece of a text with references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Reference(Reference),
}

/// A reference that leads nowhere, or to what cannot stand there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unresolved(String);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text can be the id of a call.
pub(super) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

impl Reference {
    /// Reads what stands between braces.
    fn parse(inside: &str) -> Option<Self> {
        let (id, path) = inside.split_once('.')?;
        let mut rest = path.strip_prefix("body")?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (name, after) = after.split_at(end);
                let is_name =
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                steps.push(Step::Member(is_name.then(|| name.to_owned())?));
                rest = after;
            } else {
                let (digits, after) = rest.strip_prefix('[')?.split_once(']')?;
                let is_index = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
                steps.push(Step::Index(is_index.then(|| digits.parse().ok())??));
                rest = after;
            }
        }
        is_id(id).then(|| Self { id: id.to_owned(), steps })
    }

    /// What it leads to in the answer that it is about.
    pub(super) fn find<'v>(&self, body: &'v Value) -> Result<&'v Value, Unresolved> {
        let step = |value: &'v Value, step: &Step| match step {
            Step::Member(name) => value.get(name),
            Step::Index(index) => value.get(index),
        };
        let found = self.steps.iter().try_fold(body, step);
        found.ok_or_else(|| Unresolved(format!("{self} is not in the answer")))
    }

    /// The text of what it leads to: of a text, a number or a truth value.
    fn text(&self, body: &Value) -> Result<String, Unresolved> {
        match self.find(body)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(truth) => Ok(truth.to_string()),
            _ => Err(Unresolved(format!("{self} is no text, number or truth value"))),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}.body", self.id)?;
        for step in &self.steps {
            match step {
                Step::Member(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        f.write_str("}")
    }
}

/// The pieces of a text. What is no reference is text.
pub(super) fn pieces(text: &str) -> Vec<Piece> {
    let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(open) = rest.find('{') {
        plain.push_str(&rest[..open]);
        rest = &rest[open..];
        let end = rest.find('}');
        match end.and_then(|end| Some((Reference::parse(&rest[1..end])?, end))) {
            Some((reference, end)) => {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(Piece::Reference(reference));
                rest = &rest[end + 1..];
            }
            None => {
                plain.push('{');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    pieces
}

/// The references of a text.
pub(super) fn of_text(text: &str) -> impl Iterator<Item = Reference> {
    pieces(text).into_iter().filter_map(|piece| match piece {
        Piece::Reference(reference) => Some(reference),
        Piece::Text(_) => None,
    })
}

/// Fills the references of a path: what comes from an answer is encoded, so it stays what it is, one segment or one
/// value.
pub(super) fn fill_path<'v>(
    path: &str,
    answer: impl Fn(&str) -> Option<&'v Value>,
) -> Result<String, Unresolved> {
    let mut filled = String::with_capacity(path.len() + 40);
    for piece in pieces(path) {
        match piece {
            Piece::Text(text) => filled.push_str(&text),
            Piece::Reference(reference) => {
                let text = reference.text(body_of(&reference, &answer)?)?;
                filled.extend(utf8_percent_encode(&text, PLAIN));
            }
        }
    }
    Ok(filled)
}

/// Fills the references in the texts of a body. A text that is one reference becomes what it leads to, whatever that
/// is; among other text it is text.
pub(super) fn fill_body<'v>(
    body: &mut Value,
    answer: &impl Fn(&str) -> Option<&'v Value>,
) -> Result<(), Unresolved> {
    match body {
        Value::String(text) => {
            let pieces = pieces(text);
            if let [Piece::Reference(reference)] = &pieces[..] {
                *body = reference.find(body_of(reference, answer)?)?.clone();
                return Ok(());
            }
            let mut filled = String::new();
            for piece in &pieces {
                match piece {
                    Piece::Text(text) => filled.push_str(text),
                    Piece::Reference(reference) => {
                        filled.push_str(&reference.text(body_of(reference, answer)?)?);
                    }
                }
            }
            *text = filled;
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| fill_body(item, answer)),
        Value::Object(members) => members.values_mut().try_for_each(|member| fill_body(member, answer)),
        _ => Ok(()),
    }
}

/// The references in the texts of a body.
pub(super) fn of_body(body: &Value, found: &mut Vec<Reference>) {
    match body {
        Value::String(text) => found.extend(of_text(text)),
        Value::Array(items) => items.iter().for_each(|item| of_body(item, found)),
        Value::Object(members) => members.values().for_each(|member| of_body(member, found)),
        _ => {}
    }
}

fn body_of<'v>(
    reference: &Reference,
    answer: &impl Fn(&str) -> Option<&'v Value>,
) -> Result<&'v Value, Unresolved> {
    answer(&reference.id).ok_or_else(|| Unresolved(format!("{reference}: the answer has no JSON")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{Piece, Reference, fill_body, fill_path, pieces};

    fn answer() -> Value {
        json!({"id": "a/b é", "n": 7, "ok": true, "list": [{"id": "x"}], "none": null})
    }

    #[test]
    fn references_are_read_strictly() {
        for good in
            ["{a.body}", "{a-1_Z.body.x_1.y}", "{a.body[0]}", "{a.body.list[10].id}", "{a.body[0][1].b}"]
        {
            assert!(
                matches!(&pieces(good)[..], [Piece::Reference(one)] if one.to_string() == good),
                "{good}"
            );
        }
        for bad in [
            "{}",
            "{a}",
            "{petId}",
            "{a.b}",
            "{a.body.}",
            "{a.body..x}",
            "{a.body[x]}",
            "{a.body[]}",
            "{a.body[-1]}",
            "{a.body[0}",
            "{.body}",
            "{a b.body}",
            "{a.bodyx}",
            "{a.body x}",
            "{a.headers.x}",
            "{a.body.x",
            "a.body.x}",
            "{a.body[1234567890]}",
        ] {
            assert_eq!(pieces(bad), [Piece::Text(bad.to_owned())], "{bad}");
        }
        assert_eq!(pieces("{{a.body}}").len(), 3);
        assert!(pieces("").is_empty());
    }

    #[test]
    fn paths_are_filled_with_what_stays_one_segment() {
        let answer = answer();
        let fill = |path: &str| fill_path(path, |id| (id == "a").then_some(&answer));
        assert_eq!(
            fill("/x/{a.body.id}?q={a.body.n}&t={a.body.ok}").unwrap(),
            "/x/a%2Fb%20%C3%A9?q=7&t=true"
        );
        assert_eq!(fill("/x/{a.body.list[0].id}/y").unwrap(), "/x/x/y");
        for bad in [
            "{a.body}",
            "{a.body.none}",
            "{a.body.nope}",
            "{a.body.list[1].id}",
            "{a.body.id[0]}",
            "{b.body.id}",
        ] {
            assert!(fill(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bodies_keep_the_kind_of_what_a_lone_reference_leads_to() {
        let answer = answer();
        let mut body = json!({
            "n": "{a.body.n}", "all": "{a.body.list}", "text": "no {petId}, {a.body.n} of {a.body.list[0].id}",
            "deep": [{"none": "{a.body.none}"}], "{a.body.n}": 1,
        });
        fill_body(&mut body, &|_| Some(&answer)).unwrap();
        let expected = json!({
            "n": 7, "all": [{"id": "x"}], "text": "no {petId}, 7 of x", "deep": [{"none": null}], "{a.body.n}": 1,
        });
        assert_eq!(body, expected);
        assert!(fill_body(&mut json!("x{a.body.list}"), &|_| Some(&answer)).is_err());
        assert!(fill_body(&mut json!("{a.body}"), &|_| None).is_err());
    }

    proptest! {
        /// Whatever stands in a text, its pieces are the text again, and none of its text is a reference.
        #[test]
        fn pieces_are_the_text(text in "([a-c{}.\\[\\]0-1]|body|\\{a\\.body){0,30}") {
            let pieces = pieces(&text);
            let joined: String = pieces.iter().map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Reference(reference) => reference.to_string(),
            }).collect();
            // Only an index may be written in another way than it was: without zeros in front.
            prop_assert!(joined == text || text.contains("[0"), "{joined} is not {text}");
            for piece in &pieces {
                if let Piece::Text(text) = piece {
                    prop_assert!(!super::pieces(text).iter().any(|piece| matches!(piece, Piece::Reference(_))));
                }
            }
        }

        /// What is written as a reference is read as the same.
        #[test]
        fn references_round_trip(id in "[A-Za-z0-9_-]{1,64}", steps in "(\\.[A-Za-z0-9_]{1,8}|\\[[1-9][0-9]{0,8}\\]){0,5}") {
            let text = format!("{id}.body{steps}");
            let read = Reference::parse(&text);
            prop_assert_eq!(read.map(|read| read.to_string()), Some(format!("{{{text}}}")));
        }

        /// A value of an answer never adds a segment, a parameter or a fragment to a path.
        #[test]
        fn values_cannot_leave_their_place(value in ".{0,40}") {
            let answer = json!({"v": value});
            let filled = fill_path("/a/{x.body.v}/b", |_| Some(&answer)).unwrap();
            prop_assert_eq!(filled.matches('/').count(), 3);
            let leaves = ['?', '#', '&', ' ', '{'];
            prop_assert!(!filled.contains(leaves), "{}", filled);
        }
    }
}
