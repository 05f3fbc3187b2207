//! Composite reads: what `composites.toml` declares, each a few reads of the contract under one path.
//!
//! The parts are made at once, each like a call of its own (`subcall`): its own permission, its limits, the cache.
//! What one is refused with stands in its place as a problem, and the whole is marked as partial. A part that the
//! declaration calls essential speaks for the whole when it is refused.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::Full;
use proto::policy::DEFAULT_MAX_DEADLINE;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use service_kit::Error;
use tokio::time::Instant;

use crate::{
    Body, Edge,
    layers::Response,
    rescue::Refusal,
    routes::{
        RouteTable,
        table::{Found, Table, variables},
    },
    subcall::{Outer, Reply, Subcall},
};

/// The declarations.
const DECLARED: &str = include_str!("../composites.toml");

/// The most parts of a composite.
const MAX_PARTS: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    composite: Vec<Composite>,
}

/// A read that is made of others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Composite {
    /// Its path template, with the JSON names of variables.
    pub(crate) path: String,
    /// Its name in the document.
    pub(crate) operation: String,
    /// What it is, in a sentence without its full stop.
    pub(crate) summary: String,
    /// The part without which there is no answer.
    pub(crate) essential: String,
    /// Paths of the contract by the members of the answer that they become.
    pub(crate) parts: BTreeMap<String, String>,
}

/// Composites by their paths.
pub(crate) type Composites = Table<&'static Composite>;

/// The composites that are declared.
pub(crate) fn declared() -> anyhow::Result<&'static [Composite]> {
    static ALL: std::sync::LazyLock<Result<Vec<Composite>, String>> = std::sync::LazyLock::new(|| {
        toml::from_str::<File>(DECLARED).map(|file| file.composite).map_err(|error| error.to_string())
    });
    ALL.as_deref().map_err(|error| anyhow::anyhow!("composites.toml: {error}"))
}

/// Checks the declarations against the routes of the contract.
pub(crate) fn check(routes: &RouteTable) -> anyhow::Result<Composites> {
    let mut table = Table::default();
    for composite in declared()? {
        let path = &composite.path;
        let known = names(path)?;
        ensure!(
            composite.parts.contains_key(&composite.essential),
            "{path}: no part is {}",
            composite.essential
        );
        ensure!(composite.parts.len() <= MAX_PARTS, "{path}: more than {MAX_PARTS} parts");
        ensure!(
            matches!(routes.find(&Method::GET, path), Found::Nothing),
            "{path} is a path of the contract"
        );
        for (name, part) in &composite.parts {
            let at = || format!("{path}: the part {name}");
            let target = fill(part, &known, &vec!["x"; known.len()]).with_context(at)?;
            let target = target.split('?').next().unwrap_or_default();
            let Found::Route(route, _) = routes.find(&Method::GET, target) else {
                anyhow::bail!("{}: {target} is no read of the contract", at());
            };
            ensure!(!route.is_stream(), "{}: a stream cannot be a part", at());
        }
        table.insert(Method::GET, path, composite)?;
    }
    Ok(table)
}

/// The variables of a composite's path, one segment each.
fn names(path: &str) -> anyhow::Result<Vec<&str>> {
    let variables = variables(path)?;
    ensure!(!variables.iter().any(|variable| variable.multi), "{path}: a variable is one segment");
    Ok(variables.iter().map(|variable| variable.name).collect())
}

/// Puts values in the place of variables, which are those of the composite's path.
fn fill(part: &str, names: &[&str], values: &[&str]) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(part.len() + 64);
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').context("a brace is not closed")?;
        let value = names.iter().position(|known| *known == name).and_then(|at| values.get(at));
        filled.push_str(before);
        filled.push_str(value.with_context(|| format!("{{{name}}} is no variable of the path"))?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The answer: parts by name, and whether one is missing.
#[derive(Serialize)]
struct Whole<'a> {
    partial: bool,
    #[serde(flatten)]
    parts: BTreeMap<&'a str, Part<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    There(&'a RawValue),
    Missing { problem: &'a RawValue },
}

/// Answers a composite read.
pub(crate) async fn serve(
    edge: &Edge,
    composite: &'static Composite,
    values: &[&str],
    parts: &Parts,
) -> Result<Response, Refusal> {
    if parts.uri.query().is_some_and(|query| !query.is_empty()) {
        let name = parts.uri.query().unwrap_or_default().split(['=', '&']).next().unwrap_or_default();
        return Err(Error::field(name, "is no parameter of this read").into());
    }
    let outer = Outer::of(parts, Instant::now() + DEFAULT_MAX_DEADLINE)?;
    let names = names(&composite.path).map_err(Error::internal)?;
    let mut calls = Vec::with_capacity(composite.parts.len());
    for part in composite.parts.values() {
        // Values stand in the path as they came: encoded, and one segment each.
        let path = fill(part, &names, &values.iter().map(|value| query_safe(value)).collect::<Vec<_>>())
            .map_err(Error::internal)?;
        let headers = parts.headers.get(header::CACHE_CONTROL).cloned();
        let headers = HeaderMap::from_iter(headers.map(|value| (header::CACHE_CONTROL, value)));
        let call = Subcall { method: Method::GET, path, headers, body: Bytes::new() };
        calls.push(Box::pin(outer.call(edge, call)));
    }
    let replies = join_all(calls).await;
    whole(composite, replies)
}

/// A segment of a path, as it may stand in a query: there `&`, `=` and `+` would mean something.
fn query_safe(segment: &str) -> &str {
    // Ids have none of these; what has is no id, and is asked for as nothing that there can be.
    if segment.contains(['&', '=', '+', '#', '?', ';']) { "-" } else { segment }
}

fn whole(composite: &'static Composite, replies: Vec<Reply>) -> Result<Response, Refusal> {
    let mut partial = false;
    let mut parts = BTreeMap::new();
    for (name, reply) in composite.parts.keys().zip(&replies) {
        if reply.status != StatusCode::OK && *name == composite.essential {
            return Ok(passed_on(reply.clone()));
        }
        let json: &RawValue = serde_json::from_slice(&reply.body).map_err(Error::internal)?;
        let there = reply.status == StatusCode::OK;
        partial |= !there;
        parts.insert(name.as_str(), if there { Part::There(json) } else { Part::Missing { problem: json } });
    }
    let text = serde_json::to_vec(&Whole { partial, parts }).map_err(Error::internal)?;
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    Ok(response)
}

/// What the essential part was refused with.
fn passed_on(reply: Reply) -> Response {
    let mut response = Response::new(Body::new(Full::new(reply.body)));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

#[cfg(test)]
mod tests {
    use super::{check, declared, fill, query_safe};
    use crate::routes;

    #[test]
    fn what_is_declared_fits_the_contract() {
        check(&routes::of_contract().unwrap()).unwrap();
        assert!(!declared().unwrap().is_empty());
    }

    #[test]
    fn variables_are_filled_and_others_refused() {
        assert_eq!(fill("/a/{x}/b?c={y}&d={x}", &["x", "y"], &["1", "2"]).unwrap(), "/a/1/b?c=2&d=1");
        assert!(fill("/a/{z}", &["x"], &["1"]).is_err() && fill("/a/{x", &["x"], &["1"]).is_err());
        assert_eq!((query_safe("a%20b"), query_safe("a&limit=1")), ("a%20b", "-"));
    }
}
