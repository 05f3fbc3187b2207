//! Which trace a span belongs to: taken from headers, passed on in headers, written into log lines.
//!
//! Where spans are exported OpenTelemetry keeps this. Elsewhere nobody would ever read its spans, and keeping them
//! costs more than the calls that they are about: then [`Contexts`] keeps the ids alone.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    global,
    propagation::Extractor,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use tracing::{Span, Subscriber, span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, Registry, layer::Context, registry::LookupSpan};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Gives spans their ids: of the trace of the span around them, else of a new one.
#[derive(Debug)]
pub(super) struct Contexts;

impl<S: Subscriber + for<'l> LookupSpan<'l>> Layer<S> for Contexts {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let around = match attributes.parent() {
            Some(parent) => context.span(parent),
            None if attributes.is_contextual() => context.lookup_current(),
            None => None,
        };
        let around = around.and_then(|around| around.extensions().get::<SpanContext>().cloned());
        let new = RandomIdGenerator::default();
        let own = match around {
            Some(around) => inside(&around),
            None => {
                let (trace, span) = (new.new_trace_id(), new.new_span_id());
                SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
            }
        };
        span.extensions_mut().insert(own);
    }
}

/// A new span in the trace of another.
fn inside(around: &SpanContext) -> SpanContext {
    let span = RandomIdGenerator::default().new_span_id();
    SpanContext::new(around.trace_id(), span, around.trace_flags(), false, around.trace_state().clone())
}

/// The context of a span; `None` where nothing traces.
fn of(span: &Span) -> Option<SpanContext> {
    if super::exports() {
        let context = span.context();
        return Some(context.span().span_context().clone()).filter(SpanContext::is_valid);
    }
    let kept = span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.extensions().get::<SpanContext>().cloned()
    });
    kept.flatten()
}

/// Makes a context the parent of a span that has not begun.
fn set_parent(span: &Span, parent: &SpanContext) {
    if super::exports() {
        let parent = opentelemetry::Context::new().with_remote_span_context(parent.clone());
        // Fails only when the span was entered already or nothing traces: then there is no parent.
        let _ = span.set_parent(parent);
        return;
    }
    span.with_subscriber(|(id, dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        span.extensions_mut().replace(inside(parent))
    });
}

/// Puts the current span's context into headers.
pub fn inject(headers: &mut HeaderMap) {
    let Some(context) = of(&Span::current()) else { return };
    headers.insert(TRACEPARENT, traceparent(context.trace_id(), context.span_id(), context.trace_flags()));
    if *context.trace_state() != TraceState::NONE
        && let Ok(state) = HeaderValue::try_from(context.trace_state().header())
    {
        headers.insert(TRACESTATE, state);
    }
}

/// W3C Trace Context §3.2, of version 00.
fn traceparent(trace: TraceId, span: SpanId, flags: TraceFlags) -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"00-................................-................-..";
    let bytes = [&trace.to_bytes()[..], &span.to_bytes(), &[flags.to_u8()]];
    for (from, bytes) in [3, 36, 53].into_iter().zip(bytes) {
        for (at, byte) in bytes.iter().enumerate() {
            text[from + 2 * at] = DIGITS[usize::from(byte >> 4)];
            text[from + 2 * at + 1] = DIGITS[usize::from(byte & 15)];
        }
    }
    let mut value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
    // No secret, but seen once: HPACK must not drop what comes again for it.
    value.set_sensitive(true);
    value
}

/// Makes the context in headers the parent of a span, and notes the trace in the span's field
/// `trace_id` if it has one: each log line inside of the span then names the trace, which is returned.
pub fn adopt_parent(span: &Span, headers: &HeaderMap) -> Option<String> {
    if has_parent(headers) {
        let context = global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)));
        let parent = context.span().span_context().clone();
        if parent.is_valid() {
            set_parent(span, &parent);
        }
    }
    note_trace(span)
}

/// Whether there is one `traceparent`, exactly as W3C Trace Context §3.2 has it; OpenTelemetry's
/// propagator also takes others. What follows the flags is for versions to come.
fn has_parent(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match value.as_bytes() {
        [v0, v1, b'-', trace @ .., b'-', f0, f1] if (*v0, *v1) == (b'0', b'0') => {
            matches!(trace.split_at_checked(32), Some((trace, [b'-', span @ ..]))
                if span.len() == 16 && is_hex(trace) && is_hex(span) && is_hex(&[*f0, *f1]))
        }
        longer => {
            longer.len() >= 55
                && is_hex(&longer[..2])
                && &longer[..2] != b"ff"
                && &longer[..2] != b"00"
                && longer.get(55).is_none_or(|byte| *byte == b'-')
        }
    }
}

/// Writes the trace id of a span into its field `trace_id`, and says it.
pub fn note_trace(span: &Span) -> Option<String> {
    let id = of(span)?.trace_id().to_string();
    span.record("trace_id", &*id);
    Some(id)
}

/// The trace id of the current span, 32 hexadecimal digits; `None` outside of a trace.
pub fn trace_id() -> Option<String> {
    of(&Span::current()).map(|context| context.trace_id().to_string())
}

struct HeadersRef<'a>(&'a HeaderMap);

impl Extractor for HeadersRef<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use opentelemetry::trace::{SpanId, TraceFlags, TraceId};

    use super::{has_parent, traceparent};

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("traceparent", HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn what_is_written_is_read() {
        let (trace, span) = (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7);
        let written = traceparent(TraceId::from(trace), SpanId::from(span), TraceFlags::SAMPLED);
        assert_eq!(written, GOOD);
        assert!(has_parent(&HeaderMap::from_iter([(super::TRACEPARENT, written)])));
    }

    #[test]
    fn a_parent_is_exact_or_none() {
        let later = [&GOOD.replacen("00", "01", 1), &format!("{}-more", GOOD.replacen("00", "cc", 1))];
        assert!(has_parent(&headers(&[GOOD])));
        assert!(later.into_iter().all(|value| has_parent(&headers(&[value]))));
        let upper = GOOD.to_uppercase();
        let broken = [
            "",
            "00-nonsense",
            &upper,
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("{GOOD}0"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("00", "0x", 1),
            &GOOD.replace('-', "_"),
            &format!("{}x", GOOD.replacen("00", "01", 1)),
        ];
        for value in broken {
            assert!(!has_parent(&headers(&[value])), "{value}");
        }
        assert!(!has_parent(&headers(&[GOOD, GOOD])) && !has_parent(&HeaderMap::new()));
    }
}
