use std::sync::Mutex;

use async_trait::async_trait;
use proptest::prelude::*;
use secrecy::ExposeSecret as _;
use service_kit::{Error, Result, opaque, page::Page};

use super::{Asked, Created, Found, Kind, MINUTE_MS, NewToken, Token, grantable, note_use, prove};
use crate::{domain::audit::Event, store::opaque_tokens::OpaqueTokenStore};

const NOW: i64 = 1_766_000_000_000;

/// A token by its kind and the id in its text.
type Held = (Kind, String, Found);

/// Holds one token, counts the questions, and can be out of order.
#[derive(Debug)]
struct Counting {
    held: Option<Held>,
    broken: bool,
    questions: Mutex<u32>,
}

impl Counting {
    fn questions(&self) -> u32 {
        std::mem::take(&mut *self.questions.lock().unwrap())
    }

    fn count<T>(&self, answer: T) -> Result<T> {
        *self.questions.lock().unwrap() += 1;
        if self.broken { Err(Error::internal(anyhow::anyhow!("as told"))) } else { Ok(answer) }
    }
}

#[async_trait]
impl OpaqueTokenStore for Counting {
    async fn create(&self, _: &NewToken, _: &Event) -> Result<Created> {
        self.count(Created::Stored)
    }

    async fn list(&self, _: Kind, _: &str, _: Page) -> Result<(Vec<Token>, i64)> {
        self.count((Vec::new(), 0))
    }

    async fn get(&self, _: Kind, _: &str, _: &str) -> Result<Option<Token>> {
        self.count(None)
    }

    async fn revoke(&self, _: Kind, _: &str, _: &str, _: &Event) -> Result<bool> {
        self.count(false)
    }

    async fn find(&self, kind: Kind, lookup: &str) -> Result<Option<Found>> {
        let held = self.held.as_ref().filter(|(of, known, _)| *of == kind && known == lookup);
        self.count(held.map(|(_, _, found)| found.clone()))
    }

    async fn note_use(&self, _: &str, _: i64) -> Result<()> {
        self.count(())
    }

    async fn prune(&self, _: i64) -> Result<u64> {
        self.count(0)
    }
}

/// The text of a token, and a store that holds it.
fn held(kind: Kind) -> (String, Counting) {
    let (text, stored) = opaque::issue(kind.name());
    let token = Token {
        id: "id".to_owned(),
        owner_id: "owner".to_owned(),
        name: "ci".to_owned(),
        scopes: vec!["*:read".to_owned()],
        created_by: "owner".to_owned(),
        created_at: NOW,
        expires_at: NOW + 1_000,
        last_used_at: None,
    };
    let found = Found { token, salt: stored.salt, hash: stored.hash, revoked: false, owned: true };
    let store =
        Counting { held: Some((kind, stored.lookup, found)), broken: false, questions: Mutex::default() };
    (text.expose_secret().to_owned(), store)
}

/// What a refusal says: the reason, and everything else that is said.
async fn refusal(store: &Counting, text: &str, now: i64) -> (String, String) {
    let error = prove(store, text, now).await.unwrap_err();
    (error.reason().to_owned(), format!("{error:?}"))
}

#[tokio::test]
async fn a_wrong_checksum_asks_no_database() {
    for kind in Kind::ALL {
        let (text, store) = held(kind);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(refusal(&store, &changed, NOW).await.0, "INVALID_TOKEN");
        }
        let long = text.repeat(10_000);
        for form in ["", "tg", "tgpat_", &text[1..], &text[..text.len() - 1], &long, "tgpat_\0", "\u{1f511}"]
        {
            assert_eq!(refusal(&store, form, NOW).await.0, "INVALID_TOKEN");
        }
        assert_eq!(store.questions(), 0);
        // A right one asks once, and one of nobody too.
        let (found, token) = prove(&store, &text, NOW).await.unwrap();
        assert_eq!((found, token.id.as_str(), store.questions()), (kind, "id", 1));
        let unknown = opaque::issue(kind.name()).0;
        assert_eq!(refusal(&store, unknown.expose_secret(), NOW).await.0, "INVALID_TOKEN");
        assert_eq!(store.questions(), 1);
    }
}

