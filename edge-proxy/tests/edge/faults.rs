//! What callers see, and instances hear, while an instance of a service breaks the rules.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use h2::Reason;
use http::StatusCode;
use prost::Message as _;
use proto::project::Api;
use service_kit::Error;
use tokio::sync::Semaphore;
use tonic::Status;

use super::{
    harness::World,
    rogue::{Act, Stage, nothing_leaks, states, until},
};

/// May be sent again.
const READ: &str = "/tollgate.project.v1.ApiService/GetApi";
/// May not.
const WRITE: &str = "/tollgate.project.v1.ApiService/CreateApi";

fn api() -> Vec<u8> {
    Api { id: "a1".into(), ..Api::default() }.encode_to_vec()
}

async fn grpc(world: &World, path: &str) -> super::client::Answer {
    world.grpc(path, &[("authorization", &world.bearer())], &[b""]).await
}

#[tokio::test]
async fn resets_have_their_status_and_their_number_of_attempts() {
    let stage = Stage::new();
    for (reason, status, reads, writes) in [
        // Never begun with: whatever it is, it comes back, but not for ever.
        (Reason::REFUSED_STREAM, "14", 5, 5),
        // Perhaps begun with: only what may be sent again is.
        (Reason::INTERNAL_ERROR, "14", 3, 1),
        (Reason::CANCEL, "1", 3, 1),
        (Reason::ENHANCE_YOUR_CALM, "8", 3, 1),
        (Reason::PROTOCOL_ERROR, "13", 3, 1),
        (Reason::INADEQUATE_SECURITY, "7", 3, 1),
    ] {
        for (path, attempts) in [(READ, reads), (WRITE, writes)] {
            let rogue = stage.rogue(move |_| Act::Reset(reason)).await;
            let world = stage.world(rogue.addr, &[]).await;
            let answer = grpc(&world, path).await;
            assert_eq!((answer.complete, answer.grpc_status()), (true, status), "{reason} {path} {answer:?}");
            assert_eq!(rogue.calls(), attempts, "{reason} {path}");
            nothing_leaks(&world, &rogue).await;
        }
    }
}

#[tokio::test]
async fn what_was_refused_once_succeeds_unnoticed() {
    let stage = Stage::new();
    let act = |number| if number == 0 { Act::Reset(Reason::REFUSED_STREAM) } else { Act::Answer(api()) };
    let rogue = stage.rogue(act).await;
    let world = stage.world(rogue.addr, &[]).await;
    assert_eq!(grpc(&world, WRITE).await.grpc_status(), "0");
    // gRFC A6: such a retry is none that the service hears of.
    assert_eq!(rogue.headers("grpc-previous-rpc-attempts"), [None, None]);
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn an_instance_that_says_goodbye_loses_no_call() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::AnswerAndLeave(api())).await;
    let world = stage.world(rogue.addr, &[]).await;
    for number in 1..=30 {
        let answer = grpc(&world, WRITE).await;
        assert_eq!((answer.grpc_status(), rogue.calls()), ("0", number), "{answer:?}");
    }
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn errors_in_trailers_are_errors() {
    let stage = Stage::new();
    let busy = vec![("grpc-status", "14"), ("grpc-message", "not now")];
    for only in [false, true] {
        let busy = busy.clone();
        let act = move |number| match number {
            0 | 1 if only => Act::Only(busy.clone()),
            0 | 1 => Act::Trailers(busy.clone()),
            _ => Act::Answer(api()),
        };
        // What may be sent again is, and the service is told how often it was.
        let rogue = stage.rogue(act.clone()).await;
        let world = stage.world(rogue.addr, &[]).await;
        assert_eq!(grpc(&world, READ).await.grpc_status(), "0");
        let previous = rogue.headers("grpc-previous-rpc-attempts");
        assert_eq!(previous, [None, Some("1".to_owned()), Some("2".to_owned())]);
        let rests = rogue.headers("grpc-timeout");
        let rest = |at: usize| rests[at].clone().unwrap().trim_end_matches('m').parse::<u32>().unwrap();
        assert!(rest(0) <= 15_000 && rest(1) < rest(0) && rest(2) < rest(1), "{rests:?}");
        nothing_leaks(&world, &rogue).await;
        // What may not is passed on as it is.
        let rogue = stage.rogue(act).await;
        let world = stage.world(rogue.addr, &[]).await;
        let answer = grpc(&world, WRITE).await;
        assert_eq!((answer.grpc_status(), rogue.calls()), ("14", 1), "{answer:?}");
        nothing_leaks(&world, &rogue).await;
    }
}

