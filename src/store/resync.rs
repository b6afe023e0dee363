//! Resync: a walk beside the poll cursor, which ends by sweeping what is gone.
//!
//! What the walk meets keeps its row and its seq and is remembered in `seen`; what it writes has a seq beyond
//! `start_seq`. The sweep makes tombstones of live rows that are neither, in steps, so that nothing waits for it.
//! A sweep that would remove too much is held until the operator accepts it.

use rusqlite::{OptionalExtension, params};

use super::apply::swept_flags;
use super::writer::{Bench, Weight};
use super::{Millis, Store, StoreError, journal};
use crate::feed::{FeedName, Seq};

/// Rows looked at in one step of a count or a sweep.
const STEP_ROWS: i64 = 1_000;
/// A sweep of at most this many items is held only when it is of everything.
const SMALL_SWEEP: i64 = 100;

/// Whether the walk replaces what was stored before it began, newer or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Newest wins.
    No,
    /// The operator asked for it.
    Asked,
    /// The feed's URL moved to another path or host.
    Moved,
}

impl Trust {
    const ALL: [Self; 3] = [Self::No, Self::Asked, Self::Moved];

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

    /// Forgets the resync under way and begins another, in one step: a feed without a cursor is never without one.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn replace_resync(&self, name: &FeedName, at: Millis, trust: Trust) -> Result<(), StoreError> {
        let name = name.clone();
        self.submit(Weight::default(), move |bench| {
            let feed = super::feeds::read(bench, name.as_str())?;
            let url: String = bench.db.query_row("SELECT url FROM feed WHERE id = ?1", [feed.id], |row| row.get(0))?;
            clear(bench, feed.id)?;
            begin(bench, feed.id, at, &url, trust, false)
        })
        .await
    }

    /// Forgets a resync under way; nothing is swept.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn cancel_resync(&self, feed: i64) -> Result<(), StoreError> {
        self.submit(Weight::default(), move |bench| Ok(clear(bench, feed)?)).await
    }

    /// Ends the walk with this number, which has come to its end: takes its cursor over, then sweeps or holds the
    /// sweep. `max_sweep` is the share of live items that may go unasked.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn end_resync(&self, feed: i64, walk: i64, at: Millis, max_sweep: f64) -> Result<Ended, StoreError> {
        let taken = self.submit(Weight::default(), move |bench| {
            if stage(bench, feed, walk)? != Some(Stage::Walk) {
                return Ok(None);
            }
            take_cursor_over(bench, feed, at).map(Some)
        });
        match taken.await? {
            None => return Ok(Ended::Replaced),
            Some(false) => return Ok(Ended::Unclean),
            Some(true) => {}
        }
        let mut unseen = 0;
        let mut place = None;
        loop {
            let (count, next) = self
                .submit(Weight { large: true, ..Weight::default() }, move |bench| unseen_rows(bench, feed, place))
                .await?;
            unseen += count.len() as i64;
            let Some(next) = next else { break };
            place = Some(next);
        }
        let held = self.submit(Weight::default(), move |bench| {
            if stage(bench, feed, walk)? != Some(Stage::Walk) {
                return Ok(None);
            }
            hold_or_sweep(bench, feed, at, unseen, max_sweep).map(Some)
        });
        match held.await? {
            None => Ok(Ended::Replaced),
            Some(Some(live)) => Ok(Ended::Held(unseen, live)),
            Some(None) => self.sweep(feed, walk, at).await,
        }
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
        return Ok(());
    }
    clear(bench, feed)?;
    bench.db.execute(
        "INSERT INTO resync (feed, walk, cursor, started_at, start_seq, trust) VALUES (?1, random(), ?2, ?3, ?4, ?5)",
        params![feed, url, at, bench.last_seq(), trust as i64],
    )?;
    if trust != Trust::No {
        bench.db.execute("UPDATE feed SET generation = generation + 1 WHERE id = ?1", [feed])?;
        // A source to be trusted anew may not know its old positions: a look-back from them would accuse it again.
        bench.db.execute("DELETE FROM position WHERE feed = ?1", [feed])?;
        bench.db.execute("UPDATE feed SET looked_back_at = NULL WHERE id = ?1", [feed])?;
    }
    bench.db.execute("UPDATE feed SET stale = 0 WHERE id = ?1", [feed])?;
    if automatic {
        bench.db.execute("UPDATE feed SET resynced_at = ?2 WHERE id = ?1", [feed, at])?;
    }
    let how = match trust {
        Trust::No => "newest wins",
        Trust::Asked => "trusting the source, as asked",
        Trust::Moved => "trusting the source, since the URL moved",
    };
    Ok(journal::event(bench, Some(feed), at, "resync-began", how)?)
}

pub(super) fn read(bench: &Bench<'_>, feed: i64) -> Result<Option<Resync>, StoreError> {
    let found = bench
        .db
        .prepare_cached("SELECT walk, cursor, trust, stage FROM resync WHERE feed = ?1")?
        .query_row([feed], |row| {
            let stage = match row.get_ref(3)?.as_str()? {
                "held" => Stage::Held,
                "sweep" => Stage::Sweep,
                _ => Stage::Walk,
            };
            let trust = Trust::from_code(row.get(2)?);
            Ok(Resync { walk: row.get(0)?, cursor: row.get(1)?, trust, stage })
        })
        .optional()?;
    Ok(found)
}

