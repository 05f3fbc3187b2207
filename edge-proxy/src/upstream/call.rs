//! A call to a service, from the first attempt to the last.
//!
//! Its deadline is the edge's: waiting for a stream, pauses and attempts all spend the same budget, and each
//! attempt tells the service what is left of it. Dropping a call cancels it at the instance.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as Verb, Version, uri::PathAndQuery};
use proto::MethodPolicy;
use service_kit::{Error, Kind, Result, access::GRPC_TIMEOUT};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Service, Upstream,
    answer::{Lost, Outcome, Ticket, judge},
    breaker::{Breaker, Pass},
    budget::Budget,
    failure::{Failure, Seen},
    instance::Instance,
    origin,
    pool::NoStream,
    retry::{Pushback, pause},
    wire::{Messages, Outgoing, Unsent},
};
use crate::{Body, rescue};

/// How often a call comes back that instances never began with, beyond once from each.
const UNPROCESSED: u32 = 2;

/// What has to be known of a method.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Method {
    path: &'static str,
    target: &'static PathAndQuery,
    is_stream: bool,
    is_answered_once: bool,
    is_idempotent: bool,
    is_read: bool,
}

impl Method {
    pub(crate) fn of(policy: &'static MethodPolicy) -> Self {
        let (asks, answers) = (policy.client_streaming, policy.server_streaming);
        Self {
            path: &policy.path,
            target: &policy.target,
            is_stream: asks || answers,
            is_answered_once: !answers,
            is_idempotent: policy.idempotent,
            is_read: policy.no_side_effects,
        }
    }
}

/// The messages of a call.
#[derive(Debug)]
pub(crate) enum Payload {
    /// All of them: they can be sent again.
    Whole(Bytes),
    /// As they come.
    Stream(Body),
}

/// A call to a service.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Metadata.
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) budget: Budget,
}

/// What all attempts share.
struct Plan {
    method: Method,
    headers: HeaderMap,
    budget: Budget,
    pass: Pass,
}

/// What the next attempt sends.
enum Next {
    Whole(Bytes),
    Request(Box<Outgoing>),
    /// The messages went with an attempt that failed.
    Gone,
}

/// How often was tried what.
#[derive(Default)]
struct Tries {
    /// Instances that this call does not go to again, as long as there are others.
    instances: Vec<Arc<Instance>>,
    attempts: u32,
    unprocessed: u32,
}

impl Upstream {
    /// Makes a call; an answer has begun well, or is the last word of the service.
    pub(crate) async fn call(&self, call: Call) -> Result<http::Response<Body>> {
        let deadline = call.budget.deadline;
        let run = self.call_watched(call);
        match deadline {
            Some(deadline) => timeout_at(deadline, run).await.unwrap_or_else(|_| Err(rescue::late())),
            None => run.await,
        }
    }

    /// The same for callers that watch the deadline themselves, to the end of the answer.
    ///
    /// Boxed: it is large, and each of those who wait for it would hold it once more.
    pub(crate) fn call_watched(
        &self,
        call: Call,
    ) -> Pin<Box<impl Future<Output = Result<http::Response<Body>>>>> {
        Box::pin(self.run(call))
    }

    async fn run(&self, mut call: Call) -> Result<http::Response<Body>> {
        let service = &self.0;
        service_kit::telemetry::inject(&mut call.headers);
        if call.budget.deadline.is_some() {
            // So that there is room for it in each copy of the headers; each attempt says how much is left.
            call.headers.insert(GRPC_TIMEOUT, const { HeaderValue::from_static("") });
        }
        let pass = service.breaker.enter().map_err(left_alone)?;
        // Until an attempt has taken over.
        let mut probe = Probe { breaker: &service.breaker, pass: Some(pass) };
        service.retries.earn();
        let mut plan = Plan { method: call.method, headers: call.headers, budget: call.budget, pass };
        let mut next = match call.payload {
            Payload::Whole(bytes) => Next::Whole(bytes),
            Payload::Stream(body) => {
                let headers = std::mem::take(&mut plan.headers);
                Next::Request(Box::new(outgoing(headers, Messages::Stream(body))))
            }
        };
        let mut tries = Tries::default();
        loop {
            let lost = match self.attempt(&plan, &mut next, &mut tries).await {
                Ok(response) => {
                    probe.pass = None;
                    return Ok(response);
                }
                Err(lost) => lost,
            };
            match self.again(&plan, &next, &mut tries, &lost) {
                Some(pause) if pause.is_zero() => {}
                Some(pause) => sleep(pause).await,
                None => return give_up(lost),
            }
            next = match (next, lost.request) {
                (Next::Whole(bytes), _) => Next::Whole(bytes),
                (_, Some(request)) if !matches!(lost.outcome, Outcome::Answer(_)) => Next::Request(request),
                (next, _) => next,
            };
        }
    }

