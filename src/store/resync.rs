//! Resync: a walk of the whole feed with a cursor of its own, which ends with a sweep of the items that are gone.
//!
//! An item that the walk reads unchanged keeps its row and its seq and is recorded in `seen`; an item that the walk
//! writes has a seq beyond `start_seq`. The sweep makes tombstones of the other live rows, in steps, so that no
//! delivery waits for it. A sweep that would remove too much, or that follows a short listing, is held until the
//! operator accepts it. A resync lasts until it has reached the end: one whose cursor is dead begins again, after ever
//! longer waits. The walk itself is the worker's.

mod end;

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::apply::swept_flags;
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, journal, millis};
use crate::feed::{FeedName, Seq};
pub(super) use end::record_progress;

/// Rows read in one step of a count or a sweep.
const STEP_ROWS: i64 = 1_000;

/// Whether the walk overwrites stored versions, even newer ones; only those stored before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceTrust {
    /// Newest wins.
    No,
    /// The operator requested the replacement.
    Requested,
    /// The feed's URL moved to another path or host.
    UrlMoved,
    /// The operator requested the replacement, and accepts the sweep beforehand.
    RequestedAndAccepted,
}

impl SourceTrust {
    const ALL: [Self; 4] = [Self::No, Self::Requested, Self::UrlMoved, Self::RequestedAndAccepted];

    /// From the command's options.
    pub fn from_options(trust_source: bool, accept: bool) -> Self {
        match (trust_source, accept) {
            (false, _) => Self::No,
            (true, false) => Self::Requested,
            (true, true) => Self::RequestedAndAccepted,
        }
    }

    fn from_code(code: i64) -> Self {
        usize::try_from(code).ok().and_then(|code| Self::ALL.get(code).copied()).unwrap_or(Self::No)
    }
}

/// How far a resync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResyncStage {
    /// The walk is reading.
    Walk,
    /// The walk has read to a clean end; the sweep waits for the operator.
    Held,
    /// The sweep is running.
    Sweep,
}

/// A resync under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncState {
    /// A random number that identifies the walk.
    pub walk_id: i64,
    /// The walk's cursor.
    pub cursor: String,
    /// Whether the walk replaces newer stored versions.
    pub trust: SourceTrust,
    /// How far the resync has come.
    pub stage: ResyncStage,
    /// How often in a row the walk's cursor was found dead.
    pub dead_cursor_count: u32,
    /// When the walk begins again after a dead cursor.
    pub not_before: Option<Millis>,
}

/// A resync with a dead cursor begins again at once the first time, then after this wait, then after ever longer ones.
const RESTART_WAIT: Duration = Duration::from_secs(3_600);
/// The longest of these waits.
const MAX_RESTART_WAIT: Duration = Duration::from_secs(24 * 3_600);

impl ResyncState {
    /// How long the resync waits from `now` until it begins again. A time further ahead than the longest wait counts as
    /// due: the clock was set back.
    pub fn restart_wait_left(&self, now: Millis) -> Duration {
        let left = self.not_before.map_or(0, |at| at.saturating_sub(now));
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        if left > MAX_RESTART_WAIT { Duration::ZERO } else { left }
    }

    /// Whether the resync walks, or waits to, and trusts the source.
    pub fn is_trusted_walk(&self) -> bool {
        self.trust != SourceTrust::No && self.stage == ResyncStage::Walk
    }
}

/// The wait after `dead_cursor_count` dead cursors in a row.
fn restart_wait(dead_cursor_count: u32) -> Duration {
    match dead_cursor_count {
        0 | 1 => Duration::ZERO,
        more => RESTART_WAIT.saturating_mul(1 << (more - 2).min(5)).min(MAX_RESTART_WAIT),
    }
}

/// The result of a resync's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncEnd {
    /// The end was not the standard's, or a `next` was generated: nothing is swept.
    Unclean,
    /// The sweep is held: this many of that many live items would go.
    Held(i64, i64),
    /// Done; this many items were swept.
    Done(i64),
    /// Another resync, or none, is under way by now: nothing was changed.
    Replaced,
}

type ScanPosition = (i64, Seq);

