//! The people of a fault test: they deploy and undeploy as if nothing happened, and try again when something did.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use suite::{
    client::{Client, text_at},
    controller::Dice,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::platform::Door;
use crate::support::{Account, PASSWORD};

/// When a new token is taken; they are good for 15 minutes here.
const RENEW: std::time::Duration = std::time::Duration::from_secs(300);

/// What was asked for of one API on one gateway, as far as the answers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) deployment_id: String,
    pub(crate) deployed: bool,
    pub(crate) asked: Instant,
}

/// The book of all orders.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The newest order of an API on a gateway; nothing when nobody knows what became of the newest.
    pub(crate) newest: HashMap<(String, String), Option<Order>>,
    /// Every order that was accepted, with its gateway.
    pub(crate) accepted: Vec<(String, Order)>,
    /// Calls that got no answer, or that of a platform in trouble.
    pub(crate) failed: usize,
    /// Answers that nobody should get.
    pub(crate) faults: Vec<String>,
}

/// An account's access token, and how to get the next one.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    email: String,
    token: String,
    since: Instant,
}

impl Pass {
    /// The pass of an account that has just logged in.
    pub(crate) fn of(account: &Account) -> Self {
        let token = account.client.token().unwrap().to_owned();
        Self { email: account.email.clone(), token, since: Instant::now() }
    }

    /// A client at this door, with a token that is good for a while.
    pub(crate) async fn client(&mut self, door: &Door) -> Client {
        let client = door.client();
        if self.since.elapsed() > RENEW {
            let body = json!({"email": self.email, "password": PASSWORD});
            let reply = client.post("/api/v1/auth/login", &body).await;
            // If it cannot be had now, the old one is good for a while.
            if let Ok(Ok(pair)) = reply.map(|reply| reply.expect(200))
                && let Ok(token) = text_at(&pair, "/accessToken")
            {
                (self.token, self.since) = (token.to_owned(), Instant::now());
            }
        }
        client.with_token(&self.token)
    }
}

/// Somebody who deploys their APIs to these gateways until told to stop.
pub(crate) struct Person {
    pub(crate) door: Door,
    pub(crate) pass: Pass,
    pub(crate) apis: Vec<String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) dice: Dice,
    pub(crate) book: Arc<Mutex<Book>>,
    pub(crate) pause: std::time::Duration,
}

impl Person {
    pub(crate) async fn work(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let api = self.apis[self.dice.below(self.apis.len())].clone();
            let first = self.dice.below(self.gateways.len());
            let count = 1 + self.dice.below(4).min(self.gateways.len() - 1);
            let targets: Vec<String> =
                self.gateways.iter().cycle().skip(first).take(count).cloned().collect();
            // What runs may be undeployed; the rest is deployed, again or for the first time.
            let (run, rest): (Vec<String>, Vec<String>) =
                targets.into_iter().partition(|gateway| self.runs(&api, gateway));
            if self.dice.below(3) == 0 && !run.is_empty() {
                self.order(&api, run, false).await;
            } else {
                self.order(&api, run.into_iter().chain(rest).collect(), true).await;
            }
            tokio::select! { () = tokio::time::sleep(self.pause) => {}, () = stop.cancelled() => {} }
        }
    }

    fn runs(&self, api: &str, gateway: &str) -> bool {
        let book = self.book.lock().unwrap();
        let newest = book.newest.get(&(api.to_owned(), gateway.to_owned()));
        matches!(newest, Some(Some(Order { deployed: true, .. })))
    }

    async fn order(&mut self, api: &str, gateways: Vec<String>, deploy: bool) {
        let verb = if deploy { "deploy" } else { "undeploy" };
        let body: Vec<Value> = gateways.iter().map(|gateway| json!({"gatewayId": gateway})).collect();
        let path = format!("/api/v1/apis/{api}/{verb}-revision");
        let asked = Instant::now();
        let client = self.pass.client(&self.door).await;
        let reply = client.post(&path, &Value::Array(body)).await;
        let mut book = self.book.lock().unwrap();
        for (at, gateway) in gateways.iter().enumerate() {
            let order = match &reply {
                Ok(reply) if reply.status == 200 => {
                    let answer = reply.json().unwrap_or_default();
                    text_at(&answer, &format!("/{at}/id")).ok().map(|id| Order {
                        deployment_id: id.to_owned(),
                        deployed: deploy,
                        asked,
                    })
                }
                _ => None,
            };
            book.accepted.extend(order.clone().map(|order| (gateway.clone(), order)));
            book.newest.insert((api.to_owned(), gateway.clone()), order);
        }
        match reply {
            Ok(reply) if reply.status == 200 => {}
            // A conflict is what became of an order that nobody knew the outcome of.
            Ok(reply) if reply.status >= 500 || reply.status == 409 => book.failed += 1,
            Ok(reply) => book.faults.push(format!("{verb}: {} {}", reply.status, reply.text())),
            Err(_) => book.failed += 1,
        }
    }
}
