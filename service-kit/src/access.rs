//! The wall in front of every service: peer certificate, policy of the method, access token, deadline.
//!
//! A method without a policy is refused. The caller's access token is verified here again, whoever
//! forwarded it; no header names a user.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, Request, Response};
use proto::{Access, Contract, MethodPolicy, Proof};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::{
    client_info::ClientInfo,
    error::{Error, Result},
    token::{Claims, Verifier},
};

/// For how long a proof of who somebody is counts as recent, in seconds.
pub const RECENT: i64 = 600;

/// The reason of an error that a new proof of the user cures (RFC 9470).
pub const STEP_UP_REQUIRED: &str = "STEP_UP_REQUIRED";

/// How long a caller waits for a call.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The one peer that knows clients.
const EDGE: &str = "edge-proxy";

/// The service at the other end of a connection, by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub Arc<str>);

/// The user on whose behalf a call is made; the first argument of every domain method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthContext {
    claims: Arc<Claims>,
}

impl AuthContext {
    /// The context of verified claims.
    pub fn new(claims: Arc<Claims>) -> Self {
        Self { claims }
    }

    /// The context of a call: there is one behind every USER method.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::unauthenticated("an access token is required"))
    }

    /// The user's id.
    pub fn user_id(&self) -> &str {
        &self.claims.sub
    }

    /// The session's id.
    pub fn session_id(&self) -> &str {
        &self.claims.sid
    }

    /// Everything that the token says.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether the token's scopes hold a permission. Scopes only narrow what the user may do.
    pub fn has_scope(&self, permission: &str) -> bool {
        let holds = |scope: &str| {
            scope == "*" || scope == permission || (scope == "*:read" && permission.ends_with(":read"))
        };
        permission.is_empty() || self.claims.scope.split(' ').any(holds)
    }
}

/// Checks a call's token against the policy of its method: the same rule at the edge and in services.
pub async fn authenticate(
    policy: &MethodPolicy,
    headers: &http::HeaderMap,
    verifier: &Verifier,
) -> Result<Option<AuthContext>> {
    if policy.access != Access::User {
        return Ok(None);
    }
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => {
            return Err(Error::unauthenticated("an access token is required in `Authorization: Bearer`"));
        }
        (Some(_), Some(_)) => return Err(Error::unauthenticated("more than one `Authorization` header")),
        (Some(value), None) => value.to_str().unwrap_or_default(),
    };
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(Error::unauthenticated("`Authorization` must be `Bearer` and an access token")),
    };
    let context = AuthContext::new(verifier.verify(token).await?);
    if !context.has_scope(&policy.permission) {
        return Err(Error::new(
            crate::Kind::PermissionDenied,
            "INSUFFICIENT_SCOPE",
            format!("the token lacks the scope {}", policy.permission),
        ));
    }
    check_proof(policy.proof, context.claims(), || verifier.now_ms() / 1_000)?;
    Ok(Some(context))
}

/// Whether the user proved who they are in the way that a method needs.
fn check_proof(proof: Proof, claims: &Claims, now: impl FnOnce() -> i64) -> Result<()> {
    if proof != Proof::Any && !claims.is_interactive() {
        return Err(Error::new(
            crate::Kind::PermissionDenied,
            "INTERACTIVE_LOGIN_REQUIRED",
            "this needs the session of a person; personal access tokens and service accounts may not do it",
        ));
    }
    if proof == Proof::Recent && now() - claims.auth_time > RECENT {
        return Err(Error::new(
            crate::Kind::Unauthenticated,
            STEP_UP_REQUIRED,
            "this needs a proof of who you are from the last ten minutes; prove it again",
        ));
    }
    Ok(())
}

/// Puts the wall in front of a service.
#[derive(Debug, Clone)]
pub struct AccessLayer {
    verifier: Verifier,
}

impl AccessLayer {
    /// The wall with this verifier.
    pub fn new(verifier: Verifier) -> Self {
        Self { verifier }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessService { inner, verifier: self.verifier.clone() }
    }
}

