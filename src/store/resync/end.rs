//! The end of a resync's walk: what the walk read, what it has not seen, and whether the unseen items may be swept. The
//! sweep itself is the parent module's.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, params};

use super::super::apply::{Delivery, NUMBER_FLAG, SqlModified, stored_modified};
use super::super::writer::{JobClass, WriteTx};
use super::super::{Millis, Store, StoreError, feeds, journal};
use super::{ResyncEnd, ResyncStage, STEP_ROWS, ScanPosition, SourceTrust, cancel_resync, read, stage};
use crate::feed::{Health, Item, Modified, ModifiedOrder};

/// A sweep of at most this many items is held only when all live items would be swept, or after a short listing.
const SMALL_SWEEP: i64 = 100;

/// Items that a walk has not seen, as far as they are counted.
#[derive(Default)]
struct UnseenCounts {
    unseen: i64,
    /// A live item that is newer than the newest of its kind that the walk read: kind, newest `modified` read, stored
    /// `modified`.
    short_listing: Option<(String, Modified, Modified)>,
}

impl Store {
    /// Ends the walk with this id, which has read to the end: adopts its cursor, then sweeps or holds the sweep.
    /// `max_sweep` is the share of live items (0 to 1) that may be swept without the operator; `order` the feed's order
    /// of `modified`.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn end_resync(
        &self,
        feed: i64,
        walk: i64,
        at: Millis,
        max_sweep: f64,
        order: ModifiedOrder,
    ) -> Result<ResyncEnd, StoreError> {
        let clean = self.submit(JobClass::default(), move |tx| {
            if stage(tx, feed, walk)? != Some(ResyncStage::Walk) {
                return Ok(None);
            }
            cancel_unless_clean(tx, feed, at).map(Some)
        });
        match clean.await? {
            None => return Ok(ResyncEnd::Replaced),
            Some(false) => return Ok(ResyncEnd::Unclean),
            Some(true) => {}
        }
        let (mut counts, mut position) = (UnseenCounts::default(), None);
        loop {
            let class = JobClass { large: true, ..JobClass::default() };
            let (step, next) = self.submit(class, move |tx| step(tx, feed, position, order)).await?;
            counts.unseen += step.unseen;
            counts.short_listing = counts.short_listing.or(step.short_listing);
            let Some(next) = next else { break };
            position = Some(next);
        }
        let (unseen, short_listing) = (counts.unseen, counts.short_listing);
        let held = self.submit(JobClass::default(), move |tx| {
            if stage(tx, feed, walk)? != Some(ResyncStage::Walk) {
                return Ok(None);
            }
            adopt_walk_end(tx, feed, at, short_listing.is_some())?;
            hold_or_sweep(tx, feed, at, unseen, short_listing.as_ref(), max_sweep).map(Some)
        });
        match held.await? {
            None => Ok(ResyncEnd::Replaced),
            Some(Some(live)) => Ok(ResyncEnd::Held(unseen, live)),
            Some(None) => self.sweep(feed, walk, at).await,
        }
    }
}

/// Records the progress with a page of a resync: number of items read, last item, newest item of each kind.
pub(in crate::store) fn record_progress(tx: &WriteTx<'_>, delivery: &Delivery) -> Result<(), StoreError> {
    let Some(last) = delivery.page.items.last() else { return Ok(()) };
    let count = i64::try_from(delivery.page.items.len()).unwrap_or(i64::MAX);
    tx.db
        .prepare_cached("UPDATE resync SET read = read + ?2, modified = ?3, last_id = ?4 WHERE feed = ?1")?
        .execute(params![delivery.feed, count, SqlModified(&last.modified), &*last.id])?;
    let mut newest: HashMap<&str, &Item> = HashMap::new();
    for item in &delivery.page.items {
        let known = newest.entry(&item.kind).or_insert(item);
        if item.modified.compare(&known.modified, delivery.order).is_gt() {
            *known = item;
        }
    }
    for (kind, item) in newest {
        let known = newest_read(tx, delivery.feed, kind)?;
        if known.is_none_or(|known| item.modified.compare(&known, delivery.order).is_gt()) {
            let flags = if matches!(item.modified, Modified::Number(_)) { NUMBER_FLAG } else { 0 };
            tx.db.prepare_cached("INSERT OR REPLACE INTO newest VALUES (?1, ?2, ?3, ?4)")?.execute(params![
                delivery.feed,
                kind,
                SqlModified(&item.modified),
                flags
            ])?;
        }
    }
    Ok(())
}

