//! From a question to an answer: out of the cache, by the service, or out of the cache because the service is down.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::Full;
use service_kit::{Error, Kind, shutdown::Tasks};
use tonic::Code;

use super::{
    Cache,
    age::{Use, judge, lifetime_ms},
    changes,
    directives::Directives,
    etag,
    flights::Entered,
    keep::{Kept, Made, Recipe},
    key::Ask,
};
use crate::{
    Body,
    layers::{Response, trace::Noted},
    rescue::Refusal,
};

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What the cache says to a question.
pub(crate) enum Looked {
    /// This is the answer.
    Answer(Response),
    /// The service must be asked.
    Fetch(Box<Fetch>),
}

/// How to ask the service.
pub(crate) struct Fetch {
    recipe: Recipe,
    form: Form,
    /// What is known, and may be given out: while a new answer is fetched, or when none can be had.
    stale: Option<(Arc<Kept>, Use)>,
    /// Why the cache did not answer (RFC 9211 §2.2).
    why: &'static str,
    /// The client wants the service to be asked for it alone.
    alone: bool,
    asked: Directives,
}

/// How answers to one question look.
struct Form {
    cache_control: HeaderValue,
    vary: Option<&'static str>,
    if_none_match: HeaderMap,
}

impl Cache {
    /// What is known; `None` when this is no question for a cache.
    ///
    /// # Errors
    /// 504 when the client wants only what is known, and nothing is.
    pub(crate) fn look(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Option<Looked>, Refusal> {
        let (Some(rule), Some(store)) = (&ask.policy.cache, &self.kept) else { return Ok(None) };
        if !ask.is_sound() {
            return Ok(None);
        }
        let (key, asked, form) = (ask.key(), Directives::read(ask.headers), Form::of(ask)?);
        let found = store.get(&key).filter(|kept| !self.is_wrong(kept));
        let verdict = found.map(|kept| {
            let verdict = judge(rule, self.clock.now_ms() - kept.at_ms, self.trust_ms, &asked);
            (kept, verdict)
        });
        let why = match &verdict {
            Some((kept, Use::Fresh)) => {
                count("hit");
                let status = format!("hit; ttl={}", self.ttl_s(rule, kept));
                return Ok(Some(Looked::Answer(form.reply(kept, &status, Some(self.age_s(kept))))));
            }
            Some((kept, Use::Accepted)) => {
                count("stale");
                let status = format!("hit; ttl={}; detail=max-stale", self.ttl_s(rule, kept));
                return Ok(Some(Looked::Answer(form.reply(kept, &status, Some(self.age_s(kept))))));
            }
            None => "uri-miss",
            Some((_, Use::WhileRevalidating | Use::IfError)) => "stale",
            Some((kept, Use::Never)) if self.clock.now_ms() - kept.at_ms < lifetime_ms(rule) => "request",
            Some(_) => "stale",
        };
        if asked.only_if_cached {
            let message = "nothing is known that may be given out, and the service is not to be asked";
            return Err(Refusal::http(StatusCode::GATEWAY_TIMEOUT, "NOT_CACHED", message));
        }
        let mut recipe = Recipe {
            cache: self.clone(),
            policy: ask.policy,
            rule,
            key,
            message: ask.message.clone(),
            tags: Vec::new(),
            stores: !asked.no_store,
        };
        let targets = ask.named.iter().map(|id| self.changes.tag(&changes::target(id)));
        recipe.tags = ask.own().map(|own| self.changes.tag(&own)).into_iter().chain(targets).collect();
        let stale = verdict.filter(|(_, verdict)| *verdict != Use::Never);
        let alone = asked.no_cache || asked.no_store;
        let fetch = Fetch { recipe, form, stale, why, alone, asked };
        Ok(Some(Looked::Fetch(Box::new(fetch))))
    }

    fn age_s(&self, kept: &Kept) -> i64 {
        (self.clock.now_ms() - kept.at_ms).max(0) / 1_000
    }

    fn ttl_s(&self, rule: &proto::policy::Cache, kept: &Kept) -> i64 {
        (lifetime_ms(rule) - (self.clock.now_ms() - kept.at_ms)).div_euclid(1_000)
    }
}

impl Fetch {
    /// Answers by `call`, which asks the service.
    pub(crate) async fn run<F>(self, tasks: &Tasks, call: F) -> Result<Response, Refusal>
    where
        F: Future<Output = Result<Response, Refusal>> + Send + 'static,
    {
        if let Some((kept, Use::WhileRevalidating)) = &self.stale {
            let kept = kept.clone();
            count("revalidating");
            self.begin_behind(tasks, call);
            return Ok(self.stale_reply(&kept, "hit", "stale-while-revalidate"));
        }
        let outcome = self.ask(call).await;
        match is_down(&outcome).then(|| self.fallback()).flatten() {
            Some(kept) => {
                count("stale");
                tracing::warn!(method = self.recipe.policy.path, "the service is down: an older answer");
                Ok(self.stale_reply(&kept, "fwd=stale", "stale-if-error"))
            }
            None => outcome,
        }
    }

    /// Asks the service, together with all who ask the same now.
    async fn ask<F>(&self, call: F) -> Result<Response, Refusal>
    where
        F: Future<Output = Result<Response, Refusal>> + Send + 'static,
    {
        let mut call = Some(call);
        let entered = self.enter(|| call.take());
        let flight = match entered {
            Entered::Begun(flight, told) => {
                let made = told.await.map_err(|_| Error::internal(anyhow::anyhow!("a call ended early")));
                drop(flight);
                return self.fetched(made??, "miss", "");
            }
            Entered::Joined(flight) => flight,
        };
        if let Some(kept) = flight.answer().await {
            return self.fetched(Made::Kept(kept), "collapsed", "; collapsed");
        }
        match call {
            Some(call) => self.fetched(self.recipe.clone().make(call).await?, "miss", ""),
            None => Err(Error::internal(anyhow::anyhow!("a call that nobody made")).into()),
        }
    }

