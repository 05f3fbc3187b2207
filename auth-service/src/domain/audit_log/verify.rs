//! Verifies the audit log: every chain against its hashes and its head, and every exported head against
//! the chains. It reads page by page and changes nothing, so it may run beside the service.
//!
//! What it can prove: an event, once a head that covers it was exported and a copy of that is out of the
//! reach of whoever changes the log, cannot be changed, removed or moved unnoticed.

mod finding;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use service_kit::seal::Sealer;

pub(crate) use finding::Finding;

use super::{
    heads,
    key::{AuditKey, PublicJwk},
    series::{Place, Series},
};
use crate::{
    config::Config,
    domain::audit::{GENESIS, Recorded, hex, link},
    store::audit_log::{AuditLogStore, Head, Row},
};

/// How many events are read at a time.
const PAGE: i64 = 500;

/// What the log is compared with.
#[derive(Debug)]
pub(crate) struct Evidence {
    series: Vec<Series>,
    keys: Vec<PublicJwk>,
    /// Whether every head that the database calls exported must be there: not so in copies, which may be
    /// older than the database.
    complete: bool,
}

/// What was verified.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) chains: u64,
    pub(crate) events: u64,
    /// Exported heads.
    pub(crate) heads: u64,
}

/// One walk over the log.
#[derive(Debug)]
pub(crate) struct Verification {
    store: Arc<dyn AuditLogStore>,
    evidence: Evidence,
    /// Only this chain.
    chain: Option<String>,
    summary: Summary,
    /// Chains of which a head was exported: up to which sequence.
    exported: BTreeMap<String, i64>,
}

/// A finding ends the walk; so does what keeps us from going on.
type Step<T = ()> = Result<T, Stop>;

#[derive(Debug)]
enum Stop {
    Found(Finding),
    Failed(anyhow::Error),
}

