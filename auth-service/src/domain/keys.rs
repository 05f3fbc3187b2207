//! The keys that sign access tokens: ES256, named by their RFC 7638 thumbprint, kept in the database
//! encrypted under the key at rest. They follow each other: each is published long before it signs, and
//! verifies long after. A private key never leaves this module.

mod material;
mod schedule;

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use service_kit::{ClientInfo, Clock, Error, Kind, Result, seal::Sealer, token::Claims};

use super::audit::{Action, Chain, Event, Journal};
use crate::{config::KeysConfig, store::keys::KeyStore};
use material::Pair;
pub(super) use material::{public_half, thumbprint};
use schedule::{Due, Terms};

/// A signing key as it is stored. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct SealedKey {
    /// The thumbprint.
    pub(crate) kid: String,
    /// PKCS#8, encrypted for `signing-key:<kid>`.
    pub(crate) sealed: Vec<u8>,
    /// Its place among all keys, from 1.
    pub(crate) generation: i64,
    /// When it begins to sign.
    pub(crate) activates_at: i64,
    /// When it was made, and published.
    pub(crate) created_at: i64,
    /// When it was found to be in wrong hands.
    pub(crate) revoked_at: Option<i64>,
}

/// The public half of a signing key: coordinates on P-256 as base64url.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// The RFC 7638 thumbprint of the other two.
    pub(crate) kid: String,
    pub(crate) x: String,
    pub(crate) y: String,
}

/// What a signing key does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It is published, and will sign.
    Waiting,
    /// It signs.
    Signing,
    /// It verifies tokens that it signed before.
    Retired,
    /// Its tokens are dead.
    Revoked,
}

/// A signing key, for an operator. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// The key's name.
    pub kid: String,
    /// Its place among all keys, from 1.
    pub generation: i64,
    /// What it does now.
    pub state: KeyState,
    /// When it was made, and published.
    pub created_at: i64,
    /// When it begins to sign, or did.
    pub activates_at: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

/// What came of the revocation of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// Another key signs, as before.
    Apart,
    /// This key signs from now on.
    ReplacedBy(String),
    /// It had been revoked before; nothing was done.
    Before,
}

/// The signing keys in the database: what is due is done, an operator may do it sooner. Running instances
/// notice a change within two seconds, whoever made it.
#[derive(Debug)]
pub struct SigningKeys {
    store: Arc<dyn KeyStore>,
    sealer: Sealer,
    clock: Clock,
    journal: Journal,
    terms: Terms,
}

impl SigningKeys {
    pub(crate) fn new(
        store: &Arc<dyn KeyStore>,
        sealer: &Sealer,
        clock: &Clock,
        journal: &Journal,
        config: &KeysConfig,
    ) -> Self {
        let ms = |seconds: u32| i64::from(seconds) * 1_000;
        Self {
            store: store.clone(),
            sealer: sealer.clone(),
            clock: clock.clone(),
            journal: journal.clone(),
            terms: Terms { rotate_after: ms(config.rotate_after), publish_ahead: ms(config.publish_ahead) },
        }
    }

    /// All keys, the oldest first.
    pub async fn list(&self) -> Result<Vec<KeyInfo>> {
        let (keys, now) = (self.store.all().await?, self.clock.now_ms());
        let signer = schedule::signer(&keys, now).map(|key| key.generation);
        let info = |key: &SealedKey| KeyInfo {
            kid: key.kid.clone(),
            generation: key.generation,
            state: match key {
                SealedKey { revoked_at: Some(_), .. } => KeyState::Revoked,
                SealedKey { generation, .. } if Some(*generation) == signer => KeyState::Signing,
                SealedKey { activates_at, .. } if *activates_at > now => KeyState::Waiting,
                _ => KeyState::Retired,
            },
            created_at: key.created_at,
            activates_at: key.activates_at,
            revoked_at: key.revoked_at,
        };
        Ok(keys.iter().map(info).collect())
    }

    /// Publishes the next key, which signs when it has been known for `keys.publish_ahead`.
    /// FAILED_PRECONDITION (`KEY_WAITING`) when one is waiting already.
    pub async fn rotate(&self) -> Result<KeyInfo> {
        let (keys, now) = (self.store.all().await?, self.clock.now_ms());
        let key = self.make(schedule::next(&keys, self.terms, now), now)?;
        let event = self.event(Action::KeyRotate, &key.kid).because("on demand");
        // Of two that rotate side by side one adds a key; for the other it waits already.
        if schedule::waiting(&keys, now).is_some() || !self.store.add(&key, &event).await? {
            return Err(Error::new(
                Kind::FailedPrecondition,
                "KEY_WAITING",
                "the next key is published and waits for its time; revoke the signing key to change at once",
            ));
        }
        tracing::info!(kid = key.kid, generation = key.generation, "signing key published on demand");
        Ok(KeyInfo {
            kid: key.kid,
            generation: key.generation,
            state: KeyState::Waiting,
            created_at: key.created_at,
            activates_at: key.activates_at,
            revoked_at: None,
        })
    }

