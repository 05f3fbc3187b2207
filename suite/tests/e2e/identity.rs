//! Identity as people use it, through the edge: sessions in several places, personal tokens, service
//! accounts, second factors, devices, mail, the audit log.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};
use suite::client::{Client, text_at};
use totp_rs::{Builder, Secret};

use crate::support::{Account, PASSWORD, TestSuite, signed_up, unique, wait_for};

/// Waits until a client's token is refused; revocations take seconds at most.
async fn wait_until_refused(client: &Client) {
    wait_for("the token is refused", async || {
        let reply = client.get("/api/v1/auth/profile").await.unwrap();
        (reply.status == 401).then_some(())
    })
    .await;
}

/// Logs in; the answer.
async fn login(anybody: &Client, email: &str) -> Value {
    let body = json!({"email": email, "password": PASSWORD});
    anybody.post("/api/v1/auth/login", &body).await.unwrap().expect(200).unwrap()
}

fn text(value: &Value, pointer: &str) -> String {
    text_at(value, pointer).unwrap().to_owned()
}

/// The token of a letter to an address: of the first that holds a link with `#token=`, or of a later one.
pub(crate) fn token_in_mail(folder: &Path, address: &str, after: usize) -> Option<String> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    // A letter that is being written is beside the others under another name. Names grow with time.
    let mut letters: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "eml")).collect();
    letters.sort();
    let texts = letters.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let tokens: Vec<String> = texts
        .filter(|letter| letter.to_lowercase().contains(&address.to_lowercase()))
        .map(|letter| letter.replace("=\r\n", "").replace("=3D", "="))
        .filter_map(|letter| {
            let token = letter.split("#token=").nth(1)?;
            Some(token.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect())
        })
        .collect();
    tokens.get(after).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_and_ended_from_elsewhere() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let (first, email, _, _) = signed_up(anybody).await;
    let second = login(anybody, &email).await;
    let second_client = anybody.with_token(&text(&second, "/accessToken"));
    let third = login(anybody, &email).await;
    let third_client = anybody.with_token(&text(&third, "/accessToken"));

    let list = first.get("/api/v1/auth/sessions").await.unwrap().expect(200).unwrap();
    assert_eq!(list["count"], 3, "{list}");
    let sessions = list["list"].as_array().unwrap();
    assert_eq!(sessions.iter().filter(|one| one["current"] == true).count(), 1);
    for session in sessions {
        assert_eq!((&session["address"], &session["methods"]), (&json!("127.0.0.1"), &json!(["pwd"])));
    }
    // One of them.
    let mine = second_client.get("/api/v1/auth/sessions").await.unwrap().expect(200).unwrap();
    let current = mine["list"].as_array().unwrap().iter().find(|one| one["current"] == true).unwrap();
    let path = format!("/api/v1/auth/sessions/{}", text(current, "/id"));
    first.delete(&path).await.unwrap().expect(204).unwrap();
    wait_until_refused(&second_client).await;
    let body = json!({"refreshToken": text(&second, "/refreshToken")});
    anybody.post("/api/v1/auth/refresh", &body).await.unwrap().expect(401).unwrap();
    third_client.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    // All but this one.
    let ended =
        first.post("/api/v1/auth/sessions/end-others", &json!({})).await.unwrap().expect(200).unwrap();
    assert_eq!(ended["ended"], 1);
    wait_until_refused(&third_client).await;
    first.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    // Somebody else's session does not exist.
    let (stranger, _, _, _) = signed_up(anybody).await;
    let list = first.get("/api/v1/auth/sessions").await.unwrap().expect(200).unwrap();
    let path = format!("/api/v1/auth/sessions/{}", text(&list, "/list/0/id"));
    stranger.delete(&path).await.unwrap().expect(404).unwrap();
    first.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn personal_tokens_do_what_they_were_made_for() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let make = async |body: Value| {
        account.client.post("/api/v1/auth/tokens", &body).await.unwrap().expect(201).unwrap()
    };
    let reading = make(json!({"name": "reads"})).await;
    let writing =
        make(json!({"name": "writes", "scopes": ["apis:read", "apis:write", "projects:read"]})).await;
    assert!(text(&reading, "/token").starts_with("tgpat_"), "{reading}");
    assert_eq!(reading["details"]["scopes"], json!(["*:read"]));
    let reader = suite.client.with_token(&text(&reading, "/token"));
    let writer = suite.client.with_token(&text(&writing, "/token"));

    let organization = format!("/api/v1/organizations/{}", account.organization);
    reader.get(&organization).await.unwrap().expect(200).unwrap();
    let refused = reader.post("/api/v1/apis", &account.api_body("pat")).await.unwrap().expect(403).unwrap();
    assert_eq!(refused["reason"], "INSUFFICIENT_SCOPE");
    writer.post("/api/v1/apis", &account.api_body("pat")).await.unwrap().expect(201).unwrap();
    writer.get(&organization).await.unwrap().expect(403).unwrap();
    // What only a person may do.
    let everything = make(json!({"name": "all", "scopes": ["*"]})).await;
    let everything = suite.client.with_token(&text(&everything, "/token"));
    for (path, body) in [
        ("/api/v1/auth/tokens", json!({"name": "wider", "scopes": ["*"]})),
        (
            "/api/v1/auth/password",
            json!({"currentPassword": PASSWORD, "newPassword": "another battery horse"}),
        ),
        ("/api/v1/auth/second-factors/totp", json!({})),
        ("/api/v1/auth/sessions/end-others", json!({})),
    ] {
        let refused = everything.post(path, &body).await.unwrap().expect(403).unwrap();
        assert_eq!(refused["reason"], "INTERACTIVE_LOGIN_REQUIRED", "{path}");
    }
    // Over gRPC too, and until it is revoked.
    let channel = suite::grpc::channel(&suite.client).unwrap();
    let mut grpc = proto::auth::auth_service_client::AuthServiceClient::new(channel);
    let request = suite::grpc::authorized(&reader, proto::auth::GetProfileRequest {}).unwrap();
    assert_eq!(grpc.get_profile(request).await.unwrap().into_inner().id, account.user_id);
    let path = format!("/api/v1/auth/tokens/{}", text(&reading, "/id"));
    let shown = account.client.get(&path).await.unwrap();
    assert!(!shown.text().contains(&text(&reading, "/token")[..30]), "{}", shown.text());
    assert!(shown.expect(200).unwrap()["lastUsedAt"].is_string());
    account.client.delete(&path).await.unwrap().expect(204).unwrap();
    wait_until_refused(&reader).await;
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_accounts_are_members_without_a_login() {
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let path = format!("/api/v1/organizations/{}/service-accounts", account.organization);
    let body = json!({"name": "ci", "role": "developer"});
    let made = account.client.post(&path, &body).await.unwrap().expect(201).unwrap();
    let id = text(&made, "/id");
    let keys = format!("/api/v1/service-accounts/{id}/keys");
    let body = json!({"name": "pipeline", "scopes": ["*"]});
    let key = account.client.post(&keys, &body).await.unwrap().expect(201).unwrap();
    assert!(text(&key, "/token").starts_with("tgsvc_"), "{key}");
    let robot = suite.client.with_token(&text(&key, "/token"));
    wait_for("the service account is a member", async || {
        let reply = robot.post("/api/v1/apis", &account.api_body("robot")).await.unwrap();
        (reply.status == 201).then_some(())
    })
    .await;
    // Its role says what it may do, and it owns nothing.
    let gateway = json!({"organizationId": account.organization, "name": "gateway-1", "displayName": "G", "vhost": "a.example.com"});
    robot.post("/api/v1/gateways", &gateway).await.unwrap().expect(403).unwrap();
    let organization = json!({"handle": unique("o"), "name": "Mine"});
    robot.post("/api/v1/organizations", &organization).await.unwrap().expect(403).unwrap();
    // Another organization sees nothing of it.
    let stranger = suite.account().await;
    stranger.client.get(&format!("/api/v1/service-accounts/{id}")).await.unwrap().expect(404).unwrap();
    let audit = format!("/api/v1/organizations/{}/audit", account.organization);
    stranger.client.get(&audit).await.unwrap().expect(404).unwrap();
    account.client.delete(&format!("/api/v1/service-accounts/{id}")).await.unwrap().expect(204).unwrap();
    wait_until_refused(&robot).await;
    let events = account.client.get(&audit).await.unwrap().expect(200).unwrap();
    let actions: Vec<&str> =
        events["list"].as_array().unwrap().iter().filter_map(|event| event["action"].as_str()).collect();
    let wanted =
        ["auth.service-account.delete", "auth.service-account.key.create", "auth.service-account.create"];
    assert_eq!(actions, wanted);
    suite.suite.shutdown().await;
}

