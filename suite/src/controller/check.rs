//! What the wire contract says of events and artifacts: whether a real gateway would take them.

use proto::time::Timestamp;
use serde_json::Value;
use serde_norway::Value as Yaml;

use super::store::Names;
use crate::transport::Event;

/// The longest correlation id that fits a gateway's database.
const MAX_CORRELATION_ID: usize = 64;
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];

/// The form of a member of a payload.
#[derive(Debug, Clone, Copy)]
enum Form {
    Text,
    /// A time of exactly milliseconds in UTC.
    Performed,
    Time,
    /// JSON in a text: an object with the hash of a key.
    Hashes,
    Bool,
    /// Objects with an `apiKeyUuid` each.
    Mappings,
}

/// The members that must be there, by type; those of other types are not for us to know.
fn members(kind: &str) -> &'static [(&'static str, Form)] {
    use Form::{Bool, Hashes, Mappings, Performed, Text, Time};
    match kind {
        "api.deployed" | "api.undeployed" => {
            &[("apiId", Text), ("deploymentId", Text), ("performedAt", Performed)]
        }
        "api.deleted" => &[("apiId", Text)],
        "apikey.created" => &[
            ("uuid", Text),
            ("apiId", Text),
            ("name", Text),
            ("apiKeyHashes", Hashes),
            ("maskedApiKey", Text),
            ("createdAt", Time),
            ("updatedAt", Time),
        ],
        "apikey.updated" => &[
            ("apiId", Text),
            ("keyName", Text),
            ("apiKeyHashes", Hashes),
            ("maskedApiKey", Text),
            ("updatedAt", Time),
        ],
        "apikey.revoked" => &[("apiId", Text), ("keyName", Text)],
        "application.updated" => &[
            ("applicationId", Text),
            ("applicationUuid", Text),
            ("applicationName", Text),
            ("applicationType", Text),
            ("mappings", Mappings),
        ],
        "subscription.created" | "subscription.updated" => {
            &[("apiId", Text), ("subscriptionId", Text), ("subscriptionToken", Text), ("status", Text)]
        }
        "subscription.deleted" => &[("apiId", Text), ("subscriptionId", Text), ("subscriptionToken", Text)],
        "subscriptionPlan.created" | "subscriptionPlan.updated" => &[
            ("planId", Text),
            ("handle", Text),
            ("planName", Text),
            ("stopOnQuotaReach", Bool),
            ("status", Text),
        ],
        "subscriptionPlan.deleted" => &[("planId", Text), ("handle", Text), ("planName", Text)],
        _ => &[],
    }
}

/// What is wrong with an event.
pub(super) fn event(event: &Event) -> Vec<String> {
    let mut problems = Vec::new();
    let mut wrong = |holds: bool, what: &str| {
        if !holds {
            problems.push(format!("{}: {what}: {event:?}", event.kind));
        }
    };
    wrong((1..=MAX_CORRELATION_ID).contains(&event.correlation_id.len()), "the correlation id's length");
    wrong(Timestamp::parse_rfc3339(&event.timestamp).is_some(), "the timestamp");
    wrong(event.payload.is_object(), "the payload is no object");
    let says_user = event.kind.starts_with("apikey.") || event.kind == "application.updated";
    wrong(says_user || event.user_id.is_none(), "a userId in an event that has none");
    for (name, form) in members(&event.kind) {
        wrong(event.payload.get(*name).is_some_and(|value| form.fits(value)), name);
    }
    problems
}

impl Form {
    fn fits(self, value: &Value) -> bool {
        let text = value.as_str().unwrap_or_default();
        match self {
            Self::Text => !text.is_empty(),
            Self::Performed => is_millisecond(text),
            Self::Time => Timestamp::parse_rfc3339(text).is_some(),
            Self::Hashes => serde_json::from_str::<Value>(text).is_ok_and(|hashes| {
                let hash = hashes.get("sha256").and_then(Value::as_str).unwrap_or_default();
                hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            }),
            Self::Bool => value.is_boolean(),
            Self::Mappings => value
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one.get("apiKeyUuid").is_some_and(Value::is_string))),
        }
    }
}

/// Whether a text is a time in UTC with exactly milliseconds.
pub(super) fn is_millisecond(text: &str) -> bool {
    text.len() == "2026-08-22T10:00:00.123Z".len()
        && text.ends_with('Z')
        && text.get(19..20) == Some(".")
        && Timestamp::parse_rfc3339(text).is_some()
}

/// Milliseconds of a time on the wire.
pub(super) fn time(text: &str) -> Option<i64> {
    Timestamp::parse_rfc3339(text).map(|time| time.unix_ms())
}

/// How many operations an artifact has.
pub fn operations(artifact: &Yaml) -> usize {
    sequence(artifact, "operations").len()
}

fn sequence<'a>(artifact: &'a Yaml, name: &str) -> &'a [Yaml] {
    let found = artifact.get("spec").and_then(|spec| spec.get(name)).and_then(Yaml::as_sequence);
    found.map_or(&[], Vec::as_slice)
}

