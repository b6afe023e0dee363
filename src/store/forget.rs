//! Items forgotten on request: removed from every row that names them, and never stored again.
//!
//! Guarantees: once [`Store::forget`] has returned, no row but a tombstone without data holds the item; a record of the
//! item that comes again, by any transport, a resync or a retry from quarantine, is dropped in the transaction that
//! would have written it. The tombstone keeps kind and id so that followers of the change log remove the item too; the
//! tombstone is removed after `keep.forgotten`. A salted digest of the id is kept for good: it recognises the id, and
//! the id can't be read from it.
//!
//! Not removed are a quarantined record whose id can't be read and that doesn't contain the id, and a cursor, which is
//! the publisher's own position and moves on by itself.

mod mentions;

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::apply::{Delivery, FORGOTTEN_FLAG, ROW_BYTES, WAS_DELETED_FLAG, forgotten_flags};
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, feeds, journal, quarantine_batch};
use crate::feed::{FeedName, Seq};
pub(super) use mentions::record_names_id;
use mentions::text_mentions_id;

/// Kinds under which one id is removed in one step.
const STEP_KINDS: usize = 64;
/// Rows of quarantine read in one step.
const STEP_ROWS: i64 = 200;

/// Texts that may name an item: table, key column, and the text column, which is cleared.
const MENTION_COLUMNS: [(&str, &str, &str); 4] = [
    ("event", "n", "detail"),
    ("finding", "rule", "detail"),
    ("delivery", "seq", "url"),
    ("delivery", "seq", "event_id"),
];
/// Cursors that may name an item as the last one read.
const CURSORS: [&str; 2] = ["SELECT cursor FROM endpoint WHERE feed = ?1", "SELECT cursor FROM resync WHERE feed = ?1"];

/// What was removed, as counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForgetReport {
    /// Items, tombstones included.
    pub items: u64,
    /// Records of quarantine.
    pub quarantined: u64,
    /// Whether a cursor still names the id, as the last one read.
    pub in_cursor: bool,
    /// Whether the item was forgotten already.
    pub already_forgotten: bool,
}

impl ForgetReport {
    /// The report as text, for the feed with this name.
    pub fn summary(&self, feed: &FeedName) -> String {
        let removed =
            format!("{} and {} removed", counted(self.items, "item"), counted(self.quarantined, "quarantined record"));
        let before = if self.already_forgotten { " (forgotten before)" } else { "" };
        let cursor = match self.in_cursor {
            true => "; a cursor names it as the last one read, until the feed moves on",
            false => "",
        };
        format!("{feed}: {removed}, and never taken again{before}{cursor}")
    }
}

/// The result of [`Store::erase`] as text.
pub fn erasure_summary(erased: bool) -> &'static str {
    match erased {
        true => "its bytes are erased from the database's files",
        false => {
            "its bytes stay in the WAL until it can be written back: once long readers have gone, and the disk takes it"
        }
    }
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// An item by its id, of one kind or of any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemSelector {
    /// The kind; `None` means all kinds.
    pub kind: Option<String>,
    pub id: String,
}

impl Store {
    /// Forgets an item. Its bytes are gone from the files after [`Store::erase`]. An interrupted run is completed by
    /// [`Store::go_on_erasing`].
    ///
    /// # Errors
    /// When there is no such feed, a statement fails or the writer has stopped.
    pub async fn forget(&self, name: &FeedName, at: Millis, item: ItemSelector) -> Result<ForgetReport, StoreError> {
        let (feed, selector) = (name.clone(), item.clone());
        let class = JobClass { durable: true, max_seqs: 1, ..JobClass::default() };
        let first_step = self.submit(class, move |tx| {
            let feed = feeds::read(tx, feed.as_str())?.id;
            let already_forgotten = !insert_forgotten(tx, feed, at, &selector)?;
            let detail = "an item was forgotten on request, and is not taken again";
            journal::record_event(tx, Some(feed), at, "forgotten", detail)?;
            let n = tx.allocate_seq();
            tx.db
                .execute("INSERT INTO erasure VALUES (?1, ?2, ?3, ?4)", params![n, feed, selector.id, selector.kind])?;
            Ok((n, already_forgotten))
        });
        let (n, already_forgotten) = first_step.await?;
        Ok(ForgetReport { already_forgotten, ..self.remove(n, name, at, item).await? })
    }

