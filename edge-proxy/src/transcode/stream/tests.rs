//! A pump between two ends in memory, under paused time.

use std::convert::Infallible;

use http::HeaderMap;
use http_body_util::BodyExt as _;
use proto::{
    Contract,
    gateway::{Heartbeat, PlatformFrame, platform_frame},
    google::api::HttpBody,
};
use tokio::time::Instant;
use tonic::Status;

use super::{super::format::Plan, *};

/// The forms of JSON, as clients ask for them.
const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

/// A service, and its answer.
fn service() -> (mpsc::Sender<Frame<Bytes>>, http::Response<Body>) {
    let (service, frames) = mpsc::channel(64);
    let frames = ReceiverStream::new(frames).map(Ok::<Frame<Bytes>, Infallible>);
    (service, http::Response::new(Body::new(StreamBody::new(frames))))
}

fn writer(output: &str, accept: &str) -> Writer {
    let output = Contract::get().pool().get_message_by_name(output).unwrap();
    let request = http::Request::get("/api/v1/x").header("accept", accept).body(()).unwrap();
    Plan::of(&output, "").unwrap().agree(&request.into_parts().0).unwrap()
}

fn framed(message: &impl prost::Message) -> Frame<Bytes> {
    let message = message.encode_to_vec();
    let head = [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..]].concat();
    Frame::data([head, message].concat().into())
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    Frame::trailers(trailers)
}

/// A stream with its two ends.
struct Stage {
    service: mpsc::Sender<Frame<Bytes>>,
    client: mpsc::Receiver<Result<Bytes, Status>>,
    stop: CancellationToken,
}

impl Stage {
    fn set(accept: &str) -> Self {
        let (service, answer) = service();
        let (out, client) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let writer = writer("tollgate.gateway.v1.PlatformFrame", accept);
        let messages = Messages::of(answer).unwrap();
        let patience = Duration::from_secs(30);
        tokio::spawn(Pump { messages, writer, out, patience, stop: stop.clone() }.run(None));
        Self { service, client, stop }
    }

    async fn beat(&self, revision: u64) -> bool {
        let beat = platform_frame::Frame::Heartbeat(Heartbeat { revision, ..Heartbeat::default() });
        self.service.send(framed(&PlatformFrame { frame: Some(beat) })).await.is_ok()
    }

    async fn end(&self, status: Status) {
        self.service.send(trailers(&status)).await.unwrap();
    }

