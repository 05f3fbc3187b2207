//! The outgoing half of a connection: a queue between the platform and one peer, bounded in frames and in bytes.
//!
//! An idle queue is small: a platform has thousands of them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::Stream;
use prost::Message as _;
use proto::gateway::{PlatformFrame, platform_frame::Frame};
use service_kit::Error;
use tokio::sync::{Notify, mpsc};

/// How many frames may wait for one peer.
const CAPACITY: usize = 64;

/// How many bytes may wait for one peer before nothing more is taken. The last frame may go beyond it, however large
/// it is: else it would never be sent.
const MAX_BYTES: usize = 1024 * 1024;

/// What goes out: a frame, or the error with which the connection ends.
pub(super) type Outgoing = Result<PlatformFrame, Error>;

/// What waits. The connections of a gateway share a frame until it is written; there is room for 32 of these in an
/// empty queue already.
type Item = Result<Arc<PlatformFrame>, Box<Error>>;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is in the queue.
    Queued,
    /// The queue is full.
    Full,
    /// The peer is gone.
    Gone,
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Queue {
    items: mpsc::Sender<Item>,
    state: Arc<State>,
}

/// The frames for one peer, for the transport to send. Ends after a `Close` or an error.
#[derive(Debug)]
pub(crate) struct Outbound {
    items: mpsc::Receiver<Item>,
    state: Arc<State>,
    over: bool,
}

/// What both ends know.
#[derive(Debug, Default)]
struct State {
    /// How much waits.
    bytes: AtomicUsize,
    /// The newest revision of an event that the transport has taken.
    taken: AtomicI64,
    /// Whether somebody waits for room.
    stuck: AtomicBool,
    drained: Notify,
}

/// A frame for any number of queues.
pub(super) fn framed(frame: Frame) -> Arc<PlatformFrame> {
    Arc::new(PlatformFrame { frame: Some(frame) })
}

impl Queue {
    /// How many frames may be queued now.
    pub(super) fn capacity(&self) -> usize {
        if self.room() == 0 { 0 } else { self.items.capacity() }
    }

    /// How many bytes may be queued now.
    pub(super) fn room(&self) -> usize {
        MAX_BYTES.saturating_sub(self.state.bytes.load(Ordering::SeqCst))
    }

    /// Queues a frame without waiting.
    pub(super) fn offer(&self, frame: &Arc<PlatformFrame>) -> Offered {
        if self.is_closed() {
            return Offered::Gone;
        }
        if self.capacity() == 0 {
            return Offered::Full;
        }
        let bytes = self.add(frame);
        let outcome = match self.items.try_send(Ok(frame.clone())) {
            Ok(()) => return Offered::Queued,
            Err(mpsc::error::TrySendError::Full(_)) => Offered::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => Offered::Gone,
        };
        self.state.bytes.fetch_sub(bytes, Ordering::SeqCst);
        outcome
    }

    /// Queues the last frame, or the error with which the connection ends; waits for a place.
    pub(super) async fn end(&self, last: Outgoing) {
        let item = last.map(Arc::new).map_err(Box::new);
        if let Ok(frame) = &item {
            self.add(frame);
        }
        // A peer that is gone need not be told.
        let _ = self.items.send(item).await;
    }

    /// The queue was full.
    pub(super) fn set_stuck(&self) {
        self.state.stuck.store(true, Ordering::SeqCst);
    }

    /// Completes when the queue has room again after it was full.
    pub(super) async fn drained(&self) {
        self.state.drained.notified().await;
    }

    /// The newest revision of an event that has left the queue.
    pub(super) fn taken(&self) -> i64 {
        self.state.taken.load(Ordering::SeqCst)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    /// Completes when the peer is gone.
    pub(super) async fn closed(&self) {
        self.items.closed().await;
    }

    /// Counted before it is queued: it may be taken at once.
    fn add(&self, frame: &PlatformFrame) -> usize {
        let bytes = frame.encoded_len();
        self.state.bytes.fetch_add(bytes, Ordering::SeqCst);
        bytes
    }
}

impl State {
    /// A frame has left the queue.
    fn remove(&self, frame: &PlatformFrame) {
        self.bytes.fetch_sub(frame.encoded_len(), Ordering::SeqCst);
        if let Some(Frame::Event(event)) = &frame.frame {
            self.taken.fetch_max(i64::try_from(event.revision).unwrap_or(0), Ordering::SeqCst);
        }
    }

