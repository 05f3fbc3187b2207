//! The zip of an import: `artifacts.json`, an array of what the gateway hands over.
//!
//! Nothing in it is believed: sizes are counted while it is unpacked, and numbers while it is read.

use std::{
    collections::HashSet,
    fmt,
    io::{Cursor, Read as _},
};

use proto::time::Timestamp;
use serde::{
    Deserialize,
    de::{Deserializer as _, Error as _, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use service_kit::{Error, Result, field::Checks};
use zip::ZipArchive;

use super::Handed;

/// The most bytes of `artifacts.json`, unpacked.
const MAX_JSON: usize = 64 * 1024 * 1024;
/// The most artifacts.
const MAX_ARTIFACTS: usize = 10_000;
/// The most bytes of one artifact: as large as an API may be.
const MAX_CONFIGURATION: usize = 1024 * 1024;
/// The most files in the zip: its directory is read whole, and may describe millions.
const MAX_FILES: usize = 1_000;
/// How each entry of a zip's directory begins.
const DIRECTORY_ENTRY: [u8; 4] = *b"PK\x01\x02";

/// One artifact of an import.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The gateway's own id of it.
    pub(super) dpid: String,
    /// What to ask project-service, or why that is needless.
    pub(super) handed: Result<Handed, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw<'a> {
    #[serde(default)]
    dpid: Option<String>,
    #[serde(borrow, default)]
    configuration: Option<&'a RawValue>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    updated_at: Option<String>,
    #[serde(default)]
    deployed_at: Option<String>,
}

/// Reads the zip; `total` is how many artifacts it must hold. INVALID_ARGUMENT for what stands in the way of all.
pub(super) fn read(zip: &[u8], total: Option<usize>) -> Result<Vec<Entry>> {
    let json = unpack(zip)?;
    let raw = list(&json)?;
    if let Some(total) = total.filter(|total| *total != raw.len()) {
        let rule = format!("must be the number of artifacts: it is {total}, and they are {}", raw.len());
        return Err(Error::field("total", rule));
    }
    let mut known = HashSet::new();
    let mut entries = Vec::with_capacity(raw.len());
    for (at, raw) in raw.into_iter().enumerate() {
        let raw: Raw<'_> = serde_json::from_str(raw.get())
            .map_err(|error| Error::field(format!("artifacts[{at}]"), format!("cannot be read: {error}")))?;
        let (field, dpid) = (format!("artifacts[{at}].dpid"), raw.dpid.clone().unwrap_or_default());
        Checks::new()
            .length(&field, &dpid, 1, 128)
            .printable(&field, &dpid, false)
            .that(known.insert(dpid.clone()), &field, "must not be there twice")
            .done()?;
        entries.push(Entry { handed: raw.handed(&dpid), dpid });
    }
    Ok(entries)
}

fn unpack(zip: &[u8]) -> Result<Vec<u8>> {
    let broken = |error: &dyn fmt::Display| Error::field("artifacts", format!("must be a zip: {error}"));
    if zip.windows(4).filter(|bytes| *bytes == DIRECTORY_ENTRY).count() > MAX_FILES {
        return Err(Error::field("artifacts", "must hold artifacts.json, and not a thousand files"));
    }
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(|error| broken(&error))?;
    let mut file = archive.by_name("artifacts.json").map_err(|error| match error {
        zip::result::ZipError::FileNotFound => Error::field("artifacts", "must hold artifacts.json"),
        error => broken(&error),
    })?;
    let mut json = Vec::new();
    let most = u64::try_from(MAX_JSON + 1).map_err(Error::internal)?;
    file.by_ref().take(most).read_to_end(&mut json).map_err(|error| broken(&error))?;
    if json.len() > MAX_JSON {
        return Err(Error::field("artifacts", "must hold an artifacts.json of at most 64 MiB"));
    }
    Ok(json)
}

/// The entries as they stand, counted while they are found.
fn list(json: &[u8]) -> Result<Vec<&RawValue>> {
    struct Bounded;
    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array of artifacts")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if found.len() == MAX_ARTIFACTS {
                    return Err(A::Error::custom("more than 10000 artifacts"));
                }
                found.push(entry);
            }
            Ok(found)
        }
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let found = reader.deserialize_seq(Bounded).and_then(|found| reader.end().map(|()| found));
    found.map_err(|error| {
        Error::field("artifacts", format!("must hold an artifacts.json that can be read: {error}"))
    })
}

impl Raw<'_> {
    fn handed(&self, dpid: &str) -> Result<Handed, String> {
        let configuration = self.configuration.ok_or("configuration is required")?.get();
        if configuration.len() > MAX_CONFIGURATION {
            return Err("configuration must have at most 1 MiB".to_owned());
        }
        let status = self.status.as_deref().unwrap_or_default().to_ascii_lowercase();
        let deployed = match status.as_str() {
            "deployed" => true,
            "undeployed" | "pending" | "failed" => false,
            _ => return Err("status must be deployed, undeployed, pending or failed".to_owned()),
        };
        let deployed_at = self.performed()?;
        Ok(Handed { dpid: dpid.to_owned(), configuration: configuration.to_owned(), deployed, deployed_at })
    }

    /// The newest thing known of when it was deployed. Some writers say the year 1 for what they do not know.
    fn performed(&self) -> Result<i64, String> {
        let times = [
            ("deployedAt", &self.deployed_at),
            ("updatedAt", &self.updated_at),
            ("createdAt", &self.created_at),
        ];
        for (name, text) in times {
            let Some(text) = text else { continue };
            let time = Timestamp::parse_rfc3339(text).ok_or(format!("{name} must be a time (RFC 3339)"))?;
            if time.unix_ms() > 0 {
                return Ok(time.unix_ms());
            }
        }
        Err("deployedAt is required".to_owned())
    }
}

#[cfg(test)]
mod tests;
