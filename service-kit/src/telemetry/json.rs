//! The lines of requests as JSON, byte for byte those of the formatter of `tracing-subscriber`, and the fields of spans
//! as that formatter reads them when another line is inside.

use std::fmt::{self, Write as _};

use tracing::{
    Metadata,
    field::{Field, Visit},
};

use super::fields::is_plain;

/// Writes fields behind what a text holds.
pub(super) struct Fields<'t> {
    text: &'t mut String,
    /// Those of spans have other rules for names.
    of_span: bool,
}

impl<'t> Fields<'t> {
    /// Of a span: the inside of an object.
    pub(super) fn of_span(text: &'t mut String) -> Self {
        Self { text, of_span: true }
    }

    /// Of a line that has begun.
    pub(super) fn of_line(text: &'t mut String) -> Self {
        Self { text, of_span: false }
    }

    fn name(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        string(self.text, name);
        self.text.push(':');
    }

    fn integer(&mut self, field: &Field, value: impl itoa::Integer) {
        self.name(field.name());
        self.text.push_str(itoa::Buffer::new().format(value));
    }
}

/// Writes what stands between the time and the fields of a line.
pub(super) fn begin(text: &mut String, metadata: &Metadata<'_>) {
    text.push_str("\",\"level\":\"");
    text.push_str(metadata.level().as_str());
    text.push('"');
}

/// Writes what stands behind them.
pub(super) fn end(text: &mut String, metadata: &Metadata<'_>) {
    text.push_str(",\"target\":");
    string(text, metadata.target());
    text.push_str("}\n");
}

fn string(text: &mut String, value: &str) {
    if is_plain(value) {
        text.push('"');
        text.push_str(value);
        text.push('"');
    } else {
        other(text, value);
    }
}

/// What takes more than to copy it.
fn other<T: serde::Serialize + ?Sized>(text: &mut String, value: &T) {
    // Texts and numbers have no way to fail.
    text.push_str(&serde_json::to_string(value).unwrap_or_default());
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field.name());
        string(self.text, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.integer(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.integer(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field.name());
        other(self.text, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field.name());
        other(self.text, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            name if self.of_span && name.starts_with("log.") => return,
            name if self.of_span => self.name(name.strip_prefix("r#").unwrap_or(name)),
            name => self.name(name),
        }
        let from = self.text.len();
        self.text.push('"');
        // A value that fails to write itself stands there as far as it came.
        let _ = write!(self.text, "{value:?}");
        if is_plain(&self.text[from + 1..]) {
            self.text.push('"');
        } else {
            let written = self.text.split_off(from);
            other(self.text, &written[1..]);
        }
    }
}
