//! Looks over the bytes of a connection on their way to hyper, for what hyper does not say or does not bound:
//! two lengths in one head of HTTP/1.1, and floods of HTTP/2 frames that cost their sender nothing.
//!
//! It changes nothing and decides nothing but to end a connection. What it cannot follow it leaves alone: hyper
//! refuses that, or reads it safely.

mod frames;
mod heads;

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use frames::Frames;
use heads::Heads;

use super::linger::Linger;

/// How HTTP/2 begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a head with two lengths has come over a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ambiguous(Arc<AtomicBool>);

impl Ambiguous {
    pub(crate) fn was_seen(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection whose bytes are looked over.
#[derive(Debug)]
pub(super) struct Inspected<I> {
    io: I,
    /// What was read to know the protocol, for whoever reads next.
    begun: Bytes,
    watch: Watch,
    ambiguous: Ambiguous,
    linger: Linger,
}

#[derive(Debug)]
enum Watch {
    /// So many bytes of the preface of HTTP/2 have come, and nothing else.
    Preface(usize),
    Heads(Heads),
    Frames(Frames),
}

impl<I> Inspected<I> {
    pub(super) fn new(io: I, ambiguous: Ambiguous) -> Self {
        Self { io, begun: Bytes::new(), watch: Watch::Preface(0), ambiguous, linger: Linger::default() }
    }

    /// Whether a connection begins as one of HTTP/2. Nothing of it is lost for whoever reads it.
    pub(super) async fn is_http2(&mut self) -> io::Result<bool>
    where
        I: AsyncRead + Unpin,
    {
        let mut begun = BytesMut::with_capacity(PREFACE.len());
        while let Watch::Preface(seen) = self.watch {
            let mut part = (&mut self.io).take((PREFACE.len() - seen) as u64);
            if part.read_buf(&mut begun).await? == 0 {
                break;
            }
            self.see(&begun[seen..])?;
        }
        self.begun = begun.freeze();
        Ok(matches!(self.watch, Watch::Frames(_)))
    }

    fn see(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Watch::Preface(seen) = self.watch {
            let same = PREFACE[seen..].iter().zip(bytes).take_while(|(a, b)| a == b).count();
            let seen = seen + same;
            if seen == PREFACE.len() {
                self.watch = Watch::Frames(Frames::default());
            } else if same == bytes.len() {
                self.watch = Watch::Preface(seen);
                return Ok(());
            } else {
                let mut heads = Heads::default();
                heads.see(&PREFACE[..seen]);
                self.watch = Watch::Heads(heads);
            }
            bytes = &bytes[same..];
        }
        match &mut self.watch {
            Watch::Preface(_) => Ok(()),
            Watch::Heads(heads) => {
                heads.see(bytes);
                if heads.is_ambiguous() {
                    self.ambiguous.0.store(true, Ordering::Relaxed);
                }
                Ok(())
            }
            Watch::Frames(frames) => frames.see(bytes).map_err(|flood| {
                metrics::counter!("tollgate_edge_connections_cut_total", "why" => flood).increment(1);
                io::Error::new(io::ErrorKind::InvalidData, format!("a flood of {flood}"))
            }),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Inspected<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.begun.is_empty() {
            let part = self.begun.len().min(buffer.remaining());
            buffer.put_slice(&self.begun.split_to(part));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        Poll::Ready(self.see(&buffer.filled()[before..]))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Inspected<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Watch::Heads(heads) = &this.watch else { return Pin::new(&mut this.io).poll_shutdown(cx) };
        let owed = heads.is_within();
        this.linger.shut_down(&mut this.io, owed, cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::{Ambiguous, Inspected, PREFACE};

    /// What is taken for HTTP/2 of bytes that come in pieces of a size, and what is read then.
    async fn read(bytes: &[u8], size: usize) -> (bool, Vec<u8>) {
        let (mut near, far) = duplex(1);
        let mut stream = Inspected::new(far, Ambiguous::default());
        let writing = async {
            for piece in bytes.chunks(size) {
                near.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(near);
        };
        let reading = async {
            let is_http2 = stream.is_http2().await.unwrap();
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            (is_http2, read)
        };
        tokio::join!(writing, reading).1
    }

    #[tokio::test]
    async fn the_first_bytes_tell_the_protocol_and_none_is_lost() {
        let with_frame = [&PREFACE[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        for size in [1, 3, 23, 24, 100] {
            assert_eq!(read(&with_frame, size).await, (true, with_frame.clone()));
            let ones = [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/1.1\r\n\r\n", b"PRI", b"", b"\x16\x03"];
            for one in ones {
                assert_eq!(read(one, size).await, (false, one.to_vec()));
            }
        }
    }
}
