//! A gateway that keeps its revision: events are followed in order, snapshots replace everything.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use proto::gateway::EventAck;

use super::{
    Held, Names, check,
    perform::{Fetched, PROCESSING_ERROR},
    serve::{Run, Session},
};
use crate::transport::{Answer, Event, Part};

/// The parts of a snapshot that have come.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    of: Option<(u64, String)>,
    events: Vec<Event>,
}

fn ack(revision: u64, nonce: &str, error: Option<&str>) -> Answer {
    Answer::Event(EventAck {
        revision,
        nonce: nonce.to_owned(),
        error_code: error.unwrap_or_default().to_owned(),
        error_message: String::new(),
    })
}

impl Run {
    /// Performs an event of the log, once.
    pub(super) async fn follow(&self, session: &mut Session, event: Event) -> anyhow::Result<()> {
        let applied = self.options.store.applied_revision();
        self.note(|state| state.revision(event.revision, applied));
        if event.revision <= applied {
            // It comes again when its acknowledgement was lost.
            self.note(|state| state.stale += 1);
            return session.link.send(ack(event.revision, &event.correlation_id, None)).await;
        }
        let done = self.run(&session.gateway, &event).await?;
        // What was refused is not applied; what comes after it may be.
        self.options.store.change(|tables| tables.applied_revision = event.revision);
        let error = (!done).then_some(PROCESSING_ERROR);
        session.link.send(ack(event.revision, &event.correlation_id, error)).await
    }

    /// Takes a part of a snapshot; with the last one all of it is applied.
    pub(super) async fn take(&self, session: &mut Session, part: Part) -> anyhow::Result<()> {
        if part.events.len() > 100 {
            self.fault(format!("a part of a snapshot with {} events", part.events.len()));
        }
        let of = (part.revision, part.nonce);
        if session.snapshot.of.as_ref() != Some(&of) {
            session.snapshot = Snapshot { of: Some(of.clone()), events: Vec::new() };
        }
        for event in &part.events {
            let problems = check::event(event);
            self.note(|state| {
                state.arrived(event, None);
                state.faults.extend(problems);
            });
        }
        session.snapshot.events.extend(part.events);
        if !part.last {
            return Ok(());
        }
        let events = std::mem::take(&mut session.snapshot).events;
        if of.0 < self.options.store.applied_revision() {
            self.fault(format!(
                "a snapshot of revision {} after {}",
                of.0,
                self.options.store.applied_revision()
            ));
        }
        self.replace(session, &of, &events).await
    }

    /// Applies a whole snapshot: what is in it runs, what is not does not.
    async fn replace(
        &self,
        session: &mut Session,
        (revision, nonce): &(u64, String),
        events: &[Event],
    ) -> anyhow::Result<()> {
        let mut refused = Vec::new();
        for event in events {
            if event.kind != "api.deployed" {
                self.fault(format!("{} in a snapshot", event.kind));
            } else if !self.run(&session.gateway, event).await? {
                refused.push(event);
            }
        }
        let wanted: BTreeSet<&str> = events.iter().map(|event| event.text("apiId")).collect();
        self.options.store.change(|tables| {
            tables.held.retain(|api, _| wanted.contains(api.as_str()));
            tables.applied_revision = *revision;
        });
        for event in refused {
            session.link.send(ack(event.revision, &event.correlation_id, Some(PROCESSING_ERROR))).await?;
        }
        self.note(|state| {
            state.snapshots += 1;
            state.floor = *revision;
        });
        session.link.send(ack(*revision, nonce, None)).await
    }

    /// Does what an event says; says whether it could.
    async fn run(&self, gateway: &crate::gateway::GatewayClient, event: &Event) -> anyhow::Result<bool> {
        let api = event.text("apiId").to_owned();
        let deployed = match event.kind.as_str() {
            "api.deployed" => true,
            "api.undeployed" => false,
            _ => {
                self.apply(event);
                return Ok(true);
            }
        };
        let performed_at_ms = check::time(event.text("performedAt")).context("performedAt")?;
        let deployment_id = event.text("deploymentId").to_owned();
        let (names, operations) = if deployed {
            match self.fetch(gateway, &api).await? {
                Fetched::Runs(names, operations) => (names, operations),
                Fetched::Not => return Ok(false),
            }
        } else {
            (Names::default(), 0)
        };
        let held = Held { deployment_id, performed_at_ms, deployed, operations, names };
        let entry = BTreeMap::from([(api, held)]);
        self.options.store.change(|tables| tables.held.extend(entry));
        self.note(|state| state.performed(event));
        Ok(true)
    }
}
