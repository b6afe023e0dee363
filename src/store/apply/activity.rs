//! How much each feed changes per hour: one row per hour, written with the items that it counts.
//!
//! A feed's first load is not counted, since it would dwarf all changes for a week: counting begins once the feed's end
//! was seen. Bounded by time: when an hour begins, rows older than a week are deleted. It costs one statement per
//! delivery, and none for a delivery that wrote nothing.

use rusqlite::params;

use super::super::Millis;
use super::super::writer::WriteTx;

/// Milliseconds of an hour.
const HOUR: Millis = 3_600_000;
/// Hours that are kept, the current one included.
const KEPT: i64 = 7 * 24;

/// Adds the number of items that a delivery wrote to its hour.
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
