//! The registry of gateways: who may register, see, change and delete them.

use std::sync::Arc;

use service_kit::{AuthContext, Clock, Error, Ids, Kind, Result, field::Checks, outbox::Nudge, page::Page};
use url::Url;

use crate::{domain::access::Access, link::Hub, store::GatewayStore};

const MAX_ENDPOINTS: usize = 20;
const MAX_URL: usize = 2_048;

/// What a gateway is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Functionality {
    /// HTTP APIs.
    Regular,
    /// AI providers.
    Ai,
    /// Event APIs.
    Event,
}

impl Functionality {
    /// The name on the wire and in the store.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Ai => "ai",
            Self::Event => "event",
        }
    }

    /// The functionality of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        [Self::Regular, Self::Ai, Self::Event].into_iter().find(|kind| kind.name() == name)
    }
}

/// A gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) id: String,
    pub(crate) organization_id: String,
    pub(crate) name: String,
    pub(crate) functionality: Functionality,
    pub(crate) details: Details,
    /// The software's version, from its manifest; empty before the first.
    pub(crate) version: String,
    /// Unix milliseconds.
    pub(crate) created_at: i64,
    /// Unix milliseconds.
    pub(crate) updated_at: i64,
}

/// What may change of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) display_name: String,
    pub(crate) description: String,
    pub(crate) vhost: String,
    pub(crate) endpoints: Vec<String>,
    pub(crate) is_critical: bool,
}

/// A gateway to register.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) organization_id: String,
    pub(crate) name: String,
    /// Empty means regular.
    pub(crate) functionality: String,
    pub(crate) details: Details,
}

/// The registry.
#[derive(Debug, Clone)]
pub(crate) struct Gateways {
    pub(crate) store: Arc<dyn GatewayStore>,
    pub(crate) access: Access,
    pub(crate) hub: Hub,
    pub(crate) reports: Nudge,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
}

impl Gateways {
    /// Registers a gateway. NOT_FOUND for an organization that the caller may not see, ALREADY_EXISTS
    /// for a name that it holds.
    pub(crate) async fn register(&self, caller: &AuthContext, asked: Registration) -> Result<Gateway> {
        let functionality = check_registration(&asked)?;
        self.access.require(caller, &asked.organization_id, "gateways:write", "organization").await?;
        let now = self.clock.now_ms();
        let gateway = Gateway {
            id: self.ids.next(),
            organization_id: asked.organization_id,
            name: asked.name,
            functionality,
            details: asked.details,
            version: String::new(),
            created_at: now,
            updated_at: now,
        };
        if !self.store.insert(&gateway).await? {
            let message = "name is taken by another gateway of the organization";
            return Err(Error::new(Kind::AlreadyExists, "NAME_TAKEN", message).naming("name", "is taken"));
        }
        self.reports.now();
        tracing::info!(gateway = gateway.id, organization = gateway.organization_id, "gateway registered");
        Ok(gateway)
    }

    /// A page of gateways by name, and how many there are: of one organization, or of all that the
    /// caller may see when `organization_id` is empty.
    pub(crate) async fn list(
        &self,
        caller: &AuthContext,
        organization_id: &str,
        page: Page,
    ) -> Result<(Vec<Gateway>, i64)> {
        let organizations = self.visible(caller, organization_id).await?;
        if organizations.is_empty() {
            return Ok((Vec::new(), 0));
        }
        self.store.list(&organizations, page).await
    }

    /// The organizations whose gateways the caller may see: all of them, or the one that is asked for.
    pub(crate) async fn visible(&self, caller: &AuthContext, organization_id: &str) -> Result<Vec<String>> {
        if organization_id.is_empty() {
            return self.access.organizations(caller, "gateways:read").await;
        }
        Checks::new().id("organizationId", organization_id).done()?;
        self.access.require(caller, organization_id, "gateways:read", "organization").await?;
        Ok(vec![organization_id.to_owned()])
    }

    /// The gateway, if the caller holds the permission in its organization; NOT_FOUND otherwise, or
    /// PERMISSION_DENIED to somebody who may see it.
    pub(crate) async fn permitted(
        &self,
        caller: &AuthContext,
        id: &str,
        permission: &'static str,
    ) -> Result<Gateway> {
        Checks::new().id("gatewayId", id).done()?;
        let gateway = self.store.find(id).await?.ok_or_else(|| Error::not_found("gateway"))?;
        self.access.require(caller, &gateway.organization_id, permission, "gateway").await?;
        Ok(gateway)
    }

    /// Replaces the details of a gateway.
    pub(crate) async fn update(&self, caller: &AuthContext, id: &str, details: Details) -> Result<Gateway> {
        let mut checks = Checks::new();
        check_details(checks.id("gatewayId", id), &details);
        checks.done()?;
        self.permitted(caller, id, "gateways:write").await?;
        let updated = self.store.update(id, &details, self.clock.now_ms()).await?;
        self.reports.now();
        updated.ok_or_else(|| Error::not_found("gateway"))
    }

