//! How mail leaves: into a folder, and to an SMTP server that has bad days.

mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proto::auth::{RequestPasswordResetRequest, SignUpRequest};
use secrecy::SecretString;
use service_kit::{server::Listeners, testing::TestDatabase};

use crate::{
    harness::{Auth, Setup, answer, on_both, sign_up},
    secrets::hex,
};
use server::Server;

/// A letter as it was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) to: String,
    pub(crate) subject: String,
    pub(crate) text: String,
    /// All of it.
    pub(crate) raw: String,
}

impl Letter {
    fn read(raw: &str) -> Self {
        let (head, text) = raw.split_once("\r\n\r\n").unwrap();
        let header = |name: &str| {
            let found: Vec<&str> = head.split("\r\n").filter_map(|line| line.strip_prefix(name)).collect();
            let [value] = found.as_slice() else { panic!("one {name} in {head}") };
            (*value).to_owned()
        };
        let text = text.replace("\r\n", "\n");
        Self { to: header("To: "), subject: header("Subject: "), text, raw: raw.to_owned() }
    }

    /// The link in it.
    pub(crate) fn link(&self) -> &str {
        self.text.lines().find(|line| line.starts_with("http")).expect("a link")
    }

    /// The token of the link in it.
    pub(crate) fn token(&self) -> String {
        self.link().split_once("#token=").expect("a token").1.to_owned()
    }
}

/// The files that hold letters, the oldest first. One that is being written has another name.
fn files(auth: &Setup) -> Vec<PathBuf> {
    let files = fs::read_dir(&auth.config.mail.folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|it| it == "eml")).collect();
    files.sort();
    files
}

/// All letters in the folder, the oldest first, once there are so many.
pub(crate) async fn letters(auth: &Setup, count: usize) -> Vec<Letter> {
    until(&format!("{count} letters"), || files(auth).len() >= count).await;
    let files = files(auth);
    assert_eq!(files.len(), count, "{files:?}");
    files.iter().map(|file| Letter::read(&fs::read_to_string(file).unwrap())).collect()
}

/// The last of so many letters.
pub(crate) async fn letter(auth: &Setup, count: usize) -> Letter {
    letters(auth, count).await.pop().unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("no {what} in 30 s"));
}

async fn ask_for_reset(auth: &Auth, email: &str) {
    let request = RequestPasswordResetRequest { email: email.into() };
    answer(auth.client().request_password_reset(request).await).unwrap();
}

#[tokio::test]
async fn a_letter_is_a_file_that_only_we_can_read() {
    on_both(async |auth: Auth| {
        let name = "Click https://evil.example/#token=x\u{2003}now".to_owned();
        let request = SignUpRequest { name, ..sign_up("Jane.Doe@Example.com") };
        answer(auth.client().sign_up(request).await).unwrap();
        let letter = letter(&auth, 1).await;
        assert_eq!(letter.to, "Jane.Doe@Example.com");
        assert_eq!(letter.subject, "Confirm your e-mail address");
        assert!(letter.raw.contains("From: Tollgate <no-reply@tollgate.local>\r\n"), "{}", letter.raw);
        assert!(letter.raw.contains("Auto-Submitted: auto-generated\r\n"), "{}", letter.raw);
        assert!(letter.link().starts_with("https://localhost:8443/verify-email#token="), "{}", letter.raw);
        assert_eq!(letter.token().len(), 43);
        assert!(!letter.raw.contains("evil"), "what a stranger chose is in a letter: {}", letter.raw);

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&auth.config.mail.folder), 0o700);
        let files = files(&auth);
        assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");
    })
    .await;
}

#[tokio::test]
async fn refusals_of_one_letter_hold_up_no_other() {
    on_both(async |auth: Auth| {
        let server = Server::start().await;
        server.refuse("never@example.com", [550]);
        server.refuse("later@example.com", [451, 452]);
        let url = SecretString::from(server.url(""));
        let auth = auth
            .restart(|config| {
                config.mail.smtp_url = url;
                config.mail.retry_after = 1;
            })
            .await;
        for email in ["never@example.com", "later@example.com", "jane@example.com", "joan@example.com"] {
            answer(auth.client().sign_up(sign_up(email)).await).unwrap();
        }
        until("three letters", || server.received().len() == 3).await;
        let order: Vec<String> = server.received().into_iter().map(|(to, _)| to).collect();
        assert_eq!(order, ["jane@example.com", "joan@example.com", "later@example.com"]);
        assert_eq!(server.tries("never@example.com"), 1);
        assert_eq!(server.tries("later@example.com"), 3);
        let letter = Letter::read(&server.received()[0].1);
        assert_eq!((letter.to.as_str(), letter.token().len()), ("jane@example.com", 43));
    })
    .await;
}

