//! Newest wins: the only module that decides which items are written.
//!
//! Guarantees: a delivery commits whole, together with its cursor, in one transaction of the writer, or not at all. A
//! delivery that was read under an older generation, or from a cursor that is no longer the stored one, is not written
//! at all. Nothing is requested or retried here.

mod activity;
mod applied;
mod cursor;
mod decide;
mod release;
mod kind_limit;
mod lookup;
mod publisher_checks;
mod provenance;
mod redactor;
mod row;

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};
use tokio::sync::oneshot;

use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, forget, journal};
use crate::feed::{Generation, Item, ItemState, ItemVersion, Modified, ModifiedOrder, Page, Seq, TiePolicy, Transport};
pub use applied::{Applied, DeliveryVerdict};
use cursor::{cursor_matches, move_cursor};
use decide::{Decision, MergeRules};
use lookup::{ItemLookup, ItemStatements, Match};
pub use provenance::Provenance;
use publisher_checks::{check_modified_class, detect_going_back};
pub use redactor::{Redact, Redactor};
pub use release::{Release, ReleaseOnCommit};
pub(super) use row::{
    DELETED_FLAG, FORGOTTEN_FLAG, NUMBER_FLAG, ROW_BYTES, SqlModified, WAS_DELETED_FLAG, are_flags_valid,
    forgotten_flags, stored_modified, swept_flags,
};

/// Records that one endpoint delivers at once, with the request and the means of release.
#[derive(Debug)]
pub struct Delivery {
    /// The feed's number in the store.
    pub feed: i64,
    /// The generation under which it was read.
    pub generation: Generation,
    pub transport: Transport,
    /// When it was read.
    pub at: Millis,
    /// The last change number given when the page was requested: an item written since proves nothing about the
    /// publisher.
    pub start_seq: Seq,
    /// The request, and the response's metadata.
    pub provenance: Provenance,
    /// Items and other records.
    pub page: Page,
    /// Why it was read.
    pub purpose: Purpose,
    /// The feed's order of `modified`.
    pub order: ModifiedOrder,
    /// The feed's rule for ties.
    pub ties: TiePolicy,
    /// Whether earlier deliveries of the same walk may still be queued, which this one must not overtake.
    pub keep_order: bool,
    /// Released once the delivery is committed or given up: its share of the memory budget.
    pub release_on_commit: ReleaseOnCommit,
    /// Hides the feed's secrets in texts that the store makes of the page.
    pub redactor: Redactor,
}

/// Why a delivery was read, and which cursor moves with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A page at the poll cursor.
    Poll(PageStep),
    /// A page of a resync, which has a cursor of its own.
    Resync(PageStep),
    /// A delivery of a push endpoint: the endpoint's own position moves, and no other.
    Push(PushPosition),
    /// A page read again, or a record taken out of quarantine: no cursor moves.
    Reread,
}

/// One step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageStep {
    /// The cursor with which the page was requested: the delivery counts only if this is still the stored one.
    pub from_cursor: String,
    /// The new cursor.
    pub next_cursor: String,
    /// Whether the feed's end was seen, or the page is treated as the end.
    pub level: bool,
    /// Whether `next_cursor` is the publisher's own `next`, and the end, if it was seen, the standard's.
    pub clean: bool,
}

/// A push endpoint's position after a delivery, besides the delivery's last item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushPosition {
    /// Where a stream would resume.
    pub cursor: Option<String>,
    /// The id of the last event.
    pub event_id: Option<String>,
    /// The cursor after the previous batch: the delivery counts only if this is still the stored one, so that no failed
    /// batch is skipped.
    pub from_cursor: Option<String>,
}

/// Most item versions that are listed of one delivery.
const MAX_ITEM_VERSIONS: usize = 1_000;
impl Store {
    /// Queues a delivery; the receiver gets the result once it is committed.
    pub fn apply(&self, mut delivery: Delivery) -> oneshot::Receiver<Result<Applied, StoreError>> {
        let is_resync = matches!(delivery.purpose, Purpose::Resync(_));
        let is_push = matches!(delivery.purpose, Purpose::Push(_));
        let records = delivery.page.items.len() + delivery.page.unreadable.len();
        let large = is_resync || delivery.keep_order || !is_push && records > SMALL_RECORDS;
        // A delivery that can be read again, from the cursor that commits with it, need not be on the disk at once.
        let durable = matches!(delivery.transport, Transport::Webhook | Transport::Amqp);
        let class = JobClass { large, durable, max_seqs: records };
        let mut forgotten = 0;
        self.enqueue(class, move |tx| apply(tx, &mut delivery, &mut forgotten))
    }
}