impl Store {
    /// Begins a resync, in place of an earlier one. `automatic`: no operator requested it.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn begin_resync(
        &self,
        name: &FeedName,
        at: Millis,
        trust: SourceTrust,
        automatic: bool,
    ) -> Result<super::feeds::StoredFeed, StoreError> {
        let name = name.clone();
        self.submit(JobClass::default(), move |tx| {
            let feed = super::feeds::read(tx, name.as_str())?;
            let url: String = tx.db.query_row("SELECT url FROM feed WHERE id = ?1", [feed.id], |row| row.get(0))?;
            begin(tx, feed.id, at, &url, trust, automatic)?;
            super::feeds::read(tx, name.as_str())
        })
        .await
    }

    /// Records that the cursor of the resync with this walk id is dead: the publisher's positions may have changed
    /// meanwhile. The resync begins again with the next [`Store::restart_resync`], after the wait that is returned.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn note_dead_cursor(&self, feed: i64, walk: i64, at: Millis) -> Result<Duration, StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let Some(resync) = read(tx, feed)?.filter(|resync| resync.walk_id == walk) else {
                return Ok(Duration::ZERO);
            };
            let dead_cursor_count = resync.dead_cursor_count.saturating_add(1);
            let wait = restart_wait(dead_cursor_count);
            let not_before = at.saturating_add(millis(wait));
            tx.db.execute(
                "UPDATE resync SET deaths = ?2, not_before = ?3 WHERE feed = ?1",
                params![feed, dead_cursor_count, not_before],
            )?;
            Ok(wait)
        })
        .await
    }

    /// Begins the resync with this walk id again from the feed's own URL, in one transaction: a feed without a cursor
    /// always has a resync.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn restart_resync(&self, name: &FeedName, walk: i64, at: Millis) -> Result<(), StoreError> {
        let name = name.clone();
        self.submit(JobClass::default(), move |tx| {
            let feed = super::feeds::read(tx, name.as_str())?;
            let Some(resync) = feed.resync.filter(|resync| resync.walk_id == walk) else { return Ok(()) };
            let url: String = tx.db.query_row("SELECT url FROM feed WHERE id = ?1", [feed.id], |row| row.get(0))?;
            delete_rows(tx, feed.id)?;
            begin(tx, feed.id, at, &url, resync.trust, false)?;
            tx.db
                .execute("UPDATE resync SET deaths = ?2 WHERE feed = ?1", params![feed.id, resync.dead_cursor_count])?;
            Ok(())
        })
        .await
    }

    /// Accepts a held sweep.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when none is held.
    pub async fn accept_sweep(&self, feed: i64, at: Millis) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "UPDATE resync SET stage = 'sweep' WHERE feed = ?1 AND stage = 'held'";
            if tx.db.execute(sql, [feed])? == 0 {
                return Err(StoreError::Refused("no sweep is held for this feed".into()));
            }
            Ok(journal::record_event(tx, Some(feed), at, "sweep-accepted", "by the operator")?)
        })
        .await
    }

    /// Sweeps the items that the resync with this walk id has not seen, step by step, and ends the resync; also after a
    /// restart.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn sweep(&self, feed: i64, walk: i64, at: Millis) -> Result<ResyncEnd, StoreError> {
        let mut swept = 0;
        let mut position = None;
        loop {
            let class = JobClass { large: true, durable: false, max_seqs: STEP_ROWS as usize };
            let step = self.submit(class, move |tx| {
                if stage(tx, feed, walk)? != Some(ResyncStage::Sweep) {
                    return Ok(None);
                }
                sweep_step(tx, feed, at, position).map(Some)
            });
            let Some((count, next)) = step.await? else { return Ok(ResyncEnd::Replaced) };
            swept += count;
            let Some(next) = next else { break };
            position = Some(next);
        }
        let finished = self.submit(JobClass::default(), move |tx| {
            let ours = stage(tx, feed, walk)? == Some(ResyncStage::Sweep);
            if ours {
                finish(tx, feed, at, swept)?;
            }
            Ok(ours)
        });
        Ok(if finished.await? { ResyncEnd::Done(swept) } else { ResyncEnd::Replaced })
    }
}

