//! What gateways fetch: the deployments that they are to run, and their artifacts.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use async_trait::async_trait;
use proto::time::Timestamp;
use service_kit::{Error, Result, field::Checks, id::is_id};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        archive,
        imports::{Handed, Imported},
        tokens::Bearer,
    },
    store::EventStore,
};

/// A deployment that a gateway is to run, or to have removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) api_id: String,
    pub(crate) deployment_id: String,
    pub(crate) deployed: bool,
    /// Unix milliseconds.
    pub(crate) requested_at: i64,
}

/// What a gateway needs to run an API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Artifact {
    pub(crate) api_id: String,
    pub(crate) deployment_id: String,
    pub(crate) yaml: Vec<u8>,
}

/// A deployment as gateways see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) desired: Desired,
    /// The `performedAt` that the gateway knows, Unix milliseconds.
    pub(crate) deployed_at: i64,
    /// Changes when the entry does; a UUID, because gateways take it for a correlation id.
    pub(crate) etag: String,
}

/// Who owns the desired state. All of it fails with UNAVAILABLE when it cannot be had.
#[async_trait]
pub(crate) trait DesiredState: fmt::Debug + Send + Sync + 'static {
    /// The newest deployment of each API on a gateway.
    async fn desired(&self, gateway_id: &str) -> Result<Vec<Desired>>;
    /// The artifacts of a gateway's deployments; what does not exist is left out.
    async fn artifacts(&self, gateway_id: &str, deployment_ids: Vec<String>) -> Result<Vec<Artifact>>;
    /// The newest artifact of an API on a gateway.
    async fn artifact(&self, gateway_id: &str, api_id: &str) -> Result<Option<Artifact>>;
    /// Which of the APIs exist in an organization.
    async fn existing(&self, organization_id: &str, api_ids: Vec<String>) -> Result<Vec<String>>;
    /// Hands over what a gateway ran already; what became of each.
    async fn import(&self, bearer: &Bearer, artifacts: Vec<Handed>) -> Result<Imported>;
}

/// How one artifact is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A zip with the YAML document.
    Zip,
    /// The YAML document.
    Yaml,
}

/// Answers gateways.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    pub(crate) desired: Arc<dyn DesiredState>,
    pub(crate) log: Arc<dyn EventStore>,
}

impl Artifacts {
    /// What the gateway is to run, changed after `since` (Unix milliseconds).
    pub(crate) async fn list(&self, bearer: &Bearer, since: Option<i64>) -> Result<Vec<Listed>> {
        let desired = self.desired.desired(&bearer.gateway_id).await?;
        let performed: HashMap<String, i64> =
            self.log.performed(&bearer.gateway_id).await?.into_iter().collect();
        let listed = desired.into_iter().map(|desired| {
            let deployed_at = performed.get(&desired.api_id).copied().unwrap_or(desired.requested_at);
            let etag = etag(&desired, deployed_at);
            Listed { desired, deployed_at, etag }
        });
        Ok(listed.filter(|entry| since.is_none_or(|since| entry.deployed_at > since)).collect())
    }

    /// The artifacts of up to 50 deployments as tar.gz.
    pub(crate) async fn batch(&self, bearer: &Bearer, deployment_ids: Vec<String>) -> Result<Vec<u8>> {
        let holds = (1..=50).contains(&deployment_ids.len());
        Checks::new().that(holds, "deploymentIds", "must hold 1 to 50 ids").done()?;
        // What is not an id names no deployment.
        let ids: Vec<String> = deployment_ids.into_iter().filter(|id| is_id(id)).collect();
        let artifacts =
            if ids.is_empty() { Vec::new() } else { self.desired.artifacts(&bearer.gateway_id, ids).await? };
        packed(move || archive::tar_gz(&artifacts)).await
    }

