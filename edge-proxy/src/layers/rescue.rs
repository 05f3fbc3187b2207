//! Where errors and panics of everything behind it become replies.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use service_kit::Error;

use super::Response;
use crate::rescue::{Asked, Refusal, reply};

/// The answer, or the reply to what went wrong.
// Not `async`: that would hold `inside` twice.
pub(crate) fn rescued<'a>(
    asked: &'a Asked,
    inside: impl Future<Output = Result<Response, Refusal>> + 'a,
) -> impl Future<Output = Response> {
    AssertUnwindSafe(inside).catch_unwind().map(|outcome| match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(refusal)) => reply(asked, refusal),
        Err(panic) => reply(asked, panicked(&*panic).into()),
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
