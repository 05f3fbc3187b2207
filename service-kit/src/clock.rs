//! The time, passed in: nothing else in Tollgate reads the system's clock.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
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
            None => system().as_millisecond(),
        }
    }

    /// Microseconds since then.
    pub fn now_us(&self) -> i64 {
        match &self.0 {
            Some(fixed) => fixed.load(Ordering::SeqCst) * 1_000,
            None => system().as_microsecond(),
        }
    }

    /// Moves a fixed clock; does nothing to the system's.
    pub fn advance_ms(&self, by: i64) {
        if let Some(fixed) = &self.0 {
            fixed.fetch_add(by, Ordering::SeqCst);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
fn system() -> jiff::Timestamp {
    jiff::Timestamp::now()
}
