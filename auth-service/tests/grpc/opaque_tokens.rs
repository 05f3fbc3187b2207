//! Personal access tokens and their exchange.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::{
    Access, Contract, Proof,
    auth::{
        ChangePasswordRequest, ConfirmTotpRequest, CreateTokenRequest, CreatedToken, DeletePasskeyRequest,
        EndOtherSessionsRequest, EndSessionRequest, ExchangeTokenRequest, ExchangeTokenResponse,
        FinishPasskeyRegistrationRequest, GetProfileRequest, GetTokenRequest, ListTokensRequest,
        LogoutRequest, PersonalToken, ReauthenticateRequest, RemoveTotpRequest, RenewRecoveryCodesRequest,
        RevokeTokenRequest, StartPasskeyRegistrationRequest, StartTotpRequest, UpdateProfileRequest,
        identity_service_client::IdentityServiceClient,
        second_factor_service_client::SecondFactorServiceClient,
        session_service_client::SessionServiceClient, token_service_client::TokenServiceClient,
    },
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use service_kit::{Error, Kind, client::Upstream, opaque};
use tonic::Code;

use crate::{
    harness::{Auth, PASSWORD, START, answer, fields, login, on_both, refresh, refusal, with_token},
    secrets::dump,
    sql::execute,
};

const MINUTE_MS: i64 = 60_000;
pub(crate) const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

fn tokens(auth: &Auth) -> TokenServiceClient<Upstream> {
    TokenServiceClient::new(auth.upstream("edge-proxy"))
}

pub(crate) fn ask(name: &str, scopes: &[&str], expires_in_days: Option<u32>) -> CreateTokenRequest {
    let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    CreateTokenRequest { name: name.into(), scopes, expires_in_days }
}

pub(crate) async fn create(
    auth: &Auth,
    access: &str,
    asked: CreateTokenRequest,
) -> Result<CreatedToken, Error> {
    answer(tokens(auth).create_token(with_token(access, asked)).await)
}

async fn get(auth: &Auth, access: &str, id: &str) -> Result<PersonalToken, Error> {
    answer(tokens(auth).get_token(with_token(access, GetTokenRequest { token_id: id.into() })).await)
}

pub(crate) async fn revoke(auth: &Auth, access: &str, id: &str) -> Result<(), Error> {
    answer(tokens(auth).revoke_token(with_token(access, RevokeTokenRequest { token_id: id.into() })).await)
}

pub(crate) async fn list(auth: &Auth, access: &str, limit: u32, offset: u32) -> (Vec<PersonalToken>, u32) {
    let request = with_token(access, ListTokensRequest { limit: Some(limit), offset });
    let page = answer(tokens(auth).list_tokens(request).await).unwrap();
    assert_eq!(page.count as usize, page.list.len());
    (page.list, page.pagination.unwrap().total)
}

pub(crate) async fn exchange(auth: &Auth, text: &str) -> Result<ExchangeTokenResponse, Error> {
    let mut identity = IdentityServiceClient::new(auth.upstream("edge-proxy"));
    answer(identity.exchange_token(ExchangeTokenRequest { token: text.into() }).await)
}

