//! Calls without side effects as GET. Answers that the contract lets the edge keep are kept as those over REST are,
//! in the same cache, which is asked once the caller is admitted and the message was read.

use std::sync::Arc;

use http::{HeaderValue, header, request::Parts};
use http_body_util::Full;
use proto::{Access, MethodPolicy};
use service_kit::Error;
use tonic::Code;

use super::{Codecs, Format, call, malformed, query, unary};
use crate::{
    Body, Client, Edge, access,
    body::too_large,
    cache::{Ask, Looked, Unshared, named},
    codings, envelope,
    grpc::{self, Admitted},
    layers::{Response, trace::Noted},
    rescue::Refusal,
};

/// Answers a call.
pub(super) async fn get(
    edge: &Arc<Edge>,
    policy: &'static MethodPolicy,
    parts: Parts,
) -> Result<Response, Refusal> {
    let query = query::read(parts.uri.query().unwrap_or_default())?;
    let (format, codecs) = (query.format, Codecs::of(policy, query.format)?);
    let admitted = access::admit(edge, policy, Client::of(&parts.extensions)?, &parts.headers).await?;
    let limit = policy.max_request_bytes;
    let message = match query.coding {
        Some(coding) => {
            coding.inflate(&query.message, limit).map_err(|fault| codings::refusal(fault, limit))?
        }
        None if query.message.len() > limit => return Err(too_large(limit)),
        None => query.message,
    };
    let message = codecs.read(message)?;
    let frame = envelope::wrap(0, &message).map_err(|_| malformed("the message is too large"))?;
    let looked = {
        let named = named(policy, &message);
        edge.cache.look(&Ask {
            policy,
            caller: admitted.1.as_ref(),
            form: &[b"connect", format.name().as_bytes()],
            by_accept: false,
            message,
            named: &named.iter().map(String::as_str).collect::<Vec<_>>(),
            headers: &parts.headers,
        })?
    };
    let request = call(policy, parts, Body::new(Full::new(frame)))?;
    let mut response = match looked {
        Some(Looked::Answer(answer)) => answer,
        Some(Looked::Fetch(fetch)) => {
            // Boxed: it is large, and moved until its task begins.
            let fetched = Box::pin(fetched(edge.clone(), policy, format, codecs, request, admitted));
            fetch.run(&edge.tasks, fetched).await?
        }
        None => {
            let answer = grpc::serve_admitted(edge, policy, request, admitted).await?;
            let mut response = unary::reply(policy, format, codecs, answer, None).await?;
            if policy.access == Access::Public && policy.cache_max_age_s > 0 && response.status().is_success()
            {
                let rule = format!("public, max-age={}", policy.cache_max_age_s);
                let rule = HeaderValue::try_from(rule).map_err(Error::internal)?;
                response.headers_mut().insert(header::CACHE_CONTROL, rule);
            }
            response
        }
    };
    if response.extensions().get::<Noted>().is_none() {
        response.extensions_mut().insert(Noted { route: Some(&policy.path), code: Some(Code::Ok) });
    }
    Ok(response)
}

/// An answer for the cache.
async fn fetched(
    edge: Arc<Edge>,
    policy: &'static MethodPolicy,
    format: Format,
    codecs: Codecs,
    request: http::Request<Body>,
    admitted: Admitted,
) -> Result<Response, Refusal> {
    let answer = grpc::serve_admitted(&edge, policy, request, admitted).await?;
    let mut response = unary::reply(policy, format, codecs, answer, None).await?;
    // Metadata is not kept: who else asks would miss it.
    if response.headers().keys().any(|name| *name != header::CONTENT_TYPE && *name != header::CONTENT_LENGTH)
    {
        response.extensions_mut().insert(Unshared);
    }
    Ok(response)
}