fn newest_read(tx: &WriteTx<'_>, feed: i64, kind: &str) -> Result<Option<Modified>, StoreError> {
    let found = tx
        .db
        .prepare_cached("SELECT modified, flags FROM newest WHERE feed = ?1 AND kind = ?2")?
        .query_row(params![feed, kind], |row| Ok(stored_modified(row.get_ref(0)?, row.get(1)?)));
    Ok(found.optional()?)
}

/// Whether the end was clean. An unclean end cancels the resync and nothing is swept; its cursor is adopted only where
/// no other cursor works, since everything before it has been read.
fn cancel_unless_clean(tx: &mut WriteTx<'_>, feed: i64, at: Millis) -> Result<bool, StoreError> {
    let clean: bool = tx.db.query_row("SELECT clean FROM resync WHERE feed = ?1", [feed], |row| row.get(0))?;
    if clean {
        return Ok(true);
    }
    if !cursor_works(tx, feed)? {
        adopt_cursor(tx, feed, at)?;
        save_position(tx, feed)?;
    }
    cancel_resync(tx, feed)?;
    // The feed was read whole all the same: the next regular resync comes at its usual time, not at once.
    tx.db.execute("UPDATE feed SET read_anew_at = ?2 WHERE id = ?1", params![feed, at])?;
    journal::record_event(tx, Some(feed), at, "resync-unclean", "no clean end was seen: nothing was swept")?;
    Ok(false)
}

/// The walk's cursor becomes the poll cursor; after a short listing only where there is none that works.
fn adopt_walk_end(tx: &mut WriteTx<'_>, feed: i64, at: Millis, short_listing: bool) -> Result<(), StoreError> {
    let works = cursor_works(tx, feed)?;
    if !works {
        save_position(tx, feed)?;
    }
    if works && short_listing {
        return Ok(());
    }
    adopt_cursor(tx, feed, at)?;
    tx.db.execute("UPDATE feed SET differing = 0, level_at = ?2, polled_at = ?2 WHERE id = ?1", [feed, at])?;
    Ok(())
}

fn cursor_works(tx: &WriteTx<'_>, feed: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT cursor IS NOT NULL AND health NOT IN ('retrying', 'stuck') FROM endpoint
               WHERE feed = ?1 AND transport = 0";
    tx.db.query_row(sql, [feed], |row| row.get(0))
}

/// With the cursor, the last item that a trusted walk read is adopted: streams resume after it.
fn adopt_cursor(tx: &WriteTx<'_>, feed: i64, at: Millis) -> rusqlite::Result<()> {
    tx.db.execute(
        "UPDATE endpoint SET cursor = r.cursor, updated_at = ?2,
             modified = iif(r.trust AND r.last_id IS NOT NULL, r.modified, endpoint.modified),
             id = iif(r.trust AND r.last_id IS NOT NULL, r.last_id, endpoint.id),
             item_at = iif(r.trust AND r.last_id IS NOT NULL, ?2, endpoint.item_at)
         FROM resync r WHERE r.feed = ?1 AND endpoint.feed = ?1 AND endpoint.transport = 0",
        params![feed, at],
    )?;
    Ok(())
}

/// Adds a position of this walk: the old ones may be as dead as the cursor, and look-backs need one to start from.
fn save_position(tx: &WriteTx<'_>, feed: i64) -> rusqlite::Result<()> {
    let sql =
        "INSERT INTO position SELECT feed, (SELECT coalesce(max(n), -1) + 1 FROM position p WHERE p.feed = r.feed),
                   started_at, asked, kind, id FROM resync r WHERE feed = ?1 AND asked IS NOT NULL";
    tx.db.execute(sql, [feed])?;
    Ok(())
}

