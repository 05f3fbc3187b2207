//! Signing keys and the tokens that they sign.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{GetJwksRequest, GetProfileRequest, key_service_client::KeyServiceClient};
use serde_json::Value;
use service_kit::{
    seal::Sealer,
    server::Listeners,
    testing::TestDatabase,
    token::{RemoteKeys, Verifier},
};

use crate::harness::{Auth, Client, PASSWORD, START, Setup, answer, login, on_both, sign_up, with_token};

fn part(token: &str, at: usize) -> Value {
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
        let keys = Arc::new(RemoteKeys::new(auth.upstream("gateway-service")));
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
