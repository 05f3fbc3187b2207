//! Sockets in memory under paused time: every second of the contract is exact.

use bytes::Bytes;
use proto::gateway::{Close, Connected};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::*;

const TIMING: Timing = Timing {
    ping: Duration::from_secs(20),
    dead: Duration::from_secs(30),
    platform: Duration::from_secs(45),
};

type Platform = mpsc::Sender<Result<PlatformFrame, Status>>;

/// A session with its two neighbours.
struct Stage {
    gateway: WebSocketStream<DuplexStream>,
    platform: Platform,
    frames: mpsc::Receiver<Box<GatewayFrame>>,
    session: JoinHandle<End>,
    drain: CancellationToken,
    started: Instant,
}

impl Stage {
    /// A socket that holds so many bytes in each direction.
    async fn set(bytes: usize) -> Self {
        let (ours, theirs) = tokio::io::duplex(bytes);
        let (platform, from_platform) = mpsc::channel(16);
        let (to_platform, frames) = mpsc::channel(1);
        let connected =
            Connected { gateway_id: "g".into(), connection_id: "c".into(), ..Connected::default() };
        let link = Link { connected, to_platform, from_platform: ReceiverStream::new(from_platform) };
        let drain = CancellationToken::new();
        let session = tokio::spawn(
            Box::new(Session::new(link, TIMING)).run(ours, Box::pin(drain.clone().cancelled_owned())),
        );
        let gateway = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        Self { gateway, platform, frames, session, drain, started: Instant::now() }
    }

    async fn next(&mut self) -> Message {
        self.gateway.next().await.unwrap().unwrap()
    }

    async fn event(&self, payload: String) {
        self.event_of(0, payload).await;
    }

