//! Logging in a program that has no browser (RFC 8628): it asks for a code, a person approves the code in
//! a session of his own, and the program exchanges its secret half for a session.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::Contract;
use secrecy::{ExposeSecret as _, SecretString};
use service_kit::{
    AuthContext, ClientInfo, Error, Kind, Result, access::STEP_UP_REQUIRED, field::Checks, opaque::random,
};

use super::{
    Shared,
    audit::{Action, Chain},
    secret::{self, TokenHash},
    sessions::{FULL_SCOPE, Opening, Sessions, TokenPair, WEB_CLIENT},
    throttle::{Admission, Key, Rules, State},
};

/// The letters of user codes (RFC 8628, section 6.1): consonants spell no words.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
const CODE_LENGTH: usize = 8;
/// Seconds that both codes are good for.
const LIFETIME: u32 = 600;
/// Seconds between two exchanges, and what is added each time that one comes too early.
const INTERVAL: u32 = 5;
const MAX_WORDS: usize = 50;
/// How a session of a device says that its owner was elsewhere.
const METHOD: &str = "device";
/// Names of clients that are not programs of somebody else.
const RESERVED: [&str; 3] = [WEB_CLIENT, "personal-access-token", "service-account"];

/// The halves of a new grant, and how to use them.
#[derive(Debug)]
pub(crate) struct Authorization {
    /// What the device exchanges.
    pub(crate) device_code: SecretString,
    /// What the person enters: `BCDF-GHJK`.
    pub(crate) user_code: String,
    /// Where the person enters it.
    pub(crate) verification_uri: String,
    /// Seconds until both codes expire.
    pub(crate) expires_in: u32,
    /// Seconds between two exchanges.
    pub(crate) interval: u32,
}

/// A grant that is to be stored. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct NewGrant {
    pub(crate) device_hash: TokenHash,
    /// Eight letters without the hyphen.
    pub(crate) user_code: String,
    pub(crate) client_id: String,
    /// Permissions separated by spaces.
    pub(crate) scope: String,
    /// The address that asked.
    pub(crate) address: String,
    /// Milliseconds between two exchanges.
    pub(crate) interval: i64,
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
}

/// What a code asks for. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceRequest {
    pub(crate) client_id: String,
    /// Permissions separated by spaces.
    pub(crate) scope: String,
    pub(crate) address: String,
    pub(crate) created_at: i64,
    pub(crate) expires_at: i64,
}

/// What an exchange found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Poll {
    /// Nobody has decided yet.
    Pending,
    /// Nobody has decided yet, and the exchange came too early: wait so many milliseconds from now on.
    TooEarly(i64),
    /// Somebody has denied it.
    Denied,
    /// Somebody has approved it. The grant is used up.
    Approved(Approval),
    /// There is no such grant, or not any more.
    Dead,
}

/// A grant that was approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Approval {
    pub(crate) user_id: String,
    pub(crate) client_id: String,
    /// Permissions separated by spaces.
    pub(crate) scope: String,
    /// The version of the owner's password at that time, if there is one.
    pub(crate) password: Option<i64>,
}

/// Everything about devices.
#[derive(Debug)]
pub(crate) struct Devices {
    shared: Shared,
    sessions: Arc<Sessions>,
    rules: Rules,
}

impl Devices {
    pub(crate) fn new(shared: &Shared, sessions: Arc<Sessions>) -> Self {
        let rules = Rules::healing(&shared.config.throttle);
        Self { shared: shared.clone(), sessions, rules }
    }

    /// Asks for a code. INVALID_ARGUMENT names every bad field.
    pub(crate) async fn start(
        &self,
        client_id: &str,
        scope: &str,
        client: &ClientInfo,
    ) -> Result<Authorization> {
        let mut checks = Checks::new();
        check_client_id(&mut checks, client_id);
        let scope = check_scope(&mut checks, scope);
        checks.done()?;

        let (device_code, device_hash) = secret::issue();
        let now = self.shared.clock.now_ms();
        let mut grant = NewGrant {
            device_hash,
            user_code: new_user_code(),
            client_id: client_id.to_owned(),
            scope,
            address: client.address_text(),
            interval: i64::from(INTERVAL) * 1_000,
            created_at: now,
            expires_at: now + i64::from(LIFETIME) * 1_000,
        };
        // One of 25,600,000,000 codes is hardly ever in use already.
        while !self.shared.stores.devices.add(&grant).await? {
            grant.user_code = new_user_code();
        }
        let (left, right) = grant.user_code.split_at(CODE_LENGTH / 2);
        Ok(Authorization {
            device_code,
            user_code: format!("{left}-{right}"),
            verification_uri: format!(
                "{}/device",
                self.shared.config.account.public_url.trim_end_matches('/')
            ),
            expires_in: LIFETIME,
            interval: INTERVAL,
        })
    }

    /// What a code asks for. NOT_FOUND when it is unknown, expired or decided; RESOURCE_EXHAUSTED when the
    /// caller has guessed too often.
    pub(crate) async fn get(&self, caller: &AuthContext, user_code: &str) -> Result<DeviceRequest> {
        let user_code = normalized(user_code).ok_or_else(no_such_code)?;
        self.find(caller, &user_code).await
    }

