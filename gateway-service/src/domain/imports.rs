//! Imports: a gateway hands over what it ran before the platform knew it.
//!
//! project-service makes APIs of it; here the gateway's log learns that each is done already, so that lists,
//! snapshots and later events agree with what the gateway has.

mod archive;
mod form;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use service_kit::{Clock, Error, Kind, Result};
use tokio::sync::Semaphore;

use self::archive::Entry;
use crate::{
    domain::{artifacts::DesiredState, tokens::Bearer},
    store::ImportStore,
};

/// The most artifacts of one question to project-service.
const BATCH: usize = 100;
/// The most bytes of one question to project-service, which takes 8 MiB.
const BATCH_BYTES: usize = 7 * 1024 * 1024;
/// How many imports are unpacked at once: each may need a hundred megabytes.
const AT_ONCE: usize = 2;
/// When an import that found no place may try again.
const BUSY: Duration = Duration::from_secs(5);

/// An artifact for project-service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handed {
    /// The gateway's own id of it.
    pub(crate) dpid: String,
    /// The artifact as JSON.
    pub(crate) configuration: String,
    /// Whether the gateway runs it.
    pub(crate) deployed: bool,
    /// Unix milliseconds.
    pub(crate) deployed_at: i64,
}

/// What project-service made of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) api_id: String,
    /// The event that would have brought it to the gateway.
    pub(crate) event: Adopted,
    /// Unix milliseconds.
    pub(crate) created_at: i64,
    /// Unix milliseconds.
    pub(crate) updated_at: i64,
}

/// An event that a gateway has performed before the log knew it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adopted {
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    pub(crate) event_type: String,
    pub(crate) payload_json: String,
    /// Whether the gateway runs it.
    pub(crate) deployed: bool,
    /// What the gateway said, Unix milliseconds.
    pub(crate) performed_at: i64,
}

/// What became of all artifacts of an import, by the gateway's own ids; refusals are for the gateway's operator.
pub(crate) type Imported = BTreeMap<String, Result<Taken, String>>;

/// Takes imports.
#[derive(Debug, Clone)]
pub(crate) struct Imports {
    desired: Arc<dyn DesiredState>,
    log: Arc<dyn ImportStore>,
    clock: Clock,
    places: Arc<Semaphore>,
}

impl Imports {
    /// Imports into project-service and the log.
    pub(crate) fn new(desired: Arc<dyn DesiredState>, log: Arc<dyn ImportStore>, clock: Clock) -> Self {
        Self { desired, log, clock, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Takes a `multipart/form-data` body. INVALID_ARGUMENT names the part of it that cannot be read; a bad artifact
    /// keeps no other out. The same body again has the same answer. UNAVAILABLE while others are being taken: whoever
    /// waited would hold his body meanwhile.
    pub(crate) async fn import(&self, bearer: &Bearer, content_type: &str, body: Bytes) -> Result<Imported> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| busy())?;
        let form = form::read(content_type, body).await?;
        let entries = tokio::task::spawn_blocking(move || archive::read(&form.artifacts, form.total))
            .await
            .map_err(Error::internal)??;
        let mut imported = Imported::new();
        let mut batch = Batch::default();
        for Entry { dpid, handed } in entries {
            match handed {
                Err(error) => drop(imported.insert(dpid, Err(error))),
                Ok(handed) if batch.fits(&handed) => batch.add(handed),
                Ok(handed) => {
                    imported.extend(self.take(bearer, std::mem::take(&mut batch)).await?);
                    batch.add(handed);
                }
            }
        }
        imported.extend(self.take(bearer, batch).await?);
        drop(place);
        Ok(imported)
    }

    async fn take(&self, bearer: &Bearer, batch: Batch) -> Result<Imported> {
        if batch.artifacts.is_empty() {
            return Ok(Imported::new());
        }
        let taken = self.desired.import(bearer, batch.artifacts).await?;
        let events: Vec<Adopted> =
            taken.values().filter_map(|taken| taken.as_ref().ok()).map(|taken| taken.event.clone()).collect();
        self.log.adopt(&bearer.gateway_id, &events, self.clock.now_ms()).await?;
        let (gateway, artifacts) = (&bearer.gateway_id, taken.len());
        tracing::info!(
            gateway,
            artifacts,
            refused = artifacts - events.len(),
            "artifacts of a gateway imported"
        );
        Ok(taken)
    }
}

fn busy() -> Error {
    let message = format!("{AT_ONCE} imports are being taken already; try again");
    Error::new(Kind::Unavailable, "IMPORTS_BUSY", message).retry_after(BUSY)
}

/// Artifacts for one question.
#[derive(Debug, Default)]
struct Batch {
    artifacts: Vec<Handed>,
    bytes: usize,
}

impl Batch {
    fn fits(&self, artifact: &Handed) -> bool {
        self.artifacts.len() < BATCH && self.bytes + artifact.configuration.len() <= BATCH_BYTES
    }

    fn add(&mut self, artifact: Handed) {
        self.bytes += artifact.configuration.len();
        self.artifacts.push(artifact);
    }
}
