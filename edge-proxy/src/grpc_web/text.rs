//! The text form of a request: base64, in which each piece that a client flushed may be padded by itself.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{DecodeError, Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tonic::Status;

use crate::Body;

/// Four characters are up to three bytes, or the last of a piece.
const QUARTET: usize = 4;

/// The bytes of a body of base64.
pub(super) struct Decoded {
    inner: Body,
    /// Less than a quartet, between two frames.
    rest: BytesMut,
}

impl Decoded {
    pub(super) fn new(inner: Body) -> Self {
        Self { inner, rest: BytesMut::new() }
    }
}

impl http_body::Body for Decoded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                None if !self.rest.is_empty() => {
                    self.rest.clear();
                    return Poll::Ready(Some(Err(Status::invalid_argument("the base64 is cut off"))));
                }
                end => return Poll::Ready(end),
            };
            let Ok(data) = frame.into_data() else { continue };
            self.rest.extend_from_slice(&data);
            let whole = self.rest.len() / QUARTET * QUARTET;
            if whole > 0 {
                let decoded = decode(&self.rest.split_to(whole));
                let bytes = decoded.map_err(|_| Status::invalid_argument("the body is no base64"));
                return Poll::Ready(Some(bytes.map(Frame::data)));
            }
        }
    }
}

/// Pieces of base64, one after the other.
fn decode(mut quartets: &[u8]) -> Result<Bytes, DecodeError> {
    let mut decoded = Vec::with_capacity(quartets.len() / QUARTET * 3);
    while !quartets.is_empty() {
        let padded = quartets.chunks(QUARTET).position(|quartet| quartet.ends_with(b"="));
        let (piece, rest) = quartets.split_at(padded.map_or(quartets.len(), |at| (at + 1) * QUARTET));
        STANDARD.decode_vec(piece, &mut decoded)?;
        quartets = rest;
    }
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;

    use super::Decoded;
    use crate::Body;

    fn decoded(text: &[u8], sizes: &[usize]) -> Option<Bytes> {
        let mut rest = Bytes::copy_from_slice(text);
        let mut frames = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            frames.push(Ok::<_, Infallible>(Frame::data(rest.split_to((*size).min(rest.len())))));
        }
        let body = Decoded::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))));
        let collected = futures_util::FutureExt::now_or_never(body.collect()).unwrap();
        collected.ok().map(http_body_util::Collected::to_bytes)
    }

    proptest! {
        #[test]
        fn pieces_come_back_however_they_are_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6),
            sizes in prop::collection::vec(1_usize..9, 1..4),
        ) {
            let text: String = pieces.iter().map(|piece| STANDARD.encode(piece)).collect();
            prop_assert_eq!(decoded(text.as_bytes(), &sizes), Some(pieces.concat().into()));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A-Za-z0-9+/= -]{0,40}", size in 1_usize..9) {
            let _ = decoded(text.as_bytes(), &[size]);
        }
    }

    #[test]
    fn what_is_none_or_cut_off_is_refused() {
        for bad in ["AAA", "AAAA=", "A===", "AA=A", "!!!!", "AAAA AAA"] {
            assert_eq!(decoded(bad.as_bytes(), &[3]), None, "{bad}");
        }
    }
}
