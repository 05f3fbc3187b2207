//! The open sockets, counted, and their order of leaving: controllers come back at once, so a crowd that
//! leaves in one moment returns in one.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// How many leave together.
const BATCH: usize = 50;
/// The most batches.
const BATCHES: usize = 20;
/// The time between two batches: all are gone within two seconds.
const BETWEEN: Duration = Duration::from_millis(100);

/// All open sockets of the edge.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    open: AtomicUsize,
    entered: AtomicU64,
}

/// One open socket.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Crowd {
    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn enter(self: &Arc<Self>) -> Place {
        self.open.fetch_add(1, Ordering::Relaxed);
        metrics::gauge!("edge_gateway_sockets").increment(1.0);
        Place { crowd: self.clone(), number: self.entered.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Place {
    /// Completes when the edge drains and it is this socket's turn to leave.
    pub(super) fn farewell(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let (crowd, number) = (self.crowd.clone(), self.number);
        async move {
            stop.cancelled_owned().await;
            tokio::time::sleep(turn(number, crowd.open.load(Ordering::Relaxed))).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.open.fetch_sub(1, Ordering::Relaxed);
        metrics::gauge!("edge_gateway_sockets").decrement(1.0);
    }
}

/// How long the socket of this number waits when so many leave.
fn turn(number: u64, open: usize) -> Duration {
    let batches = open.div_ceil(BATCH).clamp(1, BATCHES);
    let batch = number % u64::try_from(batches).unwrap_or(1);
    BETWEEN * u32::try_from(batch).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::turn;

    #[test]
    fn few_leave_at_once_and_many_within_two_seconds() {
        assert!((0..50).all(|number| turn(number, 50) == Duration::ZERO));
        let turns: Vec<Duration> = (0..1_000).map(|number| turn(number, 1_000)).collect();
        assert!(turns.iter().all(|turn| *turn < Duration::from_secs(2)));
        let first = turns.iter().filter(|turn| turn.is_zero()).count();
        assert_eq!(first, 50, "batches are even");
    }
}
