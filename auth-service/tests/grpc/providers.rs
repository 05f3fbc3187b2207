//! Sign-in with OpenID Connect providers.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{
    FinishProviderLoginRequest, GetProfileRequest, Identity, ListIdentitiesRequest, ListProvidersRequest,
    ProviderLogin, StartProviderLinkRequest, StartProviderLoginRequest, TokenPair, User,
    provider_service_client::ProviderServiceClient,
};
use serde_json::{Value, json};
use service_kit::{Error, Kind, client::Upstream};

use crate::{
    harness::{Auth, PASSWORD, answer, fields, login, on_both, refusal, with_token},
    oidc_server::{Fault, OidcServer, person},
    secrets::{dump, hex},
    sql::texts,
};

const HOUR_MS: i64 = 3_600_000;

type Client = ProviderServiceClient<Upstream>;

pub(crate) fn client(auth: &Auth) -> Client {
    Client::new(auth.upstream("edge-proxy"))
}

/// The service with two providers, `one` and `two`.
pub(crate) async fn with_providers(auth: Auth) -> (Auth, OidcServer, OidcServer) {
    let (one, two) = (OidcServer::start(&auth.clock).await, OidcServer::start_rsa(&auth.clock).await);
    let auth = auth.restart(|config| {
        config.providers.insert("one".to_owned(), one.config());
        config.providers.insert("two".to_owned(), two.config());
    });
    (auth.await, one, two)
}

pub(crate) async fn start(auth: &Auth, provider: &str) -> Result<ProviderLogin, Error> {
    let request = StartProviderLoginRequest { provider: provider.into() };
    answer(client(auth).start_provider_login(request).await)
}

pub(crate) async fn start_link(auth: &Auth, token: &str, provider: &str) -> Result<ProviderLogin, Error> {
    let request = with_token(token, StartProviderLinkRequest { provider: provider.into() });
    answer(client(auth).start_provider_link(request).await)
}

/// What the browser brings back.
pub(crate) async fn browse(
    server: &OidcServer,
    provider: &str,
    started: &ProviderLogin,
) -> FinishProviderLoginRequest {
    let (code, state) = server.browse(&started.authorization_url).await;
    assert_eq!(state, started.state);
    let binding = started.binding.clone();
    FinishProviderLoginRequest { provider: provider.into(), state, code, binding, cookie: false }
}

pub(crate) async fn finish(auth: &Auth, request: &FinishProviderLoginRequest) -> Result<TokenPair, Error> {
    answer(client(auth).finish_provider_login(request.clone()).await)
}

/// A whole login.
pub(crate) async fn sign_in(auth: &Auth, server: &OidcServer, provider: &str) -> Result<TokenPair, Error> {
    let started = start(auth, provider).await?;
    finish(auth, &browse(server, provider, &started).await).await
}

pub(crate) async fn profile(auth: &Auth, pair: &TokenPair) -> User {
    answer(auth.client().get_profile(with_token(&pair.access_token, GetProfileRequest {})).await).unwrap()
}

