//! The end of a connection whose client may still be sending (RFC 9112 §9.6): the kernel answers what comes after a
//! close with a reset, which can overtake the answer. So our side ends first, and what comes then is read and thrown
//! away, up to a bound of bytes and of time.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// The most that is thrown away.
const BYTES: usize = 16 * 1024 * 1024;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way of a connection to its end.
#[derive(Debug, Default)]
pub(super) enum Linger {
    /// Our side has not ended yet.
    #[default]
    Open,
    /// The client has so many bytes and so much time to end.
    Waiting {
        /// What may still be thrown away.
        rest: usize,
        /// When the connection is over anyway.
        until: Pin<Box<Sleep>>,
    },
    /// Nothing is waited for.
    Over,
}

impl Linger {
    /// Ends our side, then waits for the client to end. `owed` says whether it is in the middle of a request; who
    /// is not is waited for only if there is something from it already.
    pub(super) fn shut_down<I: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut I,
        owed: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Self::Open = self {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
            *self = match owed || matches!(read(io, cx), Poll::Ready(Ok(1..))) {
                true => Self::Waiting { rest: BYTES, until: Box::pin(sleep(PATIENCE)) },
                false => Self::Over,
            };
        }
        // The runtime sees to it that a fast client does not keep the others from their turn.
        while let Self::Waiting { rest, until } = self {
            if until.as_mut().poll(cx).is_pending()
                && let Ok(bytes @ 1..) = ready!(read(io, cx))
                && bytes < *rest
            {
                *rest -= bytes;
            } else {
                *self = Self::Over;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads some bytes, and forgets them.
fn read<I: AsyncRead + Unpin>(io: &mut I, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut space = [0; 16 * 1024];
    let mut buffer = ReadBuf::new(&mut space);
    ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        time::{Instant, sleep},
    };

    use super::{BYTES, Linger, PATIENCE};

    /// How long the end of a connection takes.
    async fn end(mut ours: DuplexStream, owed: bool) -> Duration {
        let (started, mut linger) = (Instant::now(), Linger::default());
        poll_fn(|cx| linger.shut_down(&mut ours, owed, cx)).await.unwrap();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_nothing_is_not_waited_for() {
        let (ours, _theirs) = duplex(100);
        assert_eq!(end(ours, false).await, Duration::ZERO);
        let (ours, _theirs) = duplex(100);
        assert_eq!(end(ours, true).await, PATIENCE);
        let (ours, mut theirs) = duplex(100);
        theirs.write_all(b"GET").await.unwrap();
        assert_eq!(end(ours, false).await, PATIENCE, "something has come that nobody read");
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_hears_the_end_first_and_decides() {
        let (ours, mut theirs) = duplex(100);
        let client = async {
            assert_eq!(theirs.read(&mut [0; 10]).await.unwrap(), 0);
            for _ in 0..3 {
                theirs.write_all(b"still sending").await.unwrap();
                sleep(Duration::from_secs(1)).await;
            }
            drop(theirs);
        };
        assert_eq!(tokio::join!(end(ours, true), client).0, Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_read_without_an_end() {
        let (ours, mut theirs) = duplex(64 * 1024);
        let client = async {
            let mut sent = 0;
            while let Ok(bytes) = theirs.write(&[7; 64 * 1024]).await {
                sent += bytes;
            }
            sent
        };
        let (took, sent) = tokio::join!(end(ours, true), client);
        assert_eq!(took, Duration::ZERO);
        assert!((BYTES..BYTES + 256 * 1024).contains(&sent), "{sent}");
    }
}
