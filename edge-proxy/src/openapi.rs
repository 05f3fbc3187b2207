//! The OpenAPI 3.1 document of everything that lies in REST, made from the descriptors.
//!
//! It describes the contract as the edge serves it; a new RPC appears in it by itself. SERVICE methods
//! never do.

mod schema;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::LazyLock};

use bytes::Bytes;
use http::{HeaderValue, header};
use http_body_util::Full;
use prost_reflect::{Kind, MessageDescriptor};
use proto::{Access, Contract, HttpBinding, MethodPolicy, docs::comment};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    Body,
    layers::Response,
    transcode::{is_one_oneof, may_wait},
};
use schema::Schemas;

/// The path that the document is served at.
pub(crate) const PATH: &str = "/openapi.json";

const DESCRIPTION: &str = "Organizations, projects, APIs, their revisions and their deployment to gateways. \
    JSON names are camelCase, times are RFC 3339 in UTC, lists come in pages of `limit` entries from `offset`.";

/// The document, which may be cached for a while.
pub(crate) fn answer() -> Response {
    let text = document();
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(Body::new(Full::new(text)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, length);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}

/// The document as JSON text.
fn document() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
        serde_json::to_vec(&build(Contract::get())).map(Bytes::from).expect("JSON values are JSON")
    });
    DOCUMENT.clone()
}

/// The top level in the order that people expect.
#[derive(Debug, Serialize)]
struct Document {
    openapi: &'static str,
    info: Value,
    servers: Value,
    tags: Vec<Value>,
    paths: BTreeMap<String, Map<String, Value>>,
    components: Value,
}

