//! What failed logins cost.

use std::time::Duration;

use service_kit::{Error, Kind};

use crate::harness::{Auth, PASSWORD, login, on_both};

const WRONG: &str = "not-her-password";
const JANE: &str = "jane@example.com";

/// `401`, or `429` and the seconds to wait.
fn brief(error: &Error) -> (u16, u64) {
    let wait = error.retry_delay().unwrap_or_default().as_secs();
    (error.kind().http_status().as_u16(), wait)
}

async fn wrong(auth: &Auth, email: &str) -> (u16, u64) {
    brief(&login(&auth.client(), email, WRONG).await.unwrap_err())
}

#[tokio::test]
async fn five_are_free_then_the_wait_doubles() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        for email in [JANE, "nobody@example.com"] {
            for _ in 0..6 {
                assert_eq!(wrong(&auth, email).await, (401, 0), "{email}");
            }
            for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
                // Trying while locked costs nothing and does not extend the lock.
                for _ in 0..3 {
                    assert_eq!(wrong(&auth, email).await, (429, wait), "{email}");
                }
                auth.clock.advance_ms(wait as i64 * 1_000);
                assert_eq!(wrong(&auth, email).await, (401, 0), "{email} after {wait} s");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_right_password_waits_too_and_then_forgives() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        for _ in 0..6 {
            wrong(&auth, JANE).await;
        }
        let locked = login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        assert_eq!((locked.kind(), locked.reason()), (Kind::ResourceExhausted, "TOO_MANY_ATTEMPTS"));
        assert_eq!(locked.retry_delay(), Some(Duration::from_secs(1)));
        // Another account is not concerned, and a restart does not help.
        auth.user("joan@example.com").await;
        let auth = auth.restart(|_| {}).await;
        assert_eq!(wrong(&auth, JANE).await, (429, 1));
        auth.clock.advance_ms(1_000);
        login(&auth.client(), JANE, PASSWORD).await.unwrap();
        for _ in 0..6 {
            assert_eq!(wrong(&auth, JANE).await, (401, 0));
        }
    })
    .await;
}

#[tokio::test]
async fn guesses_side_by_side_gain_nothing() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        let client = auth.client();
        let tries: Vec<_> = (0..40)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { brief(&login(&client, JANE, WRONG).await.unwrap_err()) })
            })
            .collect();
        let mut checked = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                (401, _) => checked += 1,
                other => assert_eq!(other, (429, 1)),
            }
        }
        assert!((1..=6).contains(&checked), "{checked} passwords were looked at");
    })
    .await;
}

#[tokio::test]
async fn right_logins_side_by_side_all_succeed() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        let places = std::thread::available_parallelism().unwrap().get() * 5;
        let client = auth.client();
        let tries: Vec<_> = (0..places.min(12))
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { login(&client, JANE, PASSWORD).await })
            })
            .collect();
        for attempt in tries {
            attempt.await.unwrap().unwrap();
        }
    })
    .await;
}
