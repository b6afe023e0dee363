//! Makes sure that what was deleted can't be read out of the files: free pages are filled with zeros, and the WAL, which
//! keeps old versions of pages, is cut to nothing.
//!
//! A page's own freed bytes are blanked as they are freed (`secure_delete`). It costs two writes of each free page, in
//! steps between which the writer does other work. Copies elsewhere, what a disk keeps of overwritten blocks, and the
//! unused end of the last page of a row of over 16 KiB, which SQLite leaves as it was, are beyond it.

use std::time::Duration;

use rusqlite::Connection;

use super::writer::{JobClass, WriteTx};
use super::{Store, StoreError};
use crate::feed::Seq;

/// Free pages filled in one step: 4 MiB.
const STEP_PAGES: i64 = 256;
/// For readers that still need the old WAL.
const READER_WAIT: Duration = Duration::from_secs(10);

impl Store {
    /// Erases what was deleted before. False while a reader keeps the WAL, which is cut once that one has gone.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn erase(&self) -> Result<bool, StoreError> {
        let large = JobClass { large: true, ..JobClass::default() };
        let begun = self.submit(large, |tx| {
            let sql = "SELECT coalesce(max(n), 0) FROM erasure WHERE id IS NULL";
            Ok((free_pages(tx.db)?, tx.db.query_row(sql, [], |row| row.get::<_, Seq>(0))?))
        });
        let (mut free, up_to) = begun.await?;
        while free > 0 {
            let filled = self.submit(large, fill_free_pages).await?;
            if filled == 0 {
                break;
            }
            free -= filled;
        }
        self.delete_blank_rows().await?;
        let gate = std::sync::Arc::clone(&self.checkpoint_gate);
        let emptied = tokio::task::spawn_blocking(move || gate.request_truncate(READER_WAIT)).await;
        let emptied = emptied.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))?;
        if emptied {
            let over = "DELETE FROM erasure WHERE n <= ?1 AND id IS NULL";
            self.submit(JobClass::default(), move |tx| Ok(tx.db.execute(over, [up_to])?)).await?;
        }
        Ok(emptied)
    }

    /// Gives back the pages that were filled, also those of an erasure that was cut short.
    pub(super) async fn delete_blank_rows(&self) -> Result<(), StoreError> {
        let large = JobClass { large: true, ..JobClass::default() };
        while self.submit(large, delete_blank_row).await? > 0 {}
        Ok(())
    }
}

fn free_pages(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "freelist_count", |row| row.get(0))
}

/// Takes free pages for zeros; how many.
///
/// A row's last page is blanked as far as it is used. So the row is of a size of which SQLite puts the odd part beside the
/// row's number (the file format, "cell payload overflow pages"): whole pages and a bit over the least it keeps there, about
/// an eighth of a page.
fn fill_free_pages(tx: &mut WriteTx<'_>) -> Result<i64, StoreError> {
    let pages = free_pages(tx.db)?.min(STEP_PAGES);
    if pages > 0 {
        let page: i64 = tx.db.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let bytes = pages * (page - 4) + page * 3 / 16;
        tx.db.prepare_cached("INSERT INTO blank (zeros) VALUES (zeroblob(?1))")?.execute([bytes])?;
    }
    Ok(pages)
}

/// Gives a step's pages back; how many rows that were.
fn delete_blank_row(tx: &mut WriteTx<'_>) -> Result<usize, StoreError> {
    let sql = "DELETE FROM blank WHERE n = (SELECT min(n) FROM blank)";
    Ok(tx.db.prepare_cached(sql)?.execute([])?)
}
