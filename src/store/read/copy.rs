//! A copy of a mirror, such as a snapshot: opened without creating files beside it, and searched for an item.

use std::path::Path;

use rusqlite::{OpenFlags, OptionalExtension, params};

use super::{Reader, StoreError, connect, connect_immutable, identity, read_error};
use crate::store::forget;
use crate::store::keys::SaltedHasher;

impl Reader {
    /// Opens a copy that no process writes; as [`Reader::open`], but no WAL files are created beside it.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_copy(path: &Path) -> Result<Self, StoreError> {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        if std::fs::metadata(wal).is_ok_and(|wal| wal.len() > 0) {
            return Self::open(path);
        }
        let db = match path.to_str() {
            Some(name) => connect_immutable(name),
            None => connect(path, OpenFlags::empty()),
        };
        let db = db.map_err(|error| read_error(path, error))?;
        let reader = Self { db, path: path.to_owned(), file: identity(path) };
        reader.check()?;
        Ok(reader)
    }

    /// Whether the copy holds an item, with its data or as a tombstone of its publisher, or a quarantined record that
    /// names the item. False for an unknown feed.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn contains_item(&self, feed: &str, kind: Option<&str>, id: &str) -> Result<bool, StoreError> {
        let found = self.db.prepare_cached("SELECT id FROM feed WHERE name = ?1")?.query_row([feed], |row| row.get(0));
        let Some(feed) = found.optional()?.map(|feed: i64| feed) else { return Ok(false) };
        let mut kinds = self.db.prepare_cached("SELECT id, name FROM kind WHERE ?1 IS NULL OR name = ?1")?;
        let mut kinds = kinds.query([kind])?;
        let mut find = self.db.prepare_cached(
            "SELECT 1 FROM item WHERE feed = ?1 AND key = ?2 AND kind = ?3 AND id = ?4 AND flags & 16 = 0",
        )?;
        let keys = SaltedHasher::load(&self.db)?;
        while let Some(row) = kinds.next()? {
            let (kind_id, name): (i64, String) = (row.get(0)?, row.get(1)?);
            if find.exists(params![feed, keys.item_key(&name, id), kind_id, id])? {
                return Ok(true);
            }
        }
        let mut records = self.db.prepare_cached("SELECT raw FROM quarantined WHERE feed = ?1")?;
        let mut records = records.query([feed])?;
        while let Some(row) = records.next()? {
            if forget::record_names_id(&row.get::<_, String>(0)?, id) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
