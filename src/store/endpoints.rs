//! Push endpoints in the store: which ones a feed has, the last item of each, its health and how far it is trusted. The
//! push ledger decides about trust; this module stores its decisions.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};

use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, journal};
use crate::feed::{Health, PushTrust, Transport, truncate_text};

/// An endpoint as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEndpoint {
    pub transport: Transport,
    /// How far the endpoint is trusted; [`PushTrust::None`] for a poll endpoint.
    pub push: PushTrust,
    /// The last item that the endpoint delivered, written or not.
    pub last: Option<LastItem>,
    /// The id of the last event.
    pub event_id: Option<String>,
    /// When the last item was committed.
    pub item_at: Option<Millis>,
}

/// The last item that an endpoint delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastItem {
    /// `modified` as published.
    pub modified: String,
    pub id: String,
}

/// A change of how far an endpoint is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTrustUpdate {
    /// How far the endpoint is trusted now.
    pub push: PushTrust,
    /// How far the feed's push is trusted: as far as its best endpoint.
    pub feed_push: PushTrust,
    /// Why the trust changed.
    pub why: String,
}

impl Store {
    /// Stores that a feed has exactly these push endpoints, and returns all its endpoints.
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

    /// A feed's endpoints as stored.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn endpoints(&self, feed: i64) -> Result<Vec<StoredEndpoint>, StoreError> {
        self.submit(JobClass::default(), move |tx| Ok(read(tx, feed)?)).await
    }

    /// Records a push endpoint's health; a change of the health is an event.
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
            let stored: Option<(String, Option<String>)> = tx
                .db
                .prepare_cached("SELECT health, reason FROM endpoint WHERE feed = ?1 AND transport = ?2")?
                .query_row(params![feed, transport.code()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((old_health, old_reason)) = stored else { return Ok(()) };
            if old_health == health.as_str() && old_reason == reason {
                return Ok(());
            }
            let changed = old_health != health.as_str();
            tx.db
                .prepare_cached(
                    "UPDATE endpoint SET health = ?3, reason = ?4, since = iif(?5, ?6, since)
                     WHERE feed = ?1 AND transport = ?2",
                )?
                .execute(params![feed, transport.code(), health.as_str(), reason, changed, at])?;
            if changed {
                let why = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
                journal::record_event(
                    tx,
                    Some(feed),
                    at,
                    "health",
                    &format!("{transport}: {old_health} → {health}{why}"),
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Records how far a push endpoint is trusted from now on.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_push_trust(
        &self,
        feed: i64,
        at: Millis,
        transport: Transport,
        update: PushTrustUpdate,
    ) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let proven = update.push == PushTrust::Proven;
            tx
                .db
                .prepare_cached(
                    "UPDATE endpoint SET push = ?3, proven_at = iif(?4, ?5, proven_at) WHERE feed = ?1 AND transport = ?2",
                )?
                .execute(params![feed, transport.code(), update.push.as_str(), proven, at])?;
            tx
                .db
                .prepare_cached("UPDATE feed SET push = ?2 WHERE id = ?1")?
                .execute(params![feed, update.feed_push.as_str()])?;
            let detail = format!("{transport}: {}", update.why);
            Ok(journal::record_event(tx, Some(feed), at, "push", &detail)?)
        })
        .await
    }

    /// Adds to the counts of items that a push endpoint missed, and of those that came late after all.
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
