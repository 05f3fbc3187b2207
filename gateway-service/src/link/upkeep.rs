//! What keeps the registry true while nothing happens: hints and looks at the database for what other instances
//! did, notes of how far connections are, and the end of all connections when the service drains.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use service_kit::{
    Result,
    bus::{Message, Received, Subscription},
};

use super::{
    connection::Link,
    hub::{GATEWAY_DELETED, Hub, REPLACED, RESTART, TOKEN_REVOKED, patience},
};
use crate::domain::{connections::Note, log::SUBJECT};

/// The prefix of the bus subject that says of a gateway: a token, a connection or all of it may be gone.
const CONTROL: &str = "gateway.control.";
/// What both prefixes start with.
const HINTS: &str = "gateway.";
/// How many ids one question to the database names.
const CHUNK: usize = 500;
/// How often it is noted how far connections are.
const NOTES: Duration = Duration::from_secs(5);
/// When the service drains, connections are closed at this rate: gateways that lose their connection come back at
/// once, and not all of them shall do that in the same second.
const DRAIN_BATCH: usize = 20;
const DRAIN_PAUSE: Duration = Duration::from_millis(100);
/// All of them are closed by then, however many they are.
const DRAIN: Duration = Duration::from_secs(8);

impl Hub {
    /// Starts to listen for hints, to look at the database, and to wait for the end.
    pub(super) async fn start_upkeep(&self) -> anyhow::Result<()> {
        let tasks = self.tasks();
        let (hub, hints) = (self.clone(), self.bus().subscribe(HINTS).await?);
        tasks.spawn("link hints", async move { hub.listen(hints).await });
        let hub = self.clone();
        tasks.spawn("link poll", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(hub.config().poll()) => hub.look_at_all().await,
                    () = hub.suspects().news.notified() => hub.look_at_suspects().await,
                    () = hub.stopping() => return Ok(()),
                }
            }
        });
        let hub = self.clone();
        tasks.spawn("link notes", async move {
            let mut noted = HashMap::new();
            loop {
                tokio::select! {
                    () = tokio::time::sleep(NOTES) => {}
                    () = hub.stopping() => return Ok(()),
                }
                if let Err(error) = hub.note(&mut noted).await {
                    tracing::warn!(%error, "how far connections are is not noted, will try again");
                }
            }
        });
        let hub = self.clone();
        tasks.spawn("link drain", async move {
            hub.stopping().await;
            hub.drain().await;
            Ok(())
        });
        Ok(())
    }

    async fn listen(&self, mut hints: Subscription) -> anyhow::Result<()> {
        loop {
            let received = tokio::select! {
                received = hints.next() => received,
                () = self.stopping() => return Ok(()),
            };
            match received {
                Received::Message(message) => {
                    if let Some(gateway) = message.subject.strip_prefix(SUBJECT) {
                        let head =
                            std::str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
                        self.has_grown(gateway, head);
                    } else if let Some(gateway) = message.subject.strip_prefix(CONTROL) {
                        self.suspect(gateway);
                    }
                }
                Received::Lost => self.wake_all(),
                Received::Closed => anyhow::bail!("the bus is gone"),
            }
        }
    }

    /// Tells every instance, this one too, that a token, a connection or all of a gateway may be gone.
    pub(crate) async fn announce(&self, gateway_id: &str) {
        let hint = Message { subject: format!("{CONTROL}{gateway_id}"), payload: Bytes::new() };
        if let Err(error) = self.bus().publish(hint).await {
            tracing::warn!(gateway = gateway_id, %error, "hint not published: the next look finds it");
        }
    }

    fn suspect(&self, gateway_id: &str) {
        if self.is_connected_here(gateway_id) {
            let suspects = self.suspects();
            suspects.gateways.lock().unwrap_or_else(PoisonError::into_inner).insert(gateway_id.to_owned());
            suspects.news.notify_one();
        }
    }

    async fn look_at_suspects(&self) {
        let suspects: BTreeSet<String> =
            std::mem::take(&mut self.suspects().gateways.lock().unwrap_or_else(PoisonError::into_inner));
        let links = self.links().into_iter().filter(|link| suspects.contains(&link.bearer.gateway_id));
        self.look_at(links.collect()).await;
    }

    async fn look_at_all(&self) {
        self.look_at(self.links()).await;
    }

    /// Looks for what no hint told: events, revoked tokens, deleted gateways and replaced connections of other
    /// instances.
    async fn look_at(&self, links: Vec<Arc<Link>>) {
        for asked in links.chunks(CHUNK) {
            if let Err(error) = self.look(asked).await {
                tracing::warn!(%error, "the database cannot be looked at, will try again");
            }
        }
    }

    async fn look(&self, links: &[Arc<Link>]) -> Result<()> {
        let node = self.node_id();
        let all = |of: fn(&Link) -> &String| links.iter().map(|link| of(link).clone()).collect::<Vec<_>>();
        // First: of a gateway that is deleted the connections are gone too, and the better reason counts.
        let there = self.connections().heard_at(&all(|link| &link.id)).await?;
        let there: HashSet<String> = there.into_iter().map(|(id, _)| id).collect();
        let gateways: BTreeSet<String> = links.iter().map(|link| link.bearer.gateway_id.clone()).collect();
        let gateways: Vec<String> = gateways.into_iter().collect();
        let heads: HashMap<String, i64> = self.events().heads(&gateways).await?.into_iter().collect();
        for gateway in &gateways {
            match heads.get(gateway) {
                None => self.gateway_deleted(gateway),
                Some(head) => self.seen(gateway, *head),
            }
        }
        let active = self.tokens().active(&all(|link| &link.bearer.token_id)).await?;
        for link in links.iter().filter(|link| !active.contains(&link.bearer.token_id)) {
            link.close(TOKEN_REVOKED, "token revoked");
        }
        let gone: Vec<&Arc<Link>> = links.iter().filter(|link| !there.contains(&link.id)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        if !self.connections().nodes().await?.iter().any(|(id, beat)| *id == node && *beat >= 0) {
            return self.enter_again(&node).await;
        }
        for link in gone {
            if link.instance_id.is_empty() {
                link.close(RESTART, &format!("connection forgotten, {}", patience()));
            } else {
                link.close(REPLACED, "replaced by a newer connection");
            }
        }
        Ok(())
    }

    /// Keeps how far connections are, and hears those whose signs of life came to another instance.
    async fn note(&self, noted: &mut HashMap<String, Note>) -> Result<()> {
        let links = self.links();
        let now: Vec<Note> = links.iter().map(|link| link.progress()).collect();
        let living: HashSet<&str> = links.iter().map(|link| link.id.as_str()).collect();
        noted.retain(|id, _| living.contains(id.as_str()));
        let changed: Vec<Note> =
            now.into_iter().filter(|note| noted.get(&note.connection_id) != Some(note)).collect();
        for some in changed.chunks(CHUNK) {
            let written: HashSet<String> = self.connections().note(some).await?.into_iter().collect();
            let some = some.iter().filter(|note| written.contains(&note.connection_id));
            noted.extend(some.map(|note| (note.connection_id.clone(), note.clone())));
        }
        let detached: HashMap<&str, &Arc<Link>> =
            links.iter().filter(|link| link.is_detached).map(|link| (link.id.as_str(), link)).collect();
        let ids: Vec<String> = detached.keys().map(|id| (*id).to_owned()).collect();
        for some in ids.chunks(CHUNK) {
            for (id, heard_at) in self.connections().heard_at(some).await? {
                // Not what this instance noted itself: somebody else has heard of it.
                if noted.get(&id).is_some_and(|note| note.heard_at < heard_at)
                    && let Some(link) = detached.get(id.as_str())
                {
                    link.heard(heard_at);
                }
            }
        }
        Ok(())
    }

    async fn drain(&self) {
        let links = self.links();
        let batches = u32::try_from(links.len().div_ceil(DRAIN_BATCH)).unwrap_or(u32::MAX).max(1);
        let pause = DRAIN_PAUSE.min(DRAIN / batches);
        for (at, batch) in links.chunks(DRAIN_BATCH).enumerate() {
            if at > 0 {
                tokio::time::sleep(pause).await;
            }
            for link in batch {
                link.close(RESTART, &format!("service restart, {}", patience()));
            }
        }
    }

    /// Closes the connections that a token opened.
    pub(crate) fn token_revoked(&self, token_id: &str) {
        for link in self.links().iter().filter(|link| link.bearer.token_id == token_id) {
            link.close(TOKEN_REVOKED, "token revoked");
        }
    }

    /// Closes the connections of a gateway.
    pub(crate) fn gateway_deleted(&self, gateway_id: &str) {
        for link in self.links().iter().filter(|link| link.bearer.gateway_id == gateway_id) {
            link.close(GATEWAY_DELETED, "gateway deleted");
        }
    }
}