    async fn next(&mut self) -> Option<String> {
        self.client.recv().await.map(|piece| String::from_utf8(piece.unwrap().to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_says_every_fifteen_seconds_that_it_is_there() {
    let mut stage = Stage::set(EVENTS);
    let started = Instant::now();
    assert_eq!(stage.next().await.unwrap(), ": keep-alive\n\n");
    assert_eq!(started.elapsed(), Duration::from_secs(15));
    sleep(Duration::from_secs(10)).await;
    stage.beat(7).await;
    assert_eq!(
        stage.next().await.unwrap(),
        "event: heartbeat\ndata: {\"revision\":\"7\",\"stateHash\":\"\"}\n\n"
    );
    assert_eq!(stage.next().await.unwrap(), ": keep-alive\n\n");
    assert_eq!(started.elapsed(), Duration::from_secs(40), "15 s after what was sent last");
}

#[tokio::test(start_paused = true)]
async fn lines_have_no_signs_of_life() {
    let mut stage = Stage::set(LINES);
    sleep(Duration::from_secs(100)).await;
    stage.beat(7).await;
    assert_eq!(stage.next().await.unwrap(), "{\"heartbeat\":{\"revision\":\"7\",\"stateHash\":\"\"}}\n");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_left_and_nothing_piles_up() {
    let stage = Stage::set(EVENTS);
    let started = Instant::now();
    let mut taken = 0;
    while stage.beat(1).await {
        taken += 1;
    }
    // One on its way, one in the hand, and what the service's own queue holds.
    assert_eq!(taken, 64 + 2);
    assert_eq!(started.elapsed(), Duration::from_secs(30));
    assert!(stage.service.is_closed(), "the call is cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_the_call_at_once() {
    let mut stage = Stage::set(EVENTS);
    stage.client.close();
    let started = Instant::now();
    stage.service.closed().await;
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn each_way_to_end_is_told() {
    for (format, drained, failed) in
        [(EVENTS, "event: error\nretry: ", "event: error\ndata: {"), (LINES, "{\"error\":{", "{\"error\":{")]
    {
        let mut stage = Stage::set(format);
        stage.stop.cancel();
        let last = stage.next().await.unwrap();
        assert!(last.starts_with(drained) && last.contains("\"reason\":\"DRAINING\""), "{last}");
        assert_eq!(stage.next().await, None);

        let mut stage = Stage::set(format);
        stage.beat(1).await;
        stage.end(Error::not_found("thing").into()).await;
        assert!(stage.next().await.unwrap().contains("heartbeat"));
        let last = stage.next().await.unwrap();
        assert!(last.starts_with(failed) && last.contains("\"status\":404,"), "{last}");
        assert_eq!(stage.next().await, None);

        let mut stage = Stage::set(format);
        stage.service = mpsc::channel(1).0;
        let last = stage.next().await.unwrap();
        assert!(last.starts_with("event: error\ndata: {") == (format == EVENTS), "{last}");
        assert!(last.contains("\"status\":503,"), "broken off: {last}");

        let mut stage = Stage::set(format);
        stage.end(Status::ok("")).await;
        assert_eq!(stage.next().await, None, "a good end is silent");
    }
}

/// A reply of bytes, whatever the client says that it takes.
async fn bytes(tasks: &Tasks, answer: http::Response<Body>) -> Result<Response, Refusal> {
    let writer = writer("google.api.HttpBody", "application/pdf");
    streamed(tasks, Duration::from_secs(30), writer, answer).await
}

fn chunk(content_type: &str, data: impl Into<Vec<u8>>) -> Frame<Bytes> {
    framed(&HttpBody { content_type: content_type.into(), data: data.into() })
}

#[tokio::test(start_paused = true)]
async fn bytes_come_as_they_are_under_the_type_of_the_first() {
    let (service, answer) = service();
    let tasks = Tasks::new();
    let speaking = async {
        // Longer than any stream of JSON would be silent.
        sleep(Duration::from_secs(60)).await;
        service.send(chunk("text/csv", "a,b\n")).await.unwrap();
        service.send(chunk("", [0, 255])).await.unwrap();
    };
    let (reply, ()) = tokio::join!(bytes(&tasks, answer), speaking);
    let mut reply = reply.unwrap();
    assert_eq!(reply.headers()["content-type"], "text/csv");
    assert_eq!(reply.headers()["cache-control"], "no-store");
    let mut next = async || reply.body_mut().frame().await.map(|frame| frame.unwrap().into_data().unwrap());
    assert_eq!(
        (next().await.unwrap(), next().await.unwrap()),
        ("a,b\n".into(), Bytes::from_static(&[0, 255]))
    );
    sleep(Duration::from_secs(60)).await;
    service.send(chunk("text/plain", "c")).await.unwrap();
    assert_eq!(next().await.unwrap(), "c", "nothing of ours is among them");
    service.send(trailers(&Status::ok(""))).await.unwrap();
    assert_eq!(next().await, None);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_fail_are_refused_before_the_first_and_broken_off_after_it() {
    let tasks = Tasks::new();
    let (ours, answer) = service();
    ours.send(trailers(&Error::not_found("thing").into())).await.unwrap();
    assert_eq!(bytes(&tasks, answer).await.unwrap_err().kind(), Kind::NotFound);

    let (ours, answer) = service();
    ours.send(trailers(&Status::ok(""))).await.unwrap();
    let empty = bytes(&tasks, answer).await.unwrap();
    assert_eq!(empty.headers()["content-type"], "application/octet-stream");
    assert!(empty.into_body().collect().await.unwrap().to_bytes().is_empty());

    let (ours, answer) = service();
    ours.send(chunk("text/csv", "a")).await.unwrap();
    ours.send(trailers(&Error::not_found("thing").into())).await.unwrap();
    let mut body = bytes(&tasks, answer).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    assert!(body.frame().await.unwrap().is_err(), "half a file is not a whole one");
}

#[tokio::test(start_paused = true)]
async fn bytes_wait_for_who_reads_them() {
    let (service, answer) = service();
    service.send(chunk("text/csv", "a")).await.unwrap();
    let tasks = Tasks::new();
    let reply = bytes(&tasks, answer).await.unwrap();
    let (started, mut taken) = (Instant::now(), 0);
    while service.send(chunk("", vec![7; 1_000])).await.is_ok() {
        taken += 1;
    }
    assert!(taken <= 64 + 2, "{taken}");
    assert_eq!(started.elapsed(), Duration::from_secs(30), "who takes nothing is left");
    drop(reply);
}
