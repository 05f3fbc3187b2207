//! The same faults over every protocol: the right status, the right number of attempts, nothing left behind.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use h2::Reason;
use http::{Method, StatusCode};
use prost::Message as _;
use proto::project::Api;
use service_kit::Error;
use tonic::{Code, Status};

use super::{
    client::{Answer, Ask, frame, split_web},
    harness::World,
    rogue::{Act, Stage, nothing_leaks, nothing_leaks_at, states, until},
};

/// How a client speaks; REST and those that are HTTP/1.1 too over both versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Rest,
    RestH1,
    Grpc,
    Web,
    WebH1,
    Connect,
    ConnectH1,
}

const ALL: [Speech; 7] = [
    Speech::Rest,
    Speech::RestH1,
    Speech::Grpc,
    Speech::Web,
    Speech::WebH1,
    Speech::Connect,
    Speech::ConnectH1,
];

/// A call that may be sent again, and one that may not.
const READ: (&str, Method, &str) = ("/tollgate.project.v1.ApiService/GetApi", Method::GET, "/api/v1/apis/a1");
const WRITE: (&str, Method, &str) =
    ("/tollgate.project.v1.ApiService/CreateApi", Method::POST, "/api/v1/apis");

impl Speech {
    fn ask<'w>(self, world: &'w World, (rpc, method, rest): &(&str, Method, &str)) -> Ask<'w> {
        let ask = match self {
            Self::Rest | Self::RestH1 => world.ask(method.clone(), rest),
            Self::Grpc | Self::Web | Self::WebH1 | Self::Connect | Self::ConnectH1 => world.post(rpc),
        };
        let ask = match self {
            Self::RestH1 | Self::WebH1 | Self::ConnectH1 => ask.h1(),
            Self::Grpc => ask.header("te", "trailers"),
            Self::Rest | Self::Web | Self::Connect => ask,
        };
        ask.user()
    }

    /// Asks with a deadline, if there is one.
    async fn call(self, world: &World, what: &(&str, Method, &str), ms: Option<u32>) -> Answer {
        let ask = self.ask(world, what);
        let (name, value, content_type) = match self {
            Self::Rest | Self::RestH1 => (
                "request-timeout",
                ms.map(|ms| format!("{}.{:03}", ms / 1_000, ms % 1_000)),
                "application/json",
            ),
            Self::Grpc => ("grpc-timeout", ms.map(|ms| format!("{ms}m")), "application/grpc"),
            Self::Web | Self::WebH1 => {
                ("grpc-timeout", ms.map(|ms| format!("{ms}m")), "application/grpc-web")
            }
            Self::Connect | Self::ConnectH1 => {
                ("connect-timeout-ms", ms.map(|ms| ms.to_string()), "application/proto")
            }
        };
        let ask = value.iter().fold(ask, |ask, value| ask.header(name, value));
        match self {
            Self::Rest | Self::RestH1 if what.1 == Method::GET => ask.send("").await,
            Self::Rest | Self::RestH1 => ask.json("{}").await,
            Self::Grpc | Self::Web | Self::WebH1 => {
                ask.header("content-type", content_type).send(frame(b"")).await
            }
            Self::Connect | Self::ConnectH1 => ask.header("content-type", content_type).send("").await,
        }
    }

    /// What the answer says, in the protocol's own words.
    fn says(self, answer: &Answer) -> String {
        assert!(answer.complete, "{self:?}: every answer has an end: {answer:?}");
        match self {
            Self::Rest | Self::RestH1 => answer.status.as_u16().to_string(),
            Self::Grpc => answer.grpc_status().to_owned(),
            Self::Web | Self::WebH1 => {
                let (_, trailers) = split_web(answer.body.clone());
                let of_frame = trailers.lines().find_map(|line| line.strip_prefix("grpc-status:"));
                of_frame.map_or_else(|| answer.grpc_status().to_owned(), |code| code.trim().to_owned())
            }
            Self::Connect | Self::ConnectH1 if answer.status == StatusCode::OK => "ok".to_owned(),
            Self::Connect | Self::ConnectH1 => answer.json()["code"].as_str().unwrap().to_owned(),
        }
    }

    /// How this protocol says it: the number of gRPC, the status of HTTP, the name of Connect.
    fn expected(self, code: Code) -> String {
        let (http, name) = match code {
            Code::Ok => (200, "ok"),
            Code::Cancelled => (499, "canceled"),
            Code::DeadlineExceeded => (504, "deadline_exceeded"),
            Code::NotFound => (404, "not_found"),
            Code::ResourceExhausted => (429, "resource_exhausted"),
            Code::Internal => (500, "internal"),
            Code::Unavailable => (503, "unavailable"),
            other => panic!("{other:?} is not in the table"),
        };
        match self {
            Self::Rest | Self::RestH1 => http.to_string(),
            Self::Grpc | Self::Web | Self::WebH1 => (code as i32).to_string(),
            Self::Connect | Self::ConnectH1 => name.to_owned(),
        }
    }
}

fn api() -> Vec<u8> {
    Api { id: "a1".into(), ..Api::default() }.encode_to_vec()
}

