//! Delivery to one gateway: reads its log after the cursors of its connections and sends in order.
//!
//! The log knows of a sending before it happens. A connection whose queue is full keeps its cursor and
//! goes on later: a slow peer only hurts itself.

use std::{sync::Arc, time::Duration};

use proto::{
    gateway::{Event, platform_frame::Frame},
    time::Timestamp,
};
use service_kit::Result;

use super::{
    connection::{Link, Offered},
    hub::{Hub, Lane},
};
use crate::{domain::log::Sending, events, store::Stamp};

/// How many events one look at the log takes.
const BATCH: usize = 64;

/// Delivers until the gateway has no connection any more.
pub(super) async fn run(hub: Hub, lane: Arc<Lane>) {
    let mut backoff = Duration::from_millis(50);
    loop {
        match round(&hub, &lane).await {
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

/// Sends one batch to the connections that can take it. Says whether there may be more.
async fn round(hub: &Hub, lane: &Lane) -> Result<bool> {
    let links = lane.links();
    let ready: Vec<Arc<Link>> =
        links.iter().filter(|link| !link.is_gone() && has_room(link)).cloned().collect();
    let Some(from) = ready.iter().map(|link| link.cursor()).min() else { return Ok(false) };
    let room = ready.iter().filter(|link| link.cursor() == from).map(|link| link.capacity()).max();
    let most = room.unwrap_or(0).clamp(1, BATCH);
    let open = hub.events().open_after(&lane.gateway_id, from, most).await?;
    let (Some(last), count) = (open.last().map(|event| event.revision), open.len()) else {
        return Ok(false);
    };
    // An event may be younger than a connection that came while the log was read: it is for both.
    let now_there = lane.links();
    if now_there.len() != links.len() || !now_there.iter().zip(&links).all(|(a, b)| Arc::ptr_eq(a, b)) {
        return Ok(true);
    }
    let stamp = |event| Stamp { event, correlation_id: hub.ids().next(), report_id: hub.ids().next() };
    let now = hub.clock().now_ms();
    let sendings = hub.events().stamp(&lane.gateway_id, open.into_iter().map(stamp).collect(), now).await?;
    hub.reports().now();
    send(hub, &ready, &sendings, last)?;
    lane.raise_head(last);
    // A queue that was full a moment ago may have been emptied before it could ask for more.
    let behind = |link: &Arc<Link>| link.cursor() < last && !link.is_gone() && link.capacity() > 0;
    Ok(count == most || ready.iter().any(behind))
}

/// Whether a connection takes frames now. If not, it asks for more when it does.
fn has_room(link: &Link) -> bool {
    if link.capacity() > 0 {
        return true;
    }
    link.backlog.set_stuck();
    // It may have been emptied in between, and would not ask any more.
    link.capacity() > 0
}

/// Queues sendings in order.
fn send(hub: &Hub, ready: &[Arc<Link>], sendings: &[Sending], last: i64) -> Result<()> {
    let mut able: Vec<&Arc<Link>> = ready.iter().collect();
    for sending in sendings {
        let revision = sending.event.revision;
        let answered = events::find(&sending.event.event_type).is_some_and(|known| known.answer.is_some());
        let frame = Frame::Event(event(hub, sending)?);
        able.retain(|link| {
            link.cursor() >= revision || {
                let offered = link.offer(frame.clone());
                note(link, sending, offered);
                if offered == Offered::Queued && !answered {
                    link.note_unanswered(revision);
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

fn event(hub: &Hub, sending: &Sending) -> Result<Event> {
    Ok(Event {
        r#type: sending.event.event_type.clone(),
        payload_json: sending.payload()?,
        timestamp: Some(Timestamp::from_unix_ms(hub.clock().now_ms())),
        correlation_id: sending.correlation_id.clone(),
        user_id: String::new(),
        revision: u64::try_from(sending.event.revision).unwrap_or(0),
    })
}

fn note(link: &Link, sending: &Sending, offered: Offered) {
    let (gateway, connection) = (&link.bearer.gateway_id, &link.id);
    let (revision, event) = (sending.event.revision, &sending.event.event_type);
    let outcome = match offered {
        Offered::Queued => "sent",
        Offered::Full => {
            link.backlog.set_stuck();
            "full"
        }
        Offered::Gone => "gone",
    };
    metrics::counter!("tollgate_gateway_deliveries_total", "outcome" => outcome).increment(1);
    if offered == Offered::Queued {
        let correlation = &sending.correlation_id;
        tracing::debug!(gateway, connection, revision, event, correlation, "event sent");
    } else {
        tracing::warn!(gateway, connection, revision, event, outcome, "event not sent on this connection");
    }
}
