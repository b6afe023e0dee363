//! Checking a mirror's file: SQLite's own check, and the invariants between rows.
//!
//! Guarantees: nothing is written; each violation is reported with a count and one sample; memory doesn't grow with the
//! file. A check takes two read transactions, one for SQLite's check and one for the rows, each as long as it takes to
//! read the file once. The file is compared with itself only, never with a publisher.

use std::collections::HashMap;
use std::time::Instant;

use rusqlite::OptionalExtension;

use super::{Reader, StoreError};
use crate::store::apply::are_flags_valid;
use crate::store::keys::SaltedHasher;

/// The names of all checks; docs/operating/backup.md lists them.
pub const CHECKS: &[&str] = &[
    "integrity",
    "unreadable",
    "mirror-row",
    "seq-ahead",
    "seq-shared",
    "bad-flags",
    "tombstone-with-data",
    "live-without-data",
    "unknown-kind",
    "item-key",
    "item-twice",
    "item-count",
    "tombstone-count",
    "quarantine-count",
    "no-endpoint",
    "no-cursor",
    "cursor-ahead",
    "never-level",
    "walk-leftovers",
    "orphan",
];

/// The most lines that SQLite's check returns.
const MAX_LINES: i64 = 100;

/// Checks that are one query over small tables or an index; the query returns one row for each violation, with a
/// sample.
const QUERIES: &[(&str, &str)] = &[
    (
        "mirror-row",
        "SELECT 'there are ' || count(*) || ' rows' FROM mirror_state HAVING count(*) <> 1 OR min(length(epoch)) = 0",
    ),
    (
        "seq-ahead",
        "SELECT 'seq ' || seq || ' of ' || reserved || ' reserved' FROM mirror_state WHERE seq > reserved
         UNION ALL SELECT 'item ' || i.seq || ', the mirror is at ' || m.seq FROM mirror_state m JOIN item i ON i.seq > m.seq
         UNION ALL SELECT 'purge ' || p.seq || ', the mirror is at ' || m.seq FROM mirror_state m JOIN purge p ON p.seq > m.seq
         UNION ALL SELECT 'item ' || seq FROM item WHERE seq <= 0",
    ),
    ("seq-shared", "SELECT 'seq ' || p.seq FROM purge p JOIN item i ON i.seq = p.seq"),
    (
        "item-twice",
        "SELECT 'seq ' || a.seq || ' and ' || b.seq || ', id ' || a.id
         FROM (SELECT feed, key FROM item INDEXED BY item_key GROUP BY feed, key HAVING count(*) > 1) k
         JOIN item a ON a.feed = k.feed AND a.key = k.key
         JOIN item b ON b.feed = k.feed AND b.key = k.key AND b.seq > a.seq AND b.kind = a.kind AND b.id = a.id",
    ),
    (
        "quarantine-count",
        "SELECT f.name || ' says ' || f.quarantine_rows || ' rows of ' || f.quarantine_bytes || ' bytes, there are '
                || coalesce(q.n, 0) || ' of ' || coalesce(q.bytes, 0)
         FROM feed f LEFT JOIN (SELECT feed, count(*) AS n,
                                       sum(octet_length(raw) + coalesce(octet_length(detail), 0)) AS bytes
                                FROM quarantined GROUP BY feed) q ON q.feed = f.id
         WHERE f.quarantine_rows <> coalesce(q.n, 0) OR f.quarantine_bytes <> coalesce(q.bytes, 0)",
    ),
    (
        "no-endpoint",
        "SELECT name FROM feed WHERE id NOT IN (SELECT feed FROM endpoint WHERE transport = 0)",
    ),
    (
        "no-cursor",
        "SELECT f.name FROM feed f JOIN endpoint e ON e.feed = f.id AND e.transport = 0
         WHERE e.cursor IS NULL AND f.purged = 0 AND f.id NOT IN (SELECT feed FROM resync)",
    ),
    ("never-level", "SELECT name || ', mode ' || mode FROM feed WHERE mode <> 'refresh' AND level_at IS NULL AND purged = 0"),
    (
        "walk-leftovers",
        "SELECT 'feed ' || feed FROM seen WHERE feed NOT IN (SELECT feed FROM resync UNION ALL SELECT feed FROM removal)
         UNION ALL SELECT 'feed ' || feed FROM spared WHERE feed NOT IN (SELECT feed FROM resync UNION ALL SELECT feed FROM removal)
         UNION ALL SELECT 'feed ' || feed FROM newest WHERE feed NOT IN (SELECT feed FROM resync UNION ALL SELECT feed FROM removal)",
    ),
];

