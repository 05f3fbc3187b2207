//! What a controller does with an event, while the events behind it wait.

use super::{
    Held, Names,
    check::{self, operations},
    serve::{Run, Session, is_network},
    state::Noted,
    store::Written,
};
use crate::{
    gateway::GatewayClient,
    transport::{Answer, Event},
};

/// The gateway could not do it.
pub(super) const PROCESSING_ERROR: &str = "GATEWAY_PROCESSING_ERROR";
/// Another deployment is there than the one to be removed.
const MISMATCH: &str = "DEPLOYMENT_ID_MISMATCH";

/// What came of fetching an artifact.
pub(super) enum Fetched {
    /// A gateway can run it.
    Runs(Names, usize),
    /// A gateway cannot have it: this is the fault, or the platform's own trouble.
    Not,
}

impl Run {
    /// Performs an event and answers it. Fails when the link is of no use any more.
    pub(super) async fn perform(&self, session: &mut Session, event: Event) -> anyhow::Result<()> {
        let problems = check::event(&event);
        let deployment = matches!(event.kind.as_str(), "api.deployed" | "api.undeployed");
        let at = check::time(event.text("performedAt")).filter(|_| deployment);
        // Who keeps its revision goes by that.
        let newest = at.filter(|_| self.options.resumes_as.is_none());
        self.note(|state| {
            state.arrived(&event, newest);
            state.faults.extend(problems);
        });
        if self.options.resumes_as.is_some() {
            return self.follow(session, event).await;
        }
        match (event.kind.as_str(), at) {
            ("api.deployed", Some(at)) => self.deploy(session, &event, at).await,
            ("api.undeployed", Some(at)) => self.undeploy(session, &event, at).await,
            ("api.deployed" | "api.undeployed", None) => Ok(()),
            _ => {
                self.apply(&event);
                Ok(())
            }
        }
    }

    /// Takes note of an event that nobody acknowledges.
    pub(super) fn apply(&self, event: &Event) {
        if event.kind == "api.deleted" {
            self.options.store.change(|tables| drop(tables.held.remove(event.text("apiId"))));
            return self.note(|state| state.performed(event));
        }
        let key = event.payload.get("uuid").and_then(serde_json::Value::as_str);
        if let ("apikey.created", Some(key)) = (event.kind.as_str(), key) {
            let name = event.text("name").to_owned();
            self.options.store.change(|tables| drop(tables.keys.insert(key.to_owned(), name)));
        }
        let noted = Noted { kind: event.kind.clone(), payload: event.payload.clone() };
        self.note(|state| state.noted.push(noted));
    }

    async fn deploy(&self, session: &mut Session, event: &Event, at: i64) -> anyhow::Result<()> {
        let api = event.text("apiId");
        if self.options.store.performed_at(api).is_some_and(|known| known >= at) {
            self.note(|state| state.stale += 1);
            return Ok(());
        }
        let Fetched::Runs(names, operations) = self.fetch(&session.gateway, api).await? else {
            let answer = Answer::Deployment(event.answer("deploy", Some(PROCESSING_ERROR)));
            return session.link.send(answer).await;
        };
        let deployment_id = event.text("deploymentId").to_owned();
        let held = Held { deployment_id, performed_at_ms: at, deployed: true, operations, names };
        self.write(session, event, held, "deploy").await
    }

    async fn undeploy(&self, session: &mut Session, event: &Event, at: i64) -> anyhow::Result<()> {
        let deployment_id = event.text("deploymentId").to_owned();
        let names = Names::default();
        let held = Held { deployment_id, performed_at_ms: at, deployed: false, operations: 0, names };
        self.write(session, event, held, "undeploy").await
    }

    async fn write(
        &self,
        session: &mut Session,
        event: &Event,
        held: Held,
        action: &str,
    ) -> anyhow::Result<()> {
        let error = match self.options.store.perform(event.text("apiId"), held, &event.correlation_id) {
            Written::Yes => {
                self.note(|state| state.performed(event));
                None
            }
            Written::Stale => {
                self.note(|state| state.stale += 1);
                return Ok(());
            }
            Written::Repeated => {
                self.fault(format!("the correlation id {} was written before", event.correlation_id));
                return Ok(());
            }
            Written::Mismatch => {
                self.note(|state| state.mismatches += 1);
                Some(MISMATCH)
            }
        };
        session.link.send(Answer::Deployment(event.answer(action, error))).await
    }

    /// Fetches an artifact and judges it as a gateway does. Fails when there was no answer: the link is gone then
    /// too, and the event comes again.
    pub(super) async fn fetch(&self, gateway: &GatewayClient, api: &str) -> anyhow::Result<Fetched> {
        let artifact = match gateway.fetch_api(api).await {
            Ok(artifact) => artifact,
            Err(error) if is_network(&error) => return Err(error),
            Err(error) => {
                self.unfetched("fetch", &error);
                return Ok(Fetched::Not);
            }
        };
        Ok(self.judge(api, &artifact))
    }

    /// Whether a gateway would take an artifact.
    pub(super) fn judge(&self, api: &str, artifact: &serde_norway::Value) -> Fetched {
        let names = match check::artifact(artifact) {
            Ok(names) => names,
            Err(problem) => {
                self.fault(format!("the artifact of {api}: {problem}"));
                return Fetched::Not;
            }
        };
        if let Some(other) = self.options.store.namesake(api, &names) {
            self.fault(format!("{api} is called like {other}, which runs: {names:?}"));
            return Fetched::Not;
        }
        Fetched::Runs(names, operations(artifact))
    }

    /// Takes note that an artifact could not be had: the platform's trouble, or its fault.
    pub(super) fn unfetched(&self, what: &str, error: &anyhow::Error) {
        // What was to be removed before it was fetched is not there any more: the event that says so follows.
        let trouble = super::serve::status(error).is_some_and(|status| status >= 500 || status == 404);
        self.note(|state| {
            state.failed += 1;
            if !trouble {
                state.faults.push(format!("{what}: {error:#}"));
            }
        });
    }
}
