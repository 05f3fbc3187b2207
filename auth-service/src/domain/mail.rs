//! Mail: written here, sealed while it waits in the outbox. `delivery` sends it.
//!
//! Letters hold nothing that a stranger could have chosen: no names, and links to the configured
//! application only.

use secrecy::ExposeSecret as _;
use service_kit::{Error, Ids, Result, seal::Sealer};

use super::{
    Shared,
    pending::{Kind, Pending},
    secret,
};

/// The topic of the outbox that mail waits in.
pub(crate) const TOPIC: &str = "mail";
/// The topic for letters that the server refused for now.
pub(crate) const ASIDE: &str = "mail-aside";

/// How many letters of one purpose go to an address in [`LIMIT_MS`].
pub(crate) const LIMIT: i64 = 5;
/// The time that [`LIMIT`] is for.
const LIMIT_MS: i64 = HOUR_MS;

const HOUR_MS: i64 = 3_600 * 1_000;
const RESET_LIFETIME_MS: i64 = HOUR_MS;
const VERIFY_LIFETIME_MS: i64 = 24 * HOUR_MS;

/// A letter to one person: plain text.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Letter {
    pub(crate) to: String,
    pub(crate) subject: String,
    pub(crate) text: String,
}

/// A letter as it waits: it may hold a link that is a secret, so it is sealed.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) payload: Vec<u8>,
}

/// What a letter that anybody can ask for is about. Each purpose has its own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Verify,
    Reset,
    AlreadyThere,
}

impl Purpose {
    /// The form that is stored.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Verify => "VERIFY",
            Self::Reset => "RESET",
            Self::AlreadyThere => "ALREADY_THERE",
        }
    }
}

/// A letter that anybody can ask for, as it goes out.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) purpose: Purpose,
    /// What its link is good for, if it has one. The user is filled in when it is stored.
    pub(crate) link: Option<Pending>,
    /// What counts it.
    pub(crate) mark: Pending,
    pub(crate) envelope: Envelope,
}

/// Puts letters into envelopes, and takes them out again. Clones share their key.
#[derive(Debug, Clone)]
pub(crate) struct Mailroom {
    sealer: Sealer,
    ids: Ids,
}

impl Mailroom {
    pub(crate) fn new(sealer: Sealer, ids: Ids) -> Self {
        Self { sealer, ids }
    }

    /// Seals a letter. Post it in the transaction of what it tells about (`store::mail::Post`).
    pub(crate) fn envelope(&self, letter: &Letter) -> Result<Envelope> {
        let id = self.ids.next();
        let text = serde_json::to_vec(letter).map_err(Error::internal)?;
        let payload = self.sealer.seal(&format!("mail:{id}"), &text).map_err(Error::internal)?;
        Ok(Envelope { id, payload })
    }

    /// Opens what [`Self::envelope`] sealed.
    pub(crate) fn open(&self, id: &str, payload: &[u8]) -> anyhow::Result<Letter> {
        Ok(serde_json::from_slice(&self.sealer.open(&format!("mail:{id}"), payload)?)?)
    }
}

/// When a letter was written, in Unix milliseconds: its id, a UUIDv7, says so.
pub(crate) fn written_at(id: &str) -> Option<i64> {
    let digits: String = id.chars().filter(|c| *c != '-').take(12).collect();
    i64::from_str_radix(&digits, 16).ok()
}

impl Letter {
    /// Proves that mail to an address arrives.
    pub(crate) fn verify(to: &str, link: &str) -> Self {
        Self::new(
            to,
            "Confirm your e-mail address",
            &format!(
                "Somebody signed up to Tollgate with this e-mail address.\n\n\
                 If it was you, confirm the address within 24 hours:\n\n{link}\n\n\
                 If it was not you, do not follow the link."
            ),
        )
    }

    /// Tells the owner of an account that somebody tried to make another one.
    pub(crate) fn already_there(to: &str, public_url: &str) -> Self {
        Self::new(
            to,
            "You have an account already",
            &format!(
                "Somebody tried to sign up to Tollgate with this e-mail address, which has an account.\n\n\
                 If it was you, log in, or ask for a new password if you forgot yours:\n\n{public_url}\n\n\
                 If it was not you, there is nothing to do: nothing was changed."
            ),
        )
    }

    /// Lets the owner of an account choose a new password.
    pub(crate) fn reset(to: &str, link: &str) -> Self {
        Self::new(
            to,
            "Choose a new password",
            &format!(
                "Somebody asked for a new password for your Tollgate account.\n\n\
                 If it was you, choose one within one hour:\n\n{link}\n\n\
                 If it was not you, do not follow the link: your password stays as it is."
            ),
        )
    }

    /// Lets the owner of an address choose the password of an account that several may have signed up for.
    pub(crate) fn contested(to: &str, link: &str) -> Self {
        Self::new(
            to,
            "Confirm your e-mail address and choose a password",
            &format!(
                "Somebody signed up to Tollgate with this e-mail address more than once, with different \
                 passwords. As we cannot tell which of them was you, none of the passwords counts.\n\n\
                 If you want the account, confirm the address and choose a password within one hour:\n\n{link}\n\n\
                 If it was not you, do not follow the link."
            ),
        )
    }

