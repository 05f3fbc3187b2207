//! Access tokens in place of opaque ones: auth-service exchanges a personal access token, or the key of a
//! service account, for a short access token, which then travels on.
//!
//! What was exchanged is remembered for a minute at most, by the SHA-256 of the text: the text itself is
//! kept nowhere. The access token is still judged by the verifier on each call, so that a revoked one is
//! dead at once.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use proto::auth::{ExchangeTokenRequest, identity_service_client::IdentityServiceClient};
use service_kit::{ClientInfo, Clock, Error, Kind, Result, opaque};
use sha2::{Digest as _, Sha256};

use crate::{
    rate::{Denied, Limit, Who},
    rescue::Refusal,
    upstream::Upstream,
};

/// How many tokens are remembered.
const MAX_TOKENS: u64 = 10_000;
/// For how long a good answer holds, in milliseconds; never longer than the access token lives.
const GOOD_MS: i64 = 60_000;
/// For how long a token stays bad, in milliseconds.
const BAD_MS: i64 = 10_000;
/// For how long auth-service is left alone that did not answer, in milliseconds.
const SILENT_MS: i64 = 1_000;
/// How long auth-service may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kinds of opaque tokens that stand for a user: `tgpat_…`, `tgsvc_…`.
const KINDS: [&str; 2] = ["pat", "svc"];

/// What an opaque token is at the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Not one of ours.
    None,
    /// One of ours with a wrong checksum.
    Broken,
    /// Only auth-service knows whether it is good.
    Whole,
}

/// Exchanges opaque tokens.
#[derive(Debug)]
pub(crate) struct Exchange {
    identity: IdentityServiceClient<Upstream>,
    tokens: Tokens,
}

impl Exchange {
    /// Asks the auth-service behind `upstream`.
    pub(crate) fn new(upstream: Upstream, clock: Clock) -> Self {
        Self { identity: IdentityServiceClient::new(upstream), tokens: Tokens::new(clock) }
    }

    /// How many opaque tokens something is remembered of.
    pub(crate) fn held(&self) -> u64 {
        self.tokens.slots.entry_count()
    }

    /// The access token for an opaque one; `None` when the text is no opaque token.
    ///
    /// A token that is not good costs its address one of `failures`; without any left nothing is asked.
    pub(crate) async fn access_token(
        &self,
        text: &str,
        client: &ClientInfo,
        failures: &Limit,
    ) -> Result<Option<Arc<str>>, Refusal> {
        match form(text) {
            Form::None => return Ok(None),
            // Its checksum says so: nobody needs to be asked.
            Form::Broken => return Err(invalid().into()),
            Form::Whole => {}
        }
        let who = Who::Address(client.address.unwrap_or(IpAddr::from([0, 0, 0, 0])));
        let ask = async || {
            // Taken first and given back if it was not needed: many guesses at once, and guesses that are
            // broken off, are limited too.
            failures.take(&who).await?;
            let outcome = self.ask(text, client).await;
            if !matches!(outcome, Outcome::Bad) {
                failures.give_back(&who);
            }
            Ok::<_, Denied>(outcome)
        };
        match self.tokens.get(Sha256::digest(text).into(), ask).await? {
            Outcome::Good { access, .. } => Ok(Some(access)),
            Outcome::Bad => Err(invalid().into()),
            Outcome::Silent => {
                Err(silent(anyhow::anyhow!("auth-service did not answer a moment ago")).into())
            }
        }
    }

    async fn ask(&self, text: &str, client: &ClientInfo) -> Outcome {
        let mut request = tonic::Request::new(ExchangeTokenRequest { token: text.to_owned() });
        let headers: &mut HeaderMap = request.metadata_mut().as_mut();
        client.write(headers);
        let mut identity = self.identity.clone();
        let error = match tokio::time::timeout(PATIENCE, identity.exchange_token(request)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let life_ms = i64::from(answer.expires_in).saturating_mul(1_000);
                return Outcome::Good { access: answer.access_token.into(), life_ms: life_ms.min(GOOD_MS) };
            }
            Ok(Err(status)) => Error::from(status),
            Err(late) => silent(late),
        };
        if error.kind() == Kind::Unauthenticated {
            return Outcome::Bad;
        }
        // Whatever else it says is no word about the token.
        tracing::warn!(%error, "an opaque token cannot be exchanged");
        Outcome::Silent
    }
}

/// Whether this is an opaque token, good or not.
pub(crate) fn is_opaque(token: &[u8]) -> bool {
    kind_of(token).is_some()
}

fn kind_of(token: &[u8]) -> Option<&'static str> {
    let rest = token.strip_prefix(b"tg")?;
    KINDS
        .into_iter()
        .find(|kind| rest.strip_prefix(kind.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'_')))
}

fn form(text: &str) -> Form {
    match kind_of(text.as_bytes()).map(|kind| opaque::parse(kind, text)) {
        None => Form::None,
        Some(None) => Form::Broken,
        Some(Some(_)) => Form::Whole,
    }
}

fn invalid() -> Error {
    Error::new(Kind::Unauthenticated, "INVALID_TOKEN", "the token is not valid")
}

fn silent(cause: impl Into<anyhow::Error>) -> Error {
    Error::unavailable("tokens cannot be checked right now", cause)
}

