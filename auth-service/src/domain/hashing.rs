//! Password hashes: argon2id, off the async runtime, as many at once as there are cores, behind a short
//! queue. More than that is refused at once: a flood of logins must not eat the memory.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use argon2::{
    Argon2, Params, PasswordHasher as _, PasswordVerifier as _,
    password_hash::phc::{Output, PasswordHash, Salt},
};
use service_kit::{Error, Kind, Result, opaque::random};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::password::Password;
use crate::config::PasswordConfig;

/// The most memory that a stored hash may ask for, in KiB (512 MiB).
pub(crate) const MAX_MEMORY_KIB: u32 = 512 * 1024;
/// The most passes that a stored hash may ask for.
pub(crate) const MAX_ITERATIONS: u32 = 10;
/// The most lanes that a stored hash may ask for.
pub(crate) const MAX_PARALLELISM: u32 = 16;

/// How many may wait for each one that is hashed.
const QUEUE_PER_CORE: usize = 4;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Hashes passwords and checks them.
#[derive(Debug)]
pub(crate) struct Hasher {
    params: Params,
    /// Nobody's hash: checked when there is no account, so that a miss takes as long as a hit.
    dummy: String,
    places: Arc<Semaphore>,
    cores: Arc<Semaphore>,
}

/// A place in the queue: whoever holds one will be served.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

/// What a check of a password found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is not the password.
    Wrong,
    /// It is.
    Right,
    /// It is, and its hash has other parameters than today's: hash it again.
    RightButOutdated,
}

impl Hasher {
    /// A hasher with a place for each core and four waiting behind it.
    pub(crate) fn new(config: &PasswordConfig) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with_cores(config, cores)
    }

    fn with_cores(config: &PasswordConfig, cores: usize) -> anyhow::Result<Self> {
        let params = Params::new(config.memory_kib, config.iterations, config.parallelism, None)
            .map_err(|error| anyhow::anyhow!("[password]: {error}"))?;
        let dummy = PasswordHash {
            algorithm: argon2::ARGON2ID_IDENT,
            version: Some(argon2::Version::V0x13.into()),
            params: (&params).try_into().map_err(|error| anyhow::anyhow!("[password]: {error}"))?,
            salt: Some(Salt::new(&random::<16>()).context("a salt of 16 bytes")?),
            hash: Some(Output::new(&random::<32>()).context("a tag of 32 bytes")?),
        };
        Ok(Self {
            params,
            dummy: dummy.to_string(),
            places: Arc::new(Semaphore::new(cores * (1 + QUEUE_PER_CORE))),
            cores: Arc::new(Semaphore::new(cores)),
        })
    }

    /// Takes a place in the queue. RESOURCE_EXHAUSTED when it is full.
    pub(crate) fn place(&self) -> Result<Place> {
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => Err(Error::new(
                Kind::ResourceExhausted,
                "BUSY",
                "too many sign-ups and logins at once; try again",
            )
            .retry_after(RETRY_AFTER)),
        }
    }

    /// The hash of a password, as a PHC string.
    pub(crate) async fn hash(&self, _place: &Place, password: &Password) -> Result<String> {
        let (password, params) = (password.clone(), self.params.clone());
        self.run(move || {
            let hash = Argon2::from(params).hash_password(password.as_bytes());
            hash.map(|hash| hash.to_string()).map_err(|error| Error::internal(anyhow::anyhow!("{error}")))
        })
        .await?
    }

    /// Checks a password against a stored hash, or against nobody's.
    pub(crate) async fn verify(
        &self,
        _place: &Place,
        password: &Password,
        stored: Option<&str>,
    ) -> Result<Verdict> {
        let hash = stored.and_then(|stored| match readable(stored) {
            Ok(hash) => Some(hash),
            Err(reason) => {
                tracing::error!(reason, "a stored password hash cannot be used");
                None
            }
        });
        let found = hash.is_some();
        let hash = match hash {
            Some(hash) => hash,
            None => readable(&self.dummy).map_err(|reason| Error::internal(anyhow::anyhow!(reason)))?,
        };
        let outdated = Params::try_from(&hash).ok().is_none_or(|stored| !self.is_current(&stored));
        let password = password.clone();
        let matches =
            self.run(move || Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()).await?;
        Ok(match (found && matches, outdated) {
            (false, _) => Verdict::Wrong,
            (true, false) => Verdict::Right,
            (true, true) => Verdict::RightButOutdated,
        })
    }

    fn is_current(&self, stored: &Params) -> bool {
        let costs = |params: &Params| (params.m_cost(), params.t_cost(), params.p_cost());
        costs(stored) == costs(&self.params)
    }

    /// Runs on a blocking thread, one for each core. The core stays taken until the work is done, even
    /// when the caller has gone.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let core = self.cores.clone().acquire_owned().await.map_err(Error::internal)?;
        let work = move || {
            let result = work();
            drop(core);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(Error::internal)
    }
}

