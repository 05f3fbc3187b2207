//! The device authorization grant.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{
    ChangePasswordRequest, DecideDeviceAuthorizationRequest, DeleteIdentityRequest, DeviceAuthorization,
    DeviceRequest, ExchangeDeviceCodeRequest, GetDeviceAuthorizationRequest, GetProfileRequest,
    LogoutRequest, StartDeviceAuthorizationRequest, TokenPair, UpdateProfileRequest,
    device_service_client::DeviceServiceClient, provider_service_client::ProviderServiceClient,
};
use serde_json::Value;
use service_kit::{Error, Kind, client::Upstream};
use tonic::Request;

use crate::{
    harness::{Auth, PASSWORD, START, answer, fields, on_both, refresh, refusal, with_token},
    secrets::{dump, hex},
    sql::{execute, texts},
};

type Client = DeviceServiceClient<Upstream>;

fn client(auth: &Auth) -> Client {
    Client::new(auth.upstream("edge-proxy"))
}

async fn start(auth: &Auth, client_id: &str, scope: &str) -> Result<DeviceAuthorization, Error> {
    let request = StartDeviceAuthorizationRequest { client_id: client_id.into(), scope: scope.into() };
    answer(client(auth).start_device_authorization(request).await)
}

async fn cli(auth: &Auth) -> DeviceAuthorization {
    start(auth, "tollgate-cli", "").await.unwrap()
}

async fn look(auth: &Auth, token: &str, code: &str) -> Result<DeviceRequest, Error> {
    let request = with_token(token, GetDeviceAuthorizationRequest { user_code: code.into() });
    answer(client(auth).get_device_authorization(request).await)
}

fn decision(token: &str, code: &str, approve: bool) -> Request<DecideDeviceAuthorizationRequest> {
    with_token(token, DecideDeviceAuthorizationRequest { user_code: code.into(), approve })
}

async fn decide(auth: &Auth, token: &str, code: &str, approve: bool) -> Result<(), Error> {
    answer(client(auth).decide_device_authorization(decision(token, code, approve)).await)
}

async fn exchange(auth: &Auth, code: &str) -> Result<TokenPair, Error> {
    answer(client(auth).exchange_device_code(ExchangeDeviceCodeRequest { device_code: code.into() }).await)
}

fn not_found() -> (Kind, String) {
    (Kind::NotFound, "NOT_FOUND".to_owned())
}

fn expired() -> (Kind, String) {
    (Kind::Unauthenticated, "EXPIRED_TOKEN".to_owned())
}

fn pending() -> (Kind, String) {
    (Kind::FailedPrecondition, "AUTHORIZATION_PENDING".to_owned())
}

/// What an access token says.
fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[tokio::test]
async fn an_approved_device_gets_one_session() {
    on_both(async |auth: Auth| {
        let (user, here) = auth.user("jane@example.com").await;
        let grant = start(&auth, "tollgate-cli", " projects:read  profile:read projects:read").await.unwrap();
        assert_eq!((grant.expires_in, grant.interval), (600, 5));
        assert_eq!(grant.verification_uri, "https://localhost:8443/device");
        let complete = format!("https://localhost:8443/device?user_code={}", grant.user_code);
        assert_eq!(grant.verification_uri_complete, complete);
        let (left, right) = grant.user_code.split_once('-').unwrap();
        assert!(left.len() == 4 && right.len() == 4, "{}", grant.user_code);
        assert_eq!(refusal(exchange(&auth, &grant.device_code).await), pending());

        // As people write it.
        let written = format!(" {left} {right}").to_lowercase();
        let request = look(&auth, &here.access_token, &written).await.unwrap();
        assert_eq!(
            (request.client_id.as_str(), request.scope.as_str()),
            ("tollgate-cli", "projects:read profile:read")
        );
        assert_eq!(request.created_at.unwrap().unix_ms(), START);
        assert_eq!(request.expires_at.unwrap().unix_ms(), START + 600_000);
        decide(&auth, &here.access_token, &written, true).await.unwrap();
        assert_eq!(refusal(look(&auth, &here.access_token, &grant.user_code).await), not_found());
        let again = decide(&auth, &here.access_token, &grant.user_code, false).await;
        assert_eq!(refusal(again), not_found());

        let pair = exchange(&auth, &grant.device_code).await.unwrap();
        assert_eq!(refusal(exchange(&auth, &grant.device_code).await), expired());
        let refreshed = refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        for token in [&pair.access_token, &refreshed.access_token] {
            let claims = claims(token);
            assert_eq!(claims["sub"], user.id.as_str());
            assert_eq!(claims["client_id"], "tollgate-cli");
            assert_eq!(claims["scope"], "projects:read profile:read");
            assert_eq!(claims["amr"], serde_json::json!(["device"]));
            let read = auth.client().get_profile(with_token(token, GetProfileRequest {})).await;
            assert_eq!(answer(read).unwrap().id, user.id);
            let change = with_token(token, UpdateProfileRequest { name: "Joan".into() });
            let refused = answer(auth.client().update_profile(change).await);
            assert_eq!(refusal(refused), (Kind::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned()));
        }

        let log = texts(&auth, "SELECT body FROM audit_events ORDER BY chain, sequence").await;
        let told = |action: &str| {
            let of = |row: &&String| {
                row.contains(action) && row.contains("\"tollgate-cli\"") && row.contains(&user.id)
            };
            log.iter().filter(of).count()
        };
        assert_eq!((told("auth.device.approve"), told("auth.login\"")), (1, 1), "{log:#?}");
    })
    .await;
}

