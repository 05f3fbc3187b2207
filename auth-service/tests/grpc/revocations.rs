//! What other services are told: which sessions have ended, and whether a token is good.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use proto::auth::{
    GetProfileRequest, LogoutRequest, RevocationUpdate, ValidateTokenRequest, WatchRevocationsRequest,
    identity_service_client::IdentityServiceClient,
};
use secrecy::ExposeSecret as _;
use service_kit::{
    Kind,
    client::Upstream,
    seal::Sealer,
    shutdown::Tasks,
    testing::TestDatabase,
    token::{RemoteAuthority, Verifier},
};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tonic::{Code, Streaming};

use crate::harness::{Auth, Client, PASSWORD, Setup, answer, login, on_both, refusal, sign_up, with_token};

/// What is promised of a revocation.
const PROMISE: Duration = Duration::from_secs(5);

/// Waits until it holds; not for ever.
async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(60), what, holds).await;
}

/// Waits until it holds, for as long as a revocation may take.
pub(crate) async fn soon(what: &str, holds: impl AsyncFnMut() -> bool) {
    within(PROMISE, what, holds).await;
}

async fn within(patience: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_| panic!("not in {patience:?}: {what}"));
}

type Identity = IdentityServiceClient<Upstream>;

fn identity(auth: &Auth) -> Identity {
    IdentityServiceClient::new(auth.upstream("gateway-service"))
}

async fn watch(auth: &Auth, after: u64) -> Streaming<RevocationUpdate> {
    answer(identity(auth).watch_revocations(WatchRevocationsRequest { after }).await).unwrap()
}

async fn next(feed: &mut Streaming<RevocationUpdate>) -> RevocationUpdate {
    let next = tokio::time::timeout(PROMISE, feed.message()).await;
    next.expect("an update every five seconds").unwrap().expect("the feed goes on")
}

fn sessions(update: &RevocationUpdate) -> Vec<&str> {
    update.revocations.iter().map(|one| one.session_id.as_str()).collect()
}

fn sid(token: &str) -> String {
    crate::keys::part(token, 1)["sid"].as_str().unwrap().to_owned()
}

async fn logout(client: &Client, token: &str) {
    answer(client.clone().logout(with_token(token, LogoutRequest {})).await).unwrap();
}

async fn is_active(auth: &Auth, token: &str) -> bool {
    let request = ValidateTokenRequest { access_token: token.to_owned() };
    answer(identity(auth).validate_token(request).await).unwrap().active
}

/// Does something to the database behind the back of the service; `@` stands before the names of tables.
async fn meddle(auth: &Auth, sql: &str) {
    let (url, schema) = (auth.database.config.url.expose_secret(), &auth.database.config.schema);
    if url.starts_with("sqlite:") {
        let pool = SqlitePool::connect(url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.replace('@', ""))).execute(&pool).await.unwrap();
        pool.close().await;
    } else {
        let pool = PgPool::connect(url).await.unwrap();
        let sql = sql.replace('@', &format!("{schema}."));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        pool.close().await;
    }
}

#[tokio::test]
async fn followers_hear_at_once_then_what_changes_and_always_something() {
    on_both(async |auth: Auth| {
        let (_, one) = auth.user("jane@example.com").await;
        let two = login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        let mut feed = watch(&auth, 0).await;
        let first = next(&mut feed).await;
        assert_eq!((first.position, first.revocations.len(), first.key_ids.len()), (0, 0, 1));

        logout(&auth.client(), &one.access_token).await;
        let (mut update, begin) = (next(&mut feed).await, Instant::now());
        while update.revocations.is_empty() {
            update = next(&mut feed).await;
        }
        assert!(begin.elapsed() < PROMISE);
        assert_eq!((update.position, sessions(&update)), (1, vec![sid(&one.access_token).as_str()]));
        // Every token of the session has expired by then.
        let expires_at = crate::keys::part(&one.access_token, 1)["exp"].as_i64().unwrap() * 1_000;
        assert!(update.revocations[0].expires_at > expires_at);
        assert_eq!(update.key_ids, first.key_ids);

        // Nothing happens, and it says so.
        let quiet = next(&mut feed).await;
        assert_eq!((quiet.position, quiet.revocations.len(), quiet.key_ids), (1, 0, first.key_ids));

        // Whoever comes back is told what he missed, and no more.
        logout(&auth.client(), &two.access_token).await;
        let both = [sid(&one.access_token), sid(&two.access_token)];
        for (after, missed) in
            [(0, &both[..]), (1, &both[1..]), (2, &[]), (3, &both[..]), (u64::MAX, &both[..])]
        {
            let update = next(&mut watch(&auth, after).await).await;
            assert_eq!(
                (update.position, sessions(&update)),
                (2, missed.iter().map(String::as_str).collect())
            );
        }
    })
    .await;
}