    /// Makes a key and all of its tokens worthless, within seconds and everywhere. When it is the one that
    /// signs, the one that waits does from now on, or else a new one. NOT_FOUND when there is no such key.
    pub async fn revoke(&self, kid: &str) -> Result<Revoked> {
        let now = self.clock.now_ms();
        let spare = self.make(Due { generation: 0, activates_at: now }, now)?;
        let event = self.event(Action::KeyRevoke, kid);
        let replacement = self.event(Action::KeyRotate, "").because("emergency");
        let revoked = self.store.revoke(kid, &spare, &event, &replacement).await?;
        let revoked = revoked.ok_or_else(|| Error::not_found("signing key"))?;
        tracing::warn!(kid, ?revoked, "signing key revoked");
        Ok(revoked)
    }

    /// Does what is due: makes the first key, or the next one; forgets those of no use. Says whether
    /// there was something.
    async fn keep(&self, keys: &[SealedKey]) -> Result<bool> {
        let now = self.clock.now_ms();
        let due = schedule::due(keys, self.terms, now);
        if let Some(due) = due {
            let key = self.make(due, now)?;
            let event = self.event(Action::KeyRotate, &key.kid).because("scheduled");
            if self.store.add(&key, &event).await? {
                tracing::info!(kid = key.kid, generation = key.generation, "signing key published");
            }
        }
        let over = schedule::over(keys, now);
        if !over.is_empty() {
            self.store.delete(&over).await?;
            tracing::info!(kids = ?over, "signing keys deleted that no token needs");
        }
        Ok(due.is_some() || !over.is_empty())
    }

    fn make(&self, due: Due, now: i64) -> Result<SealedKey> {
        let (kid, sealed) = material::generate(&self.sealer).map_err(Error::internal)?;
        let Due { generation, activates_at } = due;
        Ok(SealedKey { kid, sealed, generation, activates_at, created_at: now, revoked_at: None })
    }

    fn event(&self, action: Action, kid: &str) -> Event {
        self.journal.event(Chain::System, action, &ClientInfo::default()).on(kid)
    }
}

/// The keys as this instance knows them: it signs and tells them without asking the database.
#[derive(Debug)]
pub(crate) struct KeyRing {
    keys: SigningKeys,
    ring: RwLock<Arc<Ring>>,
}

#[derive(Debug, Default)]
struct Ring {
    keys: Vec<SealedKey>,
    pairs: HashMap<String, Arc<Pair>>,
}

impl KeyRing {
    /// Reads the keys, and makes the first one where there is none; instances that start at once agree on
    /// it. Fails when a key does not open.
    pub(crate) async fn load(keys: SigningKeys) -> anyhow::Result<Self> {
        let ring = Self { keys, ring: RwLock::default() };
        let mut stored = ring.keys.store.all().await?;
        if ring.keys.keep(&stored).await? {
            stored = ring.keys.store.all().await?;
        }
        let mut pairs = HashMap::with_capacity(stored.len());
        for key in &stored {
            pairs.insert(key.kid.clone(), Arc::new(Pair::open(&ring.keys.sealer, &key.kid, &key.sealed)?));
        }
        tracing::info!(count = stored.len(), "signing keys loaded");
        ring.set(Ring { keys: stored, pairs });
        Ok(ring)
    }

    /// Does what is due and reads the keys again.
    pub(crate) async fn refresh(&self) -> Result<()> {
        let known = self.current();
        let mut stored = self.keys.store.all().await?;
        match self.keys.keep(&stored).await {
            Ok(true) => stored = self.keys.store.all().await?,
            Ok(false) => {}
            // What others changed is taken over all the same; what is due is done with the next look.
            Err(error) => tracing::warn!(%error, "cannot do what is due with the signing keys"),
        }
        let mut pairs = HashMap::with_capacity(stored.len());
        // A key that does not open, because another instance has another key at rest, must not keep this
        // one from noticing what was revoked.
        stored.retain(|key| {
            let pair = match known.pairs.get(&key.kid) {
                Some(pair) => Ok(pair.clone()),
                None => Pair::open(&self.keys.sealer, &key.kid, &key.sealed).map(Arc::new),
            };
            match pair {
                Ok(pair) => drop(pairs.insert(key.kid.clone(), pair)),
                Err(error) => {
                    tracing::error!(kid = key.kid, error = format!("{error:#}"), "signing key left out");
                    return false;
                }
            }
            true
        });
        self.set(Ring { keys: stored, pairs });
        Ok(())
    }

    /// The keys that verify now, or will.
    pub(crate) fn public(&self) -> Vec<PublicKey> {
        let (ring, now) = (self.current(), self.keys.clock.now_ms());
        let pairs = schedule::verifying(&ring.keys, now).filter_map(|key| ring.pairs.get(&key.kid));
        pairs.map(|pair| pair.public.clone()).collect()
    }

    /// The names of the keys that verify now, or will.
    pub(crate) fn names(&self) -> Vec<String> {
        let (ring, now) = (self.current(), self.keys.clock.now_ms());
        schedule::verifying(&ring.keys, now).map(|key| key.kid.clone()).collect()
    }

    /// Signs an access token.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String> {
        let (ring, now) = (self.current(), self.keys.clock.now_ms());
        let pair = schedule::signer(&ring.keys, now).and_then(|key| ring.pairs.get(&key.kid));
        pair.ok_or_else(|| Error::internal(anyhow::anyhow!("there is no signing key")))?.sign(claims)
    }

    fn current(&self) -> Arc<Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, ring: Ring) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
    }
}

#[cfg(test)]
pub(crate) mod tests;