/// Tables whose rows belong to a feed.
const FEED_TABLES: &[&str] = &[
    "endpoint",
    "item",
    "feed_kind",
    "delivery",
    "activity",
    "forgotten",
    "quarantined",
    "finding",
    "event",
    "refusal",
    "position",
    "resync",
    "seen",
    "spared",
    "newest",
];

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// One of [`CHECKS`].
    pub check: &'static str,
    /// Number of violations.
    pub count: u64,
    /// A sample of them.
    pub sample: String,
}

/// The result of checking the whole file.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct VerifyReport {
    /// The checks that failed; empty when the file is sound.
    pub violations: Vec<Violation>,
    /// Number of item rows checked one by one; 0 in a quick check.
    pub rows: u64,
    /// How long the longer of the two read transactions was open, in seconds: meanwhile the WAL could not be reset.
    pub pinned_s: f64,
}

impl VerifyReport {
    /// Whether no check failed.
    pub fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }

    /// Damage that ends a check is reported as a violation if another one was found before; else the error is returned.
    fn record_damage(&mut self, result: Result<(), StoreError>) -> Result<(), StoreError> {
        match result {
            Err(error) if error.is_fatal() && !self.is_sound() => {
                self.add_violation("unreadable", || error.to_string());
                Ok(())
            }
            result => result,
        }
    }

    fn add_violation(&mut self, check: &'static str, sample: impl FnOnce() -> String) {
        match self.violations.iter_mut().find(|violation| violation.check == check) {
            Some(violation) => violation.count += 1,
            None => self.violations.push(Violation { check, count: 1, sample: sample() }),
        }
    }
}

