//! Ids, passed in: UUIDv7 as text, increasing within a process; and ids that follow from what they name.

use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use uuid::{Builder, ContextV7, Timestamp, Uuid};

use crate::Clock;

/// Makes ids. Clones share their counter.
#[derive(Debug, Clone)]
pub struct Ids {
    clock: Clock,
    context: Arc<Mutex<ContextV7>>,
}

impl Ids {
    /// Ids that carry the time of `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, context: Arc::new(Mutex::new(ContextV7::new())) }
    }

    /// The next id: a UUIDv7 in lower-case text.
    pub fn next(&self) -> String {
        let ms = u64::try_from(self.clock.now_ms()).unwrap_or(0);
        let nanos = u32::try_from(ms % 1_000).unwrap_or(0) * 1_000_000;
        Uuid::new_v7(Timestamp::from_unix(&*self.context, ms / 1_000, nanos)).to_string()
    }
}

/// The id that follows from `parts`: a UUIDv8 of their hash in lower-case text. Whoever names the same
/// thing, wherever and whenever, gets the same id.
pub fn derived(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With lengths: `ab`, `c` is not `a`, `bc`.
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// Whether `text` is an id in canonical form: a lower-case UUID with hyphens.
pub fn is_id(text: &str) -> bool {
    text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase()) && Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{Ids, derived, is_id};
    use crate::Clock;

    #[test]
    fn ids_increase_within_a_millisecond() {
        let ids = Ids::new(Clock::fixed(1_766_000_000_000));
        let made: Vec<String> = (0..1_000).map(|_| ids.next()).collect();
        assert!(made.is_sorted() && made.iter().all(|id| is_id(id)));
    }

    #[test]
    fn a_derived_id_follows_from_its_parts_and_their_bounds() {
        let id = derived(&["ab", "c"]);
        assert!(is_id(&id), "{id}");
        assert_eq!(id, derived(&["ab", "c"]));
        for other in [&["a", "bc"][..], &["abc"], &["ab", "c", ""], &["c", "ab"], &[]] {
            assert_ne!(id, derived(other), "{other:?}");
        }
    }

    #[test]
    fn only_canonical_uuids_are_ids() {
        for bad in [
            "",
            "x",
            "0198f0c5-0000-7000-8000-00000000000",
            "0198F0C5-0000-7000-8000-000000000000",
            "{0198f0c5-0000-7000-8000-000000000000}",
        ] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
