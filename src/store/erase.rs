//! Makes sure that deleted content can't be read from the files: free pages are filled with zeros, and the WAL, which
//! keeps old versions of pages, is truncated to zero bytes.
//!
//! Freed bytes within a page are overwritten when they are freed (`secure_delete`). Erasing costs two writes of each
//! free page, in steps between which the writer runs other jobs. It does not reach copies elsewhere, what a disk keeps
//! of overwritten blocks, or the unused end of the last page of a row of over 16 KiB, which SQLite leaves as it was.

use std::time::Duration;

use rusqlite::Connection;

use super::writer::{JobClass, WriteTx};
use super::{Store, StoreError};
use crate::feed::Seq;

/// Free pages filled in one step: 4 MiB.
const STEP_PAGES: i64 = 256;
/// How long the truncation waits for readers that still need the old WAL.
const READER_WAIT: Duration = Duration::from_secs(10);

impl Store {
    /// Erases what was deleted before the call. False while a reader needs the WAL, which is truncated once that reader
    /// has ended.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn erase(&self) -> Result<bool, StoreError> {
        let large = JobClass { large: true, ..JobClass::default() };
        let started = self.submit(large, |tx| {
            let sql = "SELECT coalesce(max(n), 0) FROM erasure WHERE id IS NULL";
            Ok((free_pages(tx.db)?, tx.db.query_row(sql, [], |row| row.get::<_, Seq>(0))?))
        });
        let (mut free, up_to) = started.await?;
        while free > 0 {
            let filled = self.submit(large, fill_free_pages).await?;
            if filled == 0 {
                break;
            }
            free -= filled;
        }
        self.delete_blank_rows().await?;
        let gate = std::sync::Arc::clone(&self.checkpoint_gate);
        let truncated = tokio::task::spawn_blocking(move || gate.request_truncate(READER_WAIT)).await;
        let truncated = truncated.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))?;
        if truncated {
            let sql = "DELETE FROM erasure WHERE n <= ?1 AND id IS NULL";
            self.submit(JobClass::default(), move |tx| Ok(tx.db.execute(sql, [up_to])?)).await?;
        }
        Ok(truncated)
    }

    /// Frees the pages that were filled, also those of an interrupted erasure.
    pub(super) async fn delete_blank_rows(&self) -> Result<(), StoreError> {
        let large = JobClass { large: true, ..JobClass::default() };
        while self.submit(large, delete_blank_row).await? > 0 {}
        Ok(())
    }
}

fn free_pages(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "freelist_count", |row| row.get(0))
}

/// Fills free pages with zeros; returns the number of pages.
///
/// A row's last page is overwritten as far as it is used. So the row has a size of which SQLite keeps the remainder in
/// the row's own cell (the file format, "cell payload overflow pages"): whole pages, and a little more than the least
/// that SQLite keeps in the cell, about an eighth of a page.
fn fill_free_pages(tx: &mut WriteTx<'_>) -> Result<i64, StoreError> {
    let pages = free_pages(tx.db)?.min(STEP_PAGES);
    if pages > 0 {
        let page: i64 = tx.db.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let bytes = pages * (page - 4) + page * 3 / 16;
        tx.db.prepare_cached("INSERT INTO blank (zeros) VALUES (zeroblob(?1))")?.execute([bytes])?;
    }
    Ok(pages)
}

/// Frees the pages of one step; returns the number of rows deleted.
fn delete_blank_row(tx: &mut WriteTx<'_>) -> Result<usize, StoreError> {
    let sql = "DELETE FROM blank WHERE n = (SELECT min(n) FROM blank)";
    Ok(tx.db.prepare_cached(sql)?.execute([])?)
}
