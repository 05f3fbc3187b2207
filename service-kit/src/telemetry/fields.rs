//! The fields of log lines and spans as text for programs: `name="text" count=3`, as the formatter of
//! `tracing-subscriber` writes them, but with texts that need no escapes copied whole. There is a line for every request.

use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};

/// Writes fields behind what a text holds.
pub(super) struct Fields<'t> {
    text: &'t mut String,
    is_first: bool,
}

impl<'t> Fields<'t> {
    /// There are none yet.
    pub(super) fn first(text: &'t mut String) -> Self {
        Self { text, is_first: true }
    }

    /// The text holds those that begin at `from`.
    pub(super) fn behind(text: &'t mut String, from: usize) -> Self {
        let is_first = text.len() == from;
        Self { text, is_first }
    }

    /// Writes what stands before a value, and says whether it is the message, before which nothing stands. `None` for a
    /// field that says where a line of the `log` crate comes from: the target of the line says so, too.
    fn begin(&mut self, field: &Field) -> Option<bool> {
        // Patterns instead of texts: there are a dozen fields in a line.
        let (name, is_message) = match field.name().as_bytes() {
            b"message" => ("", true),
            [b'l', b'o', b'g', b'.', ..] => return None,
            [b'r', b'#', ..] => (&field.name()[2..], false),
            _ => (field.name(), false),
        };
        if !std::mem::take(&mut self.is_first) {
            self.text.push(' ');
        }
        if !is_message {
            self.text.push_str(name);
            self.text.push('=');
        }
        Some(is_message)
    }

    fn integer(&mut self, field: &Field, value: impl itoa::Integer) {
        if self.begin(field).is_some() {
            self.text.push_str(itoa::Buffer::new().format(value));
        }
    }
}

/// Whether a text is the same between quotes. Looks at all of it, because that is faster than to stop early.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes()
        .fold(true, |so_far, byte| so_far & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\'))
}

/// What a terminal could take for a command.
fn commands_terminals(letter: char) -> bool {
    matches!(letter, '\u{1b}' | '\u{7}' | '\u{8}' | '\u{c}' | '\u{7f}'..='\u{9f}')
}

/// Makes the end of a text harmless for terminals.
fn disarm(text: &mut String, from: usize) {
    if !text[from..].contains(commands_terminals) {
        return;
    }
    for letter in text.split_off(from).chars() {
        // A text takes whatever is written to it.
        let _ = match letter {
            letter if !commands_terminals(letter) => text.write_char(letter),
            letter if letter.is_ascii() => write!(text, "\\x{:02x}", u32::from(letter)),
            letter => write!(text, "\\u{{{:x}}}", u32::from(letter)),
        };
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match self.begin(field) {
            None => {}
            // One line is one line, whatever is in it.
            Some(true) if !value.contains(char::is_control) => self.text.push_str(value),
            Some(_) if is_plain(value) => {
                self.text.push('"');
                self.text.push_str(value);
                self.text.push('"');
            }
            // A text takes whatever is written to it.
            Some(_) => _ = write!(self.text, "{value:?}"),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.integer(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.integer(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let Some(is_message) = self.begin(field) else { return };
        let from = self.text.len();
        // A value that fails to write itself stands there as far as it came.
        let _ = write!(self.text, "{value:?}");
        if is_message {
            disarm(self.text, from);
        }
    }
}
