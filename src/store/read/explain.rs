//! What the mirror knows of one item: the item itself, the delivery that wrote it, refused versions and quarantined
//! records.
//!
//! An item is found by its id through the index, whatever its kind. By the `@id` or `id` in the data, a search reads
//! all items, in short transactions and until the caller's deadline.

use std::time::Instant;

use rusqlite::params;

use super::rows::{self, DeliveryRow, ItemRow, QuarantineRow, RefusalRow, ViewRow};
use super::{Reader, StoreError};
use crate::json;
use crate::store::keys::SaltedHasher;

/// Rows read in one transaction of a search.
const STEP_ROWS: usize = 5_000;
/// Most quarantined records and most refusals returned for one item.
const MAX_RELATED_ROWS: usize = 20;

/// The columns of `items`, of one row.
const ITEMS: &str =
    "SELECT f.name, k.name, i.id, i.modified, CASE i.flags & 1 WHEN 0 THEN 'updated' ELSE 'deleted' END,
    i.data, i.seq, strftime('%Y-%m-%dT%H:%M:%fZ', i.changed_at / 1000.0, 'unixepoch'),
    CASE i.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END, (i.flags & 6) <> 0
    FROM item i JOIN feed f ON f.id = i.feed JOIN kind k ON k.id = i.kind";

/// The result of a search.
#[derive(Clone, Debug, Default)]
pub struct ItemSearchResult {
    pub items: Vec<ItemRow>,
    /// Whether all items were searched.
    pub complete: bool,
}

impl Reader {
    /// All items with this id, of one feed or all, of one kind or all: tombstones, and items of feeds that are gone or
    /// removed, included.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when the file can't be read.
    pub fn known_items(&self, feed: Option<&str>, kind: Option<&str>, id: &str) -> Result<Vec<ItemRow>, StoreError> {
        let feeds = self.numbers(feed)?;
        let mut kinds = self.db.prepare_cached("SELECT name FROM kind WHERE ?1 IS NULL OR name = ?1 ORDER BY name")?;
        let kinds = kinds.query_map([kind], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        // Keys may collide: the id and the kind decide.
        let sql = format!("{ITEMS} WHERE i.feed = ?1 AND i.key = ?2 AND k.name = ?3 AND i.id = ?4");
        let mut select = self.db.prepare_cached(&sql)?;
        let keys = SaltedHasher::load(&self.db)?;
        let mut items = Vec::new();
        for feed in feeds {
            for kind in &kinds {
                let rows = select.query_map(params![feed, keys.item_key(kind, id), kind, id], ItemRow::read)?;
                items.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
            }
        }
        Ok(items)
    }

    /// The live items whose data have `name` as `@id` or `id`; the search ends at `until`.
    ///
    /// # Errors
    /// As [`Reader::known_items`].
    pub fn items_with_data_id(
        &self,
        feed: Option<&str>,
        name: &str,
        until: Instant,
    ) -> Result<ItemSearchResult, StoreError> {
        // Publishers may escape slashes; the last part of a URL is in the text unescaped.
        let last_part = name.rsplit('/').find(|part| !part.is_empty()).unwrap_or(name);
        let sql = format!(
            "{ITEMS} WHERE i.seq = ?1 AND i.flags & 1 = 0 AND instr(i.data, ?2) > 0 AND json_valid(i.data)
             AND (i.data ->> '$.\"@id\"' = ?3 OR i.data ->> '$.id' = ?3)"
        );
        let mut select = self.db.prepare_cached(&sql)?;
        let mut next = self.db.prepare_cached(
            "SELECT key, seq FROM item INDEXED BY item_key
             WHERE feed = ?1 AND (key, seq) > (?2, ?3) ORDER BY key, seq LIMIT ?4",
        )?;
        let mut items = Vec::new();
        for feed in self.numbers(feed)? {
            let mut position = (i64::MIN, i64::MIN);
            loop {
                let transaction = self.db.unchecked_transaction()?;
                let step = next.query_map(params![feed, position.0, position.1, STEP_ROWS as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
                let step = step.collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
                for (_, seq) in &step {
                    let rows = select.query_map(params![seq, last_part, name], ItemRow::read)?;
                    items.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
                }
                drop(transaction);
                let Some(last) = step.last().filter(|_| step.len() == STEP_ROWS) else { break };
                position = *last;
                if Instant::now() >= until {
                    return Ok(ItemSearchResult { items, complete: false });
                }
            }
        }
        Ok(ItemSearchResult { items, complete: true })
    }

    /// The delivery that wrote the change with this number; `None` once the delivery's row is trimmed, or where a sweep
    /// wrote the change.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn delivery_of(&self, seq: i64) -> Result<Option<DeliveryRow>, StoreError> {
        let rest = "WHERE seq = (SELECT max(seq) FROM delivery WHERE seq <= ?1) AND last_seq >= ?1";
        Ok(self.rows("deliveries", rest, [seq])?.pop())
    }

    /// The refused versions of items with this id, older or tied ones, newest first.
    ///
    /// # Errors
    /// As [`Reader::known_items`].
    pub fn refusals_of(&self, feed: &str, kind: Option<&str>, id: &str) -> Result<Vec<RefusalRow>, StoreError> {
        let feed_id = self.feed_id(feed)?;
        let rest = "WHERE number = ?1 AND id = ?2 AND (?3 IS NULL OR kind = ?3) ORDER BY n DESC LIMIT ?4";
        self.rows(rows::REFUSALS, rest, params![feed_id, id, kind, MAX_RELATED_ROWS as i64])
    }

    /// The quarantined records with this id, newest first: with this `id` or `@id`, or, where neither can be read, with
    /// the id anywhere in the record.
    ///
    /// # Errors
    /// As [`Reader::known_items`].
    pub fn quarantine_with_id(&self, feed: &str, id: &str) -> Result<Vec<QuarantineRow>, StoreError> {
        self.feed_id(feed)?;
        // One row at a time: every record may contain a short id.
        let columns = QuarantineRow::COLUMNS.join(", ");
        let sql = format!("SELECT {columns} FROM quarantine WHERE feed = ?1 AND instr(raw, ?2) > 0 ORDER BY id DESC");
        let mut select = self.db.prepare_cached(&sql)?;
        let mut rows = select.query(params![feed, id])?;
        let mut matching = Vec::new();
        while let Some(row) = rows.next()?.filter(|_| matching.len() < MAX_RELATED_ROWS) {
            let row = QuarantineRow::read(row)?;
            if record_has_id(&row.raw, id) {
                matching.push(row);
            }
        }
        Ok(matching)
    }

    /// When a feed's rows were last removed by a purge.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn purged_at(&self, feed: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', changed_at / 1000.0, 'unixepoch') FROM purge WHERE feed = ?1";
        let mut select = self.db.prepare_cached(sql)?;
        let rows = select.query_map([feed], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?.pop())
    }

    fn numbers(&self, feed: Option<&str>) -> Result<Vec<i64>, StoreError> {
        if let Some(feed) = feed {
            return Ok(vec![self.feed_id(feed)?]);
        }
        let mut select = self.db.prepare_cached("SELECT id FROM feed ORDER BY name")?;
        Ok(select.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
    }
}

fn record_has_id(raw: &str, id: &str) -> bool {
    let own_id = ["id", "@id"].iter().filter_map(|name| json::member(raw, name)).find_map(|value| {
        let is_number = value.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        if is_number { Some(value.into()) } else { json::unescape_strict(value) }
    });
    own_id.is_none_or(|own_id| own_id == id)
}