/// What auth-service says of a token.
#[derive(Debug, Clone)]
enum Outcome {
    /// It is good for this access token, for so many milliseconds.
    Good { access: Arc<str>, life_ms: i64 },
    /// It is not.
    Bad,
    /// Nothing.
    Silent,
}

impl Outcome {
    fn life_ms(&self) -> i64 {
        match self {
            Self::Good { life_ms, .. } => *life_ms,
            Self::Bad => BAD_MS,
            Self::Silent => SILENT_MS,
        }
    }
}

/// What was said of tokens, by the SHA-256 of their text. Each is asked about once at a time.
#[derive(Debug)]
struct Tokens {
    clock: Clock,
    slots: moka::sync::Cache<[u8; 32], Arc<Slot>>,
}

/// What was said of one token, and until when that holds. Locked while it is asked about.
type Slot = tokio::sync::Mutex<Option<(Outcome, i64)>>;

impl Tokens {
    fn new(clock: Clock) -> Self {
        let slots = moka::sync::Cache::builder()
            .max_capacity(MAX_TOKENS)
            .time_to_idle(Duration::from_millis(GOOD_MS.unsigned_abs()))
            .build();
        Self { clock, slots }
    }

    /// What is known of a token, asked for when nothing is. A refusal to ask is not remembered.
    async fn get<E, F>(&self, key: [u8; 32], ask: impl FnOnce() -> F) -> Result<Outcome, E>
    where
        F: Future<Output = Result<Outcome, E>>,
    {
        let slot = self.slots.get_with(key, Arc::default);
        let mut slot = slot.lock().await;
        if let Some((outcome, until)) = &*slot
            && self.clock.now_ms() < *until
        {
            return Ok(outcome.clone());
        }
        let outcome = ask().await?;
        *slot = Some((outcome.clone(), self.clock.now_ms() + outcome.life_ms()));
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use secrecy::ExposeSecret as _;
    use service_kit::{Clock, opaque};
    use tokio::sync::Semaphore;

    use super::{BAD_MS, Form, Outcome, SILENT_MS, Tokens, form};

    fn good(access: &str, life_ms: i64) -> Outcome {
        Outcome::Good { access: access.into(), life_ms }
    }

    #[test]
    fn forms_are_told_apart_without_asking() {
        for kind in ["pat", "svc"] {
            let (token, _) = opaque::issue(kind);
            let token = token.expose_secret();
            assert_eq!(form(token), Form::Whole);
            assert_eq!(form(&token[..token.len() - 1]), Form::Broken);
            assert_eq!(form(&token.replace("tgpat", "tgsvc").replace("tgsvc_", "tgsvc_0")), Form::Broken);
            assert_eq!(form(&token.to_uppercase()), Form::None);
        }
        assert_eq!(form(opaque::issue("gw").0.expose_secret()), Form::None);
        for text in ["", "tgpat", "eyJ.eyJ.x", "xtgpat_", " tgpat_"] {
            assert_eq!(form(text), Form::None, "{text}");
        }
        assert_eq!((form("tgpat_"), form("tgsvc_é")), (Form::Broken, Form::Broken));
    }

    #[tokio::test]
    async fn an_answer_holds_for_its_time_and_no_longer() {
        let clock = Clock::fixed(1_000_000);
        let tokens = Tokens::new(clock.clone());
        for (key, outcome) in [(1, good("a", 60_000)), (2, Outcome::Bad), (3, Outcome::Silent)] {
            let life = outcome.life_ms();
            let asked = Cell::new(0);
            let ask = async || {
                let ask = async || {
                    asked.set(asked.get() + 1);
                    Ok::<_, Infallible>(outcome.clone())
                };
                tokens.get([key; 32], ask).await.unwrap();
                asked.get()
            };
            assert_eq!((ask().await, ask().await), (1, 1));
            clock.advance_ms(life - 1);
            assert_eq!(ask().await, 1);
            clock.advance_ms(1);
            assert_eq!((ask().await, ask().await), (2, 2));
        }
        assert_eq!((Outcome::Bad.life_ms(), Outcome::Silent.life_ms()), (BAD_MS, SILENT_MS));
    }

    #[tokio::test]
    async fn a_refusal_to_ask_is_not_remembered() {
        let tokens = Tokens::new(Clock::fixed(0));
        assert_eq!(tokens.get([1; 32], async || Err(7)).await.err(), Some(7));
        assert!(tokens.get([1; 32], async || Ok::<_, u8>(good("a", 1))).await.is_ok());
    }

    #[tokio::test]
    async fn a_crowd_asks_once_for_one_token() {
        let tokens = Tokens::new(Clock::fixed(0));
        let (asked, gate) = (AtomicUsize::new(0), Semaphore::new(0));
        let one = |key: u8| {
            let (tokens, asked, gate) = (&tokens, &asked, &gate);
            async move {
                let ask = async || {
                    asked.fetch_add(1, Ordering::SeqCst);
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>(good("a", 1_000))
                };
                tokens.get([key; 32], ask).await.unwrap();
            }
        };
        let crowd = futures_util::future::join_all((0..20).map(|number| one(number % 2)));
        let release = async {
            while asked.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
            // Both tokens are asked about at the same time, and nobody asks a second time.
            gate.add_permits(2);
        };
        tokio::join!(crowd, release);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
