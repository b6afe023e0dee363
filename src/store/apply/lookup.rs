//! Finding the stored item that an incoming one is judged against.

use rusqlite::{CachedStatement, Connection, Rows, params};

use super::Feed;
use super::decide::{Decision, Rules, Stored, decide};
use super::row::{DELETED, stored_modified, swept};
use crate::feed::{Item, Modified, Seq, State};
use crate::store::StoreError;
use crate::store::writer::Bench;

/// What runs for each item is looked up once a delivery.
pub(super) struct Prepared<'a> {
    by_key: CachedStatement<'a>,
    following: CachedStatement<'a>,
    pub(super) insert: CachedStatement<'a>,
    /// Where the last stored item was met, and whether just behind the one before.
    met: Option<Seq>,
    in_order: bool,
}

/// A stored item this close behind another was most likely delivered just after it.
const CLOSE: Seq = 16;

impl<'a> Prepared<'a> {
    pub(super) fn new(db: &'a Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            by_key: db.prepare_cached(
                "SELECT seq, feed, kind, id, modified, flags, data FROM item WHERE feed = ?1 AND key = ?2",
            )?,
            following: db.prepare_cached(
                "SELECT seq, feed, kind, id, modified, flags, data FROM item WHERE seq > ?1 ORDER BY seq LIMIT 1",
            )?,
            insert: db.prepare_cached("INSERT INTO item VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?,
            met: None,
            in_order: false,
        })
    }

    /// The stored item, judged; `None` where the mirror doesn't hold it. A feed that is read again comes in the order it
    /// was stored in, mostly: then the next row is found without the index.
    pub(super) fn find(&mut self, bench: &Bench<'_>, wanted: &Wanted<'_>, key: i64) -> Result<Option<Met>, StoreError> {
        let mut met = match self.met.filter(|_| self.in_order) {
            Some(before) => wanted.among(bench, self.following.query([before])?)?,
            None => None,
        };
        if met.is_none() {
            met = wanted.among(bench, self.by_key.query(params![wanted.feed.id, key])?)?;
        }
        if let Some(met) = &met {
            self.in_order = self.met.is_some_and(|before| (1..=CLOSE).contains(&(met.seq - before)));
            self.met = Some(met.seq);
        }
        Ok(met)
    }
}

/// The item to be found in the store, and the rules to judge it by.
pub(super) struct Wanted<'a> {
    pub(super) feed: &'a Feed,
    pub(super) kind: i64,
    pub(super) item: &'a Item,
    pub(super) data: &'a str,
    pub(super) rules: Rules,
}

/// A stored item, judged.
pub(super) struct Met {
    pub(super) seq: Seq,
    pub(super) decision: Decision,
    pub(super) was: State,
    pub(super) before: Modified,
    /// Bytes of its data.
    pub(super) size: usize,
}

impl Wanted<'_> {
    /// The row that holds the item, among rows that may be others': keys collide, so feed, kind and id decide.
    fn among(&self, bench: &Bench<'_>, mut rows: Rows<'_>) -> Result<Option<Met>, StoreError> {
        while let Some(row) = rows.next()? {
            let same = row.get::<_, i64>(1)? == self.feed.id
                && row.get::<_, i64>(2)? == self.kind
                && row.get_ref(3)?.as_bytes().ok() == Some(self.item.id.as_bytes());
            if !same {
                continue;
            }
            let (seq, flags): (Seq, i64) = (row.get(0)?, row.get(5)?);
            let trusted = self.rules.resync && self.feed.resync.as_ref().is_some_and(|walk| walk.trust);
            let stored = Stored {
                modified: stored_modified(row.get_ref(4)?, flags),
                state: if flags & DELETED == 0 { State::Updated } else { State::Deleted },
                swept: swept(flags),
                data: row.get_ref(6)?.as_bytes_or_null().ok().flatten().unwrap_or_default(),
                replaceable: trusted && may_replace(bench, self.feed, seq)?,
            };
            let decision = decide(&stored, self.item, self.data, self.rules);
            let size = stored.data.len();
            return Ok(Some(Met { seq, decision, was: stored.state, before: stored.modified, size }));
        }
        Ok(None)
    }
}

fn may_replace(bench: &Bench<'_>, feed: &Feed, seq: Seq) -> Result<bool, StoreError> {
    if feed.resync.as_ref().is_none_or(|walk| seq > walk.start_seq) {
        return Ok(false);
    }
    Ok(!bench
        .db
        .prepare_cached("SELECT 1 FROM seen WHERE feed = ?1 AND seq = ?2 AND walked")?
        .exists([feed.id, seq])?)
}
