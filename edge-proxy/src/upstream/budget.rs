//! How long a call may take: one budget from its first byte, spent on everything that is done for it.

use std::time::Duration;

use http::HeaderMap;
use proto::MethodPolicy;
use service_kit::{
    Error, Kind, Result,
    access::{GRPC_TIMEOUT, timeout_of},
};
use tokio::time::Instant;

/// The time of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// When it is over; a stream may have no end.
    pub(crate) deadline: Option<Instant>,
    /// Whether it is as long as the policy allows: a caller that allows less proves nothing by it.
    pub(super) is_ours: bool,
}

impl Budget {
    /// From `started`, the shorter of what the caller asks for and what there is at most.
    pub(crate) fn new(started: Instant, asked: Option<Duration>, most: Option<Duration>) -> Self {
        let limit = asked.into_iter().chain(most).min();
        let is_ours = most.is_some_and(|most| asked.is_none_or(|asked| asked >= most));
        Self { deadline: limit.map(|limit| started + limit), is_ours }
    }

    /// Of a gRPC call.
    pub(crate) fn grpc(started: Instant, policy: &MethodPolicy, headers: &HeaderMap) -> Result<Self> {
        let asked = match headers.contains_key(GRPC_TIMEOUT) {
            true => Some(timeout_of(headers).ok_or_else(|| unreadable("grpc-timeout"))?),
            false => None,
        };
        Ok(Self::new(started, asked, policy.max_deadline))
    }

    /// What is left; `None` without a deadline.
    pub(super) fn rest(&self) -> Option<Duration> {
        Some(self.deadline?.saturating_duration_since(Instant::now()))
    }

    /// Whether a pause leaves time for a call after it.
    pub(super) fn allows(&self, pause: Duration) -> bool {
        self.rest().is_none_or(|rest| rest > pause)
    }
}

/// `Request-Timeout`: seconds, with a fraction if need be.
pub(crate) fn request_timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    const NAME: &str = "request-timeout";
    let mut values = headers.get_all(NAME).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().unwrap_or_default(),
        (Some(_), Some(_)) => return Err(unreadable(NAME)),
    };
    let (whole, fraction) = value.split_once('.').unwrap_or((value, "0"));
    let are_digits = |text: &str| (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if !are_digits(whole) || !are_digits(fraction) {
        return Err(unreadable(NAME));
    }
    let seconds = value.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
    seconds.map(|seconds| Some(Duration::from_secs_f64(seconds))).ok_or_else(|| unreadable(NAME))
}

fn unreadable(name: &str) -> Error {
    Error::new(Kind::InvalidArgument, "INVALID_TIMEOUT", format!("`{name}` cannot be read"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};
    use tokio::time::{Instant, advance};

    use super::{Budget, request_timeout};

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_one_counts_and_is_spent_once() {
        let second = Duration::from_secs(1);
        let budget = Budget::new(Instant::now(), Some(second), Some(15 * second));
        assert!(!budget.is_ours && budget.allows(second / 2));
        advance(second / 2).await;
        assert_eq!(budget.rest(), Some(second / 2));
        assert!(!budget.allows(second / 2));
        advance(second).await;
        assert_eq!(budget.rest(), Some(Duration::ZERO));
        let budget = Budget::new(Instant::now(), Some(60 * second), Some(15 * second));
        assert!(budget.is_ours && budget.rest() == Some(15 * second));
        let budget = Budget::new(Instant::now(), None, None);
        assert!(!budget.is_ours && budget.rest().is_none() && budget.allows(Duration::MAX));
    }

    #[test]
    fn timeouts_are_read_exactly() {
        let rest =
            |value: &str| request_timeout(&headers("request-timeout", value)).map_err(|e| e.to_string());
        assert_eq!(request_timeout(&HeaderMap::new()).unwrap(), None);
        assert_eq!(rest("2"), Ok(Some(Duration::from_secs(2))));
        assert_eq!(rest("0.25"), Ok(Some(Duration::from_millis(250))));
        for bad in ["", "0", "0.0", "-1", "+1", "1e3", ".5", "5.", "1 ", "inf", "123456789", "soon"] {
            assert!(rest(bad).unwrap_err().contains("INVALID_TIMEOUT"), "{bad}");
        }
        let mut twice = headers("request-timeout", "1");
        twice.append("request-timeout", HeaderValue::from_static("2"));
        assert!(request_timeout(&twice).is_err());
    }
}
