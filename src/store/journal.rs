//! Writes quarantine, findings, refusals and events. Guarantees: all are bounded per feed, in rows and in bytes. Their
//! age is limited elsewhere (`retention`).

use rusqlite::{Connection, OptionalExtension, params};

use super::apply::SqlModified;
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError};
use crate::feed::{Finding, Item, Transport, UnreadableRecord};

/// Rows and bytes of quarantine kept for a feed; a record that comes when quarantine is full is counted and dropped.
const QUARANTINE_ROWS: i64 = 10_000;
const QUARANTINE_BYTES: i64 = 64 << 20;
/// Refusals kept for a feed, and written for one delivery.
const REFUSALS: i64 = 1_000;
pub(super) const REFUSALS_A_DELIVERY: usize = 100;
/// Events kept for a feed, and for the mirror itself.
const EVENTS: i64 = 1_000;
/// Bytes of text kept in each of both tables, and the SQL expressions for the bytes of a row.
const REFUSAL_BYTES: i64 = 1 << 20;
const EVENT_BYTES: i64 = 1 << 20;
const REFUSAL_SIZE: &str = "octet_length(kind) + octet_length(id) + octet_length(modified) + octet_length(reason)";
const EVENT_SIZE: &str = "octet_length(what) + coalesce(octet_length(detail), 0)";

/// A text, truncated to the size that is stored.
pub(super) fn truncate_text(text: &str) -> String {
    crate::feed::truncate_text(text.to_owned())
}

/// Stores a record whole; an equal record only adds to the count of the stored one.
pub(super) fn quarantine_record(
    tx: &WriteTx<'_>,
    feed: i64,
    transport: Transport,
    at: Millis,
    record: &UnreadableRecord,
) -> rusqlite::Result<()> {
    let digest = tx.keys.record_digest(record.reason, &record.raw);
    let (db, detail) = (tx.db, truncate_text(&record.detail));
    let stored_id = db
        .prepare_cached("SELECT id FROM quarantined WHERE feed = ?1 AND digest = ?2 AND reason = ?3 AND raw = ?4")?
        .query_row(params![feed, digest, record.reason, record.raw], |row| row.get::<_, i64>(0))
        .optional()?;
    let count = i64::try_from(record.count).unwrap_or(i64::MAX);
    if let Some(id) = stored_id {
        db.prepare_cached("UPDATE quarantined SET count = count + ?3, last_at = ?2 WHERE id = ?1")?
            .execute(params![id, at, count])?;
        return Ok(());
    }
    let size = i64::try_from(record.raw.len() + detail.len()).unwrap_or(QUARANTINE_BYTES);
    let counted = db
        .prepare_cached(
            "UPDATE feed SET quarantine_rows = quarantine_rows + 1, quarantine_bytes = quarantine_bytes + ?2
             WHERE id = ?1 AND quarantine_rows < ?3 AND quarantine_bytes + ?2 <= ?4",
        )?
        .execute(params![feed, size, QUARANTINE_ROWS, QUARANTINE_BYTES])?;
    if counted == 0 {
        return count_dropped(tx, feed, at, record.count, Some(record.reason));
    }
    db.prepare_cached(
        "INSERT INTO quarantined (feed, transport, digest, reason, detail, raw, first_at, last_at, count, shown)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9)",
    )?
    .execute(params![
        feed,
        transport.code(),
        digest,
        record.reason,
        detail,
        record.raw,
        at,
        count,
        record.redacted
    ])?;
    Ok(())
}

/// Counts records that quarantine has no room for.
pub(super) fn count_dropped(
    tx: &WriteTx<'_>,
    feed: i64,
    at: Millis,
    count: u64,
    reason: Option<&str>,
) -> rusqlite::Result<()> {
    tx.db
        .prepare_cached("UPDATE feed SET quarantine_dropped = quarantine_dropped + ?2 WHERE id = ?1")?
        .execute(params![feed, i64::try_from(count).unwrap_or(i64::MAX)])?;
    let records = if count == 1 { "1 record was".to_owned() } else { format!("{count} records were") };
    let reason = reason.map_or_else(String::new, |reason| format!(", with reason {reason}"));
    let detail = format!("quarantine is full: {records} dropped{reason}");
    record_finding(tx, feed, at, &Finding { rule: "quarantine-full", detail, count })
}

/// Counts a departure from the standard; the latest sample is kept.
pub(super) fn record_finding(tx: &WriteTx<'_>, feed: i64, at: Millis, finding: &Finding) -> rusqlite::Result<()> {
    tx.db
        .prepare_cached(
            "INSERT INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?5) ON CONFLICT DO UPDATE
             SET count = count + excluded.count, detail = excluded.detail, last_at = excluded.last_at",
        )?
        .execute(params![
            feed,
            finding.rule,
            truncate_text(&finding.detail),
            i64::try_from(finding.count).unwrap_or(i64::MAX),
            at
        ])?;
    Ok(())
}

