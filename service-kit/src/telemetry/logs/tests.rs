//! Lines are those of the library, and spans are kept for them.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tracing::field::Empty;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, filter_fn},
    fmt::MakeWriter,
    layer::SubscriberExt as _,
};

use super::{Form, Logs, is_ours};
use crate::telemetry::{ACCESS, LogFormat, note_trace, trace_id};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Written {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

impl Written {
    /// Lines without their times.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.split_inclusive('\n').map(without_time).collect()
    }
}

/// `2026-01-31T23:59:59.000001Z`, in JSON as a field.
fn without_time(line: &str) -> String {
    let begin = "{\"timestamp\":\"";
    let (before, line) = line.strip_prefix(begin).map_or(("", line), |line| (begin, line));
    match line.split_at_checked(27) {
        Some((time, rest)) if time.parse::<jiff::Timestamp>().is_ok() => format!("{before}{rest}"),
        _ => line.to_owned(),
    }
}

/// Runs with these layers, and says what is written.
fn written<L: Layer<Registry> + Send + Sync>(
    layer: impl FnOnce(Written) -> L,
    say: impl FnOnce(),
) -> Vec<String> {
    let written = Written::default();
    let subscriber = Registry::default().with(layer(written.clone()));
    tracing::subscriber::with_default(subscriber, say);
    written.lines()
}

/// With our lines.
fn ours(format: LogFormat, filter: &str, say: impl FnOnce()) -> Vec<String> {
    let layer = |written: Written| {
        let form = match format {
            LogFormat::Text => Form::Text(written),
            LogFormat::Json => Form::Json(written.clone(), library(format, written)),
        };
        Logs::new(filter, true, form).unwrap()
    };
    written(layer, say)
}

/// With the library's.
fn theirs(format: LogFormat, filter: &str, say: impl FnOnce()) -> Vec<String> {
    let filter = EnvFilter::new(filter).or(filter_fn(is_ours));
    written(|written| library(format, written).with_filter(filter), say)
}

fn library(format: LogFormat, written: Written) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(written);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

struct Fails;

impl std::fmt::Debug for Fails {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever writes a line may write another one meanwhile.
        tracing::info!("within");
        formatter.write_str("value")
    }
}

