//! The WebAuthn side of passkeys: what authenticators are asked, and whether their answers hold. User
//! verification is required, origins are exact, and a counter that does not go up is refused.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use service_kit::{Error, Result};
use webauthn_rs::{
    Webauthn, WebauthnBuilder,
    prelude::{
        CredentialID, DiscoverableAuthentication, PasskeyRegistration, PublicKeyCredential,
        RegisterPublicKeyCredential, Url, Uuid, WebauthnError,
    },
};

use super::{Passkey, WAITS};
use crate::{config::PasskeyConfig, domain::accounts::User};

/// What a browser shows.
const NAME: &str = "Tollgate";
/// The longest credential id (WebAuthn, section 4), in bytes.
const MAX_CREDENTIAL_ID: usize = 1_023;

/// A new passkey, as its authenticator described it.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) credential_id: String,
    pub(super) document: String,
}

/// What an answer of an authenticator proves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assertion {
    /// The holder of the passkey is here; this is the passkey's document from now on.
    Right(String),
    /// Nothing.
    Wrong,
    /// The key is right and its counter did not go up: there may be a copy of it.
    CounterWentBack,
}

/// This platform, as authenticators know it.
#[derive(Debug)]
pub(super) struct RelyingParty(Webauthn);

impl RelyingParty {
    pub(super) fn new(config: &PasskeyConfig) -> anyhow::Result<Self> {
        let mut origins = Vec::new();
        for text in &config.origins {
            origins.push(origin(text, &config.rp_id)?);
        }
        let Some((first, others)) = origins.split_first() else {
            anyhow::bail!("passkeys.origins is empty, and must name the applications that use passkeys");
        };
        let builder = WebauthnBuilder::new(&config.rp_id, first)
            .map_err(|_| anyhow::anyhow!("passkeys.rp_id is not the domain of {first}"))?
            .rp_name(NAME)
            .timeout(std::time::Duration::from_secs(WAITS.into()));
        let webauthn = others.iter().fold(builder, WebauthnBuilder::append_allowed_origin).build()?;
        Ok(Self(webauthn))
    }

    /// Asks for a new passkey of an account that has others already.
    pub(super) fn start_registration(
        &self,
        owner: &User,
        others: &[Passkey],
    ) -> Result<(Value, PasskeyRegistration)> {
        let others: Vec<CredentialID> =
            others.iter().filter_map(|passkey| URL_SAFE_NO_PAD.decode(&passkey.credential_id).ok()).collect();
        let handle = Uuid::parse_str(&owner.id).map_err(Error::internal)?;
        let (options, state) = self
            .0
            .start_passkey_registration(handle, &owner.email, &owner.name, Some(others))
            .map_err(Error::internal)?;
        let mut options = serde_json::to_value(options).map_err(Error::internal)?;
        // The authenticator must keep the key under the account, so that a login needs no name.
        let selection = &mut options["publicKey"]["authenticatorSelection"];
        selection["residentKey"] = json!("required");
        selection["requireResidentKey"] = json!(true);
        Ok((options, state))
    }

    /// Checks a new passkey; nothing when it is not what was asked for.
    pub(super) fn finish_registration(
        &self,
        credential: &RegisterPublicKeyCredential,
        state: &PasskeyRegistration,
    ) -> Result<Option<Registered>> {
        let passkey = match self.0.finish_passkey_registration(credential, state) {
            Ok(passkey) => passkey,
            Err(error) => {
                tracing::info!(%error, "a new passkey was refused");
                return Ok(None);
            }
        };
        // Browsers say when a key is not kept with the account, although it was required.
        let discoverable =
            credential.extensions.cred_props.as_ref().and_then(|props| props.rk).unwrap_or(true);
        if !discoverable || passkey.cred_id().len() > MAX_CREDENTIAL_ID {
            return Ok(None);
        }
        let document = serde_json::to_string(&passkey).map_err(Error::internal)?;
        Ok(Some(Registered { credential_id: URL_SAFE_NO_PAD.encode(passkey.cred_id()), document }))
    }

    /// Asks for a proof by one of these passkeys; by any when there are none.
    pub(super) fn start_assertion(&self, allowed: &[Passkey]) -> Result<(Value, DiscoverableAuthentication)> {
        let (mut options, state) = self.0.start_discoverable_authentication().map_err(Error::internal)?;
        // Whether the browser offers passkeys while a name is typed is for the application to say.
        options.mediation = None;
        let mut options = serde_json::to_value(options).map_err(Error::internal)?;
        options["publicKey"]["allowCredentials"] = allowed
            .iter()
            .map(|passkey| json!({"type": "public-key", "id": passkey.credential_id}))
            .collect();
        Ok((options, state))
    }

