//! A gateway that runs on its own, by the rules of a gateway controller: it connects and connects
//! again, fetches what is deployed, acknowledges, and keeps account of what it runs and saw.
//!
//! An event counts only if its `performedAt` is strictly newer than what is held of that artifact; a
//! correlation id that comes again is a fault of the platform, and is noted as such.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use anyhow::Context as _;
use proto::time::Timestamp;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{list_at, text_at},
    gateway::{Event, Frame, GatewayClient, GatewayLink, LinkError},
};

/// How long to wait after a failed dial; real controllers begin with a second.
const REDIAL: Duration = Duration::from_millis(200);

/// A gateway with a life of its own.
#[derive(Debug)]
pub struct Controller {
    state: watch::Receiver<State>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What a gateway holds of one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The deployment's id.
    pub deployment_id: String,
    /// The `performedAt` that counts, in milliseconds.
    pub performed_at_ms: i64,
    /// Whether it runs; else it was removed.
    pub deployed: bool,
    /// How many operations the artifact has.
    pub operations: usize,
}

/// An event that was performed, in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Performed {
    /// `api.deployed`, `api.undeployed` or `api.deleted`.
    pub kind: String,
    /// The API's id.
    pub api_id: String,
    /// The deployment's id; empty when the API was deleted.
    pub deployment_id: String,
}

/// Everything that a gateway knows.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// How often the platform acknowledged a connection.
    pub connects: usize,
    /// Whether there is a link now.
    pub connected: bool,
    /// The gateway's id, once the platform has said it.
    pub gateway_id: String,
    /// What it holds, by API.
    pub held: BTreeMap<String, Held>,
    /// Every event that was performed.
    pub performed: Vec<Performed>,
    /// Events that were not newer than what was held, and so not acknowledged.
    pub stale: usize,
    /// The code of the last close.
    pub last_close: Option<u16>,
    /// The status of a refusal that ends a controller for good.
    pub refused: Option<u16>,
    /// What broke the contract.
    pub faults: Vec<String>,
    correlation_ids: HashSet<String>,
}

impl Controller {
    /// Starts a gateway; `client` is called anew for each dial, so that an address may change.
    pub fn spawn(client: impl Fn() -> GatewayClient + Send + 'static) -> Self {
        Self::start(client, false)
    }

    /// Like [`Self::spawn`], and once, on its first link, it asks for the list of what it is to run and
    /// takes that before it reads an event: the worst order that a real controller may get into. What
    /// comes from the list is not acknowledged.
    pub fn spawn_synced(client: impl Fn() -> GatewayClient + Send + 'static) -> Self {
        Self::start(client, true)
    }

    fn start(client: impl Fn() -> GatewayClient + Send + 'static, sync: bool) -> Self {
        let (sender, state) = watch::channel(State::default());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let run = Box::pin(run(client, &sender, sync));
            tokio::select! { () = run => {}, () = stopped.cancelled() => {} }
            sender.send_modify(|state| state.connected = false);
        });
        Self { state, stop, task }
    }

    /// What the gateway knows now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until `condition` holds; fails with the last state after `patience`.
    pub async fn wait(
        &self,
        what: &str,
        patience: Duration,
        condition: impl FnMut(&State) -> bool,
    ) -> anyhow::Result<State> {
        let mut state = self.state.clone();
        let waited = tokio::time::timeout(patience, state.wait_for(condition)).await;
        match waited {
            Ok(Ok(state)) => Ok(state.clone()),
            _ => anyhow::bail!("{what}: not within {patience:?}; the gateway: {:?}", self.state()),
        }
    }

    /// Ends the gateway without a goodbye and returns what it knew.
    pub async fn stop(self) -> State {
        self.stop.cancel();
        // It ends by itself now; an error would be its panic, which its state shows as well.
        let _ = self.task.await;
        self.state.borrow().clone()
    }
}

async fn run(client: impl Fn() -> GatewayClient, state: &watch::Sender<State>, mut sync: bool) {
    loop {
        let gateway = client();
        match gateway.connect().await {
            Ok(link) => {
                let served = serve(&gateway, link, state, std::mem::take(&mut sync)).await;
                state.send_modify(|state| {
                    state.connected = false;
                    match served {
                        Ok(code) => state.last_close = code,
                        Err(error) => tracing::debug!(error = format!("{error:#}"), "link lost"),
                    }
                });
            }
            // A controller takes these as final and exits.
            Err(LinkError::Refused { status: status @ (401 | 403 | 404 | 409 | 422), .. }) => {
                state.send_modify(|state| state.refused = Some(status));
                return;
            }
            Err(_) => tokio::time::sleep(REDIAL).await,
        }
    }
}

/// Serves one link until it ends; returns the code of the close.
async fn serve(
    gateway: &GatewayClient,
    mut link: GatewayLink,
    state: &watch::Sender<State>,
    sync: bool,
) -> anyhow::Result<Option<u16>> {
    state.send_modify(|state| {
        state.connected = true;
        state.connects += 1;
        state.gateway_id.clone_from(&link.gateway_id);
    });
    // Beside the link, as controllers do: events do not wait for it.
    tokio::spawn(manifest(gateway.clone(), link.gateway_id.clone(), state.clone()));
    if sync && let Err(error) = take_list(gateway, state).await {
        state.send_modify(|state| state.faults.push(format!("list: {error:#}")));
    }
    loop {
        match link.next().await? {
            Frame::Closed(close) => return Ok(close.map(|(code, _)| code)),
            Frame::Event(event) => perform(gateway, &mut link, &event, state).await?,
        }
    }
}

