//! SQL that appends to the logs, within a transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use service_kit::Result;
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    dialect::{Dialect as _, rows},
    failures::Fail as _,
};
use crate::domain::{
    failures::{Failure, NOT_CONNECTED},
    log::{Appended, NewEvent, next_performed},
};

/// Appends within a transaction.
#[async_trait]
pub(super) trait AppendAll {
    /// Locks the logs of gateways until the transaction ends, in the order of ids: two transactions cannot wait
    /// for each other. Returns the newest revision of each that exists.
    async fn lock<'a>(&mut self, gateways: BTreeSet<&'a str>) -> Result<HashMap<String, i64>>;
    /// Appends events in order. An event whose id is known changes nothing.
    async fn append_events(&mut self, events: &[NewEvent], now: i64) -> Result<Appended>;
    /// When the newest sendings about artifacts were performed.
    async fn performed_at(
        &mut self,
        artifacts: &BTreeSet<(&str, &str)>,
    ) -> Result<HashMap<(String, String), i64>>;
    /// Keeps when the newest sendings about artifacts were performed.
    async fn keep_performed_at(&mut self, artifacts: &HashMap<(String, String), i64>) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl AppendAll for Connection {
    async fn lock<'a>(&mut self, gateways: BTreeSet<&'a str>) -> Result<HashMap<String, i64>> {
        let input: Vec<_> =
            gateways.into_iter().filter(|id| service_kit::id::is_id(id)).map(|id| (id,)).collect();
        let heads: Vec<(String, i64)> = sqlx::query_as(Self::sql(
            "SELECT id, head FROM gateways WHERE id IN (SELECT i.value ->> 0 FROM json_each($1) AS i)
             ORDER BY id FOR NO KEY UPDATE",
        ))
        .bind(rows(&input)?)
        .fetch_all(&mut *self)
        .await?;
        Ok(heads.into_iter().collect())
    }

    async fn append_events(&mut self, events: &[NewEvent], now: i64) -> Result<Appended> {
        let mut heads = self.lock(events.iter().map(|event| event.gateway_id.as_str()).collect()).await?;
        let ids: Vec<_> = events.iter().map(|event| (&event.id,)).collect();
        let known: Vec<String> = sqlx::query_scalar(Self::sql(
            "SELECT event_id FROM gateway_events
             WHERE event_id IN (SELECT i.value ->> 0 FROM json_each($1) AS i)",
        ))
        .bind(rows(&ids)?)
        .fetch_all(&mut *self)
        .await?;
        let mut known: HashSet<String> = known.into_iter().collect();
        let about: BTreeSet<_> =
            events.iter().map(|event| (&*event.gateway_id, &*event.artifact_id)).collect();
        let mut performed = self.performed_at(&about).await?;
        let (mut appended, mut new) = (Appended::default(), Vec::new());
        for event in events {
            let Some(head) = heads.get_mut(&event.gateway_id) else {
                appended.unknown.push(event.id.clone());
                continue;
            };
            if !known.insert(event.id.clone()) {
                continue;
            }
            *head += 1;
            let about = (event.gateway_id.clone(), event.artifact_id.clone());
            let performed_at = next_performed(performed.get(&about).copied(), now);
            performed.insert(about, performed_at);
            new.push((*head, event, performed_at));
        }
        let input: Vec<_> = new
            .iter()
            .map(|(revision, e, performed_at)| {
                let place = (&e.gateway_id, revision, &e.id, &e.event_type);
                let about = (&e.artifact_id, &e.deployment_id, &e.event_key, &e.user_id, &e.payload_json);
                (
                    place.0,
                    place.1,
                    place.2,
                    place.3,
                    about.0,
                    about.1,
                    about.2,
                    about.3,
                    about.4,
                    performed_at,
                )
            })
            .collect();
        sqlx::query(Self::sql(
            "INSERT INTO gateway_events (gateway_id, revision, event_id, type, artifact_id, deployment_id,
               event_key, user_id, payload_json, performed_at, state, sendings, error_code, created_at)
             SELECT i.value ->> 0, CAST(i.value ->> 1 AS BIGINT), i.value ->> 2, i.value ->> 3, i.value ->> 4,
               i.value ->> 5, i.value ->> 6, i.value ->> 7, i.value ->> 8, CAST(i.value ->> 9 AS BIGINT),
               'pending', 0, '', $2
             FROM json_each($1) AS i",
        ))
        .bind(rows(&input)?)
        .bind(now)
        .execute(&mut *self)
        .await?;
        let grown: BTreeMap<&str, i64> = new.iter().map(|(head, e, _)| (&*e.gateway_id, *head)).collect();
        sqlx::query(Self::sql(
            "UPDATE gateways SET head = CAST(i.value ->> 1 AS BIGINT)
             FROM json_each($1) AS i WHERE gateways.id = i.value ->> 0",
        ))
        .bind(rows(&grown.iter().collect::<Vec<_>>())?)
        .execute(&mut *self)
        .await?;
        performed.retain(|(gateway, _), _| grown.contains_key(gateway.as_str()));
        self.keep_performed_at(&performed).await?;
        let asked: Vec<_> = grown.keys().map(|gateway| (gateway,)).collect();
        let connected: Vec<String> = sqlx::query_scalar(Self::sql(
            "SELECT DISTINCT gateway_id FROM connections
             WHERE gateway_id IN (SELECT i.value ->> 0 FROM json_each($1) AS i)",
        ))
        .bind(rows(&asked)?)
        .fetch_all(&mut *self)
        .await?;
        let connected: HashSet<String> = connected.into_iter().collect();
        let waiting: Vec<_> = new.iter().filter(|(_, e, _)| !connected.contains(&e.gateway_id)).collect();
        let failures: Vec<_> = waiting.iter().map(|(revision, event, _)| waits(event, *revision)).collect();
        self.fail_all(&failures, now).await?;
        appended.waiting = failures.into_iter().map(|f| (f.gateway_id, f.revision, f.event_type)).collect();
        appended.grown = grown.into_iter().map(|(gateway, head)| (gateway.to_owned(), head)).collect();
        Ok(appended)
    }

    async fn performed_at(
        &mut self,
        artifacts: &BTreeSet<(&str, &str)>,
    ) -> Result<HashMap<(String, String), i64>> {
        let input: Vec<_> = artifacts.iter().filter(|(_, artifact)| !artifact.is_empty()).collect();
        let found: Vec<(String, String, i64)> = sqlx::query_as(Self::sql(
            "SELECT a.gateway_id, a.artifact_id, a.performed_at FROM json_each($1) AS i
             JOIN gateway_artifacts a ON a.gateway_id = i.value ->> 0 AND a.artifact_id = i.value ->> 1",
        ))
        .bind(rows(&input)?)
        .fetch_all(&mut *self)
        .await?;
        Ok(found.into_iter().map(|(gateway, artifact, at)| ((gateway, artifact), at)).collect())
    }

    async fn keep_performed_at(&mut self, artifacts: &HashMap<(String, String), i64>) -> Result<()> {
        // What is about no artifact says no `performedAt`.
        let about = artifacts.iter().filter(|((_, artifact), _)| !artifact.is_empty());
        let input: Vec<_> = about.map(|((gateway, artifact), at)| (gateway, artifact, at)).collect();
        sqlx::query(Self::sql(
            "INSERT INTO gateway_artifacts (gateway_id, artifact_id, performed_at)
             SELECT i.value ->> 0, i.value ->> 1, CAST(i.value ->> 2 AS BIGINT) FROM json_each($1) AS i WHERE TRUE
             ON CONFLICT (gateway_id, artifact_id) DO UPDATE SET performed_at = excluded.performed_at",
        ))
        .bind(rows(&input)?)
        .execute(&mut *self)
        .await?;
        Ok(())
    }
}

fn waits(event: &NewEvent, revision: i64) -> Failure {
    Failure {
        gateway_id: event.gateway_id.clone(),
        instance_id: String::new(),
        revision,
        event_type: event.event_type.clone(),
        artifact_id: event.artifact_id.clone(),
        deployment_id: event.deployment_id.clone(),
        reason: NOT_CONNECTED.to_owned(),
        detail: String::new(),
    }
}
