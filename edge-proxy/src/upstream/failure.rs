//! What a call that went wrong came to: how it looks to the caller, whether the service can have seen it,
//! and whose fault it is.

use http::{HeaderMap, StatusCode};
use service_kit::{Error, Kind};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Whether the service can have begun with a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It says that it has not, or never got it: whatever the method, it may be sent again.
    Never,
    /// Nobody knows.
    Perhaps,
}

/// What a failure says of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// It should have answered.
    Instance,
    /// So should it, and everything else on that connection failed with this.
    Connection,
    /// Nothing.
    Nobody,
}

/// A call without an answer, or an answer that broke off.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) message: &'static str,
    pub(super) seen: Seen,
    pub(super) blame: Blame,
    pub(super) cause: anyhow::Error,
}

const SILENT: &str = "the service does not answer";
const BROKEN: &str = "the service broke off its answer";

impl Failure {
    /// No instance could take the call.
    pub(super) fn nowhere(message: &'static str, cause: anyhow::Error) -> Self {
        Self { kind: Kind::Unavailable, message, seen: Seen::Never, blame: Blame::Nobody, cause }
    }

    /// A request that was not answered.
    pub(super) fn unanswered(error: h2::Error) -> Self {
        let (kind, seen, blame) = judge(&error);
        Self { kind, message: SILENT, seen, blame, cause: error.into() }
    }

    /// An answer that broke off.
    pub(super) fn broken(error: h2::Error) -> Self {
        let (kind, _, blame) = judge(&error);
        Self { kind, message: BROKEN, seen: Seen::Perhaps, blame, cause: error.into() }
    }

    /// An answer that ended without a status.
    pub(super) fn without_status() -> Self {
        let cause = anyhow::anyhow!("an answer without a status");
        let (seen, blame) = (Seen::Perhaps, Blame::Instance);
        Self { kind: Kind::Unavailable, message: BROKEN, seen, blame, cause }
    }

    /// An answer that is no gRPC: the status of HTTP says what it is (gRPC's http-grpc-status-mapping).
    pub(super) fn of_http(status: StatusCode) -> Self {
        let kind = match status.as_u16() {
            401 => Kind::Unauthenticated,
            403 => Kind::PermissionDenied,
            404 => Kind::Unimplemented,
            429 | 502 | 503 | 504 => Kind::Unavailable,
            _ => Kind::Internal,
        };
        let blame = if kind == Kind::Unavailable { Blame::Instance } else { Blame::Nobody };
        let cause = anyhow::anyhow!("the answer is HTTP {status} and no gRPC");
        Self { kind, message: SILENT, seen: Seen::Perhaps, blame, cause }
    }

    /// The code that the call ends with.
    pub(super) fn code(&self) -> Code {
        self.kind.code()
    }

    /// As the caller sees it.
    pub(super) fn into_error(self) -> Error {
        let error = Error::new(self.kind, self.kind.name(), self.message);
        error.caused_by(self.cause)
    }

    /// The same in the middle of an answer: it keeps its kind on the way out.
    pub(super) fn into_status(self) -> Status {
        tracing::warn!(code = self.kind.name(), error = format!("{:#}", self.cause), "{}", self.message);
        let mut details = tonic_types::ErrorDetails::new();
        details.set_error_info(
            self.kind.name(),
            service_kit::error::DOMAIN,
            std::collections::HashMap::new(),
        );
        Status::with_error_details(self.code(), self.message, details)
    }
}

fn judge(error: &h2::Error) -> (Kind, Seen, Blame) {
    let kind = error.reason().map_or(Kind::Unavailable, kind_of);
    match (error.is_go_away(), error.is_reset(), error.is_remote()) {
        // RFC 9113 §6.8: what fails with it was not, and will not be, processed.
        (true, _, true) if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) => {
            (kind, Seen::Never, Blame::Nobody)
        }
        (true, _, true) => (Kind::Unavailable, Seen::Never, Blame::Nobody),
        // RFC 9113 §8.7.
        (_, true, true) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            (kind, Seen::Never, Blame::Instance)
        }
        (_, true, true) => (kind, Seen::Perhaps, Blame::Instance),
        // We found the instance to break the rules.
        _ if error.is_library() => (Kind::Internal, Seen::Perhaps, Blame::Instance),
        (_, true, false) => (kind, Seen::Perhaps, Blame::Nobody),
        _ => (Kind::Unavailable, Seen::Perhaps, Blame::Connection),
    }
}

