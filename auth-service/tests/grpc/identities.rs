//! Accounts at providers: how they come to an account here, and how they leave it.

use proto::auth::{
    DeleteIdentityRequest, DeletePasskeyRequest, ListIdentitiesRequest, LogoutRequest, TokenPair,
};
use serde_json::json;
use service_kit::{Error, Kind};

use crate::{
    authenticator::Authenticator,
    harness::{Auth, PASSWORD, answer, fields, login, on_both, refresh, refusal, with_token},
    mail::letter,
    oidc_server::{OidcServer, person},
    providers::{
        browse, client, finish, identities, precondition, profile, sign_in, start, start_link, with_providers,
    },
    second_factors_support::Factors,
    sql::{execute, texts},
};

/// The whole addition of an identity.
async fn link(auth: &Auth, server: &OidcServer, provider: &str, token: &str) -> Result<TokenPair, Error> {
    let started = start_link(auth, token, provider).await?;
    finish(auth, &browse(server, provider, &started).await).await
}

async fn remove(auth: &Auth, token: &str, id: &str) -> Result<(), Error> {
    let request = with_token(token, DeleteIdentityRequest { identity_id: id.into() });
    answer(client(auth).delete_identity(request).await)
}

#[tokio::test]
async fn an_identity_is_added_by_the_owner_of_an_account() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        let (jane, here) = auth.user("jane@example.com").await;
        let (_, joan) = auth.user("joan@example.com").await;
        // The address at the provider does not matter.
        one.person(person("jane-at-one", "jane@elsewhere.example", false));
        let pair = link(&auth, &one, "one", &here.access_token).await.unwrap();
        assert_eq!(profile(&auth, &pair).await.id, jane.id);
        let pair = sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!(profile(&auth, &pair).await.id, jane.id);
        // Adding it again is fine, adding it to another account is not.
        link(&auth, &one, "one", &here.access_token).await.unwrap();
        let taken = link(&auth, &one, "one", &joan.access_token).await;
        assert_eq!(refusal(taken), (Kind::AlreadyExists, "IDENTITY_TAKEN".to_owned()));
        let listed = identities(&auth, &here.access_token).await;
        let [identity] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((identity.provider.as_str(), identity.email.as_str()), ("one", "jane@elsewhere.example"));
        assert!(identities(&auth, &joan.access_token).await.is_empty());

        // Whoever adds one must still be there when it is done, and must have proven it of late.
        one.person(person("thief", "thief@example.com", true));
        let started = start_link(&auth, &joan.access_token, "one").await.unwrap();
        let request = browse(&one, "one", &started).await;
        answer(auth.client().logout(with_token(&joan.access_token, LogoutRequest {})).await).unwrap();
        let lapsed = finish(&auth, &request).await;
        assert_eq!(refusal(lapsed), (Kind::Unauthenticated, "INVALID_CREDENTIALS".to_owned()));
        assert_eq!(texts(&auth, "SELECT id FROM identities").await.len(), 1);
        auth.clock.advance_ms(601_000);
        let here = refresh(&auth.client(), &here.refresh_token).await.unwrap();
        let late = start_link(&auth, &here.access_token, "one").await;
        assert_eq!(refusal(late), (Kind::Unauthenticated, "STEP_UP_REQUIRED".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn the_last_way_into_an_account_stays() {
    on_both(async |auth: Auth| {
        let (auth, one, two) = with_providers(auth).await;
        let pair = sign_in(&auth, &one, "one").await.unwrap();
        let token = &pair.access_token;
        let only = identities(&auth, token).await.remove(0);
        assert_eq!(refusal(remove(&auth, token, &only.id).await), precondition("LAST_LOGIN_METHOD"));

        // Another account cannot remove it, nor see that it is there.
        let (_, joan) = auth.user("joan@example.com").await;
        for id in [only.id.as_str(), "x", ""] {
            let hidden = remove(&auth, &joan.access_token, id).await;
            assert_eq!(refusal(hidden), (Kind::NotFound, "NOT_FOUND".to_owned()));
        }

        // Of two, taken away side by side, one stays.
        sign_in(&auth, &two, "two").await.unwrap();
        let tries: Vec<_> = identities(&auth, token)
            .await
            .into_iter()
            .map(|identity| {
                let request = with_token(token, DeleteIdentityRequest { identity_id: identity.id });
                let mut client = client(&auth);
                tokio::spawn(async move { answer(client.delete_identity(request).await) })
            })
            .collect();
        let mut removed = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(()) => removed += 1,
                refused => assert_eq!(refusal(refused), precondition("LAST_LOGIN_METHOD")),
            }
        }
        assert_eq!((removed, identities(&auth, token).await.len()), (1, 1));

        // A password is another way in; an identity at a provider that is no more is none.
        two.person(person("joan-at-two", "joan@example.com", true));
        link(&auth, &two, "two", &joan.access_token).await.unwrap();
        let mine = identities(&auth, &joan.access_token).await.remove(0);
        remove(&auth, &joan.access_token, &mine.id).await.unwrap();
        assert!(identities(&auth, &joan.access_token).await.is_empty());
        one.person(person("judy", "judy@example.com", true));
        two.person(person("judy", "judy@example.com", true));
        let judy = sign_in(&auth, &one, "one").await.unwrap();
        sign_in(&auth, &two, "two").await.unwrap();
        let auth = auth.restart(|config| drop(config.providers.remove("two"))).await;
        for identity in identities(&auth, &judy.access_token).await {
            let gone = remove(&auth, &judy.access_token, &identity.id).await;
            assert_eq!(gone.is_ok(), identity.provider == "two", "{identity:?}");
        }
        let log =
            texts(&auth, "SELECT body FROM audit_events WHERE body LIKE '%auth.identity.remove%'").await;
        assert_eq!(log.len(), 3, "{log:#?}");
    })
    .await;
}