    /// Deletes a gateway with its tokens and its log, and closes its connections.
    pub(crate) async fn delete(&self, caller: &AuthContext, id: &str) -> Result<()> {
        self.permitted(caller, id, "gateways:delete").await?;
        if !self.store.delete(id, self.clock.now_ms()).await? {
            return Err(Error::not_found("gateway"));
        }
        self.reports.now();
        self.hub.gateway_deleted(id);
        self.hub.announce(id).await;
        tracing::info!(gateway = id, "gateway deleted");
        Ok(())
    }

    /// Which of the gateways exist in an organization.
    pub(crate) async fn resolve(&self, organization_id: &str, ids: &[String]) -> Result<Vec<Gateway>> {
        let mut checks = Checks::new();
        checks.id("organizationId", organization_id).that(
            ids.len() <= 1_000,
            "gatewayIds",
            "must hold at most 1000 ids",
        );
        checks.done()?;
        // What is not an id names nothing.
        let ids: Vec<String> = ids.iter().filter(|id| service_kit::id::is_id(id)).cloned().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.store.resolve(organization_id, &ids).await
    }
}

fn check_registration(asked: &Registration) -> Result<Functionality> {
    let mut checks = Checks::new();
    checks.id("organizationId", &asked.organization_id);
    if asked.name.is_empty() {
        checks.that(false, "name", "is required");
    } else {
        checks.that(
            is_name(&asked.name),
            "name",
            "must have 3 to 64 of a-z, 0-9 and -, and no hyphen at an edge",
        );
    }
    check_details(&mut checks, &asked.details);
    let functionality = match asked.functionality.as_str() {
        "" => Some(Functionality::Regular),
        name => Functionality::of(name),
    };
    checks.that(functionality.is_some(), "functionalityType", "must be `regular`, `ai` or `event`");
    checks.done()?;
    Ok(functionality.unwrap_or(Functionality::Regular))
}

fn check_details(checks: &mut Checks, details: &Details) {
    checks
        .length("displayName", &details.display_name, 1, 128)
        .printable("displayName", &details.display_name, false)
        .length("description", &details.description, 0, 1_024)
        .printable("description", &details.description, true)
        .that(details.vhost.is_empty() || is_host(&details.vhost), "vhost", "must be a host name (RFC 1123)")
        .that(details.endpoints.len() <= MAX_ENDPOINTS, "endpoints", "must hold at most 20 URLs");
    for (at, endpoint) in details.endpoints.iter().enumerate().take(MAX_ENDPOINTS) {
        let rule = "must be an absolute http or https URL of at most 2048 characters";
        checks.that(is_endpoint(endpoint), &format!("endpoints[{at}]"), rule);
    }
}

fn is_name(name: &str) -> bool {
    (3..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A host name of RFC 1123: labels of 1 to 63 letters, digits and hyphens, none of these at an edge.
fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

fn is_endpoint(text: &str) -> bool {
    text.len() <= MAX_URL
        && !text.chars().any(|c| c.is_control() || c.is_whitespace())
        && Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Details, Registration, check_registration, is_endpoint, is_host, is_name};

    fn registration(name: &str) -> Registration {
        Registration {
            organization_id: "0198f0c5-0000-7000-8000-000000000000".into(),
            name: name.into(),
            functionality: String::new(),
            details: Details { display_name: "Edge".into(), ..Details::default() },
        }
    }

    #[test]
    fn every_broken_rule_is_named() {
        let mut bad = registration("-x");
        bad.organization_id = String::new();
        bad.functionality = "magic".into();
        bad.details = Details {
            vhost: "a..b".into(),
            description: "\0".into(),
            endpoints: vec!["https://ok.example".into(), "ftp://no.example".into()],
            ..Details::default()
        };
        let error = check_registration(&bad).unwrap_err();
        let fields: Vec<&str> = error.violations().iter().map(|v| v.field.as_str()).collect();
        let all = [
            "organizationId",
            "name",
            "displayName",
            "description",
            "vhost",
            "endpoints[1]",
            "functionalityType",
        ];
        assert_eq!(fields, all);
        assert!(check_registration(&registration("edge-1")).is_ok());
    }

    #[test]
    fn names_hosts_and_endpoints() {
        for good in ["abc", "a-1", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["ab", "Abc", "a_b", "-ab", "ab-", &"x".repeat(65), "äbc"] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_host("gw.example.com") && is_host("localhost") && is_host("1.2.3.4"));
        assert!(!is_host("a_b") && !is_host("x-.y") && !is_host("gw:80") && !is_host(&"a.".repeat(130)));
        assert!(is_endpoint("http://10.0.0.1:8080/x") && is_endpoint("https://[::1]/"));
        assert!(!is_endpoint("/relative") && !is_endpoint("http://") && !is_endpoint("https://a b"));
    }

    proptest! {
        #[test]
        fn a_name_is_what_the_pattern_says(name in "[a-z0-9-]{0,70}") {
            let holds = (3..=64).contains(&name.len()) && !name.starts_with('-') && !name.ends_with('-');
            prop_assert_eq!(is_name(&name), holds);
        }
    }
}
