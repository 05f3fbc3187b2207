//! Where errors and panics of everything behind it become replies.

use std::{convert::Infallible, panic::AssertUnwindSafe};

use futures_util::FutureExt as _;
use service_kit::Error;
use tower::{ServiceExt as _, service_fn};

use super::{Next, Request};
use crate::{
    rescue::{Asked, Refusal, reply},
    routes::Protocol,
};

pub(crate) fn wrap<S: Next<Refusal>>(inner: S) -> impl Next<Infallible> {
    service_fn(move |request: Request| {
        let inner = inner.clone();
        let asked = Asked { protocol: Protocol::of(&request), uri: request.uri().clone() };
        async move {
            let outcome = AssertUnwindSafe(inner.oneshot(request)).catch_unwind().await;
            Ok(match outcome {
                Ok(Ok(response)) => response,
                Ok(Err(refusal)) => reply(&asked, refusal),
                Err(panic) => reply(&asked, panicked(&*panic).into()),
            })
        }
    })
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::internal(anyhow::anyhow!("a handler panicked: {message}"))
}

#[cfg(test)]
mod tests;
