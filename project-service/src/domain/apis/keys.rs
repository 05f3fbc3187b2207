//! Private keys of an API: taken out of the model on the way in, sealed, never put back into an answer.

use std::collections::BTreeMap;

use proto::project::{Api, Mtls};
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{Error, Result, seal::Sealer};

/// The private keys of one API, each at its place.
#[derive(Debug, Default)]
pub struct PrivateKeys(BTreeMap<String, SecretString>);

impl PrivateKeys {
    /// Takes the keys out of an API; it holds none afterwards.
    pub fn take_from(api: &mut Api) -> Self {
        let mut keys = BTreeMap::new();
        for_each_mtls(api, |place, mtls| {
            let key = std::mem::take(&mut mtls.client_key);
            if !key.is_empty() {
                keys.insert(place, SecretString::from(key));
            }
        });
        Self(keys)
    }

    /// Puts the keys back where they belong: for artifacts of gateways, never for answers to users.
    pub fn put_into(&self, api: &mut Api) {
        for_each_mtls(api, |place, mtls| {
            if let Some(key) = self.0.get(&place) {
                key.expose_secret().clone_into(&mut mtls.client_key);
            }
        });
    }

    /// These keys at `places`, with those of `newer` over them.
    pub(super) fn kept_at(&self, places: &[String], newer: &Self) -> Self {
        let key = |place: &String| {
            newer.0.get(place).or_else(|| self.0.get(place)).map(|key| (place.clone(), key.clone()))
        };
        Self(places.iter().filter_map(key).collect())
    }

    /// The keys encrypted for an API; nothing when there are none.
    pub fn seal(&self, sealer: &Sealer, api_id: &str) -> Result<Option<Vec<u8>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let plain: BTreeMap<&str, &str> =
            self.0.iter().map(|(place, key)| (place.as_str(), key.expose_secret())).collect();
        let plain = serde_json::to_vec(&plain).map_err(Error::internal)?;
        sealer.seal(&context(api_id), &plain).map(Some).map_err(Error::internal)
    }

    /// Reads what [`Self::seal`] made for the same API.
    pub fn open(sealer: &Sealer, api_id: &str, sealed: Option<&[u8]>) -> Result<Self> {
        let Some(sealed) = sealed else { return Ok(Self::default()) };
        let plain = sealer.open(&context(api_id), sealed).map_err(Error::internal)?;
        let keys: BTreeMap<String, String> = serde_json::from_slice(&plain).map_err(Error::internal)?;
        Ok(Self(keys.into_iter().map(|(place, key)| (place, SecretString::from(key))).collect()))
    }
}

/// Where an API may have private keys.
pub(super) fn places(api: &Api) -> Vec<String> {
    let mut places = Vec::new();
    for_each_mtls(&mut api.clone(), |place, _| places.push(place));
    places
}

fn context(api_id: &str) -> String {
    format!("api-keys:{api_id}")
}

/// An endpoint is known again by its backend's name and its URL, wherever it stands in the lists.
fn for_each_mtls(api: &mut Api, mut visit: impl FnMut(String, &mut Mtls)) {
    if let Some(mtls) = &mut api.mtls {
        visit("mtls".to_owned(), mtls);
    }
    for backend in &mut api.backend_services {
        for endpoint in &mut backend.endpoints {
            if let Some(mtls) = &mut endpoint.mtls {
                visit(format!("{}\n{}", backend.name, endpoint.url), mtls);
            }
        }
    }
}
