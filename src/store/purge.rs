//! Purging a feed: one short transaction hides its rows, and they go in steps afterwards.
//!
//! The feed gets a new number, so that its rows stand under one that no feed has: every view and every reader joins feed
//! and row, and none shows them any more; what was read before belongs to no feed. A step is small, adapts to the time it
//! took, and leaves the writer as long to others. What is left to be removed is stored until it is gone; a feed that is
//! resumed meanwhile goes on then.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{OpenFlags, OptionalExtension, params};
use tokio::sync::Notify;

use super::feeds::{self, set_health};
use super::writer::{Bench, Weight};
use super::{Millis, Store, StoreError, journal};
use crate::feed::{FeedName, Health};

/// What the first transaction removes by itself, so that a small feed is gone at once.
const AT_ONCE: usize = 200;
/// How long a step is to take.
const STEP: Duration = Duration::from_millis(15);
/// Rows in a step: the first has this many, and none fewer or more than the other two say.
const STEP_ROWS: usize = 100;
const FEWEST_ROWS: usize = 10;
const MOST_ROWS: usize = 2_000;
/// Rows found at once, to be removed in the order in which they stand in the table.
const FOUND: i64 = 2_000_000;

/// Tables whose rows go with the feed, with a condition that names the next `?2` of them. Quarantined records may be large.
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
pub struct Removal {
    /// The number under which they stand.
    pub feed: i64,
    /// The feed, unless it is no longer configured.
    pub owner: Option<FeedName>,
}

/// Feeds that were purged since somebody asked.
#[derive(Default)]
pub(super) struct Purged {
    names: Mutex<Vec<FeedName>>,
    news: Notify,
}

impl Purged {
    fn names(&self) -> MutexGuard<'_, Vec<FeedName>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, name: FeedName) {
        let mut names = self.names();
        if !names.contains(&name) {
            names.push(name);
        }
        self.news.notify_one();
    }
}

impl Store {
    /// Hides a feed's rows, quarantine and cursors at once, and leaves one `purged` change; about how many rows are still to
    /// be removed ([`Store::remove_purged`]). A feed that is no longer configured goes altogether.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn purge(&self, name: &FeedName, at: Millis) -> Result<u64, StoreError> {
        let (name, told) = (name.clone(), name.clone());
        let weight = Weight { seqs: 1, ..Weight::default() };
        let left = self.submit(weight, move |bench| purge(bench, name.as_str(), at)).await?;
        self.purged.tell(told);
        Ok(left)
    }

    /// Returns once feeds were purged, or if some were since the last call: which.
    pub async fn await_purge(&self) -> Vec<FeedName> {
        loop {
            let names = std::mem::take(&mut *self.purged.names());
            if !names.is_empty() {
                return names;
            }
            self.purged.news.notified().await;
        }
    }

    /// Purged feeds whose rows are still to be removed.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn removals(&self) -> Result<Vec<Removal>, StoreError> {
        self.submit(Weight::default(), |bench| {
            let sql = "SELECT r.feed, f.name FROM removal r LEFT JOIN feed f ON f.id = r.owner ORDER BY r.feed";
            let mut select = bench.db.prepare_cached(sql)?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?)))?;
            let removal = |(feed, owner): (i64, Option<String>)| Removal {
                feed,
                owner: owner.as_deref().and_then(FeedName::new),
            };
            Ok(rows.map(|row| row.map(removal)).collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Removes what a purge left, step by step; whether the feed goes on, since it was resumed meanwhile.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped. What is left then is removed by the next call.
    pub async fn remove_purged(&self, removal: &Removal, at: impl Fn() -> Millis) -> Result<bool, StoreError> {
        let feed = removal.feed;
        let mut rows = STEP_ROWS;
        loop {
            let found = self.find_rows(feed).await?;
            if found.is_empty() {
                break;
            }
            let mut left = found.as_slice();
            while !left.is_empty() {
                let (step, rest) = left.split_at(rows.min(left.len()));
                let seqs = step.to_vec();
                (rows, _) = self.step(rows, move |bench| remove_rows(bench, feed, &seqs)).await?;
                left = rest;
            }
        }
        for (table, most, condition) in TABLES {
            let sql = format!("DELETE FROM {table} WHERE feed = ?1 AND {condition}");
            loop {
                let (sql, limit) = (sql.clone(), rows.min(FEWEST_ROWS * most) as i64);
                let remove = move |bench: &mut Bench<'_>| Ok(bench.db.prepare_cached(&sql)?.execute([feed, limit])?);
                let (next, removed) = self.step(rows, remove).await?;
                if removed == 0 {
                    break;
                }
                rows = next;
            }
        }
        let at = at();
        self.submit(Weight::default(), move |bench| finish(bench, feed, at)).await
    }

    /// Does one step behind all other work, leaves the writer to others for as long as it took, and says how many rows the
    /// next one should have.
    async fn step<T, F>(&self, rows: usize, mut work: F) -> Result<(usize, T), StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Bench<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let weight = Weight { large: true, ..Weight::default() };
        let queued = Instant::now();
        let (took, done) = self
            .submit(weight, move |bench| {
                let began = Instant::now();
                let done = work(bench)?;
                Ok((began.elapsed(), done))
            })
            .await?;
        tokio::time::sleep(queued.elapsed().min(10 * STEP)).await;
        Ok((next_rows(rows, took), done))
    }

    /// A feed's next rows in the order of the table, found beside the writer.
    async fn find_rows(&self, feed: i64) -> Result<Vec<i64>, StoreError> {
        let path = self.path().to_owned();
        let find = move || -> rusqlite::Result<Vec<i64>> {
            let db = super::read::connect(path, OpenFlags::empty())?;
            let mut select = db.prepare("SELECT seq FROM item INDEXED BY item_key WHERE feed = ?1 LIMIT ?2")?;
            let mut seqs = select.query_map([feed, FOUND], |row| row.get(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
            seqs.sort_unstable();
            Ok(seqs)
        };
        let found = tokio::task::spawn_blocking(find).await;
        Ok(found.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))??)
    }
}

