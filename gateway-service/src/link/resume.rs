//! Instances that keep what they have applied: where they go on, what they get, when they get the whole state.
//!
//! Each connection of such an instance has a cursor of its own. It gets the newest event of each key after it,
//! or a snapshot; what it refused it does not get again.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use proto::gateway::{Event, EventAck, PlatformFrame, Snapshot, platform_frame::Frame};
use service_kit::Result;
use tokio::time::Instant;

use super::{
    answering,
    answers::Answers,
    connection::Link,
    delivery::{BATCH, event, has_room, note},
    hub::{Hub, Lane},
    outbound::{Offered, framed},
};
use crate::domain::{
    instances::{Author, Change, Claim, Reason, Refusal, Reply, Start, Subject},
    log::Sending,
};

/// How much a part of a snapshot holds: events, and bytes of payload.
const PART: (usize, usize) = (100, 1024 * 1024);

/// What an event takes in a frame besides its payload, in bytes.
const ENVELOPE: usize = 256;

/// How often an instance that runs something else than is believed gets the whole state.
const BETWEEN_DRIFTS: Duration = Duration::from_secs(60);

/// The side of a connection that only resumable instances have.
#[derive(Debug)]
pub(super) struct Resume {
    pub(super) instance_id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// The newest revision that it has answered, and the newest that it has applied, as far as it said.
    said: (i64, i64),
    /// When it last got the whole state because of drift.
    drifted: Option<Instant>,
}

/// What an instance gets next.
#[derive(Debug, Default)]
enum Phase {
    /// Events.
    #[default]
    Events,
    /// The whole state, once it has answered what it got before.
    Due(Reason),
    /// The rest of the parts; then it is its turn.
    Open(Box<Open>),
}

/// A snapshot that is not answered.
#[derive(Debug)]
struct Open {
    revision: i64,
    nonce: String,
    /// Whether the instance had nothing before.
    is_new: bool,
    parts: VecDeque<Arc<PlatformFrame>>,
    /// By revision: the nonce, and the answer as far as it came.
    answers: HashMap<i64, (String, Reply)>,
}

/// What an answer to a snapshot means.
#[derive(Debug)]
pub(super) enum Outcome {
    /// One of its events is refused, or is not: the answer to the whole says the rest.
    Part,
    /// It is applied: its revision, whether the instance began anew with it, the answers to its events.
    Applied(i64, bool, Vec<Reply>),
    /// It is refused as a whole, with its revision: what ran before goes on running.
    Refused(i64, Refusal),
}

impl Resume {
    /// Queues the parts of a snapshot that wait. Whether all are queued and answered: events may follow.
    fn flush(&self, link: &Link) -> bool {
        let mut state = self.state();
        let Phase::Open(open) = &mut state.phase else { return true };
        while let Some(part) = open.parts.front() {
            match link.offer(part) {
                Offered::Queued => drop(open.parts.pop_front()),
                Offered::Gone => break,
                Offered::Full => {
                    link.set_stuck();
                    // It may have been emptied in between, and would not ask any more.
                    if link.capacity() == 0 {
                        break;
                    }
                }
            }
        }
        false
    }

    /// What an answer to a snapshot means; `None` when it is to none that waits.
    pub(super) fn take(&self, revision: i64, ack: &EventAck) -> Option<Outcome> {
        let (refusal, mut state) = (Refusal::read(&ack.error_code, &ack.error_message), self.state());
        let Phase::Open(open) = &mut state.phase else { return None };
        if (open.revision, &open.nonce) != (revision, &ack.nonce) {
            let (nonce, answer) = open.answers.get_mut(&revision)?;
            return (*nonce == ack.nonce).then(|| {
                answer.refusal = refusal;
                Outcome::Part
            });
        }
        if !open.parts.is_empty() {
            return None;
        }
        let Phase::Open(open) = mem::take(&mut state.phase) else { return None };
        state.said.0 = revision;
        Some(match refusal {
            Some(refusal) => Outcome::Refused(revision, refusal),
            None => {
                state.said.1 = revision;
                let answers = open.answers.into_values().map(|(_, answer)| answer).collect();
                Outcome::Applied(revision, open.is_new, answers)
            }
        })
    }

