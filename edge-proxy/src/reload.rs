//! Settings that change while the edge runs: read again when a file has changed, at SIGHUP, and when asked on the
//! admin port. What is new is checked as a whole first; what is not good is refused, and the old goes on.
//!
//! No connection notices: those that stand keep their certificate, and calls that have begun their limits.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;
use service_kit::config::{Layers, Source};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Config, Edge, config::PublicTlsConfig, live::Live};

/// The settings that a reload replaces; what stands before a dot stands for the whole section.
const LIVE: [&str; 6] = ["trusted_proxies", "proxy_protocol", "public_tls", "cors", "limits", "routes"];
/// Those of them that it does not.
const FIXED: [&str; 2] = ["limits.connections", "limits.shared"];

/// Reads settings again.
#[derive(Debug)]
pub(crate) struct Reload {
    edge: Arc<Edge>,
    source: Source,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the start.
    first: Layers,
    /// Of now.
    running: Layers,
    /// The certificate and its key, as they were read last.
    files: Files,
    status: Status,
}

type Files = [Vec<u8>; 2];

/// What came of reading settings again.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// How often settings were replaced since the start.
    generation: u64,
    /// How often they were refused.
    refused: u64,
    /// Why, if the last ones were.
    error: Option<String>,
    /// Settings that are other than those of the start, and count only after the next one.
    needs_restart: Vec<String>,
}

impl Reload {
    /// Watches the settings of an edge that was started with `layers`.
    pub(crate) fn start(edge: &Arc<Edge>, source: Source, layers: Layers) -> anyhow::Result<Arc<Self>> {
        let files = files(&edge.config.public_tls)?;
        let state = State { first: layers.clone(), running: layers, files, status: Status::default() };
        let reload = Arc::new(Self { edge: edge.clone(), source, state: Mutex::new(state) });
        let (watching, stop) = (reload.clone(), edge.tasks.stopping());
        let mut asked = signal(SignalKind::hangup())?;
        let check = edge.config.reload.check_ms;
        edge.tasks.spawn("reload", async move {
            loop {
                let pause = async {
                    match check {
                        0 => std::future::pending().await,
                        ms => tokio::time::sleep(Duration::from_millis(ms)).await,
                    }
                };
                let is_asked = tokio::select! {
                    () = pause => false,
                    _ = asked.recv() => true,
                    () = stop.cancelled() => return Ok(()),
                };
                let again = watching.clone();
                tokio::task::spawn_blocking(move || again.again(is_asked)).await?;
            }
        });
        Ok(reload)
    }

    /// Reads the settings, and replaces those that run if they are other ones (or if somebody `asked`).
    pub(crate) fn again(&self, asked: bool) -> Status {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.attempt(&mut state, asked) {
            Ok(false) => {}
            Ok(true) => {
                state.status.generation += 1;
                let Status { generation, needs_restart, .. } = &state.status;
                tracing::info!(generation, ?needs_restart, "settings were replaced");
                metrics::counter!("tollgate_edge_reloads_total", "outcome" => "replaced").increment(1);
            }
            Err(error) => {
                let error = format!("{error:#}");
                // Looked at every few seconds, and said once.
                if asked || state.status.error.as_ref() != Some(&error) {
                    state.status.refused += 1;
                    tracing::error!(error, "settings were refused, the old ones go on");
                    metrics::counter!("tollgate_edge_reloads_total", "outcome" => "refused").increment(1);
                }
                state.status.error = Some(error);
            }
        }
        state.status.clone()
    }

    /// Whether there was something to replace; fails, and changes nothing, when it is not good.
    fn attempt(&self, state: &mut State, asked: bool) -> anyhow::Result<bool> {
        let layers = self.source.read()?;
        let config: Config = layers.extract()?;
        let files = files(&config.public_tls)?;
        let is_new = files != state.files || !layers.differing(&state.running).is_empty();
        if !is_new && !asked {
            state.status.error = None;
            return Ok(false);
        }
        let live = Live::new(&config, &self.edge.fixed, Some(&self.edge.live.load()))?;
        self.edge.live.store(Arc::new(live));
        let differing = layers.differing(&state.first);
        state.status.needs_restart = differing.into_iter().filter(|key| !is_live(key)).collect();
        state.status.error = None;
        (state.running, state.files) = (layers, files);
        Ok(true)
    }

    /// The settings that run, as TOML, secrets hidden.
    pub(crate) fn config(&self) -> anyhow::Result<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).running.print()
    }

    pub(crate) fn status(&self) -> Status {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }
}

fn is_live(key: &str) -> bool {
    let is_of =
        |section: &str| key == section || key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    LIVE.iter().any(|section| is_of(section)) && !FIXED.iter().any(|section| is_of(section))
}

/// What the files hold, as bytes: whether they have changed is not a question of times.
fn files(public: &PublicTlsConfig) -> anyhow::Result<Files> {
    let read = |path: &Path| match path.as_os_str().is_empty() {
        true => Ok(Vec::new()),
        false => std::fs::read(path).with_context(|| format!("[public_tls] cannot read {}", path.display())),
    };
    Ok([read(&public.cert)?, read(&public.key)?])
}

#[cfg(test)]
mod tests {
    use super::is_live;

    #[test]
    fn what_a_reload_replaces_is_told_from_what_it_does_not() {
        for key in ["trusted_proxies", "limits.user_per_minute", "cors.allowed_origins", "routes.class.a/b"] {
            assert!(is_live(key), "{key}");
        }
        for key in ["listen", "limits.connections", "limits.shared.url", "upstreams.auth.address", "limitsx"]
        {
            assert!(!is_live(key), "{key}");
        }
        assert!(is_live("limits.connections_per_address"));
    }
}