#[tokio::test]
async fn every_reason_to_refuse_looks_alike() {
    let (text, mut store) = held(Kind::Personal);
    prove(&store, &text, NOW + 999).await.unwrap();
    let mut answers = vec![
        refusal(&store, "nonsense", NOW).await,
        refusal(&store, opaque::issue("pat").0.expose_secret(), NOW).await,
        refusal(&store, &text, NOW + 1_000).await,
    ];
    let good = store.held.clone().unwrap();
    let changes: [fn(&mut Held); 4] = [
        |(_, _, found)| found.revoked = true,
        |(_, _, found)| found.owned = false,
        |(_, _, found)| found.hash[0] ^= 1,
        |(kind, _, _)| *kind = Kind::Service,
    ];
    for change in changes {
        let mut held = good.clone();
        change(&mut held);
        store.held = Some(held);
        answers.push(refusal(&store, &text, NOW).await);
    }
    assert_eq!(answers.len(), 7);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    // A doubt is no proof.
    store.broken = true;
    assert_eq!(refusal(&store, &text, NOW).await.0, "UNAVAILABLE");
}

#[tokio::test]
async fn use_is_written_once_a_minute_and_fails_nobody() {
    let (_, mut store) = held(Kind::Personal);
    let mut token = store.held.clone().unwrap().2.token;
    note_use(&store, &token, NOW).await;
    assert_eq!(store.questions(), 1);
    let minute = NOW / MINUTE_MS * MINUTE_MS;
    token.last_used_at = Some(minute);
    for now in [minute, NOW, minute + MINUTE_MS - 1] {
        note_use(&store, &token, now).await;
    }
    assert_eq!(store.questions(), 0);
    store.broken = true;
    note_use(&store, &token, minute + MINUTE_MS).await;
    assert_eq!(store.questions(), 1);
}

fn asked(name: &str, scopes: &[&str], expires_in_days: Option<u32>) -> Asked {
    let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    Asked { name: name.to_owned(), scopes, expires_in_days }
}

#[test]
fn defaults_are_narrow_and_limits_hold() {
    let (name, scopes, days) = asked(" ci ", &[], None).check().unwrap();
    assert_eq!((name.as_str(), scopes, days), ("ci", vec!["*:read".to_owned()], 90));
    let (_, scopes, days) = asked("ci", &["apis:write", "*:read", "apis:write"], Some(366)).check().unwrap();
    assert_eq!((scopes, days), (vec!["apis:write".to_owned(), "*:read".to_owned()], 366));

    let fields = |asked: Asked| -> Vec<String> {
        asked.check().unwrap_err().violations().iter().map(|violation| violation.field.clone()).collect()
    };
    assert_eq!(
        fields(asked("", &["apis:read", "*", "apis:fly"], Some(0))),
        ["name", "scopes[2]", "expiresInDays"]
    );
    assert_eq!(
        fields(asked("ci", &["*:write", "", "apis:read projects:read"], Some(367))),
        ["scopes[0]", "scopes[1]", "scopes[2]", "expiresInDays"]
    );
    assert_eq!(fields(asked("ci", &["*"; 51], None)), ["scopes"]);
    assert!(asked("ci", &["*"; 50], None).check().is_ok());
    assert_eq!(fields(asked(&"n".repeat(101), &[], None)), ["name"]);
    assert_eq!(fields(asked("a\nb", &[], None)), ["name"]);
}

#[test]
fn scopes_are_the_permissions_of_the_contract() {
    for method in proto::Contract::get().methods() {
        if !method.permission.is_empty() {
            assert!(grantable(&method.permission), "{}", method.path);
        }
    }
    assert!(!grantable("") && !grantable("apis:*") && !grantable("APIS:READ"));
}

proptest! {
    /// Nothing that is presented panics, and nothing but a token asks the database.
    #[test]
    fn anything_can_be_presented(text in "(tgpat_|tgsvc_|tggw_)?[0-9A-Za-z_]{0,90}|\\PC{0,90}") {
        let (_, store) = held(Kind::Personal);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        prop_assert_eq!(runtime.block_on(refusal(&store, &text, NOW)).0, "INVALID_TOKEN");
        prop_assert_eq!(store.questions(), 0);
    }

    /// A name that is accepted is one printable line, and scopes are each there once.
    #[test]
    fn what_is_accepted_keeps_the_rules(
        name in ".{0,110}",
        scopes in proptest::collection::vec(prop_oneof![Just("*"), Just("apis:read"), Just("gateways:rotate")], 0..60),
        days in proptest::option::of(0_u32..500),
    ) {
        if let Ok((name, scopes, days)) = asked(&name, &scopes, days).check() {
            prop_assert!((1..=100).contains(&name.chars().count()) && !name.chars().any(char::is_control));
            prop_assert!((1..=366).contains(&days) && (1..=3).contains(&scopes.len()));
        }
    }
}
