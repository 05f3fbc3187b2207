//! Refuses requests that do not say once, and readably, which host they are for.
//!
//! RFC 9112 §3.2: no `Host`, two of them, or one that is no host is a 400. RFC 9113 §8.3.1: over HTTP/2
//! `Host` must not say something else than `:authority`. Nothing here decides by the name itself; a proxy
//! in front may, and must not be fooled by a request that names two.

use http::{StatusCode, Version, header, uri::Authority};

use super::Request;
use crate::{Client, rescue::Refusal};

/// Whether a request is for one host, and for one that this connection is for.
pub(crate) fn check(request: &Request) -> Result<(), Refusal> {
    match fault(request) {
        None if belongs(request) => Ok(()),
        None => Err(Refusal::http(
            StatusCode::MISDIRECTED_REQUEST,
            "MISDIRECTED",
            "this connection is not for this host",
        )),
        Some(fault) => Err(Refusal::http(StatusCode::BAD_REQUEST, "INVALID_HOST", fault)),
    }
}

/// Whether the certificate that the client saw is for the host of its request (RFC 9110 §7.4). A client that
/// named none in its handshake, such as one that knows only our address, is not asked.
fn belongs(request: &Request) -> bool {
    let client = request.extensions().get::<Client>();
    if client.is_none_or(|client| !client.connection.is_named()) {
        return true;
    }
    let host = || request.headers().get(header::HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => host(),
    };
    client.zip(host).is_none_or(|(client, host)| client.connection.is_for(host.host()))
}

/// What is wrong with the host of a request.
fn fault<B>(request: &http::Request<B>) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Some("there is more than one `Host` header"),
        (Some(host), None) => match host.to_str().ok().and_then(|text| text.parse::<Authority>().ok()) {
            Some(host) => Some(host),
            None => return Some("the `Host` header is no host"),
        },
        (None, None) => None,
    };
    let target = request.uri().authority();
    match request.version() {
        Version::HTTP_11 if host.is_none() => return Some("the `Host` header is missing"),
        Version::HTTP_2 if matches!((&host, target), (Some(host), Some(target)) if host != target) => {
            return Some("the `Host` header is not the `:authority`");
        }
        _ => {}
    }
    let has_user = |authority: &Authority| authority.as_str().contains('@');
    (host.as_ref().is_some_and(has_user) || target.is_some_and(has_user))
        .then_some("the host must not come with a user")
}

#[cfg(test)]
mod tests {
    use http::{Request, Version};

    use super::fault;

    fn verdict(version: Version, uri: &str, hosts: &[&[u8]]) -> Option<&'static str> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        fault(&request.body(()).unwrap())
    }

    #[test]
    fn one_readable_host_passes() {
        let h1 = Version::HTTP_11;
        for host in ["localhost", "localhost:8443", "127.0.0.1", "[::1]:8443", "api.example.com", "EXAMPLE"] {
            assert_eq!(verdict(h1, "/", &[host.as_bytes()]), None, "{host}");
        }
        // RFC 9112 §3.2.2: the target's authority wins over `Host`.
        assert_eq!(verdict(h1, "http://other/", &[b"localhost"]), None);
        assert_eq!(verdict(Version::HTTP_10, "/", &[]), None);
        assert_eq!(verdict(Version::HTTP_2, "https://localhost/", &[]), None);
        assert_eq!(verdict(Version::HTTP_2, "https://localhost/", &[b"LOCALHOST"]), None);
    }

    #[test]
    fn no_host_two_hosts_and_no_hosts_are_refused() {
        let h1 = Version::HTTP_11;
        assert!(verdict(h1, "/", &[]).is_some());
        assert!(verdict(h1, "/", &[b"a", b"a"]).is_some());
        for host in [&b""[..], b"a/b", b"a b", b"a@b", b"\xff"] {
            assert!(verdict(h1, "/", &[host]).is_some(), "{host:?}");
        }
        assert!(verdict(Version::HTTP_2, "https://localhost/", &[b"evil"]).is_some());
        assert!(verdict(Version::HTTP_2, "https://me@localhost/", &[]).is_some());
    }
}
