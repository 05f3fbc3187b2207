//! What a gateway answers on one connection, and what it says of itself in its signs of life.

use futures_util::{FutureExt as _, Stream};
use proto::gateway::{EventAck, GatewayFrame, Heartbeat, gateway_frame::Frame as From};
use service_kit::Result;

use super::{
    connection::{Inbound, Link, REPLACED_REASON, RETRIES},
    hub::{Hub, REPLACED},
    resume::Outcome,
};
use crate::domain::{
    figures,
    instances::{Refusal, Reply, Settled},
};

/// How many answers are recorded at once.
const BATCH: usize = 64;

/// Answers that are recorded at once.
enum Record {
    Events(Vec<Reply>),
    Snapshot(i64, bool, Vec<Reply>),
    NoSnapshot(i64, Refusal),
}

/// An answer and those that have come right after it.
pub(super) fn batch<S, E>(first: EventAck, inbound: &mut Inbound<'_, S>) -> Vec<EventAck>
where
    S: Stream<Item = Result<GatewayFrame, E>>,
{
    let is_answer = |frame: &Result<GatewayFrame, E>| {
        matches!(frame, Ok(GatewayFrame { frame: Some(From::EventAck(_)) }))
    };
    let mut answers = vec![first];
    while answers.len() < BATCH
        && let Some(Some(Ok(GatewayFrame { frame: Some(From::EventAck(next)) }))) =
            inbound.as_mut().next_if(is_answer).now_or_never()
    {
        answers.push(next);
    }
    answers
}

/// Takes answers to events and snapshots, in order.
pub(super) async fn take(hub: &Hub, link: &Link, acks: Vec<EventAck>) -> Result<()> {
    let mut events = Vec::new();
    for ack in acks {
        match outcome(link, &ack) {
            Taken::Event(answer) => events.push(answer),
            Taken::Snapshot(Outcome::Applied(revision, is_new, answers)) => {
                flush(hub, link, &mut events).await?;
                record(hub, link, &Record::Snapshot(revision, is_new, answers)).await?;
            }
            Taken::Snapshot(Outcome::Refused(revision, refusal)) => {
                flush(hub, link, &mut events).await?;
                record(hub, link, &Record::NoSnapshot(revision, refusal)).await?;
            }
            Taken::Snapshot(Outcome::Part) => {}
            Taken::Nothing => ignored(link, &ack),
        }
    }
    flush(hub, link, &mut events).await?;
    let waits = link.answers.as_ref().is_some_and(|answers| answers.has_room_again() || answers.is_empty());
    if waits {
        hub.wake(&link.bearer.gateway_id);
    }
    Ok(())
}

/// What an answer is to.
enum Taken {
    Event(Reply),
    Snapshot(Outcome),
    Nothing,
}

fn outcome(link: &Link, ack: &EventAck) -> Taken {
    let (Some(answers), Ok(revision)) = (&link.answers, i64::try_from(ack.revision)) else {
        return Taken::Nothing;
    };
    if let Some(subject) = answers.take(revision, &ack.nonce) {
        let answer = Reply { subject, refusal: Refusal::read(&ack.error_code, &ack.error_message) };
        if let Some(resume) = &link.resume {
            resume.answered(&answer);
        }
        return Taken::Event(answer);
    }
    link.resume.as_ref().and_then(|resume| resume.take(revision, ack)).map_or(Taken::Nothing, Taken::Snapshot)
}

async fn flush(hub: &Hub, link: &Link, events: &mut Vec<Reply>) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    record(hub, link, &Record::Events(std::mem::take(events))).await
}

/// Records answers. The peer waits meanwhile; it is better off than with a new connection.
async fn record(hub: &Hub, link: &Link, what: &Record) -> Result<()> {
    let mut pauses = RETRIES.into_iter();
    let settled = loop {
        match (try_record(hub, link, what).await, pauses.next()) {
            (Ok(settled), _) => break settled,
            (Err(error), None) => return Err(error),
            (Err(error), Some(pause)) => {
                tracing::warn!(gateway = link.bearer.gateway_id, %error, "answers not recorded yet");
                tokio::time::sleep(pause).await;
            }
        }
    };
    let Some(settled) = settled else {
        tracing::warn!(
            gateway = link.bearer.gateway_id,
            connection = link.id,
            "answers of a replaced connection"
        );
        link.close(REPLACED, REPLACED_REASON);
        return Ok(());
    };
    match what {
        Record::Events(answers) => answers.iter().for_each(|answer| answered(link, answer)),
        Record::Snapshot(revision, _, answers) => {
            let refused = answers.iter().filter(|answer| answer.refusal.is_some());
            let (gateway, instance) = (&link.bearer.gateway_id, &link.instance_id);
            tracing::info!(
                gateway,
                instance,
                connection = link.id,
                revision,
                refused = refused.clone().count(),
                events = answers.len(),
                "snapshot applied"
            );
            refused.for_each(|answer| answered(link, answer));
        }
        Record::NoSnapshot(revision, refusal) => snapshot_refused(link, *revision, refusal),
    }
    self::settled(hub, &link.bearer.gateway_id, &settled);
    Ok(())
}

