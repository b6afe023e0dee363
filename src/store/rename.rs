//! Renaming a feed: its rows, cursors, quarantine and history stay, and the feed is not read again.
//!
//! Followers of the change log store items by the feed's name. So a rename is one `purged` change for the old name, and
//! each item again, under a new change number, for the new name. The name changes at once; the rows get their numbers
//! in steps, which continue after a restart.

use rusqlite::{OptionalExtension, params};

use super::feeds::{FeedRegistration, StoredFeed};
use super::resync;
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, feeds, journal};
use crate::feed::{FeedName, Seq};

/// Rows given new numbers in one step.
const STEP_ROWS: usize = 500;
/// Rows of all feeds read in one step.
const SCANNED_ROWS: i64 = 5_000;

/// A feed's old name and its new one.
pub type Rename = (FeedName, FeedName);

impl Store {
    /// Gives a feed a new name.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is no such feed, or one with the new name already; when a statement fails or
    /// the writer has stopped.
    pub async fn rename(&self, at: Millis, old: &FeedName, new: &FeedName) -> Result<(), StoreError> {
        let (old, new) = (old.clone(), new.clone());
        let class = JobClass { max_seqs: 1, durable: true, ..JobClass::default() };
        self.submit(class, move |tx| rename(tx, at, &old, &new)).await
    }

    /// Stores a configuration, whole or not at all: feeds that are configured under another name than before are
    /// renamed, unless the mirror doesn't know the old name or holds data under the new one; then all feeds are
    /// registered, as [`Store::register`] does. Returns the renames that were made, and the feeds as stored now.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn configure(
        &self,
        at: Millis,
        renames: Vec<Rename>,
        feeds: Vec<FeedRegistration>,
        all: bool,
    ) -> Result<(Vec<Rename>, Vec<StoredFeed>), StoreError> {
        let class = JobClass { max_seqs: renames.len(), durable: !renames.is_empty(), ..JobClass::default() };
        self.submit(class, move |tx| {
            let mut done = Vec::new();
            for (old, new) in &renames {
                if name_holder(tx, old)?.is_some() && name_holder(tx, new)?.is_none_or(|feed| !feed.holds_data) {
                    rename(tx, at, old, new)?;
                    done.push((old.clone(), new.clone()));
                }
            }
            Ok((done, feeds::register_all(tx, at, &feeds, all)?))
        })
        .await
    }

    /// Gives the items of renamed feeds their new numbers, step by step; returns how many items got one.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn renumber(&self) -> Result<u64, StoreError> {
        let mut renumbered = 0;
        loop {
            let class = JobClass { large: true, max_seqs: STEP_ROWS, ..JobClass::default() };
            match self.submit(class, renumber).await? {
                None => return Ok(renumbered),
                Some(count) => renumbered += count as u64,
            }
        }
    }
}

fn rename(tx: &mut WriteTx<'_>, at: Millis, old: &FeedName, new: &FeedName) -> Result<(), StoreError> {
    let feed = feeds::read(tx, old.as_str())?.id;
    if old == new {
        return Err(StoreError::Refused(format!("{old} has this name already")));
    }
    match name_holder(tx, new)? {
        None => {}
        // The new name belongs to a feed that could never run, since its settings were wrong: it is removed.
        Some(NameHolder { id, holds_data: false }) => remove(tx, id)?,
        Some(_) => {
            let text = format!("{new} holds rows of its own in the mirror: purge it first, or {old} keeps its name");
            return Err(StoreError::Refused(text));
        }
    }
    let last = tx.last_seq();
    tx.db.execute(
        "UPDATE feed SET name = ?2, renumbered = 0, renumber_to = ?3 WHERE id = ?1",
        params![feed, new.as_str(), last],
    )?;
    tx.db.execute("UPDATE quarantine_order SET feed = ?2 WHERE feed = ?1", [old.as_str(), new.as_str()])?;
    let seq = tx.allocate_seq();
    tx.db.execute("DELETE FROM purge WHERE feed = ?1", [old.as_str()])?;
    tx.db.execute("INSERT INTO purge VALUES (?1, ?2, ?3)", params![seq, old.as_str(), at])?;
    Ok(journal::record_event(tx, Some(feed), at, "renamed", &format!("{old} → {new}"))?)
}