    /// Decides what a code asks for; of decisions side by side one counts. NOT_FOUND and
    /// RESOURCE_EXHAUSTED as [`Self::get`]; PERMISSION_DENIED when the caller's own session may do less
    /// than the device would; UNAUTHENTICATED (`STEP_UP_REQUIRED`) when it is a device's itself: one that
    /// was stolen must not bring the next.
    pub(crate) async fn decide(
        &self,
        caller: &AuthContext,
        user_code: &str,
        approve: bool,
        client: &ClientInfo,
    ) -> Result<()> {
        let user_code = normalized(user_code).ok_or_else(no_such_code)?;
        let request = self.find(caller, &user_code).await?;
        if approve && !request.scope.split(' ').all(|word| caller.has_scope(word)) {
            return Err(Error::new(
                Kind::PermissionDenied,
                "INSUFFICIENT_SCOPE",
                "the device asks for more than your own session may do",
            ));
        }
        if approve && caller.claims().amr.iter().any(|method| method == METHOD) {
            return Err(Error::new(
                Kind::Unauthenticated,
                STEP_UP_REQUIRED,
                "nobody has proven who they are in this session; prove it first",
            ));
        }
        let action = if approve { Action::DeviceApprove } else { Action::DeviceDeny };
        let event = self.shared.journal.of_caller(caller, action, client).because(&request.client_id);
        let by = (caller.user_id(), caller.session_id());
        if !self.shared.stores.devices.decide(&user_code, approve, by, &event).await? {
            return Err(no_such_code());
        }
        tracing::info!(user_id = by.0, client_id = request.client_id, approve, "device decided");
        Ok(())
    }

    /// Exchanges a device code for a session. Until it is decided FAILED_PRECONDITION
    /// (`AUTHORIZATION_PENDING`), or RESOURCE_EXHAUSTED (`SLOW_DOWN`) when asked too often; then
    /// PERMISSION_DENIED (`ACCESS_DENIED`), or one session. UNAUTHENTICATED (`EXPIRED_TOKEN`) for every
    /// code that is not good.
    pub(crate) async fn exchange(
        &self,
        device_code: &SecretString,
        client: &ClientInfo,
    ) -> Result<TokenPair> {
        let empty = device_code.expose_secret().is_empty();
        Checks::new().that(!empty, "deviceCode", "is required").done()?;
        let hash = secret::hash(device_code).ok_or_else(expired_token)?;
        let store = &self.shared.stores.devices;
        match store.poll(hash, i64::from(INTERVAL) * 1_000, self.shared.clock.now_ms()).await? {
            Poll::Pending => Err(Error::new(
                Kind::FailedPrecondition,
                "AUTHORIZATION_PENDING",
                "nobody has approved this device yet; try again after the interval",
            )),
            Poll::TooEarly(wait) => Err(Error::new(
                Kind::ResourceExhausted,
                "SLOW_DOWN",
                "asked more often than the interval allows; it is longer now",
            )
            .retry_after(Duration::from_millis(wait.unsigned_abs()))),
            Poll::Denied => {
                Err(Error::new(Kind::PermissionDenied, "ACCESS_DENIED", "the owner has denied this device"))
            }
            Poll::Approved(approval) => self.open(approval, client).await,
            Poll::Dead => Err(expired_token()),
        }
    }

    async fn open(&self, approval: Approval, client: &ClientInfo) -> Result<TokenPair> {
        let Approval { user_id, client_id, scope, password } = approval;
        let chain = Chain::User(user_id.clone());
        let event = self.shared.journal.event(chain, Action::Login, client).by(&user_id).because(&client_id);
        let opening = Opening {
            user_id: &user_id,
            client_id: &client_id,
            scope: &scope,
            amr: vec![METHOD.to_owned()],
            // The owner was elsewhere: at the device nobody has proven anything.
            authenticated_at: Some(0),
            password,
            client,
            forgiven: None,
            event,
        };
        self.sessions.open(opening).await
    }

    /// A pending grant. Every look counts as a guess of the caller until it was right; a right one forgives
    /// none of those before it, or a code of one's own would buy more guesses.
    async fn find(&self, caller: &AuthContext, user_code: &str) -> Result<DeviceRequest> {
        let key = Key::named(&format!("device-code:{}", caller.user_id()));
        let admitted = self.admitted(&key).await?;
        let now = self.shared.clock.now_ms();
        let found = self.shared.stores.devices.find(user_code, now).await?.ok_or_else(no_such_code)?;
        self.shared.stores.throttles.excuse(&key, admitted).await?;
        Ok(found)
    }

    async fn admitted(&self, key: &Key) -> Result<State> {
        match self.shared.stores.throttles.admit(key, &self.rules, self.shared.clock.now_ms()).await? {
            Admission::Admitted(state) => Ok(state),
            Admission::Locked(wait) => {
                let error = Error::new(
                    Kind::ResourceExhausted,
                    "TOO_MANY_ATTEMPTS",
                    "too many wrong codes; try again later",
                );
                Err(error.retry_after(Duration::from_millis(wait.unwrap_or_default().unsigned_abs())))
            }
        }
    }
}