#[tokio::test]
async fn an_ended_session_is_dead_in_other_services_and_instances() {
    let setup = Setup::new(TestDatabase::postgres());
    Sealer::load_or_create(&setup.config.keys.sealing_key_file).unwrap();
    let (one, two) = (setup.launch().await, setup.launch().await);
    let tasks = Tasks::new();
    let others: Vec<Verifier> = [&one, &two]
        .map(|running| {
            let authority = RemoteAuthority::new(setup.upstream_to(running, "project-service"));
            let other = Verifier::new(setup.config.token.clone(), Arc::new(authority), setup.clock.clone());
            other.follow(&tasks);
            other
        })
        .into();
    let client = Client::new(setup.upstream_to(&one, "edge-proxy"));
    client.clone().sign_up(sign_up("jane@example.com")).await.unwrap();
    let ended = login(&client, "jane@example.com", PASSWORD).await.unwrap();
    let kept = login(&client, "jane@example.com", PASSWORD).await.unwrap();
    for other in &others {
        other.verify(&ended.access_token).await.unwrap();
    }
    logout(&client, &ended.access_token).await;
    for other in &others {
        soon("another service knows", async || {
            other.verify(&ended.access_token).await.is_err_and(|error| error.reason() == "TOKEN_REVOKED")
        })
        .await;
        other.verify(&kept.access_token).await.unwrap();
    }
    for running in [&one, &two] {
        let mut client = Client::new(setup.upstream_to(running, "edge-proxy"));
        soon("the service itself knows", async || {
            let profile = with_token(&ended.access_token, GetProfileRequest {});
            answer(client.get_profile(profile).await).is_err_and(|error| error.reason() == "TOKEN_REVOKED")
        })
        .await;
        answer(client.get_profile(with_token(&kept.access_token, GetProfileRequest {})).await).unwrap();
    }
    assert!(tasks.drain(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_token_is_active_until_its_session_or_its_owner_is_not() {
    on_both(async |auth: Auth| {
        let (user, pair) = auth.user("jane@example.com").await;
        let here = pair.access_token;
        let there = login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        assert!(is_active(&auth, &here).await);
        let (body, signature) = here.rsplit_once('.').unwrap();
        let forged: String = signature.chars().rev().collect();
        for bad in ["", "a.b.c", &pair.refresh_token, body, &format!("{body}."), &format!("{body}.{forged}")]
        {
            assert!(!is_active(&auth, bad).await, "{bad}");
        }

        // At once, whether or not the feed has told it yet.
        logout(&auth.client(), &here).await;
        assert!(!is_active(&auth, &here).await);
        assert!(is_active(&auth, &there.access_token).await);
        let disabled = format!("UPDATE @users SET disabled_at = 1 WHERE id = '{}'", user.id);
        meddle(&auth, &disabled).await;
        assert!(!is_active(&auth, &there.access_token).await);
        meddle(&auth, "UPDATE @users SET disabled_at = NULL").await;
        assert!(is_active(&auth, &there.access_token).await);
        auth.clock.advance_ms(606_000);
        assert!(!is_active(&auth, &there.access_token).await);
    })
    .await;
}

#[tokio::test]
async fn without_the_database_nobody_knows_and_nobody_gets_in() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        assert!(is_active(&auth, &pair.access_token).await);
        meddle(&auth, "DROP TABLE @revocations; DROP TABLE @revocation_heads").await;
        // Doubt is no proof: neither of a good token nor of a bad one.
        let request = ValidateTokenRequest { access_token: pair.access_token.clone() };
        let status = identity(&auth).validate_token(request).await.unwrap_err();
        assert!(matches!(status.code(), Code::Internal | Code::Unavailable), "{status}");
        until("what was heard of revocations is too old", async || {
            auth.clock.advance_ms(31_000);
            let profile = with_token(&pair.access_token, GetProfileRequest {});
            match answer(auth.client().get_profile(profile).await) {
                Ok(_) => false,
                Err(error) => matches!(error.kind(), Kind::Internal | Kind::Unavailable),
            }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_service_that_drains_ends_the_feed() {
    on_both(async |auth: Auth| {
        let mut feed = watch(&auth, 0).await;
        next(&mut feed).await;
        let begin = Instant::now();
        let Auth { running, .. } = auth;
        let (ended, ()) = tokio::join!(
            async {
                while let Ok(Some(_)) = feed.message().await {}
                begin.elapsed()
            },
            running.shutdown()
        );
        assert!(ended < PROMISE && begin.elapsed() < PROMISE, "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn only_services_that_verify_tokens_may_ask() {
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        for (peer, may) in
            [("edge-proxy", true), ("project-service", true), ("gateway-service", true), ("stranger", false)]
        {
            let mut asks = IdentityServiceClient::new(auth.upstream(peer));
            let judged = answer(asks.validate_token(ValidateTokenRequest::default()).await);
            let watched = answer(asks.watch_revocations(WatchRevocationsRequest::default()).await);
            if may {
                assert!(!judged.unwrap().active);
                watched.unwrap();
            } else {
                assert_eq!(refusal(judged).0, Kind::PermissionDenied);
                assert!(watched.is_err_and(|error| error.kind() == Kind::PermissionDenied));
            }
        }
    })
    .await;
}