async fn try_record(hub: &Hub, link: &Link, what: &Record) -> Result<Option<Vec<Settled>>> {
    let (store, author, now) = (hub.instances(), link.author(), hub.clock().now_ms());
    match what {
        Record::Events(answers) => {
            let applied = link.answers.as_ref().map_or(0, |known| known.applied(link.cursor()));
            link.has_applied(applied);
            store.record(author, answers, applied, now).await
        }
        Record::Snapshot(revision, is_new, answers) => {
            let settled = store.replace(author, (*revision, *is_new), answers, now).await?;
            if let Some(known) = &link.answers {
                known.reset(*revision);
                link.has_applied(*revision);
            }
            Ok(settled)
        }
        Record::NoSnapshot(revision, refusal) => {
            let counts = store.refuse_snapshot(author, *revision, refusal, now).await?;
            Ok(counts.then(Vec::new))
        }
    }
}

/// Events that a gateway as a whole has now performed or refused.
pub(super) fn settled(hub: &Hub, gateway: &str, settled: &[Settled]) {
    if settled.is_empty() {
        return;
    }
    hub.reports().now();
    if settled.iter().any(|event| event.failed) {
        // What is refused may come again at once in another form.
        hub.wake(gateway);
    }
    let now = hub.clock().now_ms();
    for event in settled {
        let outcome = figures::count_settled(event.failed, event.created_at, now);
        tracing::info!(gateway, revision = event.revision, outcome, "event settled for the gateway");
    }
}

fn answered(link: &Link, answer: &Reply) {
    let (gateway, instance, connection) = (&link.bearer.gateway_id, &link.instance_id, &link.id);
    let revision = answer.subject.revision;
    match &answer.refusal {
        None => tracing::debug!(gateway, instance, connection, revision, "event applied"),
        Some(Refusal { reason, detail }) => {
            tracing::warn!(gateway, instance, connection, revision, reason, detail, "event refused");
        }
    }
}

fn snapshot_refused(link: &Link, revision: i64, Refusal { reason, detail }: &Refusal) {
    let (gateway, instance, connection) = (&link.bearer.gateway_id, &link.instance_id, &link.id);
    metrics::counter!("tollgate_gateway_acks_total", "outcome" => "snapshot_refused").increment(1);
    tracing::warn!(gateway, instance, connection, revision, reason, detail, "snapshot refused");
}

/// It answers what was sent on another connection, or nothing at all.
fn ignored(link: &Link, ack: &EventAck) {
    let (gateway, connection, revision) = (&link.bearer.gateway_id, &link.id, ack.revision);
    metrics::counter!("tollgate_gateway_acks_total", "outcome" => "ignored").increment(1);
    tracing::warn!(gateway, connection, revision, "answer to nothing that was sent on this connection");
}

/// A sign of life: how far behind the instance is, and whether it runs what is believed.
pub(super) async fn heartbeat(hub: &Hub, link: &Link, beat: &Heartbeat) {
    let (Some(resume), Some(answers)) = (&link.resume, &link.answers) else { return };
    let gateway = &link.bearer.gateway_id;
    let behind = hub.head(gateway).saturating_sub(beat.revision);
    metrics::histogram!("tollgate_gateway_lag_revisions")
        .record(f64::from(u32::try_from(behind).unwrap_or(u32::MAX)));
    if beat.state_hash.is_empty() || !answers.is_empty() || !resume.is_settled(beat.revision) {
        return;
    }
    match hub.instances().belief(gateway, &resume.instance_id).await {
        Ok(belief) if belief.hash() == beat.state_hash => {}
        Ok(_) => {
            let (instance, connection, revision) = (&link.instance_id, &link.id, beat.revision);
            tracing::warn!(gateway, instance, connection, revision, "instance runs something else: drift");
            resume.drifted();
            hub.wake(gateway);
        }
        Err(error) => tracing::warn!(gateway, %error, "a state hash cannot be compared"),
    }
}