/// A service behind the wall.
#[derive(Debug, Clone)]
pub struct AccessService<S> {
    inner: S,
    verifier: Verifier,
}

impl<S, B> Service<Request<B>> for AccessService<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let verifier = self.verifier.clone();
        Box::pin(async move {
            let path = request.uri().path();
            // Health and reflection belong to the transport; the mesh alone reaches them.
            if path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.") {
                return inner.call(request).await;
            }
            let policy = match admit(&request) {
                Ok(policy) => policy,
                Err(error) => return Ok(refuse(error)),
            };
            let of_edge = request.extensions().get::<Peer>().is_some_and(|peer| &*peer.0 == EDGE);
            let client = if of_edge { ClientInfo::read(request.headers()) } else { ClientInfo::default() };
            request.extensions_mut().insert(client);
            match authenticate(policy, request.headers(), &verifier).await {
                Ok(Some(context)) => drop(request.extensions_mut().insert(context)),
                Ok(None) => {}
                Err(error) => return Ok(refuse(error)),
            }
            let Some(cap) = policy.max_deadline else { return inner.call(request).await };
            let deadline = timeout_of(request.headers()).map_or(cap, |asked| asked.min(cap));
            // The service answers a deadline itself: tonic would say CANCELLED.
            match tokio::time::timeout(deadline, inner.call(request)).await {
                Ok(Ok(response)) => Ok(unread(&response).map_or(response, refuse)),
                Ok(Err(never)) => match never {},
                Err(_) => Ok(Status::deadline_exceeded("the deadline of the call has passed").into_http()),
            }
        })
    }
}

fn admit<B>(request: &Request<B>) -> Result<&'static MethodPolicy> {
    let Some(policy) = Contract::get().method(request.uri().path()) else {
        return Err(Error::new(crate::Kind::Unimplemented, "UNKNOWN_METHOD", "no such method"));
    };
    let peer = request.extensions().get::<Peer>();
    if policy.access == Access::Unspecified || !peer.is_some_and(|peer| policy.admits_peer(&peer.0)) {
        tracing::warn!(path = policy.path, peer = peer.map(|peer| &*peer.0), "peer refused");
        return Err(Error::permission_denied("this peer may not call this method"));
    }
    Ok(policy)
}

/// What tonic says of a message that it cannot read, all of it INTERNAL.
const UNREAD: [&str; 4] = [
    "failed to decode Protobuf message",
    "Unexpected EOF decoding stream",
    "Missing request message",
    "protocol error: received message",
];

/// The caller's fault, where tonic answers as if it were ours: a message that is none.
fn unread(response: &Response<Body>) -> Option<Error> {
    if response.headers().get(Status::GRPC_STATUS)? != "13" {
        return None;
    }
    let status = Status::from_header_map(response.headers())?;
    let message = status.message();
    if !UNREAD.iter().any(|known| message.starts_with(known)) {
        return None;
    }
    // prost: `failed to decode Protobuf message: Outer.inner_field: Inner.name: what is wrong`.
    let mut path = Vec::new();
    let mut rest = message.split_once(": ").map_or(message, |(_, rest)| rest);
    while let Some((place, inner)) = rest.split_once(": ")
        && let Some((_, field)) = place.split_once('.')
        && !place.contains(' ')
    {
        path.push(lower_camel(field));
        rest = inner;
    }
    let error = Error::new(crate::Kind::InvalidArgument, "MALFORMED_MESSAGE", message);
    Some(if path.is_empty() {
        error
    } else {
        error.naming(path.join("."), format!("cannot be read: {rest}"))
    })
}

/// `display_name` as JSON has it: `displayName`.
fn lower_camel(name: &str) -> String {
    let mut upper = false;
    name.chars()
        .filter_map(|letter| match std::mem::replace(&mut upper, letter == '_') {
            _ if letter == '_' => None,
            true => Some(letter.to_ascii_uppercase()),
            false => Some(letter),
        })
        .collect()
}

fn refuse(error: Error) -> Response<Body> {
    Status::from(error).into_http()
}

/// The deadline in `grpc-timeout`: at most eight digits and a unit.
pub fn timeout_of(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
