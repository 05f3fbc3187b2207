//! SQL of failed deliveries, within a transaction of the log.

use std::collections::BTreeMap;

use async_trait::async_trait;
use service_kit::Result;
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::dialect::{Dialect as _, rows};
use crate::domain::failures::Failure;

/// Notes failures within a transaction that holds the locks of the gateways.
#[async_trait]
pub(super) trait Fail {
    /// Keeps and counts those that are not known yet.
    async fn fail_all(&mut self, failures: &[Failure], now: i64) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Fail for Connection {
    async fn fail_all(&mut self, failures: &[Failure], now: i64) -> Result<()> {
        if failures.is_empty() {
            return Ok(());
        }
        let input: Vec<_> = failures
            .iter()
            .map(|f| {
                let what = (&f.event_type, &f.artifact_id, &f.deployment_id);
                (
                    f.id(),
                    &f.gateway_id,
                    &f.instance_id,
                    f.revision,
                    what.0,
                    what.1,
                    what.2,
                    &f.reason,
                    &f.detail,
                )
            })
            .collect();
        let new: Vec<String> = sqlx::query_scalar(Self::sql(
            "INSERT INTO failed_deliveries (id, gateway_id, organization_id, instance_id, revision, type,
               artifact_id, deployment_id, reason, detail, failed_at)
             SELECT i.value ->> 0, g.id, g.organization_id, i.value ->> 2, CAST(i.value ->> 3 AS BIGINT),
               i.value ->> 4, i.value ->> 5, i.value ->> 6, i.value ->> 7, i.value ->> 8, $2
             FROM json_each($1) AS i JOIN gateways g ON g.id = i.value ->> 1 WHERE TRUE
             ON CONFLICT (id) DO NOTHING RETURNING gateway_id",
        ))
        .bind(rows(&input)?)
        .bind(now)
        .fetch_all(&mut *self)
        .await?;
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for gateway in new {
            *counts.entry(gateway).or_default() += 1;
        }
        sqlx::query(Self::sql(
            "UPDATE gateways SET failures = failures + CAST(i.value ->> 1 AS BIGINT)
             FROM json_each($1) AS i WHERE gateways.id = i.value ->> 0",
        ))
        .bind(rows(&counts.into_iter().collect::<Vec<_>>())?)
        .execute(&mut *self)
        .await?;
        Ok(())
    }
}