    /// Removes all rows and texts that name a forgotten item; `n` is the number of its row in `erasure`.
    async fn remove(
        &self,
        n: Seq,
        name: &FeedName,
        at: Millis,
        item: ItemSelector,
    ) -> Result<ForgetReport, StoreError> {
        let mut report = ForgetReport::default();
        let class = JobClass { durable: true, max_seqs: STEP_KINDS, ..JobClass::default() };
        loop {
            let (name, item) = (name.clone(), item.clone());
            let step = self.submit(class, move |tx| {
                let feed = feeds::read(tx, name.as_str())?.id;
                with_secure_delete(tx, |tx| {
                    let items = remove_items(tx, feed, at, &item)?;
                    remove_mentions(tx, feed, &item)?;
                    Ok((items, in_cursor(tx, feed, &item.id)?))
                })
            });
            let (items, in_cursor) = step.await?;
            report.items += items;
            report.in_cursor = in_cursor;
            if items < STEP_KINDS as u64 {
                break;
            }
        }
        let mut after = 0;
        loop {
            let (name, item) = (name.clone(), item.clone());
            let class = JobClass { durable: true, ..JobClass::default() };
            let step = self.submit(class, move |tx| {
                let feed = feeds::read(tx, name.as_str())?.id;
                with_secure_delete(tx, |tx| {
                    let (removed, last) = remove_quarantined(tx, feed, after, &item)?;
                    if last.is_none() {
                        clear_erasure_item(tx, n)?;
                    }
                    Ok((removed, last))
                })
            });
            let (removed, last) = step.await?;
            report.quarantined += removed;
            let Some(last) = last else { return Ok(report) };
            after = last;
        }
    }

    /// Completes interrupted runs of forgetting and erasing, as after the end of the process.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn go_on_erasing(&self, at: Millis) -> Result<(), StoreError> {
        let pending = self.submit(JobClass::default(), |tx| Ok(pending(tx)?)).await?;
        if pending.is_empty() {
            return Ok(());
        }
        for (n, name, item) in pending {
            let Some(item) = item else { continue };
            match name.as_deref().and_then(FeedName::new) {
                Some(name) => drop(self.remove(n, &name, at, item).await?),
                None => self.submit(JobClass::default(), move |tx| Ok(clear_erasure_item(tx, n)?)).await?,
            }
        }
        let erased = self.erase().await?;
        tracing::info!(erased, "what was forgotten before is erased from the files");
        Ok(())
    }

    /// Lets a forgotten item be stored again; false when it was not forgotten.
    ///
    /// # Errors
    /// As [`Store::forget`].
    pub async fn unforget(&self, name: &FeedName, at: Millis, item: ItemSelector) -> Result<bool, StoreError> {
        let name = name.clone();
        self.submit(JobClass { durable: true, ..JobClass::default() }, move |tx| {
            let feed = feeds::read(tx, name.as_str())?.id;
            let sql = "DELETE FROM forgotten WHERE feed = ?1 AND digest = ?2 AND kind = ?3";
            let kind = item.kind.as_deref().unwrap_or_default();
            if tx.db.execute(sql, params![feed, digest(&salt(tx)?, &item.id), kind])? == 0 {
                return Ok(false);
            }
            tx.db.execute("UPDATE feed SET forgotten = forgotten - 1 WHERE id = ?1", [feed])?;
            let sql = "UPDATE erasure SET id = NULL, kind = NULL WHERE feed = ?1 AND id = ?2 AND kind IS ?3";
            tx.db.execute(sql, params![feed, item.id, item.kind])?;
            // Our own tombstone would refuse the very version that was forgotten; a tombstone of the publisher's
            // refuses only older versions.
            for row in rows(tx, feed, &item)?.iter().filter(|row| row.flags & FORGOTTEN_FLAG != 0) {
                if row.flags & WAS_DELETED_FLAG != 0 {
                    let flags = row.flags & !(FORGOTTEN_FLAG | WAS_DELETED_FLAG);
                    tx.db.prepare_cached("UPDATE item SET flags = ?2 WHERE seq = ?1")?.execute([row.seq, flags])?;
                    continue;
                }
                tx.db.prepare_cached("DELETE FROM item WHERE seq = ?1")?.execute([row.seq])?;
                let sql = "UPDATE feed SET tombstones = tombstones - 1, bytes = bytes - ?2 WHERE id = ?1";
                tx.db.prepare_cached(sql)?.execute([feed, row.bytes])?;
            }
            journal::record_event(tx, Some(feed), at, "remembered", "a forgotten item may be taken again, on request")?;
            Ok(true)
        })
        .await
    }
}

