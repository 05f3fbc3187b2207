//! One instance of this service among several: its own signs of life, and those of the others.
//!
//! No clock is compared with another's: an instance is dead when its beat has stood still for long enough by
//! the watch of whoever looks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use service_kit::Result;
use tokio::time::Instant;

use super::{
    connection::Link,
    hub::{Hub, RESTART, patience},
};

/// This instance, as the database knows it.
#[derive(Debug)]
pub(super) struct Node {
    id: Mutex<String>,
    /// One declaration of death is answered once.
    entering: tokio::sync::Mutex<()>,
    /// Connections that ended while the database was away, with their gateways.
    orphans: Mutex<Vec<(String, String)>>,
}

/// What is known of the other instances' beats.
#[derive(Debug, Default)]
struct Watch {
    looked: Option<Instant>,
    silent: HashMap<String, (i64, Duration)>,
}

impl Node {
    /// An instance that has not entered yet.
    pub(super) fn new(id: String) -> Self {
        Self { id: Mutex::new(id), entering: tokio::sync::Mutex::default(), orphans: Mutex::default() }
    }

    fn orphans(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Notes the beats of now. Returns those that have stood still for `timeout`, with their beats.
    fn look(
        &mut self,
        nodes: Vec<(String, i64)>,
        now: Instant,
        interval: Duration,
        timeout: Duration,
    ) -> Vec<(String, i64)> {
        // Who was stopped, or could not reach the database, knows nothing of that time: the others may not have
        // reached it either.
        let passed = self.looked.map_or(Duration::ZERO, |looked| now - looked).min(interval * 2);
        self.looked = Some(now);
        let mut before = std::mem::take(&mut self.silent);
        let mut dead = Vec::new();
        for (id, beat) in nodes {
            let silent = match before.remove(&id) {
                Some((known, silent)) if known == beat => silent + passed,
                _ => Duration::ZERO,
            };
            if silent >= timeout {
                dead.push((id.clone(), beat));
            }
            self.silent.insert(id, (beat, silent));
        }
        dead
    }
}

impl Hub {
    /// This instance's id, of now.
    pub(super) fn node_id(&self) -> String {
        self.node().id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Enters, and starts to beat and to watch the others until everything else has ended.
    pub(super) async fn start_node(&self) -> Result<()> {
        self.connections().enter(&self.node_id(), self.clock().now_ms()).await?;
        let (hub, end) = (self.clone(), self.tasks().ending());
        self.tasks().spawn_last("link node", async move {
            let mut watch = Watch::default();
            loop {
                tokio::select! {
                    () = tokio::time::sleep(hub.config().beat()) => {}
                    () = end.cancelled() => break,
                }
                let live = async {
                    hub.beat().await?;
                    hub.adopt_orphans().await?;
                    hub.watch_others(&mut watch).await
                };
                tokio::select! {
                    lived = live => if let Err(error) = lived {
                        tracing::warn!(%error, "no sign of life could be given, will try again");
                    },
                    () = end.cancelled() => break,
                }
            }
            if let Err(error) = hub.leave_cluster().await {
                tracing::warn!(%error, "the other instances will notice that this one is gone");
            }
            Ok(())
        });
        Ok(())
    }

    async fn beat(&self) -> Result<()> {
        let node = self.node_id();
        if !self.connections().beat(&node).await? {
            self.enter_again(&node).await?;
        }
        Ok(())
    }

    /// The others have declared this instance dead as `node`: whoever is connected may be elsewhere by now, and its
    /// acknowledgements do not count. Everybody is sent away, and the instance enters under a new id.
    pub(super) async fn enter_again(&self, node: &str) -> Result<()> {
        let _one_at_a_time = self.node().entering.lock().await;
        if self.node_id() != node {
            return Ok(());
        }
        // Whoever is admitted from here on has the new id.
        let links = self.links();
        let id = self.ids().next();
        self.connections().enter(&id, self.clock().now_ms()).await?;
        *self.node().id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        tracing::error!(
            connections = links.len(),
            "this instance was taken for dead: its connections are closed"
        );
        for link in links {
            link.close(RESTART, &format!("service restart, {}", patience()));
        }
        Ok(())
    }

    async fn watch_others(&self, watch: &mut Watch) -> Result<()> {
        let (own, config) = (self.node_id(), self.config());
        let mut others = self.connections().nodes().await?;
        others.retain(|(id, _)| *id != own);
        for (node, beat) in watch.look(others, Instant::now(), config.beat(), config.node_timeout()) {
            // Below zero: whoever declared it dead has not buried it.
            if beat < 0 || self.connections().declare_dead(&node, beat).await? {
                let connections = self.bury(&node).await?;
                tracing::warn!(node, connections, "an instance is dead: its connections are forgotten");
            }
        }
        Ok(())
    }

    /// Forgets an instance with its connections. How many there were.
    async fn bury(&self, node: &str) -> Result<usize> {
        let mut connections = 0;
        loop {
            let some = self.connections().bury(node, self.clock().now_ms()).await?;
            self.web().now();
            connections += some;
            if some == 0 {
                return Ok(connections);
            }
        }
    }

    async fn leave_cluster(&self) -> Result<()> {
        self.adopt_orphans().await?;
        self.bury(&self.node_id()).await.map(drop)
    }

    /// Removes a connection that has ended, at once or when the database is back.
    pub(super) async fn forget(&self, link: &Arc<Link>) {
        let gateway = &link.bearer.gateway_id;
        match self.connections().disconnect(&link.id, gateway, self.clock().now_ms()).await {
            Ok(_) => self.web().now(),
            Err(error) => {
                tracing::warn!(connection = link.id, %error, "connection not removed from the database yet");
                self.orphan(&link.id, gateway);
            }
        }
    }

    /// A connection may be in the database that nobody serves.
    pub(super) fn orphan(&self, connection_id: &str, gateway_id: &str) {
        self.node().orphans().push((connection_id.to_owned(), gateway_id.to_owned()));
    }

    async fn adopt_orphans(&self) -> Result<()> {
        loop {
            let Some((id, gateway)) = self.node().orphans().last().cloned() else { return Ok(()) };
            self.connections().disconnect(&id, &gateway, self.clock().now_ms()).await?;
            self.node().orphans().retain(|(orphan, _)| *orphan != id);
            self.web().now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::Watch;

    const BEAT: Duration = Duration::from_secs(2);
    const TIMEOUT: Duration = Duration::from_secs(10);

    fn nodes(beats: [i64; 2]) -> Vec<(String, i64)> {
        ["a", "b"].into_iter().map(str::to_owned).zip(beats).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_is_dead_and_who_beats_is_not() {
        let mut watch = Watch::default();
        for beat in 0..5 {
            assert!(watch.look(nodes([7, beat]), Instant::now(), BEAT, TIMEOUT).is_empty());
            tokio::time::advance(BEAT).await;
        }
        assert_eq!(watch.look(nodes([7, 5]), Instant::now(), BEAT, TIMEOUT), [("a".to_owned(), 7)]);
        // Alive after all: somebody else may have seen a beat.
        assert!(watch.look(nodes([8, 5]), Instant::now(), BEAT, TIMEOUT).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_without_the_database_kills_nobody() {
        let mut watch = Watch::default();
        assert!(watch.look(nodes([1, 1]), Instant::now(), BEAT, TIMEOUT).is_empty());
        tokio::time::advance(TIMEOUT * 10).await;
        assert!(watch.look(nodes([1, 1]), Instant::now(), BEAT, TIMEOUT).is_empty(), "nobody could beat");
        tokio::time::advance(BEAT).await;
        assert!(watch.look(nodes([2, 2]), Instant::now(), BEAT, TIMEOUT).is_empty());
    }
}
