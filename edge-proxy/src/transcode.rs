//! REST in front of gRPC: path, query and body become one message, its answer becomes JSON. A stream of
//! answers becomes Server-Sent Events; a stream of requests has no REST.
//!
//! What a route needs is planned once from the descriptors. Messages are translated by the typed codecs
//! of `proto`; path and query values are appended as protobuf fields, so that they win over the body's.

mod fields;
mod format;
mod messages;
mod query;
mod request;
mod response;
mod stream;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use proto::{Access, HttpBinding, MethodPolicy};
use service_kit::{
    Error,
    client_info::ACCEPT,
    idempotency::{HEADER, REPLAYED},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

use crate::{
    Body, Client, Edge, access, body,
    cache::{Ask, Looked},
    client, cookies,
    incoming::Incoming,
    layers::{Response, compression::Secret},
    load,
    rescue::{self, Refusal},
    routes::table::Variable,
    upstream::{
        self,
        budget::{Budget, request_timeout},
        call::{Call, Payload},
    },
};
use fields::Field;
pub(crate) use format::is_one_oneof;
pub(crate) use request::explain;
use response::Answer;
pub(crate) use response::may_wait;

/// The body of a request.
#[derive(Debug)]
pub(crate) enum Input {
    /// Still on its way.
    Incoming(Incoming),
    /// That of a part of another call, which is there.
    Whole(Bytes),
}

impl Input {
    /// Whether the request is part of another.
    pub(crate) fn is_part(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    async fn read(self, headers: &HeaderMap, limit: usize, deadline: Instant) -> Result<Bytes, Refusal> {
        match self {
            Self::Incoming(body) => body::read(body, headers, limit, deadline).await,
            Self::Whole(body) if body.len() > limit => Err(body::too_large(limit)),
            Self::Whole(body) => Ok(body),
        }
    }
}

/// How one HTTP method and path template reaches its RPC.
#[derive(Debug)]
pub(crate) struct Route {
    policy: &'static MethodPolicy,
    template: &'static str,
    /// Which answer of a message this is: the field that it is cut to.
    part: &'static str,
    /// Whether answers may be kept: GET only.
    keeps: bool,
    variables: Vec<Field>,
    /// Which variables may be several segments.
    multi: Vec<bool>,
    body: request::Plan,
    answer: Plan,
}

/// What becomes of the answer.
#[derive(Debug)]
enum Plan {
    One(Arc<response::Plan>),
    Many(format::Plan),
}

/// What becomes of the answer to one request.
enum Form<'r> {
    One(&'r Arc<response::Plan>),
    Many(format::Writer),
}

impl Plan {
    /// Fails when the client takes none of what there is: a stream that nobody reads is not opened.
    fn form(&self, parts: &Parts, is_gateways: bool) -> Result<Form<'_>, Refusal> {
        Ok(match self {
            Self::One(plan) => {
                // Gateways' controllers send what their makers chose, and take JSON whatever they say.
                if plan.is_json() && !is_gateways && !format::takes_json(&parts.headers) {
                    let message = "the answer is `application/json`";
                    return Err(Refusal::http(StatusCode::NOT_ACCEPTABLE, "NOT_ACCEPTABLE", message));
                }
                Form::One(plan)
            }
            Self::Many(plan) => Form::Many(plan.agree(parts)?),
        })
    }
}

impl Route {
    /// Plans a route; fails when the binding does not fit the messages.
    pub(crate) fn plan(
        policy: &'static MethodPolicy,
        binding: &'static HttpBinding,
        variables: &[Variable<'_>],
    ) -> anyhow::Result<Self> {
        let method = &policy.descriptor;
        let template = &binding.template;
        anyhow::ensure!(!method.is_client_streaming(), "{template}: a stream of requests has no REST");
        let variable = |Variable { name, .. }: &Variable<'_>| {
            Field::resolve(&method.input(), name)
                .filter(|field| !field.is_repeated())
                .ok_or_else(|| anyhow::anyhow!("{template}: {{{name}}} is no field of the request"))
        };
        let answer = match method.is_server_streaming() {
            true => Plan::Many(format::Plan::of(&method.output(), &binding.response_body)?),
            false => Plan::One(Arc::new(response::Plan::of(&method.output(), &binding.response_body)?)),
        };
        Ok(Self {
            policy,
            template,
            part: &binding.response_body,
            keeps: policy.cache.is_some() && binding.verb == "GET",
            variables: variables.iter().map(variable).collect::<anyhow::Result<_>>()?,
            multi: variables.iter().map(|variable| variable.multi).collect(),
            body: request::Plan::of(&method.input(), &binding.body)?,
            answer,
        })
    }

    /// Whether its answer is a stream.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.answer, Plan::Many(_))
    }

    /// The path template, for log and metrics.
    pub(crate) fn template(&self) -> &'static str {
        self.template
    }

    /// The request message in a gRPC frame.
    fn frame(&self, values: &[&str], parts: &Parts, body: &Bytes) -> Result<Bytes, Refusal> {
        let mut frame = vec![0; 5];
        self.body.encode(body, &parts.headers, &mut frame)?;
        let query = parts.uri.query().unwrap_or_default();
        query::encode(&self.policy.descriptor.input(), query, &self.variables, &self.body, &mut frame)?;
        for ((field, multi), value) in self.variables.iter().zip(&self.multi).zip(values) {
            let value = if *multi { query::decode_segments(value) } else { query::decode(value, false) };
            let value =
                value.map_err(|message| Error::field(field.json_path(), format!("in the path {message}")))?;
            field.encode(&value, &mut frame).map_err(|message| Error::field(field.json_path(), message))?;
        }
        let bytes = frame.len() - 5;
        if bytes > self.policy.max_request_bytes {
            return Err(body::too_large(self.policy.max_request_bytes));
        }
        let length = u32::try_from(bytes).map_err(Error::internal)?;
        frame[1..5].copy_from_slice(&length.to_be_bytes());
        Ok(frame.into())
    }
}

