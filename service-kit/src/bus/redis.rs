//! The bus of several processes: publish and subscribe of Redis. Redis keeps nothing of it, so a Redis that
//! restarts or forgets everything costs only what was said meanwhile; subscribers learn that by `Lost`.
//!
//! What this process says reaches its own subscribers at once and not by way of Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use redis::{
    AsyncConnectionConfig, Client,
    aio::{MultiplexedConnection, PubSubSink},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Bus, Fan, Message, Subscription};
use crate::{opaque, shutdown::Tasks};

/// What the names of channels start with: others may use the same Redis.
const PREFIX: &str = "tollgate:";
/// How long a publisher waits for Redis.
const PATIENCE: Duration = Duration::from_millis(100);
/// How many publishers may wait.
const QUEUE: usize = 1_024;
/// How many of them are served in one round trip.
const PIPELINE: usize = 64;
/// How long connecting, and an answer, may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How often the reader makes sure that Redis is there.
const PING: Duration = Duration::from_secs(5);
/// The first pause before a new connection, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Each message starts with so many bytes that say which process sent it.
const SENDER: usize = 8;

/// A bus over Redis.
#[derive(Debug)]
pub struct RedisBus {
    fan: Arc<Fan>,
    queue: mpsc::Sender<Batch>,
    is_up: Arc<AtomicBool>,
    subscribed: Arc<Notify>,
}

/// What one publisher says.
#[derive(Debug)]
struct Batch {
    messages: Vec<Message>,
    since: Instant,
    done: oneshot::Sender<anyhow::Result<()>>,
}

/// The task that listens.
struct Reader {
    client: Client,
    fan: Arc<Fan>,
    sender: [u8; SENDER],
    subscribed: Arc<Notify>,
}

/// The task that publishes.
struct Writer {
    client: Client,
    queue: mpsc::Receiver<Batch>,
    sender: [u8; SENDER],
    is_up: Arc<AtomicBool>,
}

/// Longer pauses between attempts, none of them like another instance's.
struct Backoff(Duration);

impl RedisBus {
    /// A bus over the Redis at `url`, whether it is there or not. An error only for what cannot be an address.
    pub fn start(url: &str, tasks: &Tasks) -> anyhow::Result<Self> {
        let is_known =
            ["redis://", "rediss://", "redis+unix:///"].iter().any(|scheme| url.starts_with(scheme));
        // Their errors may repeat the password.
        let client = is_known.then(|| Client::open(url).ok()).flatten().context(
            "bus.url must be `memory`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, the same with `rediss://` \
             for TLS, or `redis+unix:///PATH`",
        )?;
        crate::tls::install_provider();
        let (queue, batches) = mpsc::channel(QUEUE);
        let sender = opaque::random();
        let (fan, subscribed, is_up) =
            (Arc::<Fan>::default(), Arc::<Notify>::default(), Arc::<AtomicBool>::default());
        let reader =
            Reader { client: client.clone(), fan: fan.clone(), sender, subscribed: subscribed.clone() };
        let writer = Writer { client, queue: batches, sender, is_up: is_up.clone() };
        let (stop, stop_too) = (tasks.ending(), tasks.ending());
        tasks.spawn_last("bus reader", async move { reader.run(stop).await });
        tasks.spawn_last("bus writer", async move { writer.run(stop_too).await });
        Ok(Self { fan, queue, is_up, subscribed })
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn publish_all(&self, messages: Vec<Message>) -> anyhow::Result<()> {
        messages.iter().for_each(|message| self.fan.send(message, None));
        let count = u64::try_from(messages.len()).unwrap_or(0);
        let published = self.tell_redis(messages).await;
        let outcome = if published.is_ok() { "ok" } else { "error" };
        metrics::counter!("tollgate_bus_published_total", "outcome" => outcome).increment(count);
        published
    }

    async fn subscribe(&self, prefix: &str) -> anyhow::Result<Subscription> {
        let subscription = self.fan.subscribe(prefix);
        self.subscribed.notify_one();
        Ok(subscription)
    }
}

impl RedisBus {
    async fn tell_redis(&self, messages: Vec<Message>) -> anyhow::Result<()> {
        anyhow::ensure!(self.is_up.load(Ordering::SeqCst), "Redis is away");
        let (done, outcome) = oneshot::channel();
        let batch = Batch { messages, since: Instant::now(), done };
        self.queue.try_send(batch).map_err(|_| anyhow::anyhow!("Redis is too slow: the queue is full"))?;
        let outcome =
            tokio::time::timeout(PATIENCE, outcome).await.context("Redis did not answer in time")?;
        outcome.context("Redis is away")?
    }
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let mut backoff = Backoff::new();
        while !stop.is_cancelled() {
            let connected = tokio::select! {
                connected = self.client.get_multiplexed_async_connection_with_config(&config) => connected,
                () = stop.cancelled() => break,
            };
            let error = match connected {
                Ok(connection) => {
                    backoff = Backoff::new();
                    self.is_up.store(true, Ordering::SeqCst);
                    metrics::gauge!("tollgate_bus_connected").set(1.0);
                    let ended = tokio::select! {
                        ended = self.publish(connection) => ended,
                        () = stop.cancelled() => break,
                    };
                    self.is_up.store(false, Ordering::SeqCst);
                    match ended {
                        Err(error) => error,
                        Ok(()) => break,
                    }
                }
                Err(error) => error,
            };
            metrics::gauge!("tollgate_bus_connected").set(0.0);
            tracing::warn!(%error, "cannot publish on the bus, will try again");
            // Nobody waits for what cannot be said now.
            while self.queue.try_recv().is_ok() {}
            tokio::select! { () = backoff.pause() => {}, () = stop.cancelled() => {} }
        }
        self.is_up.store(false, Ordering::SeqCst);
        stop.cancelled().await;
        Ok(())
    }

