//! Limits that several edges share: the count of each caller is in Redis, and one round trip takes permits.
//!
//! Redis holds nothing that must last: without it, or after it forgot everything, callers have what a fresh
//! quota gives them. It is never waited for longer than `limits.shared.timeout_ms`, and while it is away or
//! slow one call a second tries whether it is back; the others are not held up.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use secrecy::ExposeSecret as _;
use service_kit::{opaque, shutdown::Tasks};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::bucket::Left;
use crate::config::SharedLimitsConfig;

/// What the names of keys start with: others may use the same Redis.
const PREFIX: &str = "tollgate:limit:";
/// How long connecting, and an answer to the connection as a whole, may take.
const ANSWER: Duration = Duration::from_secs(2);
/// For how long Redis is left alone that failed or was slow.
const PAUSE: Duration = Duration::from_secs(1);
/// The first pause before a new connection, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The generic cell rate algorithm, by the clock of Redis so that those of edges need not agree. The key holds
/// the time at which its bucket will be full (microseconds). Takes up to ARGV[3] of ARGV[1] permits in ARGV[2]
/// microseconds; answers how many it took, how many are left, and when there is one (of those that were refused)
/// or when all are back.
const SCRIPT: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local quota, period, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local step = period / quota
local full = tonumber(redis.call('GET', KEYS[1]) or '0')
if full < now then full = now end
local room = math.floor((now + period - full) / step + 0.001)
local took = math.min(want, math.max(room, 0))
if took == 0 then return {0, 0, math.ceil(full + step - now - period)} end
full = full + took * step
redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil((full - now) / 1000) + 1)
return {took, room - took, math.ceil(full - now)}
";

/// Redis did not answer, or not in time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Away;

/// What Redis gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many permits, and what is left now.
    Permits(u32, Left),
    /// None: there will be one after so long.
    None(Duration),
}

/// The shared counts.
pub(crate) struct Shared {
    client: Client,
    patience: Duration,
    connection: ArcSwapOption<MultiplexedConnection>,
    lost: Notify,
    breaker: Breaker,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("is_connected", &self.connection.load().is_some()).finish()
    }
}

impl Shared {
    /// Connects in the background, whether Redis is there or not; `None` where none is configured.
    pub(crate) fn start(config: &SharedLimitsConfig, tasks: &Tasks) -> anyhow::Result<Option<Arc<Self>>> {
        let url = config.url.expose_secret();
        if url.is_empty() {
            return Ok(None);
        }
        let is_known =
            ["redis://", "rediss://", "redis+unix:///"].iter().any(|scheme| url.starts_with(scheme));
        // Their errors may repeat the password.
        let client = is_known.then(|| Client::open(url).ok()).flatten().context(
            "limits.shared.url must be empty, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, the same with \
             `rediss://` for TLS, or `redis+unix:///PATH`",
        )?;
        let patience = Duration::from_millis(config.timeout_ms);
        anyhow::ensure!(
            (1..=1_000).contains(&config.timeout_ms),
            "limits.shared.timeout_ms must be 1 to 1000: calls wait for it"
        );
        let shared = Arc::new(Self {
            client,
            patience,
            connection: ArcSwapOption::empty(),
            lost: Notify::new(),
            breaker: Breaker::new(PAUSE),
        });
        let (kept, end) = (shared.clone(), tasks.ending());
        tasks.spawn_last("shared limits", async move { kept.keep_connected(end).await });
        Ok(Some(shared))
    }

    /// Takes up to `want` permits of a caller, in one round trip.
    pub(super) async fn take(
        &self,
        caller: &str,
        quota: u32,
        period: Duration,
        want: u32,
    ) -> Result<Taken, Away> {
        let outcome = self.ask(caller, quota, period, want).await;
        let label = if outcome.is_ok() { "ok" } else { "away" };
        metrics::counter!("tollgate_edge_shared_limits_total", "outcome" => label).increment(1);
        outcome
    }

    async fn ask(&self, caller: &str, quota: u32, period: Duration, want: u32) -> Result<Taken, Away> {
        let connection = self.connection.load_full().ok_or(Away)?;
        if !self.breaker.admits() {
            return Err(Away);
        }
        let mut connection = MultiplexedConnection::clone(&connection);
        let mut command = redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(format!("{PREFIX}{caller}"));
        command.arg(quota).arg(u64::try_from(period.as_micros()).unwrap_or(u64::MAX)).arg(want);
        let asked = command.query_async::<(u32, u32, u64)>(&mut connection);
        match tokio::time::timeout(self.patience, asked).await {
            Ok(Ok((took, left, micros))) => {
                self.breaker.close();
                let after = Duration::from_secs(micros.div_ceil(1_000_000).max(1));
                Ok(match took {
                    0 => Taken::None(after),
                    took => Taken::Permits(took, Left { permits: left, reset: after }),
                })
            }
            Ok(Err(error)) => {
                self.breaker.open();
                tracing::warn!(%error, "the shared limits cannot be counted");
                self.lost.notify_one();
                Err(Away)
            }
            Err(_) => {
                self.breaker.open();
                tracing::warn!("the shared limits did not answer in time");
                Err(Away)
            }
        }
    }

