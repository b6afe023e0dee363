//! Push endpoints as the store knows them: which a feed has, where each stands, how it is doing and how far it is believed.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};

use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, journal};
use crate::feed::{Health, PushTrust, Transport, truncate_text};

/// An endpoint as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEndpoint {
    /// How it delivers.
    pub transport: Transport,
    /// How far it is believed; `None` of a poll endpoint.
    pub push: PushTrust,
    /// The last item that came from it, taken or not.
    pub last: Option<LastItem>,
    /// The last event's own id.
    pub event_id: Option<String>,
    /// When that item was committed.
    pub item_at: Option<Millis>,
}

/// Where an endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastItem {
    /// The item's `modified` as published.
    pub modified: String,
    /// Its id.
    pub id: String,
}

/// What changes of an endpoint's standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTrustUpdate {
    /// How far it is believed now.
    pub push: PushTrust,
    /// How far the feed's push is believed: as far as its best endpoint.
    pub feed_push: PushTrust,
    /// Why.
    pub why: String,
}

impl Store {
    /// Makes the file know that a feed has exactly these push endpoints, and gives all its endpoints as they stand.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_push_endpoints(
        &self,
        feed: i64,
        at: Millis,
        transports: Vec<Transport>,
    ) -> Result<Vec<StoredEndpoint>, StoreError> {
        self.submit(JobClass::default(), move |tx| {
            for transport in Transport::ALL.iter().copied().filter(|transport| *transport != Transport::Poll) {
                let sql = if transports.contains(&transport) {
                    "INSERT INTO endpoint (feed, transport, push, since) VALUES (?1, ?2, 'unproven', ?3)
                     ON CONFLICT DO UPDATE SET push = iif(push = 'none', 'unproven', push)"
                } else {
                    "DELETE FROM endpoint WHERE feed = ?1 AND transport = ?2 AND ?3 IS NOT NULL"
                };
                tx.db.prepare_cached(sql)?.execute(params![feed, transport.code(), at])?;
            }
            let endpoints = read(tx, feed)?;
            let push = best(&endpoints);
            tx.db.execute("UPDATE feed SET push = ?2 WHERE id = ?1", params![feed, push.as_str()])?;
            Ok(endpoints)
        })
        .await
    }

    /// A feed's endpoints as they stand.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn endpoints(&self, feed: i64) -> Result<Vec<StoredEndpoint>, StoreError> {
        self.submit(JobClass::default(), move |tx| Ok(read(tx, feed)?)).await
    }

    /// Notes how a push endpoint is doing; a change of its health is an event.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn record_endpoint_health(
        &self,
        feed: i64,
        at: Millis,
        transport: Transport,
        health: Health,
        reason: Option<String>,
    ) -> Result<(), StoreError> {
        let reason = reason.map(truncate_text);
        self.submit(JobClass::default(), move |tx| {
            let known: Option<(String, Option<String>)> = tx
                .db
                .prepare_cached("SELECT health, reason FROM endpoint WHERE feed = ?1 AND transport = ?2")?
                .query_row(params![feed, transport.code()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((before, was)) = known else { return Ok(()) };
            if before == health.as_str() && was == reason {
                return Ok(());
            }
            let changed = before != health.as_str();
            tx.db
                .prepare_cached(
                    "UPDATE endpoint SET health = ?3, reason = ?4, since = iif(?5, ?6, since)
                     WHERE feed = ?1 AND transport = ?2",
                )?
                .execute(params![feed, transport.code(), health.as_str(), reason, changed, at])?;
            if changed {
                let why = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
                journal::record_event(tx, Some(feed), at, "health", &format!("{transport}: {before} → {health}{why}"))?;
            }
            Ok(())
        })
        .await
    }

    /// Notes how far a push endpoint is believed from now on.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_push_trust(
        &self,
        feed: i64,
        at: Millis,
        transport: Transport,
        standing: PushTrustUpdate,
    ) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let proven = standing.push == PushTrust::Proven;
            tx
                .db
                .prepare_cached(
                    "UPDATE endpoint SET push = ?3, proven_at = iif(?4, ?5, proven_at) WHERE feed = ?1 AND transport = ?2",
                )?
                .execute(params![feed, transport.code(), standing.push.as_str(), proven, at])?;
            tx
                .db
                .prepare_cached("UPDATE feed SET push = ?2 WHERE id = ?1")?
                .execute(params![feed, standing.feed_push.as_str()])?;
            let detail = format!("{transport}: {}", standing.why);
            Ok(journal::record_event(tx, Some(feed), at, "push", &detail)?)
        })
        .await
    }

    /// Counts what a push endpoint has missed, and what of it came late after all.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn count_missed(
        &self,
        feed: i64,
        transport: Transport,
        missed: u64,
        late: u64,
    ) -> Result<(), StoreError> {
        let [missed, late] = [missed, late].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        self.submit(JobClass::default(), move |tx| {
            tx.db
                .prepare_cached(
                    "UPDATE endpoint SET missed = missed + ?3, late = late + ?4 WHERE feed = ?1 AND transport = ?2",
                )?
                .execute(params![feed, transport.code(), missed, late])?;
            Ok(())
        })
        .await
    }
}

fn best(endpoints: &[StoredEndpoint]) -> PushTrust {
    let has = |push: &PushTrust| endpoints.iter().any(|endpoint| endpoint.push == *push);
    [PushTrust::Proven, PushTrust::Unproven, PushTrust::Demoted].into_iter().find(has).unwrap_or(PushTrust::None)
}

fn read(tx: &WriteTx<'_>, feed: i64) -> rusqlite::Result<Vec<StoredEndpoint>> {
    let mut select = tx.db.prepare_cached(
        "SELECT transport, push, modified, id, event_id, item_at FROM endpoint WHERE feed = ?1 ORDER BY transport",
    )?;
    let rows = select.query_map([feed], |row| {
        Ok(StoredEndpoint {
            transport: Transport::from_code(row.get(0)?).unwrap_or(Transport::Poll),
            push: PushTrust::from_word(row.get_ref(1)?.as_str()?).unwrap_or(PushTrust::None),
            last: last_item(row)?,
            event_id: row.get(4)?,
            item_at: row.get(5)?,
        })
    })?;
    rows.collect()
}

fn last_item(row: &Row<'_>) -> rusqlite::Result<Option<LastItem>> {
    let modified = match row.get_ref(2)? {
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        _ => return Ok(None),
    };
    let id: Option<String> = row.get(3)?;
    Ok(id.map(|id| LastItem { modified, id }))
}
