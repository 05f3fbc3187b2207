//! What a document that was read says of an API: name, version, backend, operations.

use std::collections::HashSet;

use proto::project::{
    Api, BackendService, Endpoint, Operation, OperationRequest,
    api::{LifeCycleStatus, Type},
};
use service_kit::{Error, Result};

use super::{
    Names,
    document::{Node, shortened},
    security::Schemes,
};

/// The most operations of one API: the model's own limit, said here with the place in the document.
const MAX_OPERATIONS: usize = 2_000;
/// The most endpoints of the backend.
const MAX_ENDPOINTS: usize = 50;
/// How long a chain of references between path items may be.
const MAX_REFERENCES: usize = 10;
/// What an API's name must not hold.
const FORBIDDEN: &str = "~!@#;:%^*()+={}|\\<>\"',&$[]/";
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "patch", "head", "options"];

/// The API of a document.
pub(super) fn api(root: &Node, names: &Names) -> Result<Api> {
    check_version(root)?;
    let info = root.get("info").ok_or_else(|| Error::field("definition.info", "is required"))?;
    let title = required(info, "title", &names.name)?;
    let name = or_given(&names.name, || fit_name(title));
    if name.is_empty() {
        return Err(Error::field("definition.info.title", "holds no character of a name; give a `name`"));
    }
    let version = required(info, "version", &names.version)?;
    let version = or_given(&names.version, || fit_version(version));
    if version.is_empty() {
        return Err(Error::field(
            "definition.info.version",
            "holds no character of a version; give a `version`",
        ));
    }
    let context = or_given(&names.context, || context_of(&name));
    let schemes = Schemes::read(root);
    let operations = operations(root, &schemes)?;
    Ok(Api {
        display_name: clean(title, 128, false),
        description: clean(
            info.text("description").or(info.text("summary")).unwrap_or_default(),
            32_766,
            true,
        ),
        life_cycle_status: LifeCycleStatus::Created.into(),
        r#type: Type::Http.into(),
        security: schemes.offered(&operations),
        backend_services: backends(root),
        operations,
        name,
        version,
        context,
        ..Api::default()
    })
}

fn check_version(root: &Node) -> Result<()> {
    const ONLY: &str = "only OpenAPI 3.0 and 3.1 documents can be imported";
    if root.get("swagger").is_some() {
        let rule = format!("says Swagger 2.0, and {ONLY}; convert the document first");
        return Err(Error::field("definition.swagger", rule));
    }
    let Some(version) = root.text("openapi") else {
        return Err(Error::field("definition.openapi", format!("is required: {ONLY}")));
    };
    let known = ["3.0", "3.1"].iter().any(|known| {
        version.strip_prefix(known).is_some_and(|patch| patch.is_empty() || patch.starts_with('.'))
    });
    if known {
        return Ok(());
    }
    Err(Error::field("definition.openapi", format!("says {}, and {ONLY}", shortened(version, 20))))
}

/// A text of `info`; the caller may stand in for it.
fn required<'n>(info: &'n Node, key: &str, given: &str) -> Result<&'n str> {
    match info.text(key) {
        Some(text) => Ok(text),
        None if !given.is_empty() => Ok(""),
        None => Err(Error::field(format!("definition.info.{key}"), "is required")),
    }
}

fn or_given(given: &str, made: impl FnOnce() -> String) -> String {
    if given.is_empty() { made() } else { given.to_owned() }
}

/// A text without control characters, and not longer than it may be.
fn clean(text: &str, most: usize, multiline: bool) -> String {
    let keep = |c: &char| !c.is_control() || (multiline && matches!(c, '\n' | '\r' | '\t'));
    text.chars().filter(keep).take(most).collect::<String>().trim().to_owned()
}

/// A title as a name: what a name may not hold becomes a space.
fn fit_name(title: &str) -> String {
    let spaced: String =
        title.chars().map(|c| if FORBIDDEN.contains(c) || c.is_control() { ' ' } else { c }).collect();
    let name = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    name.chars().take(128).collect::<String>().trim_end().to_owned()
}

/// A version with what it may not hold, and spaces, as hyphens.
fn fit_version(version: &str) -> String {
    let bad = |c: char| FORBIDDEN.contains(c) || c.is_control() || c.is_whitespace();
    let parts: Vec<&str> = version.split(bad).filter(|part| !part.is_empty()).collect();
    parts.join("-").chars().take(30).collect::<String>().trim_end_matches('-').to_owned()
}

/// A name as a path: letters and digits in lower case, the rest as hyphens.
fn context_of(name: &str) -> String {
    let parts: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let path: String = parts.join("-").chars().take(128).collect();
    if path.is_empty() { "/api".to_owned() } else { format!("/{}", path.trim_end_matches('-')) }
}

