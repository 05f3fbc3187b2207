//! Where calls with a key leave the straight way; all others pass.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use http::{Request, Response};
use proto::Contract;
use tonic::Status;
use tower::{Layer, Service};

use super::{HEADER, Key, Keys};

/// What answers calls.
pub(super) trait Inner:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
}

impl<S> Inner for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Puts [`KeyService`] in front of a service.
#[derive(Debug, Clone)]
pub(super) struct KeyLayer(pub(super) Keys);

impl<S> Layer<S> for KeyLayer {
    type Service = KeyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        KeyService { inner, keys: self.0.clone() }
    }
}

/// A service that does calls with a key once.
#[derive(Debug, Clone)]
pub(super) struct KeyService<S> {
    inner: S,
    keys: Keys,
}

impl<S: Inner> Service<Request<Body>> for KeyService<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Most calls have none.
        let has_key = request.headers().contains_key(&HEADER);
        let method = has_key.then(|| Contract::get().method(request.uri().path())).flatten();
        let Some(policy) = method.filter(|policy| policy.takes_key) else {
            return Box::pin(self.inner.call(request));
        };
        match Key::read(request.headers()) {
            Ok(None) => Box::pin(self.inner.call(request)),
            Ok(Some(key)) => {
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                let keys = self.keys.clone();
                Box::pin(async move {
                    let answer = keys.answer(policy, key, request, inner).await;
                    Ok(answer.unwrap_or_else(|error| Status::from(error).into_http()))
                })
            }
            Err(error) => {
                let refusal = Status::from(error).into_http();
                Box::pin(std::future::ready(Ok(refusal)))
            }
        }
    }
}
