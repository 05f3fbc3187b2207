//! The end of a fault test: nothing happens any more, and everything must come to be as it is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use serde_json::Value;
use suite::client::Client;
use tokio::time::Instant;

use super::{
    fleet::Fleet,
    orders::{Book, Pass},
    platform::Platform,
};

/// How often the platform is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How many problems are told.
const TOLD: usize = 40;

/// What the end is judged by.
pub(crate) struct Ending<'a> {
    pub(crate) platform: &'a Platform,
    pub(crate) fleet: &'a Fleet,
    pub(crate) pass: &'a Pass,
    pub(crate) apis: &'a [String],
    pub(crate) book: &'a Mutex<Book>,
}

/// How it ended.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// What is still not as it should be.
    open: Vec<String>,
}

/// What the platform wants of an API on a gateway.
#[derive(Debug)]
struct Wanted {
    deployment_id: String,
    status: String,
    reason: String,
}

impl Ending<'_> {
    /// Waits until everything is as it is wanted, or `patience` ends. No operator helps.
    pub(crate) async fn converge(&self, patience: Duration) -> End {
        let deadline = Instant::now() + patience;
        let mut end = End::default();
        loop {
            let client = self.pass.clone().client(&self.platform.door(0)).await;
            end.open = match self.open(&client).await {
                Ok(open) => open,
                Err(error) => vec![format!("the platform does not answer: {error:#}")],
            };
            if end.open.is_empty() || Instant::now() >= deadline {
                return end;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is not as it should be.
    async fn open(&self, client: &Client) -> anyhow::Result<Vec<String>> {
        let mut open = Vec::new();
        for api in self.apis {
            for (gateway, wanted) in wanted(client, api).await? {
                self.compare(api, &gateway, &wanted, &mut open);
            }
        }
        self.compare_connections(client, &mut open).await?;
        Ok(open)
    }

    fn compare(&self, api: &str, gateway: &str, wanted: &Wanted, open: &mut Vec<String>) {
        let Wanted { deployment_id, status, reason } = wanted;
        let key = (api.to_owned(), gateway.to_owned());
        let runs = match status.as_str() {
            "DEPLOYED" => true,
            "UNDEPLOYED" => false,
            _ => return open.push(format!("{api} on {gateway} is {status} {reason}")),
        };
        // Where the outcome of the newest order is known, nothing else may have come of it.
        if let Some(Some(order)) = self.book.lock().unwrap().newest.get(&key)
            && (order.deployment_id != *deployment_id || order.deployed != runs)
        {
            open.push(format!("{api} on {gateway}: ordered {order:?}, and it is {wanted:?}"));
        }
        for member in self.fleet.members.iter().filter(|member| member.gateway == gateway) {
            let held = member.state().held.get(api).cloned();
            let is_right = match &held {
                Some(held) => held.deployed == runs && (!runs || held.deployment_id == *deployment_id),
                None => !runs,
            };
            if !is_right {
                open.push(format!("{api} on {gateway} ({}): {wanted:?}, held {held:?}", member.kind));
            }
        }
    }

    /// The platform lists exactly the links that there are.
    async fn compare_connections(&self, client: &Client, open: &mut Vec<String>) -> anyhow::Result<()> {
        let mut listed = BTreeSet::new();
        for entry in all(client, "/api/v1/gateways/connections").await? {
            listed.insert(entry["id"].as_str().unwrap_or_default().to_owned());
        }
        let mut there = BTreeSet::new();
        for member in &self.fleet.members {
            let state = member.state();
            if state.connected {
                there.insert(state.welcome.connection_id);
            } else {
                open.push(format!("{} {} is not connected", member.kind, member.gateway));
            }
        }
        open.extend(there.difference(&listed).map(|id| format!("connection {id} is not listed")));
        open.extend(listed.difference(&there).map(|id| format!("connection {id} is listed and gone")));
        Ok(())
    }
}

impl End {
    /// Everything that is wrong.
    pub(crate) fn judge(&self, fleet: &Fleet, book: &Book) -> Result<(), Vec<String>> {
        let mut problems = self.open.clone();
        problems.extend(book.faults.iter().map(|fault| format!("an order: {fault}")));
        for (gateway, state) in fleet.states() {
            problems.extend(state.faults.iter().map(|fault| format!("{gateway}: {fault}")));
            problems
                .extend(state.refused.map(|status| format!("{gateway}: sent away for good with {status}")));
        }
        let more = problems.len().saturating_sub(TOLD);
        problems.truncate(TOLD);
        if more > 0 {
            problems.push(format!("and {more} more"));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// What is wanted of an API, by gateway.
async fn wanted(client: &Client, api: &str) -> anyhow::Result<BTreeMap<String, Wanted>> {
    let entries = all(client, &format!("/api/v1/apis/{api}/deployments")).await?;
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    Ok(entries
        .iter()
        .map(|entry| {
            let wanted = Wanted {
                deployment_id: text(entry, "id"),
                status: text(entry, "status"),
                reason: text(entry, "statusReason"),
            };
            (text(entry, "gatewayId"), wanted)
        })
        .collect())
}

/// Every page of a list.
async fn all(client: &Client, path: &str) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    loop {
        let page = client.get(&format!("{path}?limit=100&offset={}", found.len())).await?.expect(200)?;
        let entries = page["list"].as_array().cloned().unwrap_or_default();
        let is_last = entries.len() < 100;
        found.extend(entries);
        if is_last {
            return Ok(found);
        }
    }
}