/// Up to this many records, good and bad, a polled page counts as small and goes before large ones.
const SMALL_RECORDS: usize = 50;

/// The feed's row and its resync, as one delivery needs them.
struct FeedState {
    id: i64,
    differing: i64,
    suspect: bool,
    class: i64,
    /// Whether the first load is over and the feed has push endpoints, whose trust depends on what polls find.
    audits_push: bool,
    /// Whether the feed's end was ever seen: items written before are its first load, not changes.
    level: bool,
    /// Whether items of the feed were forgotten on request.
    has_forgotten: bool,
    resync: Option<ResyncWalk>,
}

struct ResyncWalk {
    start_seq: Seq,
    trust: bool,
}

/// Applies a delivery. Forgotten items are dropped from the delivery for good; `forgotten` counts them over all runs of
/// this job.
fn apply(tx: &mut WriteTx<'_>, delivery: &mut Delivery, forgotten: &mut u64) -> Result<Applied, StoreError> {
    let Some(mut feed) = load_feed_state(tx, delivery)? else {
        return Ok(Applied { verdict: DeliveryVerdict::OldGeneration, ..Applied::default() });
    };
    if !cursor_matches(tx, delivery)? {
        return Ok(Applied { verdict: DeliveryVerdict::CursorMoved, ..Applied::default() });
    }
    if feed.has_forgotten {
        *forgotten += forget::drop_forgotten(tx, delivery)?;
    }
    kind_limit::quarantine_excess_kinds(tx, delivery)?;
    let delivery = &*delivery;
    let last_seq = tx.last_seq();
    let mut counts = DeliveryCounts::default();
    counts.applied.forgotten = *forgotten;
    let mut statements = ItemStatements::new(tx.db)?;
    for item in &delivery.page.items {
        let written_before = counts.applied.written();
        apply_item(tx, &mut statements, delivery, &feed, item, &mut counts)?;
        list_item_version(delivery, &feed, item, counts.applied.written() > written_before, &mut counts.applied);
    }
    provenance::record(tx, delivery, last_seq + 1)?;
    for record in &delivery.page.unreadable {
        journal::quarantine_record(tx, feed.id, delivery.transport, delivery.at, record)?;
    }
    let overflow = &delivery.page.overflow;
    if overflow.count > 0 {
        journal::count_dropped(tx, feed.id, delivery.at, overflow.count, None)?;
    }
    if feed.resync.is_some() {
        let unreadable_ids = delivery.page.unreadable.iter().filter_map(|record| record.id.as_ref());
        for id in unreadable_ids.chain(&overflow.ids) {
            tx.db.prepare_cached("INSERT OR IGNORE INTO spared VALUES (?1, ?2)")?.execute(params![feed.id, id])?;
        }
    }
    counts.applied.quarantined += delivery.page.unreadable_count();
    for finding in &delivery.page.findings {
        journal::record_finding(tx, feed.id, delivery.at, finding)?;
    }
    check_modified_class(tx, delivery, &mut feed)?;
    let suspect = detect_going_back(delivery, &mut feed, &counts);
    write_feed(tx, delivery, &feed, &counts, suspect.as_deref())?;
    if feed.level {
        activity::add_changes(tx, feed.id, delivery.at, counts.applied.written())?;
    }
    move_cursor(tx, delivery, &feed)?;
    if let Some(reason) = &suspect {
        journal::record_event(tx, Some(feed.id), delivery.at, "suspect", reason)?;
    }
    Ok(Applied { suspect, ..counts.applied })
}