/// A stored hash, if it is argon2id within the bounds: a forged row must not eat the memory.
fn readable(stored: &str) -> Result<PasswordHash, &'static str> {
    let hash = PasswordHash::new(stored).map_err(|_| "it is not a PHC string")?;
    let params = Params::try_from(&hash).map_err(|_| "its parameters cannot be read")?;
    if hash.algorithm != argon2::ARGON2ID_IDENT {
        return Err("it is not argon2id");
    }
    if params.m_cost() > MAX_MEMORY_KIB
        || params.t_cost() > MAX_ITERATIONS
        || params.p_cost() > MAX_PARALLELISM
    {
        return Err("its parameters are out of bounds");
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use secrecy::SecretString;
    use service_kit::{Kind, field::Checks};

    use super::{Hasher, Verdict, readable};
    use crate::{config::PasswordConfig, domain::password::Password};

    const COSTS: PasswordConfig = PasswordConfig {
        min_length: 8,
        blocklist_file: PathBuf::new(),
        memory_kib: 64,
        iterations: 1,
        parallelism: 1,
    };

    fn password(text: &str) -> Password {
        Password::check_login(&mut Checks::new(), &SecretString::from(text))
    }

    #[tokio::test]
    async fn right_wrong_nobody_and_outdated() {
        let hasher = Hasher::with_cores(&COSTS, 1).unwrap();
        let place = hasher.place().unwrap();
        let hash = hasher.hash(&place, &password("ångström-1")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        let verify = async |hasher: &Hasher, text: &str, stored: Option<&str>| {
            hasher.verify(&place, &password(text), stored).await.unwrap()
        };
        // The same word typed with combining characters.
        assert_eq!(verify(&hasher, "a\u{30a}ngstro\u{308}m-1", Some(&hash)).await, Verdict::Right);
        assert_eq!(verify(&hasher, "angstrom-1", Some(&hash)).await, Verdict::Wrong);
        assert_eq!(verify(&hasher, "ångström-1", None).await, Verdict::Wrong);
        assert_eq!(verify(&hasher, "ångström-1", Some("$2b$12$x")).await, Verdict::Wrong);
        let dearer = Hasher::with_cores(&PasswordConfig { memory_kib: 128, ..COSTS }, 1).unwrap();
        assert_eq!(verify(&dearer, "ångström-1", Some(&hash)).await, Verdict::RightButOutdated);
    }

    #[tokio::test]
    async fn two_hashes_of_one_password_differ() {
        let hasher = Hasher::with_cores(&COSTS, 1).unwrap();
        let place = hasher.place().unwrap();
        let one = hasher.hash(&place, &password("same-word")).await.unwrap();
        assert_ne!(one, hasher.hash(&place, &password("same-word")).await.unwrap());
    }

    #[test]
    fn the_queue_is_bounded() {
        let hasher = Hasher::with_cores(&COSTS, 2).unwrap();
        let mut places: Vec<_> = (0..10).map(|_| hasher.place().unwrap()).collect();
        assert_eq!(hasher.place().unwrap_err().kind(), Kind::ResourceExhausted);
        places.pop();
        assert!(hasher.place().is_ok());
    }

    #[test]
    fn stored_parameters_are_bounded() {
        let with = |algorithm: &str, costs: &str| {
            readable(&format!(
                "${algorithm}$v=19${costs}$AAECAwQFBgcICQoLDA0ODw$AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
            ))
            .is_ok()
        };
        assert!(with("argon2id", "m=524288,t=10,p=16"));
        for costs in ["m=524289,t=2,p=1", "m=19456,t=11,p=1", "m=19456,t=2,p=17"] {
            assert!(!with("argon2id", costs), "{costs}");
        }
        assert!(!with("argon2i", "m=19456,t=2,p=1"));
    }
}
