//! Resync: a walk beside the poll cursor, which ends by sweeping what is gone.
//!
//! What the walk meets keeps its row and its seq and is remembered in `seen`; what it writes has a seq beyond
//! `start_seq`. The sweep makes tombstones of live rows that are neither, in steps, so that nothing waits for it.
//! A sweep that would remove too much, or after a short listing, is held until the operator accepts it. A resync is over
//! when it has come to an end: one that meets a dead page begins again, ever more rarely.

mod end;

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::apply::swept_flags;
use super::writer::{Bench, Weight};
use super::{Millis, Store, StoreError, journal};
use crate::feed::{FeedName, Seq};
pub(super) use end::note_read;

/// Rows looked at in one step of a count or a sweep.
const STEP_ROWS: i64 = 1_000;

/// Whether the walk replaces what was stored before it began, newer or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Newest wins.
    No,
    /// The operator asked for it.
    Asked,
    /// The feed's URL moved to another path or host.
    Moved,
    /// The operator asked for it, and accepts beforehand whatever is swept.
    Accepted,
}

impl Trust {
    const ALL: [Self; 4] = [Self::No, Self::Asked, Self::Moved, Self::Accepted];

    /// As an operator asks for it.
    pub fn of(trust_source: bool, accept: bool) -> Self {
        match (trust_source, accept) {
            (false, _) => Self::No,
            (true, false) => Self::Asked,
            (true, true) => Self::Accepted,
        }
    }

    fn from_code(code: i64) -> Self {
        usize::try_from(code).ok().and_then(|code| Self::ALL.get(code).copied()).unwrap_or(Self::No)
    }
}

/// How far a resync has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading.
    Walk,
    /// Read to a clean end; the sweep waits for the operator.
    Held,
    /// Sweeping.
    Sweep,
}

/// A resync under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resync {
    /// Its own number.
    pub walk: i64,
    /// Its own cursor.
    pub cursor: String,
    /// Whether it replaces what is newer.
    pub trust: Trust,
    /// How far it has come.
    pub stage: Stage,
    /// How often in a row its own cursor was found dead.
    pub deaths: u32,
    /// After that: when it begins again.
    pub not_before: Option<Millis>,
}

/// A resync whose own cursor was found dead begins again at once, then after this, and after ever longer waits.
const AGAIN: Duration = Duration::from_secs(3_600);
/// The longest of them.
const LONGEST_AGAIN: Duration = Duration::from_secs(24 * 3_600);

impl Resync {
    /// How long it waits to begin again, from `now`. A time that lies further ahead than the longest wait is due: the
    /// clock was set back.
    pub fn wait(&self, now: Millis) -> Duration {
        let left = self.not_before.map_or(0, |at| at.saturating_sub(now));
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        if left > LONGEST_AGAIN { Duration::ZERO } else { left }
    }

    /// Whether it is reading, or would be, trusting what it reads.
    pub fn trusts(&self) -> bool {
        self.trust != Trust::No && self.stage == Stage::Walk
    }
}

/// The wait after so many dead ends in a row.
fn again_after(deaths: u32) -> Duration {
    match deaths {
        0 | 1 => Duration::ZERO,
        more => AGAIN.saturating_mul(1 << (more - 2).min(5)).min(LONGEST_AGAIN),
    }
}

/// How a walk's end was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Not by the standard's sign, or with a `next` of our making: nothing is swept.
    Unclean,
    /// The sweep is held: this many of that many live items would go.
    Held(i64, i64),
    /// Done; so many items were swept.
    Done(i64),
    /// Another resync, or none, is under way by now: nothing was done.
    Replaced,
}

type Place = (i64, Seq);