pub(crate) fn code(secret: &str, step: u64) -> String {
    let totp = Builder::new().with_secret(Secret::try_from_base32(secret).unwrap()).build().unwrap();
    totp.generate(step * 30).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_factor_is_asked_for_and_counts_once() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let (client, email, _, _) = signed_up(anybody).await;
    let factors = "/api/v1/auth/second-factors";
    let secret = client.post(&format!("{factors}/totp"), &json!({})).await.unwrap().expect(200).unwrap();
    let secret = text(&secret, "/secret");
    let now = u64::try_from(service_kit::Clock::system().now_ms()).unwrap() / 30_000;
    let body = json!({"code": code(&secret, now - 1)});
    let codes = client.post(&format!("{factors}/totp/confirm"), &body).await.unwrap().expect(200).unwrap();
    assert_eq!(codes["codes"].as_array().unwrap().len(), 10);

    let asked = login(anybody, &email).await;
    assert_eq!((&asked["accessToken"], &asked["refreshToken"]), (&json!(""), &json!("")), "{asked}");
    let challenge = text(&asked, "/secondFactor/challenge");
    let answer = async |body: Value| anybody.post("/api/v1/auth/login/second-factor", &body).await.unwrap();
    // The code that confirmed it is used up.
    answer(json!({"challenge": challenge, "totpCode": code(&secret, now - 1)})).await.expect(401).unwrap();
    let good = json!({"challenge": challenge, "totpCode": code(&secret, now)});
    let pair = answer(good.clone()).await.expect(200).unwrap();
    let second = anybody.with_token(&text(&pair, "/accessToken"));
    second.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    answer(good).await.expect(401).unwrap();
    // A recovery code, once.
    let recovery = text(&codes, "/codes/3");
    let challenge = text(&login(anybody, &email).await, "/secondFactor/challenge");
    answer(json!({"challenge": challenge, "recoveryCode": recovery})).await.expect(200).unwrap();
    let challenge = text(&login(anybody, &email).await, "/secondFactor/challenge");
    answer(json!({"challenge": challenge, "recoveryCode": recovery})).await.expect(401).unwrap();
    let state = second.get(factors).await.unwrap().expect(200).unwrap();
    assert_eq!((&state["totp"], &state["recoveryCodesLeft"]), (&json!(true), &json!(9)));
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_let_in_by_a_person() {
    let suite = TestSuite::start().await;
    let (anybody, account) = (&suite.client, suite.account().await);
    let body = json!({"clientId": "tollgate-cli", "scope": "organizations:read"});
    let asked = anybody.post("/api/v1/auth/device", &body).await.unwrap().expect(200).unwrap();
    let exchange = json!({"deviceCode": text(&asked, "/deviceCode")});
    let pending = anybody.post("/api/v1/auth/device/token", &exchange).await.unwrap();
    assert_eq!(pending.expect(409).unwrap()["reason"], "AUTHORIZATION_PENDING");
    let user_code = text(&asked, "/userCode").to_lowercase().replace('-', "");
    let shown = account.client.get(&format!("/api/v1/auth/device/{user_code}")).await.unwrap();
    assert_eq!(shown.expect(200).unwrap()["clientId"], "tollgate-cli");
    let decision = format!("/api/v1/auth/device/{user_code}/decision");
    account.client.post(&decision, &json!({"approve": true})).await.unwrap().expect(204).unwrap();
    let pair = wait_for("the device is let in", async || {
        let reply = anybody.post("/api/v1/auth/device/token", &exchange).await.unwrap();
        (reply.status == 200).then(|| reply.json().unwrap())
    })
    .await;
    let device = anybody.with_token(&text(&pair, "/accessToken"));
    device.get("/api/v1/organizations").await.unwrap().expect(200).unwrap();
    device.post("/api/v1/apis", &account.api_body("device")).await.unwrap().expect(403).unwrap();
    anybody.post("/api/v1/auth/device/token", &exchange).await.unwrap().expect(401).unwrap();
    let sessions = account.client.get("/api/v1/auth/sessions").await.unwrap().expect(200).unwrap();
    let clients: Vec<&str> =
        sessions["list"].as_array().unwrap().iter().filter_map(|one| one["clientId"].as_str()).collect();
    assert!(clients.contains(&"tollgate-cli"), "{sessions}");
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_verifies_addresses_and_resets_passwords() {
    let suite = TestSuite::configured("[auth.account]\nverify_email = true\n").await;
    let (anybody, mail) = (&suite.client, suite.folder.path().join("data/mail"));
    let email = format!("{}@example.com", unique("u"));
    let body = json!({"email": email, "password": PASSWORD, "name": "A User"});
    let accepted = anybody.post("/api/v1/auth/signup", &body).await.unwrap();
    accepted.expect(202).unwrap();
    assert_eq!(accepted.header("location"), "");
    let credentials = json!({"email": email, "password": PASSWORD});
    anybody.post("/api/v1/auth/login", &credentials).await.unwrap().expect(401).unwrap();
    let token = wait_for("the letter", async || token_in_mail(&mail, &email, 0)).await;
    let verify = async |token: &str| {
        anybody.post("/api/v1/auth/email/verify", &json!({"token": token})).await.unwrap()
    };
    verify(&token).await.expect(204).unwrap();
    verify(&token).await.expect(400).unwrap();
    let session = login(anybody, &email).await;
    let client = anybody.with_token(&text(&session, "/accessToken"));
    let profile = client.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    assert_eq!(profile["emailVerified"], true);
    // Signing up again looks the same.
    let again = anybody.post("/api/v1/auth/signup", &body).await.unwrap();
    assert_eq!((again.status, again.text()), (202, accepted.text()));

    // A password that was forgotten. Whose link it is, no header decides.
    let forgot = json!({"email": email});
    let headers = anybody
        .with_header("x-forwarded-host", "evil.example")
        .unwrap()
        .with_header("forwarded", "host=evil.example")
        .unwrap();
    headers.post("/api/v1/auth/password/forgot", &forgot).await.unwrap().expect(202).unwrap();
    let reset = wait_for("the letter", async || token_in_mail(&mail, &email, 1)).await;
    let letters = std::fs::read_dir(&mail).unwrap().flatten();
    let letters: String = letters.filter_map(|entry| std::fs::read_to_string(entry.path()).ok()).collect();
    assert!(!letters.contains("evil"), "{letters}");
    let unknown = json!({"email": format!("{}@example.com", unique("x"))});
    let silent = anybody.post("/api/v1/auth/password/forgot", &unknown).await.unwrap();
    assert_eq!((silent.status, silent.text()), (202, String::new()));
    let change = async |token: &str, password: &str| {
        let body = json!({"token": token, "newPassword": password});
        anybody.post("/api/v1/auth/password/reset", &body).await.unwrap()
    };
    change(&reset, "short").await.expect(400).unwrap();
    change(&reset, "another battery horse").await.expect(204).unwrap();
    change(&reset, "a third battery horse").await.expect(400).unwrap();
    wait_until_refused(&client).await;
    anybody.post("/api/v1/auth/login", &credentials).await.unwrap().expect(401).unwrap();
    let credentials = json!({"email": email, "password": "another battery horse"});
    anybody.post("/api/v1/auth/login", &credentials).await.unwrap().expect(200).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_keeps_its_tokens_in_cookies() {
    let suite = TestSuite::start().await;
    let (_, email, _, _) = signed_up(&suite.client).await;
    let origin = suite.suite.edge_url().to_owned();
    let browser = suite
        .client
        .with_header("origin", &origin)
        .unwrap()
        .with_header("sec-fetch-site", "same-origin")
        .unwrap();
    let body = json!({"email": email, "password": PASSWORD, "cookie": true});
    let logged_in = browser.post("/api/v1/auth/login", &body).await.unwrap();
    let pair = logged_in.expect(200).unwrap();
    assert_eq!((&pair["refreshToken"], &pair["deviceToken"]), (&json!(""), &json!("")));
    let cookie = |reply: &suite::client::Reply| {
        let all = reply.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap().to_owned());
        all.into_iter().find(|cookie| cookie.starts_with("__Host-tollgate-refresh=")).unwrap()
    };
    let first = cookie(&logged_in);
    for rule in ["Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(first.contains(rule), "{first}");
    }
    assert!(!first.contains("Domain"), "{first}");
    let pair_of = |cookie: &str| cookie.split(';').next().unwrap().to_owned();
    let refresh = async |client: &Client, cookie: &str| {
        client.with_header("cookie", cookie).unwrap().post("/api/v1/auth/refresh", &json!({})).await.unwrap()
    };
    let next = refresh(&browser, &pair_of(&first)).await;
    assert_eq!(next.expect(200).unwrap()["refreshToken"], "");
    let second = pair_of(&cookie(&next));
    assert_ne!(second, pair_of(&first));
    // Another site's page gets nowhere, and uses nothing up.
    for evil in
        ["https://evil.example", "null", &format!("{origin}.evil.example"), &origin.replace("https", "http")]
    {
        refresh(&suite.client.with_header("origin", evil).unwrap(), &second).await.expect(403).unwrap();
    }
    refresh(&suite.client, &second).await.expect(403).unwrap();
    let form = browser.with_header("cookie", &second).unwrap();
    let form =
        form.send(Method::POST, "/api/v1/auth/refresh", "application/x-www-form-urlencoded", "a=b").await;
    form.unwrap().expect(415).unwrap();
    let third = refresh(&browser, &second).await;
    let pair = third.expect(200).unwrap();
    let client = browser.with_token(&text(&pair, "/accessToken"));
    let third = pair_of(&cookie(&third));
    let left =
        client.with_header("cookie", &third).unwrap().post("/api/v1/auth/logout", &json!({})).await.unwrap();
    left.expect(204).unwrap();
    assert!(cookie(&left).contains("Max-Age=0"), "{}", cookie(&left));
    refresh(&browser, &third).await.expect(401).unwrap();
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_can_be_read() {
    let suite = TestSuite::start().await;
    let account: Account = suite.account().await;
    let wrong = json!({"email": account.email, "password": "not the password"});
    let anybody = suite.client.with_header("user-agent", "an attacker").unwrap();
    anybody.post("/api/v1/auth/login", &wrong).await.unwrap().expect(401).unwrap();
    let events = account.client.get("/api/v1/auth/audit").await.unwrap().expect(200).unwrap();
    let list = events["list"].as_array().unwrap();
    let shown: Vec<(&str, &str)> = list
        .iter()
        .map(|event| (event["action"].as_str().unwrap(), event["result"].as_str().unwrap()))
        .collect();
    assert_eq!(
        shown,
        [("auth.login", "failure"), ("auth.login", "success"), ("auth.signup", "success")],
        "{events}"
    );
    assert_eq!(list[0]["address"], "127.0.0.1");
    assert_ne!(list[0]["device"], list[1]["device"]);
    assert!(!events.to_string().contains("not the password"));
    suite.suite.shutdown().await;
}