/// Only the fault itself is on trial: nothing is remembered of earlier ones, and nothing is kept.
const ALONE: [(&str, &str); 4] = [
    ("upstreams.resilience.breaker_failures", "0"),
    ("upstreams.resilience.eject_failures", "0"),
    ("upstreams.resilience.retry_burst", "1000"),
    ("cache.enabled", "false"),
];

/// Trailers as a service of ours writes them.
fn status_of(error: Error) -> Vec<(&'static str, &'static str)> {
    let mut headers = http::HeaderMap::new();
    Status::from(error).add_header(&mut headers).unwrap();
    let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    headers.iter().map(|(name, value)| (leak(name.as_str()), leak(value.to_str().unwrap()))).collect()
}

#[tokio::test]
async fn a_fault_looks_the_same_over_every_protocol() {
    let stage = Stage::new();
    let missing = status_of(Error::not_found("API"));
    let busy = vec![("grpc-status", "14"), ("grpc-message", "not now")];
    for (what, act, code, reads, writes) in [
        ("a stream that is refused", Act::Reset(Reason::REFUSED_STREAM), Code::Unavailable, 5, 5),
        ("a handler that dies", Act::Reset(Reason::INTERNAL_ERROR), Code::Unavailable, 3, 1),
        ("a stream that is given up", Act::Reset(Reason::CANCEL), Code::Cancelled, 3, 1),
        ("a service that has enough", Act::Reset(Reason::ENHANCE_YOUR_CALM), Code::ResourceExhausted, 3, 1),
        ("a length that is a lie", Act::ShortBody(api()), Code::Internal, 1, 1),
        ("no status", Act::NoStatus(api()), Code::Unavailable, 1, 1),
        ("an error in trailers", Act::Trailers(busy.clone()), Code::Unavailable, 3, 1),
        ("an error in place of an answer", Act::Only(busy), Code::Unavailable, 3, 1),
        ("an answer that is an error", Act::Trailers(missing.clone()), Code::NotFound, 1, 1),
        ("the same without a body", Act::Only(missing), Code::NotFound, 1, 1),
        ("a proxy without a service", Act::Http(502, vec![]), Code::Unavailable, 3, 1),
        (
            "a stream that breaks off",
            Act::BeginAndReset(api(), Reason::INTERNAL_ERROR),
            Code::Unavailable,
            1,
            1,
        ),
        ("a connection that breaks off", Act::BeginAndDie(api()), Code::Unavailable, 1, 1),
    ] {
        let rogue = stage.rogue(move |_| act.clone()).await;
        let world = stage.world(rogue.addr, &ALONE).await;
        for speech in ALL {
            for (call, attempts) in [(&READ, reads), (&WRITE, writes)] {
                let before = rogue.calls();
                let answer = speech.call(&world, call, None).await;
                let place = format!("{what}, {speech:?} {}", call.0);
                assert_eq!(speech.says(&answer), speech.expected(code), "{place}: {answer:?}");
                assert_eq!(rogue.calls() - before, attempts, "{place}");
            }
        }
        nothing_leaks(&world, &rogue).await;
    }
}

#[tokio::test]
async fn a_message_that_is_cut_short_is_never_taken_for_a_whole_one() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::ShortMessage).await;
    let world = stage.world(rogue.addr, &ALONE).await;
    for speech in ALL {
        let answer = speech.call(&world, &READ, None).await;
        match speech {
            // These pass unread, and their clients see what is missing.
            Speech::Grpc => assert_eq!(&answer.body[..], [0, 0, 0, 1, 0, 7], "{answer:?}"),
            Speech::Web | Speech::WebH1 => {
                assert!(answer.body.starts_with(&[0, 0, 0, 1, 0, 7]), "{answer:?}")
            }
            _ => assert_eq!(speech.says(&answer), speech.expected(Code::Internal), "{speech:?} {answer:?}"),
        }
    }
    nothing_leaks(&world, &rogue).await;
}

/// Enough for a call to reach its service on a machine that does much else.
const DEADLINE_MS: u32 = 700;

