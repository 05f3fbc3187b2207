//! Calls whose answers are streams, and the links of gateways: they come, take what there is for them, and go.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use suite::{
    client::Client,
    controller::Dice,
    gateway::GatewayClient,
    transport::{Answer, Frame, Greeting, LinkError, Transport},
};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use super::{
    hands::{Hands, World},
    tally::Tally,
};

const SUBSCRIBE: &str = "/tollgate.gateway.v1.GatewayLink/Subscribe";
/// What must come, comes within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// A link that does not stay stays so long at most.
const STAY_MILLIS: usize = 1_500;
/// A dial is given up within this, many before they are through.
const GIVE_UP_MICROS: usize = 60_000;

impl Hands {
    fn gateway_token(&mut self) -> String {
        self.world.gateways[self.dice.below(self.world.gateways.len())].1.clone()
    }

    /// A link over a protocol of browsers; the client leaves when the first message is here.
    pub(crate) async fn stream(&mut self, content_type: &str) -> anyhow::Result<String> {
        let token = self.gateway_token();
        let http = [&self.h1, &self.h2][self.dice.below(2)];
        let message: &[u8] = if content_type.ends_with("json") { b"\0\0\0\0\x02{}" } else { b"\0\0\0\0\0" };
        let request = http
            .request(Method::POST, format!("{}{SUBSCRIBE}", self.world.url))
            .header("api-key", token)
            .header("content-type", content_type)
            .body(message);
        let mut response = request.send().await.context("no answer")?;
        let first = response.chunk().await.context("the stream broke off")?.unwrap_or_default();
        let is_message = response.status() == 200 && first.first() == Some(&0) && first.len() > 5;
        anyhow::ensure!(is_message, "{}: {first:?}", response.status());
        Ok("a message, left".to_owned())
    }

    /// The same over a WebSocket; with a goodbye, or without.
    pub(crate) async fn socket(&mut self) -> anyhow::Result<String> {
        let mut request = format!("wss://localhost:{}{SUBSCRIBE}", self.world.port).into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "connect.v1+json".parse()?);
        request.headers_mut().insert("api-key", self.gateway_token().parse()?);
        let stream = self.world.trust.connect("localhost", self.world.port, "http/1.1").await?;
        let (mut socket, _) = Box::pin(tokio_tungstenite::client_async(request, stream)).await?;
        socket.send(Message::text(r#"{"message":{}}"#)).await?;
        let first = timeout(PATIENCE, socket.next()).await?.context("the end")??;
        anyhow::ensure!(first.to_text()?.starts_with(r#"{"message""#), "{first:?}");
        if self.dice.below(2) == 0 {
            return Ok("a message, left".to_owned());
        }
        socket.close(None).await?;
        let rest = async { while let Some(Ok(_)) = socket.next().await {} };
        timeout(PATIENCE, rest).await.context("no answer to the goodbye")?;
        Ok("a message, closed".to_owned())
    }
}

/// A gateway that comes and goes, over one transport, until it is time.
pub(crate) struct Gateway {
    pub(crate) world: Arc<World>,
    pub(crate) transport: Transport,
    pub(crate) token: String,
    /// Whether its link stays until it is time.
    pub(crate) stays: bool,
}

impl Gateway {
    pub(crate) fn kind(transport: Transport) -> String {
        format!("link, {}", transport.name())
    }

    pub(crate) async fn live(self, until: Instant, tally: Tally) {
        let mut dice = Dice::fresh();
        let client = || {
            let client = Client::new(&self.world.url, &self.world.trust).unwrap();
            GatewayClient::new(&client, &self.token)
        };
        let mut gateway = client();
        while Instant::now() < until {
            if dice.below(4) == 0 {
                gateway = client();
            }
            let outcome = self.link(&gateway, until, &mut dice).await;
            tally.note(&Self::kind(self.transport), outcome);
        }
    }

    async fn link(&self, gateway: &GatewayClient, until: Instant, dice: &mut Dice) -> anyhow::Result<String> {
        if !self.stays && dice.below(5) == 0 {
            return self.wrong(gateway).await;
        }
        let dial = self.transport.open(gateway, Greeting::default());
        let mut link = if !self.stays && dice.below(4) == 0 {
            let patience = Duration::from_micros(u64::try_from(dice.below(GIVE_UP_MICROS))?);
            match timeout(patience, dial).await {
                Ok(link) => link?,
                Err(_) => return Ok("dial given up".to_owned()),
            }
        } else {
            dial.await?
        };
        let stay = Duration::from_millis(u64::try_from(dice.below(STAY_MILLIS))?);
        let end = if self.stays { until } else { until.min(Instant::now() + stay) };
        while let Ok(frame) = timeout_at(end, link.next()).await {
            match frame? {
                Frame::Event(event) => {
                    let action = match event.kind.as_str() {
                        "api.deployed" => "deploy",
                        "api.undeployed" => "undeploy",
                        _ => continue,
                    };
                    link.send(Answer::Deployment(event.answer(action, None))).await?;
                }
                Frame::Closed(why) => anyhow::bail!("closed: {why:?}"),
                Frame::Alive | Frame::Snapshot(_) => {}
            }
        }
        if dice.below(2) == 0 {
            return Ok("left".to_owned());
        }
        link.close().await;
        Ok("closed".to_owned())
    }

    /// Somebody with a token that is none.
    async fn wrong(&self, gateway: &GatewayClient) -> anyhow::Result<String> {
        let stranger = GatewayClient::new(gateway.client(), "no-such-token");
        match self.transport.open(&stranger, Greeting::default()).await.map(drop) {
            Err(LinkError::Refused { status: 401, .. }) => Ok("401".to_owned()),
            other => anyhow::bail!("a wrong token: {other:?}"),
        }
    }
}