    /// The newest artifact of an API; NOT_FOUND when it is not deployed to this gateway.
    pub(crate) async fn api(&self, bearer: &Bearer, api_id: &str, form: Form) -> Result<Vec<u8>> {
        let found =
            if is_id(api_id) { self.desired.artifact(&bearer.gateway_id, api_id).await? } else { None };
        let artifact = found.ok_or_else(|| Error::not_found("API on this gateway"))?;
        match form {
            Form::Zip => packed(move || archive::zip(&artifact)).await,
            Form::Yaml => Ok(artifact.yaml),
        }
    }

    /// Whether the gateway has ever had an API. NOT_FOUND when its organization has none of this id,
    /// PERMISSION_DENIED when it has and the gateway has not.
    pub(crate) async fn associated(&self, bearer: &Bearer, api_id: &str) -> Result<()> {
        let ids = if is_id(api_id) { vec![api_id.to_owned()] } else { Vec::new() };
        if ids.is_empty() || self.desired.existing(&bearer.organization_id, ids).await?.is_empty() {
            return Err(Error::not_found("API"));
        }
        let desired = self.desired.desired(&bearer.gateway_id).await?;
        if desired.iter().any(|desired| desired.api_id == api_id) {
            return Ok(());
        }
        Err(Error::permission_denied("the API is not associated with this gateway"))
    }

    /// Which of up to 1,000 artifacts exist, in the order of the question.
    pub(crate) async fn exist(
        &self,
        bearer: &Bearer,
        artifact_ids: Vec<String>,
    ) -> Result<Vec<(String, bool)>> {
        Checks::new()
            .that(artifact_ids.len() <= 1_000, "artifactIds", "must hold at most 1000 ids")
            .done()?;
        let ids: Vec<String> = artifact_ids.iter().filter(|id| is_id(id)).cloned().collect();
        let existing: HashSet<String> = if ids.is_empty() {
            HashSet::new()
        } else {
            self.desired.existing(&bearer.organization_id, ids).await?.into_iter().collect()
        };
        Ok(artifact_ids
            .into_iter()
            .map(|id| {
                let exists = existing.contains(&id);
                (id, exists)
            })
            .collect())
    }
}

/// Compression is work: it must not stand in the way of the links.
async fn packed(pack: impl FnOnce() -> Result<Vec<u8>> + Send + 'static) -> Result<Vec<u8>> {
    tokio::task::spawn_blocking(pack).await.map_err(Error::internal)?
}

/// A UUIDv7 in form: the time of the entry, then bits of a hash of what it says.
fn etag(desired: &Desired, deployed_at: i64) -> String {
    let state = if desired.deployed { "deployed" } else { "undeployed" };
    let hash = Sha256::digest(format!("{}:{}:{state}", desired.api_id, desired.deployment_id));
    let mut hex = format!("{:012x}", deployed_at & 0xffff_ffff_ffff);
    hex.extend(hash.iter().take(10).map(|byte| format!("{byte:02x}")));
    let variant = ["8", "9", "a", "b"][usize::from(hash[9] % 4)];
    format!("{}-{}-7{}-{variant}{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

/// Unix milliseconds of a time on the wire; 0 when it is absent.
pub(crate) fn unix_ms(time: Option<Timestamp>) -> i64 {
    time.map_or(0, |time| time.unix_ms())
}

#[cfg(test)]
mod tests {
    use super::{Desired, etag};

    #[test]
    fn an_etag_is_a_uuid_that_changes_with_the_entry() {
        let entry =
            Desired { api_id: "a".into(), deployment_id: "d".into(), deployed: true, requested_at: 0 };
        let first = etag(&entry, 1_766_000_000_007);
        assert!(service_kit::id::is_id(&first), "{first}");
        assert_eq!(first, etag(&entry, 1_766_000_000_007));
        assert_ne!(first, etag(&entry, 1_766_000_000_008));
        assert_ne!(first, etag(&Desired { deployed: false, ..entry.clone() }, 1_766_000_000_007));
        assert_ne!(first, etag(&Desired { deployment_id: "e".into(), ..entry }, 1_766_000_000_007));
    }
}
