//! Login, refresh and logout.

use proto::auth::{GetProfileRequest, LogoutRequest, RefreshRequest};
use service_kit::Kind;
use tonic::Code;

use crate::{
    database::{number, texts},
    harness::{Auth, Client, PASSWORD, answer, fields, login, on_both, refresh, refusal, with_token},
};

const DAY_MS: i64 = 24 * 3_600 * 1_000;

fn invalid_grant() -> (Kind, String) {
    (Kind::Unauthenticated, "INVALID_GRANT".to_owned())
}

#[tokio::test]
async fn unknown_and_wrong_answer_alike() {
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        let wrong = login(&auth.client(), "jane@example.com", "not-her-password").await.unwrap_err();
        let unknown = login(&auth.client(), "joan@example.com", "not-her-password").await.unwrap_err();
        assert_eq!((wrong.kind(), wrong.reason()), (Kind::Unauthenticated, "INVALID_CREDENTIALS"));
        assert_eq!(format!("{wrong:?}"), format!("{unknown:?}"));
    })
    .await;
}

#[tokio::test]
async fn garbage_at_login_names_the_field() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        assert_eq!(fields(login(&client, "", "").await), ["email", "password"]);
        assert_eq!(fields(login(&client, "jane@@example.com", PASSWORD).await), ["email"]);
        assert_eq!(fields(login(&client, "jane@example.com", &"x".repeat(129)).await), ["password"]);
        assert_eq!(fields(refresh(&client, "").await), ["refreshToken"]);
        for garbage in ["x", "null", &"A".repeat(43), &"A".repeat(500_000), "'; DROP TABLE users; --"] {
            assert_eq!(refusal(refresh(&client, garbage).await), invalid_grant());
        }
    })
    .await;
}

#[tokio::test]
async fn refresh_gives_a_new_pair_of_the_same_session() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, first) = auth.user("jane@example.com").await;
        assert_eq!((first.token_type.as_str(), first.expires_in), ("Bearer", 600));
        auth.clock.advance_ms(606_000);
        let profile = with_token(&first.access_token, GetProfileRequest {});
        let expired = answer(client.clone().get_profile(profile).await);
        assert_eq!(refusal(expired), (Kind::Unauthenticated, "TOKEN_EXPIRED".to_owned()));

        let second = refresh(&client, &first.refresh_token).await.unwrap();
        assert!(second.refresh_token != first.refresh_token && second.access_token != first.access_token);
        let profile = with_token(&second.access_token, GetProfileRequest {});
        assert!(client.clone().get_profile(profile).await.is_ok());
        // Neither kind of token does the work of the other.
        assert_eq!(refusal(refresh(&client, &second.access_token).await), invalid_grant());
        let profile = with_token(&second.refresh_token, GetProfileRequest {});
        let status = client.clone().get_profile(profile).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    })
    .await;
}

#[tokio::test]
async fn reuse_ends_the_session_and_no_other() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, first) = auth.user("jane@example.com").await;
        let elsewhere = login(&client, "jane@example.com", PASSWORD).await.unwrap();
        let second = refresh(&client, &first.refresh_token).await.unwrap();
        let third = refresh(&client, &second.refresh_token).await.unwrap();

        assert_eq!(refusal(refresh(&client, &first.refresh_token).await), invalid_grant());
        assert_eq!(refusal(refresh(&client, &third.refresh_token).await), invalid_grant());
        refresh(&client, &elsewhere.refresh_token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn reuse_is_revoked_recorded_and_told_by_mail() {
    const LETTERS: &str =
        "SELECT CAST(COALESCE(MAX(head), 0) AS TEXT) FROM outbox_heads WHERE topic = 'mail'";
    on_both(async |auth: Auth| {
        let (user, first) = auth.user("jane@example.com").await;
        let before = number(&auth, LETTERS).await;
        refresh(&auth.client(), &first.refresh_token).await.unwrap();
        assert_eq!(number(&auth, LETTERS).await, before);
        // The owner hears of it once, however often it is tried.
        for _ in 0..3 {
            assert_eq!(refusal(refresh(&auth.client(), &first.refresh_token).await), invalid_grant());
            assert_eq!(number(&auth, LETTERS).await, before + 1);
        }
        let session = texts(&auth, "SELECT id FROM sessions WHERE end_reason = 'REFRESH_REUSED'").await;
        assert_eq!(texts(&auth, "SELECT session_id FROM revocations").await, session);
        let events = texts(&auth, "SELECT chain || body FROM audit_events WHERE body LIKE '%reuse%'").await;
        let [event] = &events[..] else { panic!("{events:?}") };
        assert!(event.starts_with(&format!("user:{}", user.id)) && event.contains(&session[0]), "{event}");
    })
    .await;
}

#[tokio::test]
async fn within_the_grace_a_repeat_gets_the_same_successor() {
    on_both(async |auth: Auth| {
        let auth = auth.restart(|config| config.session.refresh_grace = 5).await;
        let client = auth.client();
        let (_, first) = auth.user("jane@example.com").await;
        let second = refresh(&client, &first.refresh_token).await.unwrap();
        for _ in 0..2 {
            auth.clock.advance_ms(2_499);
            let again = refresh(&client, &first.refresh_token).await.unwrap();
            assert_eq!(again.refresh_token, second.refresh_token);
        }
        // Once the successor is used, the answer had arrived.
        let third = refresh(&client, &second.refresh_token).await.unwrap();
        assert_eq!(refusal(refresh(&client, &first.refresh_token).await), invalid_grant());
        assert_eq!(refusal(refresh(&client, &third.refresh_token).await), invalid_grant());

        // And when the grace is over, a repeat is a reuse.
        let first = login(&client, "jane@example.com", PASSWORD).await.unwrap();
        let second = refresh(&client, &first.refresh_token).await.unwrap();
        auth.clock.advance_ms(5_000);
        assert_eq!(refusal(refresh(&client, &first.refresh_token).await), invalid_grant());
        assert_eq!(refusal(refresh(&client, &second.refresh_token).await), invalid_grant());

        // No session that has ended comes back by it.
        let first = login(&client, "jane@example.com", PASSWORD).await.unwrap();
        let second = refresh(&client, &first.refresh_token).await.unwrap();
        client.clone().logout(with_token(&second.access_token, LogoutRequest {})).await.unwrap();
        assert_eq!(refusal(refresh(&client, &first.refresh_token).await), invalid_grant());
    })
    .await;
}

#[tokio::test]
async fn within_the_grace_fifty_side_by_side_agree_on_one_successor() {
    on_both(async |auth: Auth| {
        let auth = auth.restart(|config| config.session.refresh_grace = 10).await;
        let (_, pair) = auth.user("jane@example.com").await;
        let client = auth.client();
        let tries: Vec<_> = (0..50)
            .map(|_| {
                let (client, token) = (client.clone(), pair.refresh_token.clone());
                tokio::spawn(async move { refresh(&client, &token).await.unwrap().refresh_token })
            })
            .collect();
        let mut successors = std::collections::HashSet::new();
        for attempt in tries {
            successors.insert(attempt.await.unwrap());
        }
        assert_eq!(successors.len(), 1);
        let rows = number(&auth, "SELECT CAST(COUNT(*) AS TEXT) FROM refresh_tokens").await;
        assert_eq!(rows, 2);
    })
    .await;
}

#[tokio::test]
async fn of_fifty_refreshes_side_by_side_one_succeeds() {
    on_both(async |auth: Auth| {
        let (_, pair) = auth.user("jane@example.com").await;
        let client = auth.client();
        let tries: Vec<_> = (0..50)
            .map(|_| {
                let (client, token) = (client.clone(), pair.refresh_token.clone());
                tokio::spawn(async move { refresh(&client, &token).await })
            })
            .collect();
        let mut won = Vec::new();
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(pair) => won.push(pair),
                Err(error) => assert_eq!(error.reason(), "INVALID_GRANT", "{error}"),
            }
        }
        assert_eq!(won.len(), 1);
        // One of the fifty may have been a thief: the successor is dead too.
        assert_eq!(refusal(refresh(&client, &won[0].refresh_token).await), invalid_grant());
    })
    .await;
}

