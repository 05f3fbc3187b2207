//! The calls of a batch, checked before any of them is made: all that is wrong is said at once.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::Value;
use service_kit::Error;

use super::{
    MAX_CALLS, Outcome, PATH, failed_dependency, field,
    reference::{self, Reference, Unresolved},
};
use crate::{rescue::Refusal, subcall::Subcall};

/// The headers that a call of a batch may have. What is not here belongs to the batch, or to a connection.
const HEADERS: [HeaderName; 7] = [
    header::ACCEPT,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    HeaderName::from_static("idempotency-key"),
];

/// The methods that a call may have.
const METHODS: [Method; 6] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// A call as it was written.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Content,
    pub(super) depends_on: Vec<String>,
}

/// The body of a call.
#[derive(Debug)]
pub(super) enum Content {
    Nothing,
    /// May hold references.
    Json(Value),
    /// Passes as it is.
    Bytes(Bytes),
}

/// A call that can be made.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) id: String,
    method: Method,
    pub(super) path: String,
    headers: HeaderMap,
    body: Content,
    /// The calls before it whose answers it waits for: id and place.
    pub(super) needs: Vec<(String, usize)>,
    /// Whether another refers to its answer.
    pub(super) is_referred: bool,
}

/// Checks the calls of a batch.
///
/// # Errors
/// Names each field that breaks a rule.
pub(super) fn check(calls: Vec<Call>) -> Result<Vec<Planned>, Error> {
    if calls.is_empty() || calls.len() > MAX_CALLS {
        return Err(field("requests".into(), format!("must be 1 to {MAX_CALLS} calls")));
    }
    let mut wrong = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let all: Vec<String> = calls.iter().map(|call| call.id.clone()).collect();
    let mut planned: Vec<Planned> = Vec::with_capacity(calls.len());
    for (at, call) in calls.into_iter().enumerate() {
        let mut faults = Faults { at, wrong: &mut wrong };
        let id = call.id.clone();
        if !reference::is_id(&id) {
            faults.add("id", "must be 1 to 64 letters, digits, `_` or `-`");
        } else if places.contains_key(&id) {
            faults.add("id", "is that of an earlier call");
        }
        let one = faults.plan(call, &places, &all);
        places.entry(id).or_insert(at);
        for (_, other) in &one.needs {
            planned[*other].is_referred = true;
        }
        planned.push(one);
    }
    if wrong.is_empty() { Ok(planned) } else { Err(Error::fields(wrong)) }
}

/// What is wrong with one call.
struct Faults<'a> {
    at: usize,
    wrong: &'a mut Vec<service_kit::error::FieldViolation>,
}

impl Faults<'_> {
    fn add(&mut self, name: &str, message: impl Into<String>) {
        let field = format!("requests[{}].{name}", self.at);
        self.wrong.push(service_kit::error::FieldViolation { field, message: message.into() });
    }

    fn plan(&mut self, call: Call, places: &HashMap<String, usize>, all: &[String]) -> Planned {
        let method =
            Method::from_bytes(call.method.as_bytes()).ok().filter(|method| METHODS.contains(method));
        if method.is_none() {
            self.add("method", "must be GET, HEAD, POST, PUT, PATCH or DELETE");
        }
        let needs = self.needs(&call.depends_on, places, all);
        self.references("path", &reference::of_text(&call.path).collect::<Vec<_>>(), &needs);
        self.path(&call.path);
        // Without something that it depends on, braces in a body are text.
        if let Content::Json(body) = &call.body
            && !needs.is_empty()
        {
            let mut found = Vec::new();
            reference::of_body(body, &mut found);
            self.references("body", &found, &needs);
        }
        Planned {
            id: call.id,
            method: method.unwrap_or_default(),
            path: call.path,
            headers: self.headers(call.headers, &call.body),
            body: call.body,
            needs,
            is_referred: false,
        }
    }

    /// Only earlier calls can be depended on, so no circle can be written.
    fn needs(
        &mut self,
        depends_on: &[String],
        places: &HashMap<String, usize>,
        all: &[String],
    ) -> Vec<(String, usize)> {
        let mut needs: Vec<(String, usize)> = Vec::new();
        for (number, id) in depends_on.iter().enumerate() {
            match places.get(id) {
                Some(place) if needs.iter().all(|(known, _)| known != id) => needs.push((id.clone(), *place)),
                Some(_) => self.add(&format!("dependsOn[{number}]"), "is named twice"),
                None if all.contains(id) => {
                    self.add(&format!("dependsOn[{number}]"), "must come before what depends on it");
                }
                None => self.add(&format!("dependsOn[{number}]"), "is no call of this batch"),
            }
        }
        needs
    }

    fn references(&mut self, place: &str, found: &[Reference], needs: &[(String, usize)]) {
        for reference in found {
            if needs.iter().all(|(id, _)| *id != reference.id) {
                self.add(place, format!("{reference} refers to a call that `dependsOn` does not name"));
            }
        }
    }

    fn path(&mut self, path: &str) {
        let plain = |piece: &reference::Piece| match piece {
            reference::Piece::Text(text) => !text.contains(['{', '}']),
            reference::Piece::Reference(_) => true,
        };
        let pieces = reference::pieces(path);
        if !path.starts_with('/') {
            self.add("path", "must begin with `/`");
        } else if !pieces.iter().all(plain) {
            self.add("path", "has a brace that is no reference such as `{id.body.field}`");
        } else if path.split('?').next() == Some(PATH) {
            self.add("path", "must not be another batch");
        } else if path.len() > 8 * 1024 {
            self.add("path", "must have at most 8 KiB");
        }
    }

    fn headers(&mut self, lines: Vec<(String, String)>, body: &Content) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let place = format!("headers.{name}");
            let known = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| HEADERS.contains(name));
            match (known, HeaderValue::try_from(value)) {
                (Some(name), Ok(value)) => {
                    headers.append(name, value);
                }
                (None, _) => self.add(&place, "is none that a call of a batch may have"),
                (_, Err(_)) => self.add(&place, "has a value that no header can have"),
            }
        }
        if matches!(body, Content::Json(_)) {
            headers
                .entry(header::CONTENT_TYPE)
                .or_insert(const { HeaderValue::from_static("application/json") });
        }
        headers
    }
}

impl Planned {
    /// The call with the answers that it refers to in it.
    pub(super) fn filled(self, answers: &[(String, Option<Outcome>)]) -> Result<Subcall, Refusal> {
        for (id, outcome) in answers {
            if !outcome.as_ref().is_some_and(|outcome| outcome.succeeded) {
                return Err(failed_dependency(format!("`{id}`, which this depends on, did not succeed")));
            }
        }
        let json: HashMap<&str, Arc<Value>> = answers
            .iter()
            .filter_map(|(id, outcome)| Some((id.as_str(), outcome.as_ref()?.json.clone()?)))
            .collect();
        let answer = |id: &str| json.get(id).map(|json| &**json);
        let unresolved = |unresolved: Unresolved| failed_dependency(unresolved.to_string());
        let path = reference::fill_path(&self.path, answer).map_err(unresolved)?;
        let body = match self.body {
            Content::Nothing => Bytes::new(),
            Content::Bytes(bytes) => bytes,
            Content::Json(mut body) => {
                if !answers.is_empty() {
                    reference::fill_body(&mut body, &answer).map_err(unresolved)?;
                }
                serde_json::to_vec(&body).map_err(Error::internal)?.into()
            }
        };
        Ok(Subcall { method: self.method, path, headers: self.headers, body })
    }
}
