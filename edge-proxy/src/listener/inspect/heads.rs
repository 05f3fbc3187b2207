//! Follows the requests of an HTTP/1.1 connection as far as to find their heads, and notes one that gives its
//! length twice: `Content-Length` and `Transfer-Encoding` (RFC 9112 §6.3, an attempt to smuggle).
//!
//! hyper forgets the first of the two before anybody sees it. What is not understood here ends the watch.

/// The longest head that is looked at; longer ones are refused.
const MAX_HEAD: usize = 64 * 1_024;

/// The requests of one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    state: State,
    /// What has come of a head.
    head: Vec<u8>,
    is_ambiguous: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Body(u64),
    Chunked(Chunk),
    /// Not followed any more: an upgrade, or what nobody understands.
    Blind,
}

#[derive(Debug, Clone, Copy)]
enum Chunk {
    /// The line with the size; the size so far.
    Size(u64),
    /// What follows the size on its line.
    Extension(u64),
    Data(u64),
    /// The end of the line behind the data.
    End,
    /// The trailers, and whether anything stands on this line.
    Trailer(bool),
}

/// What a head says of the body.
enum Framing {
    None,
    Length(u64),
    Chunked,
    Both,
    Unclear,
}

impl Heads {
    pub(super) fn is_ambiguous(&self) -> bool {
        self.is_ambiguous
    }

    /// Whether a request has begun and not ended, as far as the watch goes.
    pub(super) fn is_within(&self) -> bool {
        !self.head.is_empty() || matches!(self.state, State::Body(_) | State::Chunked(_))
    }

    /// Goes on with these bytes.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Blind => return,
                State::Head => bytes = self.head(bytes),
                State::Body(left) => {
                    let part = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= part as u64;
                    bytes = &bytes[part..];
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Chunked(chunk) => match chunk.see(bytes) {
                    Some((rest, false)) => bytes = rest,
                    Some((rest, true)) => (bytes, self.state) = (rest, State::Head),
                    None => self.state = State::Blind,
                },
            }
        }
    }

    /// Takes what belongs to the head under way; returns the rest.
    fn head<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [u8] {
        if self.head.is_empty() {
            // Empty lines before a request are skipped. Nothing else but a method begins one.
            let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            bytes = &bytes[blank..];
            if bytes.first().is_some_and(|byte| !byte.is_ascii_graphic()) {
                // A socket of a gateway, as a rule, which stays for weeks.
                (self.state, self.head) = (State::Blind, Vec::new());
                return &[];
            }
        }
        let from = self.head.len().saturating_sub(3);
        let known = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = end_of(&self.head[from..]).map(|end| from + end) else {
            if self.head.len() > MAX_HEAD {
                (self.state, self.head) = (State::Blind, Vec::new());
            }
            return &[];
        };
        self.state = match framing(&self.head[..end]) {
            Framing::None | Framing::Length(0) => State::Head,
            Framing::Length(length) => State::Body(length),
            Framing::Chunked => State::Chunked(Chunk::Size(0)),
            Framing::Unclear => State::Blind,
            Framing::Both => {
                self.is_ambiguous = true;
                State::Blind
            }
        };
        self.head.clear();
        // A connection that waits for long, or becomes a socket, keeps no buffer.
        self.head.shrink_to(1_024);
        &bytes[end - known..]
    }
}

/// Where a head ends: behind its first empty line.
fn end_of(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == b'\n') {
        let next = from + at + 1;
        match bytes.get(next..) {
            Some([b'\n', ..]) => return Some(next + 1),
            Some([b'\r', b'\n', ..]) => return Some(next + 2),
            _ => from = next,
        }
    }
    None
}

fn framing(head: &[u8]) -> Framing {
    let (mut length, mut is_chunked, mut is_clear) = (None, false, true);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            is_clear &= number.is_some() && length.is_none_or(|length| Some(length) == number);
            length = number.or(Some(0));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            is_chunked = true;
        }
    }
    match (length, is_chunked, is_clear) {
        (Some(_), true, _) => Framing::Both,
        (_, _, false) => Framing::Unclear,
        (Some(length), false, true) => Framing::Length(length),
        (None, true, true) => Framing::Chunked,
        (None, false, true) => Framing::None,
    }
}

