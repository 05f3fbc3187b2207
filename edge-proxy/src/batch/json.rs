//! A batch as JSON: `{"requests": [{id, method, path, headers?, body?, dependsOn?}]}`, answered with
//! `{"responses": [{id, status, headers, body?}]}` in the same order.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, error::Category, value::RawValue};
use service_kit::Error;

use super::{
    field, malformed,
    plan::{Call, Content},
    whole,
};
use crate::{layers::Response, rescue::Refusal, subcall::Reply};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    requests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    id: String,
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<Value>,
    #[serde(default)]
    depends_on: Vec<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    status: u16,
    headers: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Written<'a>>,
    /// Bytes that are neither JSON nor text.
    #[serde(rename = "bodyBase64", skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Written<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

/// Reads a batch.
pub(super) fn read(body: &Bytes) -> Result<Vec<Call>, Refusal> {
    let batch: Batch = serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => field("requests".into(), format!("cannot be read: {error}")).into(),
        _ => malformed("MALFORMED_JSON", format!("the body is not JSON: {error}")),
    })?;
    Ok(batch.requests.into_iter().map(call).collect())
}

fn call(entry: Entry) -> Call {
    let content_type = entry.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let is_json = content_type.is_none_or(|(_, value)| value.to_ascii_lowercase().contains("json"));
    let body = match entry.body {
        None => Content::Nothing,
        // What says that it is no JSON is the text itself.
        Some(Value::String(text)) if !is_json => Content::Bytes(text.into()),
        Some(value) => Content::Json(value),
    };
    Call {
        id: entry.id,
        method: entry.method,
        path: entry.path,
        headers: entry.headers.into_iter().collect(),
        body,
        depends_on: entry.depends_on,
    }
}

/// Writes the answers.
pub(super) fn write(ids: &[String], replies: &[Reply]) -> Result<Response, Refusal> {
    let answers: Vec<Answer<'_>> = ids.iter().zip(replies).map(|(id, reply)| answer(id, reply)).collect();
    let text = serde_json::to_vec(&BTreeMap::from([("responses", answers)])).map_err(Error::internal)?;
    Ok(whole(text.into(), HeaderValue::from_static("application/json")))
}

fn answer<'a>(id: &'a str, reply: &'a Reply) -> Answer<'a> {
    let text = std::str::from_utf8(&reply.body);
    let json = reply.is_json().then(|| serde_json::from_slice(&reply.body).ok()).flatten();
    let (body, bytes) = match (json, text) {
        _ if reply.body.is_empty() => (None, None),
        (Some(json), _) => (Some(Written::Json(json)), None),
        (None, Ok(text)) => (Some(Written::Text(text)), None),
        (None, Err(_)) => (None, Some(STANDARD.encode(&reply.body))),
    };
    Answer { id, status: reply.status.as_u16(), headers: headers(&reply.headers), body, bytes }
}

/// The headers by name, those of one name joined. Cookies are not for batches.
fn headers(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut written = BTreeMap::new();
    for name in headers.keys().filter(|name| **name != header::SET_COOKIE && **name != header::CONTENT_LENGTH)
    {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        written.insert(name.as_str(), values.collect::<Vec<_>>().join(", "));
    }
    written
}
