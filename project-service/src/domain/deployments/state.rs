//! The states of a deployment on one gateway, and which report moves which state.
//!
//! `PENDING → DELIVERED → DEPLOYED | FAILED`, then `UNDEPLOYING → UNDEPLOYED | FAILED`. Reports may come
//! late, twice and out of order: a success counts whenever it comes, and nothing ever goes back. A
//! deployment whose gateway is deleted has failed, whatever it was.

use super::Deployment;

/// What is known of a deployment on its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Not yet with the gateway.
    Pending,
    /// Sent to the gateway, not acknowledged.
    Delivered,
    /// The gateway runs it.
    Deployed,
    /// The gateway refused it, or could not.
    Failed,
    /// To be removed, not acknowledged.
    Undeploying,
    /// Removed.
    Undeployed,
}

/// What a gateway was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// To run the deployment.
    Deploy,
    /// To have it gone.
    Undeploy,
    /// Nothing any more: the gateway itself was deleted.
    Delete,
}

/// What a gateway reported of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The deployment's id.
    pub deployment_id: String,
    /// The gateway's id.
    pub gateway_id: String,
    /// What the gateway was to do.
    pub action: Action,
    /// What came of it.
    pub status: Status,
    /// Why it failed; empty otherwise.
    pub reason: String,
    /// When the gateway reported it, Unix ms.
    pub reported_at: i64,
}

impl Report {
    /// Moves the state of the deployment that this is about. Says whether it has.
    pub fn apply(&self, deployment: &mut Deployment) -> bool {
        if deployment.id != self.deployment_id || deployment.gateway_id != self.gateway_id {
            return false;
        }
        let Some(next) = deployment.status.after(deployment.desired, self.action, self.status) else {
            return false;
        };
        deployment.status = next;
        deployment.status_reason = if next == Status::Failed { self.reason.clone() } else { String::new() };
        if next == Status::Deployed {
            deployment.success_at = Some(self.reported_at);
        }
        // Nobody can want anything of a gateway that is gone.
        deployment.desired &= self.action != Action::Delete;
        true
    }
}

impl Status {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Delivered, Self::Deployed, Self::Failed, Self::Undeploying, Self::Undeployed];

    /// The name in answers and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Delivered => "DELIVERED",
            Self::Deployed => "DEPLOYED",
            Self::Failed => "FAILED",
            Self::Undeploying => "UNDEPLOYING",
            Self::Undeployed => "UNDEPLOYED",
        }
    }

    /// The state with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// The state after a report on a deployment that the gateway is to run (`desired`) or to have gone;
    /// nothing when the report changes nothing.
    pub fn after(self, desired: bool, action: Action, reported: Self) -> Option<Self> {
        use Status::{Delivered, Deployed, Failed, Pending, Undeployed, Undeploying};
        match (desired, action, self, reported) {
            (true, Action::Deploy, Pending, Delivered) => Some(Delivered),
            (true, Action::Deploy, Pending | Delivered | Deployed | Failed, Deployed) => Some(Deployed),
            (true, Action::Deploy, Pending | Delivered, Failed) => Some(Failed),
            (false, Action::Undeploy, Undeploying | Failed, Undeployed) => Some(Undeployed),
            (false, Action::Undeploy, Undeploying, Failed) => Some(Failed),
            (_, Action::Delete, _, Failed) => Some(Failed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Action, Status};

    #[test]
    fn the_good_way_there_and_back() {
        use Status::{Delivered, Deployed, Failed, Pending, Undeployed, Undeploying};
        let deploy = |from: Status, reported| from.after(true, Action::Deploy, reported);
        assert_eq!(deploy(Pending, Delivered), Some(Delivered));
        assert_eq!(deploy(Delivered, Deployed), Some(Deployed));
        assert_eq!(deploy(Pending, Deployed), Some(Deployed));
        assert_eq!(deploy(Failed, Deployed), Some(Deployed), "a late success counts");
        assert_eq!(deploy(Deployed, Failed), None, "a success stays");
        assert_eq!(deploy(Deployed, Delivered), None);
        assert_eq!(deploy(Failed, Delivered), None);
        let undeploy = |from: Status, reported| from.after(false, Action::Undeploy, reported);
        assert_eq!(undeploy(Undeploying, Delivered), None);
        assert_eq!(undeploy(Undeploying, Undeployed), Some(Undeployed));
        assert_eq!(undeploy(Undeploying, Failed), Some(Failed));
        assert_eq!(undeploy(Failed, Undeployed), Some(Undeployed));
        assert_eq!(undeploy(Undeployed, Failed), None);
        assert_eq!(
            Undeploying.after(false, Action::Deploy, Deployed),
            None,
            "an answer to the deploy before"
        );
        assert_eq!(Pending.after(true, Action::Undeploy, Undeployed), None);
        assert!(Status::ALL.iter().all(|any| any.after(true, Action::Delete, Failed) == Some(Failed)));
    }

    fn rank(status: Status) -> u8 {
        match status {
            Status::Pending | Status::Undeploying => 0,
            Status::Delivered => 1,
            Status::Failed => 2,
            Status::Deployed | Status::Undeployed => 3,
        }
    }

    proptest! {
        #[test]
        fn nothing_ever_goes_back(
            desired: bool,
            reports in proptest::collection::vec((any::<bool>(), 0..6_usize), 0..30),
        ) {
            let mut status = if desired { Status::Pending } else { Status::Undeploying };
            for (deploy, reported) in reports {
                let action = if deploy { Action::Deploy } else { Action::Undeploy };
                if let Some(next) = status.after(desired, action, Status::ALL[reported]) {
                    prop_assert!(rank(next) >= rank(status), "{status:?} to {next:?}");
                    status = next;
                }
            }
            let belongs = match status {
                Status::Pending | Status::Delivered | Status::Deployed => desired,
                Status::Undeploying | Status::Undeployed => !desired,
                Status::Failed => true,
            };
            prop_assert!(belongs, "{status:?}");
        }
    }
}
