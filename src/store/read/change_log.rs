//! Items and changes in the order of seq: pages in short transactions, and one long read for an export.
//!
//! Guarantees: an item's rowid is its seq, so that a page is a range of the table in its own order: nothing is sorted,
//! and no row before the position is read. A filter skips rows; a page ends after [`SCANNED_ROWS`] rows or
//! [`PAGE_BYTES`] of text, whatever matched, and returns the last seq read, so that the reader's position moves on even
//! where no row matches.

use rusqlite::OptionalExtension;

use super::rows::{ChangeRow, ItemRow, MirrorRow, ViewRow};
use super::{Reader, Seq, StoreError, mirror};

/// Rows read for one page.
const SCANNED_ROWS: i64 = 10_000;
/// A page is full with this many bytes of text.
pub(super) const PAGE_BYTES: usize = 4 << 20;
/// The index by feed is used for an export of feeds that hold less than one row in this many.
const SMALL_SHARE: i64 = 4;

/// Which feeds and kinds to read; an empty list means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedKindFilter {
    /// Feeds' names.
    pub feeds: Vec<String>,
    /// Kinds; a `purged` change belongs to all kinds.
    pub kinds: Vec<String>,
}

/// Rows in the order of their seq, and the last seq read; all of one read transaction.
#[derive(Clone, Debug)]
pub struct LogPage<R> {
    /// The matching rows.
    pub rows: Vec<R>,
    /// The position up to which the log has been read, matching rows or not: the next page begins after it.
    pub last_seq: Seq,
    /// Whether the log was read to its end.
    pub end: bool,
    /// The mirror's epoch.
    pub epoch: String,
    /// The last change number given: a position beyond it belongs to another mirror.
    pub mirror_seq: Seq,
}

impl Reader {
    /// A page of the change log after a position; with `data`, with the data of updated items.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that the mirror never had; when the file can't be read.
    pub fn changes(
        &self,
        after: Seq,
        limit: usize,
        filter: &FeedKindFilter,
        data: bool,
    ) -> Result<LogPage<(ChangeRow, Option<String>)>, StoreError> {
        let transaction = self.db.unchecked_transaction()?;
        let condition = self.change_condition(filter)?;
        let mut scan = PageScan::new(after, limit);
        let mut select = self.db.prepare_cached(&changes_sql(&condition, data))?;
        let mut rows = select.query((after, SCANNED_ROWS, json(&filter.feeds)))?;
        while scan.wants_more()
            && let Some(row) = rows.next()?
        {
            scan.add_scanned(row.get(0)?);
            if row.get(8)? {
                let data: Option<String> = row.get(7)?;
                let bytes = data.as_ref().map_or(0, String::len);
                scan.push_row((ChangeRow::read(row)?, data), bytes);
            }
        }
        drop(rows);
        scan.into_page(mirror(&transaction)?)
    }

    /// A page of items after a position: live ones (of feeds neither gone nor removed), and tombstones with `deleted`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when the file can't be read.
    pub fn items(
        &self,
        after: Seq,
        limit: usize,
        filter: &FeedKindFilter,
        deleted: bool,
    ) -> Result<LogPage<ItemRow>, StoreError> {
        let transaction = self.db.unchecked_transaction()?;
        let condition = self.item_condition(filter, deleted)?.0;
        let mut scan = PageScan::new(after, limit);
        let mut select = self.db.prepare_cached(&items_sql(&condition))?;
        let mut rows = select.query((after, SCANNED_ROWS))?;
        while scan.wants_more()
            && let Some(row) = rows.next()?
        {
            scan.add_scanned(row.get(6)?);
            if row.get(10)? {
                let item = ItemRow::read(row)?;
                let bytes = item.data.as_ref().map_or(0, String::len);
                scan.push_row(item, bytes);
            }
        }
        drop(rows);
        scan.into_page(mirror(&transaction)?)
    }

    /// Calls `each` with every such item after a position, in the order of seq and in one read transaction. Returns the
    /// mirror's row of that transaction: a follower continues in the change log from its seq.
    ///
    /// # Errors
    /// As [`Reader::items`], and the error of `each`, which ends the export.
    pub fn export_items<E: From<StoreError>>(
        &self,
        after: Seq,
        filter: &FeedKindFilter,
        deleted: bool,
        mut each: impl FnMut(ItemRow) -> Result<(), E>,
    ) -> Result<MirrorRow, E> {
        let sql = |error: rusqlite::Error| E::from(StoreError::from(error));
        let transaction = self.db.unchecked_transaction().map_err(sql)?;
        let mirror = mirror(&transaction).map_err(sql)?;
        let mut select = self.db.prepare(&self.choose_export_sql(filter, deleted)?).map_err(sql)?;
        let mut rows = select.query([after]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            each(ItemRow::read(row).map_err(sql)?)?;
        }
        Ok(mirror)
    }

