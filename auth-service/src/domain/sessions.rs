//! Sessions: every way to log in opens one here, refresh keeps it, its owner or an administrator ends it, and
//! a refresh token used twice does.

use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{AuthContext, ClientInfo, Error, Kind, Result, field::Checks, page::Page};

use super::{
    Shared,
    audit::{Action, Chain, Event},
    issuer::Grant,
    mail::{Envelope, Letter},
    organizations::{Decision, authorize},
    second_factors::Challenge,
    secret::{self, TokenHash},
    throttle::Key,
};

/// The client that people log in with in a browser or an application of ours.
pub(crate) const WEB_CLIENT: &str = "tollgate-web";
/// A login gives all that its owner may do.
pub(crate) const FULL_SCOPE: &str = "*";
/// How many live sessions a user has at most; the oldest makes room.
pub(crate) const MOST_SESSIONS: i64 = 100;

/// A session. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) user_id: String,
    pub(crate) client_id: String,
    /// Permissions separated by spaces.
    pub(crate) scope: String,
    /// How its owner proved who they are (RFC 8176).
    pub(crate) amr: Vec<String>,
    pub(crate) created_at: i64,
    /// The last proof of who the owner is.
    pub(crate) authenticated_at: i64,
    /// No refresh moves this.
    pub(crate) expires_at: i64,
}

/// A live session as its owner sees it. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) session: Session,
    /// The address of the last use.
    pub(crate) address: String,
    /// The `User-Agent` of the last use.
    pub(crate) device: String,
    pub(crate) last_used_at: i64,
}

/// A refresh token as it is stored. Times are Unix milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefreshToken {
    pub(crate) hash: TokenHash,
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// Its owner asked for it.
    Logout,
    /// A refresh token came twice: one of the two had stolen it.
    RefreshReused,
    /// The owner, or an administrator of an organization, ended it from elsewhere.
    Ended,
    /// The password was changed or reset.
    PasswordChanged,
    /// The account was disabled.
    Disabled,
    /// It was the oldest of too many.
    Displaced,
}

impl EndReason {
    /// The form that is stored.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Logout => "LOGOUT",
            Self::RefreshReused => "REFRESH_REUSED",
            Self::Ended => "ENDED",
            Self::PasswordChanged => "PASSWORD_CHANGED",
            Self::Disabled => "DISABLED",
            Self::Displaced => "DISPLACED",
        }
    }
}

/// Which sessions of a user to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which<'a> {
    /// The one with this id.
    One(&'a str),
    /// All but the one with this id.
    Others(&'a str),
    /// All.
    All,
}

/// What became of a refresh token that was presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// Its successor is stored.
    Rotated(Session),
    /// It was used a moment ago, and its successor, sealed here, was not: the answer did not arrive.
    Repeated(Session, Vec<u8>),
    /// It had been used before; its session has ended now.
    Reused(Session),
    /// It is unknown or expired, or its session is over.
    Dead,
}

/// Somebody who has proven who they are, and is to get a session.
#[derive(Debug)]
pub(crate) struct Opening<'a> {
    pub(crate) user_id: &'a str,
    pub(crate) client_id: &'a str,
    /// Permissions separated by spaces.
    pub(crate) scope: &'a str,
    /// How it was proven (RFC 8176).
    pub(crate) amr: Vec<String>,
    /// When it was proven, in Unix milliseconds; now when it is not said.
    pub(crate) authenticated_at: Option<i64>,
    /// The version of the password that it was proven with: nothing opens when there is another one by now,
    /// because what an old password opened has ended. None where it was proven by something else.
    pub(crate) password: Option<i64>,
    pub(crate) client: &'a ClientInfo,
    /// What was throttled besides the address, whose failures are forgiven in any case. The key of a known
    /// device ([`Key::of_device`]) also says which device gets a new token.
    pub(crate) forgiven: Option<&'a Key>,
    /// What goes into the audit log.
    pub(crate) event: Event,
}