    /// One attempt, or two of which the first answer counts.
    async fn attempt(
        &self,
        plan: &Plan,
        next: &mut Next,
        tries: &mut Tries,
    ) -> Result<http::Response<Body>, Lost> {
        let service = &self.0;
        let Some(instance) = service.pick(plan.method.is_stream, &tries.instances) else {
            let cause = anyhow::anyhow!("{} has no instances", service.name);
            return Err(Lost { is_away: true, ..nowhere(cause) });
        };
        tries.instances.push(instance.clone());
        tries.attempts += 1;
        let previous = tries.attempts - 1 - tries.unprocessed.min(tries.attempts - 1);
        let request = match next {
            Next::Whole(bytes) => outgoing(plan.headers.clone(), Messages::Whole(bytes.clone())),
            Next::Request(_) => match std::mem::replace(next, Next::Gone) {
                Next::Request(request) => *request,
                _ => return Err(nowhere(anyhow::anyhow!("nothing to send"))),
            },
            Next::Gone => return Err(nowhere(anyhow::anyhow!("nothing to send"))),
        };
        let first = service.clone().send(plan, instance, request, previous);
        let hedge = Duration::from_millis(service.resilience.hedge_ms);
        match next {
            Next::Whole(bytes) if !hedge.is_zero() && plan.method.is_hedged() => {
                let bytes = bytes.clone();
                self.hedged(plan, Box::pin(first), hedge, bytes, tries).await
            }
            _ => first.await,
        }
    }

    /// Waits for an answer; when that takes long, asks a second instance too.
    async fn hedged(
        &self,
        plan: &Plan,
        mut first: Pin<Box<impl Future<Output = Result<http::Response<Body>, Lost>>>>,
        hedge: Duration,
        bytes: Bytes,
        tries: &mut Tries,
    ) -> Result<http::Response<Body>, Lost> {
        tokio::select! {
            biased;
            answer = first.as_mut() => return answer,
            () = sleep(hedge) => {}
        }
        let service = &self.0;
        let other = service.pick(false, &tries.instances);
        let Some(other) = other.filter(|other| other.is_well() && service.retries.spend()) else {
            return first.await;
        };
        tries.instances.push(other.clone());
        count(service, "hedge");
        let request = outgoing(plan.headers.clone(), Messages::Whole(bytes));
        let mut second = Box::pin(service.clone().send(plan, other, request, 1));
        tokio::select! {
            answer = first.as_mut() => match answer {
                Ok(response) => Ok(response),
                Err(_) => second.await,
            },
            answer = second.as_mut() => match answer {
                Ok(response) => Ok(response),
                Err(_) => first.await,
            },
        }
    }

    /// Whether to try again, and after which pause.
    fn again(&self, plan: &Plan, next: &Next, tries: &mut Tries, lost: &Lost) -> Option<Duration> {
        let (service, config) = (&self.0, &self.0.resilience);
        let has_messages = matches!(next, Next::Whole(_)) || lost.request.is_some();
        if !has_messages || plan.pass.is_probe {
            return None;
        }
        let others = service.has_others(&tries.instances);
        if lost.seen == Seen::Never && lost.pushback == Pushback::None {
            if others && (lost.is_away || tries.unprocessed < UNPROCESSED) {
                tries.unprocessed += 1;
                count(service, "unprocessed");
                return Some(Duration::ZERO);
            }
            if !lost.is_away && tries.unprocessed < UNPROCESSED {
                tries.unprocessed += 1;
                tries.instances.clear();
                count(service, "unprocessed");
                return Some(Duration::ZERO);
            }
        } else if !plan.method.is_idempotent {
            return None;
        }
        let made = tries.attempts.saturating_sub(tries.unprocessed);
        if made >= config.retry_attempts {
            return None;
        }
        let pause = pause(config, made.max(1), lost.pushback, &service.chance)?;
        if !plan.budget.allows(pause) || !service.retries.spend() {
            return None;
        }
        if !others {
            tries.instances.clear();
        }
        count(service, "retry");
        Some(pause)
    }
}

