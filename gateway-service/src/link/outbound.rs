//! The outgoing half of a connection: a bounded queue between the platform and one peer.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::Stream;
use proto::gateway::{PlatformFrame, platform_frame::Frame};
use service_kit::Error;
use tokio::sync::{Notify, mpsc};

/// How many frames may wait for one peer.
pub(super) const CAPACITY: usize = 64;

/// What goes out: a frame, or the error with which the connection ends.
pub(super) type Outgoing = Result<PlatformFrame, Error>;

/// Says when a peer that was too slow has caught up.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    stuck: AtomicBool,
    drained: Notify,
}

impl Backlog {
    /// The queue was full.
    pub(super) fn set_stuck(&self) {
        self.stuck.store(true, Ordering::SeqCst);
    }

    /// Completes when the queue has room again after it was full.
    pub(super) async fn drained(&self) {
        self.drained.notified().await;
    }

    fn room(&self) {
        if self.stuck.swap(false, Ordering::SeqCst) {
            self.drained.notify_one();
        }
    }
}

/// The frames for one peer, for the transport to send. Ends after a `Close` or an error.
#[derive(Debug)]
pub(crate) struct Outbound {
    queue: mpsc::Receiver<Outgoing>,
    backlog: Arc<Backlog>,
    over: bool,
}

impl Outbound {
    /// A queue: its sending end, its state, its receiving end.
    pub(super) fn new() -> (mpsc::Sender<Outgoing>, Arc<Backlog>, Self) {
        let (sender, queue) = mpsc::channel(CAPACITY);
        let backlog = Arc::new(Backlog::default());
        (sender, backlog.clone(), Self { queue, backlog, over: false })
    }
}

impl Stream for Outbound {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if self.over {
            self.queue.close();
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.queue.poll_recv(cx));
        if self.queue.len() <= CAPACITY / 2 {
            self.backlog.room();
        }
        self.over = match &item {
            Some(Ok(frame)) => matches!(frame.frame, Some(Frame::Close(_))),
            Some(Err(_)) | None => true,
        };
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use proto::gateway::{Close, PlatformFrame, platform_frame::Frame};

    use super::{CAPACITY, Outbound};

    #[tokio::test]
    async fn nothing_follows_a_close() {
        let (sender, _backlog, mut outbound) = Outbound::new();
        let close = PlatformFrame { frame: Some(Frame::Close(Close { code: 1012, reason: String::new() })) };
        for frame in [PlatformFrame::default(), close, PlatformFrame::default()] {
            sender.try_send(Ok(frame)).unwrap();
        }
        assert_eq!(outbound.by_ref().count().await, 2);
        assert!(outbound.next().await.is_none() && sender.is_closed());
    }

    #[tokio::test]
    async fn room_is_told_once_half_of_a_full_queue_is_gone() {
        let (sender, backlog, mut outbound) = Outbound::new();
        while sender.try_send(Ok(PlatformFrame::default())).is_ok() {}
        backlog.set_stuck();
        let told = async || tokio::time::timeout(Duration::ZERO, backlog.drained()).await.is_ok();
        outbound.next().await;
        assert!(!told().await);
        for _ in 1..CAPACITY / 2 {
            outbound.next().await;
        }
        assert!(told().await);
        assert!(!told().await);
    }
}