fn no_such_code() -> Error {
    Error::not_found("code")
}

fn expired_token() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "EXPIRED_TOKEN",
        "the device code is unknown, used or expired; ask for another one",
    )
}

fn check_client_id(checks: &mut Checks, text: &str) {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let well_formed = (1..=40).contains(&text.len())
        && text.bytes().all(|b| word(b) || b == b'-')
        && text.bytes().next().is_some_and(word);
    checks.that(well_formed, "clientId", "must be 1 to 40 of a-z, 0-9 and -, not with a hyphen first");
    checks.that(!RESERVED.contains(&text), "clientId", "is reserved");
}

/// The scope in its normal form: each word once, one space between them; everything when it is empty.
fn check_scope(checks: &mut Checks, text: &str) -> String {
    let given = || text.split(' ').filter(|word| !word.is_empty());
    checks.that(given().count() <= MAX_WORDS, "scope", "must have at most 50 permissions");
    let mut words: Vec<&str> = Vec::new();
    for word in given().take(MAX_WORDS) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let permissions: BTreeSet<&str> =
        Contract::get().methods().map(|method| method.permission.as_str()).collect();
    let known = |word: &&str| [FULL_SCOPE, "*:read"].contains(word) || permissions.contains(word);
    checks.that(words.iter().all(known), "scope", "must be permissions such as projects:read, *:read or *");
    if words.is_empty() { FULL_SCOPE.to_owned() } else { words.join(" ") }
}

fn new_user_code() -> String {
    let mut code = String::with_capacity(CODE_LENGTH);
    while code.len() < CODE_LENGTH {
        // 240 is a multiple of 20: each letter is as likely as any other.
        for byte in random::<CODE_LENGTH>().into_iter().filter(|byte| *byte < 240) {
            code.push(char::from(LETTERS[usize::from(byte) % LETTERS.len()]));
        }
    }
    code.truncate(CODE_LENGTH);
    code
}

/// The eight letters of a code as people write them; `None` when it cannot be one.
fn normalized(text: &str) -> Option<String> {
    if text.len() > 64 {
        return None;
    }
    let code: String =
        text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_ascii_uppercase()).collect();
    (code.len() == CODE_LENGTH && code.bytes().all(|b| LETTERS.contains(&b))).then_some(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use service_kit::field::Checks;

    use super::{LETTERS, check_client_id, check_scope, new_user_code, normalized};

    fn scope(text: &str) -> Option<String> {
        let mut checks = Checks::new();
        let scope = check_scope(&mut checks, text);
        checks.done().is_ok().then_some(scope)
    }

    #[test]
    fn scopes_are_permissions_of_the_contract() {
        assert_eq!(scope("").unwrap(), "*");
        assert_eq!(scope("  projects:read   apis:write projects:read ").unwrap(), "projects:read apis:write");
        assert_eq!(scope("*:read").unwrap(), "*:read");
        let many = (0..51).map(|n| format!("p{n}:read")).collect::<Vec<_>>().join(" ");
        for bad in ["projects", "projects:*", "a:b", "*:write", "projects:read\tapis:write", "**", &many] {
            assert!(scope(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn clients_have_plain_names_of_their_own() {
        let ok = |id: &str| {
            let mut checks = Checks::new();
            check_client_id(&mut checks, id);
            checks.done().is_ok()
        };
        assert!(ok("tollgate-cli") && ok("a") && ok("0") && ok(&"x".repeat(40)));
        for bad in ["", "-a", "A", "a_b", "a b", "tollgate-web", "personal-access-token", "service-account"] {
            assert!(!ok(bad), "{bad}");
        }
        assert!(!ok(&"x".repeat(41)));
    }

    #[test]
    fn codes_use_every_letter_about_as_often() {
        let mut counts = [0_u32; 20];
        for _ in 0..2_000 {
            let code = new_user_code();
            assert_eq!(normalized(&code).as_deref(), Some(code.as_str()));
            for byte in code.bytes() {
                counts[LETTERS.iter().position(|letter| *letter == byte).unwrap()] += 1;
            }
        }
        // 800 each; six standard deviations are 166.
        assert!(counts.iter().all(|count| (630..970).contains(count)), "{counts:?}");
    }

    #[test]
    fn codes_are_read_as_people_write_them() {
        for written in ["BCDF-GHJK", "bcdfghjk", " bcdf ghjk ", "b-c-d-f-g-h-j-k"] {
            assert_eq!(normalized(written).as_deref(), Some("BCDFGHJK"), "{written}");
        }
        for bad in ["", "BCDF-GHJ", "BCDF-GHJKL", "ACDF-GHJK", "BCDF_GHJK", "BCDF-GHJÉ", &"-".repeat(1_000)]
        {
            assert_eq!(normalized(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_entered(text in "\\PC{0,80}") {
            if let Some(code) = normalized(&text) {
                prop_assert!(code.len() == 8 && code.bytes().all(|b| LETTERS.contains(&b)));
            }
        }
    }
}