/// A session on its way into the store, with all that changes at once.
#[derive(Debug)]
pub(crate) struct NewSession<'a> {
    pub(crate) session: &'a Session,
    pub(crate) token: &'a RefreshToken,
    /// The version that the password must still have.
    pub(crate) password: Option<i64>,
    pub(crate) client: &'a ClientInfo,
    pub(crate) forgiven: Option<&'a Key>,
    /// What the device is known by from now on.
    pub(crate) device: Option<TokenHash>,
    /// Recorded when older sessions make room.
    pub(crate) displacing: Event,
    pub(crate) event: Event,
}

/// A refresh token that is presented, and what may become of it.
pub(crate) struct Exchange<'a> {
    pub(crate) presented: TokenHash,
    pub(crate) successor: &'a RefreshToken,
    /// The text of the successor, sealed; absent without a grace.
    pub(crate) sealed: Option<Vec<u8>>,
    /// For how long a repeat gets the same successor, in milliseconds.
    pub(crate) grace_ms: i64,
    pub(crate) client: &'a ClientInfo,
    /// Recorded, in the log of the owner, when the token was used before.
    pub(crate) reuse: Event,
    /// The letter that the owner gets then, by the owner's address.
    pub(crate) letter: &'a (dyn Fn(&str) -> Result<Envelope> + Sync),
}

/// What a client needs to call on behalf of a user.
#[derive(Debug)]
pub(crate) struct TokenPair {
    pub(crate) access: SecretString,
    /// Absent after a new proof of who the user is.
    pub(crate) refresh: Option<SecretString>,
    /// Seconds until the access token expires.
    pub(crate) expires_in: u32,
    /// Seconds until the refresh token does, when it is not used.
    pub(crate) refresh_expires_in: u32,
    /// What the client keeps to be known at its next login; absent after a refresh.
    pub(crate) device: Option<SecretString>,
}

/// How a login ends that was not refused.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With a session.
    Pair(TokenPair),
    /// With something more to prove.
    Challenge(Challenge),
}

/// Everything about sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    shared: Shared,
}

