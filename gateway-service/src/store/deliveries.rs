//! SQL that takes what is to be sent out of the logs, within a transaction that holds their locks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use service_kit::{Result, outbox::Append as _};
use sqlx::{PgConnection, SqliteConnection};
use trait_gen::trait_gen;

use super::{
    appends::AppendAll as _,
    dialect::{Dialect as _, rows},
    failures::Fail as _,
};
use crate::domain::{
    acks::{REPORTS, delivered_report},
    failures::{Failure, UNACKNOWLEDGED},
    log::{Brief, Delivery, LogEvent, Pick, Stamped, Taken, needless, next_performed},
};

/// How many bytes of payloads one transaction takes out of all logs, but for one event more.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// The open events after a revision: of each key the newest of each type, and what is about the same deployment as
/// the newest. Older ones are needless whatever their type is. Of each log the first come, as far as its bytes go; of
/// all logs together the first of each come first.
const AFTER: &str = "SELECT o.at, e.gateway_id, e.revision, e.type, e.payload_json, e.artifact_id, e.deployment_id,
       e.event_key, e.user_id, e.sendings, e.performed_at
     FROM (
       SELECT q.*, SUM(q.size) OVER (ORDER BY q.place, q.at) - q.size AS ahead_of_all FROM (
        SELECT p.*, ROW_NUMBER() OVER (PARTITION BY p.at ORDER BY p.revision) AS place,
          SUM(p.size) OVER (PARTITION BY p.at ORDER BY p.revision) - p.size AS ahead FROM (
         SELECT CAST(i.value ->> 0 AS BIGINT) AS at, CAST(i.value ->> 3 AS BIGINT) AS most,
           CAST(i.value ->> 4 AS BIGINT) AS bytes, e.gateway_id, e.revision, e.event_key, e.deployment_id,
           OCTET_LENGTH(e.payload_json) AS size,
           MAX(e.revision) OVER (PARTITION BY i.value ->> 0, e.event_key, e.type) AS newest,
           FIRST_VALUE(e.deployment_id) OVER (PARTITION BY i.value ->> 0, e.event_key ORDER BY e.revision DESC)
             AS newest_deployment
         FROM json_each($1) AS i JOIN gateway_events e
           ON e.gateway_id = i.value ->> 1 AND e.revision > CAST(i.value ->> 2 AS BIGINT)
         WHERE e.state IN ('pending', 'delivered')
        ) p
        WHERE p.event_key = '' OR p.revision = p.newest
          OR (p.deployment_id <> '' AND p.deployment_id = p.newest_deployment)
       ) q WHERE q.place <= q.most AND q.ahead < q.bytes
     ) o JOIN gateway_events e ON e.gateway_id = o.gateway_id AND e.revision = o.revision
     WHERE o.ahead_of_all < $2 ORDER BY o.at, e.revision";

/// Events that were sent and are still open, and what of their keys was sent after them: were they performed
/// alone, they would undo it.
const AGAIN: &str = "SELECT DISTINCT CAST(i.value ->> 0 AS BIGINT) AS at, e.gateway_id, e.revision, e.type,
       e.payload_json, e.artifact_id, e.deployment_id, e.event_key, e.user_id, e.sendings, e.performed_at
     FROM json_each($1) AS i
     JOIN gateway_events d ON d.gateway_id = i.value ->> 1 AND d.revision = CAST(i.value ->> 2 AS BIGINT)
     JOIN gateway_events e ON e.gateway_id = d.gateway_id AND e.revision >= d.revision
       AND (e.revision = d.revision OR (e.event_key = d.event_key AND e.event_key <> ''))
     WHERE d.state = 'delivered' AND e.state = 'delivered' ORDER BY at, e.revision";

/// Open events of keys before a revision. The key is not looked for in its index, which has the whole history: few
/// events of a gateway are open.
const OLDER: &str = "SELECT CAST(i.value ->> 0 AS BIGINT), e.revision, e.type
     FROM json_each($1) AS i
     JOIN gateway_events e ON e.gateway_id = i.value ->> 1 AND e.event_key || '' = i.value ->> 2
       AND e.revision <= CAST(i.value ->> 3 AS BIGINT)
     WHERE e.state IN ('pending', 'delivered') ORDER BY e.revision DESC";

#[derive(sqlx::FromRow)]
struct OpenRow {
    at: i64,
    gateway_id: String,
    revision: i64,
    r#type: String,
    payload_json: String,
    artifact_id: String,
    deployment_id: String,
    event_key: String,
    user_id: String,
    sendings: i64,
    performed_at: i64,
}