/// A step twice as long as it should be has half as many rows the next time; one that was quick at most twice as many.
fn next_rows(rows: usize, took: Duration) -> usize {
    let factor = STEP.as_secs_f64() / took.as_secs_f64().max(1e-6);
    ((rows as f64 * factor.clamp(0.25, 2.0)) as usize).clamp(FEWEST_ROWS, MOST_ROWS)
}

fn remove_rows(bench: &Bench<'_>, feed: i64, seqs: &[i64]) -> Result<(), StoreError> {
    let mut delete = bench.db.prepare_cached("DELETE FROM item WHERE seq = ?1 AND feed = ?2")?;
    let mut removed = 0;
    for seq in seqs {
        removed += delete.execute([*seq, feed])?;
    }
    let sql = "UPDATE removal SET rows = max(rows - ?2, 0) WHERE feed = ?1 RETURNING owner, rows, resume";
    let left = bench
        .db
        .prepare_cached(sql)?
        .query_row(params![feed, removed as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    if let Some((Some(owner), rows, resume)) = left {
        tell(bench, owner, rows, resume)?;
    }
    Ok(())
}

/// What is left, as the reason for which a purged feed stands still.
fn tell(bench: &Bench<'_>, owner: i64, rows: i64, resume: bool) -> rusqlite::Result<()> {
    let then = if resume { "then it is read anew, as asked" } else { "resume reads the feed anew" };
    let reason = format!("paused: purged; {rows} rows that nobody sees are still to be removed; {then}");
    let sql = "UPDATE endpoint SET reason = ?2 WHERE feed = ?1 AND transport = 0 AND health = 'paused'";
    bench.db.prepare_cached(sql)?.execute(params![owner, reason]).map(drop)
}

fn purge(bench: &mut Bench<'_>, name: &str, at: Millis) -> Result<u64, StoreError> {
    let was = feeds::read(bench, name)?.id;
    let (configured, rows): (bool, i64) = bench.db.query_row(
        "SELECT configured, items + tombstones + quarantine_rows FROM feed WHERE id = ?1",
        [was],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    bench.db.execute("DELETE FROM resync WHERE feed = ?1", [was])?;
    bench.db.execute("DELETE FROM purge WHERE feed = ?1", [name])?;
    let seq = bench.seq();
    bench.db.execute("INSERT INTO purge VALUES (?1, ?2, ?3)", params![seq, name, at])?;
    let owner = if configured { Some(begin_anew(bench, was)?) } else { None };
    bench.db.execute("UPDATE removal SET owner = ?2, resume = 0 WHERE owner = ?1", params![was, owner])?;
    bench.db.execute("INSERT INTO removal (feed, owner, rows) VALUES (?1, ?2, ?3)", params![was, owner, rows])?;
    match owner {
        Some(owner) => {
            journal::event(bench, Some(owner), at, "purged", "all rows removed; resume reads the feed anew")?;
            set_health(bench, owner, at, Health::Paused, Some(PURGED))?;
        }
        None => {
            bench.db.execute("DELETE FROM endpoint WHERE feed = ?1", [was])?;
            bench.db.execute("DELETE FROM feed WHERE id = ?1", [was])?;
            journal::event(bench, None, at, "purged", name)?;
        }
    }
    remove_at_once(bench, was, at)
}

const PURGED: &str = "paused: purged; resume reads the feed anew";

/// Gives the feed another number; what it keeps is its name, what happened to it, and what it is to forget.
fn begin_anew(bench: &Bench<'_>, was: i64) -> rusqlite::Result<i64> {
    // A number that SQLite gave once it never gives again.
    bench.db.execute("INSERT INTO feed (name, url) VALUES ('', '')", [])?;
    let id = bench.db.last_insert_rowid();
    bench.db.execute("DELETE FROM feed WHERE id = ?1", [id])?;
    bench.db.execute(
        "UPDATE feed SET id = ?2, generation = generation + 1, paused = 1, purged = 1, mode = 'refresh', items = 0,
             tombstones = 0, level_at = NULL, polled_at = NULL, changed_at = NULL, next_poll_at = NULL, failures = 0,
             suspect = NULL, differing = 0, class = 0, resynced_at = NULL, read_anew_at = NULL, looked_back_at = NULL,
             away_since = NULL, stale = 0, look_back_due = 0, held_until = NULL, gone_ms = 0, quarantine_rows = 0, quarantine_bytes = 0, quarantine_dropped = 0, bytes = 0, renumbered = 0,
             renumber_to = NULL
         WHERE id = ?1",
        [was, id],
    )?;
    bench.db.execute(
        "UPDATE endpoint SET cursor = NULL, modified = NULL, id = NULL, item_at = NULL, event_id = NULL,
             updated_at = NULL, push = 'none', delivered = 0, missed = 0, late = 0, proven_at = NULL WHERE feed = ?1",
        [id],
    )?;
    for table in ["event", "finding", "forgotten", "erasure"] {
        bench.db.execute(&format!("UPDATE {table} SET feed = ?2 WHERE feed = ?1"), [was, id])?;
    }
    Ok(id)
}

/// Ends the removal of a small feed in the transaction that begins it; how many rows are left of a larger one.
fn remove_at_once(bench: &mut Bench<'_>, feed: i64, at: Millis) -> Result<u64, StoreError> {
    let mut select = bench.db.prepare_cached("SELECT seq FROM item INDEXED BY item_key WHERE feed = ?1 LIMIT ?2")?;
    let seqs = select.query_map(params![feed, AT_ONCE as i64], |row| row.get(0))?;
    let seqs: Vec<i64> = seqs.collect::<rusqlite::Result<_>>()?;
    drop(select);
    let mut whole = seqs.len() < AT_ONCE;
    remove_rows(bench, feed, &seqs)?;
    for (table, _, condition) in TABLES {
        if !whole {
            break;
        }
        let sql = format!("DELETE FROM {table} WHERE feed = ?1 AND {condition}");
        whole &= bench.db.prepare_cached(&sql)?.execute(params![feed, AT_ONCE as i64])? < AT_ONCE;
    }
    if whole {
        finish(bench, feed, at)?;
        return Ok(0);
    }
    let rows = bench.db.query_row("SELECT rows FROM removal WHERE feed = ?1", [feed], |row| row.get::<_, i64>(0))?;
    Ok(u64::try_from(rows).unwrap_or(0).max(1))
}

/// The rows are gone, and with them the kinds that only they had. Whether the feed goes on now.
fn finish(bench: &mut Bench<'_>, feed: i64, at: Millis) -> Result<bool, StoreError> {
    bench.db.execute("DELETE FROM kind WHERE id NOT IN (SELECT kind FROM feed_kind)", [])?;
    bench.forget_kinds();
    let sql = "DELETE FROM removal WHERE feed = ?1 RETURNING owner, resume";
    let ended = bench.db.query_row(sql, [feed], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((Some(owner), resume)) = ended else { return Ok(false) };
    let sql = "SELECT name FROM feed WHERE id = ?1 AND paused AND purged";
    let name: Option<String> = bench.db.query_row(sql, [owner], |row| row.get(0)).optional()?;
    let (Some(name), false) = (name, is_running(bench, owner)?) else { return Ok(false) };
    set_health(bench, owner, at, Health::Paused, Some(PURGED))?;
    if resume {
        feeds::pause(bench, &name, at, false)?;
    }
    Ok(resume)
}

/// Whether rows of the feed are still to be removed.
fn is_running(bench: &Bench<'_>, owner: i64) -> rusqlite::Result<bool> {
    bench.db.prepare_cached("SELECT 1 FROM removal WHERE owner = ?1")?.exists([owner])
}

/// Notes whether the feed is to go on once its rows are removed; false when none are left to be.
pub(super) fn resume_later(bench: &Bench<'_>, owner: i64, resume: bool) -> rusqlite::Result<bool> {
    let sql = "UPDATE removal SET resume = ?2 WHERE owner = ?1 RETURNING rows";
    let mut update = bench.db.prepare_cached(sql)?;
    let rows = update.query_map(params![owner, resume], |row| row.get::<_, i64>(0))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    drop(update);
    if !rows.is_empty() {
        tell(bench, owner, rows.iter().sum(), resume)?;
    }
    Ok(!rows.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_as_many_rows_as_its_time_allows() {
        assert_eq!(next_rows(100, STEP), 100);
        assert_eq!(next_rows(100, 2 * STEP), 50);
        assert_eq!(next_rows(100, 100 * STEP), 25);
        assert_eq!(next_rows(100, STEP / 100), 200);
        assert_eq!(next_rows(MOST_ROWS, Duration::ZERO), MOST_ROWS);
        assert_eq!(next_rows(FEWEST_ROWS, 100 * STEP), FEWEST_ROWS);
    }
}