#[tokio::test]
async fn the_session_of_a_device_is_no_recent_proof() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let remove = |token: &str| with_token(token, DeleteIdentityRequest { identity_id: "x".into() });
        let mut providers = ProviderServiceClient::new(auth.upstream("edge-proxy"));
        let refused = answer(providers.delete_identity(remove(&here.access_token)).await);
        assert_eq!(refusal(refused), not_found(), "a login is a recent proof");

        let grant = cli(&auth).await;
        decide(&auth, &here.access_token, &grant.user_code, true).await.unwrap();
        let pair = exchange(&auth, &grant.device_code).await.unwrap();
        let refreshed = refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        for token in [&pair.access_token, &refreshed.access_token] {
            let refused = answer(providers.delete_identity(remove(token)).await);
            assert_eq!(refusal(refused), (Kind::Unauthenticated, "STEP_UP_REQUIRED".to_owned()));
        }
    })
    .await;
}

#[tokio::test]
async fn garbage_names_the_field() {
    on_both(async |auth: Auth| {
        for bad in
            ["", "Tollgate", "-cli", "a b", "x\n", &"x".repeat(41), "tollgate-web", "personal-access-token"]
        {
            assert_eq!(fields(start(&auth, bad, "").await), ["clientId"], "{bad:?}");
        }
        let many = "projects:read ".repeat(60) + &(0..60).map(|n| format!(" x{n}:read")).collect::<String>();
        for bad in
            ["projects", "everything:read", "*:write", "'; DROP TABLE users", &many, &"x".repeat(100_000)]
        {
            assert_eq!(fields(start(&auth, "cli", bad).await), ["scope"], "{bad:?}");
        }
        assert_eq!(fields(start(&auth, "", "x").await), ["clientId", "scope"]);
        assert_eq!(fields(exchange(&auth, "").await), ["deviceCode"]);
        for garbage in ["x", "null", &"A".repeat(43), &"A".repeat(500_000), "'; DROP TABLE users; --"] {
            assert_eq!(refusal(exchange(&auth, garbage).await), expired());
        }
        let (_, here) = auth.user("jane@example.com").await;
        for garbage in ["x", "AAAA-EEEE", "BCDF_GHJK", &"B".repeat(100_000), "%", "' OR 1=1 --"] {
            assert_eq!(refusal(look(&auth, &here.access_token, garbage).await), not_found());
            assert_eq!(refusal(decide(&auth, &here.access_token, garbage, true).await), not_found());
        }
    })
    .await;
}