#[tokio::test]
async fn the_service_says_whether_and_when() {
    let stage = Stage::new();
    let busy = |pair| vec![("grpc-status", "14"), pair];
    for (pair, attempts) in [
        (("grpc-retry-pushback-ms", "-1"), 1),
        (("grpc-retry-pushback-ms", "1"), 3),
        // Longer than the call may take.
        (("retry-after", "3600"), 1),
    ] {
        let rogue = stage.rogue(move |_| Act::Only(busy(pair))).await;
        let world = stage.world(rogue.addr, &[]).await;
        let answer = grpc(&world, READ).await;
        assert_eq!((answer.grpc_status(), rogue.calls()), ("14", attempts), "{pair:?}");
    }
    // An answer in HTTP, as of a proxy in between.
    let rogue = stage.rogue(|_| Act::Http(503, vec![("retry-after", "3600")])).await;
    let world = stage.world(rogue.addr, &[]).await;
    let answer = world.get("/api/v1/apis/a1").user().send("").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "3600"));
    assert_eq!(rogue.calls(), 1);
}

#[tokio::test]
async fn who_lies_about_a_length_is_not_believed() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::ShortBody(api())).await;
    let world = stage.world(rogue.addr, &[]).await;
    let answer = grpc(&world, WRITE).await;
    assert_eq!((answer.complete, answer.grpc_status()), (true, "13"), "{answer:?}");
    let answer = world.post("/api/v1/apis").user().json("{}").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{answer:?}");
    nothing_leaks(&world, &rogue).await;

    let rogue = stage.rogue(|_| Act::ShortMessage).await;
    let world = stage.world(rogue.addr, &[]).await;
    let answer = world.post("/api/v1/apis").user().json("{}").await;
    assert_eq!((answer.status, rogue.calls()), (StatusCode::INTERNAL_SERVER_ERROR, 1), "{answer:?}");

    // No status at all is no good status.
    let rogue = stage.rogue(|_| Act::NoStatus(api())).await;
    let world = stage.world(rogue.addr, &[]).await;
    let answer = grpc(&world, READ).await;
    assert_eq!((answer.complete, answer.grpc_status()), (true, "14"), "{answer:?}");
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn an_answer_that_has_begun_is_not_begun_again() {
    let stage = Stage::new();
    for (act, status) in [
        (Act::BeginAndDie(api()), "14"),
        (Act::BeginAndReset(api(), Reason::INTERNAL_ERROR), "14"),
        (Act::BeginAndReset(api(), Reason::ENHANCE_YOUR_CALM), "8"),
    ] {
        let rogue = stage.rogue(move |_| act.clone()).await;
        let world = stage.world(rogue.addr, &[]).await;
        let answer = grpc(&world, READ).await;
        assert_eq!((answer.complete, answer.grpc_status()), (true, status), "{answer:?}");
        assert_eq!((answer.messages().len(), rogue.calls()), (1, 1));
        let rest = world.get("/api/v1/apis/a1").user().send("").await;
        assert!(matches!(rest.status.as_u16(), 503 | 429), "{rest:?}");
        nothing_leaks(&world, &rogue).await;
    }
}

