//! The gateways that a request names: the rules of each, with the path of its field.

use std::collections::HashSet;

use service_kit::{Result, field::Checks};

/// The most gateways of one request.
const MOST: usize = 1_000;

/// One gateway to deploy to or to undeploy from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The revision's id; that of the request when empty.
    pub revision_id: String,
    /// The gateway's id.
    pub gateway_id: String,
    /// A name for the deployment.
    pub name: String,
    /// The host that the API is served on; the gateway's default when empty.
    pub vhost: String,
    /// Whether developers see it.
    pub display_on_devportal: bool,
}

/// The path of a field of a target.
pub(super) fn at(index: usize, field: &str) -> String {
    format!("deployments[{index}].{field}")
}

/// The revision that a target names, and the path of the field that does; empty when none is named.
pub(super) fn revision_of<'t>(request: &'t str, index: usize, target: &'t Target) -> (&'t str, String) {
    match target.revision_id.as_str() {
        "" => (request, "revisionId".to_owned()),
        own => (own, at(index, "revisionId")),
    }
}

/// Checks a request: 1 to 1,000 gateways, each once, revisions that may exist, names and hosts that fit.
pub(super) fn check(revision_id: &str, targets: &[Target]) -> Result<()> {
    let mut checks = Checks::new();
    checks.that(!targets.is_empty(), "deployments", "is required: at least one gateway");
    checks.that(targets.len() <= MOST, "deployments", "must have at most 1000 entries");
    if !revision_id.is_empty() {
        checks.id("revisionId", revision_id);
    }
    let mut seen = HashSet::new();
    for (i, target) in targets.iter().enumerate().take(MOST) {
        let gateway = at(i, "gatewayId");
        checks.id(&gateway, &target.gateway_id);
        checks.that(seen.insert(&target.gateway_id), &gateway, "must not appear twice");
        if !target.revision_id.is_empty() {
            checks.id(&at(i, "revisionId"), &target.revision_id);
        }
        checks.length(&at(i, "name"), &target.name, 0, 128).printable(&at(i, "name"), &target.name, false);
        let host = target.vhost.is_empty() || is_host(&target.vhost);
        checks.that(host, &at(i, "vhost"), "must be a host name (RFC 1123)");
    }
    checks.done()
}

/// RFC 1123: labels of 1 to 63 letters, digits and hyphens, none at an edge; at most 253 characters.
pub(in crate::domain) fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::{Target, check, is_host};

    #[test]
    fn hosts_are_rfc_1123() {
        for good in ["a", "api.example.com", "1.2.3.4", "A-b.c", &"a".repeat(63)] {
            assert!(is_host(good), "{good}");
        }
        let long = format!("{}.com", "a.".repeat(130));
        for bad in
            ["", ".", "a.", ".a", "-a", "a-", "a_b", "a b", "a:80", "http://a", "ä", &"a".repeat(64), &long]
        {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn all_broken_rules_are_named() {
        let id = "0198f0c5-0000-7000-8000-0123456789ab";
        let target = |gateway: &str| Target { gateway_id: gateway.into(), ..Target::default() };
        assert!(check("", &[target(id)]).is_ok());
        let bad = Target { name: "x".repeat(129), vhost: "_".into(), revision_id: "r".into(), ..target("g") };
        let error = check("x", &[target(id), target(id), bad]).unwrap_err();
        let fields: Vec<&str> = error.violations().iter().map(|one| one.field.as_str()).collect();
        let expected = [
            "revisionId",
            "deployments[1].gatewayId",
            "deployments[2].gatewayId",
            "deployments[2].revisionId",
            "deployments[2].name",
            "deployments[2].vhost",
        ];
        assert_eq!(fields, expected);
        assert_eq!(check("", &[]).unwrap_err().violations()[0].field, "deployments");
        assert_eq!(check("", &vec![target(id); 1_001]).unwrap_err().violations()[0].field, "deployments");
    }
}
