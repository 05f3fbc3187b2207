//! How often somebody may call: by address, by user, by token and by class, in one edge and in several.

use http::StatusCode;
use proto::{auth::TokenPair, project::Api};
use serde_json::json;
use service_kit::{Clock, testing::TestRedis};

use super::{
    client::Answer,
    harness::{Call, Options, Reply, World, ok},
};

const GET_API: &str = "/tollgate.project.v1.ApiService/GetApi";

fn api(call: &Call) -> Reply {
    if call.path.contains("/Get") { ok(&Api::default()) } else { ok(&TokenPair::default()) }
}

/// A world whose time stands still.
async fn world(options: Options) -> World {
    let clock = Clock::fixed(Clock::system().now_ms());
    // Every call is to arrive.
    let options = options.set("cache.enabled", false);
    World::with(Options { clock, ..options }, api).await
}

/// A call of a user with a session.
async fn call(world: &World, user: &str, session: &str) -> Answer {
    let token = world.token_with(|claims| {
        claims["sub"] = user.into();
        claims["sid"] = session.into();
    });
    let bearer = format!("Bearer {token}");
    world.get("/api/v1/apis/a1").header("authorization", &bearer).send("").await
}

fn refused_by(answer: &Answer, limit: &str) {
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(
        (&problem["violated-policies"], &problem["reason"]),
        (&json!([limit]), &json!("RATE_LIMITED"))
    );
    let told = answer.header("ratelimit").strip_prefix(&format!("\"{limit}\";r=0;t=")).unwrap().to_owned();
    let after: u32 = answer.header("retry-after").parse().unwrap();
    assert!(
        told.parse::<u32>().unwrap() <= after && answer.trailers.get("ratelimit").is_none(),
        "{answer:?}"
    );
}

#[tokio::test]
async fn users_and_their_tokens_have_limits_of_their_own() {
    let options = Options::default().set("limits.user_per_minute", 5).set("limits.token_per_minute", 3);
    let world = world(options).await;
    for left in [2, 1, 0] {
        let answer = call(&world, "ada", "s1").await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let expected = "\"address\";q=60000;w=60, \"user\";q=5;w=60, \"token\";q=3;w=60";
        assert_eq!(answer.policies().0, expected);
        assert_eq!(answer.header("ratelimit"), format!("\"token\";r={left};t={}", (3 - left) * 20));
    }
    refused_by(&call(&world, "ada", "s1").await, "token");
    // Another session of hers has a limit of its own, and shares that of the user.
    for _ in 0..2 {
        assert_eq!(call(&world, "ada", "s2").await.status, StatusCode::OK);
    }
    refused_by(&call(&world, "ada", "s2").await, "user");
    assert_eq!(call(&world, "bob", "s3").await.status, StatusCode::OK);
    // Over gRPC it is the same limit, told in headers.
    let token = world.token_with(|claims| claims["sub"] = "ada".into());
    let refused = world.grpc(GET_API, &[("authorization", &format!("Bearer {token}"))], &[b""]).await;
    assert_eq!((refused.grpc_status(), refused.header("ratelimit")), ("8", "\"user\";r=0;t=12"));
    let calls = world.calls().len();
    assert_eq!(calls, 6, "what is refused is not passed on");
}

#[tokio::test]
async fn an_address_is_limited_before_its_credential_is_looked_at() {
    let world = world(Options::default().set("limits.address_per_minute", 3)).await;
    for _ in 0..3 {
        let answer = world.get("/api/v1/apis/a1").header("authorization", "Bearer nonsense").send("").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
    }
    refused_by(&call(&world, "ada", "s1").await, "address");
    assert_eq!(world.get("/health").send("").await.status, StatusCode::OK);
}

#[tokio::test]
async fn expensive_calls_are_fewer() {
    let world = world(Options::default().set("limits.heavy_per_minute", 2)).await;
    let deploy = async || {
        let ask = world.post("/api/v1/apis/import").user().header("content-type", "text/yaml");
        ask.send("x: 1").await
    };
    for _ in 0..2 {
        let answer = deploy().await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        assert!(answer.policies().0.ends_with("\"heavy\";q=2;w=60"), "{answer:?}");
    }
    refused_by(&deploy().await, "heavy");
    assert_eq!(call(&world, "u", "s").await.status, StatusCode::OK, "ordinary calls go on");
}

