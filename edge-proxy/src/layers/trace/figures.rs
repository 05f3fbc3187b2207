//! What is measured of requests, named as OpenTelemetry's conventions have it.
//!
//! Handles are kept: to find one by its labels takes longer than to use it.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use foldhash::HashMap;
use metrics::{Gauge, Histogram, Label, gauge, histogram};

/// Which requests are counted together. Each label is one of a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) method: &'static str,
    pub(super) scheme: &'static str,
    pub(super) version: &'static str,
    pub(super) status: u16,
    /// A template, never a path.
    pub(super) route: Option<&'static str>,
}

/// The figures of one edge.
#[derive(Default)]
pub(crate) struct Figures {
    answers: RwLock<HashMap<Kind, Arc<Answers>>>,
    active: RwLock<HashMap<(&'static str, &'static str), Gauge>>,
}

/// The figures of one kind.
struct Answers {
    duration: Histogram,
    received: Histogram,
    sent: Histogram,
}

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

impl Figures {
    /// Requests under way.
    pub(super) fn active(&self, method: &'static str, scheme: &'static str) -> Gauge {
        let key = (method, scheme);
        let known = self.active.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        known.unwrap_or_else(|| {
            let gauge = gauge!(
                "http_server_active_requests",
                "http_request_method" => method,
                "url_scheme" => scheme
            );
            let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
            active.entry(key).or_insert(gauge).clone()
        })
    }

    /// A request was answered, with so many bytes in and out.
    pub(super) fn answered(&self, kind: Kind, elapsed: Duration, received: Option<u64>, sent: u64) {
        let known = self.answers.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let answers = known.unwrap_or_else(|| {
            let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
            answers.entry(kind).or_insert_with(|| Arc::new(Answers::new(kind))).clone()
        });
        answers.duration.record(elapsed.as_secs_f64());
        if let Some(received) = received {
            answers.received.record(received as f64);
        }
        answers.sent.record(sent as f64);
    }
}

impl Answers {
    fn new(kind: Kind) -> Self {
        let mut labels = vec![
            Label::new("http_request_method", kind.method),
            Label::new("url_scheme", kind.scheme),
            Label::new("network_protocol_version", kind.version),
            Label::new("http_response_status_code", kind.status.to_string()),
        ];
        labels.extend(kind.route.map(|route| Label::new("http_route", route)));
        // Of a server, only 5xx is an error.
        if kind.status >= 500 {
            labels.push(Label::new("error_type", kind.status.to_string()));
        }
        Self {
            duration: histogram!("http_server_request_duration_seconds", labels.clone()),
            received: histogram!("http_server_request_body_size_bytes", labels.clone()),
            sent: histogram!("http_server_response_body_size_bytes", labels),
        }
    }
}
