//! The settings of single methods.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Switches of methods, by their full names: `tollgate.auth.v1.AuthService/SignUp`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesConfig {
    /// Methods that answer 503, over every protocol.
    pub disabled: Vec<String>,
    /// Other classes of limits than the contract says: `default`, `credential`, `heavy`, `sign-up`, `mail`,
    /// `refresh`, `link`.
    pub class: BTreeMap<String, String>,
}
