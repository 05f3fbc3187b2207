//! What both ends of HTTP/2 need beside `h2` itself: bodies that come, bodies that go, peers that are silent.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{sleep, timeout};

use crate::Body;

/// A body as it comes. Dropping it before its end resets its stream.
#[derive(Debug)]
pub(crate) struct Received {
    stream: RecvStream,
    has_data: bool,
    /// How many bytes are still to come, where the head says so; `h2` sees to it that it is true.
    announced: Option<u64>,
}

impl Received {
    pub(crate) fn new(stream: RecvStream, announced: Option<u64>) -> Self {
        Self { stream, has_data: true, announced }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.has_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only when the stream is over.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.announced = self.announced.map(|bytes| bytes.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.has_data = false,
            }
        }
        Poll::Ready(ready!(self.stream.poll_trailers(cx)).transpose().map(|last| last.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Passes a body on, as fast as the peer takes it.
pub(crate) async fn pass_on(mut body: Body, mut stream: SendStream<Bytes>) {
    loop {
        let next = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Some),
        });
        let sent = match next.await {
            // Nobody wants the rest.
            None => return,
            Some(None) => return drop(stream.send_data(Bytes::new(), true)),
            Some(Some(Err(_))) => return stream.send_reset(Reason::INTERNAL_ERROR),
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => send_all(&mut stream, data, body.is_end_stream()).await,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return drop(stream.send_trailers(trailers));
                }
            },
        };
        if sent.is_none() || body.is_end_stream() {
            return;
        }
    }
}

/// Sends data within the peer's windows; `None` when the stream is over.
async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes, is_last: bool) -> Option<()> {
    if data.is_empty() && is_last {
        stream.send_data(data, true).ok()?;
        return Some(());
    }
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => stream.poll_capacity(cx),
        });
        let room = room.await?.ok()?;
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, is_last && data.is_empty()).ok()?;
    }
    Some(())
}

/// Completes when a peer does not answer a ping in time, or cannot be asked any more.
pub(crate) async fn silence(mut pings: PingPong, every: Duration, patience: Duration) {
    loop {
        sleep(every).await;
        if !matches!(timeout(patience, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use h2::{Reason, client, server};
    use http_body_util::BodyExt as _;

    use super::Received;

    /// A request that its client gives up has no end, whatever the reason.
    #[tokio::test]
    async fn half_a_body_is_no_whole_one() {
        for reason in [Reason::NO_ERROR, Reason::CANCEL] {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let asking = async {
                let (client, connection) = client::handshake::<_>(near).await.unwrap();
                tokio::spawn(connection);
                let mut client = client.ready().await.unwrap();
                let request = http::Request::post("http://localhost/").body(()).unwrap();
                let (answer, mut stream) = client.send_request(request, false).unwrap();
                stream.send_data(Bytes::from_static(b"half"), false).unwrap();
                (answer, stream)
            };
            let (asked, server) = tokio::join!(asking, server::handshake::<_>(far));
            let ((_answer, mut stream), mut server) = (asked, server.unwrap());
            let (request, _respond) = server.accept().await.unwrap().unwrap();
            tokio::spawn(async move { while server.accept().await.is_some() {} });
            let mut body = Received::new(request.into_body(), None);
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
            stream.send_reset(reason);
            assert!(body.frame().await.unwrap().is_err(), "{reason:?}");
        }
    }
}