pub(super) fn begin(
    tx: &mut WriteTx<'_>,
    feed: i64,
    at: Millis,
    url: &str,
    trust: SourceTrust,
    automatic: bool,
) -> Result<(), StoreError> {
    // A running walk does all that a new one without trust would do, and must not lose its own trust.
    if trust == SourceTrust::No && read(tx, feed)?.is_some_and(|running| running.stage == ResyncStage::Walk) {
        // A walk that waits to begin again after a dead cursor waits no longer.
        tx.db.execute("UPDATE resync SET not_before = min(not_before, ?2) WHERE feed = ?1", params![feed, at])?;
        return Ok(());
    }
    delete_rows(tx, feed)?;
    tx.db.execute(
        "INSERT INTO resync (feed, walk, cursor, started_at, start_seq, trust) VALUES (?1, random(), ?2, ?3, ?4, ?5)",
        params![feed, url, at, tx.last_seq(), trust as i64],
    )?;
    if trust != SourceTrust::No {
        tx.db.execute("UPDATE feed SET generation = generation + 1 WHERE id = ?1", [feed])?;
        // A trusted source may not know its old positions: a look-back from them would make the feed suspect again.
        tx.db.execute("DELETE FROM position WHERE feed = ?1", [feed])?;
        tx.db.execute("UPDATE feed SET looked_back_at = NULL WHERE id = ?1", [feed])?;
        // Nor may a stream be resumed after an item that the source no longer has.
        let sql = "UPDATE endpoint SET modified = NULL, id = NULL, item_at = NULL, event_id = NULL,
                       cursor = iif(transport = 0, cursor, NULL) WHERE feed = ?1";
        tx.db.execute(sql, [feed])?;
    }
    // `stale` ends with the resync, not now.
    tx.db.execute("UPDATE feed SET stale = 2 WHERE id = ?1 AND stale <> 0", [feed])?;
    if automatic {
        tx.db.execute("UPDATE feed SET resynced_at = ?2 WHERE id = ?1", [feed, at])?;
    }
    let how = match trust {
        SourceTrust::No => "newest wins",
        SourceTrust::Requested => "trusting the source, as asked",
        SourceTrust::UrlMoved => "trusting the source, since the URL moved",
        SourceTrust::RequestedAndAccepted => "trusting the source and accepting its sweep, as asked",
    };
    Ok(journal::record_event(tx, Some(feed), at, "resync-began", how)?)
}

pub(super) fn read(tx: &WriteTx<'_>, feed: i64) -> Result<Option<ResyncState>, StoreError> {
    let found = tx
        .db
        .prepare_cached("SELECT walk, cursor, trust, stage, deaths, not_before FROM resync WHERE feed = ?1")?
        .query_row([feed], |row| {
            let stage = match row.get_ref(3)?.as_str()? {
                "held" => ResyncStage::Held,
                "sweep" => ResyncStage::Sweep,
                _ => ResyncStage::Walk,
            };
            let trust = SourceTrust::from_code(row.get(2)?);
            let (dead_cursor_count, not_before) = (row.get(4)?, row.get(5)?);
            Ok(ResyncState { walk_id: row.get(0)?, cursor: row.get(1)?, trust, stage, dead_cursor_count, not_before })
        })
        .optional()?;
    Ok(found)
}

/// The stage of the resync with this walk id; `None` when another resync has replaced it.
fn stage(tx: &WriteTx<'_>, feed: i64, walk: i64) -> Result<Option<ResyncStage>, StoreError> {
    Ok(read(tx, feed)?.filter(|resync| resync.walk_id == walk).map(|resync| resync.stage))
}

/// Cancels the resync; a stale feed stays stale.
pub(super) fn cancel_resync(tx: &WriteTx<'_>, feed: i64) -> rusqlite::Result<()> {
    delete_rows(tx, feed)?;
    tx.db.execute("UPDATE feed SET stale = 1 WHERE id = ?1 AND stale = 2", [feed])?;
    Ok(())
}

fn delete_rows(tx: &WriteTx<'_>, feed: i64) -> rusqlite::Result<()> {
    for table in TABLES {
        tx.db.execute(&format!("DELETE FROM {table} WHERE feed = ?1"), [feed])?;
    }
    Ok(())
}

