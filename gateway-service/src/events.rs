//! The types of events that gateways understand: the one place where a new type is registered.
//!
//! The log, the link and every transport carry events without knowing their types.

/// The largest payload of any type, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024;

/// A type of event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EventType {
    /// The name on the wire.
    pub(crate) name: &'static str,
    /// How gateways acknowledge it; `None`: it is done once a connection has outlived its sending.
    pub(crate) answer: Option<Answer>,
}

/// The `deployment.ack` that answers an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The kind of artifact, in `resourceType`.
    pub(crate) resource: &'static str,
    /// What was done to it.
    pub(crate) action: Action,
}

/// What a gateway does to a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It starts to run it.
    Deploy,
    /// It stops running it.
    Undeploy,
}

impl Action {
    /// The name on the wire.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Undeploy => "undeploy",
        }
    }
}

/// Every type that the platform sends.
const TYPES: &[EventType] = &[
    answered("api.deployed", "api", Action::Deploy),
    answered("api.undeployed", "api", Action::Undeploy),
    unanswered("api.deleted"),
    unanswered("gateway.config.updated"),
];

const fn answered(name: &'static str, resource: &'static str, action: Action) -> EventType {
    EventType { name, answer: Some(Answer { resource, action }) }
}

const fn unanswered(name: &'static str) -> EventType {
    EventType { name, answer: None }
}

/// The type of this name.
pub(crate) fn find(name: &str) -> Option<&'static EventType> {
    TYPES.iter().find(|event| event.name == name)
}

/// The type that an acknowledgement answers. Early gateways leave `resourceType` out: it means `api`.
pub(crate) fn answered_by(resource: &str, action: &str) -> Option<&'static EventType> {
    let resource = if resource.is_empty() { "api" } else { resource };
    TYPES.iter().find(|event| {
        event
            .answer
            .as_ref()
            .is_some_and(|answer| answer.resource == resource && answer.action.name() == action)
    })
}

#[cfg(test)]
mod tests {
    use super::{TYPES, answered_by, find};

    #[test]
    fn every_answer_leads_back_to_one_type() {
        for event in TYPES {
            assert_eq!(find(event.name), Some(event));
            if let Some(answer) = &event.answer {
                assert_eq!(answered_by(answer.resource, answer.action.name()), Some(event));
            }
        }
        assert_eq!(answered_by("", "undeploy").unwrap().name, "api.undeployed");
        assert!(find("api.renamed").is_none() && answered_by("llmproxy", "deploy").is_none());
    }
}