struct NameHolder {
    id: i64,
    /// Whether the feed holds rows, or has been level.
    holds_data: bool,
}

fn name_holder(tx: &WriteTx<'_>, name: &FeedName) -> Result<Option<NameHolder>, StoreError> {
    let sql = "SELECT id, items + tombstones + quarantine_rows + forgotten > 0 OR level_at IS NOT NULL FROM feed
               WHERE name = ?1";
    let mut find = tx.db.prepare_cached(sql)?;
    let found = find.query_row([name.as_str()], |row| Ok(NameHolder { id: row.get(0)?, holds_data: row.get(1)? }));
    Ok(found.optional()?)
}

/// Removes a feed without items.
fn remove(tx: &WriteTx<'_>, feed: i64) -> Result<(), StoreError> {
    const TABLES: [&str; 12] = [
        "finding",
        "event",
        "endpoint",
        "refusal",
        "position",
        "resync",
        "seen",
        "spared",
        "newest",
        "feed_kind",
        "delivery",
        "activity",
    ];
    for table in TABLES {
        tx.db.execute(&format!("DELETE FROM {table} WHERE feed = ?1"), [feed])?;
    }
    tx.db.execute("DELETE FROM feed WHERE id = ?1", [feed])?;
    Ok(())
}

/// One step, in the order of the table, for one renamed feed; returns the number of rows, `None` when no feed has rows
/// left to be renumbered.
fn renumber(tx: &mut WriteTx<'_>) -> Result<Option<usize>, StoreError> {
    let sql = "SELECT id, renumbered, renumber_to FROM feed WHERE renumber_to IS NOT NULL ORDER BY id LIMIT 1";
    let feed_row = tx.db.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let Some((feed, from, up_to)) = feed_row else { return Ok(None) };
    let (seqs, reached) = next_rows(tx, feed, from, up_to)?;
    for old_seq in &seqs {
        let seq = tx.allocate_seq();
        tx.db.prepare_cached("UPDATE item SET seq = ?2 WHERE seq = ?1")?.execute([*old_seq, seq])?;
    }
    match reached {
        Some(reached) => {
            tx.db.prepare_cached("UPDATE feed SET renumbered = ?2 WHERE id = ?1")?.execute([feed, reached])?;
        }
        None => {
            tx.db.execute("UPDATE feed SET renumbered = 0, renumber_to = NULL WHERE id = ?1", [feed])?;
            reset_resync(tx, feed)?;
        }
    }
    Ok(Some(seqs.len()))
}

/// The feed's next rows, and the last row of the table that was read; `None` once the table was read to its end.
fn next_rows(tx: &WriteTx<'_>, feed: i64, from: Seq, up_to: Seq) -> Result<(Vec<Seq>, Option<Seq>), StoreError> {
    let sql = "SELECT seq, feed FROM item WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
    let mut select = tx.db.prepare_cached(sql)?;
    let mut rows = select.query([from, up_to, SCANNED_ROWS])?;
    let (mut seqs, mut reached, mut count) = (Vec::new(), None, 0);
    while let Some(row) = rows.next()? {
        let seq: Seq = row.get(0)?;
        (reached, count) = (Some(seq), count + 1);
        if row.get::<_, i64>(1)? == feed {
            seqs.push(seq);
        }
        if seqs.len() == STEP_ROWS {
            return Ok((seqs, reached));
        }
    }
    Ok((seqs, reached.filter(|_| count == SCANNED_ROWS)))
}

/// Begins a running resync anew: it marked rows as seen by change numbers that no longer exist.
fn reset_resync(tx: &mut WriteTx<'_>, feed: i64) -> Result<(), StoreError> {
    let Some(running) = resync::read(tx, feed)? else { return Ok(()) };
    let (url, at): (String, Millis) = tx.db.query_row(
        "SELECT f.url, r.started_at FROM feed f JOIN resync r ON r.feed = f.id WHERE f.id = ?1",
        [feed],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    resync::cancel_resync(tx, feed)?;
    resync::begin(tx, feed, at, &url, running.trust, false)
}
