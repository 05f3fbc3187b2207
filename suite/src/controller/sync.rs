//! The calls of a controller after it has connected, in the order of the contract. What they bring is not
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    Held, Names, check,
    perform::Fetched,
    serve::{Run, is_network, status},
};
use crate::{
    client::{list_at, text_at},
    gateway::GatewayClient,
};

/// The most deployments that a batch may name.
const BATCH: usize = 50;
/// The lists of API keys, in the order in which they are asked for.
const KEYS: [&str; 5] = [
    "/apis/api-keys",
    "/websub-apis/api-keys",
    "/webbroker-apis/api-keys",
    "/llm-providers/api-keys",
    "/llm-proxies/api-keys",
];

/// An entry of the list of deployments.
struct Entry {
    deployment_id: String,
    deployed: bool,
    at: i64,
}

impl Run {
    /// Makes the calls, one after the other; one that fails does not keep the next from being made. Only the
    /// first link of a process asks for deployments.
    pub(super) async fn sync(&self, gateway: &GatewayClient, first: bool) {
        self.judge_call("secrets", self.secrets(gateway, first).await);
        if first {
            self.judge_call("deployments", self.deployments(gateway).await);
            if !self.options.own.is_empty() {
                self.judge_call("import", self.import(gateway).await);
            }
        }
        self.judge_call("subscription plans", self.plans(gateway).await);
        let apis: Vec<String> = self.options.store.read(|tables| tables.held.keys().cloned().collect());
        for api in apis {
            let asked = self.subscriptions(gateway, &api).await;
            // It may have been taken away meanwhile.
            if asked.as_ref().err().is_none_or(|error| !matches!(status(error), Some(403 | 404))) {
                self.judge_call("subscriptions", asked);
            }
        }
        let mut keys = BTreeMap::new();
        for path in KEYS {
            let asked = self.keys(gateway, path).await;
            self.judge_call("API keys", asked.map(|found| keys.extend(found)));
        }
        self.options.store.change(|tables| tables.keys = keys);
        self.note(|state| state.synced = true);
    }

    /// A real controller logs whatever goes wrong here. The platform may be in trouble; everything else is a fault.
    fn judge_call(&self, what: &str, outcome: anyhow::Result<()>) {
        let Err(error) = outcome else { return };
        match status(&error) {
            Some(status) if status >= 500 => {}
            None if is_network(&error) => {}
            _ => self.fault(format!("{what}: {error:#}")),
        }
    }

    async fn secrets(&self, gateway: &GatewayClient, first: bool) -> anyhow::Result<()> {
        let path = if first { "/secrets?includeValues=true" } else { "/secrets" };
        let answer = gateway.get(path).await?;
        let list = list_at(&answer, "/list")?;
        anyhow::ensure!(
            answer.get("count").and_then(Value::as_u64) == Some(list.len() as u64),
            "count: {answer}"
        );
        for entry in list {
            let (handle, hash) = (text_at(entry, "/handle")?, text_at(entry, "/hash")?);
            for name in ["/uuid", "/name", "/type", "/provider", "/status", "/createdAt", "/updatedAt"] {
                text_at(entry, name)?;
            }
            let known = self.options.store.read(|tables| tables.secrets.get(handle).cloned());
            if known.as_deref() == Some(hash) {
                continue;
            }
            if first {
                text_at(entry, "/value")?;
            } else {
                text_at(&gateway.get(&format!("/secrets/{handle}/value")).await?, "/value")?;
            }
            let (handle, hash) = (handle.to_owned(), hash.to_owned());
            self.options.store.change(|tables| drop(tables.secrets.insert(handle, hash)));
        }
        Ok(())
    }

    async fn deployments(&self, gateway: &GatewayClient) -> anyhow::Result<()> {
        let answer = gateway.deployments().await?;
        let mut listed = BTreeMap::new();
        let mut etags = BTreeSet::new();
        for entry in list_at(&answer, "/deployments")? {
            anyhow::ensure!(text_at(entry, "/kind")? == "RestApi", "kind: {entry}");
            let (state, at) = (text_at(entry, "/state")?, text_at(entry, "/deployedAt")?);
            anyhow::ensure!(matches!(state, "DEPLOYED" | "UNDEPLOYED"), "state: {entry}");
            anyhow::ensure!(check::is_millisecond(at), "deployedAt: {entry}");
            anyhow::ensure!(etags.insert(text_at(entry, "/etag")?), "an etag came twice: {answer}");
            let deployment_id = text_at(entry, "/deploymentId")?.to_owned();
            let at = check::time(at).context("deployedAt")?;
            let entry_read = Entry { deployment_id, deployed: state == "DEPLOYED", at };
            let again = listed.insert(text_at(entry, "/artifactId")?.to_owned(), entry_read);
            anyhow::ensure!(again.is_none(), "an artifact is listed twice: {answer}");
        }
        self.forget_unlisted(gateway, &listed).await?;
        self.take_listed(gateway, &listed).await
    }

