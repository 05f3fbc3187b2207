//! Attacks on identity, against the real edge and the real services. docs/security.md lists them.

use std::{sync::Arc, time::Instant};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use suite::client::{Client, text_at};
use tokio::net::TcpListener;

use crate::support::{PASSWORD, TestSuite, signed_up, unique, wait_for};

fn text(value: &Value, pointer: &str) -> String {
    text_at(value, pointer).unwrap().to_owned()
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decoded(part: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

async fn refused(anybody: &Client, token: &str, what: &str) {
    let reply = anybody.with_token(token).get("/api/v1/auth/profile").await.unwrap();
    assert_eq!(reply.status, 401, "{what}: {}", reply.text());
}

async fn login(anybody: &Client, body: &Value) -> suite::client::Reply {
    anybody.post("/api/v1/auth/login", body).await.unwrap()
}

async fn refresh(anybody: &Client, token: &str) -> suite::client::Reply {
    anybody.post("/api/v1/auth/refresh", &json!({"refreshToken": token})).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_not_the_callers_to_set_are_refused() {
    let suite = TestSuite::start().await;
    let (client, email, id, _) = signed_up(&suite.client).await;
    let before = client.get("/api/v1/auth/profile").await.unwrap().text();
    for field in ["role", "isAdmin", "orgId", "emailVerified", "id", "createdAt", "disabled", "amr", "scope"]
    {
        let mut body =
            json!({"email": format!("{}@example.com", unique("m")), "password": PASSWORD, "name": "M"});
        body[field] = json!("admin");
        let problem = suite.client.post("/api/v1/auth/signup", &body).await.unwrap().expect(400).unwrap();
        assert_eq!(problem["errors"][0]["field"], field);
        let mut body = json!({"name": "M"});
        body[field] = json!(true);
        client.put("/api/v1/auth/profile", &body).await.unwrap().expect(400).unwrap();
    }
    client
        .put("/api/v1/auth/profile", &json!({"name": "M", "email": "x@y.zz"}))
        .await
        .unwrap()
        .expect(400)
        .unwrap();
    assert_eq!(client.get("/api/v1/auth/profile").await.unwrap().text(), before, "{email} {id}");
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_misused_tokens_are_refused() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let (client, email, user_id, refresh_token) = signed_up(anybody).await;
    let good = client.token().unwrap().to_owned();
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let (head, body) = (decoded(header), decoded(claims));
    let changed = |key: &str, value: Value| {
        let mut claims = body.clone();
        claims[key] = value;
        format!("{header}.{}.{signature}", encoded(&claims))
    };
    refused(anybody, &changed("sub", json!("00000000-0000-7000-8000-000000000000")), "another subject").await;
    refused(anybody, &changed("scope", json!("* admin")), "another scope").await;
    refused(anybody, &changed("exp", json!(9_999_999_999_i64)), "another end").await;
    for alg in ["none", "None", "NONE", "nOnE"] {
        let header = encoded(&json!({"alg": alg, "typ": "at+jwt", "kid": head["kid"]}));
        refused(anybody, &format!("{header}.{claims}."), alg).await;
        refused(anybody, &format!("{header}.{claims}.{signature}"), alg).await;
    }
    // Signed with what everybody may know, as if it were a secret.
    let jwks = anybody.get("/.well-known/jwks.json").await.unwrap().expect(200).unwrap();
    let key = &jwks["keys"][0];
    let (x, y) = (text(key, "/x"), text(key, "/y"));
    let raw = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let point = [vec![4], raw(&x), raw(&y)].concat();
    for secret in [raw(&x), point, key.to_string().into_bytes(), jwks.to_string().into_bytes(), Vec::new()] {
        let header = encoded(&json!({"alg": "HS256", "typ": "at+jwt", "kid": head["kid"]}));
        let tag =
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), format!("{header}.{claims}").as_bytes());
        let forged = format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(tag));
        refused(anybody, &forged, "HS256 with the public key").await;
    }
    // A key of the attacker's, offered by address: nobody comes to fetch it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    for name in ["jku", "x5u"] {
        let mut header = head.clone();
        header[name] = json!(url);
        refused(anybody, &format!("{}.{claims}.{signature}", encoded(&header)), name).await;
    }
    let visit = tokio::time::timeout(std::time::Duration::from_millis(300), listener.accept()).await;
    assert!(visit.is_err(), "somebody fetched the attacker's key");
    // Tokens of other kinds.
    let pair = login(anybody, &json!({"email": email, "password": PASSWORD})).await.expect(200).unwrap();
    refused(anybody, &refresh_token, "a refresh token as access token").await;
    refused(anybody, &text(&pair, "/deviceToken"), "a device token as access token").await;
    refresh(anybody, &good).await.expect(401).unwrap();
    refresh(anybody, &text(&pair, "/deviceToken")).await.expect(401).unwrap();
    // Headers that name somebody prove nothing, and change nothing.
    let (other, ..) = signed_up(anybody).await;
    let mut forged = other.clone();
    for name in ["x-user-id", "x-org-id", "x_user_id", "x-forwarded-user", "grpc-metadata-x-user-id"] {
        forged = forged.with_header(name, &user_id).unwrap();
    }
    let profile = forged.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    assert_ne!(text(&profile, "/id"), user_id);
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_refresh_token_ends_the_session_with_its_access_tokens() {
    for suite in [TestSuite::start().await, TestSuite::on_postgres().await] {
        let (client, _, _, first) = signed_up(&suite.client).await;
        let second = refresh(&suite.client, &first).await.expect(200).unwrap();
        let newer = suite.client.with_token(&text(&second, "/accessToken"));
        newer.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
        refresh(&suite.client, &first).await.expect(401).unwrap();
        refresh(&suite.client, &text(&second, "/refreshToken")).await.expect(401).unwrap();
        for client in [client, newer] {
            wait_for("the access token is dead", async || {
                (client.get("/api/v1/auth/profile").await.unwrap().status == 401).then_some(())
            })
            .await;
        }
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_refreshes_at_once_one_succeeds() {
    for suite in [TestSuite::start().await, TestSuite::on_postgres().await] {
        let (_, _, _, token) = signed_up(&suite.client).await;
        let tries = (0..50).map(|_| refresh(&suite.client, &token));
        let answers = futures_util::future::join_all(tries).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
        assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 401)));
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_the_other_sessions() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let (client, email, _, _) = signed_up(anybody).await;
    let other = login(anybody, &json!({"email": email, "password": PASSWORD})).await.expect(200).unwrap();
    let thief = anybody.with_token(&text(&other, "/accessToken"));
    let change = async |current: &str| {
        let body = json!({"currentPassword": current, "newPassword": "another battery horse"});
        client.post("/api/v1/auth/password", &body).await.unwrap()
    };
    change("not the password").await.expect(401).unwrap();
    thief.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    change(PASSWORD).await.expect(204).unwrap();
    let began = Instant::now();
    wait_for("the other session is dead", async || {
        (thief.get("/api/v1/auth/profile").await.unwrap().status == 401).then_some(())
    })
    .await;
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    refresh(anybody, &text(&other, "/refreshToken")).await.expect(401).unwrap();
    client.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    login(anybody, &json!({"email": email, "password": PASSWORD})).await.expect(401).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_down_for_strangers_and_not_for_the_owner() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let (_, email, _, _) = signed_up(anybody).await;
    let right = json!({"email": email, "password": PASSWORD});
    let device = text(&login(anybody, &right).await.expect(200).unwrap(), "/deviceToken");
    let mut bodies = std::collections::HashSet::new();
    for guess in 0..200 {
        let reply =
            login(anybody, &json!({"email": email, "password": format!("guess number {guess}")})).await;
        let mut problem = reply.expect(401).unwrap();
        problem.as_object_mut().unwrap().remove("traceId");
        bodies.insert(problem.to_string());
    }
    // The right password is refused in the same words: nobody learns that it was right.
    let mut problem = login(anybody, &right).await.expect(401).unwrap();
    problem.as_object_mut().unwrap().remove("traceId");
    bodies.insert(problem.to_string());
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let known = json!({"email": email, "password": PASSWORD, "deviceToken": device});
    login(anybody, &known).await.expect(200).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_addresses_do_not_move_the_limit() {
    let limits = "[edge.limits]\ncredential_per_minute = 20\n";
    for names in [&[][..], &["x-forwarded-for", "x-real-ip", "forwarded", "true-client-ip"][..]] {
        let suite = TestSuite::configured(limits).await;
        let mut limited_at = None;
        for attempt in 1..=25 {
            let mut client = suite.client.clone();
            for name in names {
                client = client.with_header(name, &format!("198.51.100.{attempt}")).unwrap();
            }
            let body =
                json!({"email": format!("{}@example.com", unique("u")), "password": "a wrong password"});
            let reply = login(&client, &body).await;
            if reply.status == 429 {
                assert!(!reply.header("retry-after").is_empty());
                limited_at.get_or_insert(attempt);
            }
        }
        assert_eq!(limited_at, Some(21), "{names:?}");
        suite.suite.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_learns_who_has_an_account() {
    let suite = TestSuite::configured("[auth.account]\nverify_email = true\n").await;
    let anybody = &suite.client;
    let known = format!("{}@example.com", unique("a"));
    let sign_up = async |email: &str| {
        let body = json!({"email": email, "password": PASSWORD, "name": "A User"});
        anybody.post("/api/v1/auth/signup", &body).await.unwrap()
    };
    sign_up(&known).await.expect(202).unwrap();
    for _ in 0..10 {
        let unknown = format!("{}@example.com", unique("a"));
        assert_eq!(known.len(), unknown.len());
        let pairs = [
            (sign_up(&known).await, sign_up(&unknown).await),
            (
                login(anybody, &json!({"email": known, "password": "not the password"})).await,
                login(anybody, &json!({"email": format!("x{unknown}"), "password": "not the password"}))
                    .await,
            ),
            (
                anybody.post("/api/v1/auth/password/forgot", &json!({"email": known})).await.unwrap(),
                anybody
                    .post("/api/v1/auth/password/forgot", &json!({"email": format!("y{unknown}")}))
                    .await
                    .unwrap(),
            ),
            (
                anybody.post("/api/v1/auth/email/verification", &json!({"email": known})).await.unwrap(),
                anybody
                    .post("/api/v1/auth/email/verification", &json!({"email": format!("z{unknown}")}))
                    .await
                    .unwrap(),
            ),
        ];
        for (one, other) in pairs {
            assert_eq!(one.status, other.status, "{}", one.request);
            let plain = |text: String, email: &str| {
                let text = text.replace(email, "EMAIL");
                let mut value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
                if let Some(object) = value.as_object_mut() {
                    object.remove("traceId");
                }
                value
            };
            assert_eq!(plain(one.text(), &known), plain(other.text(), &unknown), "{}", one.request);
            let names = |reply: &suite::client::Reply| {
                let mut names: Vec<String> = reply.headers.keys().map(ToString::to_string).collect();
                names.sort();
                names
            };
            assert_eq!(names(&one), names(&other), "{}", one.request);
        }
    }
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessed_opaque_tokens_find_nothing() {
    let suite = TestSuite::start().await;
    for kind in ["pat", "svc"] {
        for _ in 0..100 {
            let (token, _) = service_kit::opaque::issue(kind);
            let token = secrecy::ExposeSecret::expose_secret(&token).to_owned();
            refused(&suite.client, &token, "a guessed token").await;
            let mut broken = token.into_bytes();
            let last = broken.len() - 1;
            broken[last] = if broken[last] == b'0' { b'1' } else { b'0' };
            refused(&suite.client, &String::from_utf8(broken).unwrap(), "a wrong checksum").await;
        }
    }
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_sql_or_a_log_line_is_only_text() {
    let suite = TestSuite::on_postgres().await;
    let anybody = Arc::new(suite.client.clone());
    let (client, email, _, _) = signed_up(&anybody).await;
    let texts = [
        "'",
        "\" OR 1=1--",
        "'; SELECT pg_sleep(5);--",
        "a\r\nlevel=ERROR forged",
        "${jndi:ldap://x}",
        "\u{1b}[31m",
    ];
    for bad in texts {
        let began = Instant::now();
        let requests = [
            anybody.post("/api/v1/auth/login", &json!({"email": bad, "password": bad})).await,
            anybody.post("/api/v1/auth/login", &json!({"email": email, "password": bad})).await,
            anybody.post("/api/v1/auth/refresh", &json!({"refreshToken": bad})).await,
            anybody
                .post("/api/v1/auth/password/reset", &json!({"token": bad, "newPassword": PASSWORD}))
                .await,
            anybody
                .post("/api/v1/auth/login/second-factor", &json!({"challenge": bad, "totpCode": bad}))
                .await,
            anybody.post("/api/v1/auth/device/token", &json!({"deviceCode": bad})).await,
            anybody.post("/api/v1/auth/device", &json!({"clientId": bad})).await,
            anybody.post("/api/v1/auth/providers/x/finish", &json!({"state": bad, "code": bad})).await,
            client.post("/api/v1/auth/tokens", &json!({"name": "t", "scopes": [bad]})).await,
            client.post("/api/v1/auth/second-factors/totp/confirm", &json!({"code": bad})).await,
            client
                .with_header("user-agent", "' OR 1=1")
                .unwrap()
                .get("/api/v1/auth/sessions?offset=-1")
                .await,
        ];
        for reply in requests {
            let reply = reply.unwrap();
            assert!(
                (400..500).contains(&reply.status),
                "{}: {} {}",
                reply.request,
                reply.status,
                reply.text()
            );
        }
        assert!(began.elapsed().as_secs() < 5, "{bad:?} took {:?}", began.elapsed());
    }
    suite.suite.shutdown().await;
}
