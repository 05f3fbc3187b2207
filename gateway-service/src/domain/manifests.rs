//! What gateways say of themselves.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use service_kit::{Error, Result, field::Checks};

use crate::{domain::tokens::Bearer, store::GatewayStore};

/// The part of a manifest that is read. Other members are kept and not read; some clients write `null` for
/// what they do not have.
#[derive(Deserialize)]
struct Manifest {
    version: Option<String>,
    #[serde(rename = "functionalityType")]
    functionality: Option<String>,
    #[serde(rename = "policies")]
    _policies: Option<Vec<Map<String, Value>>>,
}

/// Records manifests.
#[derive(Debug, Clone)]
pub(crate) struct Manifests {
    pub(crate) store: Arc<dyn GatewayStore>,
}

impl Manifests {
    /// Keeps the manifest of the token's gateway and the version in it. A functionality that is not the
    /// registered one is only logged: a refusal would end the gateway for good.
    pub(crate) async fn put(&self, bearer: &Bearer, manifest: &[u8]) -> Result<()> {
        let (text, version, functionality) = read(manifest)?;
        let gateway =
            self.store.find(&bearer.gateway_id).await?.ok_or_else(|| Error::not_found("gateway"))?;
        if !functionality.is_empty() && functionality != gateway.functionality.name() {
            tracing::warn!(
                gateway = gateway.id,
                registered = gateway.functionality.name(),
                "a gateway's manifest names another functionality"
            );
        }
        self.store.put_manifest(&gateway.id, &version, text).await
    }
}

fn read(manifest: &[u8]) -> Result<(&str, String, String)> {
    Checks::new()
        .that(!manifest.is_empty(), "manifest", "is required")
        .that(manifest.len() <= 1024 * 1024, "manifest", "must have at most 1 MiB")
        .done()?;
    let text = std::str::from_utf8(manifest).map_err(|_| Error::field("manifest", "must be UTF-8"))?;
    // Through a map: serde would take an array for the members in their order.
    let Manifest { version, functionality, .. } = serde_json::from_str::<Map<String, Value>>(text)
        .and_then(|object| serde_json::from_value(Value::Object(object)))
        .map_err(|error| Error::field("manifest", format!("must be a manifest in JSON: {error}")))?;
    let (version, functionality) = (version.unwrap_or_default(), functionality.unwrap_or_default());
    Checks::new()
        .length("manifest.version", &version, 0, 64)
        .printable("manifest.version", &version, false)
        .length("manifest.functionalityType", &functionality, 0, 64)
        .done()?;
    Ok((text, version, functionality))
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_manifest_is_json_with_known_members() {
        let (_, version, functionality) =
            read(br#"{"version":"1.2.0","functionalityType":"ai","policies":[{"name":"p"}],"more":1}"#)
                .unwrap();
        assert_eq!((version.as_str(), functionality.as_str()), ("1.2.0", "ai"));
        assert!(read(br#"{"policies":null}"#).is_ok());
        for bad in [&b""[..], b"[]", b"{", b"\xff", br#"{"version":7}"#, br#"{"policies":["x"]}"#] {
            let error = read(bad).unwrap_err();
            assert!(error.violations()[0].field.starts_with("manifest"), "{error}");
        }
    }
}
