//! What is kept of a span while it lasts, in its extensions: the trace that it is in, and its fields for lines inside.

use opentelemetry::trace::{SpanContext, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use tracing::{
    Metadata,
    field::{Field, Visit},
    span,
};

use super::{contexts::TraceId, fields, json};

/// The field that names the trace.
pub(super) const TRACE_ID: &str = "trace_id";

/// How much room the fields of a span take at first: those of a request fit.
const ROOM: usize = 128;

/// What is kept of a span.
#[derive(Debug)]
pub(super) struct Kept {
    /// Not of the spans of libraries, nor where OpenTelemetry keeps it.
    context: Option<SpanContext>,
    style: Style,
    fields: String,
    /// Whether the trace id may wait.
    is_patient: bool,
    /// The field with the trace id, when it waits for the next one, or for somebody who reads them. Hardly any request
    /// has a line inside of its span.
    due: Option<Field>,
}

/// How fields are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// As they stand in lines of text.
    Text,
    /// As the inside of an object.
    Json,
    /// By the library.
    Elsewhere,
}

impl Style {
    fn write(self, text: &mut String, from: usize, record: impl FnOnce(&mut dyn Visit)) {
        match self {
            Self::Text => record(&mut fields::Fields::behind(text, from)),
            Self::Json => record(&mut json::Fields::of_span(text)),
            Self::Elsewhere => {}
        }
    }
}

impl Kept {
    /// Of a new span. Its trace id may wait when nobody else is to see the field.
    pub(super) fn new(
        context: Option<SpanContext>,
        style: Style,
        is_patient: bool,
        with: &span::Attributes<'_>,
    ) -> Self {
        let mut fields = String::new();
        if style != Style::Elsewhere {
            fields.reserve(ROOM);
            style.write(&mut fields, 0, |visit| with.record(visit));
        }
        Self { context, style, fields, is_patient, due: None }
    }

    /// Which trace the span is in.
    pub(super) fn context(&self) -> Option<&SpanContext> {
        self.context.as_ref()
    }

    /// The span has this one around it.
    pub(super) fn set_parent(&mut self, parent: &SpanContext) {
        self.context = Some(inside(parent));
    }

    /// Has the fields name the trace if there is one for it; whether it has to be recorded for that.
    pub(super) fn note_trace(&mut self, metadata: &Metadata<'_>) -> bool {
        let field = metadata.fields().field(TRACE_ID);
        let is_to_record = field.is_some() && !self.is_patient;
        self.due = field.filter(|_| self.is_patient);
        is_to_record
    }

    /// Adds fields.
    pub(super) fn record(&mut self, values: &span::Record<'_>) {
        if let Some(field) = self.due.take() {
            write_trace(&mut self.fields, 0, self.style, &field, self.context.as_ref());
        }
        self.style.write(&mut self.fields, 0, |visit| values.record(visit));
    }

    /// Writes the fields as they stand in a line of text.
    pub(super) fn write(&self, text: &mut String) {
        if self.fields.is_empty() && self.due.is_none() {
            return;
        }
        text.push('{');
        let from = text.len();
        text.push_str(&self.fields);
        if let Some(field) = &self.due {
            write_trace(text, from, self.style, field, self.context.as_ref());
        }
        text.push('}');
    }

    /// The fields as an object; `None` where the library has them.
    pub(super) fn object(&self) -> Option<String> {
        let mut fields = (self.style == Style::Json).then(|| self.fields.clone())?;
        if let Some(field) = &self.due {
            write_trace(&mut fields, 0, self.style, field, self.context.as_ref());
        }
        Some(format!("{{{fields}}}"))
    }
}

/// Writes the field with the trace id behind those that begin at `from`.
fn write_trace(text: &mut String, from: usize, style: Style, field: &Field, context: Option<&SpanContext>) {
    if let Some(context) = context {
        style.write(text, from, |visit| visit.record_str(field, &TraceId::of(context)));
    }
}

/// The context of a span with nothing around it.
pub(super) fn outermost() -> SpanContext {
    let new = RandomIdGenerator::default();
    let (trace, span) = (new.new_trace_id(), new.new_span_id());
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
}

/// The context of a span in the trace of another.
pub(super) fn inside(around: &SpanContext) -> SpanContext {
    let span = RandomIdGenerator::default().new_span_id();
    SpanContext::new(around.trace_id(), span, around.trace_flags(), false, around.trace_state().clone())
}
