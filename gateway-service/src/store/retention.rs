//! SQL that lets go of what is done and old.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
};
use sqlx::QueryBuilder;
use trait_gen::trait_gen;

use super::{
    RetentionStore, SqlStore,
    appends::AppendAll as _,
    dialect::{Dialect as _, rows},
    keys::push_replaces,
    push_in,
};
use crate::events::{self, Effect};

/// Appends the condition that nobody needs the done event `e`. What no newer one takes the place of says what the
/// gateway is to have, and what is done of it what it has: that stays. When it is nothing any more, that needs no
/// saying, once no older event of the key says otherwise and nobody who is here has yet to hear of it. What is
/// undeployed is remembered: it is still wanted that it does not run.
macro_rules! push_needless {
    ($query:expr) => {{
        $query.push("(e.event_key = '' OR EXISTS (SELECT 1 FROM gateway_events n WHERE ");
        push_replaces!($query);
        $query.push(" AND (e.state <> 'acked' OR n.state = 'acked')) OR (e.state = 'acked' AND ");
        push_in!($query, "e.type", events::with_effect(&[Effect::Forgets, Effect::Removes]));
        $query.push(
            " AND NOT EXISTS (SELECT 1 FROM gateway_events o WHERE o.gateway_id = e.gateway_id
                AND o.event_key = e.event_key AND o.revision < e.revision)
              AND NOT EXISTS (SELECT 1 FROM connections c WHERE c.gateway_id = e.gateway_id
                AND c.applied_revision > 0 AND c.applied_revision < e.revision)))",
        );
    }};
}

/// Instances that were not seen for long, and are not here.
const GONE: &str = "SELECT i.gateway_id, i.instance_id FROM gateway_instances i WHERE i.last_seen_at < $1
       AND NOT EXISTS (SELECT 1 FROM connections c
         WHERE c.gateway_id = i.gateway_id AND c.instance_id = i.instance_id)
     LIMIT $2";

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl RetentionStore for SqlStore<Pool> {
    async fn prune_events(&self, before: i64, most: i64) -> Result<u64> {
        let mut query = QueryBuilder::new(
            "SELECT e.gateway_id, e.revision FROM gateway_events e
             WHERE e.state IN ('acked', 'failed', 'superseded') AND e.created_at < ",
        );
        query.push_bind(before).push(" AND ");
        push_needless!(query);
        query.push(" LIMIT ").push_bind(most);
        let old: Vec<(String, i64)> = query.build_query_as().fetch_all(self.pool.read()).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let gateways: BTreeSet<&str> = old.iter().map(|(gateway, _)| gateway.as_str()).collect();
        let mut tx = self.pool.begin().await?;
        tx.lock(gateways).await?;
        // A late success may have come meanwhile; it makes the event no younger.
        let gone: Vec<(String, i64)> = sqlx::query_as(Pool::sql(
            "DELETE FROM gateway_events WHERE (gateway_id, revision) IN
               (SELECT i.value ->> 0, CAST(i.value ->> 1 AS BIGINT) FROM json_each($1) AS i)
             RETURNING gateway_id, revision",
        ))
        .bind(rows(&old)?)
        .fetch_all(&mut *tx)
        .await?;
        let mut floors: BTreeMap<&str, i64> = BTreeMap::new();
        for (gateway, revision) in &gone {
            let floor = floors.entry(gateway).or_default();
            *floor = (*floor).max(*revision);
        }
        sqlx::query(Pool::sql(
            "UPDATE gateways SET floor = CAST(i.value ->> 1 AS BIGINT)
             FROM json_each($1) AS i
             WHERE gateways.id = i.value ->> 0 AND gateways.floor < CAST(i.value ->> 1 AS BIGINT)",
        ))
        .bind(rows(&floors.into_iter().collect::<Vec<_>>())?)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(u64::try_from(gone.len()).unwrap_or(0))
    }

    async fn prune_instances(&self, before: i64, most: i64) -> Result<u64> {
        let old: Vec<(String, String)> =
            sqlx::query_as(GONE).bind(before).bind(most).fetch_all(self.pool.read()).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let gateways: BTreeSet<&str> = old.iter().map(|(gateway, _)| gateway.as_str()).collect();
        let mut tx = self.pool.begin().await?;
        // Who connects waits for it: an instance that has come meanwhile stays.
        tx.lock(gateways).await?;
        let gone: Vec<(String, String)> = sqlx::query_as(Pool::sql(
            "DELETE FROM gateway_instances WHERE last_seen_at < $2
               AND (gateway_id, instance_id) IN (SELECT i.value ->> 0, i.value ->> 1 FROM json_each($1) AS i)
               AND NOT EXISTS (SELECT 1 FROM connections c
                 WHERE c.gateway_id = gateway_instances.gateway_id
                   AND c.instance_id = gateway_instances.instance_id)
             RETURNING gateway_id, instance_id",
        ))
        .bind(rows(&old)?)
        .bind(before)
        .fetch_all(&mut *tx)
        .await?;
        sqlx::query(Pool::sql(
            "DELETE FROM gateway_reported
             WHERE (gateway_id, instance_id) IN (SELECT i.value ->> 0, i.value ->> 1 FROM json_each($1) AS i)",
        ))
        .bind(rows(&gone)?)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(u64::try_from(gone.len()).unwrap_or(0))
    }

    async fn prune_failures(&self, before: i64, most: i64) -> Result<u64> {
        let mut tx = self.pool.begin().await?;
        let gone = sqlx::query(
            "DELETE FROM failed_deliveries WHERE id IN
               (SELECT id FROM failed_deliveries WHERE failed_at < $1 LIMIT $2)",
        )
        .bind(before)
        .bind(most)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}
