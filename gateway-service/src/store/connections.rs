//! SQL of connections and of the instances of this service that serve them.
//!
//! Who writes connections of a gateway locks the gateway first, and the outbox last; who notes how far they are locks
//! no gateway and waits for nobody. An instance that is
//! declared dead has a beat below zero until all its connections are gone: it neither beats nor admits.

use std::collections::{BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use service_kit::{
    Result,
    db::{PostgresPool, SqlitePool},
    outbox::Append as _,
};
use sqlx::{PgConnection, QueryBuilder, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    ConnectionStore, SqlStore,
    dialect::{Dialect as _, rows},
    events::LOCK,
    push_in,
};
use crate::domain::{
    connections::{Admission, Connection, Note},
    web,
};

/// How many connections of a dead instance are forgotten in one transaction.
const CHUNK: i64 = 100;

/// A connection that is gone.
#[derive(sqlx::FromRow)]
struct GoneRow {
    id: String,
    gateway_id: String,
    organization_id: String,
    instance_id: String,
}

impl GoneRow {
    fn event(&self, live: i64, at: i64) -> (String, Vec<u8>) {
        web::disconnected(web::Link {
            connection_id: &self.id,
            organization_id: &self.organization_id,
            gateway_id: &self.gateway_id,
            instance_id: &self.instance_id,
            live,
            at,
        })
    }
}

/// What several transactions do.
#[async_trait]
pub(super) trait Steps {
    /// How many connections a gateway has.
    async fn live(&mut self, gateway_id: &str) -> Result<i64>;
    /// Forgets connections of gateways that are locked, and says so. How many there were.
    async fn forget(&mut self, ids: &[String], now: i64) -> Result<usize>;
}

#[trait_gen(Connection_ -> SqliteConnection, PgConnection)]
#[async_trait]
impl Steps for Connection_ {
    async fn live(&mut self, gateway_id: &str) -> Result<i64> {
        let live = sqlx::query_scalar("SELECT COUNT(*) FROM connections WHERE gateway_id = $1")
            .bind(gateway_id)
            .fetch_one(&mut *self)
            .await?;
        Ok(live)
    }

    async fn forget(&mut self, ids: &[String], now: i64) -> Result<usize> {
        let mut query = QueryBuilder::new("DELETE FROM connections WHERE ");
        push_in!(query, "id", ids);
        query.push(" RETURNING id, gateway_id, organization_id, instance_id");
        let gone: Vec<GoneRow> = query.build_query_as().fetch_all(&mut *self).await?;
        let mut live: HashMap<&str, i64> = HashMap::new();
        for row in &gone {
            if !live.contains_key(row.gateway_id.as_str()) {
                live.insert(&row.gateway_id, self.live(&row.gateway_id).await?);
            }
        }
        let seen: Vec<_> = gone.iter().map(|row| (&row.gateway_id, &row.instance_id)).collect();
        sqlx::query(Self::sql(
            "UPDATE gateway_instances SET last_seen_at = $2 FROM json_each($1) AS i
             WHERE gateway_instances.gateway_id = i.value ->> 0
               AND gateway_instances.instance_id = i.value ->> 1 AND gateway_instances.last_seen_at < $2",
        ))
        .bind(rows(&seen)?)
        .bind(now)
        .execute(&mut *self)
        .await?;
        for row in &gone {
            let (id, event) = row.event(live[row.gateway_id.as_str()], now);
            self.append(web::TOPIC, &id, event).await?;
        }
        Ok(gone.len())
    }
}

#[trait_gen(Pool -> SqlitePool, PostgresPool)]
#[async_trait]
impl ConnectionStore for SqlStore<Pool> {
    async fn enter(&self, node_id: &str, now: i64) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("INSERT INTO link_nodes (id, beat, started_at) VALUES ($1, 0, $2)")
            .bind(node_id)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn beat(&self, node_id: &str) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let beaten = sqlx::query("UPDATE link_nodes SET beat = beat + 1 WHERE id = $1 AND beat >= 0")
            .bind(node_id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(beaten.rows_affected() > 0)
    }

    async fn nodes(&self) -> Result<Vec<(String, i64)>> {
        Ok(sqlx::query_as("SELECT id, beat FROM link_nodes").fetch_all(self.pool.read()).await?)
    }

    async fn declare_dead(&self, node_id: &str, beat: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let declared = sqlx::query("UPDATE link_nodes SET beat = -1 WHERE id = $1 AND beat = $2")
            .bind(node_id)
            .bind(beat)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(declared.rows_affected() > 0)
    }

    async fn bury(&self, node_id: &str, now: i64) -> Result<usize> {
        let mut tx = self.pool.begin().await?;
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT gateway_id, id FROM connections WHERE node_id = $1 ORDER BY gateway_id, id LIMIT $2",
        )
        .bind(node_id)
        .bind(CHUNK)
        .fetch_all(&mut *tx)
        .await?;
        if rows.is_empty() {
            sqlx::query("DELETE FROM link_nodes WHERE id = $1").bind(node_id).execute(&mut *tx).await?;
            tx.commit().await?;
            return Ok(0);
        }
        let (gateways, ids): (BTreeSet<String>, Vec<String>) = rows.into_iter().unzip();
        for gateway in &gateways {
            sqlx::query(LOCK).bind(gateway).execute(&mut *tx).await?;
        }
        tx.forget(&ids, now).await?;
        tx.commit().await?;
        Ok(ids.len())
    }

    async fn connect(&self, connection: &Connection, most: u32) -> Result<Admission> {
        let mut tx = self.pool.begin().await?;
        if sqlx::query(LOCK).bind(&connection.gateway_id).execute(&mut *tx).await?.rows_affected() == 0 {
            return Ok(Admission::NoGateway);
        }
        let node: Option<String> =
            sqlx::query_scalar("SELECT id FROM link_nodes WHERE id = $1 AND beat >= 0")
                .bind(&connection.node_id)
                .fetch_optional(&mut *tx)
                .await?;
        if node.is_none() {
            return Ok(Admission::NoNode);
        }
        let (mut epoch, mut replaced) = (0, false);
        if !connection.instance_id.is_empty() {
            epoch = sqlx::query_scalar(
                "INSERT INTO gateway_instances (gateway_id, instance_id, epoch, version, applied_revision,
                   first_seen_at, last_seen_at)
                 VALUES ($1, $2, 1, $3, 0, $4, $4)
                 ON CONFLICT (gateway_id, instance_id) DO UPDATE SET epoch = gateway_instances.epoch + 1,
                   version = excluded.version, last_seen_at = excluded.last_seen_at
                 RETURNING epoch",
            )
            .bind(&connection.gateway_id)
            .bind(&connection.instance_id)
            .bind(&connection.version)
            .bind(connection.connected_at)
            .fetch_one(&mut *tx)
            .await?;
            // The newest connection of an instance is the one that counts.
            let older: Vec<String> =
                sqlx::query_scalar("SELECT id FROM connections WHERE gateway_id = $1 AND instance_id = $2")
                    .bind(&connection.gateway_id)
                    .bind(&connection.instance_id)
                    .fetch_all(&mut *tx)
                    .await?;
            replaced = !older.is_empty() && tx.forget(&older, connection.connected_at).await? > 0;
        }
        sqlx::query(
            "INSERT INTO connections (id, node_id, gateway_id, organization_id, token_id, instance_id,
               transport, version, remote_address, connected_at, heard_at, sent_revision, applied_revision)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(&connection.id)
        .bind(&connection.node_id)
        .bind(&connection.gateway_id)
        .bind(&connection.organization_id)
        .bind(&connection.token_id)
        .bind(&connection.instance_id)
        .bind(&connection.transport)
        .bind(&connection.version)
        .bind(&connection.remote_address)
        .bind(connection.connected_at)
        .bind(connection.heard_at)
        .bind(connection.sent_revision)
        .bind(connection.applied_revision)
        .execute(&mut *tx)
        .await?;
        let head: i64 = sqlx::query_scalar("SELECT head FROM gateways WHERE id = $1")
            .bind(&connection.gateway_id)
            .fetch_one(&mut *tx)
            .await?;
        let (id, event) = web::connected(web::Link {
            connection_id: &connection.id,
            organization_id: &connection.organization_id,
            gateway_id: &connection.gateway_id,
            instance_id: &connection.instance_id,
            live: tx.live(&connection.gateway_id).await?,
            at: connection.connected_at,
        });
        tx.append(web::TOPIC, &id, event).await?;
        // The topic's row is locked: connections of other gateways of the organization are counted too.
        let there: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM connections WHERE organization_id = $1")
            .bind(&connection.organization_id)
            .fetch_one(&mut *tx)
            .await?;
        if there > i64::from(most) {
            return Ok(Admission::Full);
        }
        tx.commit().await?;
        Ok(Admission::Admitted { epoch, head, replaced })
    }

    async fn disconnect(&self, connection_id: &str, gateway_id: &str, now: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(LOCK).bind(gateway_id).execute(&mut *tx).await?;
        let gone = tx.forget(&[connection_id.to_owned()], now).await?;
        tx.commit().await?;
        Ok(gone > 0)
    }

    async fn connected(&self, gateway_ids: &[String]) -> Result<Vec<String>> {
        if gateway_ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::new("SELECT DISTINCT gateway_id FROM connections WHERE ");
        push_in!(query, "gateway_id", gateway_ids);
        Ok(query.build_query_scalar().fetch_all(self.pool.read()).await?)
    }

    async fn heard_at(&self, connection_ids: &[String]) -> Result<Vec<(String, i64)>> {
        if connection_ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut query = QueryBuilder::new("SELECT id, heard_at FROM connections WHERE ");
        push_in!(query, "id", connection_ids);
        Ok(query.build_query_as().fetch_all(self.pool.read()).await?)
    }

    async fn note(&self, notes: &[Note]) -> Result<Vec<String>> {
        if notes.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = notes.iter().map(|note| (&note.connection_id,)).collect();
        let mut tx = self.pool.begin().await?;
        // No gateway is locked here: who waited for others might hold up those who wait for him.
        let free: HashSet<String> = sqlx::query_scalar(Pool::sql(
            "SELECT id FROM connections WHERE id IN (SELECT i.value ->> 0 FROM json_each($1) AS i)
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
        ))
        .bind(rows(&ids)?)
        .fetch_all(&mut *tx)
        .await?
        .into_iter()
        .collect();
        let news: Vec<_> = notes
            .iter()
            .filter(|note| free.contains(&note.connection_id))
            .map(|note| (&note.connection_id, note.heard_at, note.sent_revision, note.applied_revision))
            .collect();
        sqlx::query(Pool::sql(
            "UPDATE connections SET
               heard_at = CASE WHEN CAST(i.value ->> 1 AS BIGINT) > connections.heard_at
                               THEN CAST(i.value ->> 1 AS BIGINT) ELSE connections.heard_at END,
               sent_revision = CASE WHEN CAST(i.value ->> 2 AS BIGINT) > connections.sent_revision
                                    THEN CAST(i.value ->> 2 AS BIGINT) ELSE connections.sent_revision END,
               applied_revision = CASE WHEN CAST(i.value ->> 3 AS BIGINT) > connections.applied_revision
                                       THEN CAST(i.value ->> 3 AS BIGINT) ELSE connections.applied_revision END
             FROM json_each($1) AS i WHERE connections.id = i.value ->> 0",
        ))
        .bind(rows(&news)?)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(free.into_iter().collect())
    }
}