/// What an artifact is called, if a gateway would take it; else why it would not.
pub(super) fn artifact(artifact: &Yaml) -> Result<Names, String> {
    let spec = artifact.get("spec").cloned().unwrap_or_default();
    let text = |name: &str| spec.get(name).and_then(Yaml::as_str).unwrap_or_default();
    let holds = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{what}: {artifact:?}")) };
    let version = artifact.get("apiVersion").and_then(Yaml::as_str).unwrap_or_default();
    holds(version == "gateway.api-platform.wso2.com/v1", "apiVersion")?;
    holds(artifact.get("kind").and_then(Yaml::as_str) == Some("RestApi"), "kind")?;
    let handle = artifact.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Yaml::as_str);
    let handle = handle.unwrap_or_default();
    holds(!handle.is_empty(), "metadata.name")?;
    let display = text("displayName");
    let is_display = |char: char| char.is_ascii_alphanumeric() || "-_. ".contains(char);
    holds((1..=100).contains(&display.len()) && display.chars().all(is_display), "spec.displayName")?;
    holds(is_version(text("version")), "spec.version")?;
    let context = text("context");
    let is_context = context.starts_with('/') && !context.ends_with('/') && context.len() <= 200;
    holds(is_context, "spec.context")?;
    let main = spec.get("upstream").and_then(|upstream| upstream.get("main")).cloned().unwrap_or_default();
    let url = main.get("url").and_then(Yaml::as_str);
    holds(url.is_some() != main.get("ref").is_some(), "spec.upstream.main has one of url and ref")?;
    holds(url.is_none_or(is_url), "spec.upstream.main.url")?;
    let operations = sequence(artifact, "operations");
    holds(!operations.is_empty(), "spec.operations")?;
    for operation in operations {
        let method = operation.get("method").and_then(Yaml::as_str).unwrap_or_default();
        let path = operation.get("path").and_then(Yaml::as_str).unwrap_or_default();
        holds(METHODS.contains(&method) && path.starts_with('/'), "an operation")?;
    }
    // Which policies a gateway has is its own affair: an artifact without any runs on each.
    holds(sequence(artifact, "policies").is_empty(), "spec.policies")?;
    Ok(Names { handle: handle.to_owned(), display: (display.to_owned(), text("version").to_owned()) })
}

/// `^v?\d+(\.\d+)?(\.\d+)?$`
fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.strip_prefix('v').unwrap_or(text).split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    parts.len() <= 3 && parts.iter().all(is_number)
}

fn is_url(text: &str) -> bool {
    let url: Option<reqwest::Url> = text.parse().ok();
    url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{artifact, event, is_millisecond, is_version};
    use crate::transport::Event;

    fn deployed() -> Event {
        Event {
            kind: "api.deployed".to_owned(),
            payload: json!({"apiId": "a", "deploymentId": "d", "performedAt": "2026-08-22T10:00:00.123Z"}),
            correlation_id: "c".to_owned(),
            timestamp: "2026-08-22T10:00:00Z".to_owned(),
            ..Event::default()
        }
    }

    #[test]
    fn events_that_a_gateway_would_not_take_are_named() {
        assert_eq!(event(&deployed()), Vec::<String>::new());
        let broken: [fn(&mut Event); 6] = [
            |event| event.correlation_id = "x".repeat(65),
            |event| event.timestamp = "now".to_owned(),
            |event| event.user_id = Some("admin".to_owned()),
            |event| event.payload["deploymentId"] = json!(7),
            |event| event.payload["performedAt"] = json!("2026-08-22T10:00:00Z"),
            |event| event.kind = "apikey.created".to_owned(),
        ];
        for (at, break_it) in broken.iter().enumerate() {
            let mut one = deployed();
            break_it(&mut one);
            assert!(!event(&one).is_empty(), "{at}");
        }
    }

    #[test]
    fn times_and_versions_have_their_form() {
        assert!(is_millisecond("2026-08-22T10:00:00.123Z") && !is_millisecond("2026-08-22T10:00:00.12345Z"));
        assert!(!is_millisecond("2026-08-22T10:00+00:00.1"));
        assert!(["1", "v1", "1.0", "v1.2.3"].iter().all(|text| is_version(text)));
        assert!(["", "v", "1.", "1.2.3.4", "1.0-beta"].iter().all(|text| !is_version(text)));
    }

    #[test]
    fn artifacts_that_a_gateway_would_refuse_are_refused() {
        let good = "apiVersion: gateway.api-platform.wso2.com/v1\nkind: RestApi\nmetadata: {name: pets}\n\
            spec:\n  displayName: Pets\n  version: v1.0\n  context: /pets\n  \
            upstream: {main: {url: 'https://x.example'}}\n  operations: [{method: GET, path: /}]\n";
        let read = |text: &str| artifact(&serde_norway::from_str(text).unwrap());
        assert_eq!(read(good).unwrap().handle, "pets");
        for (part, bad) in [
            ("RestApi", "Mcp"),
            ("displayName: Pets", "displayName: 'Pets!'"),
            ("v1.0", "one"),
            ("context: /pets", "context: /pets/"),
            ("https://x.example", "ftp://x.example"),
            ("method: GET", "method: TRACE"),
            ("{name: pets}", "{}"),
        ] {
            assert!(read(&good.replace(part, bad)).is_err(), "{bad}");
        }
    }
}