pub(crate) fn claims(access: &str) -> Value {
    let part = access.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// How many rows of a table hold all of these words.
pub(crate) async fn rows(auth: &Auth, table: &str, words: &[&str]) -> usize {
    let (dump, table) = (dump(auth).await, format!("{table}: "));
    let holds = |row: &&str| row.starts_with(&table) && words.iter().all(|word| row.contains(word));
    dump.lines().filter(holds).count()
}

fn invalid_token() -> (Kind, String) {
    (Kind::Unauthenticated, "INVALID_TOKEN".to_owned())
}

#[tokio::test]
async fn a_token_is_shown_once_listed_and_revoked() {
    on_both(async |auth: Auth| {
        let (user, pair) = auth.user("jane@example.com").await;
        let made = create(&auth, &pair.access_token, ask(" ci ", &[], None)).await.unwrap();
        assert!(opaque::parse("pat", &made.token).is_some(), "{}", made.token);
        let details = made.details.clone().unwrap();
        assert_eq!((&details.id, details.name.as_str()), (&made.id, "ci"));
        assert_eq!(details.scopes, ["*:read"]);
        assert_eq!(details.created_at.unwrap().unix_ms(), START);
        assert_eq!(details.expires_at.unwrap().unix_ms(), START + 90 * DAY_MS);
        assert_eq!(details.last_used_at, None);

        assert_eq!(get(&auth, &pair.access_token, &made.id).await.unwrap(), details);
        assert_eq!(list(&auth, &pair.access_token, 20, 0).await, (vec![details], 1));
        exchange(&auth, &made.token).await.unwrap();
        for _ in 0..2 {
            revoke(&auth, &pair.access_token, &made.id).await.unwrap();
        }
        assert_eq!(refusal(exchange(&auth, &made.token).await), invalid_token());
        assert_eq!(list(&auth, &pair.access_token, 20, 0).await, (vec![], 0));
        assert_eq!(refusal(get(&auth, &pair.access_token, &made.id).await).0, Kind::NotFound);
        // Told once: to whoever follows the revocations, and to the log.
        assert_eq!(rows(&auth, "revocations", &[&made.id]).await, 1);
        for action in ["auth.token.create", "auth.token.revoke"] {
            let chain = format!("user:{}", user.id);
            assert_eq!(rows(&auth, "audit_events", &[&chain, action, &made.id]).await, 1, "{action}");
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_of_a_token_but_its_hash_is_stored() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let made = create(&auth, &pair.access_token, ask("ci", &["*"], None)).await.unwrap();
        exchange(&auth, &made.token).await.unwrap();
        let (head, secret) = made.token.rsplit_once('_').unwrap();
        let (dump, lookup) = (dump(&auth).await, head.trim_start_matches("tgpat_").to_lowercase());
        assert!(dump.contains(&lookup), "the dump is not one");
        assert!(!dump.contains(&secret[..43].to_lowercase()) && !dump.contains(&made.token.to_lowercase()));
    })
    .await;
}

#[tokio::test]
async fn the_exchange_gives_a_short_token_with_its_scopes() {
    on_both(async |auth: Auth| {
        let (user, pair) = auth.user("jane@example.com").await;
        let asked = ask("ci", &["apis:write", "*:read", "apis:write"], Some(1));
        let made = create(&auth, &pair.access_token, asked).await.unwrap();
        auth.clock.advance_ms(90_000);
        let exchanged = exchange(&auth, &made.token).await.unwrap();
        assert_eq!(exchanged.expires_in, 300);
        let said = claims(&exchanged.access_token);
        assert_eq!((&said["sub"], &said["sid"]), (&json!(user.id), &json!(made.id)));
        assert_eq!((&said["scope"], &said["amr"]), (&json!("apis:write *:read"), &json!(["pat"])));
        assert_eq!(said["client_id"], "personal-access-token");
        assert_eq!((&said["iat"], &said["auth_time"]), (&json!(START / 1_000 + 90), &json!(START / 1_000)));
        assert_eq!(said["exp"], START / 1_000 + 390);

        // It reads, and writes nothing that it has no scope for.
        let read = with_token(&exchanged.access_token, GetProfileRequest {});
        assert_eq!(answer(auth.client().get_profile(read).await).unwrap().id, user.id);
        let write = with_token(&exchanged.access_token, UpdateProfileRequest { name: "Eve".into() });
        let refused = answer(auth.client().update_profile(write).await);
        assert_eq!(refusal(refused), (Kind::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned()));

        // The access token does not outlive what it stands for.
        auth.clock.advance_ms(DAY_MS - 90_000 - 100_000);
        let exchanged = exchange(&auth, &made.token).await.unwrap();
        assert_eq!(exchanged.expires_in, 100);
        assert_eq!(claims(&exchanged.access_token)["exp"], (START + DAY_MS) / 1_000);
        auth.clock.advance_ms(100_000);
        assert_eq!(refusal(exchange(&auth, &made.token).await), invalid_token());
    })
    .await;
}

#[tokio::test]
async fn use_is_noted_to_the_minute() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let made = create(&auth, &pair.access_token, ask("ci", &[], None)).await.unwrap();
        let used = async || {
            let token = get(&auth, &pair.access_token, &made.id).await.unwrap();
            token.last_used_at.map(|at| at.unix_ms())
        };
        assert_eq!(used().await, None);
        let first = START / MINUTE_MS * MINUTE_MS;
        auth.clock.advance_ms(first + MINUTE_MS - START);
        for (wait, minutes) in [(0, 1), (MINUTE_MS - 1, 1), (1, 2), (3 * MINUTE_MS, 5)] {
            auth.clock.advance_ms(wait);
            exchange(&auth, &made.token).await.unwrap();
            assert_eq!(used().await, Some(first + minutes * MINUTE_MS));
        }
    })
    .await;
}