    async fn event_of(&self, revision: u64, payload: String) {
        let event = Event { r#type: "t".into(), payload_json: payload, revision, ..Event::default() };
        let frame = PlatformFrame { frame: Some(platform_frame::Frame::Event(event)) };
        self.platform.send(Ok(frame)).await.unwrap();
    }

    async fn beat(&self) {
        let frame = platform_frame::Frame::Heartbeat(Heartbeat::default());
        self.platform.send(Ok(PlatformFrame { frame: Some(frame) })).await.unwrap();
    }

    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

fn ack(id: &str) -> Message {
    Message::text(format!(
        r#"{{"type":"deployment.ack","payload":{{"deploymentId":"{id}","action":"deploy","status":"success"}}}}"#
    ))
}

#[tokio::test(start_paused = true)]
async fn the_acknowledgement_comes_first_and_then_a_ping_every_twenty_seconds() {
    let mut stage = Stage::set(4_096).await;
    stage.event("{}".into()).await;
    assert!(stage.next().await.to_text().unwrap().starts_with(r#"{"type":"connection.ack""#));
    assert!(stage.next().await.to_text().unwrap().starts_with(r#"{"type":"t""#));
    for round in 1..=3 {
        stage.beat().await;
        // Reading it answers it.
        assert_eq!(stage.next().await, Message::Ping(Bytes::new()));
        assert_eq!(stage.seconds(), 20 * round);
        // gateway-service has heard of the pong before.
        if round > 1 {
            let frame = stage.frames.try_recv().unwrap();
            assert!(matches!(frame.frame, Some(gateway_frame::Frame::Heartbeat(_))));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pong_proves_what_was_written_before_its_ping() {
    let mut stage = Stage::set(64 * 1_024).await;
    stage.next().await;
    let mut pings = Vec::new();
    for revision in [4, 6] {
        stage.event_of(revision, "{}".into()).await;
        stage.next().await;
        // An odd pong is a sign of life, and no proof.
        stage.gateway.send(Message::Pong(Bytes::from_static(b"odd"))).await.unwrap();
        stage.beat().await;
        // Reading a ping sends no pong before something else is read or written.
        let Message::Ping(ping) = stage.next().await else { panic!("no ping") };
        pings.push(ping);
    }
    // This one is written after the pings: nothing proves it.
    stage.event_of(7, "{}".into()).await;
    stage.next().await;
    for ping in pings {
        stage.gateway.send(Message::Pong(ping)).await.unwrap();
    }
    let mut proven = Vec::new();
    while let Ok(frame) = tokio::time::timeout(Duration::from_secs(1), stage.frames.recv()).await {
        match frame.unwrap().frame {
            Some(gateway_frame::Frame::Heartbeat(beat)) => proven.push(beat.revision),
            other => panic!("{other:?}"),
        }
    }
    proven.retain(|revision| *revision > 0);
    assert_eq!(proven, [4, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_gateway_is_cut_thirty_seconds_after_its_last_byte() {
    let mut stage = Stage::set(4_096).await;
    // Not even a message: a part of one.
    tokio::time::sleep(Duration::from_secs(7)).await;
    stage.gateway.get_mut().write_all(&[0x81]).await.unwrap();
    let end = (&mut stage.session).await.unwrap();
    assert!(matches!(end, End::Silent), "{end}");
    assert_eq!(stage.seconds(), 37);
    assert!(stage.frames.recv().await.is_none(), "the stream to gateway-service ends");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_takes_nothing_is_cut_after_ten_seconds() {
    let mut stage = Stage::set(1_024).await;
    stage.event(format!("\"{}\"", "x".repeat(8_000))).await;
    // gateway-service ends the stream when the edge does.
    stage.platform = mpsc::channel(1).0;
    let end = (&mut stage.session).await.unwrap();
    assert!(matches!(end, End::Stuck), "{end}");
    assert_eq!(stage.seconds(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_whose_platform_is_silent_is_sent_elsewhere() {
    let mut stage = Stage::set(4_096).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    stage.beat().await;
    // A stopped process keeps its connections: nothing ends, and nothing comes.
    let end = loop {
        match stage.next().await {
            Message::Close(frame) => break frame.unwrap(),
            Message::Text(_) | Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((end.code, stage.seconds()), (CloseCode::Restart, 65));
}

#[tokio::test(start_paused = true)]
async fn a_slow_gateway_is_not_the_platforms_silence() {
    let mut stage = Stage::set(1_024).await;
    stage.event(format!("\"{}\"", "x".repeat(8_000))).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        stage.gateway.get_mut().write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
        let read = stage.gateway.get_mut().read(&mut [0; 512]).await;
        assert!(read.unwrap() > 0);
    }
    assert!(stage.seconds() > 45 && !stage.session.is_finished());
}

#[tokio::test(start_paused = true)]
async fn pings_are_answered_and_a_flood_of_them_is_not() {
    let mut stage = Stage::set(64 * 1_024).await;
    stage.next().await;
    for _ in 0..5 {
        for _ in 0..CONTROL_FRAMES {
            stage.gateway.send(Message::Ping(Bytes::new())).await.unwrap();
        }
        assert!(matches!(stage.next().await, Message::Pong(_)));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for _ in 0..=CONTROL_FRAMES {
        stage.gateway.send(Message::Pong(Bytes::new())).await.unwrap();
    }
    let end = stage.session.await.unwrap();
    assert!(matches!(end, End::Farewell(CloseCode::Policy, _)), "{end}");
}

#[tokio::test(start_paused = true)]
async fn what_a_gateway_said_before_it_left_arrives() {
    let mut stage = Stage::set(64 * 1_024).await;
    stage.next().await;
    for id in 0..3 {
        stage.gateway.send(ack(&id.to_string())).await.unwrap();
    }
    stage.gateway.close(None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // An acknowledgement may still be on its way: a stream that is given up would not bring it.
    assert!(!stage.platform.is_closed());
    for id in 0..3 {
        let frame = stage.frames.recv().await.unwrap().frame;
        assert!(
            matches!(frame, Some(gateway_frame::Frame::DeploymentAck(ack)) if ack.deployment_id == id.to_string())
        );
    }
    assert!(stage.frames.recv().await.is_none());
    stage.platform = mpsc::channel(1).0;
    assert!(matches!(stage.session.await.unwrap(), End::PeerLeft));
    assert!(stage.started.elapsed() < GOODBYE, "nobody waits in vain");
}

#[tokio::test(start_paused = true)]
async fn a_slow_gateway_that_takes_a_little_stays() {
    let mut stage = Stage::set(1_024).await;
    stage.event(format!("\"{}\"", "x".repeat(8_000))).await;
    let mut taken = 0;
    while taken < 8_000 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        // A lone pong, from a gateway that is behind with reading.
        stage.gateway.get_mut().write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
        taken += stage.gateway.get_mut().read(&mut [0; 1_024]).await.unwrap();
    }
    assert!(stage.seconds() > 60 && !stage.session.is_finished());
}

#[tokio::test(start_paused = true)]
async fn reading_goes_on_while_writing_waits() {
    let mut stage = Stage::set(1_024).await;
    stage.event(format!("\"{}\"", "x".repeat(8_000))).await;
    stage.gateway.feed(ack("d1")).await.unwrap();
    stage.gateway.flush().await.unwrap();
    let frame = tokio::time::timeout(Duration::from_secs(1), stage.frames.recv()).await.unwrap().unwrap();
    assert!(
        matches!(frame.frame, Some(gateway_frame::Frame::DeploymentAck(ack)) if ack.deployment_id == "d1")
    );
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_wait_for_gateway_service_and_none_is_lost() {
    let mut stage = Stage::set(64 * 1_024).await;
    for id in 0..100 {
        stage.gateway.send(ack(&id.to_string())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut seen = Vec::new();
    while seen.len() < 100 {
        if let Some(gateway_frame::Frame::DeploymentAck(ack)) = stage.frames.recv().await.unwrap().frame {
            seen.push(ack.deployment_id);
        }
    }
    assert_eq!(seen, (0..100).map(|id| id.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn heartbeats_to_gateway_service_are_never_thirty_seconds_apart() {
    let mut stage = Stage::set(64 * 1_024).await;
    // Messages at bad moments: shortly before a pong would be counted.
    let mut last = Instant::now();
    for wait in [6_u64, 9, 4, 19, 6, 13, 2, 16] {
        let until = Instant::now() + Duration::from_secs(wait);
        stage.beat().await;
        while let Ok(message) = tokio::time::timeout_at(until, stage.gateway.next()).await {
            message.unwrap().unwrap();
        }
        stage.gateway.send(Message::text("{\"type\":\"x\"}")).await.unwrap();
        while let Ok(frame) = tokio::time::timeout(Duration::from_millis(10), stage.frames.recv()).await {
            frame.unwrap();
            last = Instant::now();
        }
        assert!(last.elapsed() < Duration::from_secs(26), "{:?}", last.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_cannot_be_sent_are_left_out() {
    let mut stage = Stage::set(4 * MAX_EVENT).await;
    stage.next().await;
    stage.event("not JSON".into()).await;
    stage.event(format!("\"{}\"", "x".repeat(MAX_EVENT))).await;
    stage.event(format!("\"{}\"", "y".repeat(MAX_EVENT - 200))).await;
    let text = stage.next().await.into_text().unwrap();
    assert!(text.contains("yyy") && text.len() < MAX_EVENT);
}

#[tokio::test(start_paused = true)]
async fn each_end_has_its_close_code() {
    let close = |code, reason: &str| Some(Close { code, reason: reason.to_owned() });
    let cases: [(Option<Close>, u16, String); 5] = [
        (close(4401, "token revoked"), 4401, "token revoked".to_owned()),
        (close(1012, ""), 1012, String::new()),
        (close(1005, "not for the wire"), 1012, "not for the wire".to_owned()),
        (close(70_000, "no code"), 1012, "no code".to_owned()),
        (close(4404, &"é".repeat(100)), 4404, "é".repeat(61)),
    ];
    for (close, code, reason) in cases {
        let mut stage = Stage::set(4_096).await;
        stage.next().await;
        let frame = PlatformFrame { frame: close.map(platform_frame::Frame::Close) };
        stage.platform.send(Ok(frame)).await.unwrap();
        let Message::Close(Some(frame)) = stage.next().await else { panic!("no close frame") };
        assert_eq!((u16::from(frame.code), frame.reason.as_str()), (code, reason.as_str()));
        assert!(stage.gateway.next().await.is_none());
        assert_eq!(stage.seconds(), 0, "both said goodbye: nobody waits");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_and_a_drain_are_restarts() {
    for case in ["ended", "failed", "drained"] {
        let mut stage = Stage::set(4_096).await;
        stage.next().await;
        match case {
            "failed" => stage.platform.send(Err(Status::unauthenticated("later"))).await.unwrap(),
            "drained" => stage.drain.cancel(),
            _ => stage.platform = mpsc::channel(1).0,
        }
        let Message::Close(Some(frame)) = stage.next().await else { panic!("{case}: no close frame") };
        assert_eq!(frame.code, CloseCode::Restart, "{case}");
        assert_eq!(frame.reason == "server restart", case == "drained");
        // A gateway that says nothing more is not waited for.
        let end = stage.session.await.unwrap();
        assert!(matches!(end, End::Farewell(CloseCode::Restart, _)), "{case}: {end}");
        assert!(stage.started.elapsed() <= GOODBYE + Duration::from_millis(1), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_frames_are_named_and_a_goodbye_is_answered() {
    let large = [&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 1][..], &[0; 4]].concat();
    let cases: [(&[u8], CloseCode); 4] = [
        (&large, CloseCode::Size),
        (&[0x81, 0x81, 0, 0, 0, 0, 0xff], CloseCode::Invalid),
        (&[0x81, 0x01, b'x'], CloseCode::Protocol),
        (&[0xc1, 0x80, 0, 0, 0, 0], CloseCode::Protocol),
    ];
    for (bytes, code) in cases {
        let mut stage = Stage::set(4_096).await;
        stage.next().await;
        stage.gateway.get_mut().write_all(bytes).await.unwrap();
        let Message::Close(Some(frame)) = stage.next().await else { panic!("no close frame") };
        assert_eq!(frame.code, code);
    }
    let mut stage = Stage::set(4_096).await;
    stage.next().await;
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "Gateway shutting down".into() };
    stage.gateway.close(Some(goodbye)).await.unwrap();
    assert!(matches!(stage.next().await, Message::Close(Some(frame)) if frame.code == CloseCode::Normal));
    assert!(matches!(stage.session.await.unwrap(), End::PeerLeft));
    assert!(stage.frames.recv().await.is_none(), "the stream to gateway-service ends");
}
