//! Imports from gateways: proto to domain and back.

use proto::project::{ArtifactImport, ImportedArtifact};
use service_kit::Result;

use super::time;
use crate::domain::{
    deployments::events,
    imports::{Artifact, Imported},
};

/// How much of a refusal is told, in characters.
const MOST: usize = 500;

pub(super) fn artifact(message: ImportedArtifact) -> Artifact {
    Artifact {
        dpid: message.dpid,
        configuration: message.configuration_json,
        deployed: message.deployed,
        deployed_at: message.deployed_at.map_or(0, |time| time.unix_ms()),
    }
}

pub(super) fn message(artifact: Artifact, answer: Result<Imported>) -> ArtifactImport {
    let dpid = artifact.dpid;
    let Imported { deployment, created_at, updated_at } = match answer {
        Ok(imported) => imported,
        Err(error) => {
            let rules: Vec<String> =
                error.violations().iter().map(|one| format!("{} {}", one.field, one.message)).collect();
            let text = if rules.is_empty() { error.message().to_owned() } else { rules.join("; ") };
            let error = text.chars().take(MOST).collect();
            return ArtifactImport { dpid, error, ..ArtifactImport::default() };
        }
    };
    let event = events::event_of(&deployment, "");
    ArtifactImport {
        dpid,
        payload_json: event.payload_json,
        event_type: event.r#type,
        api_id: deployment.api_id,
        deployment_id: deployment.id,
        created_at: time(created_at),
        updated_at: time(updated_at),
        performed_at: time(deployment.requested_at),
        error: String::new(),
    }
}
