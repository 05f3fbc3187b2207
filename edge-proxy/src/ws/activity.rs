//! When bytes last moved on a socket, in each direction.
//!
//! Messages are too coarse for that: half of a large message is a sign of life too.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// When bytes last moved, in milliseconds since the socket was opened.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    read: AtomicU64,
    written: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { opened: Instant::now(), read: AtomicU64::new(0), written: AtomicU64::new(0) })
    }

    /// When the peer last sent a byte; when the socket was opened if it never did.
    pub(crate) fn last_read(&self) -> Instant {
        self.opened + Duration::from_millis(self.read.load(Ordering::Relaxed))
    }

    /// When the peer last took a byte.
    pub(crate) fn last_written(&self) -> Instant {
        self.opened + Duration::from_millis(self.written.load(Ordering::Relaxed))
    }

    fn mark(&self, direction: &AtomicU64) {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        direction.store(since, Ordering::Relaxed);
    }
}

/// A socket that keeps its activity.
#[derive(Debug)]
pub(crate) struct Watched<I> {
    pub(crate) io: I,
    pub(crate) activity: Arc<Activity>,
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.activity.mark(&self.activity.read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.activity.mark(&self.activity.written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