#[tokio::test]
async fn every_dead_token_is_refused_alike() {
    on_both(async |auth: Auth| {
        let (user, pair) = auth.user("jane@example.com").await;
        let made = create(&auth, &pair.access_token, ask("ci", &[], Some(1))).await.unwrap();
        let revoked = create(&auth, &pair.access_token, ask("old", &[], None)).await.unwrap();
        revoke(&auth, &pair.access_token, &revoked.id).await.unwrap();
        let (wrong, _) = opaque::issue("pat");
        let garbage = made.token.replace("tgpat_", "tgsvc_");
        let mut answers = Vec::new();
        for text in [wrong.expose_secret(), &garbage, &revoked.token, "", "tgpat_", &pair.access_token] {
            answers.push(format!("{:?}", exchange(&auth, text).await.unwrap_err()));
        }
        execute(&auth, &format!("UPDATE users SET disabled_at = 1 WHERE id = '{}'", user.id)).await;
        answers.push(format!("{:?}", exchange(&auth, &made.token).await.unwrap_err()));
        let create_now = create(&auth, &pair.access_token, ask("more", &[], None)).await;
        assert!(create_now.is_err(), "a disabled account makes no token");
        execute(&auth, &format!("UPDATE users SET disabled_at = NULL WHERE id = '{}'", user.id)).await;
        exchange(&auth, &made.token).await.unwrap();
        auth.clock.advance_ms(DAY_MS);
        answers.push(format!("{:?}", exchange(&auth, &made.token).await.unwrap_err()));
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert!(answers[0].contains("INVALID_TOKEN"), "{answers:?}");
    })
    .await;
}

#[tokio::test]
async fn a_broken_database_is_no_proof_against_a_token() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let made = create(&auth, &pair.access_token, ask("ci", &[], None)).await.unwrap();
        execute(&auth, "ALTER TABLE opaque_tokens RENAME TO elsewhere").await;
        let doubt = refusal(exchange(&auth, &made.token).await);
        assert_eq!(doubt, (Kind::Unavailable, "UNAVAILABLE".to_owned()));
        // No database is needed to see that this is none.
        assert_eq!(refusal(exchange(&auth, &made.token[..made.token.len() - 1]).await), invalid_token());
        execute(&auth, "ALTER TABLE elsewhere RENAME TO opaque_tokens").await;
        exchange(&auth, &made.token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn only_the_edge_may_exchange() {
    on_both(async |auth: Auth| {
        for peer in ["project-service", "gateway-service", "auth-service"] {
            let mut identity = IdentityServiceClient::new(auth.upstream(peer));
            let refused = identity.exchange_token(ExchangeTokenRequest::default()).await;
            assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied, "{peer}");
        }
    })
    .await;
}

#[tokio::test]
async fn tokens_of_others_do_not_exist() {
    on_both(async |auth: Auth| {
        let (_, jane) = auth.user("jane@example.com").await;
        let (_, joan) = auth.user("joan@example.com").await;
        let made = create(&auth, &jane.access_token, ask("ci", &[], None)).await.unwrap();
        let absent = service_kit::Ids::new(auth.clock.clone()).next();
        let mut answers = Vec::new();
        for id in [made.id.as_str(), &absent, "", "\0", "' OR 1=1 --"] {
            answers.push(format!("{:?}", get(&auth, &joan.access_token, id).await.unwrap_err()));
            answers.push(format!("{:?}", revoke(&auth, &joan.access_token, id).await.unwrap_err()));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(list(&auth, &joan.access_token, 100, 0).await, (vec![], 0));
        exchange(&auth, &made.token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn garbage_names_every_bad_field() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let access = &pair.access_token;
        let bad = ask("a\0b", &["apis:read", "apis:fly", "apis:read\0"], Some(367));
        let named = fields(create(&auth, access, bad).await);
        assert_eq!(named, ["name", "scopes[1]", "scopes[2]", "expiresInDays"]);
        assert_eq!(fields(create(&auth, access, ask("", &["*"; 51], None)).await), ["name", "scopes"]);
        for limit in [0, 101] {
            let request = with_token(access, ListTokensRequest { limit: Some(limit), offset: 0 });
            assert_eq!(fields(answer(tokens(&auth).list_tokens(request).await)), ["limit"]);
        }
        assert_eq!(list(&auth, access, 20, 0).await.1, 0);
    })
    .await;
}

#[tokio::test]
async fn an_owner_has_a_hundred_tokens_at_most() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let access = &pair.access_token;
        let first = create(&auth, access, ask("first", &[], Some(1))).await.unwrap();
        for at in 1..95 {
            create(&auth, access, ask(&format!("t{at}"), &[], Some(2))).await.unwrap();
        }
        // Of twenty side by side five find room.
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let (mut client, request) = (tokens(&auth), with_token(access, ask("race", &[], None)));
                tokio::spawn(async move { answer(client.create_token(request).await) })
            })
            .collect();
        let mut made = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(_) => made += 1,
                Err(error) => {
                    assert_eq!((error.kind(), error.reason()), (Kind::FailedPrecondition, "TOO_MANY_TOKENS"))
                }
            }
        }
        assert_eq!(made, 5);
        assert_eq!(list(&auth, access, 1, 0).await.1, 100);
        let (page, total) = list(&auth, access, 100, 99).await;
        assert_eq!((page[0].name.as_str(), page.len(), total), ("first", 1, 100));
        // One that is revoked makes room, and so does one that has expired.
        revoke(&auth, access, &page[0].id).await.unwrap();
        assert_eq!(refusal(exchange(&auth, &first.token).await), invalid_token());
        create(&auth, access, ask("next", &[], None)).await.unwrap();
        let full = create(&auth, access, ask("more", &[], None)).await;
        assert_eq!(refusal(full).1, "TOO_MANY_TOKENS");
        auth.clock.advance_ms(2 * DAY_MS);
        let pair = login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        create(&auth, &pair.access_token, ask("more", &[], None)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_token_is_made_by_a_recent_login_and_no_wider_than_it() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        execute(&auth, "UPDATE sessions SET scope = 'tokens:write apis:read'").await;
        let narrow = refresh(&auth.client(), &pair.refresh_token).await.unwrap();
        let insufficient = (Kind::PermissionDenied, "INSUFFICIENT_SCOPE".to_owned());
        for wider in [&["*"][..], &[], &["*:read"], &["apis:read", "apis:write"]] {
            let refused = create(&auth, &narrow.access_token, ask("wide", wider, None)).await;
            assert_eq!(refusal(refused), insufficient, "{wider:?}");
        }
        create(&auth, &narrow.access_token, ask("ci", &["apis:read"], None)).await.unwrap();

        auth.clock.advance_ms(601_000);
        let late = refresh(&auth.client(), &narrow.refresh_token).await.unwrap();
        let refused = create(&auth, &late.access_token, ask("late", &["apis:read"], None)).await;
        assert_eq!(refusal(refused), (Kind::Unauthenticated, "STEP_UP_REQUIRED".to_owned()));
    })
    .await;
}

