//! Personal tokens against a model of them: whatever happens, in any order.

use std::collections::BTreeSet;

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use proto::auth::CreatedToken;
use serde_json::json;
use service_kit::testing::TestDatabase;

use crate::{
    harness::{Auth, PASSWORD, login},
    opaque_tokens::{DAY_MS, ask, claims, create, exchange, list, revoke},
    sql::execute,
};

const HOUR_MS: i64 = 3_600_000;

/// Something that happens to the tokens of one person.
#[derive(Debug, Clone)]
enum Step {
    Create { days: u32 },
    Revoke(prop::sample::Index),
    Exchange(prop::sample::Index),
    Wait { hours: i64 },
    Disable,
    Enable,
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<prop::sample::Index>;
    prop_oneof![
        3 => (1_u32..4).prop_map(|days| Step::Create { days }),
        2 => any().prop_map(Step::Revoke),
        4 => any().prop_map(Step::Exchange),
        2 => (1_i64..16).prop_map(|hours| Step::Wait { hours }),
        1 => Just(Step::Disable),
        2 => Just(Step::Enable),
    ]
}

/// What must be true of a token.
struct Model {
    made: CreatedToken,
    expires_at: i64,
    revoked: bool,
}

/// A person whose tokens are compared with a model after each step.
async fn live(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let auth = Auth::start(TestDatabase::sqlite()).await;
    let (user, pair) = auth.user("jane@example.com").await;
    let mut access = pair.access_token;
    let (mut model, mut disabled): (Vec<Model>, bool) = (Vec::new(), false);
    let mut late = false;
    for step in steps {
        if late && !disabled {
            access = login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap().access_token;
            late = false;
        }
        match step {
            Step::Create { days } if !disabled => {
                let made = create(&auth, &access, ask("t", &[], Some(days))).await.unwrap();
                let expires_at = auth.clock.now_ms() + i64::from(days) * DAY_MS;
                model.push(Model { made, expires_at, revoked: false });
            }
            Step::Revoke(index) if !disabled && !model.is_empty() => {
                let token = index.get(&model).made.id.clone();
                revoke(&auth, &access, &token).await.unwrap();
                let at = index.index(model.len());
                model[at].revoked = true;
            }
            Step::Exchange(index) if !model.is_empty() => {
                let token = index.get(&model);
                let good = !token.revoked && !disabled && auth.clock.now_ms() < token.expires_at;
                match exchange(&auth, &token.made.token).await {
                    Ok(exchanged) => {
                        prop_assert!(good, "a dead token was exchanged");
                        let said = claims(&exchanged.access_token);
                        prop_assert_eq!(
                            (&said["sub"], &said["sid"]),
                            (&json!(user.id), &json!(token.made.id))
                        );
                        prop_assert!(said["exp"].as_i64().unwrap() * 1_000 <= token.expires_at);
                    }
                    Err(error) => {
                        prop_assert!(!good, "a live token was refused: {}", error);
                        prop_assert_eq!(error.reason(), "INVALID_TOKEN");
                    }
                }
            }
            Step::Wait { hours } => {
                auth.clock.advance_ms(hours * HOUR_MS);
                late = true;
            }
            Step::Disable | Step::Enable => {
                disabled = matches!(step, Step::Disable);
                let value = if disabled { "1" } else { "NULL" };
                execute(&auth, &format!("UPDATE users SET disabled_at = {value}")).await;
            }
            Step::Create { .. } | Step::Revoke(_) | Step::Exchange(_) => {}
        }
    }
    if !disabled && !late {
        let listed: BTreeSet<String> =
            list(&auth, &access, 100, 0).await.0.into_iter().map(|token| token.id).collect();
        let kept = model.iter().filter(|token| !token.revoked).map(|token| token.made.id.clone());
        prop_assert_eq!(listed, kept.collect::<BTreeSet<_>>());
    }
    auth.running.shutdown().await;
    Ok(())
}

#[test]
fn whatever_happens_to_tokens_only_live_ones_are_exchanged() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 16,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::default()
    });
    let steps = prop::collection::vec(step(), 1..40);
    runner.run(&steps, |steps| runtime.block_on(live(steps))).unwrap();
}
