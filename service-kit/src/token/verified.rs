//! Tokens that verified before: a signature is checked once.

use std::{
    fmt,
    hash::{BuildHasher, DefaultHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use super::{Claims, MAX_LIFETIME};

/// How many are remembered.
const CAPACITY: u64 = 20_000;

/// A token that verified.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    pub(super) claims: Arc<Claims>,
    /// The key that it verified with.
    pub(super) kid: Arc<str>,
}

/// The tokens that verified, by their text.
pub(super) struct Cache(moka::sync::Cache<Arc<str>, Verified, Ends>);

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("count", &self.0.entry_count()).finish()
    }
}

impl Default for Cache {
    fn default() -> Self {
        let builder = moka::sync::Cache::builder()
            .max_capacity(CAPACITY)
            .time_to_live(Duration::from_secs(MAX_LIFETIME.unsigned_abs()));
        Self(builder.build_with_hasher(Ends::default()))
    }
}

impl Cache {
    pub(super) fn count(&self) -> u64 {
        self.0.entry_count()
    }

    pub(super) fn get(&self, token: &str) -> Option<Verified> {
        self.0.get(token)
    }

    pub(super) fn insert(&self, token: &str, verified: Verified) {
        self.0.insert(Arc::from(token), verified);
    }
}

/// Hashes the end of a token only: that is its signature, which differs from token to token as much as
/// any hash. Nobody chooses it: what is in the cache was signed by us. Equality looks at all of it.
#[derive(Default, Clone)]
struct Ends(RandomState);

struct End(DefaultHasher);

impl BuildHasher for Ends {
    type Hasher = End;

    fn build_hasher(&self) -> End {
        End(self.0.build_hasher())
    }
}

impl Hasher for End {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(&bytes[bytes.len().saturating_sub(24)..]);
    }

    fn write_u8(&mut self, _: u8) {
        // The end of a text: there is one text in each key.
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}
