//! SIGKILL in the middle of 200 deployments: after a new start every gateway ends with every deployment,
//! in order, each acknowledged.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use suite::{
    client::Client,
    controller::{Controller, State},
    gateway::GatewayClient,
    trust::Trust,
};
use tokio::task::JoinSet;

use crate::support::{Account, PATIENCE, Process, config_file, wait_for};

const GATEWAYS: usize = 5;
const APIS: usize = 40;

/// Where the suite is now; gateways look here before each dial.
#[derive(Clone)]
struct Whereabouts {
    url: Arc<Mutex<String>>,
    ca: PathBuf,
}

impl Whereabouts {
    fn client(&self) -> Client {
        let url = self.url.lock().unwrap().clone();
        Client::new(&url, &Trust::from_ca_file(&self.ca).unwrap()).unwrap()
    }

    fn gateway(&self, token: String) -> Controller {
        let places = self.clone();
        Controller::spawn(move || GatewayClient::new(&places.client(), &token))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_200_deployments_it_loses_none() {
    service_kit::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let config = config_file(folder.path(), "");
    let process = Process::start(folder.path(), &config).await;
    let ca = suite::ca_file(&folder.path().join("data"));
    let places = Whereabouts { url: Arc::new(Mutex::new(process.url.clone())), ca };
    let mut account = Account::new(&places.client()).await;
    let mut apis = Vec::new();
    for at in 0..APIS {
        apis.push(account.api(&format!("api-{at}")).await);
    }
    let mut gateways = Vec::new();
    for _ in 0..GATEWAYS {
        let gateway = account.gateway().await;
        let controller = places.gateway(gateway.token.clone());
        gateways.push((gateway.id, controller));
    }

    // Each gateway's deployments are asked for one after the other, so their order is known.
    let account_ref = Arc::new(account);
    let mut asking = JoinSet::new();
    for (at, (gateway, _)) in gateways.iter().enumerate() {
        let (account, gateway, apis) = (account_ref.clone(), gateway.clone(), apis.clone());
        asking.spawn(async move {
            let mut accepted = 0;
            for api in &apis {
                // An error is the kill: what it did is found out afterwards.
                if account.deploy(api, &gateway).await.is_err() {
                    break;
                }
                accepted += 1;
            }
            (at, accepted)
        });
    }
    let half = |state: &State| state.performed.len() >= APIS / 2;
    gateways[0].1.wait("half of the deployments", PATIENCE, half).await.unwrap();
    process.kill().await;
    let accepted = asking.join_all().await;
    assert!(accepted.iter().any(|(_, accepted)| *accepted < APIS), "the kill came too late: {accepted:?}");

    let process = Process::start(folder.path(), &config).await;
    (*places.url.lock().unwrap()).clone_from(&process.url);
    account = Arc::try_unwrap(account_ref).unwrap_or_else(|_| panic!("all tasks have ended"));
    account.client = places.client().with_token(account.client.token().unwrap());
    for (at, accepted) in accepted {
        let gateway = &gateways[at].0;
        for (number, api) in apis.iter().enumerate() {
            let known = account.deployments(api).await.iter().any(|one| one["gatewayId"] == gateway.as_str());
            assert!(
                known || number >= accepted,
                "deployment {number} of gateway {at} was accepted and is lost"
            );
            if !known {
                account.deploy(api, gateway).await.unwrap();
            }
        }
    }
    for (gateway, controller) in gateways {
        ends_complete(&account, &apis, &gateway, controller).await;
    }
    assert_eq!(process.terminate().await, Some(0));
}

/// The gateway performed every deployment in the order of asking, and the platform knows it.
async fn ends_complete(account: &Account, apis: &[String], gateway: &str, controller: Controller) {
    for api in apis {
        let state = account.wait_for_status(api, gateway, "DEPLOYED").await;
        let held = wait_for("the gateway holds it", async || controller.state().held.get(api).cloned()).await;
        assert_eq!((Some(held.deployment_id.as_str()), held.deployed), (state["id"].as_str(), true));
    }
    let state = controller.stop().await;
    // Something may be performed twice (an acknowledgement died with the suite), but never out of order.
    let mut first_times: Vec<&str> = Vec::new();
    for event in &state.performed {
        if !first_times.contains(&event.api_id.as_str()) {
            first_times.push(&event.api_id);
        }
    }
    assert_eq!(first_times, apis.iter().map(String::as_str).collect::<Vec<_>>(), "out of order");
    assert!(state.faults.is_empty(), "{:?}", state.faults);
    assert!(state.connects >= 2, "the gateway never lost its link");
}
