//! Orders to many quarantine rows at once, in batches by their numbers, so that neither memory nor the writer's time grows
//! with how many there are.

use rusqlite::{OptionalExtension, params};

use super::writer::{JobClass, WriteTx};
use super::{Store, StoreError};
use crate::feed::Transport;

/// Which quarantine rows are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineSelection {
    /// By their numbers; all, as far as the rest fits, when empty.
    pub ids: Vec<i64>,
    /// Of this feed.
    pub feed: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
}

/// A quarantine row, to be read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedRecord {
    /// Its number.
    pub id: i64,
    /// Its feed's name.
    pub feed: String,
    /// How it came.
    pub transport: Transport,
    /// The record.
    pub raw: String,
}

impl Store {
    /// The number of the newest quarantine row; 0 when there is none. What comes later is none of an order's business.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when a statement fails or the writer has stopped.
    pub async fn newest_quarantine_id(&self, chosen: QuarantineSelection) -> Result<i64, StoreError> {
        self.submit(JobClass::default(), move |tx| {
            if let Some(feed) = &chosen.feed {
                super::feeds::read(tx, feed)?;
            }
            Ok(tx.db.query_row("SELECT coalesce(max(id), 0) FROM quarantined", [], |row| row.get(0))?)
        })
        .await
    }

    /// The next of the chosen rows after a number and up to another: so many rows at most, and no more than about 4 MiB
    /// of them.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn quarantine_batch(
        &self,
        chosen: QuarantineSelection,
        after: i64,
        newest: i64,
        limit: usize,
    ) -> Result<Vec<QuarantinedRecord>, StoreError> {
        const MOST_BYTES: usize = 4 << 20;
        self.submit(JobClass::default(), move |tx| {
            let (mut sifted, mut bytes) = (Vec::new(), 0);
            for id in selected_ids(tx, &chosen, after, newest, limit)? {
                let row = tx
                    .db
                    .prepare_cached(
                        "SELECT f.name, q.transport, q.raw FROM quarantined q JOIN feed f ON f.id = q.feed
                         WHERE q.id = ?1",
                    )?
                    .query_row([id], |row| {
                        let transport = Transport::from_code(row.get(1)?).unwrap_or(Transport::Poll);
                        Ok(QuarantinedRecord { id, feed: row.get(0)?, transport, raw: row.get(2)? })
                    })
                    .optional()?;
                let Some(row) = row else { continue };
                bytes += row.raw.len();
                sifted.push(row);
                if bytes >= MOST_BYTES {
                    break;
                }
            }
            Ok(sifted)
        })
        .await
    }

    /// Removes the next of the chosen rows; how many, and where to go on if there may be more.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn drop_quarantine_batch(
        &self,
        chosen: QuarantineSelection,
        after: i64,
        newest: i64,
        limit: usize,
    ) -> Result<(u64, Option<i64>), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let ids = selected_ids(tx, &chosen, after, newest, limit)?;
            Ok((remove_by_ids(tx, &ids)?, ids.last().copied()))
        })
        .await
    }
}

fn selected_ids(
    tx: &WriteTx<'_>,
    chosen: &QuarantineSelection,
    after: i64,
    newest: i64,
    limit: usize,
) -> Result<Vec<i64>, StoreError> {
    let numbers: Vec<String> = chosen.ids.iter().map(i64::to_string).collect();
    let numbers = format!("[{}]", numbers.join(","));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut select = tx.db.prepare_cached(
        "SELECT id FROM quarantined WHERE id > ?1 AND id <= ?2
         AND (?3 = '[]' OR id IN (SELECT value FROM json_each(?3)))
         AND (?4 IS NULL OR feed = (SELECT id FROM feed WHERE name = ?4)) AND (?5 IS NULL OR reason = ?5)
         ORDER BY id LIMIT ?6",
    )?;
    let rows =
        select.query_map(params![after, newest, numbers, chosen.feed, chosen.reason, limit], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Removes quarantine rows by their numbers, and takes them off their feeds' counts.
pub(super) fn remove_by_ids(tx: &WriteTx<'_>, ids: &[i64]) -> Result<u64, StoreError> {
    let mut delete = tx.db.prepare_cached(
        "DELETE FROM quarantined WHERE id = ?1
         RETURNING feed, octet_length(raw) + coalesce(octet_length(detail), 0)",
    )?;
    let mut removed = 0;
    for id in ids {
        let row = delete.query_row([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).optional()?;
        let Some((feed, size)) = row else { continue };
        removed += 1;
        tx.db
            .prepare_cached(
                "UPDATE feed SET quarantine_rows = max(quarantine_rows - 1, 0),
                     quarantine_bytes = max(quarantine_bytes - ?2, 0) WHERE id = ?1",
            )?
            .execute([feed, size])?;
    }
    Ok(removed)
}

/// Whether a text spells an id: as a whole, not as a part of a longer one. Percent-encoded spellings count too.
pub(super) fn contains_id(text: &str, id: &str) -> bool {
    let part = |text: &str, id: &str| {
        !id.is_empty()
            && text.match_indices(id).any(|(at, _)| {
                let joins = |sign: Option<char>| sign.is_some_and(|sign| sign.is_alphanumeric());
                !joins(text[..at].chars().next_back()) && !joins(text[at + id.len()..].chars().next())
            })
    };
    let encoded: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    part(text, id) || encoded != id && part(text, &encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_spelt_as_a_whole_or_not_at_all() {
        assert!(contains_id("item 7 has a bad value", "7"));
        assert!(contains_id("https://a.example/?after=a%2Fb&x=1", "a/b"));
        assert!(!contains_id("item 77", "7"));
        assert!(!contains_id("a7", "7"));
        assert!(!contains_id("anything", ""));
    }
}