    /// What is held and not listed goes only when the platform does not know it any more.
    async fn forget_unlisted(
        &self,
        gateway: &GatewayClient,
        listed: &BTreeMap<String, Entry>,
    ) -> anyhow::Result<()> {
        let held = self.options.store.held();
        let unlisted: Vec<String> = held.into_keys().filter(|api| !listed.contains_key(api)).collect();
        if unlisted.is_empty() {
            return Ok(());
        }
        for (api, exists) in gateway.exist(&unlisted).await? {
            if !exists {
                self.options.store.change(|tables| drop(tables.held.remove(&api)));
            }
        }
        Ok(())
    }

    async fn take_listed(
        &self,
        gateway: &GatewayClient,
        listed: &BTreeMap<String, Entry>,
    ) -> anyhow::Result<()> {
        let held = self.options.store.held();
        let is_known = |api: &str, entry: &Entry| {
            held.get(api).is_some_and(|held| {
                held.deployment_id == entry.deployment_id
                    && held.performed_at_ms == entry.at
                    && held.deployed == entry.deployed
            })
        };
        let changed: Vec<(&String, &Entry)> =
            listed.iter().filter(|(api, entry)| !is_known(api, entry)).collect();
        let to_fetch: Vec<String> = changed
            .iter()
            .filter(|(_, entry)| entry.deployed)
            .map(|(_, entry)| entry.deployment_id.clone())
            .collect();
        self.note(|state| state.refetched += to_fetch.len());
        let mut artifacts = BTreeMap::new();
        for batch in to_fetch.chunks(BATCH) {
            artifacts.extend(gateway.fetch_batch(batch).await?);
        }
        for (api, entry) in changed {
            let (names, operations) = match artifacts.get(&entry.deployment_id) {
                _ if !entry.deployed => (Names::default(), 0),
                // It was replaced after the list was made: an event says so.
                None => continue,
                Some(artifact) => match self.judge(api, artifact) {
                    Fetched::Runs(names, operations) => (names, operations),
                    Fetched::Not => continue,
                },
            };
            let Entry { deployment_id, deployed, at } = entry;
            let (deployment_id, deployed, performed_at_ms) = (deployment_id.clone(), *deployed, *at);
            let row = Held { deployment_id, performed_at_ms, deployed, operations, names };
            self.options.store.change(|tables| {
                // Events go on meanwhile: the newer counts.
                if tables.held.get(api).is_none_or(|held| held.performed_at_ms < row.performed_at_ms) {
                    tables.held.insert(api.clone(), row);
                }
            });
        }
        Ok(())
    }

    async fn import(&self, gateway: &GatewayClient) -> anyhow::Result<()> {
        let answer = gateway.import(&self.options.own).await?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).context(name.to_owned());
        anyhow::ensure!(number("total")? == self.options.own.len() as u64, "total: {answer}");
        anyhow::ensure!(number("success")? + number("failed")? == number("total")?, "sums: {answer}");
        for own in &self.options.own {
            let dpid = text_at(own, "/dpid")?;
            let entry = answer.pointer(&format!("/artifacts/{dpid}")).context("an artifact is missing")?;
            text_at(entry, "/status")?;
        }
        Ok(())
    }

    async fn plans(&self, gateway: &GatewayClient) -> anyhow::Result<()> {
        let mut plans = BTreeMap::new();
        for plan in array(&gateway.get("/subscription-plans").await?)? {
            for name in ["/planName", "/status", "/createdAt", "/updatedAt", "/etag"] {
                text_at(plan, name)?;
            }
            plans.insert(text_at(plan, "/id")?.to_owned(), text_at(plan, "/handle")?.to_owned());
        }
        // The list is the whole truth: an empty one deletes them all.
        self.options.store.change(|tables| tables.plans = plans);
        Ok(())
    }

    async fn subscriptions(&self, gateway: &GatewayClient, api: &str) -> anyhow::Result<()> {
        for entry in array(&gateway.get(&format!("/apis/{api}/subscriptions")).await?)? {
            for name in ["/id", "/subscriptionToken", "/status", "/createdAt", "/updatedAt", "/etag"] {
                text_at(entry, name)?;
            }
            anyhow::ensure!(text_at(entry, "/apiId")? == api, "a subscription of another API: {entry}");
        }
        Ok(())
    }

    async fn keys(&self, gateway: &GatewayClient, path: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let answer = gateway.get(path).await?;
        let keys = array(&answer)?.iter().map(|key| {
            // An object here, and a text with JSON in events.
            text_at(key, "/apiKeyHashes/sha256")?;
            for name in ["/etag", "/maskedApiKey", "/artifactUuid", "/status", "/createdAt", "/updatedAt"] {
                text_at(key, name)?;
            }
            Ok((text_at(key, "/uuid")?.to_owned(), text_at(key, "/name")?.to_owned()))
        });
        keys.collect()
    }
}

fn array(answer: &Value) -> anyhow::Result<&Vec<Value>> {
    answer.as_array().with_context(|| format!("not a list: {answer}"))
}
