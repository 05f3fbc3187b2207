//! Which trace a span belongs to: taken from headers, passed on in headers, written into log lines.
//!
//! Where spans are exported OpenTelemetry keeps this. Elsewhere nobody would ever read its spans, and keeping them
//! costs more than the calls that they are about: then [`Kept`] has the ids alone.

use std::ops::Deref;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    global,
    propagation::Extractor,
    trace::{SpanContext, TraceContextExt as _, TraceState},
};
use serde::{Serialize, Serializer};
use tracing::{Span, Subscriber as _, dispatcher, span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Registry, registry::LookupSpan as _};

use super::kept::{Kept, TRACE_ID};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The id of a trace: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 32]);

impl TraceId {
    /// The trace of a context.
    pub(super) fn of(context: &SpanContext) -> Self {
        let mut digits = [0; 32];
        write_digits(&mut digits, &context.trace_id().to_bytes());
        Self(digits)
    }
}

impl Deref for TraceId {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

/// Two digits for each byte.
fn write_digits(digits: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

/// Reads the context of the current span; `None` where nothing traces.
fn with_current<T>(mut read: impl FnMut(&SpanContext) -> T) -> Option<T> {
    if super::exports() {
        return exported(&Span::current()).as_ref().map(read);
    }
    dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        let span = registry.span(registry.current_span().id()?)?;
        let extensions = span.extensions();
        extensions.get::<Kept>()?.context().map(&mut read)
    })
}

/// What OpenTelemetry knows of a span.
fn exported(span: &Span) -> Option<SpanContext> {
    let context = span.context();
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// Puts the current span's context into headers.
pub fn inject(headers: &mut HeaderMap) {
    with_current(|context| {
        headers.insert(TRACEPARENT, traceparent(context));
        if *context.trace_state() != TraceState::NONE
            && let Ok(state) = HeaderValue::try_from(context.trace_state().header())
        {
            headers.insert(TRACESTATE, state);
        }
    });
}

/// W3C Trace Context §3.2, of version 00.
fn traceparent(context: &SpanContext) -> HeaderValue {
    let mut text = *b"00-................................-................-..";
    write_digits(&mut text[3..35], &context.trace_id().to_bytes());
    write_digits(&mut text[36..52], &context.span_id().to_bytes());
    write_digits(&mut text[53..], &[context.trace_flags().to_u8()]);
    let mut value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
    // No secret, but seen once: HPACK must not drop what comes again for it.
    value.set_sensitive(true);
    value
}

/// Makes the context in headers the parent of a span that has not begun, and notes the trace in the span's field
/// `trace_id` if it has one: each log line inside of the span then names the trace, which is returned.
pub fn adopt_parent(span: &Span, headers: &HeaderMap) -> Option<TraceId> {
    note(span, parent(headers).as_ref())
}

/// Writes the trace id of a span into its field `trace_id`, and says it.
pub fn note_trace(span: &Span) -> Option<TraceId> {
    note(span, None)
}

fn note(span: &Span, parent: Option<&SpanContext>) -> Option<TraceId> {
    let (id, is_to_record) = if super::exports() {
        if let Some(parent) = parent {
            let parent = opentelemetry::Context::new().with_remote_span_context(parent.clone());
            // Fails only when the span was entered already or nothing traces: then there is no parent.
            let _ = span.set_parent(parent);
        }
        (TraceId::of(&exported(span)?), true)
    } else {
        span.with_subscriber(|(id, dispatch)| keep(dispatch.downcast_ref()?, id, parent))??
    };
    if is_to_record {
        span.record(TRACE_ID, &*id);
    }
    Some(id)
}

/// The trace of a span under `parent`, and whether it has to be recorded.
fn keep(registry: &Registry, id: &span::Id, parent: Option<&SpanContext>) -> Option<(TraceId, bool)> {
    let span = registry.span(id)?;
    let mut extensions = span.extensions_mut();
    let kept = extensions.get_mut::<Kept>()?;
    if let Some(parent) = parent {
        kept.set_parent(parent);
    }
    let trace = TraceId::of(kept.context()?);
    Some((trace, kept.note_trace(span.metadata())))
}

/// The trace id of the current span; `None` outside of a trace.
pub fn trace_id() -> Option<TraceId> {
    with_current(TraceId::of)
}

/// The valid context in headers.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    if !has_parent(headers) {
        return None;
    }
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&HeadersRef(headers)));
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// Whether there is one `traceparent`, exactly as W3C Trace Context §3.2 has it; OpenTelemetry's
/// propagator also takes others. What follows the flags is for versions to come.
fn has_parent(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TRACEPARENT).iter();
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

    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

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
        let (trace, span, state) = (TraceId::from(trace), SpanId::from(span), TraceState::default());
        let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state);
        assert_eq!(*super::TraceId::of(&context), GOOD[3..35]);
        let written = traceparent(&context);
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
