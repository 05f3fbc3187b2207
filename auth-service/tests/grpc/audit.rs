//! The audit log: what is told of a life, who may read it, and the command line that verifies it.

mod command;
mod export;
mod project;
mod tamper;

use proto::auth::{
    AuditEvent, ListAuditEventsRequest, ListAuditEventsResponse, ListOrganizationAuditEventsRequest,
    LoginRequest, LogoutRequest, RefreshRequest, TokenPair, audit_service_client::AuditServiceClient,
};
use secrecy::ExposeSecret as _;
use service_kit::{Error, Kind, client::Upstream, testing::TestDatabase};
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tonic::Request;

use crate::harness::{
    Auth, PASSWORD, START, Setup, answer, fields, login, on_both, refresh, refusal, sign_up, with_token,
};
use command::intact;
use project::Project;

/// Runs a test on databases with their tables, and no instance on them any more.
async fn on_both_stopped(test: impl AsyncFn(Setup)) {
    for database in TestDatabase::both() {
        let setup = Setup::new(database);
        setup.launch().await.shutdown().await;
        // Without what the instance had to tell of itself: its first signing key.
        let empty = ["DELETE FROM audit_events", "DELETE FROM audit_heads"].map(str::to_owned);
        execute(&setup, &empty).await;
        let _ = std::fs::remove_dir_all(&setup.config.audit.heads_folder);
        Box::pin(test(setup)).await;
    }
}

