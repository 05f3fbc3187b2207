//! Answers of calls without side effects, kept for the caller who got them (RFC 9111, 5861, 9211).
//!
//! The contract says which methods and for how long (`policy.cache`). An answer is found again only by a caller
//! with the same user, session and scopes, and only after that caller's token was judged like for any call. What a
//! change makes wrong is not given out any more, not even while the service is down: the user's own writes and
//! hints on the bus say what changed. No error, no cookie, no stream and nothing large is ever kept.

mod age;
mod changes;
mod directives;
mod etag;
mod flights;
mod keep;
mod key;
mod serve;
mod topics;

pub(crate) use self::{
    changes::{Changes, Written, follow},
    etag::weaken,
    keep::Unshared,
    key::Ask,
    serve::Looked,
    topics::named,
};

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use serde::Deserialize;
use service_kit::Clock;

use flights::Flights;
use keep::Kept;
use key::Key;

/// The `[cache]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Whether answers are kept at all.
    pub enabled: bool,
    /// The most bytes of answers that are kept.
    pub max_bytes: u64,
    /// The largest answer that is kept, in bytes.
    pub max_entry_bytes: u32,
    /// Nothing is given out that its service said longer ago, in seconds, also while the service is down.
    pub trust_seconds: u32,
}

/// Answers that are kept. One for the process.
#[derive(Debug)]
pub(crate) struct Cache {
    clock: Clock,
    max_entry_bytes: usize,
    trust_ms: i64,
    /// What changed since when; also what those who write tell.
    changes: Arc<Changes>,
    /// By who asked what; absent when nothing is to be kept.
    kept: Option<moka::sync::Cache<Key, Arc<Kept>>>,
    flights: Arc<Flights>,
}

impl Cache {
    /// An empty cache.
    pub(crate) fn new(config: &CacheConfig, clock: Clock) -> anyhow::Result<Self> {
        anyhow::ensure!(
            (1..=86_400).contains(&config.trust_seconds),
            "cache.trust_seconds must be from 1 to 86400: for so long nobody may have said that rights changed"
        );
        anyhow::ensure!(
            u64::from(config.max_entry_bytes) <= config.max_bytes,
            "cache.max_entry_bytes must be at most cache.max_bytes"
        );
        let kept = config.enabled.then(|| {
            moka::sync::Cache::builder()
                .max_capacity(config.max_bytes)
                .weigher(|_: &Key, kept: &Arc<Kept>| kept.weight())
                .time_to_live(Duration::from_secs(config.trust_seconds.into()))
                .eviction_listener(|_, _, cause| {
                    let cause = match cause {
                        moka::notification::RemovalCause::Size => "size",
                        moka::notification::RemovalCause::Expired => "age",
                        _ => return,
                    };
                    metrics::counter!("tollgate_cache_evictions_total", "cause" => cause).increment(1);
                })
                .build()
        });
        Ok(Self {
            clock,
            max_entry_bytes: usize::try_from(config.max_entry_bytes).context("cache.max_entry_bytes")?,
            trust_ms: i64::from(config.trust_seconds) * 1_000,
            changes: Arc::default(),
            kept,
            flights: Arc::default(),
        })
    }

    /// How many answers are kept, and their bytes.
    pub(crate) fn held(&self) -> (u64, u64) {
        self.kept.as_ref().map_or((0, 0), |kept| (kept.entry_count(), kept.weighted_size()))
    }

    /// How many calls are under way that others may wait for too.
    pub(crate) fn flights(&self) -> usize {
        self.flights.count()
    }

    /// What changed; whoever hears of changes tells it.
    pub(crate) fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }
}
