//! The answer to a call on its way out, watched to its end: only the trailers say what it came to.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use service_kit::Kind;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Service,
    breaker::Pass,
    budget::Budget,
    failure::{Blame, Failure, Seen, is_failure},
    instance::Instance,
    pool::Lease,
    retry::Pushback,
    status,
    wire::{Incoming, Outgoing},
};
use crate::{Body, grpc::code_in};

/// A call at an instance, until it is known what it came to. Dropped before that, it was given up.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) service: Arc<Service>,
    pub(super) instance: Arc<Instance>,
    pub(super) lease: Lease,
    /// `package.Service/Method`.
    pub(super) method: &'static str,
    pub(super) started: Instant,
    pub(super) budget: Budget,
    /// Whether it lives on after it has begun well: how it ends then says nothing of the instance.
    pub(super) is_stream: bool,
    pub(super) pass: Pass,
    pub(super) is_judged: bool,
    pub(super) is_over: bool,
}

/// What an attempt came to that brought no answer, or none that must be the last.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) seen: Seen,
    pub(super) pushback: Pushback,
    pub(super) outcome: Outcome,
    /// The request, if it was never sent.
    pub(super) request: Option<Box<Outgoing>>,
    /// Whether the instance could not be reached at all.
    pub(super) is_away: bool,
}

/// What the caller gets if it is not tried again.
#[derive(Debug)]
pub(super) enum Outcome {
    Failure(Failure),
    Answer(Box<http::Response<Body>>),
}

impl Ticket {
    /// The instance has taken a stream, and has said something on it.
    fn begun(&mut self) {
        if self.is_stream {
            self.succeed();
        }
    }

    /// The status has come.
    fn end(&mut self, code: Code, headers: &HeaderMap) {
        if is_failure(code, headers, self.budget.is_ours) {
            self.fail();
        } else {
            self.succeed();
        }
        self.over(code);
    }

    /// It broke.
    pub(super) fn broke(&mut self, failure: &Failure) {
        match failure.blame {
            Blame::Instance => self.fail(),
            Blame::Connection if self.lease.counts_loss() => self.fail(),
            Blame::Connection | Blame::Nobody => self.service.breaker.abandon(self.pass),
        }
        self.over(failure.code());
    }

    fn succeed(&mut self) {
        if !std::mem::replace(&mut self.is_judged, true) {
            self.instance.outlier.succeed();
            self.service.breaker.succeed();
        }
    }

    fn fail(&mut self) {
        if !std::mem::replace(&mut self.is_judged, true) {
            self.service.failed(&self.instance, self.pass);
        }
    }

    fn over(&mut self, code: Code) {
        self.is_over = true;
        self.instance.measures.call(self.method, code, self.started.elapsed());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let is_late = self.budget.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if is_late && self.budget.is_ours {
            self.fail();
        } else {
            self.service.breaker.abandon(self.pass);
        }
        self.over(if is_late { Code::DeadlineExceeded } else { Code::Cancelled });
    }
}

/// Looks at what an instance has answered. With `peek`, as far as its first frame.
pub(super) async fn judge(
    response: http::Response<Incoming>,
    mut ticket: Ticket,
    peek: bool,
) -> Result<http::Response<Body>, Lost> {
    let (mut head, inner) = response.into_parts();
    // The edge may have to end the answer otherwise than announced.
    head.headers.remove(header::CONTENT_LENGTH);
    if let Some(code) = code_in(&head.headers) {
        // Trailers-Only: this is all there is.
        status::mend(&mut head.headers);
        ticket.end(code, &head.headers);
        let pushback = pushback(code, &head.headers);
        return last(http::Response::from_parts(head, Body::empty()), code, pushback);
    }
    if head.status != StatusCode::OK {
        let failure = Failure::of_http(head.status);
        ticket.broke(&failure);
        // Whoever stands there instead of the service says no, and would again.
        let pushback = match failure.kind {
            Kind::Unavailable => Pushback::of(&head.headers),
            _ => Pushback::Never,
        };
        return Err(Lost::failure(failure, pushback));
    }
    ticket.begun();
    let mut answer = Answer { inner, ticket: Some(ticket), first: None };
    if peek {
        match std::future::poll_fn(|cx| answer.poll_next(cx)).await {
            Some(Ok(frame)) => {
                let end = frame.trailers_ref().and_then(|trailers| Some((code_in(trailers)?, trailers)));
                let end = end.map(|(code, trailers)| (code, pushback(code, trailers)));
                answer.first = Some(frame);
                if let Some((code, pushback)) = end {
                    return last(http::Response::from_parts(head, Body::new(answer)), code, pushback);
                }
            }
            Some(Err(failure)) => return Err(Lost::failure(failure, Pushback::None)),
            None => {}
        }
    }
    Ok(http::Response::from_parts(head, Body::new(answer)))
}

/// An answer that holds nothing but a status: "not now" may be asked again.
fn last(
    response: http::Response<Body>,
    code: Code,
    pushback: Pushback,
) -> Result<http::Response<Body>, Lost> {
    if code != Code::Unavailable {
        return Ok(response);
    }
    let outcome = Outcome::Answer(Box::new(response));
    Err(Lost { seen: Seen::Perhaps, pushback, outcome, request: None, is_away: false })
}

fn pushback(code: Code, headers: &HeaderMap) -> Pushback {
    if code == Code::Unavailable { Pushback::of(headers) } else { Pushback::None }
}

impl Lost {
    pub(super) fn failure(failure: Failure, pushback: Pushback) -> Self {
        let seen = failure.seen;
        Self { seen, pushback, outcome: Outcome::Failure(failure), request: None, is_away: false }
    }
}

/// The body of an answer.
struct Answer {
    inner: Incoming,
    /// Until the end.
    ticket: Option<Ticket>,
    /// What was looked at already.
    first: Option<Frame<Bytes>>,
}

impl Answer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.ticket.is_none() {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let failure = match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    status::mend(trailers);
                }
                match frame.trailers_ref().map(|trailers| (code_in(trailers), trailers)) {
                    None => return Poll::Ready(Some(Ok(frame))),
                    Some((Some(code), trailers)) => {
                        if let Some(mut ticket) = self.ticket.take() {
                            ticket.end(code, trailers);
                        }
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Some((None, _)) => Failure::without_status(),
                }
            }
            Some(Err(error)) => Failure::broken(error),
            None => Failure::without_status(),
        };
        if let Some(mut ticket) = self.ticket.take() {
            ticket.broke(&failure);
        }
        Poll::Ready(Some(Err(failure)))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.poll_next(cx).map(|next| next.map(|frame| frame.map_err(Failure::into_status)))
    }

    fn is_end_stream(&self) -> bool {
        // Not before the status: an answer that lacks one must be noticed.
        self.ticket.is_none() && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
