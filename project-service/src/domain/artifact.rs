//! The artifact that a gateway runs: an API at a revision as a `RestApi` YAML document, and the rules by
//! which gateways accept one. What breaks them is refused before anything is deployed.

use proto::project::{Api, BackendService};
use serde::{Deserialize, Serialize};
use service_kit::{Error, Kind, Result, error::FieldViolation};
use url::Url;

const API_VERSION: &str = "gateway.api-platform.wso2.com/v1";
/// The annotation that names the project.
pub(super) const PROJECT_ANNOTATION: &str = "gateway.api-platform.wso2.com/project-id";
/// How artifacts name the gateway's default host.
pub(super) const DEFAULT_VHOST: &str = "_gateway_default_";
/// The first segment of the paths on which gateways answer probes of themselves.
const RESERVED: &str = "_gateway-health";
const RESERVED_RULE: &str = "must not lie below /_gateway-health, where gateways answer probes of themselves";
/// How many broken rules are told at most: they travel in a header of limited size.
pub(super) const MOST: usize = 32;
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];

/// An artifact, as gateways read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Artifact {
    /// The version of the format.
    pub api_version: String,
    /// Always `RestApi`.
    pub kind: String,
    /// Whose it is.
    pub metadata: Metadata,
    /// What it does.
    pub spec: Spec,
}

/// Whose an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The handle, unique on a gateway: it ends with a part of the API's id.
    pub name: String,
    /// The project.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The project.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// What an artifact does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The name to show: 1 to 100 of letters, digits, `-`, `_`, `.` and spaces.
    pub display_name: String,
    /// One to three numbers with dots, perhaps behind a `v`.
    pub version: String,
    /// The base path.
    pub context: String,
    /// The hosts that it is served on.
    pub vhosts: Vhosts,
    /// Where calls go.
    pub upstream: Upstreams,
    /// What is done to every call.
    pub policies: Vec<serde_json::Value>,
    /// What can be called, in the order of the API.
    pub operations: Vec<ArtifactOperation>,
    /// The plans of subscriptions.
    pub subscription_plans: Vec<String>,
}

/// The hosts that an artifact is served on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vhosts {
    /// The host for production, or `_gateway_default_`.
    pub main: String,
}

/// Where calls go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstreams {
    /// For production.
    pub main: UpstreamUrl,
    /// For trying things out, as the gateway had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<serde_json::Value>,
}

/// One place where calls go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamUrl {
    /// Absolute, http or https.
    pub url: String,
}

/// Something that can be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactOperation {
    /// The HTTP method.
    pub method: String,
    /// The path below the context.
    pub path: String,
    /// What is done to calls of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<serde_json::Value>,
}

/// What an artifact that came from a gateway says and an API has no place for: it goes back into every artifact of
/// the API, or else what a gateway protects would one day stand open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The handle, by which the gateway knows the API again.
    pub handle: String,
    /// What is done to every call.
    pub policies: Vec<serde_json::Value>,
    /// What is done to calls of one operation, by method and path: `GET /pets`.
    pub operations: std::collections::BTreeMap<String, Vec<serde_json::Value>>,
    /// The plans of subscriptions.
    pub subscription_plans: Vec<String>,
    /// Where calls go for trying things out.
    pub sandbox: Option<serde_json::Value>,
}

/// The YAML of an API for one deployment. `api_id` and `project_id` are those of the working copy;
/// `vhost` is empty for the gateway's default, `kept` what came with the API if it was imported from a gateway.
/// FAILED_PRECONDITION as in [`check`].
pub fn yaml(api: &Api, api_id: &str, project_id: &str, vhost: &str, kept: Option<&Kept>) -> Result<String> {
    let artifact = build(api, api_id, project_id, vhost, &kept.cloned().unwrap_or_default())?;
    serde_norway::to_string(&artifact).map_err(Error::internal)
}

/// Whether gateways accept an API. FAILED_PRECONDITION `NOT_DEPLOYABLE` names every field that they do not.
pub fn check(api: &Api) -> Result<()> {
    let broken = violations(api);
    let Some(first) = broken.first() else { return Ok(()) };
    let sentence = format!("the API cannot be deployed: {} {}", first.field, first.message);
    let error = Error::new(Kind::FailedPrecondition, "NOT_DEPLOYABLE", sentence);
    Err(broken.into_iter().take(MOST).fold(error, |error, one| error.naming(one.field, one.message)))
}