/// Tables with a resync's own rows.
const TABLES: [&str; 4] = ["resync", "seen", "spared", "newest"];

/// A live row that a resync has not seen.
struct UnseenRow {
    seq: Seq,
    flags: i64,
    /// Bytes of the data.
    size: i64,
}

/// The unseen ones of the next rows in key order, and the position to continue from; `None` at the end.
fn unseen_rows(
    tx: &mut WriteTx<'_>,
    feed: i64,
    after: Option<ScanPosition>,
) -> Result<(Vec<UnseenRow>, Option<ScanPosition>), StoreError> {
    let (key, seq) = after.unwrap_or((i64::MIN, i64::MIN));
    let mut select = tx.db.prepare_cached(
        "SELECT i.seq, i.key, i.flags,
                i.flags & 1 = 0 AND i.seq <= r.start_seq
                AND NOT EXISTS (SELECT 1 FROM seen s WHERE s.feed = i.feed AND s.seq = i.seq)
                AND NOT EXISTS (SELECT 1 FROM spared p WHERE p.feed = i.feed AND p.id = i.id),
                octet_length(i.data)
         FROM item i JOIN resync r ON r.feed = i.feed
         WHERE i.feed = ?1 AND i.key >= ?2 AND (i.key > ?2 OR i.seq > ?3) ORDER BY i.key, i.seq LIMIT ?4",
    )?;
    let mut rows = select.query([feed, key, seq, STEP_ROWS])?;
    let (mut unseen, mut last, mut count) = (Vec::new(), None, 0);
    while let Some(row) = rows.next()? {
        let seq: Seq = row.get(0)?;
        last = Some((row.get(1)?, seq));
        count += 1;
        if row.get(3)? {
            unseen.push(UnseenRow { seq, flags: row.get(2)?, size: row.get(4)? });
        }
    }
    Ok((unseen, if count < STEP_ROWS { None } else { last }))
}

fn sweep_step(
    tx: &mut WriteTx<'_>,
    feed: i64,
    at: Millis,
    after: Option<ScanPosition>,
) -> Result<(i64, Option<ScanPosition>), StoreError> {
    let trust = read(tx, feed)?.is_some_and(|resync| resync.trust != SourceTrust::No);
    let (unseen, next) = unseen_rows(tx, feed, after)?;
    for row in &unseen {
        let seq = tx.allocate_seq();
        tx.db
            .prepare_cached(
                "INSERT INTO item SELECT ?2, feed, key, kind, 0, ?3, ?4, id, modified, NULL FROM item WHERE seq = ?1",
            )?
            .execute([row.seq, seq, swept_flags(row.flags, trust), at])?;
        tx.db.prepare_cached("DELETE FROM item WHERE seq = ?1")?.execute([row.seq])?;
    }
    let count = unseen.len() as i64;
    tx.db
        .prepare_cached(
            "UPDATE feed SET items = items - ?2, tombstones = tombstones + ?2, bytes = bytes - ?4,
                 changed_at = iif(?2 > 0, ?3, changed_at)
             WHERE id = ?1",
        )?
        .execute([feed, count, at, unseen.iter().map(|row| row.size).sum()])?;
    Ok((count, next))
}

/// A completed resync ends `suspect`.
fn finish(tx: &mut WriteTx<'_>, feed: i64, at: Millis, swept: i64) -> Result<(), StoreError> {
    let sql = "UPDATE feed SET suspect = NULL, differing = 0, read_anew_at = ?2, stale = iif(stale = 2, 0, stale)
               WHERE id = ?1";
    tx.db.execute(sql, [feed, at])?;
    delete_rows(tx, feed)?;
    journal::record_event(tx, Some(feed), at, "resync-done", &format!("{swept} items swept"))?;
    let suspect: bool = tx.db.query_row(
        "SELECT health = 'suspect' FROM endpoint WHERE feed = ?1 AND transport = 0",
        [feed],
        |row| row.get(0),
    )?;
    if suspect {
        super::feeds::set_health(tx, feed, at, crate::feed::Health::Ok, None)?;
    }
    Ok(())
}
