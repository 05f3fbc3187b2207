//! Keys of callers: done once, whatever happens, on both databases.

mod world;

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use serde_json::json;
use service_kit::{Kind, idempotency::IdempotencyConfig, testing::Signer};
use tonic::Code;
use tonic_types::StatusExt as _;
use world::{Caller, Step, World, until};

/// A claim of a call that may take 15 s holds for 30 s.
const LEASE_MS: i64 = 30_000;
const DAY_MS: i64 = 86_400_000;

const IN_USE: (Code, &str) = (Code::Aborted, "IDEMPOTENCY_KEY_IN_USE");
const REUSED: (Code, &str) = (Code::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED");
const UNKNOWN: (Code, &str) = (Code::FailedPrecondition, "IDEMPOTENCY_OUTCOME_UNKNOWN");

fn is(refused: (Code, String), expected: (Code, &str)) {
    assert_eq!((refused.0, refused.1.as_str()), expected);
}

#[tokio::test]
async fn a_call_with_a_key_is_done_once() {
    for world in World::each().await {
        let instance = world.instance().await;
        let jane = world.by("jane", &instance);
        let first = jane.create(&["k-1"], "acme").await.created();
        assert_eq!(jane.create(&["k-1"], "acme").await.replayed(), first);
        assert_eq!(jane.create(&["\"k-1\""], "acme").await.replayed(), first, "quotes are not part of it");
        assert_eq!((instance.things.runs.load(Ordering::SeqCst), world.things().await), (1, 1));
        // Another instance knows the same.
        let other = world.instance().await;
        assert_eq!(world.by("jane", &other).create(&["k-1"], "acme").await.replayed(), first);

        let others =
            [jane.create(&["k-2"], "acme").await.created(), jane.create(&[], "acme").await.created()];
        assert!(others.iter().all(|id| *id != first) && world.things().await == 3);
        assert_eq!(world.keys().await, 2);
    }
}

#[tokio::test]
async fn a_key_is_for_one_request() {
    for world in World::each().await {
        let instance = world.instance().await;
        let jane = world.by("jane", &instance);
        let first = jane.create(&["k"], "acme").await.created();
        // Its bytes are those of the first request; only the method is another.
        for refused in [jane.create(&["k"], "other").await, jane.create_project(&["k"], "acme").await] {
            is(refused.refused(), REUSED);
            assert!(refused.fields().contains_key("Idempotency-Key"));
        }
        assert_eq!(jane.create(&["k"], "acme").await.replayed(), first);
        assert_eq!(world.things().await, 1);
    }
}

#[tokio::test]
async fn a_key_is_the_callers_own() {
    for world in World::each().await {
        let instance = world.instance().await;
        let first = world.by("jane", &instance).create(&["k"], "acme").await.created();
        let joan = world.by("joan", &instance).create(&["k"], "another").await.created();
        assert_ne!(first, joan);
        // A token with fewer scopes is another caller, though the user is the same.
        let narrow = world.signer.token("jane", "organizations:write organizations:read");
        let narrow = world.with_token(&narrow, &instance).create(&["k"], "acme").await.created();
        assert_ne!(first, narrow);
        // Another session is not.
        let mut claims = Signer::claims("jane", "*");
        claims["sid"] = json!("a new session");
        let again = world.signer.sign(&Signer::header(), &claims);
        assert_eq!(world.with_token(&again, &instance).create(&["k"], "acme").await.replayed(), first);
    }
}

#[tokio::test]
async fn who_comes_while_the_first_is_under_way_is_told_to_come_again() {
    for world in World::each().await {
        let instance = world.instance().await;
        let (things, jane) = (&instance.things, world.by("jane", &instance));
        // Also in the middle of the transaction of the first.
        for (key, step) in [("k-1", Step::Wait), ("k-2", Step::WriteWaiting)] {
            things.plan(&[step, Step::Write][..if step == Step::Wait { 2 } else { 1 }]);
            let keys = [key];
            let second = async {
                until("the first waits", async || things.waiting.load(Ordering::SeqCst) == 1).await;
                let second = jane.create(&[key], "acme").await;
                let other = jane.create(&[key], "other").await;
                things.gate.add_permits(1);
                (second, other)
            };
            let (first, (second, other)) = tokio::join!(jane.create(&keys, "acme"), second);
            let first = first.created();
            is(second.refused(), IN_USE);
            let retry = second.outcome.unwrap_err().get_details_retry_info().unwrap().retry_delay;
            assert_eq!(retry, Some(Duration::from_secs(1)));
            is(other.refused(), REUSED);
            assert_eq!(jane.create(&[key], "acme").await.replayed(), first);
        }
        assert_eq!((things.runs.load(Ordering::SeqCst), world.things().await), (2, 2));
    }
}

#[tokio::test]
async fn of_many_at_a_time_one_is_done() {
    for world in World::each().await {
        let instances = [world.instance().await, world.instance().await];
        let callers: Vec<Caller<'_>> = instances.iter().map(|one| world.by("jane", one)).collect();
        let calls = (0..20).map(|number| callers[number % 2].create(&["k"], "acme"));
        let (mut created, mut replayed) = (Vec::new(), Vec::new());
        for answer in join_all(calls).await {
            match &answer.outcome {
                Ok(_) if answer.replayed => replayed.push(answer.replayed()),
                Ok(_) => created.push(answer.created()),
                Err(_) => is(answer.refused(), IN_USE),
            }
        }
        assert_eq!((created.len(), world.things().await), (1, 1));
        assert!(replayed.iter().all(|id| *id == created[0]));
    }
}

#[tokio::test]
async fn a_refusal_or_failure_without_traces_gives_the_key_back() {
    for world in World::each().await {
        let instance = world.instance().await;
        let (things, jane) = (&instance.things, world.by("jane", &instance));
        for (number, step) in [
            Step::Fail(Kind::Unavailable),
            Step::Fail(Kind::Internal),
            Step::Fail(Kind::AlreadyExists),
            Step::Panic,
        ]
        .into_iter()
        .enumerate()
        {
            let key = format!("k-{number}");
            things.plan(&[step]);
            let refused = jane.create(&[&key], "acme").await;
            assert!(!refused.replayed && refused.outcome.is_err(), "{step:?}");
            assert_eq!(world.keys().await, i64::try_from(number).unwrap(), "{step:?}");
            // Even for another request: nothing was done with it.
            things.plan(&[Step::Write]);
            jane.create(&[&key], "other").await.created();
        }
    }
}

#[tokio::test]
async fn what_left_traces_is_never_done_again() {
    for world in World::each().await {
        let instance = world.instance().await;
        let (things, jane) = (&instance.things, world.by("jane", &instance));
        // A last word is given again as it was…
        things.plan(&[Step::Write, Step::Fail(Kind::AlreadyExists)]);
        let first = jane.create(&["k-1"], "acme").await;
        let again = jane.create(&["k-1"], "acme").await;
        assert!(!first.replayed && again.replayed);
        is(first.refused(), (Code::AlreadyExists, "AS_TOLD"));
        is(again.refused(), (Code::AlreadyExists, "AS_TOLD"));
        assert_eq!((first.fields(), again.fields()["name"].as_str()), (again.fields(), "is bad"));
        // …and of a failure nobody knows what it left.
        for (key, step) in [("k-2", Step::Fail(Kind::Unavailable)), ("k-3", Step::Panic)] {
            things.plan(&[Step::Write, step]);
            assert!(jane.create(&[key], "acme").await.outcome.is_err());
            is(jane.create(&[key], "acme").await.refused(), UNKNOWN);
        }
        assert_eq!((things.runs.load(Ordering::SeqCst), world.things().await), (3, 3));
    }
}

#[tokio::test]
async fn a_death_between_the_commit_and_the_note_leads_to_no_second_one() {
    for world in World::each().await {
        let instance = world.instance().await;
        let jane = world.by("jane", &instance);
        world.lose_answers().await;
        let first = jane.create(&["k"], "acme").await.created();
        world.keep_answers().await;
        // Until the claim must be over, somebody may still be at it.
        is(jane.create(&["k"], "acme").await.refused(), IN_USE);
        world.clock.advance_ms(LEASE_MS);
        let other = world.instance().await;
        for _ in 0..3 {
            is(world.by("jane", &other).create(&["k"], "acme").await.refused(), UNKNOWN);
        }
        is(jane.create(&["k"], "other").await.refused(), REUSED);
        assert_eq!((world.things().await, other.things.runs.load(Ordering::SeqCst)), (1, 0));
        // Once the key is over, it is a new one.
        world.clock.advance_ms(DAY_MS);
        assert_ne!(jane.create(&["k"], "acme").await.created(), first);
    }
}

#[tokio::test]
async fn a_claim_without_traces_frees_itself_and_who_had_it_commits_nothing_more() {
    for world in World::each().await {
        let (frozen, other) = (world.instance().await, world.instance().await);
        frozen.things.plan(&[Step::Wait, Step::Write]);
        let (first, second) = (world.by("jane", &frozen), world.by("jane", &other));
        let meanwhile = async {
            until("the first waits", async || frozen.things.waiting.load(Ordering::SeqCst) == 1).await;
            world.clock.advance_ms(LEASE_MS - 1);
            is(second.create(&["k"], "acme").await.refused(), IN_USE);
            world.clock.advance_ms(1);
            let id = second.create(&["k"], "acme").await.created();
            frozen.things.gate.add_permits(1);
            id
        };
        let (late, id) = tokio::join!(first.create(&["k"], "acme"), meanwhile);
        is(late.refused(), IN_USE);
        assert_eq!(world.things().await, 1);
        assert_eq!(first.create(&["k"], "acme").await.replayed(), id);
    }
}

#[tokio::test]
async fn what_has_begun_goes_on_without_its_caller() {
    for world in World::each().await {
        let instance = world.instance().await;
        let things = &instance.things;
        things.plan(&[Step::Wait, Step::Write]);
        let jane = world.by("jane", &instance);
        let mut hasty = jane.clone();
        hasty.timeout = Some(Duration::from_millis(200));
        assert_eq!(hasty.create(&["k"], "acme").await.refused().0, Code::DeadlineExceeded);
        until("it waits", async || things.waiting.load(Ordering::SeqCst) == 1).await;
        things.gate.add_permits(1);
        let mut answer = jane.create(&["k"], "acme").await;
        until("the answer is there", async || {
            answer = jane.create(&["k"], "acme").await;
            answer.outcome.is_ok()
        })
        .await;
        answer.replayed();
        assert_eq!((things.runs.load(Ordering::SeqCst), world.things().await), (1, 1));
    }
}

#[tokio::test]
async fn keys_are_over_after_their_time_and_are_deleted() {
    for world in World::each().await {
        let instance = world.instance().await;
        let jane = world.by("jane", &instance);
        let first = jane.create(&["k"], "acme").await.created();
        jane.create(&["k-2"], "acme").await.created();
        world.clock.advance_ms(DAY_MS - 1);
        assert_eq!(jane.create(&["k"], "acme").await.replayed(), first);
        world.clock.advance_ms(1);
        assert_ne!(jane.create(&["k"], "other").await.created(), first, "a key that is over is a new one");
        // An instance looks when it starts.
        let _other = world.instance().await;
        until("one key is left", async || world.keys().await == 1).await;
        assert_eq!(world.things().await, 3);
    }
}

#[tokio::test]
async fn a_caller_has_so_many_keys_and_no_more() {
    for world in World::each_with(IdempotencyConfig { hours: 1, max_per_caller: 3 }).await {
        let instance = world.instance().await;
        let jane = world.by("jane", &instance);
        let first = jane.create(&["k-0"], "acme").await.created();
        for key in ["k-1", "k-2"] {
            world.clock.advance_ms(1_000);
            jane.create(&[key], "acme").await.created();
        }
        let refused = jane.create(&["k-3"], "acme").await;
        is(refused.refused(), (Code::ResourceExhausted, "TOO_MANY_IDEMPOTENCY_KEYS"));
        let retry = refused.outcome.unwrap_err().get_details_retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(Duration::from_secs(3_598)), "when the first is over");
        // Those that are there go on, others have their own, and nobody needs one.
        assert_eq!(jane.create(&["k-0"], "acme").await.replayed(), first);
        world.by("joan", &instance).create(&["k-3"], "acme").await.created();
        jane.create(&[], "acme").await.created();
        world.clock.advance_ms(3_598_000);
        jane.create(&["k-3"], "acme").await.created();
    }
}