/// Counts of the next rows in key order, and the position to continue from; `None` at the end.
fn step(
    tx: &mut WriteTx<'_>,
    feed: i64,
    after: Option<ScanPosition>,
    order: ModifiedOrder,
) -> Result<(UnseenCounts, Option<ScanPosition>), StoreError> {
    let newest = newest_by_kind(tx, feed)?;
    let (key, seq) = after.unwrap_or((i64::MIN, i64::MIN));
    let mut select = tx.db.prepare_cached(
        "SELECT i.seq, i.key, i.flags & 1 = 0 AND i.seq <= r.start_seq AS stood,
                NOT EXISTS (SELECT 1 FROM seen s WHERE s.feed = i.feed AND s.seq = i.seq)
                AND NOT EXISTS (SELECT 1 FROM spared p WHERE p.feed = i.feed AND p.id = i.id),
                i.transport = 0 AND r.trust = 0, k.name, i.modified, i.flags
         FROM item i JOIN resync r ON r.feed = i.feed JOIN kind k ON k.id = i.kind
         WHERE i.feed = ?1 AND i.key >= ?2 AND (i.key > ?2 OR i.seq > ?3) ORDER BY i.key, i.seq LIMIT ?4",
    )?;
    let mut rows = select.query(params![feed, key, seq, STEP_ROWS])?;
    let (mut counts, mut last, mut rows_read) = (UnseenCounts::default(), None, 0);
    while let Some(row) = rows.next()? {
        last = Some((row.get(1)?, row.get(0)?));
        rows_read += 1;
        if !row.get::<_, bool>(2)? {
            continue;
        }
        counts.unseen += i64::from(row.get::<_, bool>(3)?);
        // A trusted source may well list less than before, and pushed items prove nothing about a listing.
        if counts.short_listing.is_some() || !row.get::<_, bool>(4)? {
            continue;
        }
        let kind: String = row.get(5)?;
        let stored = stored_modified(row.get_ref(6)?, row.get(7)?);
        if let Some(read) = newest.get(&kind).filter(|read| stored.compare(read, order).is_gt()) {
            counts.short_listing = Some((kind, read.clone(), stored));
        }
    }
    Ok((counts, if rows_read < STEP_ROWS { None } else { last }))
}

fn newest_by_kind(tx: &WriteTx<'_>, feed: i64) -> Result<HashMap<String, Modified>, StoreError> {
    let mut select = tx.db.prepare_cached("SELECT kind, modified, flags FROM newest WHERE feed = ?1")?;
    let rows = select.query_map([feed], |row| Ok((row.get(0)?, stored_modified(row.get_ref(1)?, row.get(2)?))))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The number of live items when the sweep is held; `None` when it may run.
fn hold_or_sweep(
    tx: &mut WriteTx<'_>,
    feed: i64,
    at: Millis,
    unseen: i64,
    short_listing: Option<&(String, Modified, Modified)>,
    max_sweep: f64,
) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT f.items, r.read FROM feed f JOIN resync r ON r.feed = f.id WHERE f.id = ?1";
    let (live, items): (i64, i64) = tx.db.query_row(sql, [feed], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let trust = read(tx, feed)?.map_or(SourceTrust::No, |resync| resync.trust);
    let everything = unseen > 0 && unseen == live;
    let too_much = unseen > SMALL_SWEEP && unseen as f64 > max_sweep * live as f64;
    let held =
        trust != SourceTrust::RequestedAndAccepted && (everything || too_much || short_listing.is_some() && unseen > 0);
    let stage = if held { "held" } else { "sweep" };
    tx.db.execute(
        "UPDATE resync SET stage = ?2, unseen = ?3, live = ?4 WHERE feed = ?1",
        params![feed, stage, unseen, live],
    )?;
    if !held {
        return Ok(None);
    }
    let why = short_listing.map_or_else(String::new, |(kind, read, stored)| {
        format!(" (a short listing: the newest {kind} it read is {read}, while one of {stored} was polled before)")
    });
    let reason = format!(
        "held-sweep: {items} read, {unseen} to go: a resync no longer found {unseen} of {live} live items{why}; nothing \
         is removed until feedmirror resync --accept"
    );
    tx.db.execute("UPDATE feed SET suspect = ?2 WHERE id = ?1", params![feed, reason])?;
    journal::record_event(tx, Some(feed), at, "held-sweep", &format!("{unseen} of {live} live items{why}"))?;
    feeds::set_health(tx, feed, at, Health::Suspect, Some(&reason))?;
    Ok(Some(live))
}
