//! Nothing that is secret shows up where it must not: logs at their most talkative, the files of the data
//! folder, metrics, the bodies of errors.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use suite::{
    client::{Client, Reply, text_at},
    gateway::{GatewayClient, LinkError},
};

use crate::support::{Account, Process, admin, client, config_file, unique, wait_for};

const TELEMETRY: &str = "[edge.telemetry]\nlog = \"debug\"\nformat = \"json\"\n";

/// What must not be found, each with a name for the message, and the errors that were answered.
#[derive(Default)]
struct Canaries {
    secrets: Vec<(&'static str, String)>,
    errors: Vec<(String, String)>,
}

impl Canaries {
    fn keep(&mut self, name: &'static str, secret: &str) {
        self.secrets.push((name, secret.to_owned()));
    }

    /// A token as a whole and its secret half: the last part, after the id (`_`) or the claims (`.`).
    fn keep_token(&mut self, name: &'static str, token: &str, separator: char) {
        self.keep(name, token);
        let secret = token.rsplit(separator).next().unwrap();
        assert!(secret.len() > 20, "{name} has no secret part");
        self.keep(name, secret);
    }

    fn refused(&mut self, reply: &Reply) {
        assert!((400..500).contains(&reply.status), "{}: {} {}", reply.request, reply.status, reply.text());
        self.errors.push((reply.request.clone(), reply.text()));
    }

