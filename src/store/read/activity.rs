//! The number of changes of each feed per hour, for the status page.

use super::{Reader, StoreError};

/// Items that a feed wrote within one hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HourlyActivity {
    /// The feed's name.
    pub feed: String,
    /// Hours since 1970.
    pub hour: i64,
    /// Items written.
    pub changes: i64,
}

impl Reader {
    /// The hours from `hour` on in which items were written, of one feed or of all, ordered by feed and hour. At most a
    /// week is kept.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn activity(&self, feed: Option<&str>, hour: i64) -> Result<Vec<HourlyActivity>, StoreError> {
        let mut select = self.db.prepare_cached(
            "SELECT f.name, a.hour, a.changes FROM feed f JOIN activity a ON a.feed = f.id
             WHERE (?1 IS NULL OR f.name = ?1) AND a.hour >= ?2 ORDER BY f.name, a.hour",
        )?;
        let rows = select.query_map((feed, hour), |row| {
            Ok(HourlyActivity { feed: row.get(0)?, hour: row.get(1)?, changes: row.get(2)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