    fn choose_export_sql(&self, filter: &FeedKindFilter, deleted: bool) -> Result<String, StoreError> {
        let (condition, feeds) = self.item_condition(filter, deleted)?;
        if filter.feeds.is_empty() || !self.is_small_share(&feeds)? {
            return Ok(export_sql(&condition));
        }
        Ok(export_sql_by_feed(&feeds, &condition))
    }

    fn is_small_share(&self, feeds: &str) -> Result<bool, StoreError> {
        let sql = format!(
            "SELECT coalesce(sum(iif(id IN ({feeds}), items + tombstones, 0)), 0) * {SMALL_SHARE}
                    < coalesce(sum(items + tombstones), 0) FROM feed"
        );
        Ok(self.db.query_row(&sql, [], |row| row.get(0))?)
    }

    /// The condition on items for such changes, as SQL.
    fn change_condition(&self, filter: &FeedKindFilter) -> Result<String, StoreError> {
        let mut ids = Vec::new();
        for name in &filter.feeds {
            match self.feed_id(name) {
                Ok(id) => ids.push(id.to_string()),
                // Purged, and no longer configured: only the `purge` row is left.
                Err(StoreError::Refused(_)) if self.was_purged(name)? => {}
                Err(error) => return Err(error),
            }
        }
        let feeds = (!filter.feeds.is_empty()).then(|| ids.join(","));
        Ok(condition(feeds.as_deref(), self.kinds(filter)?.as_deref(), true))
    }

    /// The condition on such items, as SQL, and the ids of their feeds.
    pub(super) fn item_condition(
        &self,
        filter: &FeedKindFilter,
        deleted: bool,
    ) -> Result<(String, String), StoreError> {
        for name in &filter.feeds {
            self.feed_id(name)?;
        }
        let mut live = self.db.prepare_cached(
            "SELECT f.id FROM feed f LEFT JOIN endpoint p ON p.feed = f.id AND p.transport = 0
             WHERE coalesce(p.health, 'ok') NOT IN ('gone', 'removed')
                 AND (?1 = '[]' OR f.name IN (SELECT value FROM json_each(?1)))",
        )?;
        let ids = live.query_map([json(&filter.feeds)], |row| row.get::<_, i64>(0))?;
        let ids = ids.map(|id| id.map(|id| id.to_string()));
        let feeds = ids.collect::<rusqlite::Result<Vec<_>>>()?.join(",");
        Ok((condition(Some(&feeds), self.kinds(filter)?.as_deref(), deleted), feeds))
    }

    /// The ids of the filter's kinds; a kind that no item has yet has no id.
    fn kinds(&self, filter: &FeedKindFilter) -> Result<Option<String>, StoreError> {
        if filter.kinds.is_empty() {
            return Ok(None);
        }
        let mut find = self.db.prepare_cached("SELECT id FROM kind WHERE name IN (SELECT value FROM json_each(?1))")?;
        let ids = find.query_map([json(&filter.kinds)], |row| row.get::<_, i64>(0))?;
        let ids = ids.map(|id| id.map(|id| id.to_string()));
        Ok(Some(ids.collect::<rusqlite::Result<Vec<_>>>()?.join(",")))
    }

    fn was_purged(&self, name: &str) -> Result<bool, StoreError> {
        let found = self.db.prepare_cached("SELECT 1 FROM purge WHERE feed = ?1")?.query_row([name], |_| Ok(()));
        Ok(found.optional()?.is_some())
    }
}

/// The rows of one page while it is read.
struct PageScan<R> {
    rows: Vec<R>,
    limit: usize,
    last: Seq,
    scanned: i64,
    bytes: usize,
    full: bool,
}

impl<R> PageScan<R> {
    fn new(after: Seq, limit: usize) -> Self {
        // A page with no rows would never move the reader's position.
        Self { rows: Vec::new(), limit: limit.max(1), last: after, scanned: 0, bytes: 0, full: false }
    }

    fn wants_more(&mut self) -> bool {
        self.full = self.rows.len() >= self.limit || self.bytes >= PAGE_BYTES || self.scanned >= SCANNED_ROWS;
        !self.full
    }

    fn add_scanned(&mut self, seq: Seq) {
        self.last = seq;
        self.scanned += 1;
    }

    fn push_row(&mut self, row: R, bytes: usize) {
        self.rows.push(row);
        self.bytes += bytes;
    }

    fn into_page(self, mirror: MirrorRow) -> Result<LogPage<R>, StoreError> {
        let last_seq = if self.full { self.last } else { mirror.seq };
        Ok(LogPage { rows: self.rows, last_seq, end: !self.full, epoch: mirror.epoch, mirror_seq: mirror.seq })
    }
}

