use super::{Ack, Candidate, Received, State, Verdict};

fn received(status: &str, performed_at: &str) -> Received {
    Received {
        deployment_id: "0198f0c5-0000-7000-8000-000000000000".into(),
        resource: "api".into(),
        action: "deploy".into(),
        status: status.into(),
        performed_at: performed_at.into(),
        error_code: String::new(),
    }
}

fn candidate(revision: i64, state: State, performed_at: i64) -> Candidate {
    Candidate { revision, state, performed_at, ..Candidate::default() }
}

fn ack(status: &str, performed_at: Option<i64>) -> Ack {
    Ack { performed_at, ..Ack::read(&received(status, "")).unwrap() }
}

#[test]
fn only_what_makes_sense_is_read() {
    assert!(Ack::read(&received("success", "2026-08-22T10:00:00.123Z")).is_some());
    assert_eq!(
        Ack::read(&received("failed", "")).unwrap().failure.as_deref(),
        Some("GATEWAY_PROCESSING_ERROR")
    );
    assert!(Ack::read(&received("maybe", "")).is_none());
    assert!(Ack::read(&received("success", "yesterday")).is_none());
    assert!(Ack::read(&Received { deployment_id: "\0".into(), ..received("success", "") }).is_none());
    assert!(Ack::read(&Received { action: "explode".into(), ..received("success", "") }).is_none());
}

#[test]
fn an_acknowledgement_finds_its_sending() {
    let delivered = |at| candidate(1, State::Delivered, at);
    assert_eq!(ack("success", Some(10)).judge(vec![]), Verdict::Unknown);
    assert_eq!(ack("success", Some(10)).judge(vec![delivered(10)]), Verdict::Change(delivered(10)));
    // Of an earlier sending of the same event: it counts.
    assert_eq!(ack("success", Some(9)).judge(vec![delivered(10)]), Verdict::Change(delivered(10)));
    assert_eq!(ack("success", Some(11)).judge(vec![delivered(10)]), Verdict::Ahead);
    assert_eq!(ack("success", None).judge(vec![candidate(1, State::Pending, 10)]), Verdict::Ahead);
    // The same deployment was undeployed twice: the second acknowledgement is the second event's.
    let two = vec![delivered(10), candidate(2, State::Delivered, 20)];
    assert_eq!(ack("success", Some(20)).judge(two), Verdict::Change(candidate(2, State::Delivered, 20)));
    // The first failed and says so again: that is no answer to the second try.
    let retried = || vec![candidate(1, State::Failed, 10), delivered(20)];
    assert_eq!(ack("failed", Some(10)).judge(retried()), Verdict::Known(None));
    assert_eq!(ack("failed", Some(9)).judge(retried()), Verdict::Known(None));
    assert_eq!(ack("success", None).judge(retried()), Verdict::Change(candidate(1, State::Failed, 10)));
}

#[test]
fn a_late_success_counts_and_a_late_failure_does_not() {
    let failed = candidate(1, State::Failed, 10);
    assert_eq!(ack("success", Some(10)).judge(vec![failed.clone()]), Verdict::Change(failed.clone()));
    assert_eq!(ack("failed", Some(10)).judge(vec![failed]), Verdict::Known(None));
    let acked = || vec![candidate(1, State::Acked, 10)];
    assert_eq!(ack("failed", Some(10)).judge(acked()), Verdict::Known(None));
    assert_eq!(ack("success", Some(10)).judge(acked()), Verdict::Known(Some(1)));
}
