//! Request bodies that become gRPC while they are passed on: nothing is read before a call is admitted.
//!
//! A body has no way to say why it fails but by failing; the reason goes to the answer by a channel.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::sync::oneshot;
use tonic::Status;

use crate::{Body, rescue::Refusal};

/// How what was read becomes gRPC frames.
pub(crate) trait Translate: Send + Unpin + 'static {
    /// The next frame out of what has been read; `None` when more is needed.
    fn next(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal>;

    /// What is left when the body has ended.
    fn end(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, Refusal>;
}

/// A body on its way through a translation.
pub(crate) struct Translated<T> {
    inner: Body,
    read: BytesMut,
    translate: T,
    over: bool,
    fault: Option<oneshot::Sender<Refusal>>,
}

/// Where a body says why it failed.
pub(crate) struct Fault(oneshot::Receiver<Refusal>);

impl Fault {
    /// What went wrong with the body, if something did. The answer to such a call says only that it broke.
    pub(crate) fn take(&mut self) -> Option<Refusal> {
        self.0.try_recv().ok()
    }

    /// The answer, or why there is none.
    pub(crate) fn or<R>(&mut self, answer: Result<R, Refusal>) -> Result<R, Refusal> {
        answer.map_err(|refusal| self.take().unwrap_or(refusal))
    }
}

/// Puts a translation before a body.
pub(crate) fn translated<T: Translate>(inner: Body, translate: T) -> (Body, Fault) {
    let (sender, receiver) = oneshot::channel();
    let body = Translated { inner, read: BytesMut::new(), translate, over: false, fault: Some(sender) };
    (Body::new(body), Fault(receiver))
}

impl<T: Translate> Translated<T> {
    fn fail(&mut self, refusal: Refusal) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.over = true;
        self.inner = Body::empty();
        self.read.clear();
        if let Some(sender) = self.fault.take() {
            // Nobody listens when the call is over already.
            let _ = sender.send(refusal);
        }
        Poll::Ready(Some(Err(Status::cancelled("the request cannot be read"))))
    }
}

impl<T: Translate> http_body::Body for Translated<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            match this.translate.next(&mut this.read) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                Ok(None) => {}
                Err(refusal) => return this.fail(refusal),
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        this.read.extend_from_slice(&data);
                    }
                }
                Some(Err(status)) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(status)));
                }
                None => {
                    let last = this.translate.end(&mut this.read);
                    this.over = true;
                    match last {
                        Ok(Some(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                        Ok(None) => {}
                        Err(refusal) => return this.fail(refusal),
                    }
                }
            }
        }
    }
}
