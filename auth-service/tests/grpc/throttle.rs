//! What failed logins cost.

use service_kit::Error;

use crate::{
    database::{number, texts},
    harness::{Auth, PASSWORD, login, on_both},
};

const WRONG: &str = "not-her-password";
const JANE: &str = "jane@example.com";

/// A refusal as the caller sees it: all of them must look alike.
async fn wrong(auth: &Auth, email: &str) -> String {
    seen(&login(&auth.client(), email, WRONG).await.unwrap_err())
}

fn seen(error: &Error) -> String {
    assert_eq!(error.reason(), "INVALID_CREDENTIALS");
    format!("{error:?}")
}

/// How many passwords were looked at and not forgiven. The caller cannot see it.
async fn counted(auth: &Auth) -> i64 {
    number(auth, "SELECT CAST(COALESCE(SUM(failures), 0) AS TEXT) FROM login_throttles").await
}

#[tokio::test]
async fn five_are_free_then_the_wait_doubles() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        let refusal = wrong(&auth, JANE).await;
        texts(&auth, "DELETE FROM login_throttles RETURNING key").await;
        for (email, before) in [(JANE, 0), ("nobody@example.com", 18)] {
            for count in 1..=6 {
                assert_eq!(wrong(&auth, email).await, refusal, "{email}");
                assert_eq!(counted(&auth).await, before + count, "{email}");
            }
            for (count, wait) in (7..).zip([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]) {
                // Trying while locked costs nothing, does not extend the lock, and looks like any failure.
                for _ in 0..2 {
                    assert_eq!(wrong(&auth, email).await, refusal, "{email}");
                }
                auth.clock.advance_ms(wait * 1_000 - 1);
                assert_eq!(wrong(&auth, email).await, refusal, "{email}");
                assert_eq!(counted(&auth).await, before + count - 1, "{email} before {wait} s");
                auth.clock.advance_ms(1);
                assert_eq!(wrong(&auth, email).await, refusal, "{email}");
                assert_eq!(counted(&auth).await, before + count, "{email} after {wait} s");
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
        assert_eq!((seen(&locked), locked.retry_delay()), (wrong(&auth, JANE).await, None));
        // Another account is not concerned, and a restart does not help.
        auth.user("joan@example.com").await;
        let auth = auth.restart(|_| {}).await;
        login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        auth.clock.advance_ms(1_000);
        login(&auth.client(), JANE, PASSWORD).await.unwrap();
        assert_eq!(counted(&auth).await, 0);
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
                tokio::spawn(async move { login(&client, JANE, WRONG).await.unwrap_err() })
            })
            .collect();
        for attempt in tries {
            // Some find the queue full.
            let error = attempt.await.unwrap();
            assert!(["INVALID_CREDENTIALS", "BUSY"].contains(&error.reason()), "{error}");
        }
        let looked_at = counted(&auth).await;
        assert!((1..=6).contains(&looked_at), "{looked_at} passwords were looked at");
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

/// Whoever may not log in learns nothing of why, not even with the right password.
#[tokio::test]
async fn disabled_and_unverified_accounts_are_refused_alike() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        let refusal = wrong(&auth, JANE).await;
        texts(&auth, "UPDATE users SET disabled_at = 1 RETURNING id").await;
        let disabled = login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        assert_eq!(seen(&disabled), refusal);
        texts(&auth, "UPDATE users SET disabled_at = NULL, email_verified_at = NULL RETURNING id").await;
        login(&auth.client(), JANE, PASSWORD).await.unwrap();

        let auth = auth.restart(|config| config.account.verify_email = true).await;
        let unverified = login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        assert_eq!(seen(&unverified), refusal);
        texts(&auth, "UPDATE users SET email_verified_at = 1 RETURNING id").await;
        login(&auth.client(), JANE, PASSWORD).await.unwrap();
        for reason in ["wrong password", "account disabled", "address not verified"] {
            assert_eq!(recorded(&auth, reason).await.len(), 1, "{reason}");
        }
    })
    .await;
}

/// The chains of the events that say this.
async fn recorded(auth: &Auth, reason: &str) -> Vec<String> {
    let events = texts(auth, "SELECT chain || ' ' || body FROM audit_events ORDER BY chain, sequence").await;
    let of_reason = events.iter().filter(|event| event.contains(&format!("\"{reason}\"")));
    of_reason.map(|event| event.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn failures_are_recorded_without_what_was_typed() {
    on_both(async |auth: Auth| {
        let (user, _) = auth.user(JANE).await;
        for _ in 0..7 {
            wrong(&auth, JANE).await;
        }
        wrong(&auth, "nobody@example.com").await;
        let chain = format!("user:{}", user.id);
        assert_eq!(recorded(&auth, "wrong password").await, vec![chain.clone(); 6]);
        assert_eq!(recorded(&auth, "locked").await, [chain]);
        // Those of nobody are spread over chains: they do not all wait for one.
        for n in 0..24 {
            wrong(&auth, &format!("nobody-{n}@example.com")).await;
        }
        let mut nobody = recorded(&auth, "unknown account").await;
        assert!(nobody.len() == 25 && nobody.iter().all(|chain| chain.starts_with("nobody:")), "{nobody:?}");
        nobody.dedup();
        assert!((4..=16).contains(&nobody.len()), "{nobody:?}");
        for event in texts(&auth, "SELECT body FROM audit_events").await {
            assert!(!event.contains("@example.com") && !event.contains(WRONG), "{event}");
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_hundred_failures_no_wait_helps() {
    on_both(async |auth: Auth| {
        auth.user(JANE).await;
        wrong(&auth, JANE).await;
        texts(&auth, "UPDATE login_throttles SET failures = 99 RETURNING key").await;
        wrong(&auth, JANE).await;
        for _ in 0..2 {
            auth.clock.advance_ms(60 * 24 * 3_600 * 1_000);
            login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
        }
        assert_eq!(counted(&auth).await, 100);
        // It is not among what is pruned for its age, either.
        wrong(&auth, "nobody@example.com").await;
        auth.clock.advance_ms(24 * 3_600 * 1_000);
        let auth = auth.restart(|_| {}).await;
        let pruned = async {
            while counted(&auth).await != 100 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), pruned).await.expect("the other is pruned");
        login(&auth.client(), JANE, PASSWORD).await.unwrap_err();
    })
    .await;
}