impl Store {
    /// Begins a resync, or begins it anew. `automatic`: nobody asked for it.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn begin_resync(
        &self,
        name: &FeedName,
        at: Millis,
        trust: Trust,
        automatic: bool,
    ) -> Result<super::feeds::StoredFeed, StoreError> {
        let name = name.clone();
        self.submit(Weight::default(), move |bench| {
            let feed = super::feeds::read(bench, name.as_str())?;
            let url: String = bench.db.query_row("SELECT url FROM feed WHERE id = ?1", [feed.id], |row| row.get(0))?;
            begin(bench, feed.id, at, &url, trust, automatic)?;
            super::feeds::read(bench, name.as_str())
        })
        .await
    }

    /// Notes that the cursor of the resync with this number is dead: its publisher's positions may have changed
    /// meanwhile. It begins again with the next [`Store::restart_resync`], after the wait that is returned.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn resync_died(&self, feed: i64, walk: i64, at: Millis) -> Result<Duration, StoreError> {
        self.submit(Weight::default(), move |bench| {
            let Some(resync) = read(bench, feed)?.filter(|resync| resync.walk == walk) else {
                return Ok(Duration::ZERO);
            };
            let deaths = resync.deaths.saturating_add(1);
            let wait = again_after(deaths);
            let not_before = at.saturating_add(Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX));
            bench.db.execute(
                "UPDATE resync SET deaths = ?2, not_before = ?3 WHERE feed = ?1",
                params![feed, deaths, not_before],
            )?;
            Ok(wait)
        })
        .await
    }

    /// Lets the resync with this number begin again from the feed's own URL, in one step: a feed without a cursor is
    /// never without one.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn restart_resync(&self, name: &FeedName, walk: i64, at: Millis) -> Result<(), StoreError> {
        let name = name.clone();
        self.submit(Weight::default(), move |bench| {
            let feed = super::feeds::read(bench, name.as_str())?;
            let Some(resync) = feed.resync.filter(|resync| resync.walk == walk) else { return Ok(()) };
            let url: String = bench.db.query_row("SELECT url FROM feed WHERE id = ?1", [feed.id], |row| row.get(0))?;
            forget(bench, feed.id)?;
            begin(bench, feed.id, at, &url, resync.trust, false)?;
            bench.db.execute("UPDATE resync SET deaths = ?2 WHERE feed = ?1", params![feed.id, resync.deaths])?;
            Ok(())
        })
        .await
    }

    /// Accepts a held sweep.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when none is held.
    pub async fn accept_sweep(&self, feed: i64, at: Millis) -> Result<(), StoreError> {
        self.submit(Weight::default(), move |bench| {
            let sql = "UPDATE resync SET stage = 'sweep' WHERE feed = ?1 AND stage = 'held'";
            if bench.db.execute(sql, [feed])? == 0 {
                return Err(StoreError::Refused("no sweep is held for this feed".into()));
            }
            Ok(journal::event(bench, Some(feed), at, "sweep-accepted", "by the operator")?)
        })
        .await
    }

    /// Sweeps what the resync with this number did not meet, step by step, and ends it; also after a restart.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn sweep(&self, feed: i64, walk: i64, at: Millis) -> Result<Ended, StoreError> {
        let mut swept = 0;
        let mut place = None;
        loop {
            let weight = Weight { large: true, durable: false, seqs: STEP_ROWS as usize };
            let step = self.submit(weight, move |bench| {
                if stage(bench, feed, walk)? != Some(Stage::Sweep) {
                    return Ok(None);
                }
                sweep_step(bench, feed, at, place).map(Some)
            });
            let Some((count, next)) = step.await? else { return Ok(Ended::Replaced) };
            swept += count;
            let Some(next) = next else { break };
            place = Some(next);
        }
        let finished = self.submit(Weight::default(), move |bench| {
            let ours = stage(bench, feed, walk)? == Some(Stage::Sweep);
            if ours {
                finish(bench, feed, at, swept)?;
            }
            Ok(ours)
        });
        Ok(if finished.await? { Ended::Done(swept) } else { Ended::Replaced })
    }
}

pub(super) fn begin(
    bench: &mut Bench<'_>,
    feed: i64,
    at: Millis,
    url: &str,
    trust: Trust,
    automatic: bool,
) -> Result<(), StoreError> {
    // A walk under way does what a plain one would, and must not lose its trust to one.
    if trust == Trust::No && read(bench, feed)?.is_some_and(|running| running.stage == Stage::Walk) {
        // One that waits to begin again, since it met a dead page, waits no longer.
        bench.db.execute("UPDATE resync SET not_before = min(not_before, ?2) WHERE feed = ?1", params![feed, at])?;
        return Ok(());
    }
    forget(bench, feed)?;
    bench.db.execute(
        "INSERT INTO resync (feed, walk, cursor, started_at, start_seq, trust) VALUES (?1, random(), ?2, ?3, ?4, ?5)",
        params![feed, url, at, bench.last_seq(), trust as i64],
    )?;
    if trust != Trust::No {
        bench.db.execute("UPDATE feed SET generation = generation + 1 WHERE id = ?1", [feed])?;
        // A source to be trusted anew may not know its old positions: a look-back from them would accuse it again.
        bench.db.execute("DELETE FROM position WHERE feed = ?1", [feed])?;
        bench.db.execute("UPDATE feed SET looked_back_at = NULL WHERE id = ?1", [feed])?;
        // Nor may a stream be taken up behind an item that it no longer has.
        let sql = "UPDATE endpoint SET modified = NULL, id = NULL, item_at = NULL, event_id = NULL,
                       cursor = iif(transport = 0, cursor, NULL) WHERE feed = ?1";
        bench.db.execute(sql, [feed])?;
    }
    // The duty is over when the resync has ended, not now.
    bench.db.execute("UPDATE feed SET stale = 2 WHERE id = ?1 AND stale <> 0", [feed])?;
    if automatic {
        bench.db.execute("UPDATE feed SET resynced_at = ?2 WHERE id = ?1", [feed, at])?;
    }
    let how = match trust {
        Trust::No => "newest wins",
        Trust::Asked => "trusting the source, as asked",
        Trust::Moved => "trusting the source, since the URL moved",
        Trust::Accepted => "trusting the source and accepting its sweep, as asked",
    };
    Ok(journal::event(bench, Some(feed), at, "resync-began", how)?)
}

