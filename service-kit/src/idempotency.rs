//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header-07): a call with a key is done once, and whoever sends it
//! again gets the answer of the first.
//!
//! [`Keys::guard`] stands behind the access wall of a service, so a key belongs to a caller. Which methods take one is in
//! their policy. The first call claims the key by a row in the service's own database; from then on it goes to its end,
//! whether or not its caller waits. Every transaction that the handler begins notes in that row, before anything else,
//! that something is done under the claim. So what was committed is never done again, whatever dies when; and a claim
//! that somebody else has taken over commits nothing any more.
//!
//! It must never keep the text of a key, or an answer that can be read without it.

mod fingerprint;
mod key;
mod layer;
mod outcome;
mod store;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use prost::Message as _;
use proto::{MethodPolicy, policy::DEFAULT_MAX_DEADLINE};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tracing::Instrument as _;

use self::{
    fingerprint::Fingerprints,
    key::Key,
    outcome::{Answer, Outcome},
    store::{New, Perform, Store, Used},
};
use crate::{
    AuthContext, Clock, Kind,
    db::Database,
    error::{Error, Result},
    shutdown::Tasks,
};

pub use self::store::SCHEMA;

/// The header of a request that carries the key.
pub const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The header of an answer that was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// For how much longer than a call may take its claim holds.
const GRACE: Duration = Duration::from_secs(15);

/// When the same call is worth another try while the first is under way.
const SOON: Duration = Duration::from_secs(1);

/// How often keys are looked for that are over.
const SWEEP: Duration = Duration::from_secs(60);

/// How many of them one transaction deletes.
const BATCH: i64 = 1_000;

/// The `[idempotency]` section of a service's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyConfig {
    /// For how many hours a key is remembered: 1 to 720.
    pub hours: u32,
    /// The most keys of one caller that are remembered at a time: 1 to 1,000,000.
    pub max_per_caller: u32,
}

impl IdempotencyConfig {
    /// Fails with the name of a setting that is out of its bounds.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!((1..=720).contains(&self.hours), "idempotency.hours must be 1 to 720");
        let most = self.max_per_caller;
        anyhow::ensure!((1..=1_000_000).contains(&most), "idempotency.max_per_caller must be 1 to 1000000");
        Ok(())
    }
}

/// The keys of the callers of one service. Clones share everything.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    fingerprints: Fingerprints,
    config: IdempotencyConfig,
    clock: Clock,
    tasks: Tasks,
}

/// Who has a key, as long as the row says so.
#[derive(Debug)]
pub(crate) struct Claim {
    principal: String,
    key_hash: Vec<u8>,
    /// Random: what one claim does is not taken for what another did.
    owner: String,
    /// Whether a transaction found that somebody else has the key.
    lost: AtomicBool,
}

/// A call with a key.
#[derive(Debug)]
struct Ask {
    policy: &'static MethodPolicy,
    key: Key,
    principal: String,
    fingerprint: Vec<u8>,
}

/// Who comes with a key gets it, or what was done with it.
enum Taken {
    Claim(Arc<Claim>),
    Outcome(Outcome),
}

tokio::task_local! {
    /// The claim of the call that runs.
    static CLAIM: Arc<Claim>;
}

/// Notes in a transaction, before anything else is done in it, that something is done under the claim of this call.
pub(crate) async fn perform<C: Perform>(connection: &mut C) -> sqlx::Result<()> {
    let Ok(claim) = CLAIM.try_with(Arc::clone) else { return Ok(()) };
    if connection.perform(&claim).await? {
        return Ok(());
    }
    claim.lost.store(true, Ordering::SeqCst);
    Err(sqlx::Error::Io(std::io::Error::other("another call has the idempotency key")))
}

impl Keys {
    /// The keys in a database whose migrations hold [`SCHEMA`]. Starts to delete those that are over.
    pub fn start(
        database: &Database,
        config: IdempotencyConfig,
        clock: Clock,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        config.check()?;
        let store: Arc<dyn Store> = match database {
            Database::Sqlite(pool) => Arc::new(pool.clone()),
            Database::Postgres(pool) => Arc::new(pool.clone()),
        };
        let (fingerprints, tasks) = (Fingerprints::new(), tasks.clone());
        let keys = Self(Arc::new(Inner { store, fingerprints, config, clock, tasks }));
        let (sweeper, stop) = (keys.clone(), keys.0.tasks.stopping());
        keys.0.tasks.spawn("idempotency keys", async move {
            while !stop.is_cancelled() {
                sweeper.sweep().await;
                tokio::select! {
                    () = tokio::time::sleep(SWEEP) => {}
                    () = stop.cancelled() => {}
                }
            }
            Ok(())
        });
        Ok(keys)
    }

