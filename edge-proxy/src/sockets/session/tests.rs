use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::StreamBody;
use proto::Contract;
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{Call, Codecs, End, Format, Session, Timing};
use crate::{Body, layers::Response};

const PING: Duration = Duration::from_secs(20);
const DEAD: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(30);

type Answer = mpsc::Sender<Result<Frame<Bytes>, Status>>;

/// A client, the service's two ends, and the session between them.
struct Stage {
    client: WebSocketStream<DuplexStream>,
    answer: Answer,
    requests: mpsc::Receiver<Bytes>,
    session: JoinHandle<(End, Option<Code>)>,
}

async fn stage(expires: Option<Duration>) -> Stage {
    let (ours, theirs) = tokio::io::duplex(1_024);
    let (answer, frames) = mpsc::channel(1);
    let (to_service, requests) = mpsc::channel(1);
    let body = Body::new(StreamBody::new(ReceiverStream::new(frames)));
    let policy = Contract::get().method("/tollgate.gateway.v1.GatewayLink/Connect").unwrap();
    let codecs = Codecs::of(policy, Format::Proto).unwrap();
    let session = Session::new(Call::of(Response::new(body)), to_service, codecs, Format::Proto, policy);
    let expires = expires.map(|after| Instant::now() + after);
    let timing = Timing { ping: PING, dead: DEAD, patience: PATIENCE, expires };
    let session = tokio::spawn(session.run(ours, timing, CancellationToken::new()));
    let client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
    Stage { client, answer, requests, session }
}

fn trailers(status: &Status) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    Frame::trailers(trailers)
}

fn enveloped(text: &[u8]) -> Bytes {
    crate::envelope::wrap(0, text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_shows_no_sign_of_life_is_left() {
    let stage = stage(None).await;
    let started = Instant::now();
    // It reads nothing, so it answers no ping.
    let (end, code) = stage.session.await.unwrap();
    assert!(matches!(end, End::Silent), "{end:?}");
    assert_eq!((code, started.elapsed()), (None, DEAD));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_stays() {
    let Stage { mut client, answer, mut session, .. } = stage(None).await;
    let reading = async {
        let mut pings = 0;
        while let Some(Ok(message)) = client.next().await {
            pings += u32::from(message.is_ping());
        }
        pings
    };
    let ending = async {
        tokio::time::sleep(DEAD * 5).await;
        answer.send(Ok(trailers(&Status::ok("")))).await.unwrap();
    };
    let (pings, (), ended) = tokio::join!(reading, ending, &mut session);
    assert!((14..=15).contains(&pings), "{pings}");
    assert_eq!(ended.unwrap().1, Some(Code::Ok));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_left_and_the_service_waits_meanwhile() {
    let Stage { client, answer, session, .. } = stage(None).await;
    let mut taken = 0;
    // The pipe holds 1 KiB: after that, nothing more is taken from the service.
    while answer.send_timeout(Ok(Frame::data(enveloped(&[7; 500]))), PATIENCE / 2).await.is_ok() {
        taken += 1;
    }
    assert!(taken < 8, "{taken} messages are somewhere in between");
    let (end, _) = session.await.unwrap();
    assert!(matches!(end, End::Stuck), "{end:?}");
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_takes_nothing_holds_up_the_client_and_does_not_cost_it_the_socket() {
    let Stage { mut client, answer, mut requests, session } = stage(None).await;
    let mut sent = 0;
    while tokio::time::timeout(DEAD * 2, client.send(Message::Binary(enveloped(&[7; 300])))).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 10, "{sent} messages are somewhere in between");
    assert!(!session.is_finished());
    // Once it goes on, all arrive.
    let mut arrived = 0;
    let ending = async {
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), requests.recv()).await {
            arrived += 1;
        }
        answer.send(Ok(trailers(&Status::ok("")))).await.unwrap();
    };
    let rest = async { while let Some(Ok(_)) = client.next().await {} };
    let ((), (), ended) = tokio::join!(ending, rest, session);
    assert!(arrived >= sent, "{arrived} of {sent}");
    assert_eq!(ended.unwrap().1, Some(Code::Ok));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_ends_ends_the_socket() {
    let Stage { mut client, session, answer: _open, requests: _taken } =
        stage(Some(Duration::from_secs(50))).await;
    let started = Instant::now();
    let (mut record, mut close) = (None, None);
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) => record = Some(bytes),
            Message::Close(frame) => close = frame,
            _ => {}
        }
    }
    assert_eq!(started.elapsed(), Duration::from_secs(50));
    let record = record.unwrap();
    assert_eq!(record[0], 2);
    assert!(String::from_utf8_lossy(&record).contains("unauthenticated"));
    assert_eq!(u16::from(close.unwrap().code), 1008);
    assert_eq!(session.await.unwrap().1, Some(Code::Unauthenticated));
}
