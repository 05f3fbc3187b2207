//! Delivery to one gateway: reads its log after the cursors of its connections and sends in order.
//!
//! The log knows of a sending before it happens. A connection whose queue is full keeps its cursor and
//! goes on later: a slow peer only hurts itself.

use std::{sync::Arc, time::Duration};

use proto::{
    gateway::{Event, PlatformFrame, platform_frame::Frame},
    time::Timestamp,
};
use service_kit::Result;

use super::{
    connection::Link,
    hub::{Hub, Lane},
    outbound::{Offered, framed},
    resume,
};
use crate::{
    domain::{
        instances::Subject,
        log::{Delivery, Pick, Sending, Stamped, Taken},
    },
    events,
};

/// How many events one look at the log takes.
pub(super) const BATCH: usize = 64;

/// How many events are sent again at once.
const AGAIN: usize = 16;

/// Delivers until the gateway has no connection any more.
pub(super) async fn run(hub: Hub, lane: Arc<Lane>) {
    let mut backoff = Duration::from_millis(50);
    loop {
        // Boxed: most lanes have nothing to do most of the time, and a platform has thousands of them.
        match Box::pin(rounds(&hub, &lane)).await {
            Ok(true) => backoff = Duration::from_millis(50),
            Ok(false) => {
                backoff = Duration::from_millis(50);
                tokio::select! {
                    () = lane.wake.notified() => {}
                    () = lane.ended.cancelled() => return,
                }
            }
            Err(error) => {
                tracing::warn!(gateway = lane.gateway_id, %error, "delivery failed, will try again");
                metrics::counter!("tollgate_gateway_deliveries_total", "outcome" => "error").increment(1);
                backoff = (backoff * 2).min(Duration::from_secs(2));
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = lane.ended.cancelled() => return,
                }
            }
        }
    }
}

/// One batch for those that share what they know, and one for each of those that know it themselves.
async fn rounds(hub: &Hub, lane: &Lane) -> Result<bool> {
    let _turn = lane.turn.lock().await;
    let more = round(hub, lane).await?;
    Ok(resume::round(hub, lane).await? || more)
}

/// Sends one batch to the connections that can take it. Says whether there may be more.
async fn round(hub: &Hub, lane: &Lane) -> Result<bool> {
    let links = lane.links();
    let asked = ask(lane, &links);
    let repeats = repeat(hub, lane, &links).await?;
    let Some((ready, delivery)) = asked else { return Ok(repeats) };
    let taken = hub.journal().deliver(delivery).await?;
    Ok(give(hub, lane, &ready, taken)? || repeats)
}

/// What to take out of the log for the connections that can take something, and which these are.
pub(super) fn ask(lane: &Lane, links: &[Arc<Link>]) -> Option<(Vec<Arc<Link>>, Delivery)> {
    let is_ready = |link: &&Arc<Link>| link.resume.is_none() && !link.is_gone() && has_room(link);
    let ready: Vec<Arc<Link>> = links.iter().filter(is_ready).cloned().collect();
    let from = ready.iter().map(|link| link.cursor()).min()?;
    let next: Vec<_> = ready.iter().filter(|link| link.cursor() == from).collect();
    let most = next.iter().map(|link| link.capacity()).max().unwrap_or(0).clamp(1, BATCH);
    let bytes = next.iter().map(|link| link.room()).max().unwrap_or(0).max(1);
    let pick = Pick::After { revision: from, most, bytes };
    Some((ready, Delivery { gateway_id: lane.gateway_id.clone(), pick }))
}

/// Sends what was taken out of the log to the connections it was taken for. Says whether there may be more.
pub(super) fn give(hub: &Hub, lane: &Lane, ready: &[Arc<Link>], taken: Taken) -> Result<bool> {
    let (last, more) = (taken.last, taken.more);
    if last == 0 {
        return Ok(more);
    }
    hub.reports().now();
    // A connection that came meanwhile gets what it has not got yet from its own cursor on.
    let sendings = sendings(hub, taken);
    send(hub, ready, &sendings, last)?;
    note_sent(hub, lane, &lane.links(), &sendings);
    lane.raise_head(last);
    // A queue that was full a moment ago may have been emptied before it could ask for more.
    let behind = |link: &Arc<Link>| link.cursor() < last && !link.is_gone() && link.capacity() > 0;
    Ok(more || ready.iter().any(behind))
}

