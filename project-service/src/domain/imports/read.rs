//! An artifact of a gateway as an API: the reverse of [`artifact`]. What neither the API nor [`Kept`] has a place for
//! is refused by name, never dropped.

use std::collections::BTreeMap;

use proto::project::{Api, BackendService, Endpoint, Operation, OperationRequest};
use serde::Deserialize;
use serde_json::{Map, Value};
use service_kit::{Error, Result, error::FieldViolation, field::Checks, id::is_id};

use crate::domain::{
    apis,
    artifact::{self, DEFAULT_VHOST, Kept, PROJECT_ANNOTATION},
    deployments::is_host,
};

/// Where the project is named.
pub(super) const PROJECT: &str =
    "configuration.metadata.annotations[gateway.api-platform.wso2.com/project-id]";

/// The label in which older gateways name the project.
const PROJECT_LABEL: &str = "project-id";

/// The prefix of every version of the format.
const FORMAT: &str = "gateway.api-platform.wso2.com/v1";

/// What the gateway fills into a context.
const VERSION: &str = "$version";

/// An artifact that was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) api: Api,
    pub(super) project_id: String,
    /// Empty for the gateway's default.
    pub(super) vhost: String,
    pub(super) kept: Kept,
}

/// An artifact, as gateways write it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    display_name: String,
    version: String,
    context: String,
    vhosts: Option<Vhosts>,
    upstream: Upstreams,
    policies: Option<Vec<Map<String, Value>>>,
    operations: Vec<GatewayOperation>,
    subscription_plans: Option<Vec<String>>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Vhosts {
    main: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Upstreams {
    main: Upstream,
    sandbox: Option<Value>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Upstream {
    url: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GatewayOperation {
    method: String,
    path: String,
    policies: Option<Vec<Map<String, Value>>>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// Reads an artifact. INVALID_ARGUMENT names every field that stands in the way.
pub(super) fn read(configuration: &str) -> Result<Read> {
    let Document { api_version, metadata, spec } = document(configuration)?;
    let named = |names: Option<BTreeMap<String, String>>, name: &str| names?.remove(name);
    let project = named(metadata.annotations, PROJECT_ANNOTATION)
        .or_else(|| named(metadata.labels, PROJECT_LABEL))
        .unwrap_or_default();
    let mut checks = Checks::new();
    checks
        .that(api_version.starts_with(FORMAT), "configuration.apiVersion", "must be a version of the format")
        .length("configuration.metadata.name", &metadata.name, 1, 253)
        .that(is_handle(&metadata.name), "configuration.metadata.name", "must not hold spaces, `/` or `}`")
        .that(!project.is_empty(), PROJECT, "is required");
    if !project.is_empty() {
        checks.that(is_id(&project), PROJECT, "must be the id of a project of the gateway's organization");
    }
    let vhost = match spec.vhosts.as_ref().map(|hosts| hosts.main.as_str()) {
        None | Some(DEFAULT_VHOST) => String::new(),
        Some(host) => host.to_owned(),
    };
    checks
        .that(vhost.is_empty() || is_host(&vhost), "configuration.spec.vhosts.main", "must be a host name")
        .that(is_display_name(&spec.display_name), "configuration.spec.displayName", DISPLAY_NAME);
    unknown(&mut checks, &spec);
    let mut api = api_of(&spec);
    if let Err(error) = apis::accept(&mut api) {
        note(&mut checks, error.violations());
    } else {
        note(&mut checks, &artifact::violations(&api));
    }
    checks.done()?;
    Ok(Read { api, project_id: project, vhost, kept: kept(metadata.name, spec) })
}

fn document(text: &str) -> Result<Document> {
    #[derive(Deserialize)]
    struct Kind {
        kind: Option<String>,
    }
    let broken = |path: String, error: serde_json::Error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        let field = if path == "." { "configuration".to_owned() } else { format!("configuration.{path}") };
        Error::field(field, format!("cannot be read: {message}"))
    };
    // Other kinds look otherwise: that is said first.
    let kind: Kind = serde_json::from_str(text).map_err(|error| broken(".".to_owned(), error))?;
    if kind.kind.as_deref() != Some("RestApi") {
        return Err(Error::field("configuration.kind", "must be RestApi: the platform has no other kind"));
    }
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
        .map_err(|error| broken(error.path().to_string(), error.into_inner()))
}

const DISPLAY_NAME: &str = "must have 1 to 100 of letters, digits, `-`, `_`, `.` and spaces";

fn is_display_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    (1..=100).contains(&name.len()) && name.chars().all(fits)
}

fn is_handle(name: &str) -> bool {
    !name.chars().any(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | '}'))
}

/// What would be lost.
fn unknown(checks: &mut Checks, spec: &Spec) {
    let mut more = |place: &str, members: &Map<String, Value>| {
        for (name, value) in members {
            let says_nothing = match value {
                Value::Null => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(members) => members.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            // Whether it runs is said beside the configuration.
            if !says_nothing && name != "deploymentState" {
                let field = format!("{place}.{}", name.chars().take(64).collect::<String>());
                checks.that(false, &field, "is something that the platform cannot keep");
            }
        }
    };
    more("configuration.spec", &spec.more);
    if let Some(hosts) = &spec.vhosts {
        more("configuration.spec.vhosts", &hosts.more);
    }
    more("configuration.spec.upstream", &spec.upstream.more);
    more("configuration.spec.upstream.main", &spec.upstream.main.more);
    for (i, operation) in spec.operations.iter().enumerate() {
        more(&format!("configuration.spec.operations[{i}]"), &operation.more);
    }
}

fn api_of(spec: &Spec) -> Api {
    let operation = |operation: &GatewayOperation| Operation {
        request: Some(OperationRequest {
            method: operation.method.clone(),
            path: operation.path.clone(),
            ..OperationRequest::default()
        }),
        ..Operation::default()
    };
    Api {
        name: spec.display_name.clone(),
        version: spec.version.clone(),
        context: spec.context.replace(VERSION, &spec.version),
        backend_services: vec![BackendService {
            name: "default".to_owned(),
            is_default: true,
            endpoints: vec![Endpoint { url: spec.upstream.main.url.clone(), ..Endpoint::default() }],
            ..BackendService::default()
        }],
        operations: spec.operations.iter().map(operation).collect(),
        ..Api::default()
    }
}

/// Notes broken rules of the API where the artifact has the field.
fn note(checks: &mut Checks, violations: &[FieldViolation]) {
    for violation in violations {
        let field = violation.field.as_str();
        let place = match field {
            "name" | "displayName" => "displayName".to_owned(),
            _ if field.starts_with("backend-services") => "upstream.main.url".to_owned(),
            _ => field.replace("].request.", "]."),
        };
        checks.that(false, &format!("configuration.spec.{place}"), &violation.message);
    }
}

fn kept(handle: String, spec: Spec) -> Kept {
    let values = |policies: Option<Vec<Map<String, Value>>>| -> Vec<Value> {
        policies.unwrap_or_default().into_iter().map(Value::Object).collect()
    };
    let operation = |operation: GatewayOperation| {
        let policies = values(operation.policies);
        (!policies.is_empty()).then(|| (format!("{} {}", operation.method, operation.path), policies))
    };
    Kept {
        handle,
        policies: values(spec.policies),
        operations: spec.operations.into_iter().filter_map(operation).collect(),
        subscription_plans: spec.subscription_plans.unwrap_or_default(),
        sandbox: spec.upstream.sandbox,
    }
}

#[cfg(test)]
mod tests;
