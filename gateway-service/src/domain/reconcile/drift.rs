//! Drift: what gateways do not run, or run, for longer than it may take.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use service_kit::Result;

use super::Reconciliation;

/// How many gateways one question to the database names.
const CHUNK: usize = 500;

/// An artifact on a gateway, or on one instance of it, that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Drifted {
    pub(crate) gateway_id: String,
    /// The instance that says otherwise; empty when nobody has said yet that it is done.
    pub(crate) instance_id: String,
    pub(crate) artifact_id: String,
    /// The newest of the log about it.
    pub(crate) revision: i64,
    pub(crate) event_type: String,
    pub(crate) deployment_id: String,
    /// Why the gateway refused it; empty when it did not.
    pub(crate) reason: String,
}

/// What is known to have drifted: by gateway, instance and artifact.
#[derive(Debug, Default)]
pub(super) struct Watch {
    known: BTreeMap<(String, String, String), Drifted>,
    looked: Option<Instant>,
}

impl Watch {
    /// Takes over what has drifted now. Returns what is new in it, and what is not in it any more.
    fn update(&mut self, now: Vec<Drifted>) -> (Vec<Drifted>, Vec<Drifted>) {
        let key = |one: &Drifted| (one.gateway_id.clone(), one.instance_id.clone(), one.artifact_id.clone());
        let now: BTreeMap<_, _> = now.into_iter().map(|one| (key(&one), one)).collect();
        let before = std::mem::replace(&mut self.known, now);
        let new = self.known.iter().filter(|(key, _)| !before.contains_key(*key));
        let new = new.map(|(_, one)| one.clone()).collect();
        let cured = before.into_iter().filter(|(key, _)| !self.known.contains_key(key)).map(|(_, one)| one);
        (new, cured.collect())
    }
}

impl Reconciliation {
    /// Says of which artifacts of these gateways there is drift, once when it begins and once when it ends. Looks
    /// at most every `beat`.
    pub(super) async fn watch_drift(
        &self,
        watch: &mut Watch,
        gateways: &[String],
        beat: Duration,
    ) -> Result<()> {
        let beat = beat.min(Duration::from_millis(self.link.drift_ms));
        if watch.looked.is_some_and(|looked| looked.elapsed() < beat) {
            return Ok(());
        }
        watch.looked = Some(Instant::now());
        let before = self.clock.now_ms() - i64::try_from(self.link.drift_ms).unwrap_or(i64::MAX);
        let mut drifted = Vec::new();
        for some in gateways.chunks(CHUNK) {
            drifted.extend(self.store.drifted(some, before).await?);
        }
        // Of those that have left nothing is known: that is no cure.
        let here: BTreeSet<&String> = gateways.iter().collect();
        watch.known.retain(|(gateway, ..), _| here.contains(gateway));
        let (new, cured) = watch.update(drifted);
        for one in new {
            tracing::warn!(
                gateway = one.gateway_id,
                instance = one.instance_id,
                artifact = one.artifact_id,
                deployment = one.deployment_id,
                event = one.event_type,
                revision = one.revision,
                reason = one.reason,
                "an artifact has drifted: the gateway is not as it should be"
            );
        }
        for one in cured {
            let Drifted { gateway_id, instance_id, artifact_id, .. } = one;
            tracing::info!(
                gateway = gateway_id,
                instance = instance_id,
                artifact = artifact_id,
                "no drift any more"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Drifted, Watch};

    fn drifted(artifact: &str, revision: i64) -> Drifted {
        Drifted {
            gateway_id: "g".into(),
            instance_id: String::new(),
            artifact_id: artifact.into(),
            revision,
            event_type: "api.deployed".into(),
            deployment_id: "d".into(),
            reason: String::new(),
        }
    }

    #[test]
    fn drift_is_said_once_and_its_end_too() {
        let mut watch = Watch::default();
        assert_eq!(
            watch.update(vec![drifted("a", 1), drifted("b", 2)]).0,
            [drifted("a", 1), drifted("b", 2)]
        );
        // Something newer of the same artifact has drifted as well: that is no news.
        assert_eq!(watch.update(vec![drifted("a", 3), drifted("b", 2)]), (vec![], vec![]));
        assert_eq!(watch.update(vec![drifted("b", 2)]), (vec![], vec![drifted("a", 3)]));
        assert_eq!(watch.update(vec![drifted("a", 3), drifted("b", 2)]).0, [drifted("a", 3)]);
    }
}
