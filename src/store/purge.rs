//! Purging a feed: one short transaction hides the feed's rows, and they are removed in steps afterwards.
//!
//! The feed gets a new id; its old rows keep the old one, which no feed has: every view and every reader joins feed and
//! row, and none shows these rows any more; a delivery that was read before belongs to no feed. A step is small, adapts
//! to the time that steps take, and leaves the writer to other jobs for as long. A pending removal is stored until it
//! is done; a feed that is resumed meanwhile runs again after that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{OpenFlags, OptionalExtension, params};
use tokio::sync::Notify;

use super::feeds::{self, set_health};
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, journal};
use crate::feed::{FeedName, Health};

/// Rows that the first transaction removes, so that a small feed is gone at once.
const IMMEDIATE_ROWS: usize = 200;
/// Target time of a step.
const STEP: Duration = Duration::from_millis(15);
/// Rows in the first step, and their bounds in later ones.
const STEP_ROWS: usize = 100;
const MIN_ROWS: usize = 10;
const MAX_ROWS: usize = 2_000;
/// Rows found at once, to be removed in the order of the table.
const MAX_FOUND_ROWS: i64 = 2_000_000;

/// Tables whose rows are removed with the feed, the greatest number of rows in a step as a multiple of [`MIN_ROWS`],
/// and a condition for the next `?2` rows. Quarantined records may be large.
const TABLES: &[(&str, usize, &str)] = &[
    ("quarantined", 1, "id IN (SELECT id FROM quarantined WHERE feed = ?1 LIMIT ?2)"),
    ("delivery", 10, "seq IN (SELECT seq FROM delivery WHERE feed = ?1 LIMIT ?2)"),
    ("refusal", 10, "n IN (SELECT n FROM refusal WHERE feed = ?1 LIMIT ?2)"),
    ("event", 10, "n IN (SELECT n FROM event WHERE feed = ?1 LIMIT ?2)"),
    ("seen", 20, "(feed, seq) IN (SELECT feed, seq FROM seen WHERE feed = ?1 LIMIT ?2)"),
    ("spared", 10, "(feed, id) IN (SELECT feed, id FROM spared WHERE feed = ?1 LIMIT ?2)"),
    ("newest", 10, "(feed, kind) IN (SELECT feed, kind FROM newest WHERE feed = ?1 LIMIT ?2)"),
    ("forgotten", 10, "(feed, digest) IN (SELECT feed, digest FROM forgotten WHERE feed = ?1 LIMIT ?2)"),
    ("activity", 10, "(feed, hour) IN (SELECT feed, hour FROM activity WHERE feed = ?1 LIMIT ?2)"),
    ("position", 10, "(feed, n) IN (SELECT feed, n FROM position WHERE feed = ?1 LIMIT ?2)"),
    ("finding", 10, "(feed, rule) IN (SELECT feed, rule FROM finding WHERE feed = ?1 LIMIT ?2)"),
    ("feed_kind", 20, "(feed, kind) IN (SELECT feed, kind FROM feed_kind WHERE feed = ?1 LIMIT ?2)"),
];

/// Rows of a purged feed that are still to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRemoval {
    /// The feed id of the rows.
    pub feed: i64,
    /// The purged feed's name; `None` when it is no longer configured.
    pub owner: Option<FeedName>,
}

/// Feeds that were purged since the last [`Store::await_purge`].
#[derive(Default)]
pub(super) struct PurgeNotices {
    names: Mutex<Vec<FeedName>>,
    news: Notify,
}

impl PurgeNotices {
    fn names(&self) -> MutexGuard<'_, Vec<FeedName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_name(&self, name: FeedName) {
        let mut names = self.names();
        if !names.contains(&name) {
            names.push(name);
        }
        self.news.notify_one();
    }
}

