//! The types of events that gateways understand: the one place where a new type is registered.
//!
//! The log, the link and every transport carry events without knowing their types.
//!
//! # To add a type
//!
//! Add an entry to [`TYPES`] in this file, and an example of its payload to the test below. An entry says
//!
//! - `name`: what stands in `type` on the wire;
//! - `payload`: the fields, each [`required`] or [`optional`] with its rule. Other fields are let through;
//! - `max_bytes`: how long the payload may be as JSON;
//! - `key`: what it is about. Events of one key reach a gateway in the order in which they were appended;
//! - `coalesce`: which older events of its key nobody needs any more once it is in the log;
//! - `effect`: what a gateway has of it once it is done;
//! - `answer`: which `deployment.ack` answers it on links that know nothing better. Without one it is done once a
//!   gateway has proven that it read it;
//! - `from_operators`: whether operators may send it, besides the platform;
//! - `says_user`: whether gateways are told who caused it.
//!
//! Nothing else changes: no other file of the service names a type.

mod payload;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

pub(crate) use self::payload::FieldErrors;
use self::payload::{
    Field,
    Rule::{Count, Flag, Id, JsonText, List, Text, Time},
    optional, required,
};

/// The largest payload of any type, in bytes: with its envelope an event has at most 1 MiB.
pub(crate) const MAX_PAYLOAD: usize = 1024 * 1024 - ENVELOPE;

/// The room for what is around a payload: type, times and ids.
const ENVELOPE: usize = 1024;

/// The largest payload of a type that only refers to something.
const SMALL: usize = 64 * 1024;

/// What names of operators' own types begin with.
const CUSTOM_PREFIX: &str = "custom.";

/// A pattern of SQL's `LIKE` for names of operators' own types.
pub(crate) const CUSTOM_NAMES: &str = "custom.%";

/// A type of event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EventType {
    /// The name on the wire.
    pub(crate) name: &'static str,
    /// What the payload must hold.
    payload: &'static [Field],
    /// How long the payload may be.
    max_bytes: usize,
    /// What it is about.
    key: Key,
    /// Which older events of its key it makes needless.
    pub(crate) coalesce: Coalesce,
    /// What a gateway has once it is done.
    pub(crate) effect: Effect,
    /// How gateways acknowledge it; `None`: it is done once a gateway has proven that it read it.
    pub(crate) answer: Option<Answer>,
    /// Whether operators may send it.
    pub(crate) from_operators: bool,
    /// Whether gateways are told who caused it.
    pub(crate) says_user: bool,
}

/// What an event is about: events of one key are performed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// The prefix, then the values of these fields (which the type requires), with colons between.
    Of(&'static str, &'static [&'static str]),
    /// What the sender says it is about, after this prefix; nothing by itself.
    Given(&'static str),
}

/// Which older events of the same key, not acknowledged yet, an event makes needless. Events without a key
/// make none needless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coalesce {
    /// All of them: it says all that counts. A removal of what a gateway was never told of as well: by now nobody
    /// could fetch that.
    Newest,
    /// Those of its own type only: it changes what another type has made.
    SameType,
}

/// What an event that is done means for what a gateway has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its deployment runs.
    Runs,
    /// Its artifact does not run any more.
    Stops,
    /// Its artifact is gone.
    Forgets,
    /// What it is about is gone, and that is nothing that runs.
    Removes,
    /// What it is about is there, and that is nothing that runs.
    Keeps,
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

impl Effect {
    /// What an event of this type means.
    pub(crate) fn of(event_type: &str) -> Self {
        find(event_type).map_or(Self::Keeps, |known| known.effect)
    }

    /// Whether it takes something away: who begins with nothing need not hear of it.
    pub(crate) fn takes_away(self) -> bool {
        match self {
            Self::Stops | Self::Forgets | Self::Removes => true,
            Self::Runs | Self::Keeps => false,
        }
    }
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

/// A payload that fits its type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// What the event is about; empty for an event that stands alone.
    pub(crate) key: String,
    /// The payload as it is stored: without white space around it, and without `performedAt`, which every sending
    /// sets anew.
    pub(crate) payload_json: String,
}

/// What most types are: from the platform, about one thing, said once.
const BASE: EventType = EventType {
    name: "",
    payload: &[],
    max_bytes: SMALL,
    key: Key::Given(""),
    coalesce: Coalesce::Newest,
    effect: Effect::Keeps,
    answer: None,
    from_operators: false,
    says_user: false,
};

/// A type with an answer, about an artifact.
const fn deployment(
    name: &'static str,
    payload: &'static [Field],
    key: &'static [&'static str],
    answer: Answer,
) -> EventType {
    let effect = match answer.action {
        Action::Deploy => Effect::Runs,
        Action::Undeploy => Effect::Stops,
    };
    EventType { name, payload, key: Key::Of("", key), effect, answer: Some(answer), ..BASE }
}

