//! The begin of a connection: its hello, its place in the database, where it goes on.

use std::fmt::Display;

use futures_util::{Stream, StreamExt as _};
use proto::gateway::{GatewayFrame, Hello, gateway_frame::Frame as From};
use service_kit::{Error, Kind};

use super::{
    answers::Answers,
    hub::Hub,
    resume::{self, Resume},
};
use crate::domain::{
    connections::Connection,
    instances::{Author, Greeting, Mode, Peer, shown},
    tokens::Bearer,
};

/// The longest address of a peer that is kept, in characters.
const MAX_ADDRESS: usize = 64;

/// What a connection has besides the frames.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) answers: Option<Answers>,
    pub(super) resume: Option<Resume>,
    /// Everything up to here was sent before.
    pub(super) cursor: i64,
}

/// What the database keeps of a connection.
pub(super) fn record(hub: &Hub, bearer: &Bearer, hello: &Hello, peer: &Peer, now: i64) -> Connection {
    Connection {
        id: hub.ids().next(),
        node_id: hub.node_id(),
        gateway_id: bearer.gateway_id.clone(),
        organization_id: bearer.organization_id.clone(),
        token_id: bearer.token_id.clone(),
        instance_id: peer.instance_id.clone(),
        transport: hello.transport.clone(),
        version: peer.version.clone(),
        remote_address: shown(&hello.remote_address, MAX_ADDRESS),
        connected_at: now,
        heard_at: now,
        sent_revision: 0,
        applied_revision: peer.applied(),
    }
}

/// Registers a connection and decides where it goes on. Returns the epoch and the head of the log too.
pub(super) async fn admit(hub: &Hub, record: &Connection, peer: &Peer) -> Result<(Side, i64, i64), Error> {
    let (epoch, head) = hub.admit(record).await?;
    let side = match &peer.mode {
        Mode::Plain => Side::default(),
        Mode::Answering => Side { answers: Some(Answers::default()), ..Side::default() },
        Mode::Resumable(claim) => {
            let (gateway_id, instance_id) = (&record.gateway_id, &record.instance_id);
            let author = Author { gateway_id, instance_id, connection_id: &record.id };
            match resume::start(hub, author, claim).await {
                Ok((resume, answers, cursor)) => {
                    Side { answers: Some(answers), resume: Some(resume), cursor }
                }
                Err(error) => {
                    hub.orphan(&record.id, gateway_id);
                    return Err(error);
                }
            }
        }
    };
    Ok((side, epoch, head))
}

/// The first frame, and who sent it.
pub(super) async fn hello<S, E>(hub: &Hub, inbound: &mut S) -> Result<(Hello, Peer), Error>
where
    S: Stream<Item = Result<GatewayFrame, E>> + Unpin,
    E: Display,
{
    let first = tokio::select! {
        first = tokio::time::timeout(hub.config().hello(), inbound.next()) => first,
        () = hub.stopping() => return Err(Hub::draining()),
    };
    match first {
        Ok(Some(Ok(GatewayFrame { frame: Some(From::Hello(mut hello)) }))) => {
            let peer = Greeting {
                instance_id: std::mem::take(&mut hello.instance_id),
                version: std::mem::take(&mut hello.version),
                capabilities: std::mem::take(&mut hello.capabilities),
                applied_revision: hello.applied_revision,
                state_hash: std::mem::take(&mut hello.state_hash),
            };
            Ok((hello, peer.check()?))
        }
        Ok(Some(Ok(_))) => Err(Error::field("hello", "must be the first frame")),
        Ok(Some(Err(error))) => {
            Err(Error::new(Kind::Cancelled, "STREAM_BROKEN", "the stream broke").caused_by(broken(&error)))
        }
        Ok(None) => Err(Error::field("hello", "is required")),
        Err(_) => Err(Error::new(Kind::DeadlineExceeded, "NO_HELLO", "the first frame did not come in time")),
    }
}

fn broken(error: &impl Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
