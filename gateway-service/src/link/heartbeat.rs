//! Signs of life of one connection: when to send one, and when the peer is dead.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// A sign of life is to be sent.
    Send,
    /// The peer was silent for too long.
    Dead,
}

/// The clock of one connection.
#[derive(Debug)]
pub(super) struct Heartbeat {
    ticks: Interval,
    silence: Duration,
    heard: Instant,
}

impl Heartbeat {
    /// Sends each `interval`; gives a peer up after `silence`.
    pub(super) fn new(interval: Duration, silence: Duration) -> Self {
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, silence, heard: Instant::now() }
    }

    /// The peer has sent something, whatever it was.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// Waits for what is due next.
    pub(super) async fn next(&mut self) -> Beat {
        tokio::select! {
            biased;
            () = sleep_until(self.heard + self.silence) => Beat::Dead,
            _ = self.ticks.tick() => Beat::Send,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Beat, Heartbeat};

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_dead_within_thirty_seconds_and_a_speaking_one_is_not() {
        let (start, mut heartbeat) =
            (Instant::now(), Heartbeat::new(Duration::from_secs(20), Duration::from_secs(30)));
        assert_eq!(heartbeat.next().await, Beat::Send);
        heartbeat.heard();
        assert_eq!(heartbeat.next().await, Beat::Send);
        assert_eq!(heartbeat.next().await, Beat::Dead);
        assert_eq!(start.elapsed(), Duration::from_secs(50), "30 s after the last sign of life");
    }
}