impl Store {
    /// Hides a feed's rows, quarantine and cursors at once, and writes one `purged` change; returns about how many rows
    /// are still to be removed ([`Store::remove_purged`]). A feed that is no longer configured is removed itself.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn purge(&self, name: &FeedName, at: Millis) -> Result<u64, StoreError> {
        let (name, notice) = (name.clone(), name.clone());
        let class = JobClass { max_seqs: 1, ..JobClass::default() };
        let left = self.submit(class, move |tx| purge(tx, name.as_str(), at)).await?;
        self.purge_notices.add_name(notice);
        Ok(left)
    }

    /// Waits until feeds are purged; returns at once if some were since the last call. Returns their names.
    pub async fn await_purge(&self) -> Vec<FeedName> {
        loop {
            let names = std::mem::take(&mut *self.purge_notices.names());
            if !names.is_empty() {
                return names;
            }
            self.purge_notices.news.notified().await;
        }
    }

    /// Purged feeds whose rows are still to be removed.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn pending_removals(&self) -> Result<Vec<PendingRemoval>, StoreError> {
        self.submit(JobClass::default(), |tx| {
            let sql = "SELECT r.feed, f.name FROM removal r LEFT JOIN feed f ON f.id = r.owner ORDER BY r.feed";
            let mut select = tx.db.prepare_cached(sql)?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?)))?;
            let removal = |(feed, owner): (i64, Option<String>)| PendingRemoval {
                feed,
                owner: owner.as_deref().and_then(FeedName::new),
            };
            Ok(rows.map(|row| row.map(removal)).collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Removes the rows of a purged feed, step by step; returns whether the feed runs again, since it was resumed
    /// meanwhile.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped. The next call removes the rest.
    pub async fn remove_purged(&self, removal: &PendingRemoval, at: impl Fn() -> Millis) -> Result<bool, StoreError> {
        let feed = removal.feed;
        let mut rows = STEP_ROWS;
        loop {
            let seqs = self.find_rows(feed).await?;
            if seqs.is_empty() {
                break;
            }
            let mut left = seqs.as_slice();
            while !left.is_empty() {
                let (step, rest) = left.split_at(rows.min(left.len()));
                let step_seqs = step.to_vec();
                (rows, _) = self.step(rows, move |tx| remove_rows(tx, feed, &step_seqs)).await?;
                left = rest;
            }
        }
        for (table, max_factor, condition) in TABLES {
            let sql = format!("DELETE FROM {table} WHERE feed = ?1 AND {condition}");
            loop {
                let (sql, limit) = (sql.clone(), rows.min(MIN_ROWS * max_factor) as i64);
                let remove = move |tx: &mut WriteTx<'_>| Ok(tx.db.prepare_cached(&sql)?.execute([feed, limit])?);
                let (next, removed) = self.step(rows, remove).await?;
                if removed == 0 {
                    break;
                }
                rows = next;
            }
        }
        let at = at();
        self.submit(JobClass::default(), move |tx| finish(tx, feed, at)).await
    }

    /// Runs one step after all other jobs, leaves the writer to others for as long as the step took, and returns the
    /// number of rows for the next one.
    async fn step<T, F>(&self, rows: usize, mut work: F) -> Result<(usize, T), StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let class = JobClass { large: true, ..JobClass::default() };
        let queued = Instant::now();
        let (duration, result) = self
            .submit(class, move |tx| {
                let start = Instant::now();
                let result = work(tx)?;
                Ok((start.elapsed(), result))
            })
            .await?;
        tokio::time::sleep(queued.elapsed().min(10 * STEP)).await;
        Ok((next_step_rows(rows, duration), result))
    }

    /// A feed's next rows in the order of the table, found outside the writer.
    async fn find_rows(&self, feed: i64) -> Result<Vec<i64>, StoreError> {
        let path = self.path().to_owned();
        let find = move || -> rusqlite::Result<Vec<i64>> {
            let db = super::read::connect(path, OpenFlags::empty())?;
            let mut select = db.prepare("SELECT seq FROM item INDEXED BY item_key WHERE feed = ?1 LIMIT ?2")?;
            let mut seqs =
                select.query_map([feed, MAX_FOUND_ROWS], |row| row.get(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
            seqs.sort_unstable();
            Ok(seqs)
        };
        let seqs = tokio::task::spawn_blocking(find).await;
        Ok(seqs.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))??)
    }
}

/// After a step of twice the target time the next has half as many rows; after a quick one, at most twice as many.
fn next_step_rows(rows: usize, duration: Duration) -> usize {
    let factor = STEP.as_secs_f64() / duration.as_secs_f64().max(1e-6);
    ((rows as f64 * factor.clamp(0.25, 2.0)) as usize).clamp(MIN_ROWS, MAX_ROWS)
}

