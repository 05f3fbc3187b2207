//! The frame around each message of gRPC and of Connect's streams: a flag, a length, the message.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// A flag and a length stand before each message.
pub(crate) const HEAD: usize = 5;

/// The message is compressed.
pub(crate) const COMPRESSED: u8 = 1;

/// The message ends a stream of Connect.
pub(crate) const END: u8 = 2;

/// A message that is larger than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// The next whole message and its flag, once it is there; one of more than `limit` bytes is not waited for.
pub(crate) fn take(buffer: &mut BytesMut, limit: usize) -> Result<Option<(u8, Bytes)>, TooLarge> {
    let Some((head, _)) = buffer.split_first_chunk::<HEAD>() else { return Ok(None) };
    let [flag, length @ ..] = *head;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| TooLarge)?;
    if length > limit {
        return Err(TooLarge);
    }
    if buffer.len() < HEAD + length {
        buffer.reserve(HEAD + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some((flag, buffer.split_to(length).freeze())))
}

/// A message in its frame; fails when it is of 4 GiB.
pub(crate) fn wrap(flag: u8, message: &[u8]) -> Result<Bytes, TooLarge> {
    let length = u32::try_from(message.len()).map_err(|_| TooLarge)?;
    let mut frame = BytesMut::with_capacity(HEAD + message.len());
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    Ok(frame.freeze())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::{TooLarge, take, wrap};

    #[test]
    fn a_message_of_the_limit_is_taken_and_a_larger_one_is_not_waited_for() {
        let mut whole = BytesMut::from(&wrap(0, b"1234").unwrap()[..]);
        assert_eq!(take(&mut whole, 4), Ok(Some((0, "1234".into()))));
        let mut begun = BytesMut::from(&[0, 0, 0, 0, 5][..]);
        assert_eq!(take(&mut begun, 4), Err(TooLarge));
    }

    proptest! {
        /// However the bytes are cut, the messages come out as they went in.
        #[test]
        fn messages_survive_any_cut(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
            size in 1_usize..30,
        ) {
            let bytes: Vec<u8> = messages.iter().flat_map(|(flag, text)| wrap(*flag, text).unwrap()).collect();
            let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some((flag, message)) = take(&mut buffer, 40).unwrap() {
                    read.push((flag, message.to_vec()));
                }
            }
            prop_assert_eq!(read, messages);
            prop_assert!(buffer.is_empty());
        }
    }
}