#[tokio::test]
async fn a_device_that_asks_too_often_waits_longer_each_time() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let grant = cli(&auth).await;
        assert_eq!(refusal(exchange(&auth, &grant.device_code).await), pending());
        for wait in [10, 15, 20] {
            let slow = exchange(&auth, &grant.device_code).await.unwrap_err();
            assert_eq!((slow.kind(), slow.reason()), (Kind::ResourceExhausted, "SLOW_DOWN"));
            assert_eq!(slow.retry_delay(), Some(Duration::from_secs(wait)));
            auth.clock.advance_ms(wait as i64 * 1_000 - 1);
        }
        assert_eq!(refusal(exchange(&auth, &grant.device_code).await).1, "SLOW_DOWN");
        auth.clock.advance_ms(25_000);
        assert_eq!(refusal(exchange(&auth, &grant.device_code).await), pending());
        // Once it is approved there is nothing to slow down.
        decide(&auth, &here.access_token, &grant.user_code, true).await.unwrap();
        exchange(&auth, &grant.device_code).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn denied_and_expired_devices_get_nothing() {
    on_both(async |auth: Auth| {
        let (user, here) = auth.user("jane@example.com").await;
        let denied = cli(&auth).await;
        decide(&auth, &here.access_token, &denied.user_code, false).await.unwrap();
        for _ in 0..2 {
            let refused = exchange(&auth, &denied.device_code).await;
            assert_eq!(refusal(refused), (Kind::PermissionDenied, "ACCESS_DENIED".to_owned()));
        }
        let log = texts(&auth, "SELECT body FROM audit_events").await;
        assert!(log.iter().any(|row| row.contains("auth.device.deny") && row.contains(&user.id)), "{log:?}");

        let (late, approved) = (cli(&auth).await, cli(&auth).await);
        decide(&auth, &here.access_token, &approved.user_code, true).await.unwrap();
        auth.clock.advance_ms(599_999);
        assert_eq!(refusal(exchange(&auth, &late.device_code).await), pending());
        auth.clock.advance_ms(1);
        for grant in [&late, &approved, &denied] {
            assert_eq!(refusal(exchange(&auth, &grant.device_code).await), expired());
        }
        let here = refresh(&auth.client(), &here.refresh_token).await.unwrap();
        assert_eq!(refusal(look(&auth, &here.access_token, &late.user_code).await), not_found());
        let too_late = decide(&auth, &here.access_token, &late.user_code, true).await;
        assert_eq!(refusal(too_late), not_found());
        // They are forgotten too.
        let auth = auth.restart(|_| {}).await;
        let gone = async {
            while !texts(&auth, "SELECT user_code FROM device_grants").await.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("old grants are deleted");
    })
    .await;
}

#[tokio::test]
async fn of_exchanges_side_by_side_one_opens_a_session() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let grant = cli(&auth).await;
        decide(&auth, &here.access_token, &grant.user_code, true).await.unwrap();
        let client = client(&auth);
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let request = ExchangeDeviceCodeRequest { device_code: grant.device_code.clone() };
                let mut client = client.clone();
                tokio::spawn(async move { answer(client.exchange_device_code(request).await) })
            })
            .collect();
        let mut won = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(_) => won += 1,
                refused => assert_eq!(refusal(refused), expired()),
            }
        }
        assert_eq!(won, 1);
        let sessions = texts(&auth, "SELECT id FROM sessions WHERE client_id = 'tollgate-cli'").await;
        assert_eq!(sessions.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn of_decisions_side_by_side_one_counts() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let grant = cli(&auth).await;
        let client = client(&auth);
        let tries: Vec<_> = [true, false, true, false]
            .map(|approve| {
                let request = decision(&here.access_token, &grant.user_code, approve);
                let mut client = client.clone();
                tokio::spawn(
                    async move { (approve, answer(client.decide_device_authorization(request).await)) },
                )
            })
            .into();
        let mut won = Vec::new();
        for attempt in tries {
            match attempt.await.unwrap() {
                (approve, Ok(())) => won.push(approve),
                (_, refused) => assert_eq!(refusal(refused), not_found()),
            }
        }
        let [approved] = won[..] else { panic!("{won:?}") };
        assert_eq!(exchange(&auth, &grant.device_code).await.is_ok(), approved);
        assert_eq!(
            texts(&auth, "SELECT body FROM audit_events WHERE body LIKE '%auth.device%'").await.len(),
            1
        );
    })
    .await;
}

#[tokio::test]
async fn user_codes_cannot_be_guessed_without_end() {
    on_both(async |auth: Auth| {
        let (_, jane) = auth.user("jane@example.com").await;
        let (_, joan) = auth.user("joan@example.com").await;
        let grant = cli(&auth).await;
        for guess in 0..6 {
            // A right code in between buys no more guesses.
            look(&auth, &jane.access_token, &grant.user_code).await.unwrap();
            let refused = match guess % 2 {
                0 => look(&auth, &jane.access_token, "BBBB-BBBB").await.map(drop),
                _ => decide(&auth, &jane.access_token, "BBBB-BBBB", true).await,
            };
            assert_eq!(refusal(refused), not_found(), "{guess}");
        }
        for wait in [1, 2, 4] {
            for code in ["BBBB-BBBB", &grant.user_code] {
                let locked = look(&auth, &jane.access_token, code).await.unwrap_err();
                assert_eq!((locked.kind(), locked.reason()), (Kind::ResourceExhausted, "TOO_MANY_ATTEMPTS"));
                assert_eq!(locked.retry_delay(), Some(Duration::from_secs(wait)));
                let locked = decide(&auth, &jane.access_token, code, true).await.unwrap_err();
                assert_eq!(locked.reason(), "TOO_MANY_ATTEMPTS");
            }
            auth.clock.advance_ms(wait as i64 * 1_000);
            look(&auth, &jane.access_token, &grant.user_code).await.unwrap();
            assert_eq!(refusal(look(&auth, &jane.access_token, "CCCC-CCCC").await), not_found());
        }
        // Somebody else is not concerned.
        decide(&auth, &joan.access_token, &grant.user_code, true).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn guesses_side_by_side_gain_nothing() {
    on_both(async |auth: Auth| {
        let (_, jane) = auth.user("jane@example.com").await;
        let client = client(&auth);
        let tries: Vec<_> = (0..40)
            .map(|_| {
                let request = GetDeviceAuthorizationRequest { user_code: "BBBB-BBBB".into() };
                let (mut client, request) = (client.clone(), with_token(&jane.access_token, request));
                tokio::spawn(async move { answer(client.get_device_authorization(request).await) })
            })
            .collect();
        let mut looked = 0;
        for attempt in tries {
            let (_, reason) = refusal(attempt.await.unwrap());
            looked += usize::from(reason == "NOT_FOUND");
        }
        assert_eq!(looked, 6);
    })
    .await;
}

#[tokio::test]
async fn an_approval_ends_with_the_session_that_gave_it() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let grant = cli(&auth).await;
        decide(&auth, &here.access_token, &grant.user_code, true).await.unwrap();
        answer(auth.client().logout(with_token(&here.access_token, LogoutRequest {})).await).unwrap();
        assert_eq!(refusal(exchange(&auth, &grant.device_code).await), expired());
    })
    .await;
}