fn list_item_version(delivery: &Delivery, feed: &FeedState, item: &Item, written: bool, applied: &mut Applied) {
    let listed = match delivery.purpose {
        Purpose::Push(_) => true,
        Purpose::Poll(_) => feed.audits_push && written,
        Purpose::Resync(_) | Purpose::Reread => false,
    };
    if listed && applied.item_versions.len() < MAX_ITEM_VERSIONS {
        let (kind, id, modified) = (Arc::clone(&item.kind), item.id.clone(), item.modified.clone());
        applied.item_versions.push(ItemVersion { kind, id, modified, written });
    }
}

fn load_feed_state(tx: &WriteTx<'_>, delivery: &Delivery) -> Result<Option<FeedState>, StoreError> {
    let mut find = tx.db.prepare_cached(
        "SELECT f.differing, f.suspect IS NOT NULL, f.class, r.start_seq, r.trust,
                f.push <> 'none' AND f.mode <> 'refresh', f.level_at IS NOT NULL, f.forgotten > 0
         FROM feed f LEFT JOIN resync r ON r.feed = f.id WHERE f.id = ?1 AND f.generation = ?2 AND f.purged = 0",
    )?;
    let feed = find.query_row(params![delivery.feed, delivery.generation], |row| {
        let start_seq: Option<Seq> = row.get(3)?;
        let trust: Option<i64> = row.get(4)?;
        Ok(FeedState {
            id: delivery.feed,
            differing: row.get(0)?,
            suspect: row.get(1)?,
            class: row.get(2)?,
            audits_push: row.get(5)?,
            level: row.get(6)?,
            has_forgotten: row.get(7)?,
            resync: start_seq.map(|start_seq| ResyncWalk { start_seq, trust: trust.unwrap_or(0) != 0 }),
        })
    });
    Ok(feed.optional()?)
}

#[derive(Default)]
struct DeliveryCounts {
    applied: Applied,
    items: i64,
    tombstones: i64,
    bytes: i64,
    /// One bit per item, the last item in the lowest bit: 1 means refused as older.
    differing: i64,
    older_bits_count: u32,
    /// Stored and incoming `modified` of the last item that was refused as older.
    last_older: Option<(String, String)>,
    refusals: usize,
}

impl DeliveryCounts {
    fn push_older_bit(&mut self, older: bool) {
        self.differing = (self.differing << 1) | i64::from(older);
        self.older_bits_count += 1;
    }
}

fn apply_item(
    tx: &mut WriteTx<'_>,
    statements: &mut ItemStatements<'_>,
    delivery: &Delivery,
    feed: &FeedState,
    item: &Item,
    counts: &mut DeliveryCounts,
) -> Result<(), StoreError> {
    let key = tx.keys.item_key(&item.kind, &item.id);
    let kind = tx.feed_kind_id(feed.id, &item.kind)?;
    let data = delivery.page.data(item);
    let rules = MergeRules {
        order: delivery.order,
        ties: delivery.ties,
        polled: delivery.transport == Transport::Poll,
        resync: matches!(delivery.purpose, Purpose::Resync(_)),
    };
    let lookup = ItemLookup { feed, kind, item, data, rules };
    let Some(Match { seq, decision, old_state, old_modified, old_data_bytes }) = statements.find(tx, &lookup, key)?
    else {
        insert(tx, statements, delivery, feed.id, item, (key, kind))?;
        counts.applied.new += 1;
        counts.bytes += row::ROW_BYTES + (item.id.len() + data.len()) as i64;
        count_written(counts, item, None);
        return Ok(());
    };
    if decision != Decision::Write {
        return keep_stored(tx, delivery, feed, item, seq, decision, &old_modified, counts);
    }
    tx.db.prepare_cached("DELETE FROM item WHERE seq = ?1")?.execute([seq])?;
    insert(tx, statements, delivery, feed.id, item, (key, kind))?;
    counts.applied.changed += 1;
    counts.bytes += data.len() as i64 - old_data_bytes as i64;
    count_written(counts, item, Some(old_state));
    Ok(())
}

fn count_written(counts: &mut DeliveryCounts, item: &Item, old_state: Option<ItemState>) {
    match old_state {
        Some(ItemState::Updated) => counts.items -= 1,
        Some(ItemState::Deleted) => counts.tombstones -= 1,
        None => {}
    }
    match item.state {
        ItemState::Updated => counts.items += 1,
        ItemState::Deleted => {
            counts.tombstones += 1;
            counts.applied.deleted += 1;
            counts.applied.new_deleted += u64::from(old_state.is_none());
        }
    }
    counts.push_older_bit(false);
}