/// Lines of all kinds.
fn say() {
    tracing::error!("first");
    tracing::info!(target: ACCESS, parent: None, status = 200_u16, grpc = -1, none = None::<u64>, "answered");
    tracing::info!(target: ACCESS, parent: None, id = Some("7"), address = %"::1", yes = true, r#type = "t", "answered");
    let odd = tracing::field::debug("a\nb");
    tracing::warn!(target: ACCESS, parent: None, quoted = "a\"b\\", letters = "ä\u{1}", odd, rate = 0.1, nan = f64::NAN, "odd");
    let span = tracing::info_span!("request", id = "7\u{1b}", r#type = "x\"y", late = Empty, later = Empty);
    span.record("late", "ä");
    let bare = tracing::info_span!(parent: &span, "bare");
    let _inside = bare.enter();
    tracing::info!(target: ACCESS, parent: None, status = 200_u16, "within a span");
    tracing::info!(target: ACCESS, address = %"::1", route = "/a/{b}", upstream = Some("x"), "answered");
    tracing::warn!(list = ?["a", "b"], text = "two\nlines", empty = "", path = "a\\b", "a {}", "message");
    tracing::error!(truth = true, float = 1.5, most = u64::MAX, least = i64::MIN, huge = u128::MAX);
    tracing::info!("bell \u{7} escape \u{1b}[31m delete \u{7f} next \u{85} tab \t ä");
    tracing::info!(message = "a text", r#fn = "raw", dotted.name = 1);
    tracing::debug!("a detail");
    let detail = tracing::debug_span!("detail", step = 1);
    detail.in_scope(|| tracing::trace!(value = ?Fails, "inside"));
    tracing::info!(parent: &span, "of the outer one");
    span.record("later", 2);
    tracing::info!("with all fields");
}

#[test]
fn lines_are_those_of_the_library() {
    for filter in
        ["trace", "info", "warn", "off,access=info", "info,[detail]=trace", "off,[request{late=x}]=info"]
    {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (ours, theirs) = (ours(format, filter, say), theirs(format, filter, say));
            assert_eq!(ours, theirs, "{format:?} {filter}");
        }
    }
    let lines = ours(LogFormat::Text, "off,access=info", say);
    let expected = "  INFO access: answered status=200 grpc=-1\n";
    assert!(lines.len() == 5 && lines[0] == expected && lines[1].starts_with("  INFO access: "), "{lines:?}");
}

#[test]
fn lines_of_the_log_crate_have_their_own_target() {
    let say = || {
        // What `tracing-log` makes of them.
        tracing::warn!(target: "log", { log.target = "rustls", log.line = 3_u64 }, "a {}", "foreign one");
    };
    assert_eq!(ours(LogFormat::Text, "info", say), ["  WARN rustls: a foreign one\n"]);
}

#[test]
fn the_trace_is_named_when_a_line_asks() {
    let said = |filter| {
        let mut ids = Vec::new();
        let lines = ours(LogFormat::Text, filter, || {
            let span = tracing::info_span!("request", id = 1, trace_id = Empty, after = Empty);
            ids.push(note_trace(&span).unwrap());
            let inner = span.in_scope(|| tracing::info_span!("inner", trace_id = Empty));
            assert_eq!(note_trace(&inner), Some(ids[0]));
            inner.in_scope(|| assert_eq!(trace_id(), Some(ids[0])));
            inner.in_scope(|| tracing::info!("one"));
            span.record("after", 2);
            span.in_scope(|| tracing::info!("two"));
            // A span without the field, and one of a library between.
            let library = tracing::debug_span!(parent: &span, "library");
            let below = library.in_scope(|| tracing::info_span!("below"));
            assert_eq!(note_trace(&below), Some(ids[0]));
            below.in_scope(|| tracing::info!("three"));
        });
        let id = ids[0].to_string();
        (lines.into_iter().map(|line| line.replace(&id, "ID")).collect::<Vec<_>>(), id)
    };
    for filter in ["debug", "debug,[nowhere]=debug"] {
        let (lines, id) = said(filter);
        assert!(id.len() == 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
        let target = module_path!();
        let expected = [
            format!("  INFO request{{id=1 trace_id=\"ID\"}}:inner{{trace_id=\"ID\"}}: {target}: one\n"),
            format!("  INFO request{{id=1 trace_id=\"ID\" after=2}}: {target}: two\n"),
            format!("  INFO request{{id=1 trace_id=\"ID\" after=2}}:library:below: {target}: three\n"),
        ];
        assert_eq!(lines, expected, "{filter}");
    }
}

#[test]
fn objects_name_the_trace_and_terminals_have_colours() {
    let say = |form: fn(Written) -> Form<Registry, Written>| {
        let mut id = String::new();
        let lines = written(
            |written| Logs::new("info", true, form(written)).unwrap(),
            || {
                let span = tracing::info_span!("request", trace_id = Empty, b = 1, a = Empty);
                id = note_trace(&span).unwrap().to_string();
                span.record("a", 2);
                span.in_scope(|| tracing::info!(target: "said", count = 1, "said"));
            },
        );
        lines.concat().replace(&id, "ID")
    };
    let object = say(|written| Form::Json(written.clone(), library(LogFormat::Json, written)));
    let span = r#"{"a":2,"b":1,"trace_id":"ID","name":"request"}"#;
    let fields = r#""level":"INFO","message":"said","count":1,"target":"said""#;
    assert_eq!(object, format!("{{\"timestamp\":\"\",{fields},\"span\":{span},\"spans\":[{span}]}}\n"));
    let coloured = say(|written| {
        let layer = tracing_subscriber::fmt::layer().without_time().with_ansi(true).with_writer(written);
        Form::Library(layer.boxed())
    });
    assert!(coloured.contains("ID") && coloured.starts_with("\u{1b}[32m INFO\u{1b}[0m"), "{coloured:?}");
}