pub(super) fn insert_refusal(
    tx: &WriteTx<'_>,
    feed: i64,
    transport: Transport,
    at: Millis,
    item: &Item,
    reason: &str,
) -> rusqlite::Result<()> {
    tx.db
        .prepare_cached(
            "INSERT INTO refusal (at, feed, transport, kind, id, modified, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            at,
            feed,
            transport.code(),
            &*item.kind,
            &*item.id,
            SqlModified(&item.modified),
            truncate_text(reason)
        ])?;
    let size = item.kind.len() + item.id.len() + item.modified.to_string().len() + reason.len();
    trim(tx, "refusal", Some(feed), REFUSALS)?;
    trim_bytes(tx, ("refusal", REFUSAL_SIZE), Some(feed), (REFUSALS, REFUSAL_BYTES), size)
}

/// Records an event of a feed, or of the mirror itself: a change of mode or health, a resync, a sweep, a restart.
pub(super) fn record_event(
    tx: &WriteTx<'_>,
    feed: Option<i64>,
    at: Millis,
    what: &str,
    detail: &str,
) -> rusqlite::Result<()> {
    insert_event(tx.db, feed, at, what, detail)?;
    trim(tx, "event", feed, EVENTS)?;
    trim_bytes(tx, ("event", EVENT_SIZE), feed, (EVENTS, EVENT_BYTES), what.len() + detail.len())
}

/// Inserts an event into a file that no writer has open; nothing is trimmed.
pub(super) fn insert_event(
    db: &Connection,
    feed: Option<i64>,
    at: Millis,
    what: &str,
    detail: &str,
) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO event (at, feed, what, detail) VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        at,
        feed,
        what,
        truncate_text(detail)
    ])?;
    Ok(())
}

/// Removes the feed's oldest rows beyond `kept`.
fn trim(tx: &WriteTx<'_>, table: &str, feed: Option<i64>, kept: i64) -> rusqlite::Result<()> {
    let sql = format!(
        "DELETE FROM {table} WHERE feed IS ?1
         AND n <= (SELECT n FROM {table} WHERE feed IS ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)"
    );
    tx.db.prepare_cached(&sql)?.execute(params![feed, kept])?;
    Ok(())
}

/// Removes the feed's oldest rows until the others hold at most `bytes`. `rows` small rows can't hold more, so that the
/// sum is only computed after a row of a certain `size`.
pub(super) fn trim_bytes(
    tx: &WriteTx<'_>,
    (table, size_of): (&str, &str),
    feed: Option<i64>,
    (rows, bytes): (i64, i64),
    size: usize,
) -> rusqlite::Result<()> {
    if i64::try_from(size).unwrap_or(i64::MAX) < bytes / (2 * rows) {
        return Ok(());
    }
    let sql = format!(
        "DELETE FROM {table} WHERE feed IS ?1 AND n <=
             (SELECT max(n) FROM (SELECT n, sum({size_of}) OVER (ORDER BY n DESC) AS so_far
                                  FROM {table} WHERE feed IS ?1) WHERE so_far > ?2)"
    );
    tx.db.prepare_cached(&sql)?.execute(params![feed, bytes])?;
    Ok(())
}

impl Store {
    /// Records an event of a feed, or of the mirror itself.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn record_event(
        &self,
        feed: Option<i64>,
        at: Millis,
        what: &str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let (what, detail) = (what.to_owned(), detail.to_owned());
        self.submit(JobClass::default(), move |tx| Ok(record_event(tx, feed, at, &what, &detail)?)).await
    }

    /// Counts a departure from the standard that was seen outside a page.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn record_finding(&self, feed: i64, at: Millis, finding: Finding) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| Ok(record_finding(tx, feed, at, &finding)?)).await
    }

    /// Feed, transport and text of a quarantine row, to be decoded again.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn quarantined_record(&self, id: i64) -> Result<Option<(String, Transport, String)>, StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let found = tx
                .db
                .prepare_cached(
                    "SELECT f.name, q.transport, q.raw FROM quarantined q JOIN feed f ON f.id = q.feed WHERE q.id = ?1",
                )?
                .query_row([id], |row| {
                    let transport = Transport::from_code(row.get(1)?).unwrap_or(Transport::Poll);
                    Ok((row.get(0)?, transport, row.get(2)?))
                })
                .optional()?;
            Ok(found)
        })
        .await
    }

    /// Removes a quarantine row; false when there is none with this number.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn drop_quarantined(&self, id: i64) -> Result<bool, StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let row = tx
                .db
                .prepare_cached(
                    "DELETE FROM quarantined WHERE id = ?1
                     RETURNING feed, octet_length(raw) + coalesce(octet_length(detail), 0)",
                )?
                .query_row([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))
                .optional()?;
            let Some((feed, size)) = row else { return Ok(false) };
            tx.db
                .prepare_cached(
                    "UPDATE feed SET quarantine_rows = max(quarantine_rows - 1, 0),
                         quarantine_bytes = max(quarantine_bytes - ?2, 0) WHERE id = ?1",
                )?
                .execute([feed, size])?;
            Ok(true)
        })
        .await
    }
}
