//! One closed set of error kinds, with a message for the caller and another for the log.
//!
//! A [`Kind`] decides the gRPC code and the HTTP status; the details travel as `google.rpc` messages.

use std::{borrow::Cow, collections::HashMap, fmt, time::Duration};

use tonic_types::{ErrorDetails, StatusExt as _};

/// The result of everything that can fail towards a caller.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The domain of `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "tollgate";

/// How an error looks from outside. Closed: every hop knows all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request breaks a rule; the fields say which.
    InvalidArgument,
    /// Nobody, or nobody that can be proven.
    Unauthenticated,
    /// Somebody who may not do this to a thing that they may see.
    PermissionDenied,
    /// Not there, or not to be seen by this caller.
    NotFound,
    /// There already.
    AlreadyExists,
    /// Right, but not in this state.
    FailedPrecondition,
    /// Somebody else was faster; try again.
    Aborted,
    /// Too much or too often.
    ResourceExhausted,
    /// The call was given up by its caller.
    Cancelled,
    /// Not answered in time.
    DeadlineExceeded,
    /// No such method.
    Unimplemented,
    /// Not now; try again.
    Unavailable,
    /// Our fault.
    Internal,
}

impl Kind {
    /// The gRPC code.
    pub fn code(self) -> tonic::Code {
        use tonic::Code;
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::FailedPrecondition => Code::FailedPrecondition,
            Self::Aborted => Code::Aborted,
            Self::ResourceExhausted => Code::ResourceExhausted,
            Self::Cancelled => Code::Cancelled,
            Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Unimplemented => Code::Unimplemented,
            Self::Unavailable => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }

    /// The kind of a gRPC code from any peer.
    pub fn of_code(code: tonic::Code) -> Self {
        use tonic::Code;
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidArgument,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::Aborted => Self::Aborted,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::Cancelled => Self::Cancelled,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Unimplemented => Self::Unimplemented,
            Code::Unavailable => Self::Unavailable,
            Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => Self::Internal,
        }
    }

    /// The HTTP status.
    pub fn http_status(self) -> http::StatusCode {
        use http::StatusCode;
        match self {
            Self::InvalidArgument => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::FailedPrecondition | Self::Aborted => StatusCode::CONFLICT,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The standard name of the code: `INVALID_ARGUMENT`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Cancelled => "CANCELLED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Internal => "INTERNAL",
        }
    }
}

/// A rule that a field breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's JSON path: `operations[3].request.path`.
    pub field: String,
    /// The rule, as a sentence without the field's name: `is required`.
    pub message: String,
}

/// An error on its way to a caller.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
    fields: Vec<FieldViolation>,
    retry_after: Option<Duration>,
    source: Option<anyhow::Error>,
}

impl Error {
    /// An error of `kind`. `reason` is a constant in UPPER_SNAKE_CASE that programs may test
    /// (documented in docs/errors.md); `message` is a sentence for people, without secrets.
    pub fn new(kind: Kind, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            message: message.into(),
            fields: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// One field breaks a rule.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldViolation { field: field.into(), message: message.into() }])
    }

    /// Some fields break rules. The message names the first of them.
    pub fn fields(fields: Vec<FieldViolation>) -> Self {
        let message = match fields.first() {
            Some(first) => format!("{} {}", first.field, first.message),
            None => "the request is not valid".to_owned(),
        };
        Self { fields, ..Self::new(Kind::InvalidArgument, "INVALID_FIELD", message) }
    }

    /// `what` does not exist, or must not be seen by this caller: both answer alike.
    pub fn not_found(what: &str) -> Self {
        Self::new(Kind::NotFound, "NOT_FOUND", format!("no such {what}"))
    }