/// How far the resync with this number has come; nothing when another has replaced it.
fn stage(bench: &Bench<'_>, feed: i64, walk: i64) -> Result<Option<Stage>, StoreError> {
    Ok(read(bench, feed)?.filter(|resync| resync.walk == walk).map(|resync| resync.stage))
}

fn clear(bench: &Bench<'_>, feed: i64) -> rusqlite::Result<()> {
    for table in ["resync", "seen", "spared"] {
        bench.db.execute(&format!("DELETE FROM {table} WHERE feed = ?1"), [feed])?;
    }
    Ok(())
}

/// Whether the end was clean. Its cursor becomes the poll cursor then, and also where there is none that works: all
/// that stands before it has been read, clean end or not.
fn take_cursor_over(bench: &Bench<'_>, feed: i64, at: Millis) -> Result<bool, StoreError> {
    let (clean, works): (bool, bool) = bench.db.query_row(
        "SELECT r.clean, e.cursor IS NOT NULL AND e.health NOT IN ('retrying', 'stuck')
         FROM resync r JOIN endpoint e ON e.feed = r.feed AND e.transport = 0 WHERE r.feed = ?1",
        [feed],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if clean || !works {
        let sql = "UPDATE endpoint SET cursor = (SELECT cursor FROM resync WHERE feed = ?1), updated_at = ?2
                   WHERE feed = ?1 AND transport = 0";
        bench.db.execute(sql, params![feed, at])?;
    }
    if !works {
        // The old positions may be as dead as the cursor: look-backs have a place to start from all the same.
        let sql =
            "INSERT INTO position SELECT feed, (SELECT coalesce(max(n), -1) + 1 FROM position p WHERE p.feed = r.feed),
                       started_at, asked, kind, id FROM resync r WHERE feed = ?1 AND asked IS NOT NULL";
        bench.db.execute(sql, [feed])?;
    }
    if !clean {
        clear(bench, feed)?;
        // It was read whole all the same: a regular resync comes again when its time has come, not at once.
        bench.db.execute("UPDATE feed SET read_anew_at = ?2 WHERE id = ?1", params![feed, at])?;
        journal::event(bench, Some(feed), at, "resync-unclean", "no clean end was seen: nothing was swept")?;
        return Ok(false);
    }
    bench.db.execute("UPDATE feed SET differing = 0, level_at = ?2, polled_at = ?2 WHERE id = ?1", [feed, at])?;
    Ok(true)
}

/// A live row that a resync has not met.
struct Unseen {
    seq: Seq,
    flags: i64,
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
                AND NOT EXISTS (SELECT 1 FROM spared p WHERE p.feed = i.feed AND p.id = i.id)
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
            unseen.push(Unseen { seq, flags: row.get(2)? });
        }
    }
    Ok((unseen, if count < STEP_ROWS { None } else { last }))
}

/// The number of live items when the sweep is held, nothing when it may go on.
fn hold_or_sweep(
    bench: &mut Bench<'_>,
    feed: i64,
    at: Millis,
    unseen: i64,
    max_sweep: f64,
) -> Result<Option<i64>, StoreError> {
    let live: i64 = bench.db.query_row("SELECT items FROM feed WHERE id = ?1", [feed], |row| row.get(0))?;
    let trust = read(bench, feed)?.map_or(Trust::No, |resync| resync.trust);
    let everything = unseen > 0 && unseen == live;
    let too_much = unseen > SMALL_SWEEP && unseen as f64 > max_sweep * live as f64;
    let held = trust != Trust::Asked && (everything || too_much);
    let stage = if held { "held" } else { "sweep" };
    bench.db.execute(
        "UPDATE resync SET stage = ?2, unseen = ?3, live = ?4 WHERE feed = ?1",
        params![feed, stage, unseen, live],
    )?;
    if !held {
        return Ok(None);
    }
    let reason = format!(
        "held-sweep: a resync no longer found {unseen} of {live} live items; nothing is removed until \
         feedmirror resync --accept"
    );
    bench.db.execute("UPDATE feed SET suspect = ?2 WHERE id = ?1", params![feed, reason])?;
    journal::event(bench, Some(feed), at, "held-sweep", &format!("{unseen} of {live} live items"))?;
    super::feeds::set_health(bench, feed, at, crate::feed::Health::Suspect, Some(&reason))?;
    Ok(Some(live))
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
            "UPDATE feed SET items = items - ?2, tombstones = tombstones + ?2, changed_at = iif(?2 > 0, ?3, changed_at)
             WHERE id = ?1",
        )?
        .execute([feed, count, at])?;
    Ok((count, next))
}

/// A completed resync ends `suspect`.
fn finish(bench: &mut Bench<'_>, feed: i64, at: Millis, swept: i64) -> Result<(), StoreError> {
    clear(bench, feed)?;
    bench.db.execute("UPDATE feed SET suspect = NULL, differing = 0, read_anew_at = ?2 WHERE id = ?1", [feed, at])?;
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
