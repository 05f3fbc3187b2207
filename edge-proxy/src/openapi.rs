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
        serde_json::to_vec(&build(&Contract::documented())).map(Bytes::from).expect("JSON values are JSON")
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
    for composite in crate::composite::declared().unwrap_or_default() {
        let operation = composed(composite, &paths);
        paths.entry(composite.path.clone()).or_default().insert("get".to_owned(), operation);
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
    let mut parameters = parameters(method, binding, schemas);
    parameters.extend(method.takes_key.then(|| json!({"$ref": "#/components/parameters/IdempotencyKey"})));
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
    let (mut written, mut rest) = (String::with_capacity(template.len()), template);
    while let Some((before, variable, after)) = next_variable(rest) {
        let field = input.get_field_by_name(variable);
        let name = field.as_ref().map_or(variable, |field| field.json_name());
        written.extend([before, "{", name, "}"]);
        rest = after;
    }
    written + rest
}

/// The name of the first variable, and what stands around it; a pattern such as `=projects/*` is not told.
fn next_variable(template: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = template.split_once('{')?;
    let (variable, after) = rest.split_once('}')?;
    Some((before, variable.split('=').next().unwrap_or(variable), after))
}

fn variables(template: &str) -> Vec<&str> {
    std::iter::successors(next_variable(template), |(_, _, after)| next_variable(after))
        .map(|(_, name, _)| name)
        .collect()
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
    if method.takes_key {
        let header = json!({"$ref": "#/components/headers/IdempotencyReplayed"});
        responses
            .values_mut()
            .for_each(|success| success["headers"]["Idempotency-Replayed"] = header.clone());
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
        _ if is_binary(&method.descriptor.output()) => STREAM_OF_BYTES,
        (true, false) => STREAM,
        (true, true) => STREAM_OF_CHOICES,
    }
}

const STREAM: &str =
    "A stream: each event, or line, is a message. One that fails ends with the event `error`.";
const STREAM_OF_BYTES: &str = "Bytes, as they come; a stream that fails is broken off.";
const STREAM_OF_CHOICES: &str = "A stream. An event has the name of the member that is set, and only that \
    member as its data; a line is the whole message. A stream that fails ends with the event `error`.";

/// What a key promises.
const KEY: &str = "A text of your own for this request, such as a random UUID: 1 to 255 printable characters of ASCII, with or without \
    quotes (draft-ietf-httpapi-idempotency-key-header). The request is done once; the same request with the same key gets \
    the answer of the first, for 24 hours unless operators choose another time. Another request with the key is a 422, one while \
    the first is under way a 409.";

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
        (crate::batch::PATH.to_owned(), Map::from_iter([("post".to_owned(), batch())])),
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

/// A composite read, from what its parts answer.
fn composed(composite: &crate::composite::Composite, paths: &BTreeMap<String, Map<String, Value>>) -> Value {
    let problem = json!({"type": "object", "required": ["problem"],
        "properties": {"problem": {"$ref": "#/components/schemas/Problem"}}});
    let part = |path: &String| {
        let path = path.split('?').next().unwrap_or_default();
        let shape = |path: &str| {
            let open = |part| next_variable(part).map(|(before, _, after)| format!("{before}{{}}{after}"));
            path.split('/').map(|part| open(part).unwrap_or_else(|| part.to_owned())).collect::<Vec<_>>()
        };
        let item = paths.iter().find(|(known, _)| shape(known) == shape(path)).map(|(_, item)| item);
        let schema =
            item.and_then(|item| item.get("get")?.pointer("/responses/200/content/application~1json/schema"));
        json!({"anyOf": [schema, problem]})
    };
    let mut properties: Map<String, Value> =
        composite.parts.iter().map(|(name, path)| (name.clone(), part(path))).collect();
    properties
        .insert("partial".into(), json!({"type": "boolean", "description": "Whether a part is missing."}));
    let required: Vec<&String> = properties.keys().collect();
    let schema = json!({"type": "object", "required": required, "properties": properties});
    let parameter = |name: &str| {
        json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"},
        "description": "The id."})
    };
    let error = json!({"$ref": "#/components/responses/Problem"});
    json!({
        "operationId": composite.operation, "tags": ["edge"], "security": [{"bearerAuth": []}],
        "summary": composite.summary,
        "description": format!("Made of several reads, each by its own permission. What one is refused with stands in its \
            place as `problem`; without `{}` there is no answer.", composite.essential),
        "parameters": variables(&composite.path).into_iter().map(parameter).collect::<Vec<_>>(),
        "responses": {"200": {"description": "Done.", "content": {"application/json": {"schema": schema}}},
            "4XX": error, "5XX": error},
    })
}

/// Several calls in one request.
fn batch() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let headers = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let call = json!({"type": "object", "required": ["id", "method", "path"], "additionalProperties": false, "properties": {
        "id": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "method": {"type": "string", "enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]},
        "path": text("Path and query, with references such as `{id.body.list[0].name}`."),
        "headers": headers, "body": {},
        "dependsOn": {"type": "array", "items": {"type": "string"},
            "description": "Earlier calls whose answers are waited for, and may be referred to."},
    }});
    let answer = json!({"type": "object", "required": ["id", "status", "headers"], "properties": {
        "id": {"type": "string"}, "status": {"type": "integer"}, "headers": headers, "body": {},
        "bodyBase64": text("A body that is neither JSON nor text."),
    }});
    let list = |name: &str, item: Value| {
        let list = json!({"type": "array", "items": item, "maxItems": crate::batch::MAX_CALLS});
        json!({"schema": {"type": "object", "required": [name], "properties": {name: list}}})
    };
    let error = json!({"$ref": "#/components/responses/Problem"});
    let mixed = json!({"schema": {"type": "string", "description": "Parts of `application/http`."}});
    json!({
        "operationId": "batch", "tags": ["edge"], "security": [{"bearerAuth": []}, {"gatewayKey": []}, {}],
        "summary": "Makes up to 20 calls at once",
        "description": "Each call passes the checks and limits of a call of its own, with the credentials of the batch, and has a \
            status of its own. Calls run at once unless `dependsOn` says otherwise. No streams, no batch in a batch.",
        "requestBody": {"required": true, "content": {"application/json": list("requests", call), "multipart/mixed": mixed}},
        "responses": {"200": {"description": "The answers, in the order of the calls.",
            "content": {"application/json": list("responses", answer), "multipart/mixed": mixed}},
            "4XX": error, "5XX": error},
    })
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
        "parameters": {"IdempotencyKey": {
            "name": "Idempotency-Key", "in": "header", "required": false, "description": KEY,
            "schema": {"type": "string", "minLength": 1}, "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
        }},
        "headers": {"IdempotencyReplayed": {
            "description": "`true`: this is the answer to an earlier request with the same `Idempotency-Key`.",
            "schema": {"type": "string", "const": "true"},
        }},
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
