//! Comparing a feed's current listing at its source with the mirror: items that are missing, extra, older, newer or
//! different.
//!
//! The walk's items are kept as kind, id, `modified`, state and two hashes in a private temporary file, which SQLite
//! removes when it is closed, so that memory doesn't grow with the feed. The mirror is read in short transactions and
//! never written. An item that was written to the mirror since the walk began is no difference, since it may be newer
//! than the listing.

use std::cmp::Ordering;
use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Reader, Seq, StoreError};
use crate::feed::{Item, ItemState, Modified, ModifiedOrder, Page};
use crate::json::JsonHasher;
use crate::store::apply::{DELETED_FLAG, NUMBER_FLAG, SqlModified, stored_modified};
use crate::store::keys::{SaltedHasher, process_hash as hash};

/// Rows of the mirror read in one transaction.
const STEP_ROWS: usize = 5_000;
/// Samples of each type of difference.
const SAMPLES: usize = 10;
/// Cache of the temporary file, in KiB.
const CACHE_KIB: i64 = 16 * 1024;

/// What identifies a version of an item: two versions with equal content are the same.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemContent {
    /// As the publisher sent it.
    pub modified: Modified,
    pub state: ItemState,
    /// Hash of the data, independent of spacing and of the order of fields.
    pub hash: i64,
}

impl ItemContent {
    /// The hash of JSON data, comparable only within this process.
    pub fn hash_of(data: &str) -> i64 {
        static DIGEST: LazyLock<JsonHasher> = LazyLock::new(JsonHasher::default);
        DIGEST.hash_json(data).map_or_else(|| hash(data.as_bytes()), |hash| hash as i64)
    }
}