/// What a program may change about the account that it works for.
#[test]
fn the_contract_keeps_accounts_from_programs() {
    let open: BTreeSet<&str> = Contract::get()
        .methods()
        .filter(|method| method.package() == "tollgate.auth.v1" && method.access == Access::User)
        .filter(|method| !method.no_side_effects && method.proof == Proof::Any)
        .map(|method| method.path.as_str())
        .collect();
    assert_eq!(open, BTreeSet::from(["/tollgate.auth.v1.AuthService/UpdateProfile"]));
}

#[tokio::test]
async fn no_token_of_a_program_makes_tokens_or_touches_the_login() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let made = create(&auth, &pair.access_token, ask("ci", &["*"], Some(366))).await.unwrap();
        let access = exchange(&auth, &made.token).await.unwrap().access_token;
        let (mut client, mut tokens) = (auth.client(), tokens(&auth));
        let mut factors = SecondFactorServiceClient::new(auth.upstream("edge-proxy"));
        let mut sessions = SessionServiceClient::new(auth.upstream("edge-proxy"));
        macro_rules! refused {
            ($($client:ident.$method:ident($request:expr)),+ $(,)?) => {$(
                let refused = answer($client.$method(with_token(&access, $request)).await);
                let expected = (Kind::PermissionDenied, "INTERACTIVE_LOGIN_REQUIRED".to_owned());
                assert_eq!(refusal(refused), expected, stringify!($method));
            )+};
        }
        refused! {
            tokens.create_token(ask("wider", &["*"], None)),
            tokens.revoke_token(RevokeTokenRequest { token_id: made.id.clone() }),
            client.change_password(ChangePasswordRequest::default()),
            client.logout(LogoutRequest {}),
            factors.start_totp(StartTotpRequest::default()),
            factors.confirm_totp(ConfirmTotpRequest::default()),
            factors.remove_totp(RemoveTotpRequest::default()),
            factors.renew_recovery_codes(RenewRecoveryCodesRequest::default()),
            factors.start_passkey_registration(StartPasskeyRegistrationRequest::default()),
            factors.finish_passkey_registration(FinishPasskeyRegistrationRequest::default()),
            factors.delete_passkey(DeletePasskeyRequest::default()),
            sessions.end_session(EndSessionRequest::default()),
            sessions.end_other_sessions(EndOtherSessionsRequest::default()),
            sessions.reauthenticate(ReauthenticateRequest::default()),
        }
        // Its owner's password is as it was, and so are his tokens.
        let pair = login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
        assert_eq!(list(&auth, &pair.access_token, 20, 0).await.1, 1);
    })
    .await;
}