#[tokio::test]
async fn a_letter_that_is_refused_for_a_day_is_dropped() {
    on_both(async |auth: Auth| {
        let server = Server::start().await;
        server.refuse("later@example.com", [450; 200]);
        let url = SecretString::from(server.url(""));
        let auth = auth
            .restart(|config| {
                config.mail.smtp_url = url;
                config.mail.retry_after = 1;
            })
            .await;
        answer(auth.client().sign_up(sign_up("later@example.com")).await).unwrap();
        until("a first try", || server.tries("later@example.com") >= 1).await;
        assert!(crate::secrets::dump(&auth).await.contains("outbox: "), "it waits");
        auth.clock.advance_ms(24 * 3_600 * 1_000);
        let dropped = async {
            while crate::secrets::dump(&auth).await.contains("outbox: ") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), dropped).await.expect("it does not wait any more");
        assert!(server.received().is_empty() && server.tries("later@example.com") >= 2);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_takes_nothing_loses_nothing() {
    on_both(async |auth: Auth| {
        let server = Server::start().await;
        server.authenticate("mailer", "canary w@rd");
        server.greet(554);
        let url = SecretString::from(server.url("mailer:canary%20w%40rd@"));
        let auth = auth.restart(|config| config.mail.smtp_url = url).await;
        for email in ["jane@example.com", "joan@example.com"] {
            answer(auth.client().sign_up(sign_up(email)).await).unwrap();
        }
        until("two attempts", || server.connections() >= 2).await;
        assert!(server.received().is_empty());
        // Now it answers, and does not know our password.
        server.authenticate("mailer", "another word");
        server.greet(220);
        let before = server.connections();
        until("two refused logins", || server.connections() >= before + 2).await;
        assert!(server.received().is_empty());
        server.authenticate("mailer", "canary w@rd");
        until("both letters", || server.received().len() == 2).await;
        let order: Vec<String> = server.received().into_iter().map(|(to, _)| to).collect();
        assert_eq!(order, ["jane@example.com", "joan@example.com"]);
    })
    .await;
}

/// Only PostgreSQL serves several instances.
#[tokio::test]
async fn of_two_instances_one_sends_each_letter() {
    let server = Server::start().await;
    let mut setup = Setup::new(TestDatabase::postgres());
    setup.config.mail.smtp_url = SecretString::from(server.url(""));
    let other = setup.launch().await;
    let auth = Auth::over(setup).await;
    let emails: Vec<String> = (0..3).map(|n| format!("user-{n}@example.com")).collect();
    for email in &emails {
        answer(auth.client().sign_up(sign_up(email)).await).unwrap();
    }
    for email in emails.iter().cycle().take(15) {
        ask_for_reset(&auth, email).await;
    }
    until("all letters", || server.received().len() >= 18).await;
    // Whatever is under way has arrived when both have ended.
    auth.running.shutdown().await;
    other.shutdown().await;
    let ids: BTreeSet<String> = server.received().iter().map(|(_, raw)| message_id(raw)).collect();
    assert_eq!((ids.len(), server.received().len()), (18, 18), "a letter came twice");
    let mut by_address = BTreeMap::<String, usize>::new();
    for (to, _) in server.received() {
        *by_address.entry(to).or_default() += 1;
    }
    assert!(by_address.values().all(|count| *count == 6), "{by_address:?}");
}

fn message_id(raw: &str) -> String {
    raw.lines().find_map(|line| line.strip_prefix("Message-ID: ")).expect("a message id").to_owned()
}

#[tokio::test]
async fn what_waits_is_sealed() {
    on_both(async |auth: Auth| {
        let server = Server::start().await;
        server.greet(421);
        let url = SecretString::from(server.url(""));
        let auth = auth.restart(|config| config.mail.smtp_url = url).await;
        answer(auth.client().sign_up(sign_up("jane@example.com")).await).unwrap();
        ask_for_reset(&auth, "unknown@example.com").await;
        let waiting = crate::secrets::dump(&auth).await;
        assert_eq!(waiting.lines().filter(|row| row.starts_with("outbox: ")).count(), 2, "{waiting}");
        assert!(!waiting.contains("unknown@example.com"), "an address without an account is stored");

        server.greet(220);
        until("the letter", || server.received().len() == 1).await;
        let token = Letter::read(&server.received()[0].1).token();
        let raw = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for form in [token.to_lowercase(), hex(token.as_bytes()), hex(&raw), hex(b"verify-email#token=")] {
            assert!(!waiting.contains(&form), "a link is stored");
        }
    })
    .await;
}

#[tokio::test]
async fn settings_that_would_lose_mail_or_show_it_end_the_start() {
    let setup = Setup::new(TestDatabase::sqlite());
    for (key, url, from) in [
        ("mail.smtp_url", "smtp://user:canary@mail.example.com:25", "a@example.com"),
        ("mail.from", "", "nobody"),
    ] {
        let mut config = setup.config.clone();
        config.mail.smtp_url = SecretString::from(url);
        config.mail.from = from.to_owned();
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let start = Box::pin(auth_service::start_at(config, listeners, setup.clock.clone()));
        let error = format!("{:#}", start.await.unwrap_err());
        assert!(error.contains(key) && !error.contains("canary"), "{error}");
    }
}
