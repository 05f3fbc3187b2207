//! Sign-up and profile.

use proto::auth::{GetProfileRequest, SignUpRequest, UpdateProfileRequest};
use service_kit::{Kind, server::Listeners};

use crate::{
    harness::{Auth, PASSWORD, START, answer, fields, login, on_both, refusal, sign_up, with_token},
    mail::letter,
};

#[tokio::test]
async fn an_account_is_made_read_and_changed() {
    on_both(async |auth: Auth| {
        let mut client = auth.client();
        let (user, pair) = auth.user("Jane.Doe@Example.com").await;
        assert!(service_kit::id::is_id(&user.id), "{user:?}");
        assert_eq!((user.email.as_str(), user.name.as_str()), ("Jane.Doe@Example.com", "Jane Doe"));
        assert_eq!(user.created_at.unwrap().unix_ms(), START);
        assert!(!user.email_verified);
        assert_eq!(letter(&auth, 1).await.to, "Jane.Doe@Example.com");

        let read = client.get_profile(with_token(&pair.access_token, GetProfileRequest {})).await;
        assert_eq!(answer(read).unwrap(), user);

        auth.clock.advance_ms(1_500);
        let name = "  Jane O'Neil-Döe 👩‍🚀 ".to_owned();
        let change = with_token(&pair.access_token, UpdateProfileRequest { name });
        let changed = answer(client.update_profile(change).await).unwrap();
        assert_eq!(changed.name, "Jane O'Neil-Döe 👩‍🚀");
        assert_eq!(changed.updated_at.unwrap().unix_ms(), START + 1_500);
        let read = client.get_profile(with_token(&pair.access_token, GetProfileRequest {})).await;
        assert_eq!(answer(read).unwrap(), changed);
    })
    .await;
}

#[tokio::test]
async fn an_address_has_one_account_in_any_case_of_letters() {
    on_both(async |auth: Auth| {
        auth.user("jane@example.com").await;
        let again = answer(auth.client().sign_up(sign_up("JANE@Example.COM")).await);
        assert_eq!(refusal(again), (Kind::AlreadyExists, "EMAIL_TAKEN".to_owned()));
        login(&auth.client(), "JANE@EXAMPLE.COM", PASSWORD).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn of_sign_ups_side_by_side_one_wins() {
    on_both(async |auth: Auth| {
        let tries: Vec<_> = (0..5)
            .map(|_| {
                let mut client = auth.client();
                tokio::spawn(async move { answer(client.sign_up(sign_up("jane@example.com")).await) })
            })
            .collect();
        let mut made = 0;
        for attempt in tries {
            match attempt.await.unwrap() {
                Ok(_) => made += 1,
                Err(error) => assert_eq!(error.reason(), "EMAIL_TAKEN", "{error}"),
            }
        }
        assert_eq!(made, 1);
    })
    .await;
}

#[tokio::test]
async fn garbage_names_every_bad_field_and_makes_nothing() {
    on_both(async |auth: Auth| {
        let long = "x".repeat(100_000);
        let cases: &[(&str, &str, &str, &[&str])] = &[
            ("", "", "", &["email", "password", "name"]),
            ("jane", PASSWORD, "Jane", &["email"]),
            ("jane@example.com\r\nBcc: x@y.zz", PASSWORD, "Jane", &["email"]),
            ("' OR 1=1 --@example.com", PASSWORD, "Jane", &["email"]),
            ("jane@example.com", "short-7", "Jane", &["password"]),
            ("jane@example.com", "password123", "Jane", &["password"]),
            ("jane@example.com", "my-jane-password", "Somebody", &["password"]),
            ("jane@example.com", "Somebody-1!", "Somebody", &["password"]),
            ("jane@example.com", "Tollgate-2025", "Jane", &["password"]),
            ("jane@example.com", &long, "Jane", &["password"]),
            ("jane@example.com", PASSWORD, "\u{1b}[31mJane\n", &["name"]),
            ("jane@example.com", PASSWORD, &long, &["name"]),
            (&long, &long, &long, &["email", "password", "name"]),
        ];
        for (email, password, name, bad) in cases {
            let (email, password, name) = ((*email).into(), (*password).into(), (*name).into());
            let refused = answer(auth.client().sign_up(SignUpRequest { email, password, name }).await);
            assert_eq!(&fields(refused), bad);
        }
        // Nothing was made on the way.
        auth.user("jane@example.com").await;
    })
    .await;
}

#[tokio::test]
async fn the_operators_list_of_passwords_counts_or_the_service_does_not_start() {
    on_both(async |auth: Auth| {
        let file = auth.config.mail.folder.with_extension("blocklist");
        std::fs::write(&file, "Our-Canteen-Has-Soup\n").unwrap();
        let auth = auth.restart(|config| config.password.blocklist_file = file).await;
        let password = "our-canteen-has-soup".to_owned();
        let refused = auth.client().sign_up(SignUpRequest { password, ..sign_up("jane@example.com") }).await;
        assert_eq!(fields(answer(refused)), ["password"]);
        auth.user("jane@example.com").await;

        let mut config = auth.config.clone();
        config.password.blocklist_file.set_extension("gone");
        let listeners = Listeners::bind("127.0.0.1:0", "127.0.0.1:0").await.unwrap();
        let start = Box::pin(auth_service::start_at(config, listeners, auth.clock.clone()));
        let error = start.await.unwrap_err().to_string();
        assert!(error.contains("password.blocklist_file"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_bad_name_changes_nothing() {
    on_both(async |auth: Auth| {
        let mut client = auth.client();
        let (user, pair) = auth.user("jane@example.com").await;
        for name in ["", "   ", "a\tb", &"n".repeat(101)] {
            let change = with_token(&pair.access_token, UpdateProfileRequest { name: name.into() });
            assert_eq!(fields(answer(client.update_profile(change).await)), ["name"]);
        }
        let read = client.get_profile(with_token(&pair.access_token, GetProfileRequest {})).await;
        assert_eq!(answer(read).unwrap(), user);
    })
    .await;
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused() {
    on_both(async |auth: Auth| {
        let name = "x".repeat(2 * 1024 * 1024);
        let request = SignUpRequest { name, ..sign_up("jane@example.com") };
        let status = auth.client().sign_up(request).await.unwrap_err();
        assert!(status.message().contains("too large"), "{status:?}");
    })
    .await;
}