/// Sends once more what was not acknowledged in time, to those who have got it before. Says whether there is more.
async fn repeat(hub: &Hub, lane: &Lane, links: &[Arc<Link>]) -> Result<bool> {
    let (again, more) = lane.sent.take_again(AGAIN);
    if again.is_empty() || links.iter().all(|link| link.resume.is_some()) {
        return Ok(more);
    }
    let delivery = Delivery { gateway_id: lane.gateway_id.clone(), pick: Pick::Again(again.clone()) };
    let taken = match hub.journal().deliver(delivery).await {
        Ok(taken) => taken,
        Err(error) => {
            lane.sent.put_back(again);
            return Err(error);
        }
    };
    let sendings = sendings(hub, taken);
    for sending in &sendings {
        let frame = framed(Frame::Event(event(hub, sending)?));
        let awaits = |link: &&Arc<Link>| link.answers.is_some() || is_answered(sending);
        let has_got = |link: &&Arc<Link>| link.cursor() >= sending.event.revision;
        for link in links.iter().filter(|link| link.resume.is_none()).filter(awaits).filter(has_got) {
            offer(link, sending, &frame);
        }
    }
    note_sent(hub, lane, links, &sendings);
    Ok(more)
}

/// Queues a sending.
fn offer(link: &Link, sending: &Sending, frame: &Arc<PlatformFrame>) -> Offered {
    let offered = match &link.answers {
        Some(answers) => answers.offer(link, frame, Subject::of(&sending.event), &sending.correlation_id),
        None => link.offer(frame),
    };
    note(link, sending, offered);
    offered
}

/// From now on the answers to these are waited for.
fn note_sent(hub: &Hub, lane: &Lane, links: &[Arc<Link>], sendings: &[Sending]) {
    let all = links.iter().any(|link| link.resume.is_none() && link.answers.is_some());
    for sending in sendings.iter().filter(|sending| all || is_answered(sending)) {
        lane.sent.note(sending.event.revision, hub.config().redeliver());
    }
}

/// Whether gateways acknowledge this type of event.
fn is_answered(sending: &Sending) -> bool {
    events::find(&sending.event.event_type).is_some_and(|known| known.answer.is_some())
}

/// What goes out, each sending with an id of its own.
fn sendings(hub: &Hub, taken: Taken) -> Vec<Sending> {
    let sending = |stamped: Stamped| Sending {
        event: stamped.event,
        performed_at: stamped.performed_at,
        correlation_id: hub.ids().next(),
    };
    taken.events.into_iter().map(sending).collect()
}

/// Whether a connection takes frames now. If not, it asks for more when it does.
pub(super) fn has_room(link: &Link) -> bool {
    if link.answers.as_ref().is_some_and(|answers| answers.room() == 0) {
        return false;
    }
    if link.capacity() > 0 {
        return true;
    }
    link.set_stuck();
    // It may have been emptied in between, and would not ask any more.
    link.capacity() > 0
}

/// Queues sendings in order.
fn send(hub: &Hub, ready: &[Arc<Link>], sendings: &[Sending], last: i64) -> Result<()> {
    let mut able: Vec<&Arc<Link>> = ready.iter().collect();
    for sending in sendings {
        let revision = sending.event.revision;
        let answered = is_answered(sending);
        let frame = framed(Frame::Event(event(hub, sending)?));
        able.retain(|link| {
            link.cursor() >= revision || {
                if link.answers.as_ref().is_some_and(|answers| answers.room() == 0) {
                    return false;
                }
                let offered = offer(link, sending, &frame);
                if offered == Offered::Queued && !answered && link.answers.is_none() {
                    link.unanswered.note(revision);
                }
                offered == Offered::Queued
            }
        });
        for link in &able {
            link.advance(revision);
        }
        if able.is_empty() {
            break;
        }
    }
    for link in able {
        link.advance(last);
    }
    Ok(())
}

/// An event as it goes out.
pub(super) fn event(hub: &Hub, sending: &Sending) -> Result<Event> {
    Ok(Event {
        r#type: sending.event.event_type.clone(),
        payload_json: sending.payload()?,
        timestamp: Some(Timestamp::from_unix_ms(hub.clock().now_ms())),
        correlation_id: sending.correlation_id.clone(),
        user_id: sending.event.user_id.clone(),
        revision: u64::try_from(sending.event.revision).unwrap_or(0),
    })
}

/// Logs and counts an attempt.
pub(super) fn note(link: &Link, sending: &Sending, offered: Offered) {
    let (gateway, connection) = (&link.bearer.gateway_id, &link.id);
    let (revision, event) = (sending.event.revision, &sending.event.event_type);
    let outcome = match offered {
        Offered::Queued => "sent",
        Offered::Full => {
            link.set_stuck();
            "full"
        }
        Offered::Gone => "gone",
    };
    metrics::counter!("tollgate_gateway_deliveries_total", "outcome" => outcome).increment(1);
    if offered == Offered::Queued {
        let correlation = &sending.correlation_id;
        tracing::info!(gateway, connection, revision, event, correlation, "event sent");
    } else {
        tracing::warn!(gateway, connection, revision, event, outcome, "event not sent on this connection");
    }
}
