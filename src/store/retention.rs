//! How long quarantine, findings, events, refusals and, where configured, tombstones are kept.
//!
//! Expired rows are removed in small steps, each a job of its own, so that no delivery waits for them. Bounds by number
//! of rows are not kept here (`journal`). A tombstone is removed only once its publisher has long dropped it too (the
//! setting is never under the feed's retention plus [`TOMBSTONE_MARGIN`]), and never during a resync of its feed; an
//! item that a late update still revives is swept by the next resync.

use std::time::Duration;

use rusqlite::params;

use super::apply::ROW_BYTES;
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, quarantine_batch};

const DAY: Duration = Duration::from_secs(86_400);
/// Rows removed in one step.
const STEP_ROWS: i64 = 500;
/// The longest wait between two runs.
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);
/// The shortest wait between two runs.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// The least time that a tombstone is kept beyond its feed's retention.
pub const TOMBSTONE_MARGIN: Duration = Duration::from_secs(30 * 86_400);

/// `[keep]`: how long each kind of row is kept; `None` means for good, within the bounds by number of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// Records in quarantine, since the record last came.
    pub quarantine: Option<Duration>,
    /// Findings, since the finding was last seen.
    pub findings: Option<Duration>,
    /// Events.
    pub events: Option<Duration>,
    /// Refusals.
    pub refusals: Option<Duration>,
    /// Tombstones, since the deletion was written.
    pub tombstones: Option<Duration>,
    /// Tombstones of forgotten items, which followers of the change log need.
    pub forgotten: Option<Duration>,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            quarantine: Some(90 * DAY),
            findings: Some(365 * DAY),
            events: Some(365 * DAY),
            refusals: Some(90 * DAY),
            tombstones: None,
            forgotten: Some(30 * DAY),
        }
    }
}

impl RetentionSettings {
    /// How long to wait between two runs: an hour, or half of the shortest time that anything is kept.
    pub fn run_interval(&self) -> Duration {
        let all = [self.quarantine, self.findings, self.events, self.refusals, self.tombstones, self.forgotten];
        let shortest = all.into_iter().flatten().min().unwrap_or(MAX_INTERVAL);
        (shortest / 2).clamp(MIN_INTERVAL, MAX_INTERVAL)
    }
}

/// Rows that expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RetentionClass {
    Quarantine,
    Findings,
    /// A table whose rows are numbered in the order of their time, which is in `at`.
    Journal(&'static str),
    Tombstones,
    Forgotten,
}

impl Store {
    /// Removes expired rows; returns how many. An event records the removal when there were any.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn remove_expired(&self, settings: &RetentionSettings, now: Millis) -> Result<u64, StoreError> {
        let all = [
            ("quarantine", RetentionClass::Quarantine, settings.quarantine),
            ("findings", RetentionClass::Findings, settings.findings),
            ("events", RetentionClass::Journal("event"), settings.events),
            ("refusals", RetentionClass::Journal("refusal"), settings.refusals),
            ("tombstones", RetentionClass::Tombstones, settings.tombstones),
            ("forgotten", RetentionClass::Forgotten, settings.forgotten),
        ];
        self.delete_blank_rows().await?;
        let (mut removals, mut total) = (Vec::new(), 0);
        for (name, class, period) in all {
            let Some(period) = period else { continue };
            let before = now.saturating_sub(i64::try_from(period.as_millis()).unwrap_or(i64::MAX));
            let mut removed = 0;
            loop {
                let job_class = JobClass { large: true, ..JobClass::default() };
                let step = self.submit(job_class, move |tx| remove(tx, class, before)).await?;
                removed += step;
                if step < STEP_ROWS as u64 {
                    break;
                }
            }
            if removed > 0 {
                removals.push(format!("{removed} {name}"));
                total += removed;
            }
        }
        if total > 0 {
            self.record_event(None, now, "housekeeping", &format!("too old to be kept: {}", removals.join(", ")))
                .await?;
        }
        Ok(total)
    }
}

fn remove(tx: &mut WriteTx<'_>, class: RetentionClass, before: Millis) -> Result<u64, StoreError> {
    match class {
        RetentionClass::Quarantine => {
            let sql = "SELECT id FROM quarantined WHERE last_at < ?1 ORDER BY last_at LIMIT ?2";
            let ids: Vec<i64> = select_ids(tx, sql, before)?;
            quarantine_batch::remove_by_ids(tx, &ids)
        }
        RetentionClass::Findings => {
            let sql = "DELETE FROM finding WHERE (feed, rule) IN
                           (SELECT feed, rule FROM finding WHERE last_at < ?1 LIMIT ?2)";
            Ok(tx.db.prepare_cached(sql)?.execute([before, STEP_ROWS])? as u64)
        }
        RetentionClass::Journal(table) => {
            let sql = format!("DELETE FROM {table} WHERE n IN (SELECT n FROM {table} ORDER BY n LIMIT ?2) AND at < ?1");
            Ok(tx.db.prepare_cached(&sql)?.execute([before, STEP_ROWS])? as u64)
        }
        RetentionClass::Tombstones => {
            let sql = "SELECT i.seq FROM item i INDEXED BY item_deleted WHERE i.flags & 1 AND i.changed_at < ?1
                       AND NOT EXISTS (SELECT 1 FROM resync r WHERE r.feed = i.feed)
                       -- A stream goes on behind its last item: that one stays.
                       AND NOT EXISTS (SELECT 1 FROM endpoint e WHERE e.feed = i.feed AND e.transport <> 0 AND e.id = i.id)
                       ORDER BY i.changed_at LIMIT ?2";
            remove_tombstones(tx, sql, before)
        }
        RetentionClass::Forgotten => {
            let sql = "SELECT seq FROM item INDEXED BY item_forgotten WHERE flags & 16 AND changed_at < ?1
                       ORDER BY changed_at LIMIT ?2";
            remove_tombstones(tx, sql, before)
        }
    }
}

fn remove_tombstones(tx: &WriteTx<'_>, sql: &str, before: Millis) -> Result<u64, StoreError> {
    let seqs = select_ids(tx, sql, before)?;
    for seq in &seqs {
        let (feed, size, id): (i64, i64, String) = tx
            .db
            .prepare_cached("DELETE FROM item WHERE seq = ?1 RETURNING feed, octet_length(id), id")?
            .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        // A poll goes on from its cursor; its last item is only shown, but must exist where it is named.
        let sql = "UPDATE endpoint SET id = NULL, modified = NULL WHERE feed = ?1 AND transport = 0 AND id = ?2";
        tx.db.prepare_cached(sql)?.execute(params![feed, id])?;
        let sql = "UPDATE feed SET tombstones = tombstones - 1, bytes = bytes - ?2 WHERE id = ?1";
        tx.db.prepare_cached(sql)?.execute(params![feed, size + ROW_BYTES])?;
    }
    Ok(seqs.len() as u64)
}

fn select_ids(tx: &WriteTx<'_>, sql: &str, before: Millis) -> Result<Vec<i64>, StoreError> {
    let mut select = tx.db.prepare_cached(sql)?;
    let rows = select.query_map([before, STEP_ROWS], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_hourly_or_more_often_where_something_is_kept_for_less() {
        assert_eq!(RetentionSettings::default().run_interval(), MAX_INTERVAL);
        let short = RetentionSettings { refusals: Some(Duration::from_secs(600)), ..RetentionSettings::default() };
        assert_eq!(short.run_interval(), Duration::from_secs(300));
    }
}
