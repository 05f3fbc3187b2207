//! The gRPC codec of every method: protobuf with buffers that start small.
//!
//! tonic's own are 8 KiB in each direction of each call. A link of a gateway is a call that lasts for weeks, and a
//! platform has thousands of them.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// What a buffer has at first; it grows with the messages.
const INITIAL: usize = 256;
/// How much is gathered before it is sent, as in tonic.
const GATHERED: usize = 32 * 1024;

/// Protobuf with buffers that start small.
#[derive(Debug, Clone)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(INITIAL, GATHERED))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(INITIAL, GATHERED))
    }
}