impl OpenRow {
    fn stamped(self, performed_at: i64) -> Stamped {
        let event = LogEvent {
            revision: self.revision,
            event_type: self.r#type,
            payload_json: self.payload_json,
            artifact_id: self.artifact_id,
            deployment_id: self.deployment_id,
            event_key: self.event_key,
            user_id: self.user_id,
        };
        Stamped { event, performed_at }
    }

    fn size(&self) -> usize {
        self.payload_json.len()
    }

    fn late(&self) -> Failure {
        Failure {
            gateway_id: self.gateway_id.clone(),
            instance_id: String::new(),
            revision: self.revision,
            event_type: self.r#type.clone(),
            artifact_id: self.artifact_id.clone(),
            deployment_id: self.deployment_id.clone(),
            reason: UNACKNOWLEDGED.to_owned(),
            detail: String::new(),
        }
    }
}

/// Takes what is to be sent within a transaction.
#[async_trait]
pub(super) trait Deliver {
    /// For each delivery what is to be sent, noted as sent now; reports first sendings.
    async fn deliver_all(&mut self, deliveries: &[Delivery], now: i64) -> Result<Vec<Taken>>;
    /// Marks what the events of these keys up to these revisions make needless. Returns it.
    async fn supersede(&mut self, keys: &BTreeMap<(&str, &str), i64>) -> Result<HashSet<(String, i64)>>;
    /// Notes that these events are now sent, with the times and how often.
    async fn note_sent(&mut self, sent: &BTreeMap<(String, i64), (i64, i64)>, now: i64) -> Result<()>;
}

