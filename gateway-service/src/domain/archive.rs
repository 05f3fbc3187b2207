//! Archives of artifacts, as gateways read them. The same input gives the same bytes.

use std::io::{Cursor, Write as _};

use flate2::{Compression, write::GzEncoder};
use service_kit::{Error, Result};
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::domain::artifacts::Artifact;

/// A gzipped tar with `<deploymentId>/api-<apiId>.yaml` for each artifact.
pub(crate) fn tar_gz(artifacts: &[Artifact]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for artifact in artifacts {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(artifact.yaml.len()).unwrap_or(u64::MAX));
        header.set_mode(0o644);
        header.set_mtime(0);
        let path = format!("{}/{}", artifact.deployment_id, file_name(artifact));
        tar.append_data(&mut header, path, artifact.yaml.as_slice()).map_err(Error::internal)?;
    }
    tar.into_inner().and_then(GzEncoder::finish).map_err(Error::internal)
}

/// A zip with `api-<apiId>.yaml`.
pub(crate) fn zip(artifact: &Artifact) -> Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(file_name(artifact), SimpleFileOptions::default()).map_err(Error::internal)?;
    zip.write_all(&artifact.yaml).map_err(Error::internal)?;
    Ok(zip.finish().map_err(Error::internal)?.into_inner())
}

fn file_name(artifact: &Artifact) -> String {
    format!("api-{}.yaml", artifact.api_id)
}