    /// Serves publishers until Redis fails, or nobody can publish any more.
    async fn publish(&mut self, mut connection: MultiplexedConnection) -> redis::RedisResult<()> {
        let mut batches = Vec::with_capacity(PIPELINE);
        loop {
            if self.queue.recv_many(&mut batches, PIPELINE).await == 0 {
                return Ok(());
            }
            let mut pipeline = redis::pipe();
            for message in batches.iter().flat_map(|batch| &batch.messages) {
                let channel = format!("{PREFIX}{}", message.subject);
                let payload = [&self.sender[..], &message.payload].concat();
                pipeline.cmd("PUBLISH").arg(channel).arg(payload).ignore();
            }
            let outcome: redis::RedisResult<()> = pipeline.query_async(&mut connection).await;
            for batch in batches.drain(..) {
                metrics::histogram!("tollgate_bus_publish_seconds").record(batch.since.elapsed());
                // Whoever asked may have gone meanwhile.
                let _ = batch.done.send(outcome.clone().map_err(anyhow::Error::from));
            }
            outcome?;
        }
    }
}

impl Reader {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new();
        while !stop.is_cancelled() {
            let since = Instant::now();
            let Err(error) = tokio::select! {
                ended = self.listen() => ended,
                () = stop.cancelled() => break,
            };
            tracing::warn!(error = format!("{error:#}"), "the bus is not heard, will try again");
            if since.elapsed() > PAUSES.1 {
                backoff = Backoff::new();
            }
            tokio::select! { () = backoff.pause() => {}, () = stop.cancelled() => {} }
        }
        Ok(())
    }

    /// One connection, until it fails. Only drains: nobody can make it wait.
    async fn listen(&self) -> anyhow::Result<std::convert::Infallible> {
        let connected = tokio::time::timeout(ANSWER, self.client.get_async_pubsub()).await;
        let (mut sink, mut stream) = connected.context("no connection in time")??.split();
        let mut heard = Vec::new();
        self.subscribe(&mut sink, &mut heard).await?;
        let mut pings = tokio::time::interval(PING);
        loop {
            tokio::select! {
                message = stream.next() => self.take(&message.context("the connection is lost")?),
                () = self.subscribed.notified() => self.subscribe(&mut sink, &mut heard).await?,
                _ = pings.tick() => {
                    tokio::time::timeout(ANSWER, sink.ping::<()>()).await.context("no answer in time")??;
                }
            }
        }
    }

    /// Asks Redis for what is not `heard` yet, then tells all subscribers of it that they may have missed something.
    async fn subscribe(&self, sink: &mut PubSubSink, heard: &mut Vec<String>) -> anyhow::Result<()> {
        for prefix in self.fan.prefixes() {
            if !heard.contains(&prefix) {
                let asked = tokio::time::timeout(ANSWER, sink.psubscribe(pattern(&prefix))).await;
                asked.context("no answer in time")??;
                heard.push(prefix.clone());
            }
            self.fan.lost(&prefix, "connected");
        }
        Ok(())
    }

    fn take(&self, message: &redis::Msg) {
        let pattern: Option<String> = message.get_pattern().ok();
        let prefix = pattern.as_deref().and_then(prefix_of);
        let subject = message.get_channel_name().strip_prefix(PREFIX);
        let (Some(prefix), Some(subject)) = (prefix, subject) else { return };
        // Shorter than any sender: somebody else speaks on our channels.
        let Some((sender, payload)) = message.get_payload_bytes().split_at_checked(SENDER) else { return };
        if sender != self.sender {
            let message = Message { subject: subject.to_owned(), payload: payload.to_vec().into() };
            self.fan.send(&message, Some(&prefix));
        }
    }
}

impl Backoff {
    fn new() -> Self {
        Self(PAUSES.0)
    }

    async fn pause(&mut self) {
        let part = f64::from(u32::from_be_bytes(opaque::random())) / f64::from(u32::MAX);
        tokio::time::sleep(self.0.mul_f64(0.5 + part / 2.0)).await;
        self.0 = (self.0 * 2).min(PAUSES.1);
    }
}

/// The pattern of a prefix; what means something in a pattern stands for itself.
fn pattern(prefix: &str) -> String {
    let mut pattern = PREFIX.to_owned();
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "*"
}

/// The prefix of a pattern.
fn prefix_of(pattern: &str) -> Option<String> {
    let mut chars = pattern.strip_prefix(PREFIX)?.strip_suffix('*')?.chars();
    let mut prefix = String::new();
    while let Some(c) = chars.next() {
        prefix.push(if c == '\\' { chars.next()? } else { c });
    }
    Some(prefix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{pattern, prefix_of};

    proptest! {
        #[test]
        fn a_pattern_names_its_prefix(prefix in ".{0,20}|[a.*?\\[\\]^\\\\]{0,20}") {
            prop_assert_eq!(prefix_of(&pattern(&prefix)), Some(prefix));
        }
    }
}
