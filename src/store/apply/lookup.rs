//! Finding the stored item that an incoming one is compared with.

use rusqlite::{CachedStatement, Connection, Rows, params};

use super::FeedState;
use super::decide::{Decision, MergeRules, StoredItem, decide};
use super::row::{DELETED_FLAG, stored_modified, sweep_kind};
use crate::feed::{Item, ItemState, Modified, Seq};
use crate::store::StoreError;
use crate::store::writer::WriteTx;

/// The statements that run for each item, prepared once per delivery.
pub(super) struct ItemStatements<'a> {
    by_key: CachedStatement<'a>,
    following: CachedStatement<'a>,
    pub(super) insert: CachedStatement<'a>,
    /// The seq of the last stored item that was found, and whether it followed closely on the previous one.
    last_match_seq: Option<Seq>,
    in_order: bool,
}

/// A stored item with a seq this close after another's was most likely delivered just after it.
const MAX_SEQ_GAP: Seq = 16;

impl<'a> ItemStatements<'a> {
    pub(super) fn new(db: &'a Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            by_key: db.prepare_cached(
                "SELECT seq, feed, kind, id, modified, flags, data FROM item WHERE feed = ?1 AND key = ?2",
            )?,
            following: db.prepare_cached(
                "SELECT seq, feed, kind, id, modified, flags, data FROM item WHERE seq > ?1 ORDER BY seq LIMIT 1",
            )?,
            insert: db.prepare_cached("INSERT INTO item VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?,
            last_match_seq: None,
            in_order: false,
        })
    }

    /// The stored item and the decision; `None` where the item is not stored. A feed that is read again mostly comes in
    /// the order in which it was stored: then the next row is found without the index.
    pub(super) fn find(
        &mut self,
        tx: &WriteTx<'_>,
        lookup: &ItemLookup<'_>,
        key: i64,
    ) -> Result<Option<Match>, StoreError> {
        let mut found = match self.last_match_seq.filter(|_| self.in_order) {
            Some(last_seq) => lookup.match_among(tx, self.following.query([last_seq])?)?,
            None => None,
        };
        if found.is_none() {
            found = lookup.match_among(tx, self.by_key.query(params![lookup.feed.id, key])?)?;
        }
        if let Some(found) = &found {
            self.in_order =
                self.last_match_seq.is_some_and(|last_seq| (1..=MAX_SEQ_GAP).contains(&(found.seq - last_seq)));
            self.last_match_seq = Some(found.seq);
        }
        Ok(found)
    }
}

/// An incoming item to be looked up, and the rules to decide by.
pub(super) struct ItemLookup<'a> {
    pub(super) feed: &'a FeedState,
    pub(super) kind: i64,
    pub(super) item: &'a Item,
    pub(super) data: &'a str,
    pub(super) rules: MergeRules,
}

/// A stored item and the decision about the incoming one.
pub(super) struct Match {
    pub(super) seq: Seq,
    pub(super) decision: Decision,
    pub(super) old_state: ItemState,
    pub(super) old_modified: Modified,
    /// Bytes of the stored data.
    pub(super) old_data_bytes: usize,
}

impl ItemLookup<'_> {
    /// The item's row among `rows`, which may include other items': keys collide, so feed, kind and id decide.
    fn match_among(&self, tx: &WriteTx<'_>, mut rows: Rows<'_>) -> Result<Option<Match>, StoreError> {
        while let Some(row) = rows.next()? {
            let is_item = row.get::<_, i64>(1)? == self.feed.id
                && row.get::<_, i64>(2)? == self.kind
                && row.get_ref(3)?.as_bytes().ok() == Some(self.item.id.as_bytes());
            if !is_item {
                continue;
            }
            let (seq, flags): (Seq, i64) = (row.get(0)?, row.get(5)?);
            let trusted = self.rules.resync && self.feed.resync.as_ref().is_some_and(|walk| walk.trust);
            let stored = StoredItem {
                modified: stored_modified(row.get_ref(4)?, flags),
                state: if flags & DELETED_FLAG == 0 { ItemState::Updated } else { ItemState::Deleted },
                sweep_kind: sweep_kind(flags),
                data: row.get_ref(6)?.as_bytes_or_null().ok().flatten().unwrap_or_default(),
                replaceable: trusted && may_replace(tx, self.feed, seq)?,
            };
            let decision = decide(&stored, self.item, self.data, self.rules);
            let old_data_bytes = stored.data.len();
            return Ok(Some(Match {
                seq,
                decision,
                old_state: stored.state,
                old_modified: stored.modified,
                old_data_bytes,
            }));
        }
        Ok(None)
    }
}

fn may_replace(tx: &WriteTx<'_>, feed: &FeedState, seq: Seq) -> Result<bool, StoreError> {
    if feed.resync.as_ref().is_none_or(|walk| seq > walk.start_seq) {
        return Ok(false);
    }
    Ok(!tx.db.prepare_cached("SELECT 1 FROM seen WHERE feed = ?1 AND seq = ?2 AND walked")?.exists([feed.id, seq])?)
}