/// An item that differs, with both sides' versions.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DifferenceSample {
    /// The RPDE kind.
    pub kind: String,
    /// The publisher's id.
    pub id: String,
    /// `modified` and state in the mirror.
    pub mirror: Option<(String, &'static str)>,
    /// `modified` and state at the source.
    pub source: Option<(String, &'static str)>,
}

/// One type of difference.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Number of items.
    pub count: u64,
    /// The first of these items.
    pub samples: Vec<DifferenceSample>,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Comparison {
    /// Number of items that the walk read.
    pub read: u64,
    /// Number of items that are the same on both sides.
    pub same: u64,
    /// Live at the source, and not in the mirror.
    pub missing: Difference,
    /// Live in the mirror, and not at the source.
    pub extra: Difference,
    /// Older in the mirror.
    pub older: Difference,
    /// Newer in the mirror.
    pub newer: Difference,
    /// With the same `modified`, and another state or content.
    pub differing: Difference,
}

impl Comparison {
    /// Number of items that differ.
    pub fn differences(&self) -> u64 {
        [&self.missing, &self.extra, &self.older, &self.newer, &self.differing].iter().map(|d| d.count).sum()
    }
}

enum VersionComparison {
    Same,
    Missing,
    Extra,
    Older,
    Newer,
    Differing,
}

/// A version of either side, with a hash of the raw data, which is compared first.
struct HashedVersion {
    content: ItemContent,
    raw: i64,
    seq: Seq,
}

/// The items that a walk has read so far.
pub struct SourceListing {
    db: Connection,
    order: ModifiedOrder,
    start_seq: Seq,
}

impl SourceListing {
    /// An empty listing; `start_seq` is the mirror's last change number at the beginning of the walk.
    ///
    /// # Errors
    /// When no temporary file can be created.
    pub fn new(order: ModifiedOrder, start_seq: Seq) -> Result<Self, StoreError> {
        let db = Connection::open("")?;
        db.pragma_update(None, "journal_mode", "OFF")?;
        db.pragma_update(None, "synchronous", "OFF")?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        db.execute_batch(
            "CREATE TABLE record (kind TEXT, id TEXT, modified, flags INTEGER, raw INTEGER, hash INTEGER,
                 met INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (kind, id)) WITHOUT ROWID;
             CREATE TABLE unreadable (id TEXT PRIMARY KEY) WITHOUT ROWID;
             CREATE TABLE differing (kind TEXT, id TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;",
        )?;
        Ok(Self { db, order, start_seq })
    }

    /// Adds a page: of an item that comes twice, the newest version stays.
    ///
    /// # Errors
    /// When the temporary file can't be written.
    pub fn add_page(&mut self, page: &Page) -> Result<(), StoreError> {
        self.db.execute_batch("BEGIN")?;
        for item in &page.items {
            let known = self.read(&item.kind, &item.id)?;
            let is_older_than_known =
                |known: &HashedVersion| item.modified.compare(&known.content.modified, self.order) == Ordering::Less;
            if !known.as_ref().is_some_and(is_older_than_known) {
                self.insert(item, page.data(item))?;
            }
        }
        let mut insert = self.db.prepare_cached("INSERT OR IGNORE INTO unreadable VALUES (?1)")?;
        let unreadable_ids = page.unreadable.iter().filter_map(|record| record.id.as_ref());
        for id in unreadable_ids.chain(&page.overflow.ids) {
            insert.execute([&**id])?;
        }
        drop(insert);
        Ok(self.db.execute_batch("COMMIT")?)
    }

    fn insert(&self, item: &Item, data: &str) -> Result<(), StoreError> {
        let deleted_flag = if item.state == ItemState::Deleted { DELETED_FLAG } else { 0 };
        let number_flag = if matches!(item.modified, Modified::Number(_)) { NUMBER_FLAG } else { 0 };
        let sql = "INSERT OR REPLACE INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)";
        self.db.prepare_cached(sql)?.execute(params![
            &*item.kind,
            &*item.id,
            SqlModified(&item.modified),
            deleted_flag | number_flag,
            hash(data.as_bytes()),
            ItemContent::hash_of(data)
        ])?;
        Ok(())
    }

    fn read(&self, kind: &str, id: &str) -> Result<Option<HashedVersion>, StoreError> {
        let sql = "SELECT modified, flags, raw, hash FROM record WHERE kind = ?1 AND id = ?2";
        let found = self.db.prepare_cached(sql)?.query_row([kind, id], |row| {
            let flags = row.get(1)?;
            let modified = stored_modified(row.get_ref(0)?, flags);
            let content = ItemContent { modified, state: state(flags), hash: row.get(3)? };
            Ok(HashedVersion { content, raw: row.get(2)?, seq: 0 })
        });
        Ok(found.optional()?)
    }

    /// Compares the mirror's items of the feed with the listing. Without `complete`, when the walk did not reach a
    /// clean end, no item counts as extra.
    ///
    /// # Errors
    /// When either file fails, or the mirror has no such feed.
    pub fn compare(&mut self, reader: &Reader, feed: &str, complete: bool) -> Result<Comparison, StoreError> {
        self.db.execute_batch("BEGIN")?;
        reader.for_each_version(feed, |kind, id, version| {
            let record = self.read(kind, id)?;
            if record.is_none() && (!complete || self.is_unreadable(id)?) {
                return Ok(());
            }
            self.db.prepare_cached("UPDATE record SET met = 1 WHERE kind = ?1 AND id = ?2")?.execute([kind, id])?;
            if !matches!(self.compare_versions(record.as_ref(), Some(&version)), VersionComparison::Same) {
                self.db.prepare_cached("INSERT OR IGNORE INTO differing VALUES (?1, ?2)")?.execute([kind, id])?;
            }
            Ok(())
        })?;
        let sql = "INSERT OR IGNORE INTO differing SELECT kind, id FROM record WHERE met = 0 AND flags & ?1 = 0";
        self.db.execute(sql, [DELETED_FLAG])?;
        self.db.execute_batch("COMMIT")?;
        self.recheck(reader, feed)
    }

    /// Compares the differing items again: those that the mirror has written meanwhile no longer differ.
    ///
    /// # Errors
    /// As [`SourceListing::compare`].
    pub fn recheck(&mut self, reader: &Reader, feed: &str) -> Result<Comparison, StoreError> {
        let mut comparison = Comparison::default();
        let mut now_same: Vec<(String, String)> = Vec::new();
        let mut select = self.db.prepare_cached("SELECT kind, id FROM differing ORDER BY kind, id")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, id): (String, String) = (row.get(0)?, row.get(1)?);
            let (source, mirror) = (self.read(&kind, &id)?, reader.version(feed, &kind, &id)?);
            let difference = match self.compare_versions(source.as_ref(), mirror.as_ref()) {
                VersionComparison::Same => {
                    if now_same.len() < STEP_ROWS {
                        now_same.push((kind, id));
                    }
                    continue;
                }
                VersionComparison::Missing => &mut comparison.missing,
                VersionComparison::Extra => &mut comparison.extra,
                VersionComparison::Older => &mut comparison.older,
                VersionComparison::Newer => &mut comparison.newer,
                VersionComparison::Differing => &mut comparison.differing,
            };
            difference.count += 1;
            if difference.samples.len() < SAMPLES {
                difference.samples.push(DifferenceSample {
                    kind,
                    id,
                    mirror: sample_side(mirror),
                    source: sample_side(source),
                });
            }
        }
        drop(rows);
        drop(select);
        for (kind, id) in now_same {
            self.db.prepare_cached("DELETE FROM differing WHERE kind = ?1 AND id = ?2")?.execute([kind, id])?;
        }
        let count = |sql: &str| self.db.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|n| n.unsigned_abs());
        comparison.read = count("SELECT count(*) FROM record")?;
        comparison.same = count(
            "SELECT count(*) FROM record r WHERE met = 1
             AND NOT EXISTS (SELECT 1 FROM differing d WHERE d.kind = r.kind AND d.id = r.id)",
        )?;
        Ok(comparison)
    }

    fn is_unreadable(&self, id: &str) -> Result<bool, StoreError> {
        Ok(self.db.prepare_cached("SELECT 1 FROM unreadable WHERE id = ?1")?.exists([id])?)
    }

    fn compare_versions(&self, source: Option<&HashedVersion>, mirror: Option<&HashedVersion>) -> VersionComparison {
        let changed_since = mirror.is_some_and(|mirror| mirror.seq > self.start_seq);
        let (source, mirror) = match (source, mirror) {
            (Some(source), Some(mirror)) => (source, mirror),
            (Some(source), None) if source.content.state == ItemState::Updated => return VersionComparison::Missing,
            (None, Some(mirror)) if mirror.content.state == ItemState::Updated && !changed_since => {
                return VersionComparison::Extra;
            }
            _ => return VersionComparison::Same,
        };
        match mirror.content.modified.compare(&source.content.modified, self.order) {
            Ordering::Less => VersionComparison::Older,
            Ordering::Greater if changed_since => VersionComparison::Same,
            Ordering::Greater => VersionComparison::Newer,
            Ordering::Equal if mirror.content.state != source.content.state => VersionComparison::Differing,
            Ordering::Equal if mirror.raw == source.raw || mirror.content.hash == source.content.hash => {
                VersionComparison::Same
            }
            Ordering::Equal => VersionComparison::Differing,
        }
    }
}

