//! What happened to a request on its way, for the answer to tell: filled in by whoever knows, read once.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::rate::{RATE_LIMIT, RATE_LIMIT_POLICY, Standing};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The marks of one request.
#[derive(Debug)]
pub(crate) struct Marks {
    begun: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    quota: Option<(Standing, HeaderValue)>,
    admitted: Option<Duration>,
    queued: Duration,
    upstream: Duration,
    service: Option<&'static str>,
    route: Option<&'static str>,
}

impl Marks {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), inner: Mutex::default() }
    }

    /// When the request came.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// What the caller has left, and which limits there are. Of several calls in one request the tightest counts.
    pub(crate) fn quota(&self, standing: Standing, policies: HeaderValue) {
        self.with(|inner| {
            let before = inner.quota.take();
            let tighter = Standing::tighter(before.as_ref().map(|(standing, _)| *standing), Some(standing));
            inner.quota = tighter.map(|standing| (standing, policies));
        });
    }

    /// The caller is known, and may call.
    pub(crate) fn admitted(&self) {
        let elapsed = self.begun.elapsed();
        self.with(|inner| inner.admitted = inner.admitted.or(Some(elapsed)));
    }

    /// What the request asks for, where its answer does not say it.
    pub(crate) fn goes_by(&self, route: &'static str) {
        self.with(|inner| inner.route = Some(route));
    }

    /// What it asks for.
    pub(crate) fn route(&self) -> Option<&'static str> {
        self.with(|inner| inner.route)
    }

    /// Which service a call goes to.
    pub(crate) fn goes_to(&self, service: &'static str) {
        self.with(|inner| inner.service = Some(service));
    }

    /// How long a call waited for its turn, and then for the service to begin its answer.
    pub(crate) fn called(&self, queued: Duration, upstream: Duration) {
        self.with(|inner| {
            inner.queued += queued;
            inner.upstream += upstream;
        });
    }

    /// The service that was called last.
    pub(crate) fn service(&self) -> Option<&'static str> {
        self.with(|inner| inner.service)
    }

    /// Writes what is known into the headers of an answer, but for what they say already.
    pub(crate) fn write(&self, headers: &mut HeaderMap, timing: bool) {
        let field = |standing: &Standing| standing.field();
        if !headers.contains_key(RATE_LIMIT)
            && let Some((standing, policies)) = self.with(|inner| inner.quota.take())
            && let Some(left) = field(&standing)
        {
            headers.insert(RATE_LIMIT, left);
            headers.insert(RATE_LIMIT_POLICY, policies);
        }
        if timing && let Ok(phases) = HeaderValue::try_from(self.phases()) {
            headers.insert(SERVER_TIMING, phases);
        }
    }

    /// `admit;dur=0.2, queue;dur=0, upstream;dur=3.1, total;dur=3.6`, in milliseconds.
    fn phases(&self) -> String {
        let total = self.begun.elapsed();
        let (admitted, queued, upstream) = self.with(|inner| (inner.admitted, inner.queued, inner.upstream));
        let mut text = String::new();
        let called = (!upstream.is_zero()).then_some([("queue", queued), ("upstream", upstream)]);
        let phases = admitted.map(|admitted| ("admit", admitted)).into_iter();
        for (name, took) in phases.chain(called.into_iter().flatten()).chain([("total", total)]) {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a `String` does not fail.
            let _ = write!(text, "{separator}{name};dur={:.3}", took.as_secs_f64() * 1_000.0);
        }
        text
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