    /// Lets calls with a key through once. Belongs behind the access wall.
    pub fn guard(&self, routes: Routes) -> Routes {
        routes.into_axum_router().layer(layer::KeyLayer(self.clone())).into()
    }

    async fn sweep(&self) {
        let Inner { store, clock, .. } = &*self.0;
        loop {
            match store.sweep(clock.now_ms(), BATCH).await {
                Ok(deleted) if deleted < BATCH.unsigned_abs() => return,
                Ok(_) => {}
                Err(error) => {
                    return tracing::warn!(%error, "cannot delete idempotency keys, will try again");
                }
            }
        }
    }

    /// Answers a call with a key.
    async fn answer<S>(
        &self,
        policy: &'static MethodPolicy,
        key: Key,
        request: Request<Body>,
        inner: S,
    ) -> Result<Response<Body>>
    where
        S: layer::Inner,
    {
        let Some(caller) = request.extensions().get::<AuthContext>() else {
            return Err(Error::internal(anyhow::anyhow!("a call with a key that no wall has let in")));
        };
        let principal = principal(caller);
        let (parts, body) = request.into_parts();
        let body = read(body, policy).await?;
        let fingerprint = self.0.fingerprints.of(&policy.path, &body);
        let request = Request::from_parts(parts, Body::from(body));
        let ask = Ask { policy, key, principal, fingerprint };
        let (reply, answer) = oneshot::channel();
        let keys = self.clone();
        // From here on it goes to its end: a caller who went away comes back to ask what became of it.
        let work = async move { drop(reply.send(keys.once(ask, request, inner).await)) };
        self.0.tasks.spawn_short(work.instrument(tracing::Span::current()));
        answer.await.map_err(Error::internal)?
    }

    /// Does what is asked, unless it was done.
    async fn once<S: layer::Inner>(
        &self,
        ask: Ask,
        request: Request<Body>,
        inner: S,
    ) -> Result<Response<Body>> {
        let claim = match self.take(&ask).await? {
            Taken::Claim(claim) => claim,
            Taken::Outcome(outcome) => {
                count("replayed");
                return Ok(outcome.replay());
            }
        };
        count("new");
        let cap = ask.policy.max_deadline.unwrap_or(DEFAULT_MAX_DEADLINE);
        let run = CLAIM.scope(claim.clone(), handle(request, inner));
        let ran = tokio::time::timeout(cap, AssertUnwindSafe(run).catch_unwind()).await;
        let answer = match ran {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(crate::server::of_panic(&*panic)),
            Err(_) => {
                let message = "the call took longer than it may";
                Err(Error::new(Kind::DeadlineExceeded, "DEADLINE_EXCEEDED", message))
            }
        };
        let outcome = answer.as_ref().ok().map(Outcome::of);
        self.note(&ask, &claim, outcome.as_ref()).await;
        let succeeded = outcome.is_some_and(|outcome| outcome.is_success());
        if claim.lost.load(Ordering::SeqCst) && !succeeded {
            return Err(in_use());
        }
        answer.map(Answer::into_response)
    }

    /// Claims the key of a call, or finds what it came to.
    async fn take(&self, ask: &Ask) -> Result<Taken> {
        let Inner { store, clock, config, .. } = &*self.0;
        let key_hash = ask.key.hash(&ask.principal);
        // Looked up first: who comes second does not wait for the transaction of the first.
        for _ in 0..3 {
            let now = clock.now_ms();
            let used = store.find(&ask.principal, &key_hash).await?;
            if let Some(used) = used.filter(|used| !used.is_free(now)) {
                return self.judge(ask, used, now).map(Taken::Outcome);
            }
            let (keys, first_over) = store.count(&ask.principal, now).await?;
            if keys >= i64::from(config.max_per_caller) {
                count("refused");
                return Err(too_many(keys, first_over.unwrap_or(now) - now));
            }
            let owner = hex(&crate::opaque::random::<16>());
            let lost = AtomicBool::new(false);
            let claim = Claim { principal: ask.principal.clone(), key_hash: key_hash.clone(), owner, lost };
            let lease = ask.policy.max_deadline.unwrap_or(DEFAULT_MAX_DEADLINE) + GRACE;
            let new = New {
                claim: &claim,
                method: &ask.policy.path,
                fingerprint: &ask.fingerprint,
                now,
                lease_until: now.saturating_add(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX)),
                expires_at: now + i64::from(config.hours) * 3_600_000,
            };
            if store.claim(&new).await? {
                return Ok(Taken::Claim(Arc::new(claim)));
            }
        }
        Err(in_use())
    }

    /// What a key came to that was used before.
    fn judge(&self, ask: &Ask, used: Used, now: i64) -> Result<Outcome> {
        if used.method != ask.policy.path || used.fingerprint != ask.fingerprint {
            count("reused");
            return Err(reused());
        }
        match used.outcome {
            Some(sealed) => {
                let sealer = ask.key.sealer(&ask.principal, &ask.policy.path)?;
                let plain = sealer.open(&ask.context(), &sealed).map_err(Error::internal)?;
                Outcome::decode(plain.as_slice()).map_err(Error::internal)
            }
            None if used.lease_until > now => {
                count("in_use");
                Err(in_use())
            }
            None => {
                count("unknown");
                Err(unknown())
            }
        }
    }

    /// Notes what a call came to: a success, or a refusal after something was done. A refusal without traces gives the
    /// key back, and so does a failure; one that left some is for the caller to look at.
    async fn note(&self, ask: &Ask, claim: &Claim, outcome: Option<&Outcome>) {
        let store = &self.0.store;
        let noted = async {
            let success = outcome.is_some_and(Outcome::is_success);
            if !success && store.free(claim).await? {
                return Ok::<_, Error>(());
            }
            let last = outcome.filter(|outcome| success || !outcome.is_passing());
            let sealed = last.map(|outcome| {
                let sealer = ask.key.sealer(&ask.principal, &ask.policy.path)?;
                sealer.seal(&ask.context(), &outcome.encode_to_vec()).map_err(Error::internal)
            });
            store.finish(claim, sealed.transpose()?.as_deref()).await?;
            Ok(())
        };
        if let Err(error) = noted.await {
            // Nothing is done twice for it: whoever asks again is told to look.
            tracing::error!(%error, method = ask.policy.path, "cannot note what a call with a key came to");
        }
    }
}

