//! Log lines as text for programs: those of the full formatter of `tracing-subscriber` without colours, but for
//! messages with control characters, which stay between quotes. A line is put together in one buffer of its thread, and
//! spans keep their fields as they stand in lines.

use std::cell::Cell;

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{layer::Context, registry::LookupSpan};

use super::{fields::Fields, json, kept::Kept, stamp::Stamp};
use crate::clock::Clock;

/// What a thread writes lines with.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) text: String,
    stamp: Stamp,
}

thread_local! {
    static DESK: Cell<Desk> = Cell::default();
}

impl Desk {
    /// Lends the desk of this thread. A line that is written within a line gets another one.
    pub(super) fn lend(write: impl FnOnce(&mut Self)) {
        // A thread that ends has none any more.
        let mut desk = DESK.try_with(Cell::take).unwrap_or_default();
        desk.text.clear();
        write(&mut desk);
        let _ = DESK.try_with(|own| own.set(desk));
    }

    /// Writes the time.
    fn stamp(&mut self) {
        self.stamp.write(&mut self.text, Clock::system().now_us());
    }

    /// Writes the line of an event that is in no span, as JSON.
    pub(super) fn object(&mut self, event: &Event<'_>) {
        self.text.push_str("{\"timestamp\":\"");
        self.stamp();
        json::begin(&mut self.text, event.metadata());
        event.record(&mut json::Fields::of_line(&mut self.text));
        json::end(&mut self.text, event.metadata());
    }

    /// Writes the line of an event, as text.
    pub(super) fn line<S: Subscriber + for<'l> LookupSpan<'l>>(
        &mut self,
        event: &Event<'_>,
        context: &Context<'_, S>,
    ) {
        self.stamp();
        let Self { text, .. } = self;
        text.push_str(level(event.metadata()));
        let mut is_inside = false;
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            is_inside = true;
            text.push_str(span.name());
            if let Some(kept) = span.extensions().get::<Kept>() {
                kept.write(text);
            }
            text.push(':');
        }
        if is_inside {
            text.push(' ');
        }
        match event.metadata() {
            foreign if foreign.target() == "log" && foreign.fields().field("log.target").is_some() => {
                event.record(&mut Target(text));
            }
            own => text.push_str(own.target()),
        }
        text.push_str(": ");
        event.record(&mut Fields::first(text));
        text.push('\n');
    }
}

fn level(metadata: &Metadata<'_>) -> &'static str {
    match *metadata.level() {
        Level::TRACE => " TRACE ",
        Level::DEBUG => " DEBUG ",
        Level::INFO => "  INFO ",
        Level::WARN => "  WARN ",
        Level::ERROR => " ERROR ",
    }
}

/// Writes the target of a line of the `log` crate, which is a field.
struct Target<'t>(&'t mut String);

impl Visit for Target<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.0.push_str(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
