//! What operators ask and do: who is connected, what arrived, what did not, and try again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::time::Timestamp;
use serde_json::Value;
use service_kit::{
    AuthContext, Clock, Error, Ids, Kind, Result,
    bus::{Bus, Message},
    field::Checks,
    page::Page,
};
use sha2::{Digest as _, Sha256};

use crate::{
    config::LinkConfig,
    domain::{
        connections::Connection,
        gateways::{Gateway, Gateways},
        log::{Log, NewEvent, Requeue, SUBJECT},
        reconcile::Reconciliation,
        states::{ArtifactState, DriftRule},
    },
    events,
    store::{ConnectionStore, OperationsStore},
};

/// The longest time window of one question about failures.
const MAX_WINDOW: Duration = Duration::from_secs(31 * 24 * 3_600);
/// The time window when its beginning is not given.
const DEFAULT_WINDOW: Duration = Duration::from_secs(24 * 3_600);
/// How many events of operators one gateway's log may hold: they are large, a gateway may be gone for good, and what
/// has a key stays until something newer has it.
const MAX_HELD: i64 = 500;
/// How many connections the statistics show.
const MAX_SHOWN: u32 = 1_000;

/// Whose things are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One gateway's.
    Gateway(String),
    /// Those of all gateways of these organizations.
    Organizations(Vec<String>),
}

/// A live connection and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) connection: Connection,
    pub(crate) gateway_name: String,
    /// How many revisions of the gateway's log it has not acknowledged.
    pub(crate) lag: i64,
    /// Whether a sign of life is overdue.
    pub(crate) stale: bool,
}

/// A delivery that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailedDelivery {
    pub(crate) id: String,
    pub(crate) gateway_id: String,
    pub(crate) instance_id: String,
    pub(crate) revision: i64,
    pub(crate) event_type: String,
    pub(crate) artifact_id: String,
    pub(crate) deployment_id: String,
    pub(crate) reason: String,
    pub(crate) detail: String,
    /// Unix milliseconds.
    pub(crate) failed_at: i64,
}

/// A time window as it is asked for: when it begins and ends, in Unix milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from: Option<i64>,
    pub(crate) to: Option<i64>,
}

/// What was delivered to gateways, of all time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deliveries {
    /// Repeats included.
    pub(crate) sent: i64,
    pub(crate) failed: i64,
    /// When the last one failed, and why.
    pub(crate) last_failure: Option<(i64, String)>,
}

/// What of operators' events the log of a gateway holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Events that nobody has done yet.
    pub(crate) waiting: i64,
    /// Keys of those that are done.
    pub(crate) keys: i64,
    /// Whether the key that is asked for is among all of them.
    pub(crate) has_key: bool,
}

/// What the statistics say.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// How many connections there are.
    pub(crate) active: i64,
    /// The newest of them.
    pub(crate) connections: Vec<Live>,
    pub(crate) deliveries: Deliveries,
}

/// An event of an operator.
#[derive(Debug)]
pub(crate) struct OperatorEvent {
    pub(crate) gateway_id: String,
    pub(crate) event_type: String,
    pub(crate) payload: Option<Value>,
    /// What it is about; empty when it stands alone.
    pub(crate) about: String,
    /// Its id; made when empty.
    pub(crate) id: String,
}

/// Answers and acts.
#[derive(Debug, Clone)]
pub(crate) struct Operations {
    pub(crate) store: Arc<dyn OperationsStore>,
    pub(crate) connections: Arc<dyn ConnectionStore>,
    pub(crate) gateways: Gateways,
    pub(crate) log: Log,
    pub(crate) reconciliation: Reconciliation,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) link: LinkConfig,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
}

impl Operations {
    /// A page of live connections, newest first, and how many there are.
    pub(crate) async fn connections(
        &self,
        caller: &AuthContext,
        gateway_id: &str,
        organization_id: &str,
        page: Page,
    ) -> Result<(Vec<Live>, i64)> {
        match self.scope(caller, gateway_id, organization_id).await? {
            None => Ok((Vec::new(), 0)),
            Some(scope) => self.store.connections(&scope, self.quiet_since(), page).await,
        }
    }

    /// A page of the deliveries that failed in a window, newest first, and how many there are.
    pub(crate) async fn failures(
        &self,
        caller: &AuthContext,
        gateway_id: &str,
        organization_id: &str,
        window: Window,
        page: Page,
    ) -> Result<(Vec<FailedDelivery>, i64)> {
        let (from, to) = window.checked(self.clock.now_ms())?;
        match self.scope(caller, gateway_id, organization_id).await? {
            None => Ok((Vec::new(), 0)),
            Some(scope) => self.store.failures(&scope, from, to, page).await,
        }
    }

