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

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
        Self { io, watch: Watch::Preface(0), ambiguous, linger: Linger::default() }
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
