//! Who is refused hears so, whatever of its body is still on its way, and whether its connection goes on.

use std::time::Duration;

use proto::auth::TokenPair;
use service_kit::Clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{
    client::tls,
    harness::{Options, World, ok},
};

const JSON: &str = "content-type: application/json\r\n";
const IMPORT: &str = "/api/v1/apis/import";
const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";
const NEXT: &str = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A refusal: what is asked, and the status that answers it before the body is read.
struct Refused {
    line: &'static str,
    headers: String,
    status: u16,
}

fn refused(line: &'static str, headers: &str, status: u16) -> Refused {
    Refused { line, headers: headers.to_owned(), status }
}

/// One of each kind, by layer: paths, hosts, routes, methods, types, credentials, protocols.
fn kinds(bearer: &str) -> Vec<Refused> {
    let user = format!("authorization: {bearer}\r\n");
    let yaml = "content-type: text/yaml\r\n";
    vec![
        refused("POST /api//v1/apis", JSON, 400),
        refused("POST /api/v1/nowhere", JSON, 404),
        refused("PUT /api/v1/auth/login", JSON, 405),
        refused("PUT /health", "", 405),
        refused("PUT /api/v1/batch", JSON, 405),
        refused("POST /api/v1/batch", "content-type: text/plain\r\n", 415),
        refused("POST /api/v1/apis/import", yaml, 401),
        refused("POST /api/v1/apis/import", "authorization: Bearer nonsense\r\n", 401),
        refused("POST /api/v1/apis/import", &format!("{user}{yaml}accept: image/png\r\n"), 406),
        refused("POST /api/v1/apis/import", &format!("{user}{yaml}request-timeout: soon\r\n"), 400),
        refused("POST /api/v1/apis/import", &format!("{user}{yaml}content-encoding: rot13\r\n"), 415),
        refused("POST /tollgate.project.v1.ApiService/GetApi", JSON, 401),
        refused("POST /tollgate.project.v1.ApiService/GetApi", "content-type: text/plain\r\n", 415),
        refused("PUT /tollgate.project.v1.ApiService/GetApi", JSON, 405),
        refused("POST /tollgate.project.v1.ApiService/Nothing", JSON, 501),
        refused("POST /tollgate.project.v1.ApiService/GetApi", "content-type: application/grpc\r\n", 200),
        refused("POST /api/internal/v1/ws/gateways/connect", "", 405),
    ]
}

/// How a body says where it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Framing {
    Length,
    Chunked,
}

/// When a client reads.
#[derive(Debug, Clone, Copy)]
enum Reads {
    /// While it sends.
    Meanwhile,
    /// Once all of its body is sent.
    After,
}

impl Framing {
    fn head(self, size: usize) -> String {
        match self {
            Self::Length => format!("content-length: {size}\r\n"),
            Self::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
        }
    }

    fn body(self, size: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(size * 2);
        match self {
            Self::Length => body.resize(size, b'x'),
            Self::Chunked => {
                for part in vec![b'x'; size].chunks(10_000.min(size / 3)) {
                    body.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                    body.extend_from_slice(part);
                    body.extend_from_slice(b"\r\n");
                }
                body.extend_from_slice(b"0\r\n\r\n");
            }
        }
        body
    }
}

/// The head and the body of one answer; `None` when the connection ends before.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

fn status(head: &str) -> u16 {
    head[9..12].parse().unwrap()
}

/// What a connection does after an answer: ends where that says so, and answers again where not.
async fn goes_on_as_said(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), head: &str, what: &str) -> bool {
    if head.contains("connection: close\r\n") {
        let mut more = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut more)).await.expect("an end");
        assert!(more.is_empty(), "{what}: {more:?}");
        return false;
    }
    stream.write_all(NEXT.as_bytes()).await.unwrap_or_else(|error| panic!("{what}: {error} after {head}"));
    let (next, _) = answer(stream).await.unwrap_or_else(|| panic!("{what}: no second answer after {head}"));
    assert_eq!(status(&next), 200, "{what}: {next}");
    true
}

/// Sends a request that is refused; says whether its connection went on.
async fn refuse(
    stream: TlsStream<TcpStream>,
    kind: &Refused,
    framing: Framing,
    size: usize,
    reads: Reads,
) -> bool {
    let Refused { line, headers, status: expected } = kind;
    let what = format!("{line} {headers:?} {framing:?} {size} {reads:?}");
    let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}{}\r\n", framing.head(size));
    let request = [head.into_bytes(), framing.body(size)].concat();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sending = async {
        let sent = writer.write_all(&request).await;
        (sent.and(writer.flush().await), writer)
    };
    let (answered, (sent, writer)) = match reads {
        Reads::Meanwhile => tokio::join!(answer(&mut reader), sending),
        Reads::After => {
            let sent = sending.await;
            (answer(&mut reader).await, sent)
        }
    };
    let (head, body) = answered.unwrap_or_else(|| panic!("{what}: no answer; sending: {sent:?}"));
    assert_eq!(status(&head), *expected, "{what}: {head}{}", String::from_utf8_lossy(&body));
    let mut stream = reader.unsplit(writer);
    if !head.contains("connection: close\r\n") {
        sent.unwrap_or_else(|error| panic!("{what}: {error} in a body that was to be read"));
    }
    goes_on_as_said(&mut stream, &head, &what).await
}

async fn world() -> World {
    World::start(|_| ok(&TokenPair::default())).await
}