pub(crate) async fn identities(auth: &Auth, token: &str) -> Vec<Identity> {
    let request = with_token(token, ListIdentitiesRequest { limit: None, offset: 0 });
    answer(client(auth).list_identities(request).await).unwrap().list
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn refused() -> (Kind, String) {
    (Kind::Unauthenticated, "PROVIDER_REFUSED".to_owned())
}

pub(crate) fn precondition(reason: &str) -> (Kind, String) {
    (Kind::FailedPrecondition, reason.to_owned())
}

#[tokio::test]
async fn a_first_login_makes_the_account_that_later_ones_find() {
    on_both(async |auth: Auth| {
        let (auth, one, two) = with_providers(auth).await;
        let listed = answer(client(&auth).list_providers(ListProvidersRequest {}).await).unwrap();
        let listed: Vec<_> = listed.list.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
        assert_eq!(listed, [("one", "Local"), ("two", "Local")]);

        let first = sign_in(&auth, &one, "one").await.unwrap();
        let user = profile(&auth, &first).await;
        assert_eq!((user.email.as_str(), user.name.as_str()), ("jane@example.com", "Jane at the provider"));
        let said = claims(&first.access_token);
        assert_eq!((&said["amr"], &said["client_id"]), (&json!(["fed"]), &json!("tollgate-web")));
        assert_eq!((&said["scope"], &said["sub"]), (&json!("*"), &json!(user.id)));

        // The subject counts, whatever else has changed at the provider.
        one.person(person("subject-1", "other@example.com", false));
        let again = sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!(profile(&auth, &again).await, user);
        assert_ne!(claims(&again.access_token)["sid"], said["sid"]);

        // Another provider's verified word for the same verified address is enough, with RS256 too.
        two.person(person("id-at-two", "JANE@Example.com", true));
        let elsewhere = sign_in(&auth, &two, "two").await.unwrap();
        assert_eq!(profile(&auth, &elsewhere).await, user);
        let listed = identities(&auth, &elsewhere.access_token).await;
        let listed: Vec<_> = listed.iter().map(|i| (i.provider.as_str(), i.email.as_str())).collect();
        assert_eq!(listed, [("one", "jane@example.com"), ("two", "JANE@Example.com")]);

        // The same subject at another provider is somebody else.
        two.person(person("subject-1", "joan@example.com", true));
        let joan = sign_in(&auth, &two, "two").await.unwrap();
        assert_ne!(profile(&auth, &joan).await.id, user.id);

        // There is no password.
        let guess = login(&auth.client(), "jane@example.com", PASSWORD).await;
        assert_eq!(refusal(guess), (Kind::Unauthenticated, "INVALID_CREDENTIALS".to_owned()));
        let log = texts(&auth, "SELECT body FROM audit_events ORDER BY chain, sequence").await;
        let told = |action: &str| {
            let of_user = |row: &&String| row.contains(&format!("\"{action}\"")) && row.contains(&user.id);
            log.iter().filter(of_user).count()
        };
        let counts = ["auth.signup", "auth.identity.add", "auth.login"].map(told);
        assert_eq!(counts, [1, 2, 3], "{log:#?}");
    })
    .await;
}

#[tokio::test]
async fn what_a_provider_says_must_hold() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        for fault in [
            Fault::WrongNonce,
            Fault::NoNonce,
            Fault::WrongAudience,
            Fault::SecondAudience,
            Fault::WrongParty,
            Fault::WrongIssuer,
            Fault::Expired,
            Fault::FromTheFuture,
            Fault::Stale,
            Fault::Unsigned,
            Fault::SignedWithClientSecret,
            Fault::SignedBySomebodyElse,
            Fault::UnknownKey,
            Fault::WrongTokenHash,
            Fault::LongSubject,
            Fault::NoIdToken,
            Fault::Garbage,
            Fault::OtherUserInfo,
        ] {
            one.fault(fault);
            let error = sign_in(&auth, &one, "one").await.unwrap_err();
            assert_eq!(
                (error.kind(), error.reason()),
                (Kind::Unauthenticated, "PROVIDER_REFUSED"),
                "{fault:?}"
            );
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        // A code that the provider does not know is its refusal, told in our words.
        one.fault(Fault::None);
        let started = start(&auth, "one").await.unwrap();
        let mut request = browse(&one, "one", &started).await;
        request.code = "guessed".to_owned();
        let error = finish(&auth, &request).await.unwrap_err();
        assert_eq!(error.reason(), "PROVIDER_REFUSED");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        assert!(texts(&auth, "SELECT id FROM users").await.is_empty(), "nobody has got in");
        sign_in(&auth, &one, "one").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_is_fetched_once() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        sign_in(&auth, &one, "one").await.unwrap();
        sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!((one.asked("discovery"), one.asked("keys")), (1, 1), "documents are remembered");
        one.rotate();
        sign_in(&auth, &one, "one").await.unwrap();
        sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!((one.asked("discovery"), one.asked("keys")), (1, 2));
        one.fault(Fault::UnknownKey);
        assert_eq!(refusal(sign_in(&auth, &one, "one").await), refused());
        assert_eq!(one.asked("keys"), 3, "an unknown key is looked for once");
        one.fault(Fault::None);
        auth.clock.advance_ms(HOUR_MS);
        sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!((one.asked("discovery"), one.asked("keys")), (2, 4), "and not for ever");
    })
    .await;
}

