//! How much each feed changes, hour by hour: a row an hour, written with the items that it counts.
//!
//! A feed's first load is no change, or it would dwarf all changes for a week: counted is what comes once its end was
//! seen. Bounded by time: when an hour begins, what is older than a week goes. One statement a
//! delivery, and none for one that wrote nothing.

use rusqlite::params;

use super::super::Millis;
use super::super::writer::WriteTx;

/// Milliseconds of an hour.
const HOUR: Millis = 3_600_000;
/// Hours that are kept, the one under way included.
const KEPT: i64 = 7 * 24;

/// Adds what a delivery wrote to its hour.
pub(super) fn add_changes(tx: &WriteTx<'_>, feed: i64, at: Millis, written: u64) -> rusqlite::Result<()> {
    if written == 0 {
        return Ok(());
    }
    let (hour, written) = (at.div_euclid(HOUR), i64::try_from(written).unwrap_or(i64::MAX));
    let sum: i64 = tx
        .db
        .prepare_cached(
            "INSERT INTO activity VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET changes = changes + excluded.changes RETURNING changes",
        )?
        .query_row(params![feed, hour, written], |row| row.get(0))?;
    if sum == written {
        let old = "DELETE FROM activity WHERE feed = ?1 AND hour <= ?2";
        tx.db.prepare_cached(old)?.execute(params![feed, hour - KEPT])?;
    }
    Ok(())
}
