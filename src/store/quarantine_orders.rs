//! Orders to many quarantine rows that are not carried out yet: stored until they are, restarts included.

use rusqlite::params;
use rusqlite::types::Type;

use super::quarantine_batch::{QuarantineSelection, newest_id};
use super::writer::JobClass;
use super::{Millis, Store, StoreError};

/// An order that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredQuarantineOrder {
    /// Its number.
    pub number: i64,
    /// Whether the rows are to be read again; else they are dropped.
    pub retry: bool,
    /// Which rows are meant.
    pub selection: QuarantineSelection,
    /// The newest row that there was when the order came: later rows are not meant.
    pub newest_id: i64,
}

impl Store {
    /// Stores an order, before any of it is carried out.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when a statement fails or the writer has stopped.
    pub async fn begin_quarantine_order(
        &self,
        at: Millis,
        selection: QuarantineSelection,
        retry: bool,
    ) -> Result<StoredQuarantineOrder, StoreError> {
        self.submit(JobClass { durable: true, ..JobClass::default() }, move |tx| {
            let newest_id = newest_id(tx, &selection)?;
            let ids = serde_json::json!(selection.ids).to_string();
            tx.db.execute(
                "INSERT INTO quarantine_order (at, retry, ids, feed, reason, newest) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![at, retry, ids, selection.feed, selection.reason, newest_id],
            )?;
            Ok(StoredQuarantineOrder {
                number: tx.db.last_insert_rowid(),
                retry,
                selection: selection.clone(),
                newest_id,
            })
        })
        .await
    }

    /// The orders that are stored, the oldest first.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn quarantine_orders(&self) -> Result<Vec<StoredQuarantineOrder>, StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let mut select =
                tx.db.prepare("SELECT n, retry, ids, feed, reason, newest FROM quarantine_order ORDER BY n")?;
            let rows = select.query_map([], |row| {
                let ids: String = row.get(2)?;
                // Never guessed: without ids an order is for all rows.
                let ids = serde_json::from_str(&ids)
                    .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, Box::new(error)))?;
                Ok(StoredQuarantineOrder {
                    number: row.get(0)?,
                    retry: row.get(1)?,
                    selection: QuarantineSelection { ids, feed: row.get(3)?, reason: row.get(4)? },
                    newest_id: row.get(5)?,
                })
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// An order has been carried out.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn end_quarantine_order(&self, number: i64) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            tx.db.execute("DELETE FROM quarantine_order WHERE n = ?1", [number])?;
            Ok(())
        })
        .await
    }
}