#[trait_gen(Connection -> SqliteConnection, PgConnection)]
#[async_trait]
impl Deliver for Connection {
    async fn deliver_all(&mut self, deliveries: &[Delivery], now: i64) -> Result<Vec<Taken>> {
        let (mut after, mut again) = (Vec::new(), Vec::new());
        for (at, delivery) in deliveries.iter().enumerate() {
            match &delivery.pick {
                Pick::After { revision, most, bytes } => {
                    after.push((at, &delivery.gateway_id, revision, most, bytes));
                }
                Pick::Again(revisions) => {
                    again.extend(revisions.iter().map(|revision| (at, &delivery.gateway_id, revision)));
                }
            }
        }
        let mut open: Vec<OpenRow> = Vec::new();
        if !after.is_empty() {
            let most = i64::try_from(MOST_BYTES).unwrap_or(i64::MAX);
            let query = sqlx::query_as(Self::sql(AFTER)).bind(rows(&after)?).bind(most);
            open = query.fetch_all(&mut *self).await?;
        }
        let is_cut = open.iter().map(OpenRow::size).sum::<usize>() >= MOST_BYTES;
        if !again.is_empty() {
            let again: Vec<OpenRow> =
                sqlx::query_as(Self::sql(AGAIN)).bind(rows(&again)?).fetch_all(&mut *self).await?;
            open.extend(again);
        }
        let mut taken: Vec<Taken> = deliveries.iter().map(|_| Taken::default()).collect();
        if open.is_empty() {
            return Ok(taken);
        }
        let mut keys: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for row in open.iter().filter(|row| !row.event_key.is_empty()) {
            let newest = keys.entry((&row.gateway_id, &row.event_key)).or_default();
            *newest = row.revision.max(*newest);
        }
        let needless = self.supersede(&keys).await?;
        let about: BTreeSet<_> = open.iter().map(|row| (&*row.gateway_id, &*row.artifact_id)).collect();
        let mut newest = self.performed_at(&about).await?;
        let mut renewed = HashMap::new();
        let mut sent: BTreeMap<(String, i64), (i64, i64)> = BTreeMap::new();
        let (mut reports, mut failures) = (Vec::new(), Vec::new());
        let mut counts: Vec<(usize, usize)> = vec![(0, 0); deliveries.len()];
        for row in open {
            let at = usize::try_from(row.at).unwrap_or_default();
            let (Some(delivery), Some(taken)) = (deliveries.get(at), taken.get_mut(at)) else { continue };
            taken.last = row.revision;
            counts[at] = (counts[at].0 + 1, counts[at].1 + row.size());
            let place = (row.gateway_id.clone(), row.revision);
            if needless.contains(&place) {
                continue;
            }
            let before = sent.get(&place).map_or(0, |sent| sent.1);
            let about = (row.gateway_id.clone(), row.artifact_id.clone());
            let last = newest.get(&about).copied();
            // The time that it got when it was appended, unless it has been used, or another is newer.
            let mut performed_at = row.performed_at;
            if row.sendings + before > 0 || last.is_some_and(|last| last != performed_at) {
                performed_at = next_performed(last, now);
                newest.insert(about.clone(), performed_at);
                renewed.insert(about, performed_at);
            }
            sent.insert(place, (performed_at, before + 1));
            if row.sendings + before == 0 {
                let (gateway, revision) = (&row.gateway_id, row.revision);
                let report = delivered_report(gateway, &row.r#type, &row.deployment_id, now);
                reports.extend(report.map(|report| (format!("{gateway}:{revision}:delivered"), report)));
            }
            if matches!(delivery.pick, Pick::Again(_)) {
                failures.push(row.late());
            }
            taken.events.push(row.stamped(performed_at));
        }
        for ((taken, delivery), (count, size)) in taken.iter_mut().zip(deliveries).zip(counts) {
            taken.more = matches!(delivery.pick, Pick::After { most, bytes, .. }
                if count >= most || size >= bytes || is_cut);
        }
        self.note_sent(&sent, now).await?;
        self.keep_performed_at(&renewed).await?;
        self.fail_all(&failures, now).await?;
        self.append_all(REPORTS, reports).await?;
        Ok(taken)
    }

    async fn supersede(&mut self, keys: &BTreeMap<(&str, &str), i64>) -> Result<HashSet<(String, i64)>> {
        let keys: Vec<_> = keys.iter().collect();
        let input: Vec<_> =
            keys.iter().enumerate().map(|(at, ((gateway, key), upto))| (at, gateway, key, upto)).collect();
        let older: Vec<(i64, i64, String)> =
            sqlx::query_as(Self::sql(OLDER)).bind(rows(&input)?).fetch_all(&mut *self).await?;
        let mut open: BTreeMap<usize, Vec<Brief>> = BTreeMap::new();
        for (at, revision, event_type) in older {
            let brief = Brief { revision, event_type };
            open.entry(usize::try_from(at).unwrap_or_default()).or_default().push(brief);
        }
        let mut superseded = HashSet::new();
        for (at, newest_first) in open.iter().filter(|(_, briefs)| briefs.len() > 1) {
            let gateway = keys.get(*at).map_or("", |((gateway, _), _)| *gateway);
            superseded
                .extend(needless(newest_first).into_iter().map(|revision| (gateway.to_owned(), revision)));
        }
        if !superseded.is_empty() {
            sqlx::query(Self::sql(
                "UPDATE gateway_events SET state = 'superseded' FROM json_each($1) AS i
                 WHERE gateway_events.gateway_id = i.value ->> 0
                   AND gateway_events.revision = CAST(i.value ->> 1 AS BIGINT)
                   AND gateway_events.state IN ('pending', 'delivered')",
            ))
            .bind(rows(&superseded.iter().collect::<Vec<_>>())?)
            .execute(&mut *self)
            .await?;
        }
        Ok(superseded)
    }

    async fn note_sent(&mut self, sent: &BTreeMap<(String, i64), (i64, i64)>, now: i64) -> Result<()> {
        let input: Vec<_> =
            sent.iter().map(|((gateway, rev), (at, times))| (gateway, rev, at, times)).collect();
        sqlx::query(Self::sql(
            "UPDATE gateway_events SET state = 'delivered', performed_at = CAST(i.value ->> 2 AS BIGINT),
               sendings = sendings + CAST(i.value ->> 3 AS BIGINT),
               delivered_at = COALESCE(delivered_at, $2)
             FROM json_each($1) AS i
             WHERE gateway_events.gateway_id = i.value ->> 0
               AND gateway_events.revision = CAST(i.value ->> 1 AS BIGINT)",
        ))
        .bind(rows(&input)?)
        .bind(now)
        .execute(&mut *self)
        .await?;
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for ((gateway, _), (_, times)) in sent {
            *counts.entry(gateway).or_default() += times;
        }
        sqlx::query(Self::sql(
            "UPDATE gateways SET events_sent = events_sent + CAST(i.value ->> 1 AS BIGINT)
             FROM json_each($1) AS i WHERE gateways.id = i.value ->> 0",
        ))
        .bind(rows(&counts.into_iter().collect::<Vec<_>>())?)
        .execute(&mut *self)
        .await?;
        Ok(())
    }
}
