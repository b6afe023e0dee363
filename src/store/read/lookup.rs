//! Items by their id, found through the index: no other item is read.

use super::change_log::{FeedKindFilter, item_columns, json};
use super::rows::{ItemRow, ViewRow};
use super::{Reader, StoreError};
use crate::store::keys::SaltedHasher;

impl Reader {
    /// The items with this id, at most one per feed and kind of the filter, in the order of their seq: live ones (of
    /// feeds neither gone nor removed), and tombstones with `deleted`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when the file can't be read.
    pub fn items_with_id(&self, id: &str, filter: &FeedKindFilter, deleted: bool) -> Result<Vec<ItemRow>, StoreError> {
        let transaction = self.db.unchecked_transaction()?;
        let condition = self.item_condition(filter, deleted)?.0;
        let keys = self.keys(id, &filter.kinds)?;
        let mut select = transaction.prepare_cached(&with_id_sql(&condition))?;
        let rows = select.query_map((keys, id), ItemRow::read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The items' keys in the index, one for each kind of the filter.
    fn keys(&self, id: &str, kinds: &[String]) -> Result<String, StoreError> {
        let mut select = self
            .db
            .prepare_cached("SELECT name FROM kind WHERE ?1 = '[]' OR name IN (SELECT value FROM json_each(?1))")?;
        let hashes = SaltedHasher::load(&self.db)?;
        let keys = select.query_map([json(kinds)], |row| Ok(hashes.item_key(&row.get::<_, String>(0)?, id)))?;
        Ok(serde_json::Value::from(keys.collect::<rusqlite::Result<Vec<i64>>>()?).to_string())
    }
}

/// Keys collide, so the id decides.
fn with_id_sql(condition: &str) -> String {
    let columns = item_columns("i.data");
    format!(
        "SELECT {columns}
         FROM json_each(?1) key CROSS JOIN feed f
         CROSS JOIN item i INDEXED BY item_key ON i.feed = f.id AND i.key = key.value
         CROSS JOIN kind k ON k.id = i.kind
         WHERE i.id = ?2 AND {condition} ORDER BY i.seq"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::Store;

    #[test]
    fn an_item_is_found_by_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mirror.db");
        let (store, guard) = Store::open(&path).unwrap();
        drop(store);
        guard.finish();
        let reader = Reader::open(&path).unwrap();
        let sql = format!("EXPLAIN QUERY PLAN {}", with_id_sql("(i.feed IN (1,2) AND i.kind IN (3))"));
        let mut select = reader.db.prepare(&sql).unwrap();
        let steps = select.query_map(("[]", ""), |row| row.get::<_, String>(3)).unwrap();
        let plan = steps.collect::<rusqlite::Result<Vec<_>>>().unwrap().join("\n");
        assert!(plan.contains("SEARCH i USING INDEX item_key (feed=? AND key=?)"), "{plan}");
    }
}