impl Reader {
    /// Checks the whole file. `quick` leaves out comparing indexes with their tables, and checking items one by one.
    ///
    /// # Errors
    /// When the file can't be read, or is too damaged for SQLite to check it.
    pub fn verify(&self, quick: bool) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        let start = Instant::now();
        let result = self.integrity(quick, &mut report);
        report.record_damage(result)?;
        let integrity = start.elapsed();
        let start = Instant::now();
        let transaction = self.db.unchecked_transaction()?;
        let result = self.invariants(quick, &mut report);
        report.record_damage(result)?;
        drop(transaction);
        report.pinned_s = integrity.max(start.elapsed()).as_secs_f64();
        Ok(report)
    }

    fn integrity(&self, quick: bool, report: &mut VerifyReport) -> Result<(), StoreError> {
        let check = if quick { "quick_check" } else { "integrity_check" };
        let mut lines = self.db.prepare(&format!("PRAGMA {check}({MAX_LINES})"))?;
        let mut rows = lines.query([])?;
        while let Some(row) = rows.next()? {
            let line: String = row.get(0)?;
            if line != "ok" {
                report.add_violation("integrity", || line);
            }
        }
        Ok(())
    }

    fn invariants(&self, quick: bool, report: &mut VerifyReport) -> Result<(), StoreError> {
        for (check, sql) in QUERIES {
            self.query(check, sql, report)?;
        }
        for table in FEED_TABLES {
            let sql = format!(
                "SELECT '{table} of feed ' || feed FROM {table} WHERE feed NOT IN (SELECT id FROM feed) AND feed IS NOT NULL
                     AND feed NOT IN (SELECT feed FROM removal)"
            );
            self.query("orphan", &sql, report)?;
        }
        let kinds = self.kind_names()?;
        self.last_items(&kinds, report)?;
        if quick { self.row_counts(report) } else { self.item_rows(&kinds, report) }
    }

    fn query(&self, check: &'static str, sql: &str, report: &mut VerifyReport) -> Result<(), StoreError> {
        let mut select = self.db.prepare(sql)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let sample: String = row.get(0)?;
            report.add_violation(check, || sample);
        }
        Ok(())
    }

    fn kind_names(&self) -> Result<HashMap<i64, String>, StoreError> {
        let mut select = self.db.prepare("SELECT id, name FROM kind")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Checks that each endpoint's last item exists: it was committed together with the cursor, so that a cursor
    /// without it is ahead of the data.
    fn last_items(&self, kinds: &HashMap<i64, String>, report: &mut VerifyReport) -> Result<(), StoreError> {
        let mut endpoints = self.db.prepare(
            "SELECT e.feed, f.name, e.id FROM endpoint e JOIN feed f ON f.id = e.feed WHERE e.id IS NOT NULL",
        )?;
        let mut find = self.db.prepare("SELECT 1 FROM item WHERE feed = ?1 AND key = ?2 AND id = ?3 LIMIT 1")?;
        let keys = SaltedHasher::load(&self.db)?;
        let mut rows = endpoints.query([])?;
        while let Some(row) = rows.next()? {
            let (feed, name, id): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let mut exists = false;
            for kind in kinds.values() {
                let key = keys.item_key(kind, &id);
                exists |= find.query_row((feed, key, &id), |_| Ok(())).optional()?.is_some();
            }
            if !exists {
                report.add_violation("cursor-ahead", || format!("{name} has come past id {id}, which is not there"));
            }
        }
        Ok(())
    }

    /// Compares the number of rows, from the index alone.
    fn row_counts(&self, report: &mut VerifyReport) -> Result<(), StoreError> {
        let sql = "SELECT f.name || ' says ' || (f.items + f.tombstones) || ' rows, there are ' || coalesce(n, 0)
             FROM feed f LEFT JOIN (SELECT feed, count(*) AS n FROM item INDEXED BY item_key GROUP BY feed) i
                 ON i.feed = f.id
             WHERE f.items + f.tombstones <> coalesce(n, 0)";
        self.query("item-count", sql, report)
    }

    fn item_rows(&self, kinds: &HashMap<i64, String>, report: &mut VerifyReport) -> Result<(), StoreError> {
        let keys = SaltedHasher::load(&self.db)?;
        let mut counts: HashMap<i64, (i64, i64)> = HashMap::new();
        let mut select = self.db.prepare(
            "SELECT seq, feed, key, kind, flags, id, data IS NULL FROM item NOT INDEXED
                      WHERE feed NOT IN (SELECT feed FROM removal) ORDER BY seq",
        )?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (seq, feed, flags): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(4)?);
            let (id, empty) = (row.get_ref(5)?.as_str().unwrap_or_default(), row.get::<_, bool>(6)?);
            let deleted = flags & 1 != 0;
            let count = counts.entry(feed).or_default();
            *(if deleted { &mut count.1 } else { &mut count.0 }) += 1;
            report.rows += 1;
            let sample = || format!("seq {seq}, id {id}");
            match (deleted, empty) {
                (true, false) => report.add_violation("tombstone-with-data", sample),
                (false, true) => report.add_violation("live-without-data", sample),
                _ => {}
            }
            if !are_flags_valid(flags) {
                report.add_violation("bad-flags", || format!("seq {seq}, id {id}, flags {flags}"));
            }
            match kinds.get(&row.get(3)?) {
                None => report.add_violation("unknown-kind", sample),
                Some(kind) if keys.item_key(kind, id) != row.get::<_, i64>(2)? => {
                    report.add_violation("item-key", sample);
                }
                Some(_) => {}
            }
        }
        self.compare_counts(&counts, report)
    }

    fn compare_counts(&self, counts: &HashMap<i64, (i64, i64)>, report: &mut VerifyReport) -> Result<(), StoreError> {
        let mut feeds = self.db.prepare("SELECT id, name, items, tombstones FROM feed")?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
            let (items, tombstones) = counts.get(&id).copied().unwrap_or_default();
            for (check, stored, actual) in
                [("item-count", row.get::<_, i64>(2)?, items), ("tombstone-count", row.get(3)?, tombstones)]
            {
                if stored != actual {
                    report.add_violation(check, || format!("{name} says {stored}, there are {actual}"));
                }
            }
        }
        Ok(())
    }
}