#[tokio::test]
async fn a_passkey_that_is_the_last_way_into_an_account_stays() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        let pair = sign_in(&auth, &one, "one").await.unwrap();
        let (token, factors) = (&pair.access_token, Factors::of(&auth));
        let mut first = Authenticator::new();
        let passkey = factors.register(token, &mut first).await.unwrap().passkey.unwrap();
        let other = factors.register(token, &mut Authenticator::new()).await.unwrap().passkey.unwrap();
        let identity = identities(&auth, token).await.remove(0);
        remove(&auth, token, &identity.id).await.unwrap();
        let delete = async |id: &str| {
            let request = with_token(token, DeletePasskeyRequest { passkey_id: id.into() });
            answer(factors.0.clone().delete_passkey(request).await)
        };
        delete(&other.id).await.unwrap();
        assert_eq!(refusal(delete(&passkey.id).await), precondition("LAST_LOGIN_METHOD"));
        let again = factors.login(&mut first).await.unwrap();
        // With another way in it may go.
        link(&auth, &one, "one", &again.access_token).await.unwrap();
        delete(&passkey.id).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_owner_is_told_of_identities_that_come_and_go() {
    on_both(async |auth: Auth| {
        let (auth, one, two) = with_providers(auth).await;
        let (_, here) = auth.user("jane@example.com").await;
        execute(&auth, "UPDATE users SET email_verified_at = 1").await;
        let told = async |count| {
            let letter = letter(&auth, count).await;
            assert_eq!(letter.to, "jane@example.com");
            assert_eq!(letter.subject, "Your ways to log in were changed");
            letter.text
        };
        one.person(person("jane-at-one", "jane@elsewhere.example", false));
        link(&auth, &one, "one", &here.access_token).await.unwrap();
        assert!(told(2).await.starts_with("An account at a provider can log in"));
        // By the address alone, too.
        two.person(person("jane-at-two", "jane@example.com", true));
        sign_in(&auth, &two, "two").await.unwrap();
        assert!(told(3).await.starts_with("An account at a provider can log in"));
        let identity = identities(&auth, &here.access_token).await.remove(0);
        remove(&auth, &here.access_token, &identity.id).await.unwrap();
        assert!(told(4).await.starts_with("An account at a provider was removed"));
    })
    .await;
}

