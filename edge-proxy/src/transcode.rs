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
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use proto::{Access, HttpBinding, MethodPolicy};
use service_kit::{Error, client_info::ACCEPT};
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt as _;

use crate::{
    Body, Client, Edge, access, body, cookies,
    layers::{Response, request_id::X_REQUEST_ID},
    rescue::{self, Refusal},
};
use fields::Field;
pub(crate) use format::is_one_oneof;
use response::Answer;
pub(crate) use response::may_wait;

/// How one HTTP method and path template reaches its RPC.
#[derive(Debug)]
pub(crate) struct Route {
    policy: &'static MethodPolicy,
    template: &'static str,
    uri: http::Uri,
    variables: Vec<Field>,
    body: request::Plan,
    answer: Plan,
}

/// What becomes of the answer.
#[derive(Debug)]
enum Plan {
    One(response::Plan),
    Many(format::Plan),
}

/// What becomes of the answer to one request.
enum Form<'r> {
    One(&'r response::Plan),
    Many(format::Writer),
}

impl Plan {
    /// Fails when the client takes none of what there is: a stream that nobody reads is not opened.
    fn form(&self, parts: &Parts) -> Result<Form<'_>, Refusal> {
        Ok(match self {
            Self::One(plan) => Form::One(plan),
            Self::Many(plan) => Form::Many(plan.with(format::agree(parts)?, parts.uri.path())),
        })
    }
}

impl Route {
    /// Plans a route; fails when the binding does not fit the messages.
    pub(crate) fn plan(
        policy: &'static MethodPolicy,
        binding: &'static HttpBinding,
        variables: &[&str],
    ) -> anyhow::Result<Self> {
        let method = &policy.descriptor;
        let template = &binding.template;
        anyhow::ensure!(!method.is_client_streaming(), "{template}: a stream of requests has no REST");
        let variable = |name: &&str| {
            Field::resolve(&method.input(), name)
                .filter(|field| !field.is_repeated())
                .ok_or_else(|| anyhow::anyhow!("{template}: {{{name}}} is no field of the request"))
        };
        let answer = match method.is_server_streaming() {
            true => Plan::Many(format::Plan::of(&method.output(), &binding.response_body)?),
            false => Plan::One(response::Plan::of(&method.output(), &binding.response_body)?),
        };
        Ok(Self {
            policy,
            template,
            uri: policy.path.parse()?,
            variables: variables.iter().map(variable).collect::<anyhow::Result<_>>()?,
            body: request::Plan::of(&method.input(), &binding.body)?,
            answer,
        })
    }

    /// The path template, for log and metrics.
    pub(crate) fn template(&self) -> &'static str {
        self.template
    }

    /// The request message in a gRPC frame.
    fn frame(&self, values: &[&str], parts: &Parts, body: &Bytes) -> Result<Vec<u8>, Refusal> {
        let mut frame = vec![0; 5];
        self.body.encode(body, &parts.headers, &mut frame)?;
        let query = parts.uri.query().unwrap_or_default();
        query::encode(&self.policy.descriptor.input(), query, &self.variables, &self.body, &mut frame)?;
        for (field, value) in self.variables.iter().zip(values) {
            let value = query::decode(value, false)
                .map_err(|message| Error::field(field.json_path(), format!("in the path {message}")))?;
            field.encode(&value, &mut frame).map_err(|message| Error::field(field.json_path(), message))?;
        }
        let bytes = frame.len() - 5;
        if bytes > self.policy.max_request_bytes {
            return Err(body::too_large(self.policy.max_request_bytes));
        }
        let length = u32::try_from(bytes).map_err(Error::internal)?;
        frame[1..5].copy_from_slice(&length.to_be_bytes());
        Ok(frame)
    }
}

