//! Ids, passed in: UUIDv7 as text, increasing within a process.

use std::sync::{Arc, Mutex};

use uuid::{ContextV7, Timestamp, Uuid};

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

/// Whether `text` is an id in canonical form: a lower-case UUID with hyphens.
pub fn is_id(text: &str) -> bool {
    text.len() == 36 && !text.bytes().any(|byte| byte.is_ascii_uppercase()) && Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{Ids, is_id};
    use crate::Clock;

    #[test]
    fn ids_increase_within_a_millisecond() {
        let ids = Ids::new(Clock::fixed(1_766_000_000_000));
        let made: Vec<String> = (0..1_000).map(|_| ids.next()).collect();
        assert!(made.is_sorted() && made.iter().all(|id| is_id(id)));
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