#[tokio::test]
async fn a_login_ends_once_where_it_began() {
    on_both(async |auth: Auth| {
        let (auth, one, two) = with_providers(auth).await;
        // A state counts once, also when it led to a session.
        let started = start(&auth, "one").await.unwrap();
        let request = browse(&one, "one", &started).await;
        finish(&auth, &request).await.unwrap();
        let (code, _) = one.browse(&started.authorization_url).await;
        let replayed = FinishProviderLoginRequest { code, ..request };
        assert_eq!(refusal(finish(&auth, &replayed).await), refused());

        // Another browser has another binding: neither a stolen state nor a planted one is of use.
        let victim = browse(&one, "one", &start(&auth, "one").await.unwrap()).await;
        let thief = start(&auth, "one").await.unwrap();
        let stolen = FinishProviderLoginRequest { binding: thief.binding.clone(), ..victim.clone() };
        assert_eq!(refusal(finish(&auth, &stolen).await), refused());
        assert_eq!(refusal(finish(&auth, &victim).await), refused(), "it is used up");
        assert_eq!(one.asked("token"), 1, "the provider was not asked");

        // What began at one provider does not end at another.
        let mixed = browse(&one, "one", &start(&auth, "one").await.unwrap()).await;
        let mixed = FinishProviderLoginRequest { provider: "two".to_owned(), ..mixed };
        assert_eq!(refusal(finish(&auth, &mixed).await), refused());
        assert_eq!(two.asked("token"), 0, "the code went nowhere else");

        let late = browse(&one, "one", &start(&auth, "one").await.unwrap()).await;
        auth.clock.advance_ms(600_000);
        assert_eq!(refusal(finish(&auth, &late).await), refused());

        let good = browse(&one, "one", &start(&auth, "one").await.unwrap()).await;
        let empty = FinishProviderLoginRequest { provider: "one".into(), ..Default::default() };
        assert_eq!(fields(finish(&auth, &empty).await), ["state", "code", "binding"]);
        let long = FinishProviderLoginRequest { code: "x".repeat(100_000), ..good.clone() };
        assert_eq!(fields(finish(&auth, &long).await), ["code"]);
        for garbage in ["x", "'; DROP TABLE users; --", &"A".repeat(43)] {
            let bad = FinishProviderLoginRequest { state: garbage.into(), ..good.clone() };
            assert_eq!(refusal(finish(&auth, &bad).await), refused());
        }
        for provider in ["", "three", "ONE", "../one"] {
            let not_found = (Kind::NotFound, "NOT_FOUND".to_owned());
            assert_eq!(refusal(start(&auth, provider).await), not_found);
            let bad = FinishProviderLoginRequest { provider: provider.into(), ..good.clone() };
            assert_eq!(refusal(finish(&auth, &bad).await), not_found);
        }
        finish(&auth, &good).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn names_are_those_that_anybody_may_have() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        for (at, (said, shown)) in [
            (json!("  Zoë O'Neil-王 "), "Zoë O'Neil-王"),
            (json!("evil\u{202e}gpj.exe"), "person1"),
            (json!("a\nb"), "person2"),
            (json!("n".repeat(101)), "person3"),
            (json!(""), "person4"),
            (Value::Null, "person5"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut claims = person(&format!("s{at}"), &format!("Person{at}@example.com"), true);
            claims["name"] = said;
            one.person(claims);
            let pair = sign_in(&auth, &one, "one").await.unwrap();
            assert_eq!(profile(&auth, &pair).await.name, shown);
        }
    })
    .await;
}

#[tokio::test]
async fn thin_id_tokens_are_completed_by_userinfo() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        one.fault(Fault::ThinToken);
        let pair = sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!(profile(&auth, &pair).await.email, "jane@example.com");
        assert_eq!(one.asked("userinfo"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_secret_goes_where_the_provider_wants_it() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        one.fault(Fault::SecretInBody);
        sign_in(&auth, &one, "one").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_provider_that_is_down_is_missed_by_nobody_else() {
    on_both(async |auth: Auth| {
        let (auth, mut one, two) = with_providers(auth).await;
        let unavailable = (Kind::Unavailable, "UNAVAILABLE".to_owned());
        let (_, jane) = auth.user("joan@example.com").await;
        one.stop().await;
        assert_eq!(refusal(start(&auth, "one").await), unavailable);
        assert_eq!(refusal(start_link(&auth, &jane.access_token, "one").await), unavailable);
        sign_in(&auth, &two, "two").await.unwrap();
        one.resume().await;
        auth.clock.advance_ms(1_000);
        for fault in [Fault::Unwell, Fault::OtherIssuerInDocument, Fault::AddressesInside] {
            one.fault(fault);
            assert_eq!(refusal(start(&auth, "one").await), unavailable, "{fault:?}");
            // It is left alone for a moment.
            let asked = one.asked("discovery");
            assert_eq!(refusal(start(&auth, "one").await), unavailable);
            assert_eq!(one.asked("discovery"), asked);
            auth.clock.advance_ms(1_000);
        }
        one.fault(Fault::None);
        sign_in(&auth, &one, "one").await.unwrap();

        // In the middle of a login too.
        for fault in [Fault::Unwell, Fault::Endless] {
            let request = browse(&one, "one", &start(&auth, "one").await.unwrap()).await;
            one.fault(fault);
            assert_eq!(refusal(finish(&auth, &request).await), unavailable, "{fault:?}");
            one.fault(Fault::None);
        }
        let request = browse(&one, "one", &start(&auth, "one").await.unwrap()).await;
        one.stop().await;
        assert_eq!(refusal(finish(&auth, &request).await), unavailable);
    })
    .await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        one.fault(Fault::Redirect);
        assert_eq!(refusal(sign_in(&auth, &one, "one").await), refused());
        assert_eq!((one.asked("token"), one.asked("elsewhere")), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn a_login_under_way_leaves_no_secret_behind() {
    on_both(async |auth: Auth| {
        let (auth, _one, _two) = with_providers(auth).await;
        let started = start(&auth, "one").await.unwrap();
        let url: reqwest::Url = started.authorization_url.parse().unwrap();
        let nonce = url.query_pairs().find(|(key, _)| key == "nonce").unwrap().1.into_owned();
        let dump = dump(&auth).await;
        assert!(dump.contains("provider_login"), "the dump is not one");
        for secret in [&started.state, &started.binding, &nonce] {
            let raw = URL_SAFE_NO_PAD.decode(secret).unwrap();
            for form in [secret.to_lowercase(), hex(secret.as_bytes()), hex(&raw)] {
                assert!(!dump.contains(&form), "a secret of a login is stored");
            }
        }
    })
    .await;
}
