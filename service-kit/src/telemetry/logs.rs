//! The layer of log lines: what is said, in which form, and what is kept of spans for it.
//!
//! Every request makes a span and a line, so this is one layer with one decision for each callsite, and does nothing
//! when a span is entered or left. Text for programs, and JSON about requests, are written here; all other lines by
//! the library.

use std::{io::Write as _, iter};

use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter, span, subscriber::Interest};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::ParseError,
    fmt::{FormattedFields, MakeWriter, format::JsonFields},
    layer::Context,
    registry::{LookupSpan, Scope, SpanRef},
};

use super::{
    kept::{Kept, Style, inside, outermost},
    lines::ACCESS,
    text::Desk,
};

/// How lines look.
pub(super) enum Form<S, W> {
    /// Text for programs, to this writer.
    Text(W),
    /// JSON. Lines about single requests go to this writer, and all others through a layer of the library.
    Json(W, Box<dyn Layer<S> + Send + Sync>),
    /// What a layer of the library makes of them.
    Library(Box<dyn Layer<S> + Send + Sync>),
}

/// Says what `telemetry.log` wants to hear. It decides about lines only: the spans of requests always exist, because
/// trace ids go into lines and error bodies.
pub(super) struct Logs<S, W> {
    filter: EnvFilter,
    /// Whether the filter decides by spans, too.
    follows_spans: bool,
    /// Whether spans get their ids here.
    gives_ids: bool,
    form: Form<S, W>,
}

/// Whether this is the span of a request. Those of libraries are finer than `info`.
pub(super) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO
}

impl<S, W> Logs<S, W> {
    /// By a filter such as `info,auth_service=debug`. Spans get ids here unless OpenTelemetry gives them theirs.
    pub(super) fn new(filter: &str, gives_ids: bool, form: Form<S, W>) -> Result<Self, ParseError> {
        // A directive about spans has brackets, and no other.
        let follows_spans = filter.contains('[');
        Ok(Self { filter: EnvFilter::try_new(filter)?, follows_spans, gives_ids, form })
    }
}

impl<S, W> Layer<S> for Logs<S, W>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The filter takes note of the spans that it is about.
        let wanted = Layer::<S>::register_callsite(&self.filter, metadata);
        if is_ours(metadata) { Interest::always() } else { wanted }
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        is_ours(metadata) || self.filter.enabled(metadata, context)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // The more verbose one is the greater.
        Some(self.filter.max_level_hint()?.max(LevelFilter::INFO))
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        if self.follows_spans {
            self.filter.on_new_span(attributes, id, context.clone());
        }
        if let Form::Library(layer) = &self.form {
            layer.on_new_span(attributes, id, context.clone());
        }
        let Some(span) = context.span(id) else { return };
        let ids = (self.gives_ids && is_ours(attributes.metadata())).then(|| {
            let around = iter::successors(span.parent(), SpanRef::parent);
            let mut around = around.filter_map(|span| span.extensions().get::<Kept>()?.context().map(inside));
            around.next().unwrap_or_else(outermost)
        });
        let style = match &self.form {
            Form::Text(_) => Style::Text,
            Form::Json(..) => Style::Json,
            Form::Library(_) => Style::Elsewhere,
        };
        // The filter and the library want to see all that is recorded.
        let is_patient = !self.follows_spans && style != Style::Elsewhere;
        // Values may do anything to write themselves: the span must not be locked then.
        let kept = Kept::new(ids, style, is_patient, attributes);
        span.extensions_mut().insert(kept);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if self.follows_spans {
            self.filter.on_record(id, values, context.clone());
        }
        match &self.form {
            Form::Library(layer) => layer.on_record(id, values, context),
            Form::Text(_) | Form::Json(..) => {
                if let Some(span) = context.span(id)
                    && let Some(kept) = span.extensions_mut().get_mut::<Kept>()
                {
                    kept.record(values);
                }
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // Nobody is left to hear that stderr is closed.
        let write =
            |writer: &W, line: &str| _ = writer.make_writer_for(event.metadata()).write_all(line.as_bytes());
        match &self.form {
            Form::Library(layer) => layer.on_event(event, context),
            Form::Text(writer) => Desk::lend(|desk| {
                desk.line(event, &context);
                write(writer, &desk.text);
            }),
            Form::Json(writer, _) if is_alone(event, &context) => Desk::lend(|desk| {
                desk.object(event);
                write(writer, &desk.text);
            }),
            Form::Json(_, layer) => {
                hand_over(context.event_scope(event));
                hand_over(context.lookup_current().map(|span| span.scope()));
                layer.on_event(event, context);
            }
        }
    }

    fn on_enter(&self, id: &span::Id, context: Context<'_, S>) {
        if self.follows_spans {
            self.filter.on_enter(id, context);
        }
    }

    fn on_exit(&self, id: &span::Id, context: Context<'_, S>) {
        if self.follows_spans {
            self.filter.on_exit(id, context);
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        if self.follows_spans {
            self.filter.on_close(id, context);
        }
    }
}

/// Whether a line is about a request and names no span. In JSON, the current one counts for all lines.
fn is_alone<S>(event: &Event<'_>, context: &Context<'_, S>) -> bool
where
    S: Subscriber + for<'l> LookupSpan<'l>,
{
    event.metadata().target() == ACCESS && event.is_root() && context.lookup_current().is_none()
}

/// Gives the fields of spans to the library.
fn hand_over<'s, S: LookupSpan<'s>>(spans: Option<Scope<'s, S>>) {
    for span in spans.into_iter().flatten() {
        let fields = span.extensions().get::<Kept>().and_then(Kept::object);
        if let Some(fields) = fields {
            span.extensions_mut().replace(FormattedFields::<JsonFields>::new(fields));
        }
    }
}

#[cfg(test)]
mod tests;