#[tokio::test]
async fn nobody_approves_more_than_his_own_session_may_do() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let narrow = start(&auth, "helper", "sessions:read sessions:write").await.unwrap();
        decide(&auth, &here.access_token, &narrow.user_code, true).await.unwrap();
        let narrow = exchange(&auth, &narrow.device_code).await.unwrap();
        // A session of little scope whose owner has proven who they are in it.
        execute(&auth, "UPDATE sessions SET amr = 'pwd' WHERE client_id = 'helper'").await;
        let narrow = refresh(&auth.client(), &narrow.refresh_token).await.unwrap().access_token;
        for scope in ["", "*", "*:read", "sessions:read profile:read"] {
            let wide = start(&auth, "cli", scope).await.unwrap();
            let refused = decide(&auth, &narrow, &wide.user_code, true).await;
            assert_eq!(refusal(refused), (Kind::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned()));
            assert_eq!(refusal(exchange(&auth, &wide.device_code).await), pending());
            decide(&auth, &narrow, &wide.user_code, false).await.unwrap();
        }
        let same = start(&auth, "cli", "sessions:read").await.unwrap();
        decide(&auth, &narrow, &same.user_code, true).await.unwrap();
        exchange(&auth, &same.device_code).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_device_code_is_not_kept() {
    on_both(async |auth: Auth| {
        let grant = cli(&auth).await;
        let dump = dump(&auth).await;
        assert!(dump.contains("device_grants: ") && dump.contains("tollgate-cli"), "the dump is not one");
        let raw = URL_SAFE_NO_PAD.decode(&grant.device_code).unwrap();
        let code = &grant.device_code;
        for form in [code.to_lowercase(), hex(code.as_bytes()), hex(&raw)] {
            assert!(!dump.contains(&form), "a device code is stored");
        }
    })
    .await;
}

#[tokio::test]
async fn a_device_approves_no_other() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let first = cli(&auth).await;
        decide(&auth, &here.access_token, &first.user_code, true).await.unwrap();
        let device = exchange(&auth, &first.device_code).await.unwrap();
        let second = cli(&auth).await;
        let refused = decide(&auth, &device.access_token, &second.user_code, true).await;
        assert_eq!(refusal(refused), (Kind::Unauthenticated, "STEP_UP_REQUIRED".to_owned()));
        assert_eq!(refusal(exchange(&auth, &second.device_code).await), pending());
        decide(&auth, &here.access_token, &second.user_code, true).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_device_that_a_change_of_the_password_overtakes_gets_nothing() {
    on_both(async |auth: Auth| {
        let (_, here) = auth.user("jane@example.com").await;
        let started = cli(&auth).await;
        decide(&auth, &here.access_token, &started.user_code, true).await.unwrap();
        let request = ChangePasswordRequest {
            current_password: PASSWORD.into(),
            new_password: "canary-n3w-pass-word".into(),
        };
        let (changed, exchanged) = tokio::join!(
            async { answer(auth.client().change_password(with_token(&here.access_token, request)).await) },
            exchange(&auth, &started.device_code),
        );
        changed.unwrap();
        // Whichever came first: a session from before is over, and none came after.
        if let Ok(pair) = exchanged {
            assert_eq!(refusal(refresh(&auth.client(), &pair.refresh_token).await).1, "INVALID_GRANT");
        }
    })
    .await;
}