/// Keeps the stored item: counts it, records a refusal, and marks the item as seen for a running resync.
#[expect(clippy::too_many_arguments, reason = "one step of apply_item, split off for length")]
fn keep_stored(
    tx: &WriteTx<'_>,
    delivery: &Delivery,
    feed: &FeedState,
    item: &Item,
    seq: Seq,
    decision: Decision,
    old_modified: &Modified,
    counts: &mut DeliveryCounts,
) -> Result<(), StoreError> {
    let reason = match decision {
        Decision::Older => {
            counts.applied.older += 1;
            if seq <= delivery.start_seq {
                counts.push_older_bit(true);
                counts.last_older = Some((old_modified.to_string(), item.modified.to_string()));
            }
            Some("older")
        }
        Decision::Tied => {
            counts.applied.tied += 1;
            counts.push_older_bit(false);
            Some("tied")
        }
        Decision::Same | Decision::Write => {
            counts.applied.same += 1;
            None
        }
    };
    if let Some(reason) = reason {
        counts.refusals += 1;
        if counts.refusals <= journal::REFUSALS_A_DELIVERY {
            let reason = delivery.redactor.redact(&format!("{reason}: the mirror holds {old_modified}"));
            journal::insert_refusal(tx, feed.id, delivery.transport, delivery.at, item, &reason)?;
        }
    }
    if feed.resync.as_ref().is_some_and(|walk| seq <= walk.start_seq) {
        let by_walk = matches!(delivery.purpose, Purpose::Resync(_));
        let sql =
            "INSERT INTO seen VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET walked = max(walked, excluded.walked)";
        tx.db.prepare_cached(sql)?.execute(params![feed.id, seq, by_walk])?;
    }
    Ok(())
}

fn insert(
    tx: &mut WriteTx<'_>,
    statements: &mut ItemStatements<'_>,
    delivery: &Delivery,
    feed: i64,
    item: &Item,
    (key, kind): (i64, i64),
) -> Result<(), StoreError> {
    let seq = tx.allocate_seq();
    let deleted = item.state == ItemState::Deleted;
    let is_number = matches!(item.modified, Modified::Number(_));
    let flags = if deleted { DELETED_FLAG } else { 0 } | if is_number { NUMBER_FLAG } else { 0 };
    let data = (!deleted).then(|| delivery.page.data(item));
    statements.insert.execute(params![
        seq,
        feed,
        key,
        kind,
        delivery.transport.code(),
        flags,
        delivery.at,
        &*item.id,
        SqlModified(&item.modified),
        data
    ])?;
    Ok(())
}

fn write_feed(
    tx: &WriteTx<'_>,
    delivery: &Delivery,
    feed: &FeedState,
    counts: &DeliveryCounts,
    suspect: Option<&str>,
) -> Result<(), StoreError> {
    // A part of a page that is not the last one, and a page whose `next` is its own URL, leave the cursor unchanged.
    let polled = matches!(&delivery.purpose, Purpose::Poll(step) if step.level || step.next_cursor != step.from_cursor);
    let level = matches!(&delivery.purpose, Purpose::Poll(step) if step.level);
    let changed = counts.applied.written() > 0;
    let mut update = tx.db.prepare_cached(
        "UPDATE feed SET items = items + ?2, tombstones = tombstones + ?3, differing = ?4, class = ?5,
             changed_at = iif(?6, ?9, changed_at), polled_at = iif(?7, ?9, polled_at),
             level_at = iif(?8, ?9, level_at), read_anew_at = iif(?8, coalesce(read_anew_at, ?9), read_anew_at), license = coalesce(?10, license), suspect = coalesce(suspect, ?11),
             bytes = bytes + ?12
         WHERE id = ?1",
    )?;
    update.execute(params![
        feed.id,
        counts.items,
        counts.tombstones,
        feed.differing,
        feed.class,
        changed,
        polled,
        level,
        delivery.at,
        delivery.page.license,
        suspect,
        counts.bytes
    ])?;
    Ok(())
}