    async fn keep_connected(&self, end: CancellationToken) -> anyhow::Result<()> {
        service_kit::tls::install_provider();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let mut pause = BACKOFF.0;
        while !end.is_cancelled() {
            let connected = tokio::select! {
                connected = self.client.get_multiplexed_async_connection_with_config(&config) => connected,
                () = end.cancelled() => break,
            };
            match connected {
                Ok(connection) => {
                    self.connection.store(Some(Arc::new(connection)));
                    self.breaker.close();
                    metrics::gauge!("tollgate_edge_shared_limits_connected").set(1.0);
                    pause = BACKOFF.0;
                    tokio::select! { () = self.lost.notified() => {}, () = end.cancelled() => break }
                    self.connection.store(None);
                }
                Err(error) => tracing::warn!(%error, "the shared limits are away, will try again"),
            }
            metrics::gauge!("tollgate_edge_shared_limits_connected").set(0.0);
            let part = f64::from(u32::from_be_bytes(opaque::random())) / f64::from(u32::MAX);
            tokio::select! { () = tokio::time::sleep(pause.mul_f64(0.5 + part / 2.0)) => {}, () = end.cancelled() => {} }
            pause = (pause * 2).min(BACKOFF.1);
        }
        Ok(())
    }
}

/// Leaves alone what failed, and lets one in a while try.
#[derive(Debug)]
struct Breaker {
    since: Instant,
    pause: Duration,
    /// Milliseconds from `since`; 0 while closed.
    open_until: AtomicU64,
}

impl Breaker {
    fn new(pause: Duration) -> Self {
        Self { since: Instant::now(), pause, open_until: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn after_pause(&self) -> u64 {
        self.now().saturating_add(u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX)).max(1)
    }

    /// Whether to ask: always while closed, once in a pause while open.
    fn admits(&self) -> bool {
        let until = self.open_until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let order = Ordering::Relaxed;
        self.now() >= until
            && self.open_until.compare_exchange(until, self.after_pause(), order, order).is_ok()
    }

    fn open(&self) {
        self.open_until.store(self.after_pause(), Ordering::Relaxed);
    }

    fn close(&self) {
        self.open_until.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use service_kit::{shutdown::Tasks, testing::TestRedis};

    use super::{Away, Breaker, PAUSE, Shared, Taken};
    use crate::config::SharedLimitsConfig;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_lets_one_try_in_each_pause() {
        let breaker = Breaker::new(PAUSE);
        assert!(breaker.admits() && breaker.admits());
        breaker.open();
        assert!(!breaker.admits());
        tokio::time::advance(PAUSE).await;
        assert!(breaker.admits());
        assert!(!breaker.admits(), "one is enough to find out");
        tokio::time::advance(PAUSE).await;
        assert!(breaker.admits());
        breaker.close();
        assert!(breaker.admits() && breaker.admits());
    }

    async fn connected(redis: &TestRedis, tasks: &Tasks) -> Arc<Shared> {
        let config =
            SharedLimitsConfig { url: redis.config().url.clone(), timeout_ms: 1_000, closed: Vec::new() };
        let shared = Shared::start(&config, tasks).unwrap().unwrap();
        while shared.connection.load().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shared
    }

    #[tokio::test]
    async fn two_processes_share_a_quota_to_the_last_permit() {
        let (redis, tasks) = (TestRedis::start(), Tasks::new());
        let (one, two) = (connected(&redis, &tasks).await, connected(&redis, &tasks).await);
        let mut took = 0;
        for shared in [&one, &two].into_iter().cycle() {
            match shared.take("t:u", 10, 1_000 * MINUTE, 3).await.unwrap() {
                Taken::Permits(more, left) => {
                    took += more;
                    assert_eq!(left.permits, 10 - took);
                }
                Taken::None(after) => {
                    assert!(after > MINUTE && after <= 100 * MINUTE, "{after:?}");
                    break;
                }
            }
        }
        assert_eq!(took, 10);
        assert!(matches!(one.take("t:other", 10, MINUTE, 1).await, Ok(Taken::Permits(1, _))));
        redis.flush();
        assert!(matches!(one.take("t:u", 10, MINUTE, 1).await, Ok(Taken::Permits(1, _))));
    }

    #[tokio::test]
    async fn a_redis_that_is_away_or_stands_still_holds_up_nobody() {
        let (mut redis, tasks) = (TestRedis::start(), Tasks::new());
        let shared = connected(&redis, &tasks).await;
        assert!(shared.take("t:u", 10, MINUTE, 1).await.is_ok());
        redis.freeze();
        assert_eq!(shared.take("t:u", 10, MINUTE, 1).await, Err(Away));
        // From now on nobody even waits: with a runtime whose time stands still, a wait would never end.
        let started = std::time::Instant::now();
        for _ in 0..1_000 {
            assert_eq!(shared.take("t:u", 10, MINUTE, 1).await, Err(Away));
        }
        assert!(started.elapsed() < Duration::from_secs(10), "a thousand waits would take 1,000 s");
        redis.thaw();
        while shared.take("t:u", 10, MINUTE, 1).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        redis.stop();
        while shared.take("t:u", 10, MINUTE, 1).await.is_ok() {}
        redis.restart();
        while shared.take("t:u", 10, MINUTE, 1).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_with_its_setting() {
        for url in ["localhost:6379", "http://localhost", "redis+unix://relative"] {
            let config = SharedLimitsConfig { url: url.into(), timeout_ms: 50, closed: Vec::new() };
            let error = Shared::start(&config, &Tasks::new()).unwrap_err().to_string();
            assert!(error.contains("limits.shared.url") && !error.contains(url), "{error}");
        }
    }
}