    fn tell_room(&self) {
        if self.stuck.swap(false, Ordering::SeqCst) {
            self.drained.notify_one();
        }
    }
}

impl Outbound {
    /// A queue: its sending end and its receiving end.
    pub(super) fn new() -> (Queue, Self) {
        let (sender, items) = mpsc::channel(CAPACITY);
        let state = Arc::new(State::default());
        (Queue { items: sender, state: state.clone() }, Self { items, state, over: false })
    }
}

impl Stream for Outbound {
    type Item = Outgoing;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outgoing>> {
        if self.over {
            self.items.close();
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.items.poll_recv(cx));
        if let Some(Ok(frame)) = &item {
            self.state.remove(frame);
        }
        if self.items.len() <= CAPACITY / 2 && self.state.bytes.load(Ordering::SeqCst) <= MAX_BYTES / 2 {
            self.state.tell_room();
        }
        self.over = match &item {
            Some(Ok(frame)) => matches!(frame.frame, Some(Frame::Close(_))),
            Some(Err(_)) | None => true,
        };
        // Only what is being written is copied, and only when others still wait to write it.
        Poll::Ready(item.map(|item| item.map(Arc::unwrap_or_clone).map_err(|error| *error)))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use futures_util::StreamExt as _;
    use proto::gateway::{Close, Event, PlatformFrame, platform_frame::Frame};

    use super::{CAPACITY, Item, MAX_BYTES, Offered, Outbound, Queue, framed};

    fn event(revision: u64, bytes: usize) -> Arc<PlatformFrame> {
        framed(Frame::Event(Event { revision, payload_json: "x".repeat(bytes), ..Event::default() }))
    }

    async fn told(queue: &Queue) -> bool {
        tokio::time::timeout(Duration::ZERO, queue.drained()).await.is_ok()
    }

    #[tokio::test]
    async fn nothing_follows_a_close() {
        let (queue, mut outbound) = Outbound::new();
        let close = framed(Frame::Close(Close { code: 1012, reason: String::new() }));
        for frame in [event(1, 1), close, event(2, 1)] {
            assert_eq!(queue.offer(&frame), Offered::Queued);
        }
        assert_eq!(outbound.by_ref().count().await, 2);
        assert!(outbound.next().await.is_none() && queue.is_closed());
        assert_eq!(queue.offer(&event(3, 1)), Offered::Gone);
        assert_eq!(queue.taken(), 1);
    }

    #[tokio::test]
    async fn room_is_told_once_half_of_a_full_queue_is_gone() {
        let (queue, mut outbound) = Outbound::new();
        while queue.offer(&event(1, 1)) == Offered::Queued {}
        assert_eq!(queue.capacity(), 0);
        queue.set_stuck();
        outbound.next().await;
        assert!(!told(&queue).await);
        for _ in 1..CAPACITY / 2 {
            outbound.next().await;
        }
        assert!(told(&queue).await);
        assert!(!told(&queue).await);
    }

    #[tokio::test]
    async fn bytes_fill_a_queue_and_one_frame_always_fits() {
        let (queue, mut outbound) = Outbound::new();
        assert_eq!(queue.offer(&event(1, 4 * MAX_BYTES)), Offered::Queued, "larger than all of it");
        assert_eq!((queue.capacity(), queue.offer(&event(2, 1))), (0, Offered::Full));
        queue.set_stuck();
        outbound.next().await;
        assert!(told(&queue).await);
        assert_eq!(queue.room(), MAX_BYTES, "nothing is left of it");

        let mut count = 0;
        while queue.offer(&event(3, MAX_BYTES / 8)) == Offered::Queued {
            count += 1;
        }
        assert_eq!(count, 8, "at most one frame goes beyond");
        queue.set_stuck();
        for _ in 0..4 {
            outbound.next().await;
            assert!(!told(&queue).await);
        }
        outbound.next().await;
        assert!(told(&queue).await);
    }

    #[tokio::test]
    async fn connections_share_a_frame_until_it_is_written() {
        let frame = event(7, 1_000);
        let queues: Vec<_> = (0..10).map(|_| Outbound::new()).collect();
        for (queue, _) in &queues {
            queue.offer(&frame);
        }
        assert_eq!(Arc::strong_count(&frame), 11);
        for (queue, mut outbound) in queues {
            assert_eq!(outbound.next().await.unwrap().unwrap(), *frame);
            assert_eq!(queue.taken(), 7);
        }
        // The slots of an idle queue are allocated before anything is in it.
        assert!(size_of::<Item>() <= 16);
    }
}