impl Chunk {
    /// Goes on with these bytes: the rest, and whether the body has ended. `None` for what is no chunk.
    fn see<'b>(&mut self, bytes: &'b [u8]) -> Option<(&'b [u8], bool)> {
        let (first, rest) = bytes.split_first()?;
        *self = match *self {
            Self::Size(size) => match first {
                b'\r' => Self::Size(size),
                b'\n' => after_size(size),
                b';' | b' ' | b'\t' => Self::Extension(size),
                digit => {
                    let digit = char::from(*digit).to_digit(16)?;
                    Self::Size(size.checked_mul(16)?.checked_add(u64::from(digit))?)
                }
            },
            Self::Extension(size) if *first == b'\n' => after_size(size),
            Self::Extension(size) => Self::Extension(size),
            Self::Data(left) => {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - part as u64;
                *self = if left == 0 { Self::End } else { Self::Data(left) };
                return Some((&bytes[part..], false));
            }
            Self::End if *first == b'\n' => Self::Size(0),
            Self::End if *first == b'\r' => Self::End,
            Self::End => return None,
            Self::Trailer(false) if *first == b'\n' => return Some((rest, true)),
            Self::Trailer(_) if *first == b'\n' => Self::Trailer(false),
            Self::Trailer(filled) => Self::Trailer(filled || *first != b'\r'),
        };
        Some((rest, false))
    }
}

fn after_size(size: u64) -> Chunk {
    if size == 0 { Chunk::Trailer(false) } else { Chunk::Data(size) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Heads, State};

    const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";
    const POST: &str =
        "POST /a HTTP/1.1\r\nhost: a\r\nContent-Length: 33\r\n\r\ncontent-length: 3\r\n\r\ntransfer-enc";
    const CHUNKS: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\n\r\n\r\nx\r\n1A\r\n\
        content-length: 1\r\n\r\nabcde\r\n0\r\ncontent-length: 7\r\n\r\n";
    const BOTH: &str =
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nhost: a\r\nCONTENT-LENGTH : 3\r\n\r\n";

    fn seen(bytes: &[u8], size: usize) -> Heads {
        let mut heads = Heads::default();
        bytes.chunks(size).for_each(|piece| heads.see(piece));
        heads
    }

    #[test]
    fn bodies_are_followed_and_two_lengths_are_found_wherever_they_stand() {
        for size in [1, 2, 3, 7, 1_000] {
            let fine = [GET, POST, CHUNKS, "\r\n", GET, CHUNKS, POST].concat();
            let heads = seen(fine.as_bytes(), size);
            assert!(!heads.is_ambiguous && matches!(heads.state, State::Head), "{size}: {heads:?}");
            for before in [vec![], vec![GET], vec![POST, GET], vec![CHUNKS, POST, CHUNKS]] {
                let bytes = [before.concat(), BOTH.to_owned()].concat();
                assert!(seen(bytes.as_bytes(), size).is_ambiguous, "{size}: {bytes}");
            }
        }
    }

    #[test]
    fn bare_line_ends_hide_nothing() {
        let bare = [GET, BOTH].concat().replace("\r\n", "\n");
        assert!(seen(bare.as_bytes(), 5).is_ambiguous);
    }

    #[test]
    fn a_socket_is_left_alone_and_keeps_nothing() {
        let upgrade = "GET /ws HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
        let bytes = [upgrade.as_bytes(), &[0x81, 0x85, 1, 2, 3, 4], &[b'x'; 100_000]].concat();
        let heads = seen(&bytes, 1_000);
        assert!(matches!(heads.state, State::Blind) && heads.head.capacity() <= 2_048, "{heads:?}");
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..500), size in 1_usize..50) {
            seen(&bytes, size);
            seen(&[b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", &bytes[..]].concat(), size);
        }

        /// However the bytes come, the same is found.
        #[test]
        fn pieces_make_no_difference(order in proptest::collection::vec(0_usize..4, 0..8), size in 1_usize..40) {
            let text: String = order.iter().map(|at| [GET, POST, CHUNKS, BOTH][*at]).collect();
            let expected = order.contains(&3);
            prop_assert_eq!(seen(text.as_bytes(), size).is_ambiguous, expected);
        }
    }
}
