//! The server's end of one connection of HTTP/2, on `h2` itself.
//!
//! The calls of a connection run in its own task: none costs a task of its own, nothing is woken twice for one event,
//! and what many calls have for the client at once is written together. So a connection keeps one processor busy at
//! most, which is what reading and writing its frames, one after the other, comes to anyway.

use std::{
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use h2::{
    Reason, RecvStream,
    server::{self, Builder, Handshake, SendResponse},
};
use http::{HeaderValue, Request, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    http2::{pass_on, silence},
    layers::{Response, limits::MAX_HEADER_BYTES},
};

/// How often a client is asked whether it is still there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// A connection and its calls, each of which is an `F` that `A` begins.
pub(super) struct Http2<I, A, F> {
    stage: Stage<I>,
    answer: A,
    calls: FuturesUnordered<F>,
    is_ending: bool,
}

enum Stage<I> {
    Greeting(Handshake<I, Bytes>),
    Open(server::Connection<I, Bytes>, Option<AbortOnDropHandle<()>>),
}

impl<I, A, F> Http2<I, A, F>
where
    I: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F,
{
    pub(super) fn new(io: I, answer: A) -> Self {
        let handshake = Builder::new()
            .max_concurrent_streams(100)
            .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
            // Streams that were reset before anybody looked at them, and streams that we had to reset.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(Some(128))
            .initial_window_size(64 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .handshake(io);
        Self { stage: Stage::Greeting(handshake), answer, calls: FuturesUnordered::new(), is_ending: false }
    }

    /// Lets no more calls in and ends after those that are under way.
    pub(super) fn finish(&mut self) {
        self.is_ending = true;
        if let Stage::Open(connection, _) = &mut self.stage {
            connection.graceful_shutdown();
        }
    }
}

impl<I, A, F> Future for Http2<I, A, F>
where
    I: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Unpin,
    F: Future<Output = ()>,
{
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Stage::Greeting(handshake) = &mut this.stage {
            let mut connection = ready!(Pin::new(handshake).poll(cx))?;
            if this.is_ending {
                connection.graceful_shutdown();
            }
            // A task of its own, so that the frames that come and go do not look at its timer each time.
            let silent = connection.ping_pong().map(|pings| tokio::spawn(silence(pings, PING.0, PING.1)));
            this.stage = Stage::Open(connection, silent.map(AbortOnDropHandle::new));
        }
        let Stage::Open(connection, silent) = &mut this.stage else { return Poll::Pending };
        if silent.as_mut().is_some_and(|silent| silent.poll_unpin(cx).is_ready()) {
            *silent = None;
            connection.abrupt_shutdown(Reason::NO_ERROR);
        }
        loop {
            // Calls first: what they have for the client goes out in the connection's turn.
            while let Poll::Ready(Some(())) = this.calls.poll_next_unpin(cx) {}
            let mut are_new = false;
            while let Poll::Ready(next) = pin!(connection.accept()).poll(cx) {
                let Some(next) = next else { return Poll::Ready(Ok(())) };
                let (request, respond) = next?;
                this.calls.push((this.answer)(request, respond));
                are_new = true;
            }
            if !are_new {
                return Poll::Pending;
            }
        }
    }
}

/// One call: the client gets the answer that `work` comes to, unless it leaves before. What panics takes its own
/// stream down and no other.
pub(super) async fn call(work: impl Future<Output = Response>, respond: SendResponse<Bytes>) {
    if AssertUnwindSafe(answered(work, respond)).catch_unwind().await.is_err() {
        tracing::error!("an answer panicked on its way");
    }
}

async fn answered(work: impl Future<Output = Response>, mut respond: SendResponse<Bytes>) {
    let answer = {
        let mut work = pin!(work);
        // Who has left is not worked for.
        let answer = poll_fn(|cx| match respond.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending => work.as_mut().poll(cx).map(Some),
        });
        answer.await
    };
    let Some(answer) = answer else { return };
    let (mut head, body) = answer.into_parts();
    // What refusals say of a connection of HTTP/1.1; services cannot say it.
    if !head.status.is_success() {
        for name in [header::CONNECTION, header::UPGRADE] {
            head.headers.remove(name);
        }
    }
    let is_all = body.is_end_stream();
    if !is_all && let Some(length) = body.size_hint().exact() {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    match respond.send_response(http::Response::from_parts(head, ()), is_all) {
        Ok(_) if is_all => {}
        Ok(stream) => pass_on(body, stream).await,
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::Pin,
        sync::{Arc, Mutex},
        task::{Context, Poll},
        time::Duration,
    };

    use bytes::Bytes;
    use futures_util::future::pending;
    use h2::{RecvStream, client};
    use http_body::Frame;
    use tokio::{
        io::{AsyncWriteExt as _, DuplexStream, duplex},
        sync::{mpsc, oneshot},
        time::{Instant, timeout},
    };

    use super::{Http2, call};
    use crate::{Body, layers::Response};

    /// Says so when it is dropped.
    struct Gone(mpsc::Sender<()>);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.try_send(()).unwrap();
        }
    }

    /// A body that cannot be read.
    struct Broken;

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
            panic!("the canary of a panic")
        }
    }

    async fn answer(
        path: String,
        gone: mpsc::Sender<()>,
        go: Arc<Mutex<Option<oneshot::Receiver<()>>>>,
    ) -> Response {
        match path.as_str() {
            "/broken" => Response::new(Body::new(Broken)),
            "/never" => {
                let _guard = Gone(gone);
                pending().await
            }
            "/later" => {
                let go = go.lock().unwrap().take().unwrap();
                go.await.unwrap();
                Response::new(Body::new(http_body_util::Full::new(Bytes::from_static(b"later"))))
            }
            _ => Response::new(Body::new(http_body_util::Full::new(Bytes::from_static(b"whole")))),
        }
    }

    /// A client of a connection that answers by path; `finish` ends it well, `go` lets `/later` go on.
    struct Scene {
        client: client::SendRequest<Bytes>,
        gone: mpsc::Receiver<()>,
        go: oneshot::Sender<()>,
        finish: oneshot::Sender<()>,
        ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
    }

    fn serve(
        io: DuplexStream,
        gone: mpsc::Sender<()>,
        go: oneshot::Receiver<()>,
    ) -> (oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
        let go = Arc::new(Mutex::new(Some(go)));
        let mut served = Box::pin(Http2::new(io, move |request: http::Request<RecvStream>, respond| {
            call(answer(request.uri().path().to_owned(), gone.clone(), go.clone()), respond)
        }));
        let (finish, mut finishing) = oneshot::channel();
        let ended = tokio::spawn(async move {
            tokio::select! {
                ended = served.as_mut() => return ended,
                Ok(()) = &mut finishing => served.finish(),
            }
            served.await
        });
        (finish, ended)
    }

    impl Scene {
        async fn set() -> Self {
            let (near, far) = duplex(64 * 1024);
            let ((telling, gone), (go, going)) = (mpsc::channel(1), oneshot::channel());
            let (finish, ended) = serve(far, telling, going);
            let (client, connection) = client::handshake(near).await.unwrap();
            tokio::spawn(connection);
            Self { client, gone, go, finish, ended }
        }

        fn ask(&self, path: &str) -> (client::ResponseFuture, h2::SendStream<Bytes>) {
            let request = http::Request::get(format!("http://localhost{path}")).body(()).unwrap();
            self.client.clone().send_request(request, true).unwrap()
        }
    }

    async fn text(answer: client::ResponseFuture) -> Result<String, h2::Error> {
        let mut body = answer.await?.into_body();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            text.extend_from_slice(&data?);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    #[tokio::test]
    async fn what_panics_takes_down_its_own_stream_alone() {
        let scene = Scene::set().await;
        let (later, _) = scene.ask("/later");
        assert!(text(scene.ask("/broken").0).await.unwrap_err().is_reset());
        assert_eq!(text(scene.ask("/whole").0).await.unwrap(), "whole");
        scene.go.send(()).unwrap();
        assert_eq!(text(later).await.unwrap(), "later");
    }

    #[tokio::test]
    async fn who_leaves_is_not_worked_for() {
        let mut scene = Scene::set().await;
        let (never, mut stream) = scene.ask("/never");
        assert_eq!(text(scene.ask("/whole").0).await.unwrap(), "whole");
        assert!(scene.gone.try_recv().is_err());
        stream.send_reset(h2::Reason::CANCEL);
        assert!(text(never).await.is_err());
        assert_eq!(timeout(Duration::from_secs(20), scene.gone.recv()).await.unwrap(), Some(()));
    }

    #[tokio::test]
    async fn an_ending_connection_lets_calls_finish_and_no_new_ones_in() {
        let scene = Scene::set().await;
        let (later, _) = scene.ask("/later");
        assert_eq!(text(scene.ask("/whole").0).await.unwrap(), "whole");
        scene.finish.send(()).unwrap();
        let mut client = scene.client.clone();
        let told = poll_fn(|cx| client.poll_ready(cx).map(|ready| ready.is_err()));
        tokio::pin!(told);
        // It is told, and asks no more, as soon as its connection has heard it.
        while !timeout(Duration::from_secs(20), told.as_mut()).await.unwrap() {
            tokio::task::yield_now().await;
        }
        scene.go.send(()).unwrap();
        assert_eq!(text(later).await.unwrap(), "later");
        scene.ended.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_no_ping_is_cut() {
        let (mut near, far) = duplex(64 * 1024);
        let ((telling, _gone), (_go, going)) = (mpsc::channel(1), oneshot::channel());
        let (_finish, ended) = serve(far, telling, going);
        // The preface and empty settings, and then nothing any more.
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let begun = Instant::now();
        let _ = ended.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 50);
    }
}
