//! Whether a mirror's file is whole: SQLite's own check, and what must hold between its rows.
//!
//! Guarantees: nothing is written; each thing that is wrong is named with a count and one sample; memory doesn't grow
//! with the file. It takes two read transactions, one for SQLite's check and one for the rows, each as long as it takes
//! to read the file once. It compares the file with itself alone, never with a publisher.

use std::collections::HashMap;
use std::time::Instant;

use rusqlite::OptionalExtension;

use super::{Reader, StoreError};
use crate::store::apply::are_flags_valid;
use crate::store::keys::SaltedHasher;

/// What is checked, by name; README lists them.
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

/// Lines that SQLite's check gives at most.
const MOST_LINES: i64 = 100;

/// Checks that are one query over small tables or an index: what it gives is a sample, a row for each violation.
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

/// Tables whose rows are of a feed.
const OF_FEEDS: &[&str] = &[
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

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// One of [`CHECKS`].
    pub check: &'static str,
    /// How often.
    pub count: u64,
    /// One of them.
    pub sample: String,
}

/// What a check of the whole file came to.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct VerifyReport {
    /// What is wrong; nothing when the file is sound.
    pub violations: Vec<Violation>,
    /// Item rows looked at one by one; 0 in a quick check.
    pub rows: u64,
    /// How long the longer of the two read transactions was open, in seconds: so long the WAL could not be reset.
    pub pinned_s: f64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }

    /// Damage that ends a check is its outcome, once something has been named; else the file is unusable.
    fn unless_named(&mut self, checked: Result<(), StoreError>) -> Result<(), StoreError> {
        match checked {
            Err(error) if error.is_fatal() && !self.is_sound() => {
                self.add_violation("unreadable", || error.to_string());
                Ok(())
            }
            checked => checked,
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
    /// Checks the whole file. `quick` leaves out comparing indexes with their tables, and looking at items one by one.
    ///
    /// # Errors
    /// When the file can't be read, or is too damaged for SQLite to check it.
    pub fn verify(&self, quick: bool) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport::default();
        let began = Instant::now();
        let checked = self.integrity(quick, &mut report);
        report.unless_named(checked)?;
        let integrity = began.elapsed();
        let began = Instant::now();
        let moment = self.db.unchecked_transaction()?;
        let checked = self.invariants(quick, &mut report);
        report.unless_named(checked)?;
        drop(moment);
        report.pinned_s = integrity.max(began.elapsed()).as_secs_f64();
        Ok(report)
    }

    fn integrity(&self, quick: bool, report: &mut VerifyReport) -> Result<(), StoreError> {
        let check = if quick { "quick_check" } else { "integrity_check" };
        let mut lines = self.db.prepare(&format!("PRAGMA {check}({MOST_LINES})"))?;
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
        for table in OF_FEEDS {
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

    /// The item that an endpoint brought last committed with its cursor: a cursor without it has run ahead of the data.
    fn last_items(&self, kinds: &HashMap<i64, String>, report: &mut VerifyReport) -> Result<(), StoreError> {
        let mut endpoints = self.db.prepare(
            "SELECT e.feed, f.name, e.id FROM endpoint e JOIN feed f ON f.id = e.feed WHERE e.id IS NOT NULL",
        )?;
        let mut find = self.db.prepare("SELECT 1 FROM item WHERE feed = ?1 AND key = ?2 AND id = ?3 LIMIT 1")?;
        let keys = SaltedHasher::load(&self.db)?;
        let mut rows = endpoints.query([])?;
        while let Some(row) = rows.next()? {
            let (feed, name, id): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let mut there = false;
            for kind in kinds.values() {
                let key = keys.item_key(kind, &id);
                there |= find.query_row((feed, key, &id), |_| Ok(())).optional()?.is_some();
            }
            if !there {
                report.add_violation("cursor-ahead", || format!("{name} has come past id {id}, which is not there"));
            }
        }
        Ok(())
    }

    /// As far as the index tells without a look at the rows.
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
            for (check, said, real) in
                [("item-count", row.get::<_, i64>(2)?, items), ("tombstone-count", row.get(3)?, tombstones)]
            {
                if said != real {
                    report.add_violation(check, || format!("{name} says {said}, there are {real}"));
                }
            }
        }
        Ok(())
    }
}