    /// Tells the owner of an account that the password is another one now.
    pub(crate) fn password_changed(to: &str, public_url: &str) -> Self {
        Self::new(
            to,
            "Your password was changed",
            &format!(
                "The password of your Tollgate account was changed, and other sessions were ended.\n\n\
                 If it was not you, ask for a new password at once and tell your administrator:\n\n\
                 {public_url}"
            ),
        )
    }

    /// Tells the owner of an account who else may log in to it; `what` happened, in a sentence without names.
    pub(crate) fn identities_changed(to: &str, what: &str, public_url: &str) -> Self {
        Self::new(
            to,
            "Your ways to log in were changed",
            &format!(
                "{what}\n\nIf it was not you, look at your sign-in providers and sessions, and change your \
                 password at once:\n\n{public_url}"
            ),
        )
    }

    /// A letter that is never sent, of a usual size: an address without an account takes the same work.
    pub(crate) fn to_nobody(public_url: &str) -> Self {
        Self { to: String::new(), ..Self::reset("", public_url) }
    }

    pub(crate) fn is_to_nobody(&self) -> bool {
        self.to.is_empty()
    }

    fn new(to: &str, subject: &str, text: &str) -> Self {
        Self { to: to.to_owned(), subject: subject.to_owned(), text: format!("{text}\n") }
    }
}

impl Outgoing {
    /// A link that verifies an address. To nobody (`None`) it is the same work.
    pub(crate) fn verify(shared: &Shared, to: Option<&str>) -> Result<Self> {
        let (url, link) = link(shared, "verify-email", Kind::EmailVerification, VERIFY_LIFETIME_MS);
        Self::new(shared, Purpose::Verify, Some(link), to.map(|to| Letter::verify(to, &url)))
    }

    /// A link to choose a new password. To nobody (`None`) it is the same work.
    pub(crate) fn reset(shared: &Shared, to: Option<&str>) -> Result<Self> {
        let (url, link) = link(shared, "reset-password", Kind::PasswordReset, RESET_LIFETIME_MS);
        Self::new(shared, Purpose::Reset, Some(link), to.map(|to| Letter::reset(to, &url)))
    }

    /// A link to choose a password, after sign-ups with several. To nobody (`None`) it is the same work.
    pub(crate) fn contested(shared: &Shared, to: Option<&str>) -> Result<Self> {
        let (url, link) = link(shared, "reset-password", Kind::PasswordReset, RESET_LIFETIME_MS);
        Self::new(shared, Purpose::Reset, Some(link), to.map(|to| Letter::contested(to, &url)))
    }

    /// Word of a sign-up with the address of an account. To nobody (`None`) it is the same work.
    pub(crate) fn already_there(shared: &Shared, to: Option<&str>) -> Result<Self> {
        let letter = to.map(|to| Letter::already_there(to, public_url(shared)));
        Self::new(shared, Purpose::AlreadyThere, None, letter)
    }

    fn new(shared: &Shared, purpose: Purpose, link: Option<Pending>, letter: Option<Letter>) -> Result<Self> {
        let letter = letter.unwrap_or_else(|| Letter::to_nobody(public_url(shared)));
        let now = shared.clock.now_ms();
        let mark = Pending {
            // Nobody holds the secret: it can be counted and not used.
            hash: secret::issue().1,
            kind: Kind::LetterMark,
            user_id: None,
            payload: purpose.name().as_bytes().to_vec(),
            created_at: now,
            expires_at: now + LIMIT_MS,
        };
        Ok(Self { purpose, link, mark, envelope: shared.mailroom.envelope(&letter)? })
    }
}

/// Where the application is. Nothing of a request has a say in it.
pub(crate) fn public_url(shared: &Shared) -> &str {
    shared.config.account.public_url.trim_end_matches('/')
}

/// A link to a page of the application, and what is stored of it. The token is in the fragment, which no
/// browser sends: it reaches no log of a server.
fn link(shared: &Shared, page: &str, kind: Kind, lifetime_ms: i64) -> (String, Pending) {
    let (token, hash) = secret::issue();
    let now = shared.clock.now_ms();
    let url = format!("{}/{page}#token={}", public_url(shared), token.expose_secret());
    let (user_id, payload) = (None, Vec::new());
    (url, Pending { hash, kind, user_id, payload, created_at: now, expires_at: now + lifetime_ms })
}

#[cfg(test)]
mod tests {
    use service_kit::{Clock, Ids, seal::Sealer};

    use super::{Letter, Mailroom, written_at};

    #[test]
    fn a_letter_opens_under_its_own_id_only() {
        let ids = Ids::new(Clock::fixed(1_766_000_000_000));
        let mailroom = Mailroom::new(Sealer::new(&[7; 32]).unwrap(), ids.clone());
        let letter = Letter::reset("jane@example.com", "https://localhost/#token=canary");
        let envelope = mailroom.envelope(&letter).unwrap();
        assert!(!envelope.payload.windows(6).any(|part| part == b"canary"));
        assert_eq!(mailroom.open(&envelope.id, &envelope.payload).unwrap().text, letter.text);
        assert!(mailroom.open(&ids.next(), &envelope.payload).is_err());
        assert_eq!(written_at(&envelope.id), Some(1_766_000_000_000));
        assert_eq!(written_at("x"), None);
    }
}