/// Answers a REST request by its RPC.
pub(crate) async fn serve(
    edge: &Edge,
    route: &Route,
    values: &[&str],
    parts: &Parts,
    body: Input,
) -> Result<Response, Refusal> {
    let started = Instant::now();
    let policy = route.policy;
    let form = route.answer.form(parts, policy.access == Access::Gateway)?;
    let client = Client::of(&parts.extensions)?;
    let cookies = match policy.cookies {
        true => cookies::incoming(parts, client, &edge.live.load().allowed_origins)?,
        false => None,
    };
    let (credential, caller) = access::admit(edge, policy, client, &parts.headers).await?;
    // Until the end of the call, however it ends.
    let _written = edge.cache.changes().written(policy, caller.as_ref(), values.iter().copied());

    let _room = edge.room(policy)?;
    let cap = policy.max_deadline.unwrap_or(proto::policy::DEFAULT_MAX_DEADLINE);
    let asked = request_timeout(&parts.headers)?;
    let deadline = started + asked.map_or(cap, |asked| asked.min(cap));
    let arrived = deadline.min(started + Duration::from_millis(edge.live.load().bounds.request_body_ms));
    let body = body.read(&parts.headers, policy.max_request_bytes, arrived).await?;
    let frame = route.frame(values, parts, &body)?;
    drop(body);
    let accepted = match &route.answer {
        Plan::One(plan) if plan.has_forms() => accept(&parts.headers)?,
        Plan::Many(plan) if plan.has_forms() => accept(&parts.headers)?,
        _ => None,
    };
    let looked = match route.keeps {
        true => {
            let accepted = accepted.as_ref().map_or(&b""[..], |(_, accepted)| accepted.as_bytes());
            edge.cache.look(&Ask {
                policy,
                caller: caller.as_ref(),
                form: &[b"rest", route.part.as_bytes(), accepted],
                by_accept: matches!(&route.answer, Plan::One(plan) if plan.has_forms()),
                message: frame.slice(5..),
                named: values,
                headers: &parts.headers,
            })?
        }
        false => None,
    };
    let fetch = match looked {
        Some(Looked::Answer(answer)) => return Ok(answer),
        Some(Looked::Fetch(fetch)) => Some(fetch),
        None => None,
    };

    let upstream = edge.upstreams.of(policy).ok_or_else(access::unknown_method)?;
    let mut call = call(route, frame, Budget::new(started, asked, policy.max_deadline));
    let headers = &mut call.headers;
    headers.extend(credential.into_iter().chain(cookies.map(|value| (header::COOKIE, value))));
    client.introduce(client::described(&parts.headers), headers);
    headers.extend(accepted);
    if policy.takes_key {
        // All of them: several are the service's to refuse.
        headers.extend(parts.headers.get_all(&HEADER).iter().map(|key| (HEADER, key.clone())));
    }
    let class = edge.live.load().switches.class(policy)?;
    let (gates, ticket, upstream) = (edge.load.clone(), client.ticket(), upstream.clone());
    if matches!(form, Form::Many(_)) {
        // Of a stream, only its beginning has a deadline.
        call.budget.deadline = None;
    }
    // Boxed: it is large, and moved from hand to hand until its task begins. A batch has all of this on its stack twice.
    let answer = Box::pin(async move {
        let (service, marks) = (upstream.service(), ticket.marks());
        let load = load::Call { service, policy, class, deadline: Some(deadline), marks };
        gates.around(&load, upstream.call_watched(call)).await
    });
    match form {
        Form::One(plan) => {
            let answer = one(plan.clone(), policy, answer, deadline);
            match fetch {
                Some(fetch) => Box::pin(fetch.run(&edge.tasks, answer)).await,
                None => answer.await,
            }
        }
        Form::Many(writer) => {
            let answer = tokio::time::timeout_at(deadline, answer).await.map_err(|_| rescue::late())??;
            Box::pin(stream::reply(edge, writer, answer)).await
        }
    }
}

