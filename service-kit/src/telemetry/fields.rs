//! The fields of log lines and spans as text for programs: `name="text" count=3`, as the formatter of
//! `tracing-subscriber` writes them, but with texts that need no escapes copied whole. There is a line for every request.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

/// Formats fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

impl<'w> FormatFields<'w> for Plain {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer, is_first: true, outcome: Ok(()) };
        fields.record(&mut visitor);
        visitor.outcome
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    outcome: fmt::Result,
}

impl Visitor<'_> {
    /// What stands before a value: nothing before the message.
    fn begin(&mut self, field: &Field) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        match field.name() {
            "message" => Ok(()),
            name => {
                self.writer.write_str(name.strip_prefix("r#").unwrap_or(name))?;
                self.writer.write_char('=')
            }
        }
    }

    fn field(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.outcome.is_ok() {
            self.outcome = self.begin(field).and_then(|()| write(&mut self.writer));
        }
    }
}

/// Whether a text is the same between quotes.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |writer| match value {
            // One line is one line, whatever is in it.
            text if field.name() == "message" && !text.contains(char::is_control) => writer.write_str(text),
            text if is_plain(text) => {
                writer.write_char('"')?;
                writer.write_str(text)?;
                writer.write_char('"')
            }
            text => write!(writer, "{text:?}"),
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |writer| write!(writer, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |writer| write!(writer, "{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |writer| write!(writer, "{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::Plain;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'w> MakeWriter<'w> for Kept {
        type Writer = Self;

        fn make_writer(&'w self) -> Self {
            self.clone()
        }
    }

    /// What the two formatters make of the same lines.
    fn lines() -> [String; 2] {
        let (ours, theirs) = (Kept::default(), Kept::default());
        let say = || {
            let span =
                tracing::info_span!("request", id = "7\u{1b}", r#type = "x\"y", late = tracing::field::Empty);
            span.record("late", "ä");
            let _inside = span.enter();
            tracing::info!(target: "access", status = 200_u16, grpc = -1, address = %"::1", "answered");
            tracing::warn!(list = ?["a", "b"], text = "two\nlines", empty = "", "a {}", "message");
        };
        let plain = tracing_subscriber::fmt().without_time().with_ansi(false);
        let subscriber = plain.fmt_fields(Plain).with_writer(ours.clone()).finish();
        tracing::subscriber::with_default(subscriber, say);
        let plain = tracing_subscriber::fmt().without_time().with_ansi(false);
        tracing::subscriber::with_default(plain.with_writer(theirs.clone()).finish(), say);
        [ours, theirs].map(|kept| String::from_utf8(kept.0.lock().unwrap().clone()).unwrap())
    }

    #[test]
    fn lines_are_those_of_the_library() {
        let [ours, theirs] = lines();
        assert!(ours.contains("status=200 grpc=-1 address=::1"), "{ours}");
        assert_eq!(ours, theirs);
    }
}
