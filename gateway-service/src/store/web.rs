//! SQL of what the web is told, within the transaction that it tells of.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use service_kit::{Result, outbox::Append as _};
use sqlx::{PgConnection, QueryBuilder, SqliteConnection};
use trait_gen::trait_gen;

use super::push_in;
use crate::domain::web::{Deployment, TOPIC, deployment_state};

/// Tells the web within a transaction.
#[async_trait]
pub(super) trait Tell {
    /// What became of deployments. The last that a transaction does: the topic stays locked.
    async fn tell_states(&mut self, states: &[Deployment], now: i64) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Tell for Connection {
    async fn tell_states(&mut self, states: &[Deployment], now: i64) -> Result<()> {
        let gateways: BTreeSet<&String> = states.iter().map(|state| &state.gateway_id).collect();
        if gateways.is_empty() {
            return Ok(());
        }
        let mut query = QueryBuilder::new("SELECT id, organization_id FROM gateways WHERE ");
        push_in!(query, "id", gateways);
        let organizations: Vec<(String, String)> =
            query.build_query_as().persistent(false).fetch_all(&mut *self).await?;
        let organizations: HashMap<String, String> = organizations.into_iter().collect();
        let event =
            |state: &Deployment| Some(deployment_state(organizations.get(&state.gateway_id)?, state, now));
        Ok(self.append_all(TOPIC, states.iter().filter_map(event).collect()).await?)
    }
}
