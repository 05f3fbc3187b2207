//! The sockets of a thousand gateways: each acknowledges what it gets at once and fetches nothing.

use std::time::Instant;

use suite::gateway::{Frame, GatewayClient, GatewayLink};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{PATIENCE, fleet::Fleet, setup::Setup};

/// All sockets; what arrives is told here.
pub(crate) struct Sockets {
    arrivals: mpsc::UnboundedReceiver<Instant>,
    /// They end with this.
    _links: JoinSet<()>,
}

impl Sockets {
    /// Connects every gateway, thirty-two at a time.
    pub(crate) async fn connect(fleet: &Fleet, setup: &Setup) -> Self {
        let (sender, arrivals) = mpsc::unbounded_channel();
        let mut links = JoinSet::new();
        for some in setup.tokens.chunks(32) {
            let connects = some.iter().map(|token| {
                let gateway = GatewayClient::new(&fleet.client, token);
                async move { gateway.connect().await.unwrap() }
            });
            for link in futures_util::future::join_all(connects).await {
                links.spawn(serve(link, sender.clone()));
            }
        }
        Self { arrivals, _links: links }
    }

    /// Waits for this many events; when the last one came.
    pub(crate) async fn wait(&mut self, count: usize) -> Instant {
        let all = async {
            let mut last = Instant::now();
            for _ in 0..count {
                last = self.arrivals.recv().await.unwrap();
            }
            last
        };
        tokio::time::timeout(PATIENCE, all).await.expect("every event arrives")
    }
}

async fn serve(mut link: GatewayLink, arrivals: mpsc::UnboundedSender<Instant>) {
    loop {
        match link.next().await.expect("the link stands") {
            Frame::Event(event) => {
                if arrivals.send(Instant::now()).is_err() {
                    return;
                }
                link.ack(&event, "deploy", None).await.expect("the link stands");
            }
            Frame::Alive => {}
            other => panic!("not for a plain gateway: {other:?}"),
        }
    }
}