fn build(contract: &Contract) -> Document {
    let mut schemas = Schemas::new(contract.pool());
    let mut methods: Vec<&MethodPolicy> = contract.methods().filter(|method| is_public(method)).collect();
    methods.sort_by(|a, b| a.path.cmp(&b.path));

    let mut tags = BTreeMap::new();
    let mut paths: BTreeMap<String, Map<String, Value>> = own_paths();
    for method in methods.into_iter().filter(|method| !method.http.is_empty()) {
        let service = method.descriptor.parent_service();
        tags.entry(service.name().to_owned())
            .or_insert_with(|| comment(&service.parent_file(), service.path()));
        for (at, binding) in method.http.iter().enumerate() {
            let operation = operation(method, binding, at, &mut schemas);
            paths
                .entry(json_template(&binding.template, &method.descriptor.input()))
                .or_default()
                .insert(binding.verb.to_lowercase(), operation);
        }
    }
    tags.insert("alias".to_owned(), "Other paths of operations that also lie below /api/v1.".to_owned());
    tags.insert("edge".to_owned(), "What the edge answers itself.".to_owned());
    Document {
        openapi: "3.1.0",
        info: json!({
            "title": "Tollgate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        }),
        servers: json!([{"url": "/"}]),
        tags: tags.into_iter().map(|(name, text)| json!({"name": name, "description": text})).collect(),
        paths,
        components: components(schemas),
    }
}

fn is_public(method: &MethodPolicy) -> bool {
    matches!(method.access, Access::Public | Access::User | Access::Gateway)
}

fn operation(method: &MethodPolicy, binding: &HttpBinding, at: usize, schemas: &mut Schemas) -> Value {
    let descriptor = &method.descriptor;
    let service = descriptor.parent_service().name().to_owned();
    let text = comment(&descriptor.parent_file(), descriptor.path());
    let mut operation = Map::new();
    let id = format!("{service}_{}", descriptor.name());
    operation.insert("operationId".into(), if at == 0 { id } else { format!("{id}_{}", at + 1) }.into());
    operation.insert("summary".into(), summary(&text).into());
    operation.insert("description".into(), text.into());
    let mut tags = vec![service];
    if is_alias(&binding.template) {
        tags.push("alias".to_owned());
        operation.insert("deprecated".into(), false.into());
    }
    operation.insert("tags".into(), json!(tags));
    operation.insert("security".into(), security(method));
    let parameters = parameters(method, binding, schemas);
    if !parameters.is_empty() {
        operation.insert("parameters".into(), parameters.into());
    }
    if let Some(body) = request_body(method, binding, schemas) {
        operation.insert("requestBody".into(), body);
    }
    operation.insert("responses".into(), responses(method, binding, schemas));
    operation.into()
}

/// The first sentence, without its full stop.
fn summary(text: &str) -> String {
    let end = text.find(". ").or_else(|| text.find(".\n")).unwrap_or(text.trim_end_matches('.').len());
    text[..end].replace('\n', " ")
}

fn is_alias(template: &str) -> bool {
    ["/api/v1/", "/api/internal/v1/"].iter().all(|base| !template.starts_with(base))
        && template.starts_with("/api/")
}

/// The permission stands where OpenAPI 3.1 lets roles stand.
fn security(method: &MethodPolicy) -> Value {
    let permissions: Vec<&str> =
        Some(method.permission.as_str()).filter(|text| !text.is_empty()).into_iter().collect();
    match method.access {
        Access::User => json!([{"bearerAuth": permissions}]),
        Access::Gateway => json!([{"gatewayKey": []}]),
        _ => json!([]),
    }
}

/// `/api/v1/apis/{api_id}` with the JSON names of its variables.
fn json_template(template: &str, input: &MessageDescriptor) -> String {
    let part = |part: &str| match variable(part).and_then(|name| input.get_field_by_name(name)) {
        Some(field) => format!("{{{}}}", field.json_name()),
        None => part.to_owned(),
    };
    template.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn variable(part: &str) -> Option<&str> {
    part.strip_prefix('{')?.strip_suffix('}')
}

fn variables(template: &str) -> Vec<&str> {
    template.split('/').filter_map(variable).collect()
}

/// Path variables, and as query what neither the path nor the body holds.
fn parameters(method: &MethodPolicy, binding: &HttpBinding, schemas: &mut Schemas) -> Vec<Value> {
    let input = method.descriptor.input();
    let bound = variables(&binding.template);
    let path = bound.iter().filter_map(|name| input.get_field_by_name(name)).map(|field| (field, "path"));
    let query = input.fields().filter(|field| {
        let name = field.name();
        let scalar =
            !matches!(field.kind(), Kind::Message(message) if message.full_name() != schema::TIMESTAMP);
        binding.body != "*" && name != binding.body && !bound.contains(&name) && scalar && !field.is_map()
    });
    let query = query.map(|field| (field, "query")).collect::<Vec<_>>();
    path.chain(query)
        .map(|(field, place)| {
            json!({
                "name": field.json_name(),
                "in": place,
                "required": place == "path",
                "description": comment(&input.parent_file(), field.path()),
                "schema": schemas.value(&field),
            })
        })
        .collect()
}

fn request_body(method: &MethodPolicy, binding: &HttpBinding, schemas: &mut Schemas) -> Option<Value> {
    let input = method.descriptor.input();
    if binding.body.is_empty() {
        return None;
    }
    let bound = variables(&binding.template);
    let (content, required) = if binding.body == "*" {
        let schema = if bound.is_empty() { schemas.message(&input) } else { schemas.object(&input, &bound) };
        (json!({"application/json": {"schema": schema}}), input.fields().len() > bound.len())
    } else {
        (field_content(&input, &binding.body, schemas), true)
    };
    Some(json!({"required": required, "content": content}))
}

/// The media types of a body that is one field of a message.
fn field_content(message: &MessageDescriptor, name: &str, schemas: &mut Schemas) -> Value {
    match message.get_field_by_name(name) {
        Some(field) if matches!(field.kind(), Kind::Message(message) if is_binary(&message)) => binary(),
        Some(field) => json!({"application/json": {"schema": schemas.value(&field)}}),
        None => json!({}),
    }
}

fn is_binary(message: &MessageDescriptor) -> bool {
    message.full_name() == "google.api.HttpBody"
}

fn binary() -> Value {
    json!({"*/*": {"schema": {"type": "string", "format": "binary"}}})
}

/// What a 202 means.
const ACCEPTED: &str = "Accepted: what comes of it is not told.";

fn responses(method: &MethodPolicy, binding: &HttpBinding, schemas: &mut Schemas) -> Value {
    let output = method.descriptor.output();
    let mut responses = Map::new();
    if output.full_name() == schema::EMPTY {
        let (status, text) = match method.accepted {
            true => ("202", ACCEPTED),
            false => ("204", "Done."),
        };
        responses.insert(status.into(), json!({"description": text}));
    } else {
        let content = if !binding.response_body.is_empty() {
            field_content(&output, &binding.response_body, schemas)
        } else if is_binary(&output) {
            binary()
        } else if method.descriptor.is_server_streaming() {
            let schema = json!({"schema": schemas.message(&output)});
            json!({"text/event-stream": schema, "application/x-ndjson": schema})
        } else {
            json!({"application/json": {"schema": schemas.message(&output)}})
        };
        if may_wait(method) {
            let text = "Accepted: it is created later, if at all; there is no id yet.";
            responses.insert("202".into(), json!({"description": text, "content": content}));
        }
        let (status, success) = match method.location.as_str() {
            "" if method.accepted => ("202", json!({"description": ACCEPTED, "content": content})),
            "" => ("200", json!({"description": done(method), "content": content})),
            location => {
                let location = json!({"description": location, "schema": {"type": "string"}});
                (
                    "201",
                    json!({"description": "Created.", "content": content, "headers": {"Location": location}}),
                )
            }
        };
        responses.insert(status.into(), success);
    }
    let error = if method.access == Access::Gateway { "InternalError" } else { "Problem" };
    let error = json!({"$ref": format!("#/components/responses/{error}")});
    responses.insert("4XX".into(), error.clone());
    responses.insert("5XX".into(), error);
    responses.into()
}

/// What an answer without a status of its own means.
fn done(method: &MethodPolicy) -> &'static str {
    match (method.descriptor.is_server_streaming(), is_one_oneof(&method.descriptor.output())) {
        (false, _) => "Done.",
        (true, false) => STREAM,
        (true, true) => STREAM_OF_CHOICES,
    }
}

const STREAM: &str =
    "A stream: each event, or line, is a message. One that fails ends with the event `error`.";
const STREAM_OF_CHOICES: &str = "A stream. An event has the name of the member that is set, and only that \
    member as its data; a line is the whole message. A stream that fails ends with the event `error`.";

/// What the edge answers itself.
fn own_paths() -> BTreeMap<String, Map<String, Value>> {
    let get = |operation: Value| Map::from_iter([("get".to_owned(), operation)]);
    let health = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}});
    let refusal = json!({"description": "Refused.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/LinkRefusal"}}}});
    BTreeMap::from([
        (
            crate::health::PATH.to_owned(),
            get(json!({
                "operationId": "health", "tags": ["edge"], "security": [],
                "summary": "Says whether the services behind the edge are up",
                "responses": {"200": {"description": "All are up.", "content": health},
                    "503": {"description": "Some are down.", "content": health}},
            })),
        ),
        (
            PATH.to_owned(),
            get(json!({
                "operationId": "openapi", "tags": ["edge"], "security": [],
                "summary": "Returns this document",
                "responses": {"200": {"description": "The document.",
                    "content": {"application/json": {"schema": {"type": "object"}}}}},
            })),
        ),
        (
            crate::ws::PATH.to_owned(),
            get(json!({
                "operationId": "connectGateway", "tags": ["edge"], "security": [{"gatewayKey": []}],
                "summary": "Opens the WebSocket over which a gateway is told what to run",
                "description": "HTTP/1.1 upgrade to WebSocket, without subprotocols or extensions.",
                "responses": {"101": {"description": "The socket is open; its first message is `connection.ack`."},
                    "400": refusal, "401": refusal, "426": refusal, "429": refusal, "503": refusal},
            })),
        ),
    ])
}

fn components(schemas: Schemas) -> Value {
    let mut all = schema::fixed();
    all.extend(schemas.into_components());
    let error = |media: &str, schema: &str| {
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        json!({"description": "The request was refused, or failed.", "content": {media: {"schema": schema}}})
    };
    json!({
        "schemas": all,
        "responses": {
            "Problem": error("application/problem+json", "Problem"),
            "InternalError": error("application/json", "InternalError"),
        },
        "securitySchemes": {
            "bearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "The access token of a login, a personal access token, or a key of a service account."},
            "gatewayKey": {"type": "apiKey", "in": "header", "name": "api-key",
                "description": "The token of a gateway."},
        },
    })
}