/// Answers a REST request by its RPC.
pub(crate) async fn serve(
    edge: &Edge,
    route: &Route,
    values: &[&str],
    parts: &Parts,
    body: Incoming,
) -> Result<Response, Refusal> {
    let started = Instant::now();
    let policy = route.policy;
    let form = route.answer.form(parts)?;
    let client = Client::of(&parts.extensions)?;
    let cookies = match policy.cookies {
        true => cookies::incoming(parts, client, &edge.config.cors.allowed_origins)?,
        false => None,
    };
    let credential = access::admit(edge, policy, client, &parts.headers).await?;

    let _room = edge.room(policy)?;
    let cap = policy.max_deadline.unwrap_or(proto::policy::DEFAULT_MAX_DEADLINE);
    let deadline = started + cap;
    let arrived = deadline.min(started + Duration::from_millis(edge.config.limits.request_body_ms));
    let body = body::read(body, &parts.headers, policy.max_request_bytes, arrived).await?;
    let frame = route.frame(values, parts, &body)?;
    drop(body);

    let upstream = edge.upstreams.of(policy).ok_or_else(access::unknown_method)?.clone();
    // Of a stream, only its beginning has a deadline.
    let rest = policy.max_deadline.map(|_| deadline.saturating_duration_since(Instant::now()));
    let mut request = call(route, frame, rest);
    let headers = request.headers_mut();
    headers.extend(credential.into_iter().chain(cookies.map(|value| (header::COOKIE, value))));
    headers.extend(parts.headers.get(X_REQUEST_ID).map(|id| (X_REQUEST_ID, id.clone())));
    client.info(&parts.headers).write(headers);
    if matches!(&route.answer, Plan::One(plan) if plan.has_forms()) {
        headers.extend(accept(&parts.headers)?);
    }
    let answer = async {
        let answer = upstream.oneshot(request).await;
        answer.map_err(|error| Error::unavailable("the service does not answer", error))
    };
    match form {
        Form::One(plan) => one(plan, policy, answer, deadline).await,
        Form::Many(writer) => {
            let answer = tokio::time::timeout_at(deadline, answer).await.map_err(|_| rescue::late())??;
            stream::reply(edge, writer, answer).await
        }
    }
}

/// The reply to a call with one answer.
async fn one(
    plan: &response::Plan,
    policy: &MethodPolicy,
    answer: impl Future<Output = Result<http::Response<Body>, Error>>,
    deadline: Instant,
) -> Result<Response, Refusal> {
    // The deadline is the edge's: dropping the call cancels it upstream, as does a client that leaves.
    let answer = async { Ok::<_, Error>(response::read(answer.await?).await) };
    let Answer { message, metadata } =
        tokio::time::timeout_at(deadline, answer).await.map_err(|_| rescue::late())??;
    let reply = message.and_then(|message| plan.reply(message, policy));
    let mut reply = if policy.cookies { with_cookies(reply, &metadata)? } else { reply? };
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

/// Lets browsers keep what the service wants them to, also where it refuses.
fn with_cookies(reply: Result<Response, Error>, metadata: &HeaderMap) -> Result<Response, Refusal> {
    let set = metadata.get_all(header::SET_COOKIE).iter().cloned();
    match reply {
        Ok(mut reply) => {
            reply.headers_mut().extend(set.map(|cookie| (header::SET_COOKIE, cookie)));
            Ok(reply)
        }
        Err(error) => {
            let add = |refusal: Refusal, cookie| refusal.with_header(header::SET_COOKIE, cookie);
            Err(set.fold(error.into(), add))
        }
    }
}

/// The gRPC request, with none of the client's headers.
fn call(route: &Route, frame: Vec<u8>, rest: Option<Duration>) -> http::Request<Body> {
    let mut request = http::Request::new(Body::new(Full::new(Bytes::from(frame))));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = route.uri.clone();
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    if let Some(rest) = rest {
        headers.insert("grpc-timeout", crate::grpc::timeout_value(rest));
    }
    request
}

#[cfg(test)]
mod tests;
