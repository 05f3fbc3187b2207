//! What is measured: one kind of call through one door of one proxy.

use std::fmt;

use crate::process::Process;

/// How a call comes in; it goes on as gRPC over HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// REST over HTTP/2.
    Rest,
    /// REST over HTTP/1.1.
    RestH1,
    /// gRPC.
    Grpc,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rest => "REST h2",
            Self::RestH1 => "REST h1",
            Self::Grpc => "gRPC",
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) proxy: &'static str,
    pub(crate) kind: Kind,
    /// Whether clients speak TLS.
    pub(crate) tls: bool,
    /// What stands behind, where it is not the service over mutual TLS.
    pub(crate) note: &'static str,
    pub(crate) address: String,
    pub(crate) has_latency: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let front = if self.tls { "TLS" } else { "plain" };
        write!(f, "{}, {}, {front}{}", self.proxy, self.kind, self.note)
    }
}

impl Case {
    pub(crate) fn new(proxy: &'static str, kind: Kind, tls: bool, address: &str) -> Self {
        // Without TLS in front and with it behind, as the goals have it.
        let has_latency = !tls && kind != Kind::RestH1;
        Self { proxy, kind, tls, note: "", address: address.to_owned(), has_latency }
    }

    /// The same with something else behind.
    pub(crate) fn noted(self, note: &'static str) -> Self {
        Self { note, has_latency: false, ..self }
    }

    pub(crate) fn goal(&self) -> &'static str {
        match (self.proxy, self.kind, self.tls) {
            ("edge", Kind::Rest, false) => "<= 20 us",
            ("edge", Kind::Grpc, false) => "<= 12 us",
            _ => "-",
        }
    }
}

/// A proxy that runs.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) process: Process,
    pub(crate) cases: Vec<Case>,
}