    /// A page of what a gateway is to run and what its instances say that they run, by artifact, and how many
    /// there are.
    pub(crate) async fn artifacts(
        &self,
        caller: &AuthContext,
        gateway_id: &str,
        only_drifted: bool,
        page: Page,
    ) -> Result<(Vec<ArtifactState>, i64)> {
        self.gateways.permitted(caller, gateway_id, "gateways:read").await?;
        let drift = DriftRule::at(self.clock.now_ms(), self.link.drift_ms);
        self.store.artifacts(gateway_id, drift, only_drifted, page).await
    }

    /// Sends a gateway again what it refused and has not acknowledged, with `full` all that it is to run: how many
    /// events, and the newest revision of its log.
    pub(crate) async fn resync(
        &self,
        caller: &AuthContext,
        gateway_id: &str,
        artifact_id: &str,
        full: bool,
    ) -> Result<(usize, i64)> {
        let mut checks = Checks::new();
        checks.id("gatewayId", gateway_id);
        if !artifact_id.is_empty() {
            checks.id("artifactId", artifact_id);
        }
        checks.done()?;
        self.gateways.permitted(caller, gateway_id, "gateways:write").await?;
        if !artifact_id.is_empty() && !self.store.has_artifact(gateway_id, artifact_id).await? {
            return Err(Error::not_found("artifact on this gateway"));
        }
        let artifact = (!artifact_id.is_empty()).then_some(artifact_id);
        // First: what it appends waits, and so is among what is sent again.
        if full
            && artifact.is_none()
            && let Err(error) = self.reconciliation.look(gateway_id, true).await
        {
            tracing::warn!(gateway = gateway_id, %error, "resync without what project-service wants");
        }
        let asked = Requeue { gateway_id, artifact_id: artifact, full };
        let (events, head) = self.log.store.requeue(asked, &self.ids, self.clock.now_ms()).await?;
        tracing::info!(
            gateway = gateway_id,
            artifact = artifact_id,
            full,
            events,
            head,
            caller = caller.user_id(),
            "resync asked for"
        );
        if events > 0 {
            self.hint(gateway_id).await;
        }
        Ok((events, head))
    }

    /// Puts an event of an operator into a gateway's log. Its id, and whether the gateway is connected.
    pub(crate) async fn send(&self, caller: &AuthContext, event: OperatorEvent) -> Result<(String, bool)> {
        let checked = event.checked(&self.ids)?;
        let gateway = self.gateways.permitted(caller, &event.gateway_id, "gateways:write").await?;
        let (event_id, new) = (checked.id.clone(), checked.into_new(&gateway, caller));
        let held = self.store.held(&gateway.id, &new.event_key).await?;
        if let Some(message) = held.no_room_for(&new.event_key)
            && !self.store.has_event(&gateway.id, &new.id).await?
        {
            return Err(Error::new(Kind::FailedPrecondition, "EVENT_BACKLOG", message));
        }
        let event_type = new.event_type.clone();
        if !self.log.append(vec![new]).await?.is_empty() {
            return Err(Error::not_found("gateway"));
        }
        tracing::info!(
            gateway = gateway.id,
            event = event_type,
            id = event_id,
            caller = caller.user_id(),
            "event of an operator appended"
        );
        let connected = self.connections.connected(std::slice::from_ref(&gateway.id)).await?;
        Ok((event_id, !connected.is_empty()))
    }

    /// The statistics of all gateways that the caller may see.
    pub(crate) async fn stats(&self, caller: &AuthContext) -> Result<Stats> {
        let Some(scope) = self.scope(caller, "", "").await? else { return Ok(Stats::default()) };
        let newest = Page { limit: MAX_SHOWN, offset: 0 };
        let (connections, active) = self.store.connections(&scope, self.quiet_since(), newest).await?;
        Ok(Stats { active, connections, deliveries: self.store.deliveries(&scope).await? })
    }

    /// What the caller may see of what is asked for; `None` for nothing at all.
    async fn scope(
        &self,
        caller: &AuthContext,
        gateway_id: &str,
        organization_id: &str,
    ) -> Result<Option<Scope>> {
        let mut checks = Checks::new();
        if !organization_id.is_empty() {
            checks.id("organizationId", organization_id);
        }
        checks.done()?;
        if gateway_id.is_empty() {
            let organizations = self.gateways.visible(caller, organization_id).await?;
            return Ok((!organizations.is_empty()).then_some(Scope::Organizations(organizations)));
        }
        let gateway = self.gateways.permitted(caller, gateway_id, "gateways:read").await?;
        if !organization_id.is_empty() && gateway.organization_id != organization_id {
            return Err(Error::field("organizationId", "is not the organization of the gateway"));
        }
        Ok(Some(Scope::Gateway(gateway.id)))
    }