pub(super) fn read(bench: &Bench<'_>, feed: i64) -> Result<Option<Resync>, StoreError> {
    let found = bench
        .db
        .prepare_cached("SELECT walk, cursor, trust, stage, deaths, not_before FROM resync WHERE feed = ?1")?
        .query_row([feed], |row| {
            let stage = match row.get_ref(3)?.as_str()? {
                "held" => Stage::Held,
                "sweep" => Stage::Sweep,
                _ => Stage::Walk,
            };
            let trust = Trust::from_code(row.get(2)?);
            let (deaths, not_before) = (row.get(4)?, row.get(5)?);
            Ok(Resync { walk: row.get(0)?, cursor: row.get(1)?, trust, stage, deaths, not_before })
        })
        .optional()?;
    Ok(found)
}

/// How far the resync with this number has come; nothing when another has replaced it.
fn stage(bench: &Bench<'_>, feed: i64, walk: i64) -> Result<Option<Stage>, StoreError> {
    Ok(read(bench, feed)?.filter(|resync| resync.walk == walk).map(|resync| resync.stage))
}

/// Gives the resync up; what it was begun for stays to be done.
pub(super) fn clear(bench: &Bench<'_>, feed: i64) -> rusqlite::Result<()> {
    forget(bench, feed)?;
    bench.db.execute("UPDATE feed SET stale = 1 WHERE id = ?1 AND stale = 2", [feed])?;
    Ok(())
}

fn forget(bench: &Bench<'_>, feed: i64) -> rusqlite::Result<()> {
    for table in TABLES {
        bench.db.execute(&format!("DELETE FROM {table} WHERE feed = ?1"), [feed])?;
    }
    Ok(())
}

/// What is kept of a resync while it is under way.
const TABLES: [&str; 4] = ["resync", "seen", "spared", "newest"];

/// A live row that a resync has not met.
struct Unseen {
    seq: Seq,
    flags: i64,
    /// Bytes of its data.
    size: i64,
}

/// The unseen among the next rows in key order, and where to go on; `None` at the end.
fn unseen_rows(
    bench: &mut Bench<'_>,
    feed: i64,
    after: Option<Place>,
) -> Result<(Vec<Unseen>, Option<Place>), StoreError> {
    let (key, seq) = after.unwrap_or((i64::MIN, i64::MIN));
    let mut select = bench.db.prepare_cached(
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
            unseen.push(Unseen { seq, flags: row.get(2)?, size: row.get(4)? });
        }
    }
    Ok((unseen, if count < STEP_ROWS { None } else { last }))
}

fn sweep_step(
    bench: &mut Bench<'_>,
    feed: i64,
    at: Millis,
    after: Option<Place>,
) -> Result<(i64, Option<Place>), StoreError> {
    let trust = read(bench, feed)?.is_some_and(|resync| resync.trust != Trust::No);
    let (unseen, next) = unseen_rows(bench, feed, after)?;
    for row in &unseen {
        let seq = bench.seq();
        bench
            .db
            .prepare_cached(
                "INSERT INTO item SELECT ?2, feed, key, kind, 0, ?3, ?4, id, modified, NULL FROM item WHERE seq = ?1",
            )?
            .execute([row.seq, seq, swept_flags(row.flags, trust), at])?;
        bench.db.prepare_cached("DELETE FROM item WHERE seq = ?1")?.execute([row.seq])?;
    }
    let count = unseen.len() as i64;
    bench
        .db
        .prepare_cached(
            "UPDATE feed SET items = items - ?2, tombstones = tombstones + ?2, bytes = bytes - ?4,
                 changed_at = iif(?2 > 0, ?3, changed_at)
             WHERE id = ?1",
        )?
        .execute([feed, count, at, unseen.iter().map(|row| row.size).sum()])?;
    Ok((count, next))
}

/// A completed resync ends `suspect`.
fn finish(bench: &mut Bench<'_>, feed: i64, at: Millis, swept: i64) -> Result<(), StoreError> {
    let sql = "UPDATE feed SET suspect = NULL, differing = 0, read_anew_at = ?2, stale = iif(stale = 2, 0, stale)
               WHERE id = ?1";
    bench.db.execute(sql, [feed, at])?;
    forget(bench, feed)?;
    journal::event(bench, Some(feed), at, "resync-done", &format!("{swept} items swept"))?;
    let suspect: bool = bench.db.query_row(
        "SELECT health = 'suspect' FROM endpoint WHERE feed = ?1 AND transport = 0",
        [feed],
        |row| row.get(0),
    )?;
    if suspect {
        super::feeds::set_health(bench, feed, at, crate::feed::Health::Ok, None)?;
    }
    Ok(())
}