/// The fields of an API that gateways do not accept.
pub(super) fn violations(api: &Api) -> Vec<FieldViolation> {
    let mut broken = Vec::new();
    let mut rule = |holds: bool, field: String, message: &str| {
        if !holds {
            broken.push(FieldViolation { field, message: message.to_owned() });
        }
    };
    rule(
        gateway_version(&api.version).is_some(),
        "version".to_owned(),
        "must be one to three numbers with dots, such as v1 or 1.0.2, for a gateway to take it",
    );
    let context = api.context.as_str();
    rule(context.chars().count() <= 200, "context".to_owned(), "must have at most 200 characters");
    rule(
        context == "/" || (context.starts_with('/') && !context.ends_with('/')),
        "context".to_owned(),
        "must start with a slash and not end with one",
    );
    rule(!is_reserved(context), "context".to_owned(), RESERVED_RULE);
    rule(!api.operations.is_empty(), "operations".to_owned(), "must have at least one entry");
    for (i, operation) in api.operations.iter().enumerate() {
        let request = operation.request.clone().unwrap_or_default();
        let at = |field: &str| format!("operations[{i}].request.{field}");
        rule(METHODS.contains(&request.method.as_str()), at("method"), "must be a method that gateways know");
        rule(request.path.starts_with('/'), at("path"), "must start with a slash");
        let reserved = !is_reserved(context) && is_reserved(&format!("{context}{}", request.path));
        rule(!reserved, at("path"), RESERVED_RULE);
    }
    match default_backend(api) {
        None => rule(false, "backend-services".to_owned(), "must name the backend that calls go to"),
        Some((i, backend)) => {
            let url = backend.endpoints.first().map(|endpoint| endpoint.url.as_str()).unwrap_or_default();
            let good =
                Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            let field = format!("backend-services[{i}].endpoints[0].url");
            rule(good, field, "must be an absolute http or https URL");
        }
    }
    broken
}

/// Whether a path is where gateways answer probes of themselves, once they have resolved its dots and slashes.
fn is_reserved(path: &str) -> bool {
    let mut resolved = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(resolved.pop()),
            segment => resolved.push(segment),
        }
    }
    resolved.first() == Some(&RESERVED)
}

fn build(api: &Api, api_id: &str, project_id: &str, vhost: &str, kept: &Kept) -> Result<Artifact> {
    check(api)?;
    let version = gateway_version(&api.version).unwrap_or_default();
    let upstream = default_backend(api).and_then(|(_, backend)| backend.endpoints.first());
    let project = |key: &str| [(key.to_owned(), project_id.to_owned())].into();
    let operation = |operation: &proto::project::Operation| {
        let request = operation.request.as_ref()?;
        let (method, path) = (request.method.clone(), request.path.clone());
        let policies = kept.operations.get(&format!("{method} {path}")).cloned().unwrap_or_default();
        Some(ArtifactOperation { method, path, policies })
    };
    Ok(Artifact {
        api_version: API_VERSION.to_owned(),
        kind: "RestApi".to_owned(),
        metadata: Metadata {
            name: match kept.handle.as_str() {
                "" => handle(&api.name, version, api_id),
                given => given.to_owned(),
            },
            labels: project("project-id"),
            annotations: project(PROJECT_ANNOTATION),
        },
        spec: Spec {
            display_name: display_name(&api.name, api_id),
            version: version.to_owned(),
            context: api.context.clone(),
            vhosts: Vhosts { main: if vhost.is_empty() { DEFAULT_VHOST } else { vhost }.to_owned() },
            upstream: Upstreams {
                main: UpstreamUrl { url: upstream.map(|endpoint| endpoint.url.clone()).unwrap_or_default() },
                sandbox: kept.sandbox.clone(),
            },
            policies: kept.policies.clone(),
            operations: api.operations.iter().filter_map(operation).collect(),
            subscription_plans: kept.subscription_plans.clone(),
        },
    })
}

/// The version as gateways take it: `^v?\d+(\.\d+)?(\.\d+)?$`. A suffix such as `-SNAPSHOT` is left out.
pub(super) fn gateway_version(version: &str) -> Option<&str> {
    let release = version.split_once('-').map_or(version, |(release, _)| release);
    let numbers: Vec<&str> = release.strip_prefix('v').unwrap_or(release).split('.').collect();
    let numeric = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (numbers.len() <= 3 && numbers.iter().all(numeric)).then_some(release)
}

/// The version by which gateways tell APIs of one name apart; nothing when the version does not fit, or when the name is
/// changed for gateways, which makes it unique.
pub(super) fn shown_version(api: &Api) -> Option<&str> {
    gateway_version(&api.version).filter(|_| display_name(&api.name, "") == api.name)
}

/// The name as gateways take it. When it had to be changed, a part of the id keeps it unique.
fn display_name(name: &str, api_id: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if name.len() <= 100 && name.chars().all(fits) && !name.is_empty() {
        return name.to_owned();
    }
    let kept: String = name.chars().filter(|c| fits(*c)).take(87).collect();
    format!("{} {}", kept.trim(), id_part(api_id)).trim().to_owned()
}

/// The handle: name, version and a part of the id, in lower case with hyphens.
fn handle(name: &str, version: &str, api_id: &str) -> String {
    let text = format!("{} {}", name.chars().take(40).collect::<String>(), version).to_ascii_lowercase();
    let parts: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()).collect();
    format!("{}-{}", parts.join("-"), id_part(api_id))
}

/// The random end of a UUID.
fn id_part(api_id: &str) -> &str {
    api_id.rsplit('-').next().unwrap_or(api_id)
}

/// The backend that is marked as the default, or the only one.
fn default_backend(api: &Api) -> Option<(usize, &BackendService)> {
    let mut backends = api.backend_services.iter().enumerate();
    match api.backend_services.as_slice() {
        [only] => Some((0, only)),
        _ => backends.find(|(_, backend)| backend.is_default),
    }
}

#[cfg(test)]
mod tests;