#[tokio::test]
async fn neither_keys_nor_answers_can_be_read_in_the_database() {
    for world in World::each().await {
        let instance = world.instance().await;
        let key = "canary-of-a-key-4f0c";
        let id = world.by("jane", &instance).create(&[key], "acme").await.created();
        let stored = world.stored().await;
        let holds = |text: &str| stored.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(holds("jane") && holds("CreateOrganization"), "this test looks at the right place");
        assert!(!holds(&id) && !holds("acme") && !holds(key));
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_read_is_named_where_keys_are_taken() {
    for world in World::each().await {
        let instance = world.instance().await;
        let jane = world.by("jane", &instance);
        let long = "k".repeat(256);
        for keys in [&[""][..], &["\"open"], &["two words"], &["a,b"], &[&long], &["a", "a"], &["a", "b"]] {
            let refused = jane.create(keys, "acme").await;
            is(refused.refused(), (Code::InvalidArgument, "INVALID_IDEMPOTENCY_KEY"));
            assert!(refused.fields().contains_key("Idempotency-Key"), "{keys:?}");
            // What can be repeated anyway takes none, and does not mind one.
            jane.update(keys).await.created();
        }
        assert_eq!((instance.things.runs.load(Ordering::SeqCst), world.keys().await), (0, 0));
        // Who is nobody has no keys.
        let nobody = world.with_token("a.b.c", &instance);
        assert_eq!(nobody.create(&["k"], "acme").await.refused().0, Code::Unauthenticated);
    }
}
