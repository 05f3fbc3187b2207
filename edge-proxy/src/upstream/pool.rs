//! The connections to one instance, for one kind of call. There are as many as are kept, and more only when
//! those have no stream left; what is beyond them goes when nobody has used it for a while.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::batched::batched;

use super::{
    balance::Chance,
    dial::Dialer,
    wire::{Outgoing, Run, Sent, Shape, Unsent, Wire},
};

/// The first pause after a connection that could not be made, and the longest: an instance that is back is
/// noticed within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(600);

/// How long a call waits for an instance that could not be reached the last time.
const AWAY_PATIENCE: Duration = Duration::from_millis(250);

/// How often calls may try such an instance out of turn.
const OUT_OF_TURN: Duration = Duration::from_millis(100);

/// How many connections, and how much on each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) min: usize,
    pub(super) max: usize,
    /// 0: as many as the instance takes.
    pub(super) streams: usize,
    /// How many calls may wait.
    pub(super) queue: usize,
    pub(super) idle: Duration,
}

/// The connections.
#[derive(Debug)]
pub(super) struct Pool {
    address: Arc<str>,
    dialer: Dialer,
    shape: Shape,
    bounds: Bounds,
    lines: RwLock<Vec<Arc<Line>>>,
    dialling: Mutex<Dialling>,
    /// A stream, a connection, or none where one was awaited.
    changed: Notify,
    /// For whoever keeps the instance: a connection came or went.
    pub(super) event: Notify,
    waiting: AtomicUsize,
    open: AtomicUsize,
    /// How many connections there were so far.
    made: AtomicU32,
    chance: Chance,
}

#[derive(Debug, Default)]
struct Dialling {
    under_way: bool,
    failures: u32,
    failed_at: Option<Instant>,
    again_at: Option<Instant>,
    error: Option<String>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    wire: Wire,
    open: AtomicUsize,
    room: Arc<AtomicUsize>,
    used_at: Mutex<Instant>,
    /// Whether its end was counted as a failure of its instance.
    is_counted: AtomicBool,
}

/// Why there is no stream.
#[derive(Debug)]
pub(super) enum NoStream {
    /// The instance cannot be reached.
    Away(String),
    /// Too many wait already.
    Full,
}

/// A stream of a connection, taken until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    line: Arc<Line>,
}

