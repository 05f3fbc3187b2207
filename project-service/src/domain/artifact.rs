//! The artifact that a gateway runs: an API at a revision as a `RestApi` YAML document, and the rules by
//! which gateways accept one. What breaks them is refused before anything is deployed.

use proto::project::{Api, BackendService};
use serde::{Deserialize, Serialize};
use service_kit::{Error, Kind, Result};
use url::Url;

const API_VERSION: &str = "gateway.api-platform.wso2.com/v1";
const PROJECT_ANNOTATION: &str = "gateway.api-platform.wso2.com/project-id";
const DEFAULT_VHOST: &str = "_gateway_default_";
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
    pub policies: Vec<serde_norway::Value>,
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
}

/// The YAML of an API for one deployment. `api_id` and `project_id` are those of the working copy;
/// `vhost` is empty for the gateway's default. FAILED_PRECONDITION as in [`check`].
pub fn yaml(api: &Api, api_id: &str, project_id: &str, vhost: &str) -> Result<String> {
    let artifact = build(api, api_id, project_id, vhost)?;
    serde_norway::to_string(&artifact).map_err(Error::internal)
}

/// Whether gateways accept an API. FAILED_PRECONDITION `NOT_DEPLOYABLE` names every field that they do not.
pub fn check(api: &Api) -> Result<()> {
    let mut broken: Vec<(String, String)> = Vec::new();
    let mut rule = |holds: bool, field: String, rule: &str| {
        if !holds {
            broken.push((field, rule.to_owned()));
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
    rule(!api.operations.is_empty(), "operations".to_owned(), "must have at least one entry");
    for (i, operation) in api.operations.iter().enumerate() {
        let request = operation.request.clone().unwrap_or_default();
        let at = |field: &str| format!("operations[{i}].request.{field}");
        rule(METHODS.contains(&request.method.as_str()), at("method"), "must be a method that gateways know");
        rule(request.path.starts_with('/'), at("path"), "must start with a slash");
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
    let Some((field, message)) = broken.first() else { return Ok(()) };
    let sentence = format!("the API cannot be deployed: {field} {message}");
    let error = Error::new(Kind::FailedPrecondition, "NOT_DEPLOYABLE", sentence);
    Err(broken.into_iter().fold(error, |error, (field, message)| error.naming(field, message)))
}

fn build(api: &Api, api_id: &str, project_id: &str, vhost: &str) -> Result<Artifact> {
    check(api)?;
    let version = gateway_version(&api.version).unwrap_or_default();
    let upstream = default_backend(api).and_then(|(_, backend)| backend.endpoints.first());
    let project = |key: &str| [(key.to_owned(), project_id.to_owned())].into();
    let operation = |operation: &proto::project::Operation| {
        let request = operation.request.as_ref()?;
        Some(ArtifactOperation { method: request.method.clone(), path: request.path.clone() })
    };
    Ok(Artifact {
        api_version: API_VERSION.to_owned(),
        kind: "RestApi".to_owned(),
        metadata: Metadata {
            name: handle(&api.name, version, api_id),
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
            },
            policies: Vec::new(),
            operations: api.operations.iter().filter_map(operation).collect(),
            subscription_plans: Vec::new(),
        },
    })
}

/// The version as gateways take it: `^v?\d+(\.\d+)?(\.\d+)?$`. A suffix such as `-SNAPSHOT` is left out.
fn gateway_version(version: &str) -> Option<&str> {
    let release = version.split_once('-').map_or(version, |(release, _)| release);
    let numbers: Vec<&str> = release.strip_prefix('v').unwrap_or(release).split('.').collect();
    let numeric = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (numbers.len() <= 3 && numbers.iter().all(numeric)).then_some(release)
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
mod tests {
    use proto::project::{Api, BackendService, Endpoint, Operation, OperationRequest};

    use super::{Artifact, check, display_name, gateway_version, handle, yaml};

    const ID: &str = "0198f0c5-0000-7000-8000-0123456789ab";

    fn api() -> Api {
        let operation = |method: &str, path: &str| Operation {
            request: Some(OperationRequest {
                method: method.into(),
                path: path.into(),
                ..OperationRequest::default()
            }),
            ..Operation::default()
        };
        Api {
            name: "Pets: all".into(),
            version: "1.0.27-SNAPSHOT".into(),
            context: "/pets".into(),
            backend_services: vec![BackendService {
                name: "default".into(),
                endpoints: vec![Endpoint { url: "https://pets.test/v1".into(), ..Endpoint::default() }],
                ..BackendService::default()
            }],
            operations: vec![operation("GET", "/pets/{petId}"), operation("POST", "/pets: {x}")],
            ..Api::default()
        }
    }

    #[test]
    fn artifacts_are_read_back_as_they_were_written() {
        let text = yaml(&api(), ID, "p1", "").unwrap();
        let read: Artifact = serde_norway::from_str(&text).unwrap();
        assert_eq!(read.api_version, "gateway.api-platform.wso2.com/v1");
        assert_eq!(read.kind, "RestApi");
        assert_eq!(read.metadata.name, "pets-all-1-0-27-0123456789ab");
        assert_eq!(read.metadata.labels["project-id"], "p1");
        assert_eq!(read.metadata.annotations["gateway.api-platform.wso2.com/project-id"], "p1");
        assert_eq!(read.spec.display_name, "Pets all 0123456789ab");
        assert_eq!(read.spec.version, "1.0.27");
        assert_eq!(read.spec.context, "/pets");
        assert_eq!(read.spec.vhosts.main, "_gateway_default_");
        assert_eq!(read.spec.upstream.main.url, "https://pets.test/v1");
        let operations: Vec<_> =
            read.spec.operations.iter().map(|one| (one.method.as_str(), one.path.as_str())).collect();
        assert_eq!(operations, [("GET", "/pets/{petId}"), ("POST", "/pets: {x}")]);
        assert!(text.contains("policies: []") && text.contains("subscriptionPlans: []"), "{text}");
        let named = yaml(&api(), ID, "p1", "pets.test").unwrap();
        assert!(named.contains("main: pets.test"), "{named}");
    }

    #[test]
    fn every_rule_of_the_gateway_names_its_field() {
        type Break = fn(&mut Api);
        let cases: [(Break, &str); 9] = [
            (|api| api.version = "beta".into(), "version"),
            (|api| api.version = "1.2.3.4".into(), "version"),
            (|api| api.context = format!("/{}", "a".repeat(200)), "context"),
            (|api| api.context = "/a/".into(), "context"),
            (|api| api.operations.clear(), "operations"),
            (
                |api| api.operations[1].request.as_mut().unwrap().method = "TRACE".into(),
                "operations[1].request.method",
            ),
            (|api| api.operations[0].request = None, "operations[0].request.method"),
            (|api| api.backend_services.clear(), "backend-services"),
            (|api| api.backend_services[0].endpoints.clear(), "backend-services[0].endpoints[0].url"),
        ];
        for (break_it, field) in cases {
            let mut api = api();
            check(&api).unwrap();
            break_it(&mut api);
            let error = check(&api).unwrap_err();
            assert_eq!(error.reason(), "NOT_DEPLOYABLE");
            assert_eq!(error.violations()[0].field, field);
            assert!(yaml(&api, ID, "p1", "").is_err());
        }
        let empty = check(&Api::default()).unwrap_err();
        let fields: Vec<&str> = empty.violations().iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, ["version", "context", "operations", "backend-services"]);
    }

    #[test]
    fn of_several_backends_the_default_counts() {
        let mut api = api();
        let second = BackendService {
            name: "second".into(),
            endpoints: vec![Endpoint { url: "http://second.test".into(), ..Endpoint::default() }],
            ..BackendService::default()
        };
        api.backend_services.push(second);
        assert_eq!(check(&api).unwrap_err().violations()[0].field, "backend-services");
        api.backend_services[1].is_default = true;
        assert!(yaml(&api, ID, "p1", "").unwrap().contains("url: http://second.test"));
    }

    #[test]
    fn names_and_versions_fit_the_gateway() {
        for (given, kept) in [("v1", Some("v1")), ("1.2.3", Some("1.2.3")), ("2024-01-01", Some("2024"))] {
            assert_eq!(gateway_version(given), kept);
        }
        for bad in ["", "v", "1.", ".1", "1.2.3.4", "v1beta1", "-1", "1..2", "V1"] {
            assert_eq!(gateway_version(bad), None, "{bad:?}");
        }
        assert_eq!(display_name("Pet Store_1.0-b", ID), "Pet Store_1.0-b");
        assert_eq!(display_name("宠物", ID), "0123456789ab");
        let long = display_name(&"x".repeat(128), ID);
        assert!(long.len() <= 100 && long.ends_with(" 0123456789ab"), "{long}");
        assert_eq!(handle("宠物 & Co", "v1.0", ID), "co-v1-0-0123456789ab");
    }
}