/// The reply to a call with one answer.
async fn one(
    plan: Arc<response::Plan>,
    policy: &'static MethodPolicy,
    answer: impl Future<Output = Result<http::Response<Body>, Refusal>>,
    deadline: Instant,
) -> Result<Response, Refusal> {
    // The deadline is the edge's: dropping the call cancels it upstream, as does a client that leaves.
    let answer = async { Ok::<_, Refusal>(response::read(answer.await?).await) };
    let Answer { message, metadata } =
        tokio::time::timeout_at(deadline, answer).await.map_err(|_| rescue::late())??;
    let reply = message.and_then(|message| plan.reply(message, policy));
    let carried = match policy {
        policy if policy.cookies => Some(header::SET_COOKIE),
        policy if policy.takes_key => Some(REPLAYED),
        _ => None,
    };
    let mut reply = match carried {
        Some(name) => carrying(reply, &metadata, &name)?,
        None => reply?,
    };
    Secret::mark(policy, &mut reply);
    if policy.access == Access::Public && policy.cache_max_age_s > 0 {
        let rule = format!("public, max-age={}", policy.cache_max_age_s);
        reply
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::try_from(rule).map_err(Error::internal)?);
    }
    Ok(reply)
}

/// What the client takes, for a service that can choose; several lines of `Accept` are one list.
fn accept(headers: &HeaderMap) -> Result<Option<(HeaderName, HeaderValue)>, Error> {
    let lines: Vec<&[u8]> = headers.get_all(header::ACCEPT).iter().map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let list = HeaderValue::from_bytes(&lines.join(&b", "[..])).map_err(Error::internal)?;
    Ok(Some((ACCEPT, list)))
}

/// Passes a header of the service on, also where it refuses: what browsers are to keep, or that it answered before.
fn carrying(
    reply: Result<Response, Error>,
    metadata: &HeaderMap,
    name: &HeaderName,
) -> Result<Response, Refusal> {
    let values = metadata.get_all(name).iter().cloned();
    match reply {
        Ok(mut reply) => {
            reply.headers_mut().extend(values.map(|value| (name.clone(), value)));
            Ok(reply)
        }
        Err(error) => {
            let add = |refusal: Refusal, value| refusal.with_header(name.clone(), value);
            Err(values.fold(error.into(), add))
        }
    }
}

/// The gRPC call, with none of the client's headers.
fn call(route: &Route, frame: Bytes, budget: Budget) -> Call {
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let payload = Payload::Whole(frame);
    Call { method: upstream::call::Method::of(route.policy), headers, payload, budget }
}

#[cfg(test)]
mod rules;
#[cfg(test)]
mod tests;