/// Takes what the list says is to run.
async fn take_list(gateway: &GatewayClient, state: &watch::Sender<State>) -> anyhow::Result<()> {
    let list = gateway.deployments().await?;
    let mut listed = BTreeMap::new();
    for entry in list_at(&list, "/deployments")? {
        if text_at(entry, "/state")? == "DEPLOYED" {
            let at = time(text_at(entry, "/deployedAt")?)?;
            listed.insert(text_at(entry, "/deploymentId")?.to_owned(), (text_at(entry, "/artifactId")?, at));
        }
    }
    if listed.is_empty() {
        return Ok(());
    }
    for (deployment_id, artifact) in gateway.fetch_batch(&listed.keys().cloned().collect::<Vec<_>>()).await? {
        let (api_id, performed_at_ms) = listed.get(&deployment_id).context("not what was asked for")?;
        let operations = operations(&artifact);
        let held = Held { deployment_id, performed_at_ms: *performed_at_ms, deployed: true, operations };
        state.send_modify(|state| drop(state.held.insert((*api_id).to_owned(), held)));
    }
    Ok(())
}

async fn manifest(gateway: GatewayClient, gateway_id: String, state: watch::Sender<State>) {
    match gateway.send_manifest(&gateway_id).await {
        Err(error) if !is_network(&error) => {
            state.send_modify(|state| state.faults.push(format!("manifest: {error:#}")));
        }
        _ => {}
    }
}

/// Whether a call got no answer, rather than a bad one.
fn is_network(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<reqwest::Error>())
}

async fn perform(
    gateway: &GatewayClient,
    link: &mut GatewayLink,
    event: &Event,
    state: &watch::Sender<State>,
) -> anyhow::Result<()> {
    let again = state.borrow().correlation_ids.contains(&event.correlation_id);
    state.send_modify(|state| {
        if again {
            state.faults.push(format!("the correlation id {} came twice", event.correlation_id));
        }
        state.correlation_ids.insert(event.correlation_id.clone());
    });
    match event.kind.as_str() {
        "api.deployed" => deploy(gateway, link, event, state).await,
        "api.undeployed" => undeploy(link, event, state).await,
        "api.deleted" => {
            state.send_modify(|state| {
                state.held.remove(event.text("apiId"));
                state.performed.push(performed(event));
            });
            Ok(())
        }
        // Unknown types are for other gateways.
        _ => Ok(()),
    }
}

async fn deploy(
    gateway: &GatewayClient,
    link: &mut GatewayLink,
    event: &Event,
    state: &watch::Sender<State>,
) -> anyhow::Result<()> {
    let Some(at) = newer(event, state)? else { return Ok(()) };
    let artifact = match gateway.fetch_api(event.text("apiId")).await {
        Ok(artifact) => artifact,
        // The platform went away: the link goes too, and the event comes again.
        Err(error) if is_network(&error) => return Err(error),
        Err(error) => {
            state.send_modify(|state| state.faults.push(format!("fetch: {error:#}")));
            return link.ack(event, "deploy", Some("GATEWAY_PROCESSING_ERROR")).await;
        }
    };
    let held = Held {
        deployment_id: event.text("deploymentId").to_owned(),
        performed_at_ms: at,
        deployed: true,
        operations: operations(&artifact),
    };
    hold(event, held, state);
    link.ack(event, "deploy", None).await
}

async fn undeploy(link: &mut GatewayLink, event: &Event, state: &watch::Sender<State>) -> anyhow::Result<()> {
    let Some(at) = newer(event, state)? else { return Ok(()) };
    let held = state.borrow().held.get(event.text("apiId")).cloned();
    if held.is_some_and(|held| held.deployment_id != event.text("deploymentId")) {
        return link.ack(event, "undeploy", Some("DEPLOYMENT_ID_MISMATCH")).await;
    }
    let held = Held {
        deployment_id: event.text("deploymentId").to_owned(),
        performed_at_ms: at,
        deployed: false,
        operations: 0,
    };
    hold(event, held, state);
    link.ack(event, "undeploy", None).await
}

/// The event's time when it counts, nothing when it is stale.
fn newer(event: &Event, state: &watch::Sender<State>) -> anyhow::Result<Option<i64>> {
    let at = time(event.text("performedAt"))?;
    let known = state.borrow().held.get(event.text("apiId")).map(|held| held.performed_at_ms);
    if known.is_some_and(|known| known >= at) {
        state.send_modify(|state| state.stale += 1);
        return Ok(None);
    }
    Ok(Some(at))
}

/// Milliseconds of a time on the wire.
fn time(text: &str) -> anyhow::Result<i64> {
    Ok(Timestamp::parse_rfc3339(text).with_context(|| format!("{text:?} is no time"))?.unix_ms())
}

fn hold(event: &Event, held: Held, state: &watch::Sender<State>) {
    state.send_modify(|state| {
        state.held.insert(event.text("apiId").to_owned(), held);
        state.performed.push(performed(event));
    });
}

fn performed(event: &Event) -> Performed {
    Performed {
        kind: event.kind.clone(),
        api_id: event.text("apiId").to_owned(),
        deployment_id: event.text("deploymentId").to_owned(),
    }
}

/// How many operations an artifact has.
pub fn operations(artifact: &serde_norway::Value) -> usize {
    artifact
        .get("spec")
        .and_then(|spec| spec.get("operations"))
        .and_then(serde_norway::Value::as_sequence)
        .map_or(0, Vec::len)
}