impl Sessions {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone() }
    }

    /// Opens a session for somebody who has proven who they are, and makes the device known. UNAUTHENTICATED
    /// (`INVALID_CREDENTIALS`) when the account is disabled or gone, or the password was changed meanwhile.
    pub(crate) async fn open(&self, opening: Opening<'_>) -> Result<TokenPair> {
        let now = self.shared.clock.now_ms();
        let session = Session {
            id: self.shared.ids.next(),
            user_id: opening.user_id.to_owned(),
            client_id: opening.client_id.to_owned(),
            scope: opening.scope.to_owned(),
            amr: opening.amr,
            created_at: now,
            authenticated_at: opening.authenticated_at.unwrap_or(now),
            expires_at: now + i64::from(self.shared.config.session.lifetime) * 1_000,
        };
        let (refresh, stored) = self.new_refresh_token(now);
        // A client of a device authorization logs in by no password: it has nothing to be known for.
        let device = (opening.client_id == WEB_CLIENT).then(secret::issue);
        let chain = Chain::User(session.user_id.clone());
        let displacing = self.shared.journal.event(chain, Action::SessionEnd, opening.client);
        let refused = opening.event.clone().failed("the account is disabled, or its password was changed");
        let opened = self.shared.stores.sessions.open(NewSession {
            session: &session,
            token: &stored,
            password: opening.password,
            client: opening.client,
            forgiven: opening.forgiven,
            device: device.as_ref().map(|(_, hash)| *hash),
            displacing: displacing.by(&session.user_id).because("too many sessions"),
            event: opening.event.on(&session.id),
        });
        if !opened.await? {
            self.shared.stores.throttles.note(&refused).await?;
            return Err(invalid_credentials());
        }
        tracing::info!(user_id = session.user_id, session_id = session.id, "session opened");
        let pair = self.pair(&session, Some(refresh))?;
        Ok(TokenPair { device: device.map(|(token, _)| token), ..pair })
    }

    /// Exchanges a refresh token. UNAUTHENTICATED (`INVALID_GRANT`) when it is not good, whatever the
    /// reason; one that was used before ends its session, and its owner is told by mail.
    pub(crate) async fn refresh(&self, token: &SecretString, client: &ClientInfo) -> Result<TokenPair> {
        let empty = token.expose_secret().is_empty();
        Checks::new().that(!empty, "refreshToken", "is required").done()?;
        let presented = secret::hash(token).ok_or_else(invalid_grant)?;
        let (successor, stored) = self.new_refresh_token(self.shared.clock.now_ms());
        let (context, sealer) = (format!("refresh:{}", presented.hex()), &self.shared.sealer);
        let grace = self.shared.config.session.refresh_grace;
        let seal = || sealer.seal(&context, successor.expose_secret().as_bytes());
        let exchange = Exchange {
            presented,
            successor: &stored,
            sealed: (grace > 0).then(seal).transpose().map_err(Error::internal)?,
            grace_ms: i64::from(grace) * 1_000,
            client,
            reuse: self
                .shared
                .journal
                .event(Chain::System, Action::RefreshReuse, client)
                .failed("used twice"),
            letter: &|address| self.shared.mailroom.envelope(&self.letter_of_reuse(address, client)),
        };
        match self.shared.stores.sessions.rotate(exchange).await? {
            Rotation::Rotated(session) => self.pair(&session, Some(successor)),
            Rotation::Repeated(session, sealed) => {
                let text = sealer.open(&context, &sealed).map_err(Error::internal)?;
                let text = String::from_utf8(text).map_err(Error::internal)?;
                self.pair(&session, Some(SecretString::from(text)))
            }
            Rotation::Reused(session) => {
                tracing::warn!(session_id = session.id, user_id = session.user_id, "refresh token reused");
                metrics::counter!("tollgate_refresh_reuse_total").increment(1);
                self.shared.mail_nudge.now();
                Err(invalid_grant())
            }
            Rotation::Dead => Err(invalid_grant()),
        }
    }

    /// Notes that the owner of a session has just proven who they are: an access token that says so, and no
    /// refresh token. UNAUTHENTICATED when the session is over.
    pub(crate) async fn reauthenticated(
        &self,
        user_id: &str,
        session_id: &str,
        amr: &[String],
        event: Event,
    ) -> Result<TokenPair> {
        let now = self.shared.clock.now_ms();
        let store = &self.shared.stores.sessions;
        let proven = store.prove(user_id, session_id, amr, now, &event).await?;
        self.pair(&proven.ok_or_else(|| Error::unauthenticated("the session has ended"))?, None)
    }

    /// The caller's live sessions, the last used first, and how many there are.
    pub(crate) async fn list(&self, caller: &AuthContext, page: Page) -> Result<(Vec<Listed>, i64)> {
        self.shared.stores.sessions.live(caller.user_id(), page, self.shared.clock.now_ms()).await
    }

    /// Ends the caller's session: its refresh tokens are dead at once, its access tokens as soon as the
    /// revocation has gone round. Ending it again is fine.
    pub(crate) async fn logout(&self, caller: &AuthContext, client: &ClientInfo) -> Result<()> {
        let (session_id, user_id) = (caller.session_id(), caller.user_id());
        let event = self.shared.journal.of_caller(caller, Action::Logout, client).on(session_id);
        let which = Which::One(session_id);
        let ended = self.shared.stores.sessions.end(user_id, &which, EndReason::Logout, &event).await?;
        if !ended.is_empty() {
            tracing::info!(session_id, user_id, "session ended");
        }
        Ok(())
    }

    /// Ends one of the caller's sessions. NOT_FOUND when there is none with this id, or it is over.
    pub(crate) async fn end(&self, caller: &AuthContext, id: &str, client: &ClientInfo) -> Result<()> {
        Checks::new().id("sessionId", id).done()?;
        let event = self.shared.journal.of_caller(caller, Action::SessionEnd, client).on(id);
        match self.end_all(caller.user_id(), &Which::One(id), &event).await? {
            0 => Err(Error::not_found("session")),
            _ => Ok(()),
        }
    }

    /// Ends all sessions of the caller but the one that calls; says how many.
    pub(crate) async fn end_others(&self, caller: &AuthContext, client: &ClientInfo) -> Result<u32> {
        let event = self.shared.journal.of_caller(caller, Action::SessionEnd, client).because("all others");
        self.end_all(caller.user_id(), &Which::Others(caller.session_id()), &event).await
    }

    /// Ends all sessions of a member of an organization in which the caller may change members; says how
    /// many. NOT_FOUND for what the caller is no member of, and for whoever is no member.
    pub(crate) async fn end_of_member(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        user_id: &str,
        client: &ClientInfo,
    ) -> Result<u32> {
        Checks::new().id("organizationId", organization_id).id("userId", user_id).done()?;
        let organizations = &*self.shared.organizations;
        authorize(organizations, caller, organization_id, "members:write", "organization").await?;
        if organizations.check(user_id, organization_id, "organizations:read").await? == Decision::Hidden {
            return Err(Error::not_found("member"));
        }
        let chain = Chain::Organization(organization_id.to_owned());
        let event = self.shared.journal.event(chain, Action::SessionEnd, client).by(caller.user_id());
        self.end_all(user_id, &Which::All, &event.on(user_id).because("all of a member")).await
    }

    async fn end_all(&self, user_id: &str, which: &Which<'_>, event: &Event) -> Result<u32> {
        let ended = self.shared.stores.sessions.end(user_id, which, EndReason::Ended, event).await?;
        if !ended.is_empty() {
            tracing::info!(user_id, count = ended.len(), "sessions ended");
        }
        Ok(u32::try_from(ended.len()).unwrap_or(u32::MAX))
    }

    /// An access token of a session, from now on.
    pub(crate) fn access_token(&self, session: &Session) -> Result<SecretString> {
        self.shared.issuer.issue(Grant {
            user_id: &session.user_id,
            session_id: &session.id,
            client_id: &session.client_id,
            scope: &session.scope,
            authenticated_at: session.authenticated_at,
            amr: session.amr.clone(),
            lifetime: self.shared.config.session.access_lifetime,
        })
    }

    fn new_refresh_token(&self, now: i64) -> (SecretString, RefreshToken) {
        let (text, hash) = secret::issue();
        let expires_at = now + i64::from(self.shared.config.session.refresh_idle) * 1_000;
        (text, RefreshToken { hash, created_at: now, expires_at })
    }

    fn pair(&self, session: &Session, refresh: Option<SecretString>) -> Result<TokenPair> {
        Ok(TokenPair {
            access: self.access_token(session)?,
            refresh,
            device: None,
            expires_in: self.shared.config.session.access_lifetime,
            refresh_expires_in: self.shared.config.session.refresh_idle,
        })
    }

    fn letter_of_reuse(&self, address: &str, client: &ClientInfo) -> Letter {
        let place = match client.address_text() {
            text if text.is_empty() => "an unknown address".to_owned(),
            text => text,
        };
        let public_url = &self.shared.config.account.public_url;
        Letter {
            to: address.to_owned(),
            subject: "One of your sessions was ended".to_owned(),
            text: format!(
                "Hello,\n\na key that keeps you logged in was used twice, the second time from {place}. That \
                 happens when somebody has copied it, so we have ended the session that it belonged \
                 to.\n\nPlease log in again. If you do not know why this happened, change your password \
                 and end your other sessions:\n\n{public_url}\n"
            ),
        }
    }
}

/// The one answer to every login that does not succeed: unknown, wrong, locked, disabled, not verified.
pub(crate) fn invalid_credentials() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "INVALID_CREDENTIALS",
        "the e-mail address or the password is wrong, or there were too many attempts; try again later",
    )
}

fn invalid_grant() -> Error {
    Error::new(Kind::Unauthenticated, "INVALID_GRANT", "the refresh token is not valid; log in again")
}
