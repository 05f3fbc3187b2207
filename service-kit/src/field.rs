//! Collects every broken rule of a request, so that a caller sees all of them at once.

use crate::error::{Error, FieldViolation, Result};

/// How many broken rules are told at most: they travel in a header of limited size.
const MOST: usize = 32;

/// The broken rules so far.
#[derive(Debug, Default)]
pub struct Checks(Vec<FieldViolation>);

impl Checks {
    /// No broken rule yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `field` breaks a rule unless `holds`. The rule reads after the field's name: `is required`.
    pub fn that(&mut self, holds: bool, field: &str, rule: &str) -> &mut Self {
        if !holds && self.0.len() < MOST {
            self.0.push(FieldViolation { field: field.to_owned(), message: rule.to_owned() });
        }
        self
    }

    /// `value` must have `min` to `max` characters (Unicode scalar values).
    pub fn length(&mut self, field: &str, value: &str, min: usize, max: usize) -> &mut Self {
        let count = value.chars().count();
        if count == 0 && min > 0 {
            return self.that(false, field, "is required");
        }
        let rule = if min == 0 {
            format!("must have at most {max} characters")
        } else {
            format!("must have {min} to {max} characters")
        };
        self.that((min..=max).contains(&count), field, &rule)
    }

    /// `value` must be an id.
    pub fn id(&mut self, field: &str, value: &str) -> &mut Self {
        if value.is_empty() {
            return self.that(false, field, "is required");
        }
        self.that(crate::id::is_id(value), field, "must be a UUID in lower case with hyphens")
    }

    /// `value` must hold no control characters (line feeds and tabs are fine in `multiline` text).
    pub fn printable(&mut self, field: &str, value: &str, multiline: bool) -> &mut Self {
        let bad = |c: char| c.is_control() && !(multiline && matches!(c, '\n' | '\r' | '\t'));
        self.that(!value.chars().any(bad), field, "must not contain control characters")
    }

    /// All broken rules, or nothing.
    pub fn done(&mut self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::fields(std::mem::take(&mut self.0))) }
    }
}
