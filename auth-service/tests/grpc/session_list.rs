//! The list of sessions, their ends, and new proofs of who the caller is.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{
    EndMemberSessionsRequest, EndOtherSessionsRequest, EndSessionRequest, ListSessionsRequest, LoginRequest,
    ReauthenticateRequest, Session, TokenPair, session_service_client::SessionServiceClient,
};
use service_kit::{Error, Kind, client::Upstream};
use tonic::Request;

use crate::{
    database::{number, texts},
    harness::{Auth, PASSWORD, START, answer, fields, login, on_both, refresh, refusal, with_token},
    project::Project,
};

const JANE: &str = "jane@example.com";
const ORGANIZATION: &str = "0198f0c5-0000-7000-8000-000000000001";

type Sessions = SessionServiceClient<Upstream>;

fn sessions(auth: &Auth) -> Sessions {
    Sessions::new(auth.upstream("edge-proxy"))
}

async fn list(auth: &Auth, token: &str) -> Vec<Session> {
    let request = with_token(token, ListSessionsRequest { limit: Some(100), offset: 0 });
    let page = answer(sessions(auth).list_sessions(request).await).unwrap();
    assert_eq!((page.count as usize, page.pagination.unwrap().total), (page.list.len(), page.count));
    page.list
}

async fn end(auth: &Auth, token: &str, session_id: &str) -> Result<(), Error> {
    let request = with_token(token, EndSessionRequest { session_id: session_id.into() });
    answer(sessions(auth).end_session(request).await)
}

/// A login from somewhere.
async fn login_at(auth: &Auth, address: &str, device: &str) -> TokenPair {
    let message = LoginRequest { email: JANE.into(), password: PASSWORD.into(), ..LoginRequest::default() };
    let mut request = Request::new(message);
    request.metadata_mut().insert("tollgate-client-address", address.parse().unwrap());
    request.metadata_mut().insert("tollgate-client-device", device.parse().unwrap());
    answer(auth.client().login(request).await).unwrap()
}

fn claims(token: &str) -> serde_json::Value {
    let body = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&body).unwrap()
}

/// The sessions that are revoked, in order.
async fn revoked(auth: &Auth) -> Vec<String> {
    texts(auth, "SELECT session_id FROM revocations ORDER BY position").await
}

