//! What a gateway has provably read: its answer to a ping that was written after it.
//!
//! Controllers answer pings in the loop that performs events, one after the other: the answer to a ping says that they
//! are done with everything before it. A ping says up to which revision that is, so nothing needs to be remembered of
//! it, and a pong that answers no ping of this socket proves nothing.

use bytes::Bytes;
use service_kit::opaque;

/// What was written to one socket, and what of it is proven to be read.
#[derive(Debug)]
pub(super) struct Proof {
    /// In each ping: nobody has it from elsewhere.
    mark: [u8; 8],
    written: u64,
    read: u64,
}

impl Proof {
    /// Nothing was written.
    pub(super) fn new() -> Self {
        Self { mark: opaque::random(), written: 0, read: 0 }
    }

    /// An event was given to the socket; what is given later is written later.
    pub(super) fn wrote(&mut self, revision: u64) {
        self.written = self.written.max(revision);
    }

    /// What the next ping holds: nothing when nothing is to be proven.
    pub(super) fn ping(&self) -> Bytes {
        if self.read == self.written {
            return Bytes::new();
        }
        [self.mark, self.written.to_be_bytes()].concat().into()
    }

    /// Up to which revision a pong proves that everything was read, if that is news.
    pub(super) fn pong(&mut self, payload: &[u8]) -> Option<u64> {
        let revision = u64::from_be_bytes(payload.strip_prefix(&self.mark)?.try_into().ok()?);
        // More than was written it cannot prove.
        if revision <= self.read || revision > self.written {
            return None;
        }
        self.read = revision;
        Some(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::Proof;

    #[test]
    fn only_the_answer_to_a_ping_proves_what_was_written_before_it() {
        let mut proof = Proof::new();
        assert!(proof.ping().is_empty());
        assert_eq!(proof.pong(b""), None);
        proof.wrote(7);
        proof.wrote(3);
        let first = proof.ping();
        proof.wrote(9);
        let second = proof.ping();
        for odd in [&b""[..], b"odd", &first[..15], &[&first[..], b"x"].concat(), &Proof::new().ping()] {
            assert_eq!(proof.pong(odd), None);
        }
        let ahead = [&first[..8], &10_u64.to_be_bytes()].concat();
        assert_eq!(proof.pong(&ahead), None);
        assert_eq!(proof.pong(&first), Some(7));
        assert_eq!(proof.pong(&first), None, "no news");
        // Only the newest of several pings need be answered.
        assert_eq!((proof.pong(&second), proof.pong(&first)), (Some(9), None));
        assert!(proof.ping().is_empty());
    }
}