    /// The caller is nobody that can be proven.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(Kind::Unauthenticated, "UNAUTHENTICATED", message)
    }

    /// The caller may not do this.
    pub fn permission_denied(message: impl Into<String>) -> Self {
        Self::new(Kind::PermissionDenied, "PERMISSION_DENIED", message)
    }

    /// Something of ours does not answer; the caller should try again.
    pub fn unavailable(message: impl Into<String>, cause: impl Into<anyhow::Error>) -> Self {
        Self::new(Kind::Unavailable, "UNAVAILABLE", message).caused_by(cause)
    }

    /// Our fault. The cause goes to the log and not to the caller.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(Kind::Internal, "INTERNAL", "something went wrong on our side").caused_by(cause)
    }

    /// Adds the operator's side of the story.
    pub fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Says which field it is about, also for kinds other than INVALID_ARGUMENT.
    pub fn naming(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.fields.push(FieldViolation { field: field.into(), message: message.into() });
        self
    }

    /// How it looks from outside.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The constant that programs may test.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The sentence for the caller.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The fields that break rules.
    pub fn violations(&self) -> &[FieldViolation] {
        &self.fields
    }

    /// When to try again, if that is known.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source:#}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Database errors: a lost or exhausted connection, and what goes well another time, is UNAVAILABLE, anything else
/// our fault.
/// Unique violations are mapped where the call is made (see [`crate::db::is_unique_violation`]).
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => {
                Self::unavailable("the database does not answer", error)
            }
            sqlx::Error::Database(ref inner) if passes(&**inner) => {
                Self::unavailable("the database cannot do this right now", error)
            }
            other => Self::internal(other),
        }
    }
}

/// Whether a database says that the same may go well another time.
fn passes(error: &dyn sqlx::error::DatabaseError) -> bool {
    let code = error.code().unwrap_or_default();
    if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        // BUSY and LOCKED; what an extended code adds is above the lowest byte.
        return code.parse().is_ok_and(|code: i64| matches!(code & 0xff, 5 | 6));
    }
    // Connection; serialization and deadlock; resources; shutdown and start.
    ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class))
}

/// Ends an error at the service's boundary: what is our fault is logged here, once.
impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        if matches!(error.kind, Kind::Internal | Kind::Unavailable) {
            let cause = error.source.as_ref().map(|source| format!("{source:#}"));
            tracing::error!(reason = %error.reason, cause, "{}", error.message);
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason.into_owned(), DOMAIN, HashMap::new());
        for violation in error.fields {
            details.add_bad_request_violation(violation.field, violation.message);
        }
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        tonic::Status::with_error_details(error.kind.code(), error.message, details)
    }
}

/// An answer of another service, passed on: the kind, the reason and the fields stay.
/// A call without `google.rpc` details never came from a service of ours: it is UNAVAILABLE or our fault.
impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        let details = status.get_error_details();
        let kind = Kind::of_code(status.code());
        let Some(info) = details.error_info() else {
            return match kind {
                Kind::Unavailable | Kind::Cancelled | Kind::DeadlineExceeded => {
                    Self::unavailable("a service does not answer", status)
                }
                _ => Self::internal(status),
            };
        };
        let fields = details.bad_request().map_or_else(Vec::new, |bad| {
            let violation = |v: &tonic_types::FieldViolation| FieldViolation {
                field: v.field.clone(),
                message: v.description.clone(),
            };
            bad.field_violations.iter().map(violation).collect()
        });
        Self {
            kind,
            reason: Cow::Owned(info.reason.clone()),
            message: status.message().to_owned(),
            fields,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            source: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Kind};

    #[test]
    fn errors_survive_a_hop() {
        let error = Error::field("operations[0].request.path", "is required");
        let back = Error::from(tonic::Status::from(error));
        assert_eq!(back.kind(), Kind::InvalidArgument);
        assert_eq!(back.reason(), "INVALID_FIELD");
        assert_eq!(back.violations()[0].field, "operations[0].request.path");
    }

    #[test]
    fn causes_stay_at_home() {
        let status = tonic::Status::from(Error::internal(anyhow::anyhow!("dsn=postgres://u:p@h")));
        assert!(!format!("{status:?}").contains("postgres"), "{status:?}");
    }
}
