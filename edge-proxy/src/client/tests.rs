use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::TrustedProxies;

fn proxies(networks: &[&str]) -> TrustedProxies {
    TrustedProxies::read(&networks.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn client(proxies: &TrustedProxies, peer: &str, forwarded: &[&str]) -> String {
    let mut headers = HeaderMap::new();
    for line in forwarded {
        headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
    }
    proxies.client(SocketAddr::new(peer.parse().unwrap(), 1), &headers).to_string()
}

#[test]
fn nobody_is_believed_unless_it_is_configured() {
    let nobody = proxies(&[]);
    let ours = proxies(&["10.0.0.0/8", "2001:db8:1::/48"]);
    for forwarded in [&["192.0.2.1"][..], &["127.0.0.1", "10.1.1.1"], &["10.1.1.1, 10.1.1.2"]] {
        assert_eq!(client(&nobody, "10.1.1.1", forwarded), "10.1.1.1");
        assert_eq!(client(&ours, "198.51.100.7", forwarded), "198.51.100.7");
    }
}

#[test]
fn the_last_hop_that_is_not_ours_is_the_client() {
    let ours = proxies(&["10.0.0.0/8", "203.0.113.9", "2001:db8:1::/48"]);
    for (forwarded, expected) in [
        (&["192.0.2.1"][..], "192.0.2.1"),
        // What the client sent itself stands to the left.
        (&["8.8.8.8, 127.0.0.1, 192.0.2.1"], "192.0.2.1"),
        (&["8.8.8.8", "192.0.2.1"], "192.0.2.1"),
        (&["192.0.2.1, 8.8.8.8", "192.0.2.2 ,\t10.2.2.2", "203.0.113.9"], "192.0.2.2"),
        // A client that pretends to be one of our proxies does not get its lie believed beyond itself.
        (&["8.8.8.8, 10.9.9.9, 192.0.2.1, 10.2.2.2"], "192.0.2.1"),
        // With ports, in brackets, IPv4 within IPv6.
        (&["192.0.2.1:4711"], "192.0.2.1"),
        (&["[2001:db8:2::7]:4711"], "2001:db8:2::7"),
        (&["[2001:db8:2::7]"], "2001:db8:2::7"),
        (&["2001:db8:2::7, 2001:db8:1::1"], "2001:db8:2::7"),
        (&["::ffff:192.0.2.1"], "192.0.2.1"),
        // Nothing but proxies, nothing at all, and what cannot be read: the last that is known.
        (&["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        (&[], "10.1.1.1"),
        (&[""], "10.1.1.1"),
        (&["8.8.8.8, unknown"], "10.1.1.1"),
        (&["8.8.8.8, _hidden, 10.2.2.2"], "10.2.2.2"),
        (&["8.8.8.8,"], "10.1.1.1"),
        (&["8.8.8.8, 300.1.1.1"], "10.1.1.1"),
    ] {
        assert_eq!(client(&ours, "10.1.1.1", forwarded), expected, "{forwarded:?}");
        assert_eq!(client(&ours, "::ffff:10.1.1.1", forwarded), expected, "{forwarded:?}");
    }
}

#[test]
fn networks_are_read_and_what_is_none_is_refused() {
    let peer = |network: &str, peer: &str| client(&proxies(&[network]), peer, &["192.0.2.1"]) == "192.0.2.1";
    for (network, inside, outside) in [
        ("10.1.2.3/8", "10.255.255.255", "11.0.0.0"),
        ("10.1.2.128/25", "10.1.2.255", "10.1.2.127"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("10.1.2.3/32", "10.1.2.3", "10.1.2.2"),
        ("0.0.0.0/0", "255.1.1.1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ("::1", "::1", "::2"),
        ("::/0", "2001:db8::1", "10.0.0.1"),
    ] {
        assert!(peer(network, inside) && !peer(network, outside), "{network}");
    }
    for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8", "proxy.example.com", "*"]
    {
        let error = TrustedProxies::read(&[bad.to_owned()]).unwrap_err();
        assert!(error.to_string().starts_with("trusted_proxies: "), "{bad}: {error}");
    }
}

proptest! {
    /// Whatever a client writes, what it wrote is never believed: the proxy adds the true address last.
    #[test]
    fn what_the_client_writes_does_not_count(forged in "[ -~]{0,80}", lines in 0_usize..4) {
        let ours = proxies(&["10.0.0.0/8"]);
        let mut headers = HeaderMap::new();
        for _ in 0..lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(&forged).unwrap());
        }
        let truth: IpAddr = "198.51.100.7".parse().unwrap();
        let direct = ours.client(SocketAddr::new(truth, 1), &headers);
        prop_assert_eq!(direct, truth);
        headers.append("x-forwarded-for", HeaderValue::from_static("198.51.100.7"));
        let behind = ours.client(SocketAddr::new("10.0.0.1".parse().unwrap(), 1), &headers);
        prop_assert_eq!(behind, truth);
    }
}
