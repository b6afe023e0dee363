//! Reading quarantine in pages, and summed up by reason.
//!
//! A page ends after `limit` rows or [`PAGE_BYTES`] of records, so that memory is bounded, however large the records
//! are.

use super::change_log::PAGE_BYTES;
use super::rows::{QuarantineReason, QuarantineRow};
use super::{Reader, StoreError};

/// Characters of a record in a summary.
const SAMPLE_CHARS: usize = 300;

/// Which quarantined records to read; `None` means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineFilter {
    /// The feed's name.
    pub feed: Option<String>,
    /// The reason's fixed word.
    pub reason: Option<String>,
}

impl Reader {
    /// The records with an id after `after`, in the order of their ids, and whether those were the last.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when the file can't be read.
    pub fn quarantine_after(
        &self,
        after: i64,
        limit: usize,
        filter: &QuarantineFilter,
    ) -> Result<(Vec<QuarantineRow>, bool), StoreError> {
        let _transaction = self.db.unchecked_transaction()?;
        let ids = self.quarantine_ids(after, limit, filter)?;
        let mut end = ids.len() < limit;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for id in ids {
            if bytes >= PAGE_BYTES {
                end = false;
                break;
            }
            if let Some(row) = self.quarantined(id)? {
                bytes += row.raw.len();
                rows.push(row);
            }
        }
        Ok((rows, end))
    }

    /// Only ids are sorted, never the records.
    fn quarantine_ids(&self, after: i64, limit: usize, filter: &QuarantineFilter) -> Result<Vec<i64>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let feed = filter.feed.as_deref().map(|feed| self.feed_id(feed)).transpose()?;
        let feed_condition = if feed.is_some() { "q.feed = ?4" } else { "?4 IS NULL" };
        let sql = format!(
            "SELECT q.id FROM quarantined q
             WHERE q.id > ?1 AND (?3 IS NULL OR q.reason = ?3) AND {feed_condition} ORDER BY q.id LIMIT ?2"
        );
        let mut select = self.db.prepare_cached(&sql)?;
        let ids = select.query_map((after, limit, &filter.reason, feed), |row| row.get(0))?;
        Ok(ids.collect::<rusqlite::Result<_>>()?)
    }

    /// A feed's quarantine, summed up by reason, with the beginning of the newest record.
    ///
    /// # Errors
    /// As [`Reader::quarantine_after`].
    pub fn quarantine_reasons(&self, feed: &str) -> Result<Vec<QuarantineReason>, StoreError> {
        let feed_id = self.feed_id(feed)?;
        let source = format!(
            "(SELECT ?2 AS feed, s.reason AS reason, s.records AS records, s.count AS count,
                  strftime('%Y-%m-%dT%H:%M:%fZ', s.first_at / 1000.0, 'unixepoch') AS first_at,
                  strftime('%Y-%m-%dT%H:%M:%fZ', s.last_at / 1000.0, 'unixepoch') AS last_at,
                  n.detail AS detail, substr(coalesce(n.shown, n.raw), 1, {SAMPLE_CHARS}) AS sample,
                  length(coalesce(n.shown, n.raw)) > {SAMPLE_CHARS} AS cut
              FROM (SELECT reason, count(*) AS records, sum(count) AS count, min(first_at) AS first_at,
                        max(last_at) AS last_at, max(id) AS newest
                    FROM quarantined WHERE feed = ?1 GROUP BY reason) s
              JOIN quarantined n ON n.id = s.newest)"
        );
        self.rows(&source, "ORDER BY reason", (feed_id, feed))
    }
}