    fn enter<F>(&self, call: impl FnOnce() -> Option<F>) -> Entered
    where
        F: Future<Output = Result<Response, Refusal>> + Send + 'static,
    {
        let recipe = self.recipe.clone();
        let tags = self.recipe.tags.iter().copied().chain(self.recipe.names()).collect();
        let cache = &self.recipe.cache;
        cache.flights.enter(recipe.key, tags, &cache.changes, self.alone, move || {
            let call = call();
            async move {
                let Some(call) = call else {
                    return Err(Error::internal(anyhow::anyhow!("a call that nobody made")).into());
                };
                recipe.make(call).await
            }
        })
    }

    /// Fetches a new answer for the next who asks, if nobody does already.
    fn begin_behind<F>(&self, tasks: &Tasks, call: F)
    where
        F: Future<Output = Result<Response, Refusal>> + Send + 'static,
    {
        let entered = self.enter(|| Some(call));
        if let Entered::Begun(flight, told) = entered {
            let path = &self.recipe.policy.path;
            tasks.spawn_short(async move {
                if let Ok(Err(refusal)) = told.await {
                    tracing::debug!(method = path, ?refusal, "a kept answer cannot be renewed");
                }
                drop(flight);
            });
        }
    }

    /// What may be given out in place of an answer that cannot be had.
    fn fallback(&self) -> Option<Arc<Kept>> {
        let (kept, _) = self.stale.as_ref()?;
        let cache = &self.recipe.cache;
        // Time has passed, and something may have changed.
        let age_ms = cache.clock.now_ms() - kept.at_ms;
        let usable = judge(self.recipe.rule, age_ms, cache.trust_ms, &self.asked) != Use::Never;
        (usable && !cache.is_wrong(kept)).then(|| kept.clone())
    }

    fn stale_reply(&self, kept: &Kept, how: &str, detail: &str) -> Response {
        let cache = &self.recipe.cache;
        let status = format!("{how}; ttl={}; detail={detail}", cache.ttl_s(self.recipe.rule, kept));
        self.form.reply(kept, &status, Some(cache.age_s(kept)))
    }

    fn fetched(&self, made: Made, counted: &'static str, more: &str) -> Result<Response, Refusal> {
        count(counted);
        let mut status = format!("fwd={}", self.why);
        match made {
            Made::Kept(kept) => {
                let stored = self.recipe.stores && kept.body.len() <= self.recipe.cache.max_entry_bytes;
                if stored && !self.recipe.cache.is_wrong(&kept) {
                    // Writing to a text does not fail.
                    let _ =
                        write!(status, "; stored; ttl={}", self.recipe.cache.ttl_s(self.recipe.rule, &kept));
                }
                status.push_str(more);
                Ok(self.form.reply(&kept, &status, None))
            }
            Made::Other(mut response) => {
                insert(&mut response, CACHE_STATUS, &format!("edge; {status}"));
                Ok(response)
            }
        }
    }
}

/// Whether there was nobody to answer. Over Connect that can be an answer too: it says whatever its service said.
fn is_down(outcome: &Result<Response, Refusal>) -> bool {
    match outcome {
        Err(refusal) => matches!(refusal.kind(), Kind::Unavailable | Kind::DeadlineExceeded),
        Ok(response) => response
            .extensions()
            .get::<Noted>()
            .is_some_and(|noted| matches!(noted.code, Some(Code::Unavailable | Code::DeadlineExceeded))),
    }
}

impl Form {
    fn of(ask: &Ask<'_>) -> Result<Self, Refusal> {
        let lines = ask.headers.get_all(header::IF_NONE_MATCH).iter().cloned();
        let mut if_none_match = HeaderMap::new();
        for line in lines {
            if_none_match.append(header::IF_NONE_MATCH, line);
        }
        let cache_control = HeaderValue::try_from(&*ask.cache_control()).map_err(Error::internal)?;
        Ok(Self { cache_control, vary: ask.vary(), if_none_match })
    }

    /// The answer; 304 where the client has it (RFC 9110 §13.1.2, §15.4.5).
    fn reply(&self, kept: &Kept, status: &str, age_s: Option<i64>) -> Response {
        let known = etag::matching(&self.if_none_match, &kept.etag);
        let mut response = match &known {
            Some(_) => Response::new(Body::empty()),
            None => Response::new(Body::new(Full::new(Bytes::clone(&kept.body)))),
        };
        if known.is_some() {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, kept.content_type.clone());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(kept.body.len()));
        }
        let headers = response.headers_mut();
        headers.insert(header::ETAG, known.unwrap_or_else(|| kept.etag.clone()));
        headers.insert(header::CACHE_CONTROL, self.cache_control.clone());
        headers.extend(self.vary.map(|vary| (header::VARY, HeaderValue::from_static(vary))));
        headers.extend(age_s.map(|age| (header::AGE, HeaderValue::from(age))));
        insert(&mut response, CACHE_STATUS, &format!("edge; {status}"));
        response
    }
}

fn insert(response: &mut Response, name: HeaderName, text: &str) {
    // What the edge writes itself is always a header.
    if let Ok(value) = HeaderValue::try_from(text) {
        response.headers_mut().insert(name, value);
    }
}

fn count(result: &'static str) {
    metrics::counter!("tollgate_cache_requests_total", "result" => result).increment(1);
}
