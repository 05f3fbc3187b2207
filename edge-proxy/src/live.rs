//! What can change while the edge runs: made whole from a configuration, swapped at once.
//!
//! Whoever reads it twice in one call may see two of them; what must agree is read once.

use std::sync::Arc;

use service_kit::Clock;

use crate::{
    Config, LimitsConfig,
    client::{Networks, TrustedProxies},
    listener::Certificate,
    rate::{Limits, Shared},
    switches::Switches,
};

/// The part of the settings that a reload replaces, ready for use.
#[derive(Debug)]
pub(crate) struct Live {
    /// How often somebody may do something.
    pub(crate) limits: Limits,
    /// Who is believed about addresses.
    pub(crate) trusted_proxies: TrustedProxies,
    /// Whose connections begin with a header of the PROXY protocol.
    pub(crate) proxied: Networks,
    /// The certificate that clients see.
    pub(crate) certificate: Arc<Certificate>,
    /// What is said of single methods.
    pub(crate) switches: Switches,
    /// Times and sizes.
    pub(crate) bounds: LimitsConfig,
    /// The browser applications that may call.
    pub(crate) allowed_origins: Vec<String>,
}

/// What stays when everything else is read again.
#[derive(Debug, Clone)]
pub(crate) struct Fixed {
    pub(crate) clock: Clock,
    pub(crate) shared: Option<Arc<Shared>>,
}

impl Live {
    /// Reads a configuration; fails when anything in it cannot be meant.
    pub(crate) fn new(config: &Config, fixed: &Fixed, before: Option<&Self>) -> anyhow::Result<Self> {
        let (clock, shared) = (&fixed.clock, fixed.shared.as_ref());
        let limits = match before {
            Some(before) => before.limits.reconfigured(&config.limits, clock, shared)?,
            None => Limits::new(&config.limits, clock, shared)?,
        };
        crate::layers::cors::check(&config.cors)?;
        Ok(Self {
            limits,
            trusted_proxies: TrustedProxies::read(&config.trusted_proxies)?,
            proxied: Networks::read("proxy_protocol", &config.proxy_protocol)?,
            certificate: Certificate::load(
                &config.public_tls,
                &config.tls,
                before.map(|before| &before.certificate),
            )?,
            switches: Switches::read(&config.routes)?,
            bounds: config.limits.clone(),
            allowed_origins: config.cors.allowed_origins.clone(),
        })
    }

    /// Whether pages of this origin may call.
    pub(crate) fn allows_origin(&self, origin: &[u8]) -> bool {
        self.allowed_origins.iter().any(|allowed| allowed.as_bytes() == origin)
    }
}