    /// Who was last heard of before this is stale: a sign of life is due every heartbeat, and it may be late by
    /// half of the time that is left until the connection is given up.
    fn quiet_since(&self) -> i64 {
        let LinkConfig { heartbeat_ms, silence_ms, .. } = self.link;
        let late = (silence_ms.saturating_sub(heartbeat_ms) / 2).min(heartbeat_ms / 2);
        let quiet = i64::try_from(heartbeat_ms.saturating_add(late)).unwrap_or(i64::MAX);
        self.clock.now_ms().saturating_sub(quiet)
    }

    async fn hint(&self, gateway_id: &str) {
        let hint = Message { subject: format!("{SUBJECT}{gateway_id}"), payload: Bytes::new() };
        if let Err(error) = self.bus.publish(hint).await {
            tracing::warn!(gateway = gateway_id, %error, "hint not published: the next look at the log finds it");
        }
    }
}

impl Held {
    /// Why there is no room for one more event of this key, if there is none. One that stands alone leaves when it
    /// is done, and one whose key is there takes the place of another.
    fn no_room_for(&self, key: &str) -> Option<String> {
        let needs_place = !key.is_empty() && !self.has_key;
        if self.waiting >= MAX_HELD {
            return Some(format!("{MAX_HELD} events of operators wait for this gateway already"));
        }
        let full = needs_place && self.waiting + self.keys >= MAX_HELD;
        full.then(|| {
            format!("operators' events for this gateway have {MAX_HELD} keys already: use one of them again")
        })
    }
}

impl Window {
    /// Its bounds.
    fn checked(self, now: i64) -> Result<(i64, i64)> {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let mut checks = Checks::new();
        for (name, at) in [("from", self.from), ("to", self.to)] {
            let fits = at.is_none_or(|at| Timestamp::from_unix_ms(at).to_rfc3339().is_some());
            checks.that(fits, name, "must lie in the years 1 to 9999");
        }
        checks.done()?;
        let to = self.to.unwrap_or(now);
        let from = self.from.unwrap_or(to.saturating_sub(ms(DEFAULT_WINDOW)));
        checks.that(from < to, "from", "must be before `to`, which is now when it is absent");
        checks.that(to.saturating_sub(from) <= ms(MAX_WINDOW), "from", "must be at most 31 days before `to`");
        checks.done()?;
        Ok((from, to))
    }
}

/// An event of an operator that keeps all rules.
#[derive(Debug)]
struct CheckedEvent {
    id: String,
    event_type: String,
    payload_json: String,
    key: String,
}

impl OperatorEvent {
    fn checked(&self, ids: &Ids) -> Result<CheckedEvent> {
        let mut checks = Checks::new();
        checks.id("gatewayId", &self.gateway_id);
        checks.length("key", &self.about, 0, 64).printable("key", &self.about, false);
        checks.length("eventId", &self.id, 0, 64).printable("eventId", &self.id, false);
        let known = events::find(&self.event_type).filter(|event| event.from_operators);
        let rule = "must be `gateway.config.updated`, or `custom.` and 1 to 64 of a-z, 0-9, `.`, `_` and `-`";
        checks.that(known.is_some(), "type", if self.event_type.is_empty() { "is required" } else { rule });
        let payload = self.payload.as_ref().map(Value::to_string);
        checks.that(payload.is_some(), "payload", "is required");
        let mut key = String::new();
        if let (Some(event), Some(payload)) = (known, &payload) {
            match event.check(payload) {
                Ok(checked) => key = checked.key,
                Err(errors) => {
                    for (path, rule) in errors.within("payload") {
                        checks.that(false, &path, rule);
                    }
                }
            }
            match event.given_key(&self.about) {
                Some(given) => key = given,
                None => {
                    let rule = "is for types of your own: what this one is about stands in its payload";
                    checks.that(self.about.is_empty(), "key", rule);
                }
            }
        }
        checks.done()?;
        let id = if self.id.is_empty() { ids.next() } else { self.id.clone() };
        let (event_type, payload_json) = (self.event_type.clone(), payload.unwrap_or_default());
        Ok(CheckedEvent { id, event_type, payload_json, key })
    }
}

impl CheckedEvent {
    fn into_new(self, gateway: &Gateway, caller: &AuthContext) -> NewEvent {
        NewEvent {
            id: log_id(&gateway.id, &self.id),
            gateway_id: gateway.id.clone(),
            event_type: self.event_type,
            payload_json: self.payload_json,
            artifact_id: String::new(),
            deployment_id: String::new(),
            event_key: self.key,
            user_id: caller.user_id().to_owned(),
        }
    }
}

/// The id in the log of an event that an operator named: ids are one space there, and nobody shall take one that
/// belongs to another gateway or to the platform.
fn log_id(gateway_id: &str, event_id: &str) -> String {
    let hash = Sha256::digest(format!("operator\n{gateway_id}\n{event_id}"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
