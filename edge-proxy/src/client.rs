//! Who is at the other end of a request: the connection, and the address behind the proxies in front of us.
//!
//! A header is believed only as far as proxies of ours have written it; everything else in it is what the
//! client made up.

mod marks;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use http::{Extensions, HeaderMap, HeaderValue, header};
use service_kit::{ClientInfo, Error, Result, client_info};

use crate::{
    layers::request_id::X_REQUEST_ID,
    listener::{Connection, Ticket},
};
pub(crate) use marks::Marks;

/// The longest `User-Agent` that services are told, in characters.
const MAX_DEVICE: usize = 256;

/// The other end of the connection that a request came over; in the extensions of each request.
///
/// Whoever keeps it keeps the connection counted and busy: a response body that is still under way, and
/// an upgraded connection, must hold on to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// Where it is: behind the proxies that we trust, if it came through one.
    pub(crate) address: IpAddr,
    /// Whether it speaks TLS to us.
    pub(crate) secure: bool,
    /// What it came over.
    pub(crate) connection: Arc<Connection>,
    /// The request under way.
    pub(crate) _ticket: Arc<Ticket>,
}

impl Client {
    /// The client of a request.
    pub(crate) fn of(extensions: &Extensions) -> Result<&Self> {
        extensions.get().ok_or_else(|| Error::internal(anyhow::anyhow!("a request without a peer")))
    }

    /// What happened to the request so far.
    pub(crate) fn marks(&self) -> &Marks {
        self._ticket.marks()
    }

    /// The request under way.
    pub(crate) fn ticket(&self) -> Arc<Ticket> {
        self._ticket.clone()
    }

    /// Tells a service about it, and of its request what these headers say.
    pub(crate) fn introduce(&self, (device, request_id): Described, call: &mut HeaderMap) {
        client_info::write(call, self.connection.address_text(self.address), device, request_id);
    }

    /// What services are told about it.
    pub(crate) fn info(&self, headers: &HeaderMap) -> ClientInfo {
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        ClientInfo {
            address: Some(self.address),
            device: text(header::USER_AGENT).unwrap_or_default().chars().take(MAX_DEVICE).collect(),
            request_id: text(X_REQUEST_ID).unwrap_or_default().into_owned(),
        }
    }
}

/// What a request says of its client's device, and its id.
pub(crate) type Described = (Option<HeaderValue>, Option<HeaderValue>);

/// Reads it, before the headers are made those of a call.
pub(crate) fn described(headers: &HeaderMap) -> Described {
    (headers.get(header::USER_AGENT).cloned(), headers.get(X_REQUEST_ID).cloned())
}

/// The proxies in front of us whose `X-Forwarded-For` is believed.
#[derive(Debug, Default)]
pub(crate) struct TrustedProxies(Networks);

/// Some ranges of addresses.
#[derive(Debug, Default)]
pub(crate) struct Networks(Vec<Network>);

impl Networks {
    /// Reads networks such as `10.0.0.0/8`, or single addresses; `setting` is what they are called.
    pub(crate) fn read(setting: &str, networks: &[String]) -> anyhow::Result<Self> {
        let networks = networks.iter().map(|text| {
            Network::parse(text).with_context(|| format!("{setting}: {text} is not `ADDRESS/BITS`"))
        });
        Ok(Self(networks.collect::<anyhow::Result<_>>()?))
    }

    /// Whether an address is in one of them.
    pub(crate) fn hold(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.holds(address))
    }
}

impl TrustedProxies {
    /// Reads networks such as `10.0.0.0/8`, or single addresses.
    pub(crate) fn read(networks: &[String]) -> anyhow::Result<Self> {
        Networks::read("trusted_proxies", networks).map(Self)
    }

    /// Where a request comes from: the peer, or the last hop that a trusted proxy has seen and that is not
    /// one itself. What stands further left was written by nobody that we know.
    pub(crate) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.ip().to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let lines: Vec<&str> =
            headers.get_all("x-forwarded-for").iter().map(|line| line.to_str().unwrap_or_default()).collect();
        for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            // What cannot be read hides everything that is left of it.
            let Some(address) = hop_address(hop.trim()) else { return client };
            client = address;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.0.hold(address)
    }
}

/// The address of a hop: alone, or with a port as some proxies write it.
fn hop_address(text: &str) -> Option<IpAddr> {
    let alone = || text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    alone().or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

/// A range of addresses.
#[derive(Debug, Clone, Copy)]
struct Network {
    base: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base.parse().ok()?, Some(bits.parse().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let base: IpAddr = base;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { base, bits })
    }

    fn holds(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let differ = u32::from(base) ^ u32::from(address);
                differ.leading_zeros() >= self.bits
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let differ = u128::from(base) ^ u128::from(address);
                differ.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