/// A gateway is to run an API.
pub(crate) const API_DEPLOYED: &str = "api.deployed";
/// A gateway is to stop it, and to keep it.
const API_UNDEPLOYED: &str = "api.undeployed";
/// A gateway is to forget it.
pub(crate) const API_DELETED: &str = "api.deleted";
/// The types that say what a gateway is to run.
pub(crate) const API_TYPES: [&str; 3] = [API_DEPLOYED, API_UNDEPLOYED, API_DELETED];

const API_DEPLOYMENT: &[Field] = &[required("apiId", Id), required("deploymentId", Id)];
const SUBSCRIPTION: &[Field] = &[
    required("apiId", Id),
    required("subscriptionId", Id),
    optional("applicationId", Id),
    required("subscriptionToken", Text),
    optional("subscriptionPlanId", Id),
    required("status", Text),
];
const SUBSCRIPTION_KEY: Key = Key::Of("subscription:", &["subscriptionId"]);
const PLAN: &[Field] = &[
    required("planId", Id),
    required("handle", Text),
    required("planName", Text),
    optional("billingPlan", Text),
    required("stopOnQuotaReach", Flag),
    optional("throttleLimitCount", Count),
    optional("throttleLimitUnit", Text),
    optional("expiryTime", Time),
    required("status", Text),
];
const PLAN_KEY: Key = Key::Of("subscriptionPlan:", &["planId"]);

/// Every type that the platform sends.
const TYPES: &[EventType] = &[
    deployment(API_DEPLOYED, API_DEPLOYMENT, &["apiId"], Answer { resource: "api", action: Action::Deploy }),
    deployment(
        API_UNDEPLOYED,
        API_DEPLOYMENT,
        &["apiId"],
        Answer { resource: "api", action: Action::Undeploy },
    ),
    EventType {
        name: API_DELETED,
        payload: &[required("apiId", Id)],
        key: Key::Of("", &["apiId"]),
        effect: Effect::Forgets,
        ..BASE
    },
    EventType {
        name: "apikey.created",
        payload: &[
            required("uuid", Id),
            required("apiId", Id),
            required("name", Text),
            required("apiKeyHashes", JsonText),
            required("maskedApiKey", Text),
            optional("externalRefId", Text),
            optional("expiresAt", Time),
            optional("issuer", Text),
            required("createdAt", Time),
            required("updatedAt", Time),
        ],
        key: Key::Of("apikey:", &["apiId", "name"]),
        // A gateway may still hold an older key of this name: its revocation comes first.
        coalesce: Coalesce::SameType,
        says_user: true,
        ..BASE
    },
    EventType {
        name: "apikey.updated",
        payload: &[
            required("apiId", Id),
            required("keyName", Text),
            optional("externalRefId", Text),
            required("apiKeyHashes", JsonText),
            required("maskedApiKey", Text),
            optional("expiresAt", Time),
            optional("issuer", Text),
            required("updatedAt", Time),
        ],
        key: Key::Of("apikey:", &["apiId", "keyName"]),
        coalesce: Coalesce::SameType,
        says_user: true,
        ..BASE
    },
    EventType {
        name: "apikey.revoked",
        payload: &[required("apiId", Id), required("keyName", Text)],
        key: Key::Of("apikey:", &["apiId", "keyName"]),
        effect: Effect::Removes,
        says_user: true,
        ..BASE
    },
    EventType {
        name: "subscription.created",
        payload: SUBSCRIPTION,
        key: SUBSCRIPTION_KEY,
        coalesce: Coalesce::SameType,
        ..BASE
    },
    EventType {
        name: "subscription.updated",
        payload: SUBSCRIPTION,
        key: SUBSCRIPTION_KEY,
        coalesce: Coalesce::SameType,
        ..BASE
    },
    EventType {
        name: "subscription.deleted",
        payload: &[
            required("apiId", Id),
            required("subscriptionId", Id),
            optional("applicationId", Id),
            required("subscriptionToken", Text),
        ],
        key: SUBSCRIPTION_KEY,
        effect: Effect::Removes,
        ..BASE
    },
    EventType {
        name: "subscriptionPlan.created",
        payload: PLAN,
        key: PLAN_KEY,
        coalesce: Coalesce::SameType,
        ..BASE
    },
    EventType {
        name: "subscriptionPlan.updated",
        payload: PLAN,
        key: PLAN_KEY,
        coalesce: Coalesce::SameType,
        ..BASE
    },
    EventType {
        name: "subscriptionPlan.deleted",
        payload: &[required("planId", Id), required("handle", Text), required("planName", Text)],
        key: PLAN_KEY,
        effect: Effect::Removes,
        ..BASE
    },
    EventType {
        name: "application.updated",
        payload: &[
            required("applicationId", Id),
            required("applicationUuid", Id),
            required("applicationName", Text),
            required("applicationType", Text),
            required("mappings", List(&[required("apiKeyUuid", Id)])),
        ],
        max_bytes: MAX_PAYLOAD,
        key: Key::Of("application:", &["applicationUuid"]),
        says_user: true,
        ..BASE
    },
    EventType {
        name: "gateway.config.updated",
        payload: &[required("configType", Id), required("action", Text)],
        max_bytes: MAX_PAYLOAD,
        key: Key::Of("gateway.config:", &["configType"]),
        from_operators: true,
        ..BASE
    },
];

