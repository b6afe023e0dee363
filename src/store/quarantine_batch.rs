//! Selecting and dropping many quarantine rows, in batches by id, so that neither memory nor the length of a job grows
//! with the number of rows.

use rusqlite::{OptionalExtension, params};

use super::writer::{JobClass, WriteTx};
use super::{Store, StoreError};
use crate::feed::Transport;

/// Which quarantine rows are selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineSelection {
    /// These ids; all, within the other conditions, when empty.
    pub ids: Vec<i64>,
    /// Of the feed with this name.
    pub feed: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
}

/// A quarantine row, to be decoded again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedRecord {
    /// The row's id.
    pub id: i64,
    /// The feed's name.
    pub feed: String,
    /// How the record was delivered.
    pub transport: Transport,
    /// The record as published.
    pub raw: String,
}

impl Store {
    /// The id of the newest quarantine row; 0 when there is none. Rows that come later are not part of a selection.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when a statement fails or the writer has stopped.
    pub async fn newest_quarantine_id(&self, selection: QuarantineSelection) -> Result<i64, StoreError> {
        self.submit(JobClass::default(), move |tx| newest_id(tx, &selection)).await
    }

    /// The next selected rows with an id after `after` and up to `newest`: at most `limit` rows, and about 4 MiB.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn quarantine_batch(
        &self,
        selection: QuarantineSelection,
        after: i64,
        newest: i64,
        limit: usize,
    ) -> Result<Vec<QuarantinedRecord>, StoreError> {
        const MAX_BYTES: usize = 4 << 20;
        self.submit(JobClass::default(), move |tx| {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for id in selected_ids(tx, &selection, after, newest, limit)? {
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
                batch.push(row);
                if bytes >= MAX_BYTES {
                    break;
                }
            }
            Ok(batch)
        })
        .await
    }

    /// Removes the next selected rows; returns how many, and the last id if there may be more.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn drop_quarantine_batch(
        &self,
        selection: QuarantineSelection,
        after: i64,
        newest: i64,
        limit: usize,
    ) -> Result<(u64, Option<i64>), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let ids = selected_ids(tx, &selection, after, newest, limit)?;
            Ok((remove_by_ids(tx, &ids)?, ids.last().copied()))
        })
        .await
    }
}

/// The id of the newest quarantine row, if the selection's feed is in the mirror.
pub(super) fn newest_id(tx: &WriteTx<'_>, selection: &QuarantineSelection) -> Result<i64, StoreError> {
    if let Some(feed) = &selection.feed {
        super::feeds::read(tx, feed)?;
    }
    Ok(tx.db.query_row("SELECT coalesce(max(id), 0) FROM quarantined", [], |row| row.get(0))?)
}

fn selected_ids(
    tx: &WriteTx<'_>,
    selection: &QuarantineSelection,
    after: i64,
    newest: i64,
    limit: usize,
) -> Result<Vec<i64>, StoreError> {
    let ids: Vec<String> = selection.ids.iter().map(i64::to_string).collect();
    let ids = format!("[{}]", ids.join(","));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut select = tx.db.prepare_cached(
        "SELECT id FROM quarantined WHERE id > ?1 AND id <= ?2
         AND (?3 = '[]' OR id IN (SELECT value FROM json_each(?3)))
         AND (?4 IS NULL OR feed = (SELECT id FROM feed WHERE name = ?4)) AND (?5 IS NULL OR reason = ?5)
         ORDER BY id LIMIT ?6",
    )?;
    let rows =
        select.query_map(params![after, newest, ids, selection.feed, selection.reason, limit], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Removes quarantine rows by id, and subtracts them from their feeds' counts.
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

/// Whether a text contains an id: as a whole, not as a part of a longer one. Percent-encoded ids count too.
pub(super) fn contains_id(text: &str, id: &str) -> bool {
    let contains = |text: &str, id: &str| {
        !id.is_empty()
            && text.match_indices(id).any(|(at, _)| {
                let is_part_of_id =
                    |character: Option<char>| character.is_some_and(|character| character.is_alphanumeric());
                !is_part_of_id(text[..at].chars().next_back()) && !is_part_of_id(text[at + id.len()..].chars().next())
            })
    };
    let encoded: String = url::form_urlencoded::byte_serialize(id.as_bytes()).collect();
    contains(text, id) || encoded != id && contains(text, &encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_contains_an_id_as_a_whole_or_not_at_all() {
        assert!(contains_id("item 7 has a bad value", "7"));
        assert!(contains_id("https://a.example/?after=a%2Fb&x=1", "a/b"));
        assert!(!contains_id("item 77", "7"));
        assert!(!contains_id("a7", "7"));
        assert!(!contains_id("anything", ""));
    }
}
