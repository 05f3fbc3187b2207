//! A gateway that runs on its own, by the rules of a gateway controller: it connects and connects again, fetches
//! what is deployed, acknowledges, and keeps account of what it runs and saw.
//!
//! It is as strict as the wire contract lets a controller be, and notes as a fault whatever a real one would
//! stumble over: an event counts only if its `performedAt` is strictly newer than what is held of that artifact, a
//! correlation id may not come again, and an artifact must be one that a gateway can run. It knows the platform
//! only from the outside.

mod check;
mod perform;
mod resume;
mod serve;
mod state;
mod store;
mod sync;
mod tempo;

use std::time::Duration;

use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{gateway::GatewayClient, transport::Transport};

pub use check::operations;
pub use state::{Noted, Performed, State};
pub use store::{Held, Names, Store};
pub use tempo::{Dice, Tempo};

/// What kind of controller it is.
#[derive(Debug, Clone)]
pub struct Options {
    /// How it reaches the platform.
    pub transport: Transport,
    /// How fast it is.
    pub tempo: Tempo,
    /// Its database. One that another process left behind makes it a restart, one that another process has makes it a
    /// gateway of several controllers.
    pub store: Store,
    /// An instance that keeps its revision and takes snapshots, under this id. Not over WebSocket.
    pub resumes_as: Option<String>,
    /// On the first link, reads events only when the list of what it is to run is taken: the worst order that a
    /// controller may get into.
    pub list_first: bool,
    /// Artifacts that were made on the gateway itself, as the contract writes them in `artifacts.json`.
    pub own: Vec<Value>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: Transport::WebSocket,
            tempo: Tempo::hasty(),
            store: Store::default(),
            resumes_as: None,
            list_first: false,
            own: Vec::new(),
        }
    }
}

/// A gateway with a life of its own.
#[derive(Debug)]
pub struct Controller {
    state: watch::Receiver<State>,
    store: Store,
    stop: CancellationToken,
    cut: std::sync::Arc<Notify>,
    task: JoinHandle<()>,
}

impl Controller {
    /// Starts a gateway with a WebSocket and a database of its own; `client` is called anew for each dial, so that an
    /// address may change.
    pub fn spawn(client: impl Fn() -> GatewayClient + Send + 'static) -> Self {
        Self::spawn_as(Options::default(), client)
    }

    /// Starts a gateway of this kind.
    pub fn spawn_as(options: Options, client: impl Fn() -> GatewayClient + Send + 'static) -> Self {
        let (sender, state) = watch::channel(State::default());
        let (stop, cut) = (CancellationToken::new(), std::sync::Arc::new(Notify::new()));
        let store = options.store.clone();
        let run = serve::Run::new(options, sender.clone(), cut.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let run = Box::pin(run.live(client));
            tokio::select! { () = run => {}, () = stopped.cancelled() => {} }
            sender.send_modify(|state| state.connected = false);
        });
        Self { state, store, stop, cut, task }
    }

    /// What the gateway knows now.
    pub fn state(&self) -> State {
        let mut state = self.state.borrow().clone();
        state.held = self.store.held();
        state
    }

    /// Its database.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// Waits until `condition` holds; fails with the last state after `patience`.
    pub async fn wait(
        &self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&State) -> bool,
    ) -> anyhow::Result<State> {
        let (mut state, mut store) = (self.state.clone(), self.store.watch());
        let waited = tokio::time::timeout(patience, async {
            loop {
                state.mark_unchanged();
                store.mark_unchanged();
                let now = self.state();
                if condition(&now) {
                    return now;
                }
                // What was sent last stays to be read when the controller has ended.
                tokio::select! { Ok(()) = state.changed() => {}, Ok(()) = store.changed() => {} }
            }
        });
        match waited.await {
            Ok(state) => Ok(state),
            Err(_) => anyhow::bail!("{what}: not within {patience:?}; the gateway: {:?}", self.state()),
        }
    }

    /// Cuts the link without a goodbye, as a network does. The gateway connects again.
    pub fn cut(&self) {
        self.cut.notify_one();
    }

    /// Ends the gateway without a goodbye and returns what it knew.
    pub async fn stop(self) -> State {
        self.stop.cancel();
        // It ends by itself now; an error would be its panic, which its state shows as well.
        let _ = self.task.await;
        let mut state = self.state.borrow().clone();
        state.held = self.store.held();
        state
    }
}
