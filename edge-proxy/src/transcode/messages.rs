//! The messages of a stream of answers, one at a time out of their gRPC frames.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use service_kit::{Error, error::Result};
use tonic::Status;

use super::response::{MAX_ANSWER, check, transport};
use crate::{Body, body::broken, rescue};

/// A flag and a length stand before each message.
const HEAD: usize = 5;

/// What a service streams. Dropping it cancels the call.
#[derive(Debug)]
pub(super) struct Messages {
    body: Body,
    read: BytesMut,
    over: bool,
}

impl Messages {
    /// The stream of an answer; fails when an error came in its place.
    pub(super) fn of(answer: http::Response<Body>) -> Result<Self> {
        let (parts, body) = answer.into_parts();
        Status::from_header_map(&parts.headers).map_or(Ok(()), check)?;
        Ok(Self { body, read: BytesMut::new(), over: false })
    }

    /// The next message; `None` at the end, which also follows an error. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes>> {
        if self.over {
            return None;
        }
        let next = self.read().await;
        self.over = !matches!(next, Ok(Some(_)));
        if self.over {
            self.body = Body::empty();
        }
        next.transpose()
    }

    async fn read(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.unframe()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return Err(broken(Status::unavailable("a stream without a status")));
            };
            match frame.map_err(|status| rescue::of_status(transport(status)))?.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let missing = || broken(Status::unavailable("trailers without a status"));
                    check(Status::from_header_map(&trailers).ok_or_else(missing)?)?;
                    return Ok(None);
                }
            }
        }
    }

    /// A whole message, once it is there.
    fn unframe(&mut self) -> Result<Option<Bytes>> {
        let Some((head, _)) = self.read.split_first_chunk::<HEAD>() else { return Ok(None) };
        let [flag, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(Error::internal)?;
        if flag != 0 || length > MAX_ANSWER {
            let what = format!("a message of {length} bytes with flag {flag} cannot be read");
            return Err(Error::internal(anyhow::anyhow!(what)));
        }
        if self.read.len() < HEAD + length {
            self.read.reserve(HEAD + length - self.read.len());
            return Ok(None);
        }
        self.read.advance(HEAD);
        Ok(Some(self.read.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::HeaderMap;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use proptest::prelude::*;
    use service_kit::{Error, Kind};
    use tonic::Status;

    use super::Messages;
    use crate::Body;

    fn stream(pieces: Vec<Bytes>, status: Option<Status>) -> Messages {
        let mut frames: Vec<Result<Frame<Bytes>, Infallible>> =
            pieces.into_iter().map(|piece| Ok(Frame::data(piece))).collect();
        if let Some(status) = status {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            frames.push(Ok(Frame::trailers(trailers)));
        }
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Messages::of(http::Response::new(Body::new(body))).unwrap()
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let frame = |message: &Vec<u8>| {
            [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
        };
        messages.iter().flat_map(frame).collect()
    }

    proptest! {
        /// However the bytes are cut, the messages come out as they went in.
        #[test]
        fn messages_survive_any_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
            size in 1_usize..30,
        ) {
            let pieces = framed(&messages).chunks(size).map(Bytes::copy_from_slice).collect();
            let mut stream = stream(pieces, Some(Status::ok("")));
            let read = futures_util::FutureExt::now_or_never(async {
                let mut read = Vec::new();
                while let Some(message) = stream.next().await {
                    read.push(message.unwrap().to_vec());
                }
                read
            });
            prop_assert_eq!(read, Some(messages));
        }
    }

    #[tokio::test]
    async fn an_error_is_the_last_that_comes() {
        for (tail, status, kind) in [
            (&b""[..], Some(Error::not_found("thing").into()), Kind::NotFound),
            (b"", None, Kind::Unavailable),
            (&[1, 0, 0, 0, 0], Some(Status::ok("")), Kind::Internal),
            (&[0, 255, 255, 255, 255], Some(Status::ok("")), Kind::Internal),
        ] {
            let mut stream = stream(vec![framed(&[vec![7]]).into(), tail.into()], status);
            assert_eq!(stream.next().await.unwrap().unwrap(), &[7][..]);
            assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), kind);
            assert!(stream.next().await.is_none());
        }
    }
}
