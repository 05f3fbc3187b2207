//! The life of a controller: dial, serve, dial again.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, interval_at, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Dice, Options, State, resume::Snapshot};
use crate::{
    gateway::{GatewayClient, Refused},
    transport::{Answer, Frame, Greeting, Link, LinkError},
};

/// How long a controller waits before it sends its manifest again; then it lets it be.
const MANIFEST_PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(4)];

/// A controller, running.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) options: Options,
    pub(super) state: watch::Sender<State>,
    cut: Arc<Notify>,
}

/// One link, and what stands behind it.
pub(super) struct Session {
    pub(super) gateway: GatewayClient,
    pub(super) link: Box<dyn Link>,
    /// The parts of a snapshot that have come.
    pub(super) snapshot: Snapshot,
    /// Up to which revision it is done with what came.
    done: u64,
}

/// Whether a refusal makes a controller exit.
fn is_final(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 409 | 422)
}

/// What the platform answered when it did not give what was asked for; nothing when it did not answer.
pub(super) fn status(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Refused>().map(|refused| refused.status)
}

/// Whether a call got no answer, rather than a bad one.
pub(super) fn is_network(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<reqwest::Error>())
}

impl Run {
    pub(super) fn new(options: Options, state: watch::Sender<State>, cut: Arc<Notify>) -> Arc<Self> {
        let floor = options.store.applied_revision();
        state.send_modify(|state| state.floor = floor);
        Arc::new(Self { options, state, cut })
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    pub(super) fn fault(&self, what: String) {
        self.note(|state| state.faults.push(what));
    }

    /// Dials and serves until a refusal ends it.
    pub(super) async fn live(self: Arc<Self>, client: impl Fn() -> GatewayClient) {
        let (mut dice, mut failures, mut probed) = (Dice::fresh(), 0, false);
        loop {
            let gateway = client();
            probed = probed || self.probe(&gateway).await;
            match self.options.transport.open(&gateway, self.greeting()).await {
                Ok(link) => {
                    failures = 0;
                    let served = self.serve(gateway, link).await;
                    self.note(|state| {
                        state.connected = false;
                        match &served {
                            Ok(code) => state.last_close = *code,
                            Err(error) => tracing::debug!(error = format!("{error:#}"), "link lost"),
                        }
                    });
                    if self.state.borrow().refused.is_some() {
                        return;
                    }
                    // It was an established link: the next dial is at once.
                    continue;
                }
                Err(LinkError::Refused { status, .. }) if is_final(status) => {
                    return self.note(|state| state.refused = Some(status));
                }
                Err(error) => tracing::debug!(%error, "no link"),
            }
            failures += 1;
            tokio::time::sleep(self.options.tempo.backoff(failures, dice.share())).await;
        }
    }

    /// Asks which platform this is; says whether there was an answer.
    async fn probe(&self, gateway: &GatewayClient) -> bool {
        match gateway.probe().await {
            Ok(()) => true,
            Err(error) => {
                // Any answer but a success leaves a controller at its default.
                if status(&error) == Some(200) {
                    self.fault(format!("the probe: {error:#}"));
                }
                status(&error).is_some()
            }
        }
    }

    fn greeting(&self) -> Greeting {
        let version = "1.2.0".to_owned();
        match &self.options.resumes_as {
            None => Greeting { version, ..Greeting::default() },
            Some(instance) => Greeting {
                instance_id: instance.clone(),
                version,
                capabilities: vec!["ack".to_owned(), "resume".to_owned()],
                applied_revision: self.options.store.applied_revision(),
                state_hash: self.options.store.state_hash(),
            },
        }
    }

    /// Serves one link until it ends; returns the code of the close.
    async fn serve(
        self: &Arc<Self>,
        gateway: GatewayClient,
        link: Box<dyn Link>,
    ) -> anyhow::Result<Option<u16>> {
        let welcome = link.welcome().clone();
        let first = self.state.borrow().connects == 0;
        self.note(|state| {
            state.connected = true;
            state.connects += 1;
            state.welcome = welcome.clone();
        });
        // Beside the link, as controllers do: events do not wait for it. Both end with the link.
        let (mut beside, exit) = (JoinSet::new(), CancellationToken::new());
        let (run, client, exit_too) = (self.clone(), gateway.clone(), exit.clone());
        beside.spawn(async move { run.manifest(&client, &welcome.gateway_id, &exit_too).await });
        if self.options.resumes_as.is_none() {
            let (run, client) = (self.clone(), gateway.clone());
            if first && self.options.list_first {
                self.sync(&gateway, true).await;
            } else {
                beside.spawn(async move { run.sync(&client, first).await });
            }
        }
        let tempo = self.options.tempo;
        let mut session = Session { gateway, link, snapshot: Snapshot::default(), done: 0 };
        let mut beat = interval_at(Instant::now() + tempo.heartbeat, tempo.heartbeat);
        let mut alive = Instant::now();
        loop {
            tokio::select! {
                frame = timeout_at(alive + tempo.silence, session.link.next()) => {
                    match frame.context("no sign of life")?? {
                        Frame::Closed(close) => return Ok(close.map(|(code, _)| code)),
                        Frame::Alive => alive = Instant::now(),
                        Frame::Event(event) => {
                            let revision = event.revision;
                            self.perform(&mut session, event).await?;
                            session.done = session.done.max(revision);
                        }
                        Frame::Snapshot(part) => self.take(&mut session, part).await?,
                    }
                }
                _ = beat.tick() => session.link.send(self.heartbeat(session.done)).await?,
                () = self.cut.notified() => anyhow::bail!("cut"),
                () = exit.cancelled() => return Ok(None),
            }
        }
    }

    fn heartbeat(&self, done: u64) -> Answer {
        let mut heartbeat = proto::gateway::Heartbeat { revision: done, ..Default::default() };
        if self.options.resumes_as.is_some() {
            heartbeat.revision = self.options.store.applied_revision();
            heartbeat.state_hash = self.options.store.state_hash();
        }
        Answer::Heartbeat(heartbeat)
    }

    /// Says what the gateway can do. Some refusals make a controller exit.
    async fn manifest(&self, gateway: &GatewayClient, gateway_id: &str, exit: &CancellationToken) {
        let mut pauses = MANIFEST_PAUSES.iter();
        loop {
            let Err(error) = gateway.send_manifest(gateway_id).await else { return };
            match status(&error) {
                Some(status) if is_final(status) => {
                    self.note(|state| state.refused = Some(status));
                    return exit.cancel();
                }
                Some(status) if status < 500 => self.fault(format!("manifest: {error:#}")),
                _ => {}
            }
            let Some(pause) = pauses.next() else { return };
            tokio::time::sleep(self.options.tempo.scaled(*pause)).await;
        }
    }
}