#[tokio::test]
async fn logout_ends_one_session_at_once() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, here) = auth.user("jane@example.com").await;
        let there = login(&client, "jane@example.com", PASSWORD).await.unwrap();
        let logout = async || {
            let request = with_token(&here.access_token, LogoutRequest {});
            answer(client.clone().logout(request).await)
        };
        logout().await.unwrap();
        // Once more is fine, until it has gone round that the token is dead.
        if let Err(error) = logout().await {
            assert_eq!(error.reason(), "TOKEN_REVOKED");
        }
        assert_eq!(refusal(refresh(&client, &here.refresh_token).await), invalid_grant());
        refresh(&client, &there.refresh_token).await.unwrap();
        let status = client.clone().logout(LogoutRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    })
    .await;
}

#[tokio::test]
async fn an_idle_refresh_token_dies_after_14_days() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, pair) = auth.user("jane@example.com").await;
        auth.clock.advance_ms(14 * DAY_MS - 1);
        let pair = refresh(&client, &pair.refresh_token).await.unwrap();
        auth.clock.advance_ms(14 * DAY_MS);
        assert_eq!(refusal(refresh(&client, &pair.refresh_token).await), invalid_grant());
    })
    .await;
}

#[tokio::test]
async fn a_busy_session_dies_after_30_days() {
    on_both(async |auth: Auth| {
        let client = auth.client();
        let (_, mut pair) = auth.user("jane@example.com").await;
        for _ in 0..2 {
            auth.clock.advance_ms(13 * DAY_MS);
            pair = refresh(&client, &pair.refresh_token).await.unwrap();
        }
        auth.clock.advance_ms(4 * DAY_MS - 1);
        pair = refresh(&client, &pair.refresh_token).await.unwrap();
        auth.clock.advance_ms(1);
        assert_eq!(refusal(refresh(&client, &pair.refresh_token).await), invalid_grant());
    })
    .await;
}

#[tokio::test]
async fn sessions_survive_a_restart() {
    on_both(async |auth: Auth| {
        let (user, pair) = auth.user("jane@example.com").await;
        let auth = auth.restart(|_| {}).await;
        let client = auth.client();
        let profile = with_token(&pair.access_token, GetProfileRequest {});
        assert_eq!(answer(client.clone().get_profile(profile).await).unwrap(), user);
        refresh(&client, &pair.refresh_token).await.unwrap();
        login(&client, "jane@example.com", PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn only_the_edge_may_log_people_in() {
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        for peer in ["gateway-service", "project-service", "auth-service"] {
            let client = Client::new(auth.upstream(peer));
            let refused = login(&client, "jane@example.com", PASSWORD).await;
            assert_eq!(refusal(refused).0, Kind::PermissionDenied, "{peer}");
            let request = RefreshRequest { refresh_token: "x".into() };
            let status = client.clone().refresh(request).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{peer}");
        }
    })
    .await;
}