impl Pool {
    pub(super) fn new(address: Arc<str>, dialer: Dialer, shape: Shape, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            address,
            dialer,
            shape,
            bounds,
            lines: RwLock::default(),
            dialling: Mutex::default(),
            changed: Notify::new(),
            event: Notify::new(),
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            made: AtomicU32::new(0),
            chance: Chance::default(),
        })
    }

    /// How many calls are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.lines.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many there were so far.
    pub(super) fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
    }

    /// Whether the last connection could not be made, and there is none from before.
    pub(super) fn is_away(&self) -> bool {
        self.connections() == 0 && self.dialling().failures > 0
    }

    /// Until the next connection may be tried.
    pub(super) fn pause(&self) -> Option<Duration> {
        let dialling = self.dialling();
        Some(dialling.again_at?.saturating_duration_since(Instant::now()))
    }

    /// Why there is no connection.
    pub(super) fn error(&self) -> Option<String> {
        self.dialling().error.clone()
    }

    /// Makes the connections that are kept, as far as that is due.
    pub(super) fn fill(self: &Arc<Self>) {
        if self.connections() < self.bounds.min {
            self.grow(Duration::MAX);
        }
    }

    /// Closes what is beyond them and was not used for a while, one at a time.
    pub(super) fn trim(&self) {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        if lines.len() <= self.bounds.min || self.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        let is_idle = |line: &Arc<Line>| {
            line.open.load(Ordering::Relaxed) == 0 && line.used_at().elapsed() >= self.bounds.idle
        };
        let extra = lines.iter().skip(self.bounds.min).position(is_idle);
        if let Some(at) = extra {
            // Its last handle: the connection says goodbye and ends.
            lines.remove(self.bounds.min + at);
        }
    }

    /// A stream, as soon as there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Result<Lease, NoStream> {
        if let Some(lease) = self.try_take() {
            return Ok(lease);
        }
        let _place = Waiting::enter(self).ok_or(NoStream::Full)?;
        let patience = self.is_away().then(|| Instant::now() + AWAY_PATIENCE);
        let mut out_of_turn = OUT_OF_TURN;
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(lease) = self.try_take() {
                return Ok(lease);
            }
            self.grow(std::mem::replace(&mut out_of_turn, Duration::MAX));
            if self.connections() == 0 && !self.dialling().under_way {
                return Err(self.away());
            }
            match patience {
                None => changed.await,
                Some(until) => timeout_at(until, changed).await.map_err(|_| self.away())?,
            }
        }
    }

    fn away(&self) -> NoStream {
        NoStream::Away(self.error().unwrap_or_else(|| "no connection".to_owned()))
    }

    /// A stream of the kept connection that has least to do, or of the first of the others that has room.
    fn try_take(self: &Arc<Self>) -> Option<Lease> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        let (kept, more) = lines.split_at(lines.len().min(self.bounds.min));
        let least = kept.iter().filter(|line| !line.wire.is_closed());
        let least = least.min_by_key(|line| line.open.load(Ordering::Relaxed));
        let line = least.into_iter().chain(more).find(|line| line.try_open(self.bounds.streams))?.clone();
        self.open.fetch_add(1, Ordering::Relaxed);
        Some(Lease { pool: self.clone(), line })
    }

    /// Begins to make a connection if there may be one more and none is being made. After a failure this
    /// waits for the end of the pause, or until `out_of_turn` has passed since.
    fn grow(self: &Arc<Self>, out_of_turn: Duration) {
        let now = Instant::now();
        let mut dialling = self.dialling();
        let is_due = dialling.again_at.is_none_or(|again_at| again_at <= now)
            || dialling.failed_at.is_some_and(|at| now.saturating_duration_since(at) >= out_of_turn);
        if dialling.under_way || !is_due || self.connections() >= self.bounds.max {
            return;
        }
        dialling.under_way = true;
        tokio::spawn(self.clone().dial());
    }

    async fn dial(self: Arc<Self>) {
        let room = Arc::new(AtomicUsize::new(0));
        let dialled = self.dialer.dial(&self.address, self.shape, room.clone()).await;
        match dialled {
            Ok((wire, run)) => {
                let line = Arc::new(Line {
                    wire,
                    open: AtomicUsize::new(0),
                    room,
                    used_at: Mutex::new(Instant::now()),
                    is_counted: AtomicBool::new(false),
                });
                self.lines.write().unwrap_or_else(PoisonError::into_inner).push(line.clone());
                self.made.fetch_add(1, Ordering::Relaxed);
                *self.dialling() = Dialling::default();
                tokio::spawn(self.clone().keep(Arc::downgrade(&line), run));
            }
            Err(error) => self.failed(&error),
        }
        self.changed.notify_waiters();
        self.event.notify_one();
    }

    fn failed(&self, error: &io::Error) {
        let now = Instant::now();
        let mut dialling = self.dialling();
        let pause = pause(dialling.failures, &self.chance);
        if dialling.failures == 0 {
            tracing::warn!(address = %self.address, %error, "an instance cannot be reached");
        }
        *dialling = Dialling {
            under_way: false,
            failures: dialling.failures.saturating_add(1),
            failed_at: Some(now),
            again_at: Some(now + pause),
            error: Some(error.to_string()),
        };
    }

    /// Carries a connection to its end.
    async fn keep(self: Arc<Self>, line: std::sync::Weak<Line>, run: Run) {
        let pool = Arc::downgrade(&self);
        // A pool that nobody has any more ends with its connections.
        drop(self);
        let ended = batched(run).await;
        let Some(pool) = pool.upgrade() else { return };
        if let Err(error) = ended {
            tracing::debug!(address = %pool.address, %error, "a connection to an instance ended");
        }
        if let Some(line) = line.upgrade() {
            let mut lines = pool.lines.write().unwrap_or_else(PoisonError::into_inner);
            lines.retain(|other| !Arc::ptr_eq(other, &line));
        }
        pool.changed.notify_waiters();
        pool.event.notify_one();
    }

    fn dialling(&self) -> MutexGuard<'_, Dialling> {
        self.dialling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause after so many failures and one.
fn pause(failures: u32, chance: &Chance) -> Duration {
    let factor = 1.6_f64.powi(i32::try_from(failures.min(20)).unwrap_or(20));
    chance.jittered(FIRST_PAUSE.mul_f64(factor).min(LONGEST_PAUSE))
}

impl Line {
    fn try_open(&self, streams: usize) -> bool {
        let room = self.room.load(Ordering::Relaxed);
        let limit = if streams == 0 { room } else { room.min(streams) };
        !self.wire.is_closed()
            && self
                .open
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < limit).then_some(open + 1))
                .is_ok()
    }

    fn used_at(&self) -> MutexGuard<'_, Instant> {
        self.used_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Sends a request.
    pub(super) fn send(&self, request: Outgoing) -> Result<Sent, Unsent> {
        self.line.wire.send(request)
    }

    /// Whether the end of this connection counts: for all that was under way on it only once.
    pub(super) fn counts_loss(&self) -> bool {
        !self.line.is_counted.swap(true, Ordering::Relaxed)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.line.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.line.used_at() = Instant::now();
        }
        self.pool.open.fetch_sub(1, Ordering::Relaxed);
        if self.pool.waiting.load(Ordering::SeqCst) > 0 {
            self.pool.changed.notify_one();
        }
    }
}

/// A place among those that wait for a stream.
struct Waiting<'p>(&'p Pool);

impl<'p> Waiting<'p> {
    fn enter(pool: &'p Pool) -> Option<Self> {
        let place = Self(pool);
        (pool.waiting.fetch_add(1, Ordering::SeqCst) < pool.bounds.queue).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::{Chance, LONGEST_PAUSE, pause};

    #[test]
    fn pauses_grow_and_stay_below_a_second() {
        let chance = Chance::default();
        let pauses: Vec<u128> = (0..50).map(|failures| pause(failures, &chance).as_millis()).collect();
        assert!(pauses[0] <= 60 && pauses[3] > 100, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE.as_millis() * 6 / 5));
    }
}
