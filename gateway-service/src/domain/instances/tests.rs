use super::{
    Belief, Change, Claim, Greeting, Mode, Position, Reason, Refusal, Reply, Reported, Start, Subject,
};
use crate::{domain::log::LogEvent, events::Effect};

fn subject(revision: i64, key: &str, deployment: &str, effect: Effect) -> Subject {
    Subject { revision, key: key.into(), deployment_id: deployment.into(), effect }
}

fn runs(revision: i64, key: &str, deployment: &str) -> Reply {
    Reply { subject: subject(revision, key, deployment, Effect::Runs), refusal: None }
}

fn stops(revision: i64, key: &str) -> Reply {
    Reply { subject: subject(revision, key, "", Effect::Stops), refusal: None }
}

fn refused(revision: i64, key: &str) -> Reply {
    let refusal = Some(Refusal { reason: "BAD".into(), detail: String::new() });
    Reply { subject: subject(revision, key, "x", Effect::Runs), refusal }
}

fn believed(answers: &[Reply]) -> Belief {
    let mut belief = Belief::default();
    answers.iter().for_each(|answer| belief.apply(answer));
    belief
}

fn change(revision: i64, event_type: &str, key: &str, artifact: &str) -> Change {
    let event = LogEvent {
        revision,
        event_type: event_type.into(),
        artifact_id: artifact.into(),
        event_key: key.into(),
        ..LogEvent::default()
    };
    Change { event, performed_at: 0, is_first: false }
}

#[test]
fn the_hash_is_the_one_of_the_documentation() {
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(Belief::default().hash(), nothing);
    // printf 'a 1\nb 2\n' | sha256sum
    let two = "2951835de33689a441bfa61bc7af99b1f0305ca8ec0ab4dd508f14f57b27ca23";
    let both = believed(&[runs(1, "b", "2"), runs(2, "a", "1")]);
    assert_eq!(both.hash(), two);
    assert_eq!(both.hash(), believed(&[runs(7, "a", "1"), runs(8, "b", "2"), refused(9, "c")]).hash());
    assert_eq!(believed(&[runs(1, "a", "1"), stops(2, "a")]).hash(), nothing);
}

#[test]
fn answers_change_what_is_believed_in_the_order_of_revisions() {
    let entry = |belief: &Belief, key: &str| belief.0.get(key).cloned().unwrap_or_default();
    let belief = believed(&[runs(3, "a", "d3"), refused(5, "a")]);
    let expected =
        Reported { deployment_id: "d3".into(), revision: 3, rejected_revision: 5, reason: "BAD".into() };
    assert_eq!(entry(&belief, "a"), expected, "the last good stays");
    let belief = believed(&[runs(3, "a", "d3"), refused(5, "a"), runs(6, "a", "d6")]);
    assert_eq!(
        (entry(&belief, "a").deployment_id.as_str(), entry(&belief, "a").rejected_revision),
        ("d6", 0)
    );
    // Out of order: the older says nothing about the newer.
    let belief = believed(&[runs(6, "a", "d6"), runs(3, "a", "d3"), refused(5, "a")]);
    assert_eq!(
        entry(&belief, "a"),
        Reported { deployment_id: "d6".into(), revision: 6, ..Reported::default() }
    );
    let belief = believed(&[refused(6, "a"), runs(3, "a", "d3")]);
    assert_eq!(
        (entry(&belief, "a").deployment_id.as_str(), entry(&belief, "a").rejected_revision),
        ("d3", 6)
    );
    let forgets = Reply { subject: subject(7, "a", "", Effect::Forgets), refusal: None };
    assert!(believed(&[runs(6, "a", "d6"), forgets]).0.is_empty());
}

#[test]
fn a_snapshot_replaces_everything_but_the_last_good_of_what_it_refuses() {
    let before =
        believed(&[runs(1, "a", "d1"), runs(2, "b", "d2"), runs(3, "c", "d3"), refused(4, "left out")]);
    let after = before.clone().replace(&[runs(5, "a", "d5"), refused(6, "b")]);
    assert_eq!(after.0.keys().collect::<Vec<_>>(), ["a", "b", "left out"]);
    assert_eq!((after.0["a"].deployment_id.as_str(), after.0["b"].deployment_id.as_str()), ("d5", "d2"));
    // The log went back, as after a restore: the snapshot says what is.
    assert_eq!(before.replace(&[runs(1, "c", "d0")]).0["c"].deployment_id, "d0");
}

