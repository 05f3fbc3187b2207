//! The time, passed in: nothing else in Tollgate reads the system's clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Tells the time. Clones share their source.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `unix_ms` until it is set, for tests.
    pub fn fixed(unix_ms: i64) -> Self {
        Self(Some(Arc::new(AtomicI64::new(unix_ms))))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Some(fixed) => fixed.load(Ordering::SeqCst),
            None => i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Microseconds since then.
    pub fn now_us(&self) -> i64 {
        match &self.0 {
            Some(fixed) => fixed.load(Ordering::SeqCst) * 1_000,
            None => i64::try_from(since_1970().as_micros()).unwrap_or(i64::MAX),
        }
    }

    /// Moves a fixed clock; does nothing to the system's.
    pub fn advance_ms(&self, by: i64) {
        if let Some(fixed) = &self.0 {
            fixed.fetch_add(by, Ordering::SeqCst);
        }
    }
}

/// Before 1970 it is 1970.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