impl Ask {
    /// What a sealed answer belongs to.
    fn context(&self) -> String {
        format!("{} {} {}", self.principal, self.policy.path, hex(&self.fingerprint))
    }
}

/// Whose key it is: a user or a service account, with all of their scopes or with some. Not the session or the token:
/// who logs in again, or changes the key of a program, still is who began.
fn principal(caller: &AuthContext) -> String {
    let scope = caller.claims().scope.as_str();
    match scope {
        "*" => caller.user_id().to_owned(),
        _ => format!("{}/{}", caller.user_id(), hex(&Sha256::digest(scope)[..16])),
    }
}

async fn read(body: Body, policy: &MethodPolicy) -> Result<Bytes> {
    let most = policy.max_request_bytes.saturating_add(5);
    let whole = Limited::new(body, most).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            let message = format!("the request is larger than {} bytes", policy.max_request_bytes);
            return Error::new(Kind::ResourceExhausted, "BODY_TOO_LARGE", message);
        }
        Error::new(Kind::InvalidArgument, "MALFORMED_BODY", "the body of the request cannot be read")
    })?;
    Ok(whole.to_bytes())
}

async fn handle<S: layer::Inner>(request: Request<Body>, mut inner: S) -> Result<Answer> {
    let response = inner.call(request).await.unwrap_or_else(|never| match never {});
    Answer::read(response).await.map_err(Error::internal)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn count(outcome: &'static str) {
    metrics::counter!("tollgate_idempotency_keys_total", "outcome" => outcome).increment(1);
}

fn in_use() -> Error {
    let message = "a request with this `Idempotency-Key` is being done";
    Error::new(Kind::Aborted, "IDEMPOTENCY_KEY_IN_USE", message).retry_after(SOON)
}

fn reused() -> Error {
    let message = "this `Idempotency-Key` was used for another request; a new request needs a new key";
    Error::new(Kind::FailedPrecondition, "IDEMPOTENCY_KEY_REUSED", message)
        .naming("Idempotency-Key", "was used for another request")
}

fn unknown() -> Error {
    let message = "the request with this `Idempotency-Key` was done, at least in part, and its answer is lost: read what \
         there is; it is not done again";
    Error::new(Kind::FailedPrecondition, "IDEMPOTENCY_OUTCOME_UNKNOWN", message)
}

fn too_many(keys: i64, over_in_ms: i64) -> Error {
    let message = format!("you have used {keys} keys, and no more are remembered at a time");
    Error::new(Kind::ResourceExhausted, "TOO_MANY_IDEMPOTENCY_KEYS", message)
        .retry_after(Duration::from_millis(over_in_ms.max(1_000).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::IdempotencyConfig;

    #[test]
    fn settings_out_of_bounds_are_named() {
        let check = |hours, max_per_caller| IdempotencyConfig { hours, max_per_caller }.check();
        for (hours, most) in [(1, 1), (24, 10_000), (720, 1_000_000)] {
            check(hours, most).unwrap();
        }
        for (hours, most, name) in [
            (0, 1, "idempotency.hours"),
            (721, 1, "idempotency.hours"),
            (1, 0, "idempotency.max_per_caller"),
            (1, 1_000_001, "idempotency.max_per_caller"),
        ] {
            assert!(check(hours, most).unwrap_err().to_string().contains(name));
        }
    }
}
