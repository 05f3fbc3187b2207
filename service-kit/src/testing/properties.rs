//! What must hold whatever somebody sends. Property tests and fuzz targets (`service-kit/fuzz`) both ask here.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use serde_json::{Value, json};

use super::Signer;
use crate::{
    Clock, Kind, opaque,
    token::{LEEWAY, MAX_LIFETIME, Verifier},
};

/// The time of [`Tokens`], in seconds.
const NOW: i64 = 1_766_000_000;

/// An opaque token is of one kind at most, and has one text.
///
/// # Panics
/// When that does not hold.
pub fn opaque_token(text: &str) {
    let kinds: Vec<&str> =
        ["gw", "pat", "svc", "key"].into_iter().filter(|kind| opaque::parse(kind, text).is_some()).collect();
    assert!(kinds.len() <= 1, "of several kinds: {kinds:?}");
    let Some(presented) = kinds.first().and_then(|kind| opaque::parse(kind, text)) else { return };
    let parts: Vec<&str> = text.split('_').collect();
    assert_eq!(parts.len(), 3, "{text}");
    assert_eq!((presented.lookup().as_str(), parts[2].len()), (parts[1], 49), "{text}");
    assert!(!presented.matches_nothing());
}

/// A verifier with everything that it needs, at a fixed time.
pub struct Tokens {
    signer: Signer,
    verifier: Verifier,
    runtime: tokio::runtime::Runtime,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// One for the whole process.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Tokens> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (signer, clock) = (Signer::new(), Clock::fixed(NOW * 1_000));
            let verifier = Verifier::new(Signer::config(), Arc::new(signer.clone()), clock);
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            Self { signer, verifier, runtime }
        })
    }

    /// The claims of a good token at this time.
    pub fn claims() -> Value {
        let config = Signer::config();
        json!({
            "iss": config.issuer, "aud": config.audience, "sub": "u", "exp": NOW + 600, "iat": NOW,
            "jti": "j", "client_id": "tests", "sid": "s", "scope": "*", "auth_time": NOW, "amr": ["pwd"],
        })
    }

    /// Nobody can make a token up.
    ///
    /// # Panics
    /// When somebody can.
    pub fn presented(&self, text: &str) {
        let verified = self.runtime.block_on(self.verifier.verify(text));
        assert_eq!(verified.expect_err("it was not signed").kind(), Kind::Unauthenticated);
    }

    /// What we sign is taken only if it is an access token for now. Whatever it says, judging it ends well.
    ///
    /// # Panics
    /// When something else is taken.
    pub fn signed(&self, header: &str, claims: &str) {
        let token = self.signer.sign_text(header, claims);
        let claims = match self.runtime.block_on(self.verifier.verify(&token)) {
            Ok(claims) => claims,
            Err(error) => return assert_eq!(error.kind(), Kind::Unauthenticated, "{error}"),
        };
        let header: Value = serde_json::from_str(header).expect("a header that was taken");
        assert_eq!(header, Signer::header());
        let config = Signer::config();
        assert_eq!((&claims.iss, &claims.aud), (&config.issuer, &config.audience));
        assert!(claims.exp + LEEWAY > NOW && claims.iat <= NOW + LEEWAY);
        assert!(claims.exp - claims.iat <= MAX_LIFETIME && claims.nbf.is_none_or(|nbf| nbf <= NOW + LEEWAY));
        assert!(![&claims.sub, &claims.sid, &claims.jti].iter().any(|text| text.is_empty()));
        assert!(!claims.amr.is_empty() && claims.auth_time <= claims.iat + LEEWAY);
    }
}