/// An incomplete erasure: its number, its feed's name, and the item where rows may still name the item.
type Pending = (Seq, Option<String>, Option<ItemSelector>);

fn pending(tx: &WriteTx<'_>) -> rusqlite::Result<Vec<Pending>> {
    let sql = "SELECT e.n, f.name, e.id, e.kind FROM erasure e LEFT JOIN feed f ON f.id = e.feed ORDER BY e.n";
    let mut select = tx.db.prepare_cached(sql)?;
    let rows = select.query_map([], |row| {
        let (id, kind): (Option<String>, _) = (row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, row.get(1)?, id.map(|id| ItemSelector { kind, id })))
    })?;
    rows.collect()
}

/// Records that no row names the item any more.
fn clear_erasure_item(tx: &WriteTx<'_>, n: Seq) -> rusqlite::Result<()> {
    tx.db.execute("UPDATE erasure SET id = NULL, kind = NULL WHERE n = ?1", [n]).map(drop)
}

/// Drops forgotten items' records from a delivery; returns how many. Called for feeds with forgotten items only.
pub(super) fn drop_forgotten(tx: &WriteTx<'_>, delivery: &mut Delivery) -> Result<u64, StoreError> {
    let salt = salt(tx)?;
    let mut dropped_ids: Vec<String> = Vec::new();
    let mut failed = None;
    let feed = delivery.feed;
    let mut is_forgotten = |id: &str, kind: Option<&str>| {
        let was_forgotten = count_if_forgotten(tx, feed, &digest(&salt, id), kind).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            false
        });
        if was_forgotten {
            dropped_ids.push(id.to_owned());
        }
        was_forgotten
    };
    delivery.page.items.retain(|item| !is_forgotten(&item.id, Some(&item.kind)));
    delivery.page.unreadable.retain(|record| !record.id.as_deref().is_some_and(|id| is_forgotten(id, None)));
    delivery.page.overflow.ids.retain(|id| !is_forgotten(id, None));
    if let Some(error) = failed {
        return Err(error.into());
    }
    for finding in &mut delivery.page.findings {
        if dropped_ids.iter().any(|id| quarantine_batch::contains_id(&finding.detail, id)) {
            finding.detail.clear();
        }
    }
    Ok(dropped_ids.len() as u64)
}

/// Whether the id was forgotten under this kind or under any, and counts the match; a record of unknown kind matches
/// every kind.
fn count_if_forgotten(tx: &WriteTx<'_>, feed: i64, digest: &[u8], kind: Option<&str>) -> rusqlite::Result<bool> {
    let count =
        "UPDATE forgotten SET met = met + 1 WHERE feed = ?1 AND digest = ?2 AND (?3 IS NULL OR kind IN ('', ?3))";
    let find = "SELECT 1 FROM forgotten WHERE feed = ?1 AND digest = ?2 AND (?3 IS NULL OR kind IN ('', ?3))";
    let values = params![feed, digest, kind];
    if !tx.db.prepare_cached(find)?.exists(values)? {
        return Ok(false);
    }
    tx.db.prepare_cached(count)?.execute(values)?;
    Ok(true)
}