/// gRPC's PROTOCOL-HTTP2, "Errors", with one difference: INTERNAL_ERROR is what an HTTP/2 server says when a
/// handler dies or breaks off, before its answer or within it. To the caller such a service is not there.
fn kind_of(reason: h2::Reason) -> Kind {
    match reason {
        h2::Reason::REFUSED_STREAM | h2::Reason::INTERNAL_ERROR => Kind::Unavailable,
        h2::Reason::CANCEL => Kind::Cancelled,
        h2::Reason::ENHANCE_YOUR_CALM => Kind::ResourceExhausted,
        h2::Reason::INADEQUATE_SECURITY => Kind::PermissionDenied,
        _ => Kind::Internal,
    }
}

/// Whether a service that answered this should have answered something else. Its own "not now" about one
/// thing is an answer; "not now" about everything is not.
pub(super) fn is_failure(code: Code, headers: &HeaderMap, is_deadline_ours: bool) -> bool {
    match code {
        Code::Unavailable => {
            let status = Status::from_header_map(headers);
            let info = status.and_then(|status| status.get_details_error_info());
            info.is_none_or(|info| matches!(info.reason.as_str(), "UNAVAILABLE" | "DRAINING"))
        }
        // Whoever allows a call a millisecond proves nothing by it.
        Code::DeadlineExceeded => is_deadline_ours,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use service_kit::{Error, Kind};
    use tonic::{Code, Status};

    use super::{Failure, is_failure, kind_of};

    #[test]
    fn resets_and_http_statuses_by_the_tables_of_grpc() {
        for (reason, kind) in [
            (h2::Reason::NO_ERROR, Kind::Internal),
            (h2::Reason::PROTOCOL_ERROR, Kind::Internal),
            (h2::Reason::INTERNAL_ERROR, Kind::Unavailable),
            (h2::Reason::FLOW_CONTROL_ERROR, Kind::Internal),
            (h2::Reason::FRAME_SIZE_ERROR, Kind::Internal),
            (h2::Reason::REFUSED_STREAM, Kind::Unavailable),
            (h2::Reason::CANCEL, Kind::Cancelled),
            (h2::Reason::COMPRESSION_ERROR, Kind::Internal),
            (h2::Reason::CONNECT_ERROR, Kind::Internal),
            (h2::Reason::ENHANCE_YOUR_CALM, Kind::ResourceExhausted),
            (h2::Reason::INADEQUATE_SECURITY, Kind::PermissionDenied),
        ] {
            assert_eq!(kind_of(reason), kind, "{reason}");
        }
        for (status, kind) in [
            (400, Kind::Internal),
            (401, Kind::Unauthenticated),
            (403, Kind::PermissionDenied),
            (404, Kind::Unimplemented),
            (429, Kind::Unavailable),
            (431, Kind::Internal),
            (502, Kind::Unavailable),
            (503, Kind::Unavailable),
            (504, Kind::Unavailable),
            (200, Kind::Internal),
        ] {
            assert_eq!(Failure::of_http(StatusCode::from_u16(status).unwrap()).kind, kind, "{status}");
        }
    }

    #[test]
    fn only_what_is_about_everything_is_a_failure() {
        let headers = |status: Status| {
            let mut headers = HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            headers
        };
        let own = |reason: &'static str| headers(Error::new(Kind::Unavailable, reason, "not now").into());
        assert!(is_failure(Code::Unavailable, &headers(Status::unavailable("proxy")), true));
        assert!(is_failure(Code::Unavailable, &own("UNAVAILABLE"), true));
        assert!(is_failure(Code::Unavailable, &own("DRAINING"), true));
        assert!(!is_failure(Code::Unavailable, &own("IMPORTS_BUSY"), true));
        assert!(is_failure(Code::DeadlineExceeded, &HeaderMap::new(), true));
        assert!(!is_failure(Code::DeadlineExceeded, &HeaderMap::new(), false));
        assert!(!is_failure(Code::Internal, &HeaderMap::new(), true));
    }
}