#[test]
fn a_snapshot_holds_what_is_to_run_in_the_order_in_which_it_is_needed() {
    let newest = || {
        vec![
            change(1, "apikey.created", "apikey:a:k", "a"),
            change(2, "api.deployed", "a", "a"),
            change(3, "api.undeployed", "b", "b"),
            change(4, "api.deleted", "c", "c"),
            change(5, "subscriptionPlan.created", "subscriptionPlan:p", ""),
            change(6, "api.deployed", "d", "d"),
            change(7, "apikey.revoked", "apikey:a:old", "a"),
            change(8, "subscription.deleted", "subscription:s", ""),
        ]
    };
    let revisions = |changes: Vec<Change>| changes.iter().map(|c| c.event.revision).collect::<Vec<_>>();
    assert_eq!(revisions(Belief::default().snapshot(newest(), false)), [5, 2, 6, 1]);
    let refuses = believed(&[refused(6, "d"), runs(1, "a", "old"), refused(2, "a")]);
    assert_eq!(revisions(refuses.snapshot(newest(), false)), [5, 2, 1], "what it would lose is in it");
    assert_eq!(revisions(refuses.snapshot(newest(), true)), [5, 2, 6, 1]);
}

#[test]
fn where_an_instance_goes_on() {
    let position = Position { floor: 10, head: 20, answered: 14 };
    let claim = |applied, hash: &str| Claim { applied, state_hash: hash.into() };
    for (applied, reason) in [(0, Reason::New), (9, Reason::Compacted), (21, Reason::Ahead)] {
        assert_eq!(claim(applied, "").fits(&position), Err(reason));
    }
    assert!([10, 15, 20].into_iter().all(|applied| claim(applied, "").fits(&position).is_ok()));

    let belief = believed(&[runs(12, "a", "d12")]);
    let newest = || {
        vec![
            subject(12, "a", "d12", Effect::Runs),
            subject(13, "note", "", Effect::Keeps),
            subject(15, "b", "d15", Effect::Runs),
            subject(16, "note 2", "", Effect::Keeps),
        ]
    };
    let start = |claim: Claim| claim.start(&position, &belief, newest());
    assert_eq!(start(claim(14, &belief.hash())), Start::Resume(14, vec![]));
    assert_eq!(start(claim(16, "")), Start::Resume(14, vec![]), "asked again for what is not answered");
    assert_eq!(start(claim(12, "")), Start::Resume(12, vec![]));
    let proof = believed(&[runs(12, "a", "d12"), runs(15, "b", "d15")]).hash();
    let Start::Resume(16, proven) = start(claim(16, &proof)) else { panic!("not proven") };
    assert_eq!(proven.iter().map(|answer| answer.subject.revision).collect::<Vec<_>>(), [15, 16]);
    assert_eq!(start(claim(16, &"0".repeat(64))), Start::Snapshot(Reason::Hash));
    let unknown = Position { answered: 0, ..position };
    assert_eq!(claim(14, "").start(&unknown, &belief, vec![]), Start::Snapshot(Reason::Unknown));
    let old = Position { answered: 5, ..position };
    assert_eq!(claim(14, "").start(&old, &belief, vec![]), Start::Snapshot(Reason::Compacted));
}

#[test]
fn a_greeting_says_who_it_is() {
    let greeting = |capabilities: &[&str]| Greeting {
        instance_id: "i".into(),
        applied_revision: u64::MAX,
        capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
        ..Greeting::default()
    };
    assert_eq!(greeting(&["teleport"]).check().unwrap().mode, Mode::Plain);
    assert_eq!(greeting(&["ack"]).check().unwrap().mode, Mode::Answering);
    let peer = greeting(&["resume", "ack"]).check().unwrap();
    assert_eq!((peer.applied(), &peer.instance_id), (i64::MAX, &"i".to_owned()));
    assert!(greeting(&["resume"]).check().is_err());
}
