//! Signing keys and the tokens that they sign.

use std::{sync::Arc, time::Duration};

use auth_service::{Config, KeyState, Revoked};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{GetJwksRequest, GetProfileRequest, key_service_client::KeyServiceClient};
use serde_json::Value;
use service_kit::{
    Clock,
    seal::Sealer,
    server::{Listeners, Running},
    shutdown::Tasks,
    testing::TestDatabase,
    token::{RemoteAuthority, Verifier},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Auth, Client, PASSWORD, START, Setup, answer, login, on_both, refresh, sign_up, with_token},
    revocations::soon,
};

pub(crate) fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn tokens_say_what_the_design_says_and_others_can_verify_them() {
    on_both(async |auth: Auth| {
        let (user, pair) = auth.user("jane@example.com").await;
        let jwks = answer(auth.keys().get_jwks(GetJwksRequest {}).await).unwrap();
        let [key] = jwks.keys.as_slice() else { panic!("one key: {jwks:?}") };
        let names = (key.kty.as_str(), key.crv.as_str(), key.r#use.as_str(), key.alg.as_str());
        assert_eq!(names, ("EC", "P-256", "sig", "ES256"));
        assert_eq!((key.x.len(), key.y.len(), key.kid.len()), (43, 43, 43));

        let header = part(&pair.access_token, 0);
        assert_eq!(header, serde_json::json!({"alg": "ES256", "typ": "at+jwt", "kid": key.kid}));
        let claims = part(&pair.access_token, 1);
        assert_eq!(claims["sub"], user.id);
        assert_eq!((&claims["iss"], &claims["aud"]), (&"https://tollgate.local".into(), &"tollgate".into()));
        assert_eq!((&claims["client_id"], &claims["scope"]), (&"tollgate-web".into(), &"*".into()));
        assert_eq!(claims["iat"], START / 1_000);
        assert_eq!(claims["auth_time"], START / 1_000);
        assert_eq!(claims["exp"], START / 1_000 + 600);

        // As another service does it: with the keys asked over its own channel.
        let keys = Arc::new(RemoteAuthority::new(auth.upstream("gateway-service")));
        let verifier = Verifier::new(auth.config.token.clone(), keys, auth.clock.clone());
        let verified = verifier.verify(&pair.access_token).await.unwrap();
        assert_eq!((&verified.sub, claims["sid"].as_str().unwrap()), (&user.id, verified.sid.as_str()));
        // Another signature of the right length.
        let (body, signature) = pair.access_token.rsplit_once('.').unwrap();
        let other: String = signature.chars().rev().collect();
        assert!(verifier.verify(&format!("{body}.{other}")).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn every_service_may_ask_for_the_keys_and_strangers_may_not() {
    on_both(async |auth: Auth| {
        for (peer, may) in
            [("edge-proxy", true), ("project-service", true), ("gateway-service", true), ("stranger", false)]
        {
            let mut keys = KeyServiceClient::new(auth.upstream(peer));
            assert_eq!(keys.get_jwks(GetJwksRequest {}).await.is_ok(), may, "{peer}");
        }
    })
    .await;
}

#[tokio::test]
async fn keys_survive_a_restart_and_open_with_their_own_file_only() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let before = answer(auth.keys().get_jwks(GetJwksRequest {}).await).unwrap();
        let auth = auth.restart(|_| {}).await;
        assert_eq!(answer(auth.keys().get_jwks(GetJwksRequest {}).await).unwrap(), before);
        let profile = with_token(&pair.access_token, GetProfileRequest {});
        answer(auth.client().get_profile(profile).await).unwrap();

        let mut config = auth.config.clone();
        config.keys.sealing_key_file.set_extension("other");
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let start = Box::pin(auth_service::start_at(config, listeners, auth.clock.clone()));
        let error = start.await.unwrap_err().to_string();
        assert!(error.contains("sealing_key_file"), "{error}");
    })
    .await;
}

/// Only PostgreSQL serves several instances.
#[tokio::test]
async fn instances_that_start_at_once_agree_on_the_first_key() {
    let auth = Setup::new(TestDatabase::postgres());
    // The file is there beforehand, as it is where instances run on several machines.
    Sealer::load_or_create(&auth.config.keys.sealing_key_file).unwrap();
    let (one, two) = tokio::join!(auth.launch(), auth.launch());
    let mut client = Client::new(auth.upstream_to(&one, "edge-proxy"));
    client.sign_up(sign_up("jane@example.com")).await.unwrap();
    let pair = login(&client, "jane@example.com", PASSWORD).await.unwrap();
    let mut other = Client::new(auth.upstream_to(&two, "edge-proxy"));
    answer(other.get_profile(with_token(&pair.access_token, GetProfileRequest {})).await).unwrap();
    let ask = async |running| {
        let mut keys = KeyServiceClient::new(auth.upstream_to(running, "edge-proxy"));
        answer(keys.get_jwks(GetJwksRequest {}).await).unwrap()
    };
    let keys = ask(&one).await;
    assert_eq!(keys.keys.len(), 1);
    assert_eq!(keys, ask(&two).await);
}

/// The names of the keys that an instance tells.
async fn names(setup: &Setup, running: &Running) -> Vec<String> {
    let mut keys = KeyServiceClient::new(setup.upstream_to(running, "edge-proxy"));
    let jwks = answer(keys.get_jwks(GetJwksRequest {}).await).unwrap();
    jwks.keys.into_iter().map(|key| key.kid).collect()
}

/// How many work at once.
const WORKERS: usize = 4;

/// Somebody who works: logs in, refreshes, and calls this service and another one, over and over. Counts
/// the rounds and tells who signed last; panics when anything fails.
struct Load {
    client: Client,
    other: Verifier,
    clock: Clock,
    rounds: watch::Sender<([usize; WORKERS], String)>,
    number: usize,
    stop: CancellationToken,
}

impl Load {
    async fn work(self) {
        let mut pair = login(&self.client, "jane@example.com", PASSWORD).await.unwrap();
        for round in 1.. {
            // As a good client does: well before the token expires.
            let iat = part(&pair.access_token, 1)["iat"].as_i64().unwrap();
            if round % 10 == 0 {
                pair = login(&self.client, "jane@example.com", PASSWORD).await.unwrap();
            } else if self.clock.now_ms() / 1_000 - iat > 100 {
                pair = refresh(&self.client, &pair.refresh_token).await.unwrap();
            }
            let profile = with_token(&pair.access_token, GetProfileRequest {});
            answer(self.client.clone().get_profile(profile).await).unwrap();
            self.other.verify(&pair.access_token).await.unwrap();
            let kid = part(&pair.access_token, 0)["kid"].as_str().unwrap().to_owned();
            self.rounds.send_modify(|(rounds, last)| {
                rounds[self.number] += 1;
                *last = kid;
            });
            if self.stop.is_cancelled() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn rotating_three_times_under_load_fails_no_request() {
    on_both(async |auth: Auth| {
        let change = |config: &mut Config| {
            config.keys.rotate_after = 1_200;
            config.keys.publish_ahead = 600;
        };
        let auth = Box::pin(auth.restart(change)).await;
        auth.user("jane@example.com").await;
        let (tasks, stop, rounds) = (Tasks::new(), CancellationToken::new(), watch::Sender::default());
        let others = RemoteAuthority::new(auth.upstream("gateway-service"));
        let other = Verifier::new(auth.config.token.clone(), Arc::new(others), auth.clock.clone());
        other.follow(&tasks);
        let mut works = JoinSet::new();
        for number in 0..WORKERS {
            let (client, other, clock) = (auth.client(), other.clone(), auth.clock.clone());
            let (rounds, stop) = (rounds.clone(), stop.clone());
            works.spawn(Load { client, other, clock, rounds, number, stop }.work());
        }

        let mut signers = names(&auth, &auth.running).await;
        let (began, mut progress) = (auth.clock.now_ms(), rounds.subscribe());
        while signers.len() < 4 {
            // Not faster than requests come through, those of each, so that the time between the publication of a key
            // and its first use is some time in this world too, and no token gets old while somebody has no turn.
            let goals = progress.borrow_and_update().0.map(|rounds| rounds + 2);
            let is_there =
                |rounds: &[usize; WORKERS]| rounds.iter().zip(goals).all(|(now, goal)| *now >= goal);
            tokio::select! {
                _ = progress.wait_for(|(rounds, _)| is_there(rounds)) => {}
                failed = works.join_next() => panic!("a request failed: {failed:?}"),
            }
            let kid = progress.borrow().1.clone();
            if !signers.contains(&kid) {
                signers.push(kid);
            }
            auth.clock.advance_ms(50_000);
            assert!(auth.clock.now_ms() - began < 8 * 3_600_000, "no rotation in eight hours");
        }
        stop.cancel();
        while let Some(done) = works.join_next().await {
            done.unwrap();
        }
        // What the first key signed has long expired.
        assert!(!names(&auth, &auth.running).await.contains(&signers[0]));
        assert!(tasks.drain(Duration::from_secs(5)).await);
    })
    .await;
}

/// Two instances on one database, and another service that follows the second of them.
#[tokio::test]
async fn a_rotation_and_a_revocation_reach_every_instance() {
    let auth = Setup::new(TestDatabase::postgres());
    Sealer::load_or_create(&auth.config.keys.sealing_key_file).unwrap();
    let (one, two) = (auth.launch().await, auth.launch().await);
    let keys = auth_service::signing_keys(&auth.config, auth.clock.clone()).await.unwrap();
    let tasks = Tasks::new();
    let authority = RemoteAuthority::new(auth.upstream_to(&two, "gateway-service"));
    let other = Verifier::new(auth.config.token.clone(), Arc::new(authority), auth.clock.clone());
    other.follow(&tasks);
    let mut client = Client::new(auth.upstream_to(&one, "edge-proxy"));
    client.sign_up(sign_up("jane@example.com")).await.unwrap();
    let old = login(&client, "jane@example.com", PASSWORD).await.unwrap();
    other.verify(&old.access_token).await.unwrap();

    let next = keys.rotate().await.unwrap();
    assert_eq!(keys.rotate().await.unwrap_err().reason(), "KEY_WAITING");
    for running in [&one, &two] {
        soon("the next key is published", async || names(&auth, running).await.contains(&next.kid)).await;
    }
    let [first, second] = <[_; 2]>::try_from(keys.list().await.unwrap()).unwrap();
    assert_eq!((first.state, second.state), (KeyState::Signing, KeyState::Waiting));

    // The signing key is in wrong hands.
    assert_eq!(keys.revoke(&first.kid).await.unwrap(), Revoked::ReplacedBy(next.kid.clone()));
    assert_eq!(keys.revoke(&first.kid).await.unwrap(), Revoked::Before);
    for running in [&one, &two] {
        soon("the key is gone", async || names(&auth, running).await == [next.kid.clone()]).await;
        soon("its tokens are dead", async || {
            let mut client = Client::new(auth.upstream_to(running, "edge-proxy"));
            client.get_profile(with_token(&old.access_token, GetProfileRequest {})).await.is_err()
        })
        .await;
    }
    soon("another service knows", async || {
        other.verify(&old.access_token).await.is_err_and(|error| error.reason() == "INVALID_TOKEN")
    })
    .await;
    let new = refresh(&client, &old.refresh_token).await.unwrap();
    assert_eq!(part(&new.access_token, 0)["kid"], next.kid);
    other.verify(&new.access_token).await.unwrap();

    // None waits now: the next revocation makes a key of its own.
    let Revoked::ReplacedBy(third) = keys.revoke(&next.kid).await.unwrap() else { panic!("not replaced") };
    for running in [&one, &two] {
        soon("the third key signs", async || names(&auth, running).await == [third.clone()]).await;
        let client = Client::new(auth.upstream_to(running, "edge-proxy"));
        let pair = login(&client, "jane@example.com", PASSWORD).await.unwrap();
        soon("other services verify", async || other.verify(&pair.access_token).await.is_ok()).await;
    }
    assert!(tasks.drain(Duration::from_secs(5)).await);
}