#[tokio::test]
async fn sessions_are_listed_the_last_used_first() {
    on_both(async |auth: Auth| {
        auth.user("joan@example.com").await;
        let (_, first) = auth.user(JANE).await;
        auth.clock.advance_ms(1_000);
        let second = login_at(&auth, "2001:db8::7", "curl/8").await;
        auth.clock.advance_ms(1_000);
        let first = refresh(&auth.client(), &first.refresh_token).await.unwrap();

        let listed = list(&auth, &second.access_token).await;
        let [one, two] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((one.current, two.current), (false, true));
        assert_eq!(one.id, claims(&first.access_token)["sid"]);
        assert_eq!(two.id, claims(&second.access_token)["sid"]);
        assert_eq!((two.address.as_str(), two.device.as_str()), ("2001:db8::7", "curl/8"));
        assert_eq!((two.client_id.as_str(), &two.methods[..]), ("tollgate-web", &["pwd".to_owned()][..]));
        let times = |session: &Session| {
            let ms = |time: &Option<proto::time::Timestamp>| time.as_ref().unwrap().unix_ms() - START;
            [&session.created_at, &session.last_used_at, &session.authenticated_at, &session.expires_at]
                .map(ms)
        };
        let life = 30 * 24 * 3_600 * 1_000;
        assert_eq!(times(one), [0, 2_000, 0, life]);
        assert_eq!(times(two), [1_000, 1_000, 1_000, life + 1_000]);

        let page = ListSessionsRequest { limit: Some(1), offset: 1 };
        let page = sessions(&auth).list_sessions(with_token(&first.access_token, page)).await;
        let page = answer(page).unwrap();
        assert_eq!((page.count, page.pagination.unwrap().total, &page.list[0].id), (1, 2, &two.id));
        assert!(!page.list[0].current);
        let too_many = with_token(&first.access_token, ListSessionsRequest { limit: Some(101), offset: 0 });
        assert_eq!(fields(answer(sessions(&auth).list_sessions(too_many).await)), ["limit"]);
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_used_any_more_is_not_listed() {
    on_both(async |auth: Auth| {
        let (_, idle) = auth.user(JANE).await;
        let ended = login(&auth.client(), JANE, PASSWORD).await.unwrap();
        auth.clock.advance_ms(14 * 24 * 3_600 * 1_000);
        let here = login(&auth.client(), JANE, PASSWORD).await.unwrap();
        end(&auth, &here.access_token, claims(&ended.access_token)["sid"].as_str().unwrap()).await.unwrap();
        let listed = list(&auth, &here.access_token).await;
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(listed[0].current);
        refresh(&auth.client(), &idle.refresh_token).await.unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn a_user_ends_sessions_of_his_own_and_no_others() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, here) = auth.user(JANE).await;
        let there = login(&client, JANE, PASSWORD).await.unwrap();
        let (_, joan) = auth.user("joan@example.com").await;
        let id = |pair: &TokenPair| claims(&pair.access_token)["sid"].as_str().unwrap().to_owned();

        assert_eq!(fields(end(&auth, &here.access_token, "x").await), ["sessionId"]);
        assert_eq!(fields(end(&auth, &here.access_token, "").await), ["sessionId"]);
        let random = "0198f0c5-0000-7000-8000-000000000009";
        let unknown = end(&auth, &here.access_token, random).await.unwrap_err();
        let others = end(&auth, &here.access_token, &id(&joan)).await.unwrap_err();
        assert_eq!((unknown.kind(), format!("{unknown:?}")), (Kind::NotFound, format!("{others:?}")));

        end(&auth, &here.access_token, &id(&there)).await.unwrap();
        assert_eq!(refusal(end(&auth, &here.access_token, &id(&there)).await).0, Kind::NotFound);
        assert_eq!(revoked(&auth).await, [id(&there)]);
        assert_eq!(refusal(refresh(&client, &there.refresh_token).await).1, "INVALID_GRANT");
        refresh(&client, &here.refresh_token).await.unwrap();
        refresh(&client, &joan.refresh_token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn all_others_end_at_once() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, here) = auth.user(JANE).await;
        let (_, joan) = auth.user("joan@example.com").await;
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(login(&client, JANE, PASSWORD).await.unwrap());
        }
        for count in [3, 0] {
            let request = with_token(&here.access_token, EndOtherSessionsRequest {});
            let ended = answer(sessions(&auth).end_other_sessions(request).await).unwrap().ended;
            assert_eq!((ended, revoked(&auth).await.len()), (count, 3));
        }
        for other in others {
            assert_eq!(refusal(refresh(&client, &other.refresh_token).await).1, "INVALID_GRANT");
        }
        refresh(&client, &here.refresh_token).await.unwrap();
        refresh(&client, &joan.refresh_token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_administrator_ends_the_sessions_of_members() {
    on_both(async |auth: Auth| {
        let project = Project::default();
        let neighbour = project.serve(&auth).await;
        let auth = auth.restart(|config| config.upstreams.project.address = neighbour.addr.to_string()).await;
        let (admin, boss) = auth.user("admin@example.com").await;
        let (viewer, low) = auth.user("viewer@example.com").await;
        let (stranger, foreign) = auth.user("stranger@example.com").await;
        login(&auth.client(), "viewer@example.com", PASSWORD).await.unwrap();
        project.join(&admin.id, ORGANIZATION, "admin");
        project.join(&viewer.id, ORGANIZATION, "viewer");
        let end = async |token: &str, organization_id: &str, user_id: &str| {
            let request =
                EndMemberSessionsRequest { organization_id: organization_id.into(), user_id: user_id.into() };
            answer(sessions(&auth).end_member_sessions(with_token(token, request)).await)
        };

        assert_eq!(fields(end(&boss.access_token, "x", "y").await), ["organizationId", "userId"]);
        let (kind, _) = refusal(end(&low.access_token, ORGANIZATION, &admin.id).await);
        assert_eq!(kind, Kind::PermissionDenied);
        for (token, organization, user) in [
            (&foreign.access_token, ORGANIZATION, &viewer.id),
            (&boss.access_token, "0198f0c5-0000-7000-8000-000000000002", &viewer.id),
            (&boss.access_token, ORGANIZATION, &stranger.id),
        ] {
            assert_eq!(refusal(end(token, organization, user).await).0, Kind::NotFound);
        }
        assert!(revoked(&auth).await.is_empty());

        assert_eq!(end(&boss.access_token, ORGANIZATION, &viewer.id).await.unwrap().ended, 2);
        assert_eq!(revoked(&auth).await.len(), 2);
        assert_eq!(refusal(refresh(&auth.client(), &low.refresh_token).await).1, "INVALID_GRANT");
        refresh(&auth.client(), &foreign.refresh_token).await.unwrap();
        let events = texts(&auth, "SELECT body FROM audit_events WHERE chain LIKE 'organization:%'").await;
        let [event] = &events[..] else { panic!("{events:?}") };
        for part in ["auth.session.end", &admin.id, &viewer.id] {
            assert!(event.contains(part), "{event} lacks {part}");
        }
        neighbour.shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn the_hundred_and_first_session_ends_the_oldest() {
    on_both(async |auth: Auth| {
        let (_, first) = auth.user(JANE).await;
        texts(
            &auth,
            "INSERT INTO sessions (id, user_id, created_at, last_used_at, expires_at)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 99)
             SELECT 'old-' || i, (SELECT id FROM users), i, i, 4000000000000 FROM n RETURNING id",
        )
        .await;
        let client = auth.client();
        let logins: Vec<_> = (0..5)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { login(&client, JANE, PASSWORD).await.unwrap() })
            })
            .collect();
        for login in logins {
            login.await.unwrap();
        }
        let live = "SELECT CAST(COUNT(*) AS TEXT) FROM sessions WHERE ended_at IS NULL";
        assert_eq!(number(&auth, live).await, 100);
        assert_eq!(revoked(&auth).await, ["old-1", "old-2", "old-3", "old-4", "old-5"]);
        let told = texts(&auth, "SELECT body FROM audit_events WHERE body LIKE '%too many sessions%'").await;
        assert!(told.len() == 5 && told[0].contains("old-1"), "{told:?}");
        refresh(&client, &first.refresh_token).await.unwrap();
    })
    .await;
}

async fn prove(auth: &Auth, token: &str, password: &str) -> Result<TokenPair, Error> {
    let request = ReauthenticateRequest { password: password.into() };
    answer(sessions(auth).reauthenticate(with_token(token, request)).await)
}

#[tokio::test]
async fn a_new_proof_renews_the_time_of_the_session() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, pair) = auth.user(JANE).await;
        auth.clock.advance_ms(590_000);
        assert_eq!(fields(prove(&auth, &pair.access_token, "").await), ["password"]);
        let proven = prove(&auth, &pair.access_token, PASSWORD).await.unwrap();
        assert!(proven.refresh_token.is_empty() && proven.device_token.is_empty());
        let (old, new) = (claims(&pair.access_token), claims(&proven.access_token));
        assert_eq!((&old["sid"], &old["sub"]), (&new["sid"], &new["sub"]));
        assert_eq!(new["auth_time"], START / 1_000 + 590);
        // The refresh token is still the one of the login, and what follows knows of the proof.
        let next = refresh(&client, &pair.refresh_token).await.unwrap();
        assert_eq!(claims(&next.access_token)["auth_time"], new["auth_time"]);
        assert_eq!(list(&auth, &next.access_token).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn new_proofs_are_throttled_for_themselves() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        // What strangers do elsewhere does not keep the owner from it.
        for _ in 0..7 {
            login(&auth.client(), JANE, "not-her-password").await.unwrap_err();
        }
        prove(&auth, &pair.access_token, PASSWORD).await.unwrap();
        // Each failure in the session counts, and success forgives.
        for _ in 0..6 {
            let (_, reason) = refusal(prove(&auth, &pair.access_token, "not-her-password").await);
            assert_eq!(reason, "INVALID_CREDENTIALS");
        }
        let (_, reason) = refusal(prove(&auth, &pair.access_token, PASSWORD).await);
        assert_eq!(reason, "INVALID_CREDENTIALS");
        auth.clock.advance_ms(1_000);
        prove(&auth, &pair.access_token, PASSWORD).await.unwrap();
        prove(&auth, &pair.access_token, "not-her-password").await.unwrap_err();
        prove(&auth, &pair.access_token, PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn without_a_password_there_is_none_to_prove() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user(JANE).await;
        texts(&auth, "DELETE FROM credentials RETURNING user_id").await;
        let (kind, reason) = refusal(prove(&auth, &pair.access_token, PASSWORD).await);
        assert_eq!((kind, reason.as_str()), (Kind::FailedPrecondition, "NO_PASSWORD"));
    })
    .await;
}