fn remove_rows(tx: &WriteTx<'_>, feed: i64, seqs: &[i64]) -> Result<(), StoreError> {
    let mut delete = tx.db.prepare_cached("DELETE FROM item WHERE seq = ?1 AND feed = ?2")?;
    let mut removed = 0;
    for seq in seqs {
        removed += delete.execute([*seq, feed])?;
    }
    let sql = "UPDATE removal SET rows = max(rows - ?2, 0) WHERE feed = ?1 RETURNING owner, rows, resume";
    let left = tx
        .db
        .prepare_cached(sql)?
        .query_row(params![feed, removed as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    if let Some((Some(owner), rows, resume)) = left {
        set_pause_reason(tx, owner, rows, resume)?;
    }
    Ok(())
}

/// Stores the number of rows left, in the reason of a purged feed's pause.
fn set_pause_reason(tx: &WriteTx<'_>, owner: i64, rows: i64, resume: bool) -> rusqlite::Result<()> {
    let next = if resume { "then it is read anew, as asked" } else { "resume reads the feed anew" };
    let reason = format!("paused: purged; {rows} rows that nobody sees are still to be removed; {next}");
    let sql = "UPDATE endpoint SET reason = ?2 WHERE feed = ?1 AND transport = 0 AND health = 'paused'";
    tx.db.prepare_cached(sql)?.execute(params![owner, reason]).map(drop)
}

fn purge(tx: &mut WriteTx<'_>, name: &str, at: Millis) -> Result<u64, StoreError> {
    let old_id = feeds::read(tx, name)?.id;
    let (configured, rows): (bool, i64) = tx.db.query_row(
        "SELECT configured, items + tombstones + quarantine_rows FROM feed WHERE id = ?1",
        [old_id],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    tx.db.execute("DELETE FROM resync WHERE feed = ?1", [old_id])?;
    tx.db.execute("DELETE FROM purge WHERE feed = ?1", [name])?;
    let seq = tx.allocate_seq();
    tx.db.execute("INSERT INTO purge VALUES (?1, ?2, ?3)", params![seq, name, at])?;
    let owner = if configured { Some(assign_new_id(tx, old_id)?) } else { None };
    tx.db.execute("UPDATE removal SET owner = ?2, resume = 0 WHERE owner = ?1", params![old_id, owner])?;
    tx.db.execute("INSERT INTO removal (feed, owner, rows) VALUES (?1, ?2, ?3)", params![old_id, owner, rows])?;
    match owner {
        Some(owner) => {
            journal::record_event(tx, Some(owner), at, "purged", "all rows removed; resume reads the feed anew")?;
            set_health(tx, owner, at, Health::Paused, Some(PURGED))?;
        }
        None => {
            tx.db.execute("DELETE FROM endpoint WHERE feed = ?1", [old_id])?;
            tx.db.execute("DELETE FROM feed WHERE id = ?1", [old_id])?;
            journal::record_event(tx, None, at, "purged", name)?;
        }
    }
    remove_if_small(tx, old_id, at)
}

const PURGED: &str = "paused: purged; resume reads the feed anew";

/// Gives the feed another id; the feed keeps its name, events, findings and forgotten items.
fn assign_new_id(tx: &WriteTx<'_>, old_id: i64) -> rusqlite::Result<i64> {
    // SQLite never gives an id twice.
    tx.db.execute("INSERT INTO feed (name, url) VALUES ('', '')", [])?;
    let id = tx.db.last_insert_rowid();
    tx.db.execute("DELETE FROM feed WHERE id = ?1", [id])?;
    tx.db.execute(
        "UPDATE feed SET id = ?2, generation = generation + 1, paused = 1, purged = 1, mode = 'refresh', items = 0,
             tombstones = 0, level_at = NULL, polled_at = NULL, changed_at = NULL, next_poll_at = NULL, failures = 0,
             suspect = NULL, differing = 0, class = 0, resynced_at = NULL, read_anew_at = NULL, looked_back_at = NULL,
             away_since = NULL, stale = 0, look_back_due = 0, held_until = NULL, gone_ms = 0, quarantine_rows = 0, quarantine_bytes = 0, quarantine_dropped = 0, bytes = 0, renumbered = 0,
             renumber_to = NULL
         WHERE id = ?1",
        [old_id, id],
    )?;
    tx.db.execute(
        "UPDATE endpoint SET cursor = NULL, modified = NULL, id = NULL, item_at = NULL, event_id = NULL,
             updated_at = NULL, push = 'none', delivered = 0, missed = 0, late = 0, proven_at = NULL WHERE feed = ?1",
        [id],
    )?;
    for table in ["event", "finding", "forgotten", "erasure"] {
        tx.db.execute(&format!("UPDATE {table} SET feed = ?2 WHERE feed = ?1"), [old_id, id])?;
    }
    Ok(id)
}

/// Ends the removal of a small feed in the transaction that begins it; returns how many rows are left of a larger one.
fn remove_if_small(tx: &mut WriteTx<'_>, feed: i64, at: Millis) -> Result<u64, StoreError> {
    let mut select = tx.db.prepare_cached("SELECT seq FROM item INDEXED BY item_key WHERE feed = ?1 LIMIT ?2")?;
    let seqs = select.query_map(params![feed, IMMEDIATE_ROWS as i64], |row| row.get(0))?;
    let seqs: Vec<i64> = seqs.collect::<rusqlite::Result<_>>()?;
    drop(select);
    let mut complete = seqs.len() < IMMEDIATE_ROWS;
    remove_rows(tx, feed, &seqs)?;
    for (table, _, condition) in TABLES {
        if !complete {
            break;
        }
        let sql = format!("DELETE FROM {table} WHERE feed = ?1 AND {condition}");
        complete &= tx.db.prepare_cached(&sql)?.execute(params![feed, IMMEDIATE_ROWS as i64])? < IMMEDIATE_ROWS;
    }
    if complete {
        finish(tx, feed, at)?;
        return Ok(0);
    }
    let rows = tx.db.query_row("SELECT rows FROM removal WHERE feed = ?1", [feed], |row| row.get::<_, i64>(0))?;
    Ok(u64::try_from(rows).unwrap_or(0).max(1))
}

/// Ends a removal, and deletes the kinds that no feed has any more. Returns whether the feed runs again.
fn finish(tx: &mut WriteTx<'_>, feed: i64, at: Millis) -> Result<bool, StoreError> {
    tx.db.execute("DELETE FROM kind WHERE id NOT IN (SELECT kind FROM feed_kind)", [])?;
    tx.clear_kind_cache();
    let sql = "DELETE FROM removal WHERE feed = ?1 RETURNING owner, resume";
    let ended = tx.db.query_row(sql, [feed], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((Some(owner), resume)) = ended else { return Ok(false) };
    let sql = "SELECT name FROM feed WHERE id = ?1 AND paused AND purged";
    let name: Option<String> = tx.db.query_row(sql, [owner], |row| row.get(0)).optional()?;
    let (Some(name), false) = (name, has_removal(tx, owner)?) else { return Ok(false) };
    set_health(tx, owner, at, Health::Paused, Some(PURGED))?;
    if resume {
        feeds::set_paused(tx, &name, at, false)?;
    }
    Ok(resume)
}

/// Whether the feed has a pending removal.
fn has_removal(tx: &WriteTx<'_>, owner: i64) -> rusqlite::Result<bool> {
    tx.db.prepare_cached("SELECT 1 FROM removal WHERE owner = ?1")?.exists([owner])
}

/// Stores whether the feed runs again once its rows are removed; false when the feed has no pending removal.
pub(super) fn set_resume_after(tx: &WriteTx<'_>, owner: i64, resume: bool) -> rusqlite::Result<bool> {
    let sql = "UPDATE removal SET resume = ?2 WHERE owner = ?1 RETURNING rows";
    let mut update = tx.db.prepare_cached(sql)?;
    let rows = update.query_map(params![owner, resume], |row| row.get::<_, i64>(0))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    drop(update);
    if !rows.is_empty() {
        set_pause_reason(tx, owner, rows.iter().sum(), resume)?;
    }
    Ok(!rows.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_as_many_rows_as_its_time_allows() {
        assert_eq!(next_step_rows(100, STEP), 100);
        assert_eq!(next_step_rows(100, 2 * STEP), 50);
        assert_eq!(next_step_rows(100, 100 * STEP), 25);
        assert_eq!(next_step_rows(100, STEP / 100), 200);
        assert_eq!(next_step_rows(MAX_ROWS, Duration::ZERO), MAX_ROWS);
        assert_eq!(next_step_rows(MIN_ROWS, 100 * STEP), MIN_ROWS);
    }
}
