//! A pump between two ends in memory, under paused time.

use http::HeaderMap;
use prost::Message as _;
use proto::{
    Contract,
    gateway::{Heartbeat, PlatformFrame, platform_frame},
};
use tokio::time::Instant;
use tonic::Status;

use super::{
    super::format::{Format, Plan},
    *,
};

/// A stream with its two ends.
struct Stage {
    service: mpsc::Sender<Frame<Bytes>>,
    client: mpsc::Receiver<Bytes>,
    stop: CancellationToken,
}

impl Stage {
    fn set(format: Format) -> Self {
        let (service, frames) = mpsc::channel(64);
        let frames = ReceiverStream::new(frames).map(Ok::<Frame<Bytes>, Infallible>);
        let answer = http::Response::new(Body::new(StreamBody::new(frames)));
        let (out, client) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let output = Contract::get().pool().get_message_by_name("tollgate.gateway.v1.PlatformFrame").unwrap();
        let writer = Plan::of(&output, "").unwrap().with(format, "/api/v1/x");
        let messages = Messages::of(answer).unwrap();
        let patience = Duration::from_secs(30);
        tokio::spawn(Pump { messages, writer, out, patience, stop: stop.clone() }.run(None));
        Self { service, client, stop }
    }

    async fn beat(&self, revision: u64) -> bool {
        let beat = platform_frame::Frame::Heartbeat(Heartbeat { revision, ..Heartbeat::default() });
        let message = PlatformFrame { frame: Some(beat) }.encode_to_vec();
        let head = [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..]].concat();
        self.service.send(Frame::data([head, message].concat().into())).await.is_ok()
    }

    async fn end(&self, status: Status) {
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        self.service.send(Frame::trailers(trailers)).await.unwrap();
    }

    async fn next(&mut self) -> Option<String> {
        self.client.recv().await.map(|piece| String::from_utf8(piece.to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_says_every_fifteen_seconds_that_it_is_there() {
    let mut stage = Stage::set(Format::Events);
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
    let mut stage = Stage::set(Format::Lines);
    sleep(Duration::from_secs(100)).await;
    stage.beat(7).await;
    assert_eq!(stage.next().await.unwrap(), "{\"heartbeat\":{\"revision\":\"7\",\"stateHash\":\"\"}}\n");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_left_and_nothing_piles_up() {
    let stage = Stage::set(Format::Events);
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
    let mut stage = Stage::set(Format::Events);
    stage.client.close();
    let started = Instant::now();
    stage.service.closed().await;
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn each_way_to_end_is_told() {
    for (format, drained, failed) in [
        (Format::Events, "event: error\nretry: ", "event: error\ndata: {"),
        (Format::Lines, "{\"error\":{", "{\"error\":{"),
    ] {
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
        assert!(last.starts_with("event: error\ndata: {") == (format == Format::Events), "{last}");
        assert!(last.contains("\"status\":503,"), "broken off: {last}");

        let mut stage = Stage::set(format);
        stage.end(Status::ok("")).await;
        assert_eq!(stage.next().await, None, "a good end is silent");
    }
}