#[tokio::test]
async fn the_deadline_of_a_caller_ends_the_call_over_every_protocol() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::Hang).await;
    let world = stage.world(rogue.addr, &ALONE).await;
    states(&world, &["well"]).await;
    let mut cancelled = 0;
    for speech in ALL {
        for call in [&READ, &WRITE] {
            let started = Instant::now();
            let answer = speech.call(&world, call, Some(DEADLINE_MS)).await;
            assert_eq!(
                speech.says(&answer),
                speech.expected(Code::DeadlineExceeded),
                "{speech:?} {answer:?}"
            );
            assert!(started.elapsed() >= Duration::from_millis(DEADLINE_MS.into()), "{speech:?}");
            cancelled += 1;
            assert_eq!(rogue.calls(), cancelled, "{speech:?}: what is late is not sent again");
            until("the service hears of it", async || {
                rogue.record.cancelled.load(Ordering::SeqCst) == cancelled
            })
            .await;
        }
    }
    let told = rogue.headers("grpc-timeout");
    let told = told.iter().map(|rest| rest.as_deref().unwrap().trim_end_matches('m').parse::<u32>().unwrap());
    assert!(told.into_iter().all(|rest| rest <= DEADLINE_MS), "each is told what is left");
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn whoever_leaves_ends_the_call_over_every_protocol() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::Hang).await;
    let world = stage.world(rogue.addr, &ALONE).await;
    for (number, speech) in ALL.into_iter().enumerate() {
        let left = async { until("it has come", async || rogue.calls() == number + 1).await };
        tokio::select! {
            answer = speech.call(&world, &WRITE, None) => panic!("{speech:?}: nobody answers: {answer:?}"),
            () = left => {}
        }
        until("the service hears of it", async || {
            rogue.record.cancelled.load(Ordering::SeqCst) == number + 1
        })
        .await;
    }
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn an_instance_that_restarts_is_back_within_a_second_over_every_protocol() {
    let stage = Stage::new();
    let mut rogue = stage.rogue(|_| Act::Answer(api())).await;
    let world = stage.world(rogue.addr, &[("cache.enabled", "false")]).await;
    for speech in ALL {
        let answer = speech.call(&world, &READ, None).await;
        assert_eq!(speech.says(&answer), speech.expected(Code::Ok), "{speech:?} {answer:?}");
        let addr = rogue.kill().await;
        states(&world, &["away"]).await;
        for call in [&READ, &WRITE] {
            let started = Instant::now();
            let answer = speech.call(&world, call, None).await;
            assert_eq!(speech.says(&answer), speech.expected(Code::Unavailable), "{speech:?} {answer:?}");
            assert!(started.elapsed() < Duration::from_secs(2), "nobody waits for what is not there");
            if speech != Speech::Web && speech != Speech::WebH1 {
                assert_eq!(answer.header("retry-after"), "1", "{speech:?} {answer:?}");
            }
        }
        rogue = stage.rogue_at(&addr.to_string(), 100, |_| Act::Answer(api())).await;
        let back = Instant::now();
        loop {
            let answer = speech.call(&world, &WRITE, None).await;
            let says = speech.says(&answer);
            if says == speech.expected(Code::Ok) || says == "201" {
                break;
            }
            assert_eq!(says, speech.expected(Code::Unavailable), "{speech:?} {answer:?}");
            assert!(back.elapsed() < Duration::from_secs(1), "{speech:?}: a second is enough");
        }
    }
    nothing_leaks(&world, &rogue).await;
}

/// Of a stream of answers, that broke off after the first.
#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_over_every_protocol() {
    let beat = proto::gateway::Heartbeat { revision: 7, ..Default::default() };
    let beat =
        proto::gateway::PlatformFrame { frame: Some(proto::gateway::platform_frame::Frame::Heartbeat(beat)) };
    let message = beat.encode_to_vec();
    let rpc = "/tollgate.gateway.v1.GatewayLink/Subscribe";
    for act in [Act::BeginAndReset(message.clone(), Reason::INTERNAL_ERROR), Act::BeginAndDie(message)] {
        let stage = Stage::new();
        let rogue = stage.rogue_of("gateway-service", "127.0.0.1:0", 100, move |_| act.clone()).await;
        let address = format!("\"{}\"", rogue.addr);
        let set = [("upstreams.gateway.address", &*address), ("limits.gateway_connects_per_minute", "1000")];
        let world = stage.world("127.0.0.1:1", &[&set[..], &ALONE].concat()).await;
        streams_break_off(&world, rpc).await;
        nothing_leaks_at(&world, "gateway-service", &rogue).await;
    }
}

async fn streams_break_off(world: &World, rpc: &str) {
    fn over(ask: Ask<'_>, h1: bool) -> Ask<'_> {
        if h1 { ask.h1() } else { ask }
    }
    for h1 in [false, true] {
        let ask = world.get("/api/internal/v1/gateways/events").header("api-key", "k");
        let answer = over(ask, h1).send("").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(answer.complete && text.contains("event: error\ndata: {\"code\":503"), "{answer:?}");
        let ask = world.get("/api/internal/v1/gateways/events").header("api-key", "k");
        let answer = over(ask.header("accept", "application/x-ndjson"), h1).send("").await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(answer.complete && last["error"]["code"] == 503, "{answer:?}");

        let ask = world.post(rpc).header("api-key", "k").header("content-type", "application/grpc-web");
        let answer = over(ask, h1).send(frame(b"")).await;
        assert_eq!(Speech::Web.says(&answer), "14", "{answer:?}");

        let ask = world.post(rpc).header("api-key", "k");
        let ask = ask.header("content-type", "application/connect+proto");
        let answer = over(ask, h1).send(frame(b"")).await;
        assert!(answer.complete, "{answer:?}");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(text.contains(r#""code":"unavailable""#), "{text}");
    }
    let answer = world.grpc(rpc, &[("api-key", "k")], &[b""]).await;
    assert_eq!((answer.complete, answer.grpc_status()), (true, "14"), "{answer:?}");
}