/// The types that operators define: `custom.` and a name of their own. Gateways that do not know it ignore it.
const CUSTOM: &EventType = &EventType {
    name: "custom.*",
    max_bytes: MAX_PAYLOAD,
    key: Key::Given("custom:"),
    from_operators: true,
    says_user: true,
    ..BASE
};

/// The type of this name.
pub(crate) fn find(name: &str) -> Option<&'static EventType> {
    match name.strip_prefix(CUSTOM_PREFIX) {
        Some(own) => is_own_name(own).then_some(CUSTOM),
        None => TYPES.iter().find(|event| event.name == name),
    }
}

/// The names of the types that gateways answer.
pub(crate) fn answered_names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().filter(|event| event.answer.is_some()).map(|event| event.name)
}

/// The names of the types that ask gateways to do this to a deployment.
pub(crate) fn names_of(action: Action) -> impl Iterator<Item = &'static str> {
    let asks = move |event: &&EventType| event.answer.as_ref().is_some_and(|answer| answer.action == action);
    TYPES.iter().filter(asks).map(|event| event.name)
}

/// The names of the platform's types that operators may send too.
pub(crate) fn operator_names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().filter(|event| event.from_operators).map(|event| event.name)
}

fn is_own_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
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

/// Whether an event of one type makes an older one of another needless that has the same key and that no gateway has
/// acknowledged.
pub(crate) fn makes_needless(newer: &str, older: &str) -> bool {
    match find(newer).map(|event| event.coalesce) {
        Some(Coalesce::Newest) => true,
        Some(Coalesce::SameType) => newer == older,
        None => false,
    }
}

/// The types with one of these effects.
pub(crate) fn with_effect(effects: &[Effect]) -> impl Iterator<Item = &'static str> {
    TYPES.iter().filter(|event| effects.contains(&event.effect)).map(|event| event.name)
}

/// The kinds of artifacts that acknowledgements name, each once.
pub(crate) fn resources() -> BTreeSet<&'static str> {
    TYPES.iter().filter_map(|event| event.answer.as_ref()).map(|answer| answer.resource).collect()
}

/// The types that only make older events of their own type needless.
pub(crate) fn of_same_type() -> impl Iterator<Item = &'static str> {
    TYPES.iter().filter(|event| event.coalesce == Coalesce::SameType).map(|event| event.name)
}

impl EventType {
    /// Checks a payload, and reads from it what the event is about.
    pub(crate) fn check(&self, payload_json: &str) -> Result<Checked, FieldErrors> {
        if payload_json.len() > self.max_bytes {
            return Err(FieldErrors::whole(format!("must have at most {} bytes", self.max_bytes)));
        }
        let mut object: Map<String, Value> =
            serde_json::from_str(payload_json).map_err(|_| FieldErrors::whole("must be a JSON object"))?;
        let mut errors = FieldErrors::default();
        payload::check(self.payload, &object, "", &mut errors);
        if !errors.0.is_empty() {
            return Err(errors);
        }
        let key = self.key_of(&object);
        let payload_json = match object.remove("performedAt") {
            None => payload_json.trim().to_owned(),
            Some(_) => Value::Object(object).to_string(),
        };
        Ok(Checked { key, payload_json })
    }

    /// The key of an event about what its sender says; `None` for types whose payload says it.
    pub(crate) fn given_key(&self, about: &str) -> Option<String> {
        match self.key {
            Key::Given(_) if about.is_empty() => Some(String::new()),
            Key::Given(prefix) => Some(format!("{prefix}{about}")),
            Key::Of(..) => None,
        }
    }

    fn key_of(&self, object: &Map<String, Value>) -> String {
        let Key::Of(prefix, fields) = self.key else { return String::new() };
        let values: Vec<&str> =
            fields.iter().filter_map(|field| object.get(*field).and_then(Value::as_str)).collect();
        format!("{prefix}{}", values.join(":"))
    }
}

#[cfg(test)]
mod tests;