/// Runs statements past the service, in one transaction.
async fn execute(auth: &Setup, statements: &[String]) {
    let statements = statements.join(";");
    let url = auth.database.config.url.expose_secret();
    if url.starts_with("sqlite:") {
        let pool = SqlitePool::connect(url).await.unwrap();
        let all = format!("BEGIN IMMEDIATE;{statements};COMMIT");
        sqlx::raw_sql(AssertSqlSafe(all)).execute(&pool).await.unwrap();
        pool.close().await;
    } else {
        let pool = PgPool::connect(url).await.unwrap();
        let schema = &auth.database.config.schema;
        let all = format!("BEGIN;SET LOCAL search_path TO \"{schema}\";{statements};COMMIT");
        sqlx::raw_sql(AssertSqlSafe(all)).execute(&pool).await.unwrap();
        pool.close().await;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Statements that write a whole chain, computed here from the promise: an array with fixed members,
/// hashed with the hash before it.
fn chain(auth: &Setup, name: &str, actions: &[&str]) -> Vec<String> {
    let blob = |hash: &[u8]| match auth.database.config.url.expose_secret().starts_with("sqlite:") {
        true => format!("X'{}'", hex(hash)),
        false => format!("'\\x{}'", hex(hash)),
    };
    let mut hash = vec![0; 32];
    let mut statements = Vec::new();
    for (sequence, action) in (1..).zip(actions) {
        let at = START + sequence;
        let body = format!(
            r#"["{name}",{sequence},"e{sequence}",{at},"{action}",true,"because","u1","t1","192.0.2.1","d1","r1"]"#
        );
        hash = Sha256::new().chain_update(&hash).chain_update(&body).finalize().to_vec();
        statements.push(format!(
            "INSERT INTO audit_events (chain, sequence, at, body, hash)
             VALUES ('{name}', {sequence}, {at}, '{body}', {})",
            blob(&hash)
        ));
    }
    statements.push(format!(
        "INSERT INTO audit_heads (chain, sequence, hash, exported) VALUES ('{name}', {}, {}, 0)
         ON CONFLICT (chain) DO UPDATE SET sequence = EXCLUDED.sequence, hash = EXCLUDED.hash",
        actions.len(),
        blob(&hash)
    ));
    statements
}

fn audit(auth: &Auth) -> AuditServiceClient<Upstream> {
    AuditServiceClient::new(auth.upstream("edge-proxy"))
}

/// A page of the log of a token's owner.
async fn page(
    auth: &Auth,
    token: &str,
    limit: Option<u32>,
    offset: u32,
) -> Result<ListAuditEventsResponse, Error> {
    let request = with_token(token, ListAuditEventsRequest { limit, offset });
    answer(audit(auth).list_audit_events(request).await)
}

/// As the edge forwards it.
fn from_client<T>(mut request: Request<T>) -> Request<T> {
    let headers = request.metadata_mut();
    headers.insert("tollgate-client-address", "2001:db8::7".parse().unwrap());
    headers.insert("tollgate-client-device", "test".parse().unwrap());
    headers.insert("tollgate-client-request", "request-1".parse().unwrap());
    request
}

/// Action and result.
fn told(event: &AuditEvent) -> (&str, &str) {
    (&event.action, &event.result)
}

#[tokio::test]
async fn a_life_is_told_newest_first_and_without_secrets() {
    on_both(async |auth: Auth| {
        let mut client = auth.client();
        let user = client.sign_up(from_client(Request::new(sign_up("jane@example.com")))).await.unwrap();
        let user = user.into_inner();
        let request = || LoginRequest {
            email: "jane@example.com".into(),
            password: PASSWORD.into(),
            ..LoginRequest::default()
        };
        let stolen: TokenPair = answer(client.login(from_client(Request::new(request()))).await).unwrap();
        refresh(&client, &stolen.refresh_token).await.unwrap();
        auth.clock.advance_ms(1_500);
        let again = RefreshRequest { refresh_token: stolen.refresh_token.clone() };
        client.refresh(from_client(Request::new(again))).await.unwrap_err();
        let pair: TokenPair = answer(client.login(from_client(Request::new(request()))).await).unwrap();
        login(&client, "jane@example.com", "canary-wrong-pass").await.unwrap_err();
        let out: TokenPair = answer(client.login(from_client(Request::new(request()))).await).unwrap();
        let logout = with_token(&out.access_token, LogoutRequest {});
        client.logout(from_client(logout)).await.unwrap();

        let page = page(&auth, &pair.access_token, Some(100), 0).await.unwrap();
        let sequences: Vec<u64> = page.list.iter().map(|event| event.sequence).collect();
        let newest = page.list.len() as u64;
        assert_eq!(sequences, (1..=newest).rev().collect::<Vec<_>>());
        assert_eq!((page.count, page.pagination.unwrap().total), (newest as u32, newest as u32));

        // What sessions do; each is the owner's doing, but for a token that anybody may have sent.
        let of_sessions: Vec<&AuditEvent> = page
            .list
            .iter()
            .filter(|event| !matches!(told(event), ("auth.signup", _) | ("auth.login", "failure")))
            .collect();
        let actions: Vec<_> = of_sessions.iter().map(|event| told(event)).collect();
        let expected = ["auth.logout", "auth.login", "auth.login", "auth.refresh.reuse", "auth.login"];
        let results = ["success", "success", "success", "failure", "success"];
        assert_eq!(actions, expected.into_iter().zip(results).collect::<Vec<_>>());
        for event in &of_sessions {
            assert!(service_kit::id::is_id(&event.id) && event.hash.len() == 64, "{event:?}");
            let client = (event.address.as_str(), event.device.as_str(), event.request_id.as_str());
            assert_eq!(client, ("2001:db8::7", "9f86d081884c7d659a2feaa0c55ad015", "request-1"));
            let actor = if event.action == "auth.refresh.reuse" { "" } else { user.id.as_str() };
            assert_eq!(event.actor_id, actor);
        }
        let times: Vec<i64> = of_sessions.iter().map(|event| event.time.unwrap().unix_ms()).collect();
        assert_eq!(times, [START + 1_500, START + 1_500, START + 1_500, START + 1_500, START]);

        let text = format!("{page:?}");
        for secret in ["canary", "jane@", &stolen.refresh_token, &pair.refresh_token, &pair.access_token] {
            assert!(!text.contains(secret), "{secret} is in the log");
        }
        intact(&auth, &[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_log_comes_in_pages_to_its_owner_only() {
    on_both(async |auth: Auth| {
        let (jane, pair) = auth.user("jane@example.com").await;
        let (_, other) = auth.user("joan@example.com").await;
        let actions: Vec<String> = (1..=25).map(|n| format!("act-{n}")).collect();
        let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
        let name = format!("user:{}", jane.id);
        let mut statements = vec![format!("DELETE FROM audit_events WHERE chain = '{name}'")];
        statements.extend(chain(&auth, &name, &actions));
        execute(&auth, &statements).await;

        let first = page(&auth, &pair.access_token, None, 0).await.unwrap();
        assert_eq!((first.count, first.list.len(), first.pagination.unwrap().total), (20, 20, 25));
        assert_eq!((first.list[0].sequence, first.list[0].action.as_str()), (25, "act-25"));
        let rest = page(&auth, &pair.access_token, Some(10), 20).await.unwrap();
        assert_eq!((rest.count, rest.list[0].sequence, rest.list[4].sequence), (5, 5, 1));
        let none = page(&auth, &pair.access_token, Some(10), 25).await.unwrap();
        assert_eq!((none.count, none.list.len(), none.pagination.unwrap().total), (0, 0, 25));
        for limit in [0, 101] {
            assert_eq!(fields(page(&auth, &pair.access_token, Some(limit), 0).await), ["limit"]);
        }
        let others = page(&auth, &other.access_token, Some(100), 0).await.unwrap();
        assert!(others.list.iter().all(|event| !event.action.starts_with("act-")), "{others:?}");
    })
    .await;
}

#[tokio::test]
async fn an_organization_shows_its_log_to_whom_it_lets() {
    on_both(async |auth: Auth| {
        let (jane, pair) = auth.user("jane@example.com").await;
        let project = Project::serve(&auth).await;
        let auth = auth.restart(|config| config.upstreams.project.address = project.address()).await;
        execute(&auth, &chain(&auth, "organization:o1", &["auth.service-account.create", "x"])).await;
        let list = async |organization: &str| {
            let message = ListOrganizationAuditEventsRequest {
                organization_id: organization.into(),
                limit: None,
                offset: 0,
            };
            answer(audit(&auth).list_organization_audit_events(with_token(&pair.access_token, message)).await)
        };

        for hidden in ["o1", "o2", "", "' OR 1=1 --", &jane.id] {
            let refused = list(hidden).await.unwrap_err();
            assert_eq!((refused.kind(), refused.reason()), (Kind::NotFound, "NOT_FOUND"), "{hidden}");
        }
        project.join(&jane.id, "o1", "developer");
        assert_eq!(refusal(list("o1").await).0, Kind::PermissionDenied);
        project.join(&jane.id, "o1", "admin");
        let page = list("o1").await.unwrap();
        assert_eq!((page.count, page.list.len(), page.pagination.unwrap().total), (2, 2, 2));
        let event = &page.list[1];
        assert_eq!((event.sequence, event.id.as_str()), (1, "e1"));
        assert_eq!(told(event), ("auth.service-account.create", "success"));
        assert_eq!((event.actor_id.as_str(), event.target_id.as_str()), ("u1", "t1"));
        assert_eq!((event.reason.as_str(), event.address.as_str()), ("because", "192.0.2.1"));
        assert_eq!((event.device.as_str(), event.request_id.as_str()), ("d1", "r1"));
        assert_eq!(event.time.unwrap().unix_ms(), START + 1);
        assert_eq!(project.asked(), "audit:read");
        assert_eq!(refusal(list("o2").await).0, Kind::NotFound);
    })
    .await;
}
