//! Settings for the tests beside the code.

use service_kit::config::Layers;

use super::config::ResilienceConfig;

/// The defaults.
pub(super) fn resilience() -> ResilienceConfig {
    let config: crate::Config = Layers::new(crate::DEFAULTS, None, "NOTHING__").unwrap().extract().unwrap();
    config.upstreams.resilience
}