fn salt(tx: &WriteTx<'_>) -> rusqlite::Result<Vec<u8>> {
    tx.db.prepare_cached("SELECT salt FROM mirror_state")?.query_row([], |row| row.get(0))
}

fn digest(salt: &[u8], id: &str) -> Vec<u8> {
    Sha256::new().chain_update(salt).chain_update(id.as_bytes()).finalize().to_vec()
}

/// Runs `work` so that deleted content is overwritten, whole pages too.
fn with_secure_delete<T>(
    tx: &mut WriteTx<'_>,
    work: impl FnOnce(&mut WriteTx<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    tx.db.pragma_update(None, "secure_delete", "ON")?;
    let result = work(tx);
    tx.db.pragma_update(None, "secure_delete", "FAST")?;
    result
}

/// Stores the item's digest; false when the item was forgotten already.
fn insert_forgotten(tx: &WriteTx<'_>, feed: i64, at: Millis, item: &ItemSelector) -> Result<bool, StoreError> {
    let sql = "INSERT OR IGNORE INTO forgotten (feed, digest, kind, at) VALUES (?1, ?2, ?3, ?4)";
    let kind = item.kind.as_deref().unwrap_or_default();
    let is_new = tx.db.execute(sql, params![feed, digest(&salt(tx)?, &item.id), kind, at])? > 0;
    if is_new {
        tx.db.execute("UPDATE feed SET forgotten = forgotten + 1 WHERE id = ?1", [feed])?;
    }
    Ok(is_new)
}

struct Row {
    seq: Seq,
    flags: i64,
    bytes: i64,
}

/// The item's rows, one per kind.
fn rows(tx: &WriteTx<'_>, feed: i64, item: &ItemSelector) -> Result<Vec<Row>, StoreError> {
    let mut kinds = tx.db.prepare_cached("SELECT id, name FROM kind WHERE ?1 IS NULL OR name = ?1")?;
    let kinds = kinds.query_map([&item.kind], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
    let kinds: Vec<_> = kinds.collect::<rusqlite::Result<_>>()?;
    let mut find = tx.db.prepare_cached(
        "SELECT seq, flags, octet_length(id) + coalesce(octet_length(data), 0) + ?5 FROM item
         WHERE feed = ?1 AND key = ?2 AND kind = ?3 AND id = ?4",
    )?;
    let mut rows = Vec::new();
    for (kind, name) in kinds {
        let key = tx.keys.item_key(&name, &item.id);
        let row = find
            .query_row(params![feed, key, kind, item.id, ROW_BYTES], |row| {
                Ok(Row { seq: row.get(0)?, flags: row.get(1)?, bytes: row.get(2)? })
            })
            .optional()?;
        rows.extend(row);
    }
    Ok(rows)
}

/// Replaces the item's rows by tombstones; rows that are tombstones already are only marked.
fn remove_items(tx: &mut WriteTx<'_>, feed: i64, at: Millis, item: &ItemSelector) -> Result<u64, StoreError> {
    let mut removed = 0;
    for row in rows(tx, feed, item)?.into_iter().filter(|row| row.flags & FORGOTTEN_FLAG == 0).take(STEP_KINDS) {
        removed += 1;
        if row.flags & 1 != 0 {
            let sql = "UPDATE item SET flags = flags | ?2, changed_at = ?3 WHERE seq = ?1";
            tx.db.prepare_cached(sql)?.execute([row.seq, FORGOTTEN_FLAG | WAS_DELETED_FLAG, at])?;
            continue;
        }
        let seq = tx.allocate_seq();
        tx.db
            .prepare_cached(
                "INSERT INTO item SELECT ?2, feed, key, kind, transport, ?3, ?4, id, modified, NULL FROM item
                 WHERE seq = ?1",
            )?
            .execute([row.seq, seq, forgotten_flags(row.flags), at])?;
        tx.db.prepare_cached("DELETE FROM item WHERE seq = ?1")?.execute([row.seq])?;
        let left_bytes = ROW_BYTES + item.id.len() as i64;
        tx.db
            .prepare_cached(
                "UPDATE feed SET items = items - 1, tombstones = tombstones + 1, bytes = bytes - ?2, changed_at = ?3
                 WHERE id = ?1",
            )?
            .execute([feed, row.bytes - left_bytes, at])?;
    }
    Ok(removed)
}

/// Removes the other rows and texts that name the item: refusals, look-back positions, an endpoint's last item, a
/// resync's, and texts.
fn remove_mentions(tx: &WriteTx<'_>, feed: i64, item: &ItemSelector) -> Result<(), StoreError> {
    let (db, id, kind) = (tx.db, &item.id, &item.kind);
    let matching = "feed = ?1 AND id = ?2 AND (?3 IS NULL OR kind = ?3)";
    for table in ["refusal", "position"] {
        db.execute(&format!("DELETE FROM {table} WHERE {matching}"), params![feed, id, kind])?;
    }
    db.execute(
        &format!("UPDATE resync SET asked = NULL, kind = NULL, id = NULL WHERE {matching}"),
        params![feed, id, kind],
    )?;
    db.execute(
        "UPDATE resync SET modified = NULL, last_id = NULL WHERE feed = ?1 AND last_id = ?2",
        params![feed, id],
    )?;
    db.execute("DELETE FROM spared WHERE feed = ?1 AND id = ?2", params![feed, id])?;
    let clear_last_item = "UPDATE endpoint SET id = NULL, modified = NULL, item_at = NULL, event_id = NULL
                WHERE feed = ?1 AND id = ?2";
    db.execute(clear_last_item, params![feed, id])?;
    let positions: Vec<(i64, String)> = {
        let mut select = db.prepare_cached("SELECT n, cursor FROM position WHERE feed = ?1")?;
        let rows = select.query_map([feed], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    for (n, _) in positions.iter().filter(|(_, cursor)| quarantine_batch::contains_id(cursor, id)) {
        db.prepare_cached("DELETE FROM position WHERE feed = ?1 AND n = ?2")?.execute([feed, *n])?;
    }
    for (table, key, text) in MENTION_COLUMNS {
        let sql = format!("SELECT {key}, {text} FROM {table} WHERE feed = ?1 AND {text} IS NOT NULL");
        let texts: Vec<(rusqlite::types::Value, String)> = {
            let mut select = db.prepare(&sql)?;
            let rows = select.query_map([feed], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let sql = format!("UPDATE {table} SET {text} = NULL WHERE feed = ?1 AND {key} = ?2");
        for (key, _) in texts.iter().filter(|(_, text)| text_mentions_id(text, id)) {
            db.execute(&sql, params![feed, key])?;
        }
    }
    Ok(())
}

fn in_cursor(tx: &WriteTx<'_>, feed: i64, id: &str) -> Result<bool, StoreError> {
    for sql in CURSORS {
        let mut select = tx.db.prepare_cached(sql)?;
        let mut rows = select.query([feed])?;
        while let Some(row) = rows.next()? {
            if row.get::<_, Option<String>>(0)?.is_some_and(|cursor| quarantine_batch::contains_id(&cursor, id)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Removes those of the next quarantine rows that name the item; returns how many, and the last id read if there are
/// more.
fn remove_quarantined(
    tx: &WriteTx<'_>,
    feed: i64,
    after: i64,
    item: &ItemSelector,
) -> Result<(u64, Option<i64>), StoreError> {
    let (mut matching_ids, mut last, mut count) = (Vec::new(), None, 0);
    {
        let sql = "SELECT id, raw, detail FROM quarantined WHERE feed = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let mut select = tx.db.prepare_cached(sql)?;
        let mut rows = select.query([feed, after, STEP_ROWS])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            (last, count) = (Some(id), count + 1);
            let detail: Option<String> = row.get(2)?;
            if record_names_id(&row.get::<_, String>(1)?, &item.id)
                || detail.is_some_and(|text| text_mentions_id(&text, &item.id))
            {
                matching_ids.push(id);
            }
        }
    }
    let removed = quarantine_batch::remove_by_ids(tx, &matching_ids)?;
    Ok((removed, if count < STEP_ROWS { None } else { last }))
}