#[tokio::test]
async fn identities_come_in_pages() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        let (_, here) = auth.user("jane@example.com").await;
        for at in 0..3 {
            auth.clock.advance_ms(1);
            one.person(person(&format!("s{at}"), &format!("s{at}@example.com"), true));
            link(&auth, &one, "one", &here.access_token).await.unwrap();
        }
        let page = async |limit, offset| {
            let request = with_token(&here.access_token, ListIdentitiesRequest { limit, offset });
            answer(client(&auth).list_identities(request).await)
        };
        let middle = page(Some(1), 1).await.unwrap();
        let pagination = middle.pagination.unwrap();
        assert_eq!((middle.count, middle.list[0].email.as_str()), (1, "s1@example.com"));
        assert_eq!((pagination.total, pagination.limit, pagination.offset), (3, 1, 1));
        assert_eq!(page(None, 9).await.unwrap().count, 0);
        for limit in [0, 101] {
            assert_eq!(fields(page(Some(limit), 0).await), ["limit"]);
        }
    })
    .await;
}

#[tokio::test]
async fn of_first_logins_side_by_side_one_makes_the_account() {
    on_both(async |auth: Auth| {
        let (auth, one, two) = with_providers(auth).await;
        two.person(person("jane-at-two", "jane@example.com", true));
        let mut tries = Vec::new();
        for (provider, server) in [("one", &one), ("two", &two)].into_iter().cycle().take(8) {
            let request = browse(server, provider, &start(&auth, provider).await.unwrap()).await;
            let mut client = client(&auth);
            tries.push(tokio::spawn(async move { answer(client.finish_provider_login(request).await) }));
        }
        for attempt in tries {
            attempt.await.unwrap().unwrap();
        }
        assert_eq!(texts(&auth, "SELECT id FROM users").await.len(), 1);
        assert_eq!(texts(&auth, "SELECT id FROM identities").await.len(), 2);
        assert_eq!(texts(&auth, "SELECT id FROM sessions").await.len(), 8);
    })
    .await;
}

#[tokio::test]
async fn disabled_accounts_are_refused_as_everywhere() {
    on_both(async |auth: Auth| {
        let (auth, one, two) = with_providers(auth).await;
        sign_in(&auth, &one, "one").await.unwrap();
        execute(&auth, "UPDATE users SET disabled_at = 1").await;
        two.person(person("jane-at-two", "jane@example.com", true));
        for (provider, server) in [("one", &one), ("two", &two)] {
            let refused = sign_in(&auth, server, provider).await;
            assert_eq!(refusal(refused), (Kind::Unauthenticated, "INVALID_CREDENTIALS".to_owned()));
        }
        assert_eq!(texts(&auth, "SELECT id FROM identities").await.len(), 1, "nothing was added");
    })
    .await;
}

#[tokio::test]
async fn addresses_find_accounts_only_when_both_sides_have_verified_them() {
    on_both(async |auth: Auth| {
        let (auth, one, _two) = with_providers(auth).await;
        let (user, _) = auth.user("jane@example.com").await;
        // Nothing is told of an account to somebody whose address the provider does not vouch for.
        for email in ["jane@example.com", "joan@example.com"] {
            one.person(person("mallory", email, false));
            let refused = sign_in(&auth, &one, "one").await;
            assert_eq!(refusal(refused), precondition("EMAIL_NOT_VERIFIED"), "{email}");
        }
        for claims in [
            json!({"sub": "mallory", "email": "jane@example.com"}),
            json!({"sub": "mallory", "email_verified": true}),
            person("mallory", "jane@example.com\r\nBcc: x@y.zz", true),
            person("mallory", "", true),
        ] {
            one.person(claims);
            assert_eq!(refusal(sign_in(&auth, &one, "one").await), precondition("EMAIL_NOT_VERIFIED"));
        }
        // Whoever made the account may have used somebody else's address.
        one.person(person("jane", "Jane@example.com", true));
        assert_eq!(refusal(sign_in(&auth, &one, "one").await), precondition("ACCOUNT_EXISTS"));
        assert!(texts(&auth, "SELECT id FROM identities").await.is_empty());
        execute(&auth, "UPDATE users SET email_verified_at = 1").await;
        let pair = sign_in(&auth, &one, "one").await.unwrap();
        assert_eq!(profile(&auth, &pair).await.id, user.id);
        login(&auth.client(), "jane@example.com", PASSWORD).await.unwrap();
    })
    .await;
}
