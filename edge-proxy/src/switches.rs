//! What operators say of single methods: that they are off, or that other limits count.

use std::collections::HashMap;

use proto::{
    Access, Contract,
    policy::{MethodPolicy, RateClass},
};
use service_kit::{Error, Kind};

use crate::config::RoutesConfig;

/// The switches, by the paths of methods. Methods that are as the contract says have none.
#[derive(Debug, Default)]
pub(crate) struct Switches(HashMap<&'static str, Switch>);

#[derive(Debug, Clone, Copy, Default)]
struct Switch {
    is_off: bool,
    class: Option<RateClass>,
}

const CLASSES: [(&str, RateClass); 7] = [
    ("default", RateClass::Default),
    ("credential", RateClass::Credential),
    ("heavy", RateClass::Heavy),
    ("sign-up", RateClass::SignUp),
    ("mail", RateClass::Mail),
    ("refresh", RateClass::Refresh),
    ("link", RateClass::Link),
];

impl Switches {
    /// Reads the switches; fails for what is no method of the edge, or no class.
    pub(crate) fn read(config: &RoutesConfig) -> anyhow::Result<Self> {
        let mut switches: HashMap<&'static str, Switch> = HashMap::new();
        for name in &config.disabled {
            switches.entry(method("routes.disabled", name)?).or_default().is_off = true;
        }
        for (name, class) in &config.class {
            let known = CLASSES.iter().find(|(known, _)| known == class);
            let (_, class) =
                known.ok_or_else(|| anyhow::anyhow!("routes.class: there is no class {class:?}"))?;
            switches.entry(method("routes.class", name)?).or_default().class = Some(*class);
        }
        Ok(Self(switches))
    }

    /// The class whose limits count for a method; an error when it is off.
    pub(crate) fn class(&self, policy: &MethodPolicy) -> Result<RateClass, Error> {
        let switch = self.of(policy);
        if switch.is_off {
            let message = "this method is switched off at the moment";
            return Err(Error::new(Kind::Unavailable, "ROUTE_DISABLED", message));
        }
        Ok(switch.class.unwrap_or(policy.rate_class))
    }

    /// Whether a method is off, and its class by name.
    pub(crate) fn shown(&self, policy: &MethodPolicy) -> (bool, &'static str) {
        let switch = self.of(policy);
        let class = switch.class.unwrap_or(policy.rate_class);
        let name = CLASSES.iter().find(|(_, known)| *known == class).map_or("", |(name, _)| *name);
        (switch.is_off, name)
    }

    fn of(&self, policy: &MethodPolicy) -> Switch {
        if self.0.is_empty() {
            return Switch::default();
        }
        self.0.get(policy.path.as_str()).copied().unwrap_or_default()
    }
}

fn method(setting: &str, name: &str) -> anyhow::Result<&'static str> {
    Contract::get()
        .method(&format!("/{name}"))
        .filter(|policy| !matches!(policy.access, Access::Unspecified | Access::Service))
        .map(|policy| policy.path.as_str())
        .ok_or_else(|| {
            anyhow::anyhow!("{setting}: there is no method {name:?}, as in `package.Service/Method`")
        })
}