#[tokio::test]
async fn a_key_says_which_calls_count_together_and_not_whose_they_are() {
    let world = world(Options::default().set("limits.user_per_minute", 3)).await;
    let keys = async |user, session| call(&world, user, session).await.policies().1;
    let ada = keys("ada", "s1").await;
    assert_eq!(ada, keys("ada", "s1").await);
    let (again, bob) = (keys("ada", "s2").await, keys("bob", "s1").await);
    let [address, user, token] = &ada[..] else { panic!("{ada:?}") };
    assert!(address == &again[0] && user == &again[1] && token != &again[2], "{ada:?} {again:?}");
    assert!(address == &bob[0] && user != &bob[1] && token == &bob[2], "{ada:?} {bob:?}");
    // A refusal is about the same one.
    let refused = call(&world, "ada", "s3").await;
    assert_eq!(refused.policies(), ("\"user\";q=3;w=60".to_owned(), vec![user.clone()]));
    // Another edge, or this one after a restart, has other names for all of them.
    let elsewhere = self::world(Options::default()).await;
    let there = call(&elsewhere, "ada", "s1").await.policies().1;
    assert!(there.iter().all(|key| !ada.contains(key)), "{ada:?} {there:?}");
}

fn sharing(redis: &TestRedis) -> Options {
    use secrecy::ExposeSecret as _;
    Options::default()
        .set("limits.shared.url", format!("\"{}\"", redis.config().url.expose_secret()))
        .set("limits.shared.timeout_ms", 1_000)
        .set("limits.user_per_minute", 20)
        .set("limits.credential_per_minute", 20)
        .set("limits.shared.closed", "[\"credential\"]")
}

/// Calls of one user until they are refused, in turn by each edge.
async fn calls_until_refused(worlds: &[&World]) -> usize {
    for count in 0..200 {
        let answer = call(worlds[count % worlds.len()], "ada", "s1").await;
        match answer.status {
            StatusCode::OK => {}
            _ => {
                refused_by(&answer, "user");
                return count;
            }
        }
    }
    panic!("never refused")
}

async fn login(world: &World) -> StatusCode {
    world.post("/api/v1/auth/login").json("{}").await.status
}

/// Waits until an edge counts with the others: logins are refused until then.
async fn sharing_again(world: &World) {
    while login(world).await == StatusCode::SERVICE_UNAVAILABLE {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn several_edges_share_one_quota() {
    let redis = TestRedis::start();
    let (one, two) = (world(sharing(&redis)).await, world(sharing(&redis)).await);
    for world in [&one, &two] {
        sharing_again(world).await;
    }
    assert_eq!(calls_until_refused(&[&one, &two]).await, 20);
    refused_by(&call(&one, "ada", "s2").await, "user");
    assert_eq!(call(&two, "bob", "s3").await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_redis_each_limit_does_what_its_setting_says() {
    let mut redis = TestRedis::away();
    let (one, two) = (world(sharing(&redis)).await, world(sharing(&redis)).await);
    // Open: each edge counts for itself.
    assert_eq!(calls_until_refused(&[&one]).await, 20);
    assert_eq!(calls_until_refused(&[&two]).await, 20);
    // Closed: nobody gets in uncounted.
    let answer = one.post("/api/v1/auth/login").json("{}").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "1"));
    assert!(one.calls().iter().all(|call| call.path == GET_API), "{:?}", one.calls());
    redis.restart();
    sharing_again(&one).await;
    assert_eq!(login(&one).await, StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_at_the_start() {
    for (key, value) in [("limits.shared.closed", "[\"everything\"]"), ("limits.shared.url", "\"localhost\"")]
    {
        let options = Options::default().set(key, value);
        let error = World::try_with(options).await.unwrap_err();
        assert!(format!("{error:#}").contains(key), "{error:#}");
    }
}