#[tokio::test]
async fn the_deadline_is_the_edges() {
    let stage = Stage::new();
    let rogue = stage.rogue(|_| Act::Hang).await;
    let world = stage.world(rogue.addr, &[]).await;
    let started = Instant::now();
    states(&world, &["well"]).await;
    let headers = [("authorization", &*world.bearer()), ("grpc-timeout", "1000m")];
    let answer = world.grpc(READ, &headers, &[b""]).await;
    assert_eq!((answer.complete, answer.grpc_status()), (true, "4"), "{answer:?}");
    let get = || world.get("/api/v1/apis/a1").user();
    let answer = get().header("request-timeout", "1").send("").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(10));
    // The instance hears of it at once, and was told before.
    until("both are cancelled", async || rogue.record.cancelled.load(Ordering::SeqCst) == 2).await;
    let told = rogue.headers("grpc-timeout");
    assert!(told.iter().flatten().all(|rest| rest.trim_end_matches('m').parse::<u32>().unwrap() <= 1_000));
    let answer = get().header("request-timeout", "soon").send("").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["reason"]), (400, &"INVALID_TIMEOUT".into()));
    // A client that leaves ends the call too.
    tokio::select! {
        answer = grpc(&world, READ) => panic!("nobody answers: {answer:?}"),
        () = until("the third has come", async || rogue.calls() == 3) => {}
    }
    until("the third is cancelled", async || rogue.record.cancelled.load(Ordering::SeqCst) == 3).await;
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn an_instance_that_is_back_is_used_again_soon() {
    let stage = Stage::new();
    let mut rogue = stage.rogue(|_| Act::Answer(api())).await;
    let world = stage.world(rogue.addr, &[]).await;
    for _ in 0..3 {
        assert_eq!(grpc(&world, READ).await.grpc_status(), "0");
        let addr = rogue.kill().await;
        states(&world, &["away"]).await;
        let started = Instant::now();
        for path in [READ, WRITE] {
            assert_eq!(grpc(&world, path).await.grpc_status(), "14");
        }
        assert!(started.elapsed() < Duration::from_secs(2), "nobody waits for what is not there");
        rogue = stage.rogue_at(&addr.to_string(), 100, |_| Act::Answer(api())).await;
        let back = Instant::now();
        while grpc(&world, WRITE).await.grpc_status() != "0" {
            assert!(back.elapsed() < Duration::from_secs(1), "a second is enough");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn calls_under_way_survive_what_others_do() {
    let stage = Stage::new();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let act = move |number| match number % 2 {
        0 => Act::Gated(api(), opened.clone()),
        _ => Act::Reset(Reason::CANCEL),
    };
    let rogue = stage.rogue(act).await;
    let world = stage.world(rogue.addr, &[]).await;
    let calls = futures_util::future::join_all((0..40).map(|_| grpc(&world, WRITE)));
    let open = async {
        until("all have come", async || rogue.calls() == 40).await;
        gate.add_permits(20);
    };
    let (answers, ()) = tokio::join!(calls, open);
    let good = answers.iter().filter(|answer| answer.grpc_status() == "0").count();
    let bad = answers.iter().filter(|answer| answer.grpc_status() == "1").count();
    assert_eq!((good, bad), (20, 20));
    nothing_leaks(&world, &rogue).await;
}

#[tokio::test]
async fn a_status_that_cannot_be_read_is_still_one() {
    let stage = Stage::new();
    let details = Status::from(Error::not_found("API"));
    let mut headers = http::HeaderMap::new();
    details.add_header(&mut headers).unwrap();
    let details = headers["grpc-status-details-bin"].to_str().unwrap().trim_end_matches('=').to_owned();
    let details: &'static str = details.leak();
    let missing =
        |message| vec![("grpc-status", "5"), ("grpc-message", message), ("grpc-status-details-bin", details)];
    // A message that is no text: the code counts, and the details.
    for message in ["caf%E9", "100%", "%zz%"] {
        for act in [Act::Only(missing(message)), Act::Trailers(missing(message))] {
            let rogue = stage.rogue(move |_| act.clone()).await;
            let world = stage.world(rogue.addr, &[("cache.enabled", "false")]).await;
            assert_eq!(grpc(&world, READ).await.grpc_status(), "5", "{message}");
            let rest = world.get("/api/v1/apis/a1").user().send("").await;
            assert_eq!((rest.status, &rest.json()["reason"]), (StatusCode::NOT_FOUND, &"NOT_FOUND".into()));
            let connect = world.post(READ).user().json("{}").await;
            assert_eq!(
                (connect.status, &connect.json()["code"]),
                (StatusCode::NOT_FOUND, &"not_found".into())
            );
            nothing_leaks(&world, &rogue).await;
        }
    }
    // Details that are none.
    let broken = vec![("grpc-status", "14"), ("grpc-message", "not now"), ("grpc-status-details-bin", "!!!")];
    for act in [Act::Only(broken.clone()), Act::Trailers(broken)] {
        let rogue = stage.rogue(move |_| act.clone()).await;
        let world = stage.world(rogue.addr, &[("upstreams.resilience.breaker_failures", "0")]).await;
        let answer = grpc(&world, READ).await;
        assert_eq!((answer.complete, answer.grpc_status()), (true, "14"), "{answer:?}");
        let rest = world.get("/api/v1/apis/a1").user().send("").await;
        assert_eq!(rest.status, StatusCode::SERVICE_UNAVAILABLE, "{rest:?}");
        let connect = world.post(READ).user().json("{}").await;
        assert_eq!(
            (connect.status, &connect.json()["code"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"unavailable".into())
        );
        nothing_leaks(&world, &rogue).await;
    }
}

#[tokio::test]
async fn what_is_no_grpc_has_a_status_by_its_http_status() {
    let stage = Stage::new();
    for (http, status, rest, attempts) in [
        (400, "13", 500, 1),
        (401, "16", 401, 1),
        (403, "7", 403, 1),
        (404, "12", 501, 1),
        (418, "13", 500, 1),
        (429, "14", 503, 3),
        (431, "13", 500, 1),
        (502, "14", 503, 3),
        (503, "14", 503, 3),
        (504, "14", 503, 3),
    ] {
        let rogue = stage.rogue(move |_| Act::Http(http, vec![("content-type", "text/html")])).await;
        let world = stage.world(rogue.addr, &[("upstreams.resilience.breaker_failures", "0")]).await;
        let answer = grpc(&world, READ).await;
        assert_eq!((answer.status.as_u16(), answer.grpc_status()), (200, status), "{http}");
        assert_eq!((answer.header("content-type"), rogue.calls()), ("application/grpc", attempts), "{http}");
        let answer = world.get("/api/v1/apis/a1").user().send("").await;
        assert_eq!(answer.status.as_u16(), rest, "{http}");
        // A status of gRPC counts more than that of HTTP.
        let both = vec![("grpc-status", "10"), ("grpc-message", "again")];
        let rogue = stage.rogue(move |_| Act::Http(http, both.clone())).await;
        let world = stage.world(rogue.addr, &[]).await;
        assert_eq!(grpc(&world, READ).await.grpc_status(), "10", "{http}");
    }
}