    fn none_in(&self, place: &str, bytes: &[u8]) {
        for (name, secret) in &self.secrets {
            let at = bytes.windows(secret.len()).position(|window| window == secret.as_bytes());
            let around = at.map(|at| &bytes[at.saturating_sub(200)..bytes.len().min(at + 20)]);
            assert!(at.is_none(), "{name} is in {place}: {}", String::from_utf8_lossy(around.unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_secret() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &config_file(folder.path(), TELEMETRY)).await;
    let data = folder.path().join("data");
    let anybody = client(&process.url, &suite::ca_file(&data));
    let mut canaries = Canaries::default();
    sessions(&anybody, &mut canaries).await;
    let account = Account::new(&anybody).await;
    let api = private_key(&account, &mut canaries).await;
    link(&account, &api, &mut canaries).await;

    for (request, body) in &canaries.errors {
        canaries.none_in(&format!("the error of {request}"), body.as_bytes());
    }
    for (service, port) in process.admin_ports() {
        canaries.none_in(&format!("the metrics of {service}"), admin(port, "/metrics").await.1.as_bytes());
    }
    // While it runs, and after its end: what was in the write-ahead log is then in the database.
    in_files(&data, &canaries);
    let log = folder.path().join("stderr.log");
    assert_eq!(process.terminate().await, Some(0));
    in_files(&data, &canaries);
    let log = std::fs::read(log).unwrap();
    assert!(log.windows(5).any(|window| window == b"DEBUG"), "the log is not talkative");
    canaries.none_in("stderr", &log);
}

/// Sign-up, login, refresh and logout, right and wrong.
async fn sessions(anybody: &Client, canaries: &mut Canaries) {
    let password = unique("canary-password");
    canaries.keep("a password", &password);
    let email = format!("{}@example.com", unique("u"));
    let wrong = unique("canary-wrong-password");
    canaries.keep("a wrong password", &wrong);
    let body = json!({"email": email, "password": password, "name": "U"});
    anybody.post("/api/v1/auth/signup", &body).await.unwrap().expect(201).unwrap();
    let login = async |body: Value| anybody.post("/api/v1/auth/login", &body).await.unwrap();
    canaries.refused(&anybody.post("/api/v1/auth/signup", &body).await.unwrap());
    canaries.refused(&login(json!({"email": email, "password": wrong})).await);
    // In the wrong place, in the wrong shape, and broken off.
    canaries.refused(&login(json!({"email": email, "password": [wrong]})).await);
    canaries.refused(&login(json!({"email": email, "password": {"value": wrong}})).await);
    canaries.refused(&login(json!(wrong)).await);
    canaries.refused(&login(json!({"email": email, "password": password, "remember": wrong})).await);
    let half = format!("{{\"password\": \"{password}\", \"email\": ");
    let broken = anybody.send(Method::POST, "/api/v1/auth/login", "application/json", half).await.unwrap();
    canaries.refused(&broken);

    let pair = login(json!({"email": email, "password": password})).await.expect(200).unwrap();
    let (access, refresh) =
        (text_at(&pair, "/accessToken").unwrap(), text_at(&pair, "/refreshToken").unwrap());
    canaries.keep_token("an access token", access, '.');
    canaries.keep("a refresh token", refresh);
    let rotate = async |token: &str| {
        anybody.post("/api/v1/auth/refresh", &json!({"refreshToken": token})).await.unwrap()
    };
    let next = rotate(refresh).await.expect(200).unwrap();
    canaries.keep("the next refresh token", text_at(&next, "/refreshToken").unwrap());
    let client = anybody.with_token(access);
    client.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    let forged = format!("{access}x");
    canaries.refused(&anybody.with_token(&forged).get("/api/v1/auth/profile").await.unwrap());
    let nonsense = unique("canary-token");
    canaries.keep("what is no token", &nonsense);
    canaries.refused(&anybody.with_token(&nonsense).get("/api/v1/auth/profile").await.unwrap());
    canaries.refused(&anybody.get(&format!("/api/v1/auth/profile?access_token={nonsense}")).await.unwrap());
    canaries.refused(&rotate(&nonsense).await);
    canaries.refused(&rotate(refresh).await);
    client.post("/api/v1/auth/logout", &json!({})).await.unwrap();
}

/// An API with a private key; its id.
async fn private_key(account: &Account, canaries: &mut Canaries) -> String {
    let key = STANDARD.encode(unique("canary-private-key-of-an-api"));
    canaries.keep("a private key", &key);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
    let mut body = account.api_body("keyed");
    body["mtls"] = json!({"enabled": true, "clientKey": pem});
    let made = account.client.post("/api/v1/apis", &body).await.unwrap();
    canaries.none_in("an API", made.text().as_bytes());
    let id = text_at(&made.expect(201).unwrap(), "/id").unwrap().to_owned();
    body["mtls"]["clientKey"] = json!([pem]);
    canaries.refused(&account.client.post("/api/v1/apis", &body).await.unwrap());
    body["mtls"]["clientKey"] = json!(key);
    canaries.refused(&account.client.post("/api/v1/apis", &body).await.unwrap());
    canaries.refused(&account.import("application/yaml", format!("openapi: 3.1.0\n{pem}")).await);
    id
}

/// A gateway with a token: its socket, its HTTPS side, a deployment; and one with a wrong token.
async fn link(account: &Account, api: &str, canaries: &mut Canaries) {
    let gateway = account.gateway().await;
    canaries.keep_token("a gateway's token", &gateway.token, '_');
    let controller = gateway.run();
    account.deploy(api, &gateway.id).await.unwrap();
    account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
    controller.stop().await;
    let mut wrong = gateway.token.clone();
    wrong.replace_range(wrong.len() - 8.., "zzzzzzzz");
    canaries.keep_token("a wrong gateway token", &wrong, '_');
    let nonsense = unique("canary-api-key");
    canaries.keep("what is no gateway token", &nonsense);
    for token in [wrong, nonsense] {
        let client = GatewayClient::new(&account.client, &token);
        let Err(LinkError::Refused { status, body }) = client.connect().await else { panic!("not refused") };
        assert_eq!(status, 401, "{body}");
        canaries.errors.push(("a gateway's socket".to_owned(), body));
        canaries.refused(&client.call(Method::GET, "/api/internal/v1/deployments", None).await.unwrap());
    }
    let path = format!("/api/v1/gateways/{}/tokens/{}", gateway.id, gateway.token_id);
    account.client.delete(&path).await.unwrap().expect(204).unwrap();
    wait_for("the revoked token is refused", async || gateway.client.deployments().await.err()).await;
}

fn in_files(folder: &Path, canaries: &Canaries) {
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            in_files(&path, canaries);
        } else {
            found += 1;
            canaries.none_in(&path.display().to_string(), &std::fs::read(&path).unwrap());
        }
    }
    assert!(found > 0, "{} is empty", folder.display());
}