impl From<Finding> for Stop {
    fn from(finding: Finding) -> Self {
        Self::Found(finding)
    }
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<service_kit::Error> for Stop {
    fn from(error: service_kit::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl Evidence {
    /// The heads of `folders`, or else of the configured one, believed when one of the keys in `files`
    /// signed them, or else our own.
    pub(crate) fn gather(config: &Config, folders: &[PathBuf], files: &[PathBuf]) -> anyhow::Result<Self> {
        let complete = folders.is_empty();
        let own = std::slice::from_ref(&config.audit.heads_folder);
        let mut series = Vec::new();
        for folder in if complete { own } else { folders } {
            let found = Series::new(folder);
            // Nothing was exported yet, perhaps; the database knows better.
            anyhow::ensure!(complete || found.exists(), "there is no folder {}", folder.display());
            series.extend(found.exists().then_some(found));
        }
        let keys = match files {
            [] if series.is_empty() => Vec::new(),
            [] => vec![own_key(config).context("without --key heads are verified with our own key")?],
            files => files.iter().map(|file| PublicJwk::read(file)).collect::<anyhow::Result<_>>()?,
        };
        Ok(Self { series, keys, complete })
    }
}

/// The public half of the key that this service signs with; nothing is made.
fn own_key(config: &Config) -> anyhow::Result<PublicJwk> {
    let sealing: &Path = &config.keys.sealing_key_file;
    anyhow::ensure!(sealing.is_file(), "there is no file {}", sealing.display());
    let sealer = Sealer::load_or_create(sealing)?;
    Ok(AuditKey::load(&config.audit_key_file(), &sealer)?.public().clone())
}

impl Verification {
    pub(crate) fn new(store: Arc<dyn AuditLogStore>, evidence: Evidence, chain: Option<String>) -> Self {
        Self { store, evidence, chain, summary: Summary::default(), exported: BTreeMap::new() }
    }

    /// Verifies everything, up to the first thing that is wrong.
    ///
    /// # Errors
    /// When the database or the files cannot be read: then nothing is proven.
    pub(crate) async fn run(mut self) -> anyhow::Result<Result<Summary, Finding>> {
        match self.all().await {
            Ok(()) => Ok(Ok(self.summary)),
            Err(Stop::Found(finding)) => Ok(Err(finding)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    async fn all(&mut self) -> Step {
        // Chains before heads: an exported head that is read later than the chains can only be compared
        // with events that do not change any more.
        if let Some(chain) = self.chain.clone() {
            self.chain(&chain).await?;
        } else {
            let mut after = String::new();
            while let Some(chain) = self.store.chain_after(&after).await? {
                self.chain(&chain).await?;
                after = chain;
            }
        }
        for series in std::mem::take(&mut self.evidence.series) {
            self.series(&series).await?;
        }
        if let Some((chain, sequence)) = self.exported.pop_first().filter(|_| self.evidence.complete) {
            return Err(Finding::NotInFolder { chain, sequence }.into());
        }
        match &self.chain {
            // Neither in the database nor in a head: most likely the name is wrong.
            Some(chain) if self.summary == Summary::default() => {
                Err(anyhow::anyhow!("there is no chain {chain}").into())
            }
            _ => Ok(()),
        }
    }

    async fn chain(&mut self, chain: &str) -> Step {
        let Some(head) = self.store.head(chain).await? else {
            return match self.store.last(chain).await? {
                // Asked for by name: an exported head may know more.
                0 => Ok(()),
                last => Err(Finding::NoHead { chain: chain.to_owned(), last }.into()),
            };
        };
        self.events(&head).await?;
        // What is added meanwhile is added with its head, which is read last.
        let last = self.store.last(chain).await?;
        let now = self.store.head(chain).await?.map_or(0, |head| head.sequence);
        if last > now {
            return Err(Finding::BeyondHead { chain: chain.to_owned(), head: now, last }.into());
        }
        if head.exported > 0 {
            self.exported.insert(head.chain, head.exported);
        }
        self.summary.chains += 1;
        Ok(())
    }

    /// The events of a chain up to its head.
    async fn events(&mut self, head: &Head) -> Step {
        let (mut hash, mut last, mut after) = (GENESIS.to_vec(), 0, i64::MIN);
        loop {
            let rows = self.store.events(&head.chain, after, head.sequence, PAGE).await?;
            let Some(end) = rows.last() else { break };
            after = end.sequence;
            for row in rows {
                hash = check(&row, last + 1, &hash)?;
                last = row.sequence;
                self.summary.events += 1;
            }
        }
        let chain = head.chain.clone();
        if last < head.sequence {
            return Err(Finding::Truncated { chain, head: head.sequence, last }.into());
        }
        if hash != head.hash {
            return Err(Finding::HeadDiffers { chain, sequence: last }.into());
        }
        Ok(())
    }

    async fn series(&mut self, series: &Series) -> Step {
        let mut previous = heads::beginning();
        for place in series.lines()? {
            let place = place?;
            let statement = heads::read(&place.text, &previous, &self.evidence.keys)
                .map_err(|problem| Finding::BadLine { place: at(&place), problem })?;
            previous = heads::hash_of(place.text.as_bytes());
            if self.chain.as_ref().is_none_or(|only| *only == statement.chain) {
                self.statement(&place, &statement).await?;
            }
        }
        Ok(())
    }

    /// Compares an exported head with the event that it names.
    async fn statement(&mut self, place: &Place, said: &heads::Statement) -> Step {
        let (chain, sequence, place) = (said.chain.clone(), said.sequence, at(place));
        let Some(hash) = self.store.hash(&chain, sequence).await? else {
            let last = self.store.last(&chain).await?;
            return Err(Finding::Gone { chain, sequence, last, place }.into());
        };
        if hex(&hash) != said.hash {
            return Err(Finding::Rewritten { chain, sequence, place }.into());
        }
        if self.exported.get(&chain).is_some_and(|exported| *exported <= sequence) {
            self.exported.remove(&chain);
        }
        self.summary.heads += 1;
        Ok(())
    }
}

/// The hash of an event that must be the next one of its chain.
fn check(row: &Row, sequence: i64, previous: &[u8]) -> Result<Vec<u8>, Finding> {
    let chain = row.chain.clone();
    if row.sequence > sequence {
        return Err(Finding::Missing { chain, sequence });
    }
    let bad = |problem| Finding::BadEvent { chain: chain.clone(), sequence: row.sequence, problem };
    if row.sequence < sequence {
        return Err(bad("sequences begin at 1"));
    }
    let Ok(says) = Recorded::read(&row.body) else { return Err(bad("it cannot be read")) };
    if says.chain != row.chain || says.sequence != row.sequence {
        return Err(bad("it belongs to another place: events were moved or exchanged"));
    }
    if says.at != row.at {
        return Err(bad("its time was changed"));
    }
    let hash = link(previous, &row.body);
    if row.hash != hash {
        return Err(bad("hash mismatch: it, or the hash of the one before it, was changed"));
    }
    Ok(hash.to_vec())
}

fn at(place: &Place) -> String {
    format!("{}:{}", place.file.display(), place.line)
}