fn sample_side(version: Option<HashedVersion>) -> Option<(String, &'static str)> {
    version.map(|version| (version.content.modified.to_string(), version.content.state.as_str()))
}

fn state(flags: i64) -> ItemState {
    if flags & DELETED_FLAG == 0 { ItemState::Updated } else { ItemState::Deleted }
}

const VERSION_SQL: &str = "SELECT i.seq, i.key, k.name, i.id, i.modified, i.flags, i.data FROM item i";

fn version(row: &rusqlite::Row<'_>) -> rusqlite::Result<HashedVersion> {
    let flags = row.get(5)?;
    let data = row.get_ref(6)?.as_str_or_null()?.unwrap_or_default();
    let content = ItemContent {
        modified: stored_modified(row.get_ref(4)?, flags),
        state: state(flags),
        hash: ItemContent::hash_of(data),
    };
    Ok(HashedVersion { content, raw: hash(data.as_bytes()), seq: row.get(0)? })
}

impl Reader {
    /// The content of the item with this change number; `None` when no row has it by now.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn item_content(&self, seq: Seq) -> Result<Option<ItemContent>, StoreError> {
        let sql = format!("{VERSION_SQL} JOIN kind k ON k.id = i.kind WHERE i.seq = ?1");
        let found = self.db.prepare_cached(&sql)?.query_row([seq], version).optional()?;
        Ok(found.map(|version| version.content))
    }

    fn version(&self, feed: &str, kind: &str, id: &str) -> Result<Option<HashedVersion>, StoreError> {
        let feed_id = self.feed_id(feed)?;
        let key = SaltedHasher::load(&self.db)?.item_key(kind, id);
        let sql = format!(
            "{VERSION_SQL} JOIN kind k ON k.id = i.kind WHERE i.feed = ?1 AND i.key = ?2 AND k.name = ?3 AND i.id = ?4"
        );
        Ok(self.db.prepare_cached(&sql)?.query_row(params![feed_id, key, kind, id], version).optional()?)
    }

    /// Calls `each` with every item of a feed, tombstones included, in no defined order.
    fn for_each_version(
        &self,
        feed: &str,
        mut each: impl FnMut(&str, &str, HashedVersion) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let feed_id = self.feed_id(feed)?;
        let sql = format!(
            "{VERSION_SQL} INDEXED BY item_key CROSS JOIN kind k ON k.id = i.kind
             WHERE i.feed = ?1 AND (i.key, i.seq) > (?2, ?3) ORDER BY i.key, i.seq LIMIT ?4"
        );
        let mut select = self.db.prepare_cached(&sql)?;
        let mut position = (i64::MIN, i64::MIN);
        loop {
            let mut rows = select.query(params![feed_id, position.0, position.1, STEP_ROWS as i64])?;
            let mut count = 0;
            while let Some(row) = rows.next()? {
                position = (row.get(1)?, row.get(0)?);
                count += 1;
                each(
                    row.get_ref(2)?.as_str().unwrap_or_default(),
                    row.get_ref(3)?.as_str().unwrap_or_default(),
                    version(row)?,
                )?;
            }
            if count < STEP_ROWS {
                return Ok(());
            }
        }
    }
}
