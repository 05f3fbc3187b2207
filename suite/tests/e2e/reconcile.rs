//! Gateways end with what is wanted, whatever was lost on the way, and however many there are.

use serde_json::{Value, json};
use suite::{Suite, SuiteConfig};

use crate::support::{Account, PATIENCE, TestSuite, client, wait_for};

/// Gateways are looked at often enough for a test.
const HASTY: &str = "[gateway.link]\nreconcile_ms = 500\n";

/// Deletes something from the database of a suite that does not run.
async fn lose(folder: &std::path::Path, database: &str, sql: &'static str) -> u64 {
    let file = folder.join("data").join(database);
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    let lost = sqlx::query(sql).execute(&pool).await.unwrap().rows_affected();
    pool.close().await;
    lost
}

/// How many events wait in the logs of all gateways.
async fn pending(folder: &std::path::Path) -> i64 {
    let file = folder.join("data").join("gateway.db");
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    let sql = "SELECT count(*) FROM gateway_events WHERE state = 'pending'";
    let count = sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap();
    pool.close().await;
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gets_what_was_lost_from_its_log() {
    let TestSuite { suite, folder, client: anybody, _databases } = TestSuite::configured(HASTY).await;
    let mut account = Account::new(&anybody).await;
    let (gateway, kept, lost) =
        (account.gateway().await, account.api("kept").await, account.api("lost").await);
    let removed = account.api("removed").await;
    let first = gateway.run();
    for api in [&kept, &lost, &removed] {
        account.deploy(api, &gateway.id).await.unwrap();
        account.wait_for_status(api, &gateway.id, "DEPLOYED").await;
    }
    let held = first.stop().await.held;
    assert!(held[&removed].deployed);
    wait_for("the gateway is away", async || {
        let path = format!("/api/v1/gateways/{}/connections", gateway.id);
        let list = account.client.get(&path).await.unwrap().expect(200).unwrap();
        (list["count"] == 0).then_some(())
    })
    .await;
    // While the gateway is away: one API is to go, one gets a new deployment. Then both events are lost.
    account.undeploy(&removed, &gateway.id).await;
    let wanted = account.deploy(&lost, &gateway.id).await.unwrap();
    // gateway-service ends first: what has not left project-service by then waits there.
    wait_for("both are in the log", async || (pending(folder.path()).await == 2).then_some(())).await;
    suite.shutdown().await;
    let gone = "DELETE FROM gateway_events WHERE state = 'pending'";
    assert_eq!(lose(folder.path(), "gateway.db", gone).await, 2, "the log had both");

    let config = SuiteConfig {
        data_dir: folder.path().join("data"),
        listen: "127.0.0.1:0".to_owned(),
        file: Some(folder.path().join("suite.toml")),
    };
    let suite = Box::pin(Suite::start(config)).await.unwrap();
    let anybody = client(suite.edge_url(), suite.ca_file());
    account.client = anybody.with_token(account.client.token().unwrap());
    let gateway_client = suite::gateway::GatewayClient::new(&anybody, &gateway.token);
    let second = suite::controller::Controller::spawn(move || gateway_client.clone());
    let state = account.wait_for_status(&lost, &gateway.id, "DEPLOYED").await;
    assert_eq!(state["id"], wanted.as_str());
    account.wait_for_status(&removed, &gateway.id, "UNDEPLOYED").await;
    account.wait_for_status(&kept, &gateway.id, "DEPLOYED").await;
    let state = second.stop().await;
    assert!(state.faults.is_empty(), "{:?}", state.faults);
    assert_eq!(state.held[&lost].deployment_id, wanted);
    assert!(!state.held[&removed].deployed && state.held[&kept].deployed, "{:?}", state.held);
    suite.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_deploy_reaches_two_hundred_gateways_of_which_fifty_are_there() {
    const ALL: usize = 200;
    const THERE: usize = 50;
    let suite = TestSuite::start().await;
    let account = suite.account().await;
    let api = account.api("pets").await;
    let (mut gateways, mut controllers) = (Vec::new(), Vec::new());
    for at in 0..ALL {
        if at < THERE {
            let gateway = account.gateway().await;
            let controller = gateway.run();
            controller.wait("connected", PATIENCE, |state| state.connected).await.unwrap();
            controllers.push(controller);
            gateways.push(gateway.id);
        } else {
            gateways.push(register(&account, at).await);
        }
    }
    let body: Vec<Value> = gateways.iter().map(|id| json!({"gatewayId": id})).collect();
    let reply =
        account.client.post(&format!("/api/v1/apis/{api}/deploy-revision"), &json!(body)).await.unwrap();
    let made = reply.expect(200).unwrap();
    let made = made.as_array().unwrap();
    let named: Vec<&str> = made.iter().filter_map(|one| one["gatewayId"].as_str()).collect();
    assert_eq!(named, gateways);

    let done = wait_for("every gateway that is there has acknowledged", async || {
        let list = account.deployments(&api).await;
        (list[0]["deployedGatewayCount"] == THERE).then(|| list[0].clone())
    })
    .await;
    assert_eq!(done["liveGatewayCount"], THERE, "{done}");
    assert!(done.get("failedGatewayCount").is_none_or(|failed| failed == 0), "{done}");
    for (controller, deployment) in controllers.into_iter().zip(made) {
        let state = controller.stop().await;
        assert!(state.faults.is_empty(), "{:?}", state.faults);
        assert_eq!(deployment["id"], state.held[&api].deployment_id.as_str());
        assert_eq!(state.performed.len(), 1, "{:?}", state.performed);
    }
    suite.suite.shutdown().await;
}

/// A gateway that never comes.
async fn register(account: &Account, at: usize) -> String {
    let body =
        json!({"organizationId": account.organization, "name": format!("away-{at}"), "displayName": "Away"});
    let made = account.client.post("/api/v1/gateways", &body).await.unwrap().expect(201).unwrap();
    suite::client::text_at(&made, "/id").unwrap().to_owned()
}