#[tokio::test]
async fn refusals_arrive_whatever_is_still_on_its_way() {
    let world = world().await;
    for kind in kinds(&world.bearer()) {
        for framing in [Framing::Length, Framing::Chunked] {
            for (size, keeps) in [(300, true), (200_000, true), (3_000_000, false)] {
                for reads in [Reads::Meanwhile, Reads::After] {
                    let stream = tls(&world, &["http/1.1"]).await;
                    let going = refuse(stream, &kind, framing, size, reads);
                    let went_on = timeout(Duration::from_secs(30), going).await.expect("an answer in time");
                    // What is small costs nobody its connection, and nobody is read without an end.
                    assert_eq!(went_on, keeps, "{} {framing:?} {size} {reads:?}", kind.line);
                }
            }
        }
    }
    assert!(world.calls().is_empty());
}

#[tokio::test]
async fn who_is_over_its_limit_hears_so_too() {
    let options = Options::default().set("limits.address_per_minute", 1);
    let clock = Clock::fixed(Clock::system().now_ms());
    let world = World::with(Options { clock, ..options }, |_| ok(&TokenPair::default())).await;
    assert_eq!(world.post("/api/v1/auth/login").json("{}").await.status, 200);
    for framing in [Framing::Length, Framing::Chunked] {
        for size in [300, 200_000, 3_000_000] {
            let stream = tls(&world, &["http/1.1"]).await;
            refuse(stream, &refused("POST /api/v1/apis/import", JSON, 429), framing, size, Reads::After)
                .await;
            let stream = tls(&world, &["http/1.1"]).await;
            let web = refused(
                "POST /tollgate.project.v1.ApiService/GetApi",
                "content-type: application/grpc-web\r\n",
                200,
            );
            refuse(stream, &web, framing, size, Reads::Meanwhile).await;
        }
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_not_read_for_long() {
    let world = world().await;
    let kind = refused("POST /api/v1/auth/login", JSON, 413);
    for framing in [Framing::Length, Framing::Chunked] {
        for reads in [Reads::Meanwhile, Reads::After] {
            let stream = tls(&world, &["http/1.1"]).await;
            assert!(!refuse(stream, &kind, framing, 3_000_000, reads).await);
        }
    }
    // A client that goes on for ever is cut off: by bytes, and by time when it is slow.
    let head = format!(
        "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 99000000000\r\n\r\n"
    );
    for slow in [false, true] {
        let mut stream = tls(&world, &["http/1.1"]).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let (head, _) = answer(&mut stream).await.unwrap();
        assert!(status(&head) == 413 && head.contains("connection: close"), "{head}");
        let (part, pause) = if slow { (1, Duration::from_millis(20)) } else { (64 * 1024, Duration::ZERO) };
        let (mut reader, mut writer) = tokio::io::split(stream);
        // The end of the answer is there at once: nobody has to guess.
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(5), reader.read_to_end(&mut rest)).await.expect("an end");
        let endless = async {
            while writer.write_all(&vec![b'x'; part]).await.is_ok() && writer.flush().await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        };
        timeout(Duration::from_secs(30), endless).await.expect("a cut");
    }
}

#[tokio::test]
async fn who_asks_before_it_sends_is_told_not_to() {
    let world = world().await;
    let mut kinds = kinds(&world.bearer());
    kinds.push(refused("POST /api/v1/auth/login", JSON, 413));
    for kind in kinds {
        let Refused { line, headers, status: expected } = kind;
        let head = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\n{headers}expect: 100-continue\r\ncontent-length: 2000000\r\n\r\n"
        );
        let mut stream = tls(&world, &["http/1.1"]).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let (head, _) = answer(&mut stream).await.unwrap();
        assert_eq!(status(&head), expected, "{line}: {head}");
        // It cannot know whether we would take a body for the next request.
        assert!(!goes_on_as_said(&mut stream, &head, line).await, "{line}: {head}");
    }
    // Who may send is told so.
    let head = format!(
        "POST /api/v1/auth/login HTTP/1.1\r\nhost: localhost\r\n{JSON}expect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    );
    let mut stream = tls(&world, &["http/1.1"]).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let (head, _) = answer(&mut stream).await.unwrap();
    assert_eq!(status(&head), 100, "{head}");
    stream.write_all(b"{}").await.unwrap();
    let (head, _) = answer(&mut stream).await.unwrap();
    assert_eq!(status(&head), 200, "{head}");
    assert!(goes_on_as_said(&mut stream, &head, "a body that was asked for").await);
}

#[tokio::test]
async fn heads_that_cannot_be_read_are_refused_in_words() {
    let world = world().await;
    let huge = format!("POST {IMPORT} HTTP/1.1\r\nhost: localhost\r\nx-a: {}", "a".repeat(1_000_000));
    let garbage = format!("GARBAGE\r\n\r\n{}", "b".repeat(500_000));
    let two = format!(
        "POST {GET_API} HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 2\r\ncontent-length: 3\r\n\r\n"
    );
    let two = two + &"c".repeat(500_000);
    for (request, expected) in [(huge, 431), (garbage, 400), (two, 400)] {
        let mut stream = tls(&world, &["http/1.1"]).await;
        // The edge may end before all is sent; what it said is there all the same.
        let _ = stream.write_all(request.as_bytes()).await;
        let (head, _) =
            answer(&mut stream).await.unwrap_or_else(|| panic!("no answer to {}", &request[..20]));
        assert_eq!(status(&head), expected, "{head}");
    }
}