impl Method {
    /// Whether a second instance may do the same at the same time.
    fn is_hedged(&self) -> bool {
        self.is_read && !self.is_stream
    }

    /// Whether an answer that is nothing but "not now" is worth waiting for, because it may be asked again.
    fn is_peeked(&self) -> bool {
        self.is_idempotent && self.is_answered_once
    }
}

impl Service {
    /// Sends a request to an instance.
    async fn send(
        self: Arc<Self>,
        plan: &Plan,
        instance: Arc<Instance>,
        mut request: Outgoing,
        previous: u32,
    ) -> Result<http::Response<Body>, Lost> {
        let lease = match instance.pool(plan.method.is_stream).take().await {
            Ok(lease) => lease,
            Err(why) => {
                let (is_away, why) = match why {
                    NoStream::Away(why) => (true, why),
                    NoStream::Full => (false, "too many calls wait for it".to_owned()),
                };
                let cause = anyhow::anyhow!("{} at {}: {why}", self.name, instance.address);
                return Err(Lost { is_away, request: Some(Box::new(request)), ..nowhere(cause) });
            }
        };
        address(&mut request.head, plan, &instance, previous);
        let mut ticket = Ticket {
            service: self,
            instance,
            lease,
            method: &plan.method.path[1..],
            started: Instant::now(),
            budget: plan.budget,
            is_stream: plan.method.is_stream,
            pass: plan.pass,
            is_judged: false,
            is_over: false,
        };
        match ticket.lease.send(request) {
            Ok(sent) => match sent.answer().await {
                Ok(response) => judge(response, ticket, plan.method.is_peeked()).await,
                Err(error) => {
                    let failure = Failure::unanswered(error);
                    ticket.broke(&failure);
                    Err(Lost::failure(failure, Pushback::None))
                }
            },
            Err(Unsent { request, error }) => {
                let failure = Failure { seen: Seen::Never, ..Failure::unanswered(error) };
                ticket.broke(&failure);
                Err(Lost { request, ..Lost::failure(failure, Pushback::None) })
            }
        }
    }
}

fn outgoing(headers: HeaderMap, messages: Messages) -> Outgoing {
    let mut head = http::Request::new(());
    *head.method_mut() = Verb::POST;
    *head.version_mut() = Version::HTTP_2;
    *head.headers_mut() = headers;
    Outgoing { head, messages }
}

/// What an attempt says beyond what all say: where it goes, what is left of its time, the how many-th it is.
fn address(head: &mut http::Request<()>, plan: &Plan, instance: &Instance, previous: u32) {
    if let Ok(uri) = origin(instance.authority.clone(), plan.method.target.clone()) {
        *head.uri_mut() = uri;
    }
    let headers = head.headers_mut();
    if let Some(rest) = plan.budget.rest() {
        headers.insert(GRPC_TIMEOUT, crate::grpc::timeout_value(rest));
    }
    if previous > 0 {
        headers.insert("grpc-previous-rpc-attempts", HeaderValue::from(previous));
    }
}

fn nowhere(cause: anyhow::Error) -> Lost {
    Lost::failure(Failure::nowhere("the service does not answer", cause), Pushback::None)
}

fn give_up(lost: Lost) -> Result<http::Response<Body>> {
    match lost.outcome {
        Outcome::Answer(answer) => Ok(*answer),
        Outcome::Failure(failure) => {
            let error = failure.into_error();
            Err(match lost.pushback {
                Pushback::After(after) => error.retry_after(after),
                Pushback::None | Pushback::Never => error,
            })
        }
    }
}

fn left_alone(rest: Duration) -> Error {
    let message = "the service failed too often and is left alone for a moment";
    Error::new(Kind::Unavailable, "CIRCUIT_OPEN", message).retry_after(rest)
}

fn count(service: &Service, kind: &'static str) {
    metrics::counter!("edge_upstream_retries_total", "service" => service.name, "kind" => kind).increment(1);
}

/// The call that decides whether a service is back. Dropped without a decision, the next one does.
struct Probe<'b> {
    breaker: &'b Breaker,
    pass: Option<Pass>,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass {
            self.breaker.abandon(pass);
        }
    }
}
