//! Earlier positions of the poll cursor, from which a look-back starts.
//!
//! Every page with an updated item leaves a position, and older positions are thinned out, so that a feed keeps about a
//! hundred: all of the newest, then every 4th, every 16th, and so on.

use rusqlite::{OptionalExtension, params};

use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError};
use crate::feed::Item;

/// Positions kept of each density.
const KEPT: i64 = 16;

/// Records that `updated_item` was polled with a request for `from_cursor`.
pub(super) fn record(
    tx: &WriteTx<'_>,
    feed: i64,
    at: Millis,
    from_cursor: &str,
    updated_item: &Item,
) -> rusqlite::Result<()> {
    let db = tx.db;
    let newest: Option<i64> =
        db.prepare_cached("SELECT max(n) FROM position WHERE feed = ?1")?.query_row([feed], |row| row.get(0))?;
    let n = newest.map_or(0, |n| n + 1);
    db.prepare_cached("INSERT INTO position VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        feed,
        n,
        at,
        from_cursor,
        &*updated_item.kind,
        &*updated_item.id
    ])?;
    let mut interval = 4;
    let mut delete =
        db.prepare_cached("DELETE FROM position WHERE feed = ?1 AND n <= ?2 AND n > ?3 AND n % ?4 <> 0")?;
    while n >= KEPT * interval / 4 {
        // Only positions that have come into this density since the last record can be due.
        let boundary = n - KEPT * interval / 4;
        delete.execute([feed, boundary, boundary - interval, interval])?;
        interval *= 4;
    }
    Ok(())
}

impl Store {
    /// The newest position that the cursor left at or before `before`, and from which on an item was polled that is
    /// still `updated`; where there is none, the oldest with such an item among the last `or_within` positions, if any.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn look_back_start(
        &self,
        feed: i64,
        before: Millis,
        or_within: u32,
    ) -> Result<Option<String>, StoreError> {
        self.submit(JobClass::default(), move |tx| Ok(find(tx, feed, before, or_within)?)).await
    }

    /// Deletes a position that the publisher no longer knows, and all older ones.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn drop_positions_until(&self, feed: i64, cursor: String) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "DELETE FROM position WHERE feed = ?1
                       AND n <= (SELECT max(n) FROM position WHERE feed = ?1 AND cursor = ?2)";
            tx.db.prepare_cached(sql)?.execute(params![feed, cursor])?;
            Ok(())
        })
        .await
    }
}

fn find(tx: &WriteTx<'_>, feed: i64, before: Millis, or_within: u32) -> rusqlite::Result<Option<String>> {
    let mut rows =
        tx.db.prepare_cached("SELECT n, at, cursor, kind, id FROM position WHERE feed = ?1 ORDER BY n DESC")?;
    let mut rows = rows.query([feed])?;
    let (mut live_after, mut newest, mut oldest_within) = (false, None, None);
    while let Some(row) = rows.next()? {
        let n: i64 = row.get(0)?;
        let (kind, id): (String, String) = (row.get(3)?, row.get(4)?);
        live_after = live_after || is_live(tx, feed, &kind, &id)?;
        if live_after && row.get::<_, Millis>(1)? <= before {
            return Ok(Some(row.get(2)?));
        }
        if live_after && *newest.get_or_insert(n) - n < i64::from(or_within) {
            oldest_within = Some(row.get(2)?);
        }
    }
    Ok(oldest_within)
}

fn is_live(tx: &WriteTx<'_>, feed: i64, kind: &str, id: &str) -> rusqlite::Result<bool> {
    let key = tx.keys.item_key(kind, id);
    let row = tx
        .db
        .prepare_cached(
            "SELECT 1 FROM item i JOIN kind k ON k.id = i.kind
             WHERE i.feed = ?1 AND i.key = ?2 AND k.name = ?3 AND i.id = ?4 AND i.flags & 1 = 0",
        )?
        .query_row(params![feed, key, kind, id], |_| Ok(()))
        .optional()?;
    Ok(row.is_some())
}