    /// Checks a proof by the passkey that it names, as it is stored now.
    pub(super) fn check_assertion(
        &self,
        credential: &PublicKeyCredential,
        state: DiscoverableAuthentication,
        stored: &Passkey,
    ) -> Result<Assertion> {
        let owner = credential.get_user_unique_id().map(Uuid::from_slice);
        let is_owner = |handle: Uuid| handle.to_string() == stored.user_id;
        if !owner.is_none_or(|handle| handle.is_ok_and(is_owner)) || is_framed(credential) {
            return Ok(Assertion::Wrong);
        }
        let mut passkey: webauthn_rs::prelude::Passkey =
            serde_json::from_str(&stored.document).map_err(Error::internal)?;
        match self.0.finish_discoverable_authentication_v2(credential, state, &passkey) {
            Ok(result) => {
                passkey.update_credential(&result);
                Ok(Assertion::Right(serde_json::to_string(&passkey).map_err(Error::internal)?))
            }
            Err(WebauthnError::CredentialPossibleCompromise) => Ok(Assertion::CounterWentBack),
            Err(error) => {
                tracing::info!(%error, "an answer of a passkey was refused");
                Ok(Assertion::Wrong)
            }
        }
    }
}

/// The id of the credential that an answer names, in the form that is stored.
pub(super) fn credential_id(credential: &PublicKeyCredential) -> String {
    URL_SAFE_NO_PAD.encode(credential.get_credential_id())
}

/// Whether the answer was made in a frame of somebody else's page. webauthn-rs refuses that for new
/// passkeys only.
fn is_framed(credential: &PublicKeyCredential) -> bool {
    let client: Value = serde_json::from_slice(&credential.response.client_data_json).unwrap_or_default();
    client["crossOrigin"] == json!(true)
}

/// An exact origin on the relying party's domain, or below it.
fn origin(text: &str, rp_id: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).map_err(|error| anyhow::anyhow!("passkeys.origins: {text}: {error}"))?;
    let domain = url.domain().unwrap_or_default();
    let local = domain == "localhost" || domain.ends_with(".localhost");
    anyhow::ensure!(
        url.origin().ascii_serialization() == text,
        "passkeys.origins: {text} is not an origin such as https://app.example.com"
    );
    anyhow::ensure!(
        url.scheme() == "https" || (url.scheme() == "http" && local),
        "passkeys.origins: {text} must be https"
    );
    anyhow::ensure!(
        !rp_id.is_empty() && (domain == rp_id || domain.ends_with(&format!(".{rp_id}"))),
        "passkeys.rp_id is {rp_id}, and must be the domain of {text} or one above it"
    );
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::RelyingParty;
    use crate::config::PasskeyConfig;

    fn refusal(rp_id: &str, origins: &[&str]) -> Option<String> {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let config = PasskeyConfig { rp_id: rp_id.to_owned(), origins };
        RelyingParty::new(&config).err().map(|error| error.to_string())
    }

    #[test]
    fn origins_are_exact_and_of_the_domain() {
        for (rp_id, origins) in [
            ("localhost", &["https://localhost:8443"][..]),
            ("localhost", &["http://localhost:3000", "http://app.localhost"]),
            ("example.com", &["https://example.com", "https://app.example.com:8443"]),
        ] {
            assert_eq!(refusal(rp_id, origins), None, "{origins:?}");
        }
        for (rp_id, origins) in [
            ("example.com", &[][..]),
            ("example.com", &["app.example.com"]),
            ("example.com", &["https://example.com/"]),
            ("example.com", &["https://example.com/login"]),
            ("example.com", &["https://EXAMPLE.com"]),
            ("example.com", &["https://example.com:443"]),
            ("example.com", &["http://example.com"]),
            ("example.com", &["https://example.com", "https://badexample.com"]),
            ("example.com", &["https://example.com.evil"]),
            ("", &["https://example.com"]),
            ("127.0.0.1", &["https://127.0.0.1:8443"]),
        ] {
            let refused = refusal(rp_id, origins);
            assert!(
                refused.as_ref().is_some_and(|text| text.contains("passkeys.")),
                "{origins:?}: {refused:?}"
            );
        }
    }
}
