//! Secrets where they do not belong, as people and programs put them there by mistake, and input that would
//! like to be a line of the log.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};
use suite::{client::Client, gateway::GatewayClient};

use super::{Canaries, post};
use crate::support::{Account, origin};

/// What no line of the log may be made of by a caller.
const FORGED: &str = "forged-line";

/// Puts each secret into headers, queries, paths, and fields for something else.
pub(super) async fn everything(anybody: &Client, account: &Account, canaries: &mut Canaries) {
    // One of each kind.
    let mut kinds = BTreeMap::new();
    for canary in canaries.secrets.iter().filter(|canary| canary.text.is_ascii()) {
        kinds.entry(canary.name).or_insert_with(|| canary.text.clone());
    }
    assert!(kinds.len() > 30, "only {} kinds of secrets", kinds.len());
    let owner = &account.client;
    for secret in kinds.values() {
        let path = escaped(secret);
        let profile = "/api/v1/auth/profile";
        for reply in [
            anybody.get(&format!("{profile}?access_token={path}")).await,
            anybody.get(&format!("/nowhere/{path}")).await,
            owner.get(&format!("/api/v1/auth/tokens/{path}")).await,
            owner.get(&format!("/api/v1/auth/device/{path}")).await,
            owner.delete(&format!("/api/v1/auth/sessions/{path}")).await,
            anybody.post(&format!("/api/v1/auth/providers/{path}/start"), &json!({})).await,
            anybody.post("/api/v1/auth/login", &json!({"email": secret})).await,
            anybody.post("/api/v1/auth/email/verification", &json!({"email": secret})).await,
            anybody.post("/api/v1/auth/device", &json!({"clientId": secret, "scope": secret})).await,
            owner.post("/api/v1/auth/tokens", &json!({"name": "n", "scopes": [secret]})).await,
            owner.post("/api/v1/auth/tokens", &json!({"expiresInDays": secret})).await,
            anybody.send(Method::POST, "/api/v1/auth/login", "text/plain", secret.clone()).await,
            anybody.send(Method::POST, "/api/v1/auth/login", "application/json", secret.clone()).await,
            GatewayClient::new(anybody, secret).call(Method::GET, "/api/internal/v1/deployments", None).await,
        ] {
            canaries.refused(&reply.unwrap());
        }
        // A name that is no field's is named in the answer to who sent it, and nowhere else.
        let body = json!({"email": "a@example.com", secret.as_str(): 1});
        anybody.post("/api/v1/auth/login", &body).await.unwrap().expect(400).unwrap();
        owner.get(&format!("{profile}?{path}=1")).await.unwrap().expect(400).unwrap();
        for name in ["authorization", "cookie", "x-auth-token", "origin", "content-type", "accept", "range"] {
            let client = anybody.with_header(name, secret).unwrap();
            canaries.answered(&client.get(profile).await.unwrap());
            canaries.answered(&client.post("/api/v1/auth/refresh", &json!({})).await.unwrap());
        }
        let cookie = format!("__Host-tollgate-refresh={secret}; session={secret}");
        let browser = anybody.with_header("cookie", &cookie).unwrap();
        let browser = browser.with_header("origin", origin(anybody)).unwrap();
        // A cookie that is still good makes new ones.
        let reply = browser.post("/api/v1/auth/refresh", &json!({})).await.unwrap();
        if reply.status != 200 {
            canaries.refused(&reply);
        }
    }
}

fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'-' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// Input with line ends and terminal sequences, wherever there is room for it.
pub(super) async fn forged_lines(anybody: &Client, account: &Account, canaries: &mut Canaries) {
    let owner = &account.client;
    for end in ["\r\n", "\n", "\u{1b}[2K\u{1b}[1G", "\u{2028}", "\u{85}", "\u{0}\n"] {
        let line = format!("x{end}{{\"level\":\"ERROR\",\"message\":\"{FORGED}\"}}");
        let path = escaped(&line);
        for reply in [
            post(anybody, "login", &json!({"email": line, "password": line})).await,
            post(anybody, "login", &json!({"email": format!("{line}@example.com"), "password": line})).await,
            post(anybody, "signup", &json!({"email": line, "password": line, "name": line})).await,
            post(anybody, "login", &json!({line.as_str(): line})).await,
            post(anybody, "refresh", &json!({"refreshToken": line})).await,
            post(anybody, "device", &json!({"clientId": line, "scope": line})).await,
            post(owner, "tokens", &json!({"name": line, "scopes": [line]})).await,
            anybody.get(&format!("/api/v1/auth/profile?{path}")).await.unwrap(),
            owner.get(&format!("/api/v1/auth/tokens/{path}")).await.unwrap(),
            anybody.get(&format!("/{path}")).await.unwrap(),
        ] {
            canaries.refused(&reply);
        }
        // No library sends line ends in a header; the rest of it may come.
        let header = format!("x{}", end.trim_end().trim_start_matches('\r').replace(['\n', '\u{0}'], ""));
        for name in ["user-agent", "x-request-id", "referer", "x-forwarded-for", "accept-language"] {
            if let Ok(client) = anybody.with_header(name, &format!("{header}{FORGED}")) {
                canaries.answered(&client.get("/api/v1/auth/profile").await.unwrap());
            }
        }
    }
}

/// Each line of a log is one JSON object with a level and a time that no caller wrote, but those of the one
/// welcome to people.
pub(super) fn lines_are_objects(log: &[u8]) {
    let log = std::str::from_utf8(log).unwrap();
    assert!(!log.contains(['\u{1b}', '\u{0}', '\r']), "control characters are in the log");
    let lines: Vec<&str> = log.lines().collect();
    let begins = lines.iter().position(|line| line.starts_with("Tollgate is ready")).unwrap() - 1;
    let ends = begins + lines[begins..].iter().position(|line| line.starts_with('{')).unwrap();
    assert!(lines.len() > 1_000 && ends - begins < 12, "{:?}", &lines[begins..ends]);
    for line in lines[..begins].iter().chain(&lines[ends..]) {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(object["level"].is_string() && object["timestamp"].is_string(), "{line}");
        assert_ne!(object["message"], FORGED, "{line}");
    }
}