/// The columns of `changes`, the data, and whether the row matches; of other rows, time and data are not read.
fn changes_sql(condition: &str, data: bool) -> String {
    let data = if data { "i.data" } else { "NULL" };
    // Both halves are read in the order of their rowids and merged.
    format!(
        "SELECT i.seq AS seq, f.name, k.name, i.id, i.modified,
                CASE i.flags & 1 WHEN 0 THEN 'updated' ELSE 'deleted' END,
                CASE WHEN {condition} THEN strftime('%Y-%m-%dT%H:%M:%fZ', i.changed_at / 1000.0, 'unixepoch') END,
                CASE WHEN {condition} THEN {data} END, {condition}
         FROM item i NOT INDEXED CROSS JOIN feed f ON f.id = i.feed CROSS JOIN kind k ON k.id = i.kind
         WHERE i.seq > ?1
         UNION ALL
         SELECT seq, feed, NULL, NULL, NULL, 'purged',
                strftime('%Y-%m-%dT%H:%M:%fZ', changed_at / 1000.0, 'unixepoch'), NULL,
                ?3 = '[]' OR feed IN (SELECT value FROM json_each(?3))
         FROM purge WHERE seq > ?1
         ORDER BY seq LIMIT ?2"
    )
}

/// The columns of `items`, and whether the row matches.
fn items_sql(condition: &str) -> String {
    let columns = item_columns(&format!("CASE WHEN {condition} THEN i.data END"));
    format!(
        "SELECT {columns}, {condition}
         FROM item i NOT INDEXED CROSS JOIN feed f ON f.id = i.feed CROSS JOIN kind k ON k.id = i.kind
         WHERE i.seq > ?1 ORDER BY i.seq LIMIT ?2"
    )
}

fn export_sql(condition: &str) -> String {
    let columns = item_columns("i.data");
    format!(
        "SELECT {columns}
         FROM item i NOT INDEXED CROSS JOIN feed f ON f.id = i.feed CROSS JOIN kind k ON k.id = i.kind
         WHERE i.seq > ?1 AND {condition} ORDER BY i.seq"
    )
}

/// Only the seqs are sorted, never the data; LIMIT keeps the inner query whole, and the joins keep its order.
fn export_sql_by_feed(feeds: &str, condition: &str) -> String {
    let columns = item_columns("i.data");
    format!(
        "SELECT {columns}
         FROM (SELECT seq FROM item INDEXED BY item_key WHERE feed IN ({feeds}) AND seq > ?1 ORDER BY seq LIMIT -1) s
         CROSS JOIN item i ON i.seq = s.seq
         CROSS JOIN feed f ON f.id = i.feed CROSS JOIN kind k ON k.id = i.kind
         WHERE {condition}"
    )
}

/// The columns of `items`, in their order.
pub(super) fn item_columns(data: &str) -> String {
    format!(
        "f.name, k.name, i.id, i.modified, CASE i.flags & 1 WHEN 0 THEN 'updated' ELSE 'deleted' END, {data}, i.seq,
         strftime('%Y-%m-%dT%H:%M:%fZ', i.changed_at / 1000.0, 'unixepoch'),
         CASE i.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END,
         (i.flags & 6) <> 0"
    )
}

/// From ids only, so that no text of a user becomes SQL.
fn condition(feeds: Option<&str>, kinds: Option<&str>, deleted: bool) -> String {
    if feeds == Some("") || kinds == Some("") {
        return "0".to_owned();
    }
    let feeds = feeds.map(|feeds| format!("i.feed IN ({feeds})"));
    let kinds = kinds.map(|kinds| format!("i.kind IN ({kinds})"));
    let live = (!deleted).then(|| "i.flags & 1 = 0".to_owned());
    let all: Vec<String> = [feeds, kinds, live].into_iter().flatten().collect();
    if all.is_empty() { "1".to_owned() } else { format!("({})", all.join(" AND ")) }
}

pub(super) fn json(names: &[String]) -> String {
    serde_json::Value::from(names).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Store;

    fn plan(reader: &Reader, sql: &str) -> String {
        let mut select = reader.db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let count = select.parameter_count();
        let steps =
            select.query_map(rusqlite::params_from_iter(vec![0; count]), |row| row.get::<_, String>(3)).unwrap();
        steps.collect::<rusqlite::Result<Vec<_>>>().unwrap().join("\n")
    }

    #[test]
    fn a_page_is_a_range_of_the_table_and_nothing_is_sorted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mirror.db");
        let (store, guard) = Store::open(&path).unwrap();
        drop(store);
        guard.finish();
        let reader = Reader::open(&path).unwrap();
        let all = "(i.feed IN (1,2) AND i.kind IN (3) AND i.flags & 1 = 0)";
        for sql in [changes_sql(all, true), changes_sql("1", false), items_sql(all), export_sql(all)] {
            let plan = plan(&reader, &sql);
            assert!(plan.contains("SEARCH i USING INTEGER PRIMARY KEY (rowid>?)"), "{sql}\n{plan}");
            assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN i"), "{sql}\n{plan}");
        }
    }
}
