//! Which key signs, which verify, and when the next one is due. Pure: keys and the time in, a decision out.

use service_kit::token::{LEEWAY, MAX_LIFETIME};

use super::SealedKey;

/// How long a key verifies after its successor began to sign: the life of the last token, what clocks may
/// differ, for how long a key set may be cached (`Jwks` in the contract), and a minute to spare.
pub(super) const RETIRED_MS: i64 = (MAX_LIFETIME + 2 * LEEWAY + 300 + 60) * 1_000;

/// How long keys live, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) rotate_after: i64,
    pub(super) publish_ahead: i64,
}

/// A key that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) generation: i64,
    pub(super) activates_at: i64,
}

/// The key that signs: the newest that has begun and is not revoked.
pub(super) fn signer(keys: &[SealedKey], now: i64) -> Option<&SealedKey> {
    let begun = good(keys).filter(|key| key.activates_at <= now).max_by_key(|key| key.generation);
    // The clock of the instance that made the only key may be ahead of ours.
    begun.or_else(|| good(keys).min_by_key(|key| key.generation))
}

/// The keys that verify, those that are still to begin included.
pub(super) fn verifying(keys: &[SealedKey], now: i64) -> impl Iterator<Item = &SealedKey> {
    good(keys).filter(move |key| !is_over(keys, key, now))
}

/// The keys that are of no use any more, revoked ones included. Never the newest.
pub(super) fn over(keys: &[SealedKey], now: i64) -> Vec<String> {
    keys.iter().filter(|key| is_over(keys, key, now)).map(|key| key.kid.clone()).collect()
}

/// The key that waits for its time, if there is one.
pub(super) fn waiting(keys: &[SealedKey], now: i64) -> Option<&SealedKey> {
    good(keys).find(|key| key.activates_at > now)
}

/// The key to make now, if it is time: the first one at once, each later one ahead of its use.
pub(super) fn due(keys: &[SealedKey], terms: Terms, now: i64) -> Option<Due> {
    let Some(newest) = good(keys).max_by_key(|key| key.generation) else {
        return Some(Due { generation: next_generation(keys), activates_at: now });
    };
    let due = newest.activates_at + terms.rotate_after - terms.publish_ahead <= now;
    due.then(|| next(keys, terms, now))
}

/// The key that follows all others.
pub(super) fn next(keys: &[SealedKey], terms: Terms, now: i64) -> Due {
    Due { generation: next_generation(keys), activates_at: now + terms.publish_ahead }
}

fn next_generation(keys: &[SealedKey]) -> i64 {
    keys.iter().map(|key| key.generation).max().unwrap_or(0) + 1
}

fn good(keys: &[SealedKey]) -> impl Iterator<Item = &SealedKey> {
    keys.iter().filter(|key| key.revoked_at.is_none())
}

/// Whether a key's successor has been signing for so long that no token of the key can be alive. A key that
/// was revoked succeeds to nobody: the one before it goes on.
fn is_over(keys: &[SealedKey], key: &SealedKey, now: i64) -> bool {
    let successor =
        good(keys).filter(|other| other.generation > key.generation).min_by_key(|other| other.generation);
    successor.is_some_and(|successor| successor.activates_at + RETIRED_MS <= now)
}