/// One default backend out of the servers with an absolute URL; none when there is no such server.
fn backends(root: &Node) -> Vec<BackendService> {
    let mut seen = HashSet::new();
    let servers = root.get("servers").map_or(&[][..], Node::items);
    let endpoints: Vec<Endpoint> = servers
        .iter()
        .filter_map(|server| Some((server, server_url(server)?)))
        .filter(|(_, url)| seen.insert(url.clone()))
        .take(MAX_ENDPOINTS)
        .map(|(server, url)| Endpoint {
            url,
            description: clean(server.text("description").unwrap_or_default(), 1_024, true),
            ..Endpoint::default()
        })
        .collect();
    if endpoints.is_empty() {
        return Vec::new();
    }
    vec![BackendService {
        name: "default".to_owned(),
        is_default: true,
        endpoints,
        ..BackendService::default()
    }]
}

/// The URL of a server with the defaults of its variables, if it is absolute, http or https.
fn server_url(server: &Node) -> Option<String> {
    let mut text = server.text("url")?.trim().to_owned();
    for (name, variable) in server.get("variables").map_or(&[][..], Node::entries) {
        let default = variable.text("default").unwrap_or_default();
        text = text.replace(&format!("{{{name}}}"), default);
        if text.len() > 2_048 {
            return None;
        }
    }
    let url = url::Url::parse(&text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && !text.contains(['{', '}']);
    plain.then(|| text.trim_end_matches('/').to_owned())
}

/// Every path with every method, in the order of the document.
fn operations(root: &Node, schemes: &Schemes) -> Result<Vec<Operation>> {
    let top = root.get("security");
    let mut operations = Vec::new();
    for (path, item) in root.get("paths").map_or(&[][..], Node::entries) {
        if path.starts_with("x-") {
            continue;
        }
        let place = format!("definition.paths.{}", shortened(path, 200));
        if !path.starts_with('/') {
            return Err(Error::field(place, "must start with a slash"));
        }
        if path.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#')) {
            return Err(Error::field(place, "must not contain spaces, ? or #"));
        }
        if path.chars().count() > 2_048 {
            return Err(Error::field(place, "must have at most 2048 characters"));
        }
        for (method, operation) in path_item(root, item, &place)? {
            let security = operation.get("security").or(top);
            operations.push(read_operation(path, method, operation, schemes.authentication(security)));
        }
        if operations.len() > MAX_OPERATIONS {
            let rule = format!("must not hold more than {MAX_OPERATIONS} operations");
            return Err(Error::field("definition.paths", rule));
        }
    }
    Ok(operations)
}

fn read_operation(
    path: &str,
    method: &str,
    operation: &Node,
    authentication: proto::project::OperationAuthentication,
) -> Operation {
    let method = method.to_ascii_uppercase();
    let name = clean(operation.text("operationId").unwrap_or_default(), 256, false);
    let described = operation.text("description").or(operation.text("summary")).unwrap_or_default();
    Operation {
        name: if name.is_empty() { clean(&format!("{method} {path}"), 256, false) } else { name },
        description: clean(described, 32_766, true),
        request: Some(OperationRequest {
            method,
            path: path.to_owned(),
            authentication: Some(authentication),
            ..OperationRequest::default()
        }),
    }
}

/// The operations of a path item, with those of the item that it refers to behind its own.
fn path_item<'n>(root: &'n Node, item: &'n Node, place: &str) -> Result<Vec<(&'n str, &'n Node)>> {
    let (mut item, mut found) = (item, Vec::new());
    for _ in 0..MAX_REFERENCES {
        for (method, operation) in item.entries() {
            let known = METHODS.contains(&method.as_str()) && *operation != Node::Null;
            if known && found.iter().all(|(other, _)| other != method) {
                found.push((method.as_str(), operation));
            }
        }
        let Some(reference) = item.text("$ref") else { return Ok(found) };
        item = resolve(root, reference).map_err(|rule| Error::field(format!("{place}.$ref"), rule))?;
    }
    Err(Error::field(format!("{place}.$ref"), "leads in a circle"))
}

/// The path item behind a reference within the document.
fn resolve<'n>(root: &'n Node, reference: &str) -> Result<&'n Node, String> {
    let shown = shortened(reference, 100);
    let Some(pointer) = reference.strip_prefix("#/") else {
        return Err(format!("points out of the document ({shown}); only references within it are followed"));
    };
    let (holder, name) = if let Some(name) = pointer.strip_prefix("paths/") {
        (root.get("paths"), name)
    } else if let Some(name) = pointer.strip_prefix("components/pathItems/") {
        (root.get("components").and_then(|components| components.get("pathItems")), name)
    } else {
        return Err(format!("must point to a path item ({shown})"));
    };
    let name = percent_decoded(name).replace("~1", "/").replace("~0", "~");
    holder.and_then(|holder| holder.get(&name)).ok_or_else(|| format!("points to nothing ({shown})"))
}

/// `%7B` as `{`: references are URI fragments.
pub(super) fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let hex =
            (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}
