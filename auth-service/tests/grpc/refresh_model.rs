//! Refresh tokens against a model of them: whatever is done in whatever order, exactly those sessions live
//! that should.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use proto::auth::{ListSessionsRequest, LogoutRequest, session_service_client::SessionServiceClient};
use service_kit::testing::TestDatabase;

use crate::harness::{Auth, PASSWORD, login, refresh, refusal, sign_up, with_token};

const DAY_MS: i64 = 24 * 3_600 * 1_000;
const IDLE_MS: i64 = 14 * DAY_MS;
const LIFE_MS: i64 = 30 * DAY_MS;
/// Seconds of an access token, less one that rounding may take.
const ACCESS_MS: i64 = 599_000;

#[derive(Debug, Clone)]
enum Step {
    Login,
    /// Presents a token of a session: the current one, or the one so many before it.
    Refresh {
        session: prop::sample::Index,
        back: usize,
    },
    /// Presents what is no token of ours.
    Forged([u8; 32]),
    Logout(prop::sample::Index),
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = any::<prop::sample::Index>;
    let wait = prop_oneof![Just(1), Just(600_000), Just(5 * DAY_MS), Just(IDLE_MS - 1), Just(IDLE_MS)];
    let step = prop_oneof![
        2 => Just(Step::Login),
        8 => session().prop_map(|session| Step::Refresh { session, back: 0 }),
        2 => (session(), 1_usize..4).prop_map(|(session, back)| Step::Refresh { session, back }),
        1 => any::<[u8; 32]>().prop_map(Step::Forged),
        1 => session().prop_map(Step::Logout),
        3 => wait.prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..24)
}

/// What a session should be.
#[derive(Debug)]
struct Session {
    /// Every token that it ever had, the current one last.
    tokens: Vec<String>,
    access: String,
    refreshed_at: i64,
    opened_at: i64,
    ended: bool,
}

impl Session {
    fn is_live(&self, now: i64) -> bool {
        !self.ended && now < self.opened_at + LIFE_MS && now < self.refreshed_at + IDLE_MS
    }

    /// Presents the token at `at`: whether it is good, and what follows.
    fn present(&mut self, at: usize, now: i64) -> bool {
        if at + 1 < self.tokens.len() {
            self.ended |= now < self.opened_at + LIFE_MS;
            return false;
        }
        self.is_live(now)
    }
}

/// One user with sessions, there and in the model.
struct World<'a> {
    auth: &'a Auth,
    email: String,
    sessions: Vec<Session>,
}

impl World<'_> {
    async fn login(&mut self) -> String {
        let pair = login(&self.auth.client(), &self.email, PASSWORD).await.unwrap();
        let now = self.auth.clock.now_ms();
        self.sessions.push(Session {
            tokens: vec![pair.refresh_token],
            access: pair.access_token.clone(),
            refreshed_at: now,
            opened_at: now,
            ended: false,
        });
        pair.access_token
    }

    async fn refresh(&mut self, session: usize, back: usize) -> Result<(), TestCaseError> {
        let (now, session) = (self.auth.clock.now_ms(), &mut self.sessions[session]);
        let at = session.tokens.len().saturating_sub(1 + back);
        let answer = refresh(&self.auth.client(), &session.tokens[at]).await;
        let good = session.present(at, now);
        match answer {
            Ok(pair) => {
                prop_assert!(good, "a dead token was taken");
                session.tokens.push(pair.refresh_token);
                (session.access, session.refreshed_at) = (pair.access_token, now);
            }
            Err(error) => {
                prop_assert!(!good, "a good token was refused");
                prop_assert_eq!(error.reason(), "INVALID_GRANT");
            }
        }
        Ok(())
    }

    async fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.auth.clock.now_ms();
        match step {
            Step::Login => drop(self.login().await),
            Step::Refresh { session, back } => {
                self.refresh(session.index(self.sessions.len()), back).await?;
            }
            Step::Forged(bytes) => {
                let forged = refresh(&self.auth.client(), &URL_SAFE_NO_PAD.encode(bytes)).await;
                prop_assert_eq!(refusal(forged).1, "INVALID_GRANT");
            }
            Step::Logout(session) => {
                let at = session.index(self.sessions.len());
                let session = &mut self.sessions[at];
                if !session.ended && now < session.refreshed_at + ACCESS_MS {
                    let logout = with_token(&session.access, LogoutRequest {});
                    self.auth.client().logout(logout).await.unwrap();
                    session.ended = true;
                }
            }
            Step::Wait(ms) => self.auth.clock.advance_ms(ms),
        }
        Ok(())
    }

    /// What is listed, and what can be refreshed, is what lives in the model.
    async fn compare(&mut self) -> Result<(), TestCaseError> {
        let access = self.login().await;
        let now = self.auth.clock.now_ms();
        let live = self.sessions.iter().filter(|session| session.is_live(now)).count();
        let request = with_token(&access, ListSessionsRequest { limit: Some(100), offset: 0 });
        let mut sessions = SessionServiceClient::new(self.auth.upstream("edge-proxy"));
        let listed = sessions.list_sessions(request).await.unwrap().into_inner().list;
        prop_assert_eq!(listed.len(), live);
        for session in 0..self.sessions.len() {
            self.refresh(session, 0).await?;
        }
        Ok(())
    }
}

#[test]
fn exactly_the_sessions_live_that_should() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let auth = runtime.block_on(async { Box::pin(Auth::start(TestDatabase::sqlite())).await });
    let mut runner = TestRunner::new(Config { cases: 32, failure_persistence: None, ..Config::default() });
    let users = std::cell::Cell::new(0);
    let checked = runner.run(&steps(), |steps| {
        users.set(users.get() + 1);
        runtime.block_on(Box::pin(async {
            let email = format!("user{}@example.com", users.get());
            auth.client().sign_up(sign_up(&email)).await.unwrap();
            let mut world = World { auth: &auth, email, sessions: Vec::new() };
            world.login().await;
            for step in steps {
                world.take(step).await?;
            }
            world.compare().await
        }))
    });
    checked.unwrap();
}
