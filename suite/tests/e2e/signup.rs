//! Accounts and sessions through the edge.

use serde_json::json;
use suite::client::text_at;

use crate::support::{TestSuite, signed_up, unique};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_once_and_its_session_can_be_kept_and_ended() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let email = format!("{}@Example.com", unique("Mixed"));
    let body = json!({"email": email, "password": "correct horse battery", "name": "Ünïcode Näme"});
    let made = anybody.post("/api/v1/auth/signup", &body).await.unwrap();
    let user = made.expect(201).unwrap();
    assert_eq!(made.header("location"), "/api/v1/auth/profile");
    assert_eq!((&user["email"], &user["name"]), (&json!(email), &json!("Ünïcode Näme")));
    assert!(!made.text().contains("correct horse"), "the answer holds the password");

    // Once only, without regard to case, under each name of the route.
    let again = json!({"email": email.to_lowercase(), "password": "correct horse battery", "name": "B"});
    for path in ["/api/v1/auth/signup", "/api/auth/signup"] {
        let problem = anybody.post(path, &again).await.unwrap();
        problem.expect(409).unwrap();
        assert!(problem.header("content-type").starts_with("application/problem+json"));
    }

    let login = json!({"email": email, "password": "correct horse battery"});
    let pair = anybody.post("/api/auth/login", &login).await.unwrap().expect(200).unwrap();
    assert_eq!((&pair["tokenType"], &pair["expiresIn"]), (&json!("Bearer"), &json!(600)));
    let client = anybody.with_token(text_at(&pair, "/accessToken").unwrap());
    let profile = client.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap();
    assert_eq!(profile["id"], user["id"]);
    client.put("/api/v1/auth/profile", &json!({"name": "New"})).await.unwrap().expect(200).unwrap();
    assert_eq!(client.get("/api/v1/auth/profile").await.unwrap().expect(200).unwrap()["name"], "New");

    // A wrong password and an unknown account look the same.
    let wrong = json!({"email": email, "password": "something else"});
    let unknown = json!({"email": format!("{}@example.com", unique("x")), "password": "something else"});
    let wrong = anybody.post("/api/v1/auth/login", &wrong).await.unwrap();
    let unknown = anybody.post("/api/v1/auth/login", &unknown).await.unwrap();
    let (wrong, unknown) = (wrong.expect(401).unwrap(), unknown.expect(401).unwrap());
    assert_eq!(
        (&wrong["detail"], &wrong["reason"], &wrong["code"]),
        (&unknown["detail"], &unknown["reason"], &unknown["code"])
    );
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_counts_once_and_reuse_ends_the_session() {
    let suite = TestSuite::start().await;
    let anybody = &suite.client;
    let (client, _, _, first) = signed_up(anybody).await;
    let refresh = async |token: &str| {
        anybody.post("/api/v1/auth/refresh", &json!({"refreshToken": token})).await.unwrap()
    };
    let second = refresh(&first).await.expect(200).unwrap();
    let third = refresh(text_at(&second, "/refreshToken").unwrap()).await.expect(200).unwrap();
    // The thief, or the owner: nobody can tell, so both are out.
    refresh(&first).await.expect(401).unwrap();
    refresh(text_at(&third, "/refreshToken").unwrap()).await.expect(401).unwrap();

    // Logging out ends a session, and only that one.
    let (other, _, _, token) = signed_up(anybody).await;
    let left = other.post("/api/v1/auth/logout", &json!({})).await.unwrap();
    assert!(matches!(left.status, 200 | 204), "{}", left.text());
    refresh(&token).await.expect(401).unwrap();
    drop(client);
    suite.suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_edge_answers_itself() {
    let suite = TestSuite::start().await;
    let health = suite.client.get("/health").await.unwrap().expect(200).unwrap();
    assert!(health.is_object(), "{health}");
    let keys = suite.client.get("/.well-known/jwks.json").await.unwrap().expect(200).unwrap();
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("EC"), &json!("ES256")));
    assert!(keys["keys"][0].get("d").is_none(), "a private key is published");

    let document = suite.client.get("/openapi.json").await.unwrap().expect(200).unwrap();
    assert!(text_at(&document, "/openapi").unwrap().starts_with("3.1"));
    // Every REST route of the contract is in the document, under its first path.
    for method in proto::Contract::get().methods() {
        let Some(binding) = method.http.first() else { continue };
        let path = camel_case(&binding.template);
        let found = document["paths"][&path].get(binding.verb.to_lowercase());
        // The gateways' side may be left out of the public document.
        assert!(found.is_some() || path.starts_with("/api/internal/"), "{} {path} is missing", binding.verb);
    }
    suite.suite.shutdown().await;
}

/// `{api_id}` is `{apiId}` in the document.
fn camel_case(template: &str) -> String {
    let mut path = String::new();
    let mut upper = false;
    for c in template.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                path.extend(c.to_uppercase());
                upper = false;
            }
            c => path.push(c),
        }
    }
    path
}