    /// The instance has answered an event.
    pub(super) fn answered(&self, answer: &Reply) {
        let (revision, mut state) = (answer.subject.revision, self.state());
        state.said.0 = revision;
        if answer.refusal.is_none() {
            state.said.1 = revision;
        }
    }

    /// Whether the instance, as it says that it has applied `revision`, has nothing left to do, and may get the
    /// whole state should it run something else than is believed.
    pub(super) fn is_settled(&self, revision: u64) -> bool {
        let state = self.state();
        let said = |known: i64| u64::try_from(known) == Ok(revision);
        matches!(state.phase, Phase::Events)
            && (said(state.said.0) || said(state.said.1))
            && state.drifted.is_none_or(|at| at.elapsed() >= BETWEEN_DRIFTS)
    }

    /// The instance runs something else than is believed: it gets the whole state next.
    pub(super) fn drifted(&self) {
        let mut state = self.state();
        state.phase = Phase::Due(Reason::Drift);
        state.drifted = Some(Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decides where an instance goes on. Returns what its connection needs, and the revision after which it gets
/// events.
pub(super) async fn start(hub: &Hub, author: Author<'_>, claim: &Claim) -> Result<(Resume, Answers, i64)> {
    let Author { gateway_id, instance_id, connection_id } = author;
    let store = hub.instances();
    let position = store.position(gateway_id, instance_id).await?;
    let start = match claim.fits(&position) {
        Err(reason) => Start::Snapshot(reason),
        Ok(()) => {
            let belief = store.belief(gateway_id, instance_id).await?;
            let newest = store.newest(gateway_id, claim.applied).await?;
            claim.start(&position, &belief, newest)
        }
    };
    let (from, phase) = match start {
        Start::Resume(from, proven) => {
            if !proven.is_empty() {
                let now = hub.clock().now_ms();
                // A newer connection of the instance decides for itself.
                let settled = store.record(author, &proven, from, now).await?.unwrap_or_default();
                answering::settled(hub, gateway_id, &settled);
            }
            metrics::counter!("tollgate_gateway_resumes_total").increment(1);
            tracing::info!(
                gateway = gateway_id,
                instance = instance_id,
                connection = connection_id,
                from,
                head = position.head,
                "instance resumes"
            );
            (from, Phase::Events)
        }
        Start::Snapshot(reason) => (0, Phase::Due(reason)),
    };
    let said = (claim.applied, claim.applied);
    let state = Mutex::new(State { phase, said, drifted: None });
    Ok((Resume { instance_id: instance_id.to_owned(), state }, Answers::after(from), from))
}

/// Sends to the resumable connections of a gateway what each of them can take. Says whether there may be more.
pub(super) async fn round(hub: &Hub, lane: &Lane) -> Result<bool> {
    let mut more = false;
    for link in lane.links() {
        if let (Some(resume), Some(answers)) = (&link.resume, &link.answers)
            && !link.is_gone()
        {
            more |= serve(hub, lane, &link, resume, answers).await?;
        }
    }
    Ok(more)
}

async fn serve(hub: &Hub, lane: &Lane, link: &Arc<Link>, resume: &Resume, answers: &Answers) -> Result<bool> {
    let due = match resume.state().phase {
        Phase::Due(reason) => Some(reason),
        _ => None,
    };
    if let Some(reason) = due {
        if !answers.is_empty() {
            return Ok(false);
        }
        prepare(hub, lane, link, resume, reason).await?;
    }
    if !resume.flush(link) {
        return Ok(false);
    }
    let room = answers.room().min(BATCH);
    if room == 0 || !has_room(link) {
        return Ok(false);
    }
    let most = room.min(link.capacity()).max(1);
    let gateway_id = &lane.gateway_id;
    let (head, changes) =
        hub.instances().changes(gateway_id, &resume.instance_id, link.cursor(), most).await?;
    first_sent(hub, gateway_id, &changes).await?;
    let (all, count) = (changes.len() < most, changes.len());
    for change in changes {
        let (revision, subject) = (change.event.revision, Subject::of(&change.event));
        let sending = sending(hub, change);
        let frame = framed(Frame::Event(event(hub, &sending)?));
        let offered = answers.offer(link, &frame, subject, &sending.correlation_id);
        note(link, &sending, offered);
        if offered != Offered::Queued {
            // A queue that was full a moment ago may have been emptied before it could ask for more.
            return Ok(offered == Offered::Full && link.capacity() > 0);
        }
        link.advance(revision);
    }
    if all {
        link.advance(head);
    }
    lane.raise_head(head);
    Ok(count == most)
}

/// Reads the whole state for an instance, and cuts it into parts.
async fn prepare(hub: &Hub, lane: &Lane, link: &Link, resume: &Resume, reason: Reason) -> Result<()> {
    let (gateway_id, instance) = (&lane.gateway_id, &resume.instance_id);
    let belief = hub.instances().belief(gateway_id, instance).await?;
    let (head, newest) = hub.instances().state(gateway_id).await?;
    let is_new = reason == Reason::New;
    let changes = belief.snapshot(newest, is_new);
    first_sent(hub, gateway_id, &changes).await?;
    let (nonce, count) = (hub.ids().next(), changes.len());
    let (mut answers, mut events) = (HashMap::with_capacity(count), Vec::with_capacity(count));
    for change in changes {
        let (revision, subject) = (change.event.revision, Subject::of(&change.event));
        let sending = sending(hub, change);
        events.push(event(hub, &sending)?);
        answers.insert(revision, (sending.correlation_id, Reply { subject, refusal: None }));
    }
    let parts = parts(head, &nonce, events);
    metrics::counter!("tollgate_gateway_snapshots_total", "reason" => reason.name()).increment(1);
    tracing::info!(
        gateway = gateway_id,
        instance,
        connection = link.id,
        revision = head,
        events = count,
        parts = parts.len(),
        reason = reason.name(),
        "snapshot sent"
    );
    link.advance(head);
    lane.raise_head(head);
    let mut state = resume.state();
    state.phase = Phase::Open(Box::new(Open { revision: head, nonce, is_new, parts, answers }));
    Ok(())
}

/// The parts of a snapshot; at least one.
fn parts(revision: i64, nonce: &str, events: Vec<Event>) -> VecDeque<Arc<PlatformFrame>> {
    let empty = || Snapshot {
        revision: u64::try_from(revision).unwrap_or(0),
        nonce: nonce.to_owned(),
        ..Snapshot::default()
    };
    let (mut parts, mut part, mut bytes) = (VecDeque::new(), empty(), 0);
    for event in events {
        let size = event.payload_json.len() + ENVELOPE;
        if part.events.len() == PART.0 || (bytes + size > PART.1 && !part.events.is_empty()) {
            parts.push_back(framed(Frame::Snapshot(mem::replace(&mut part, empty()))));
            bytes = 0;
        }
        bytes += size;
        part.events.push(event);
    }
    part.last = true;
    parts.push_back(framed(Frame::Snapshot(part)));
    parts
}

/// The log knows of a first sending before it happens.
async fn first_sent(hub: &Hub, gateway_id: &str, changes: &[Change]) -> Result<()> {
    let first: Vec<Change> = changes.iter().filter(|change| change.is_first).cloned().collect();
    if !first.is_empty() {
        hub.instances().deliver(gateway_id, &first, hub.clock().now_ms()).await?;
        hub.reports().now();
    }
    Ok(())
}

/// An event on its way to one instance: `performedAt` stays what it was.
fn sending(hub: &Hub, change: Change) -> Sending {
    Sending { event: change.event, performed_at: change.performed_at, correlation_id: hub.ids().next() }
}
