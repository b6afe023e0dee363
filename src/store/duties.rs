//! What is due for a feed, or not before a time, stored until it is done: look-backs, Retry-After holds, absences, time
//! since the feed is gone. Nothing is decided here: the worker decides, this module stores.

use std::time::Duration;

use rusqlite::params;

use super::writer::JobClass;
use super::{Millis, Store, StoreError, journal, millis};

impl Store {
    /// Records that a look-back that began at `at` has ended, and that it counts for `due` look-backs that were due at
    /// once.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn record_look_back(&self, feed: i64, at: Millis, due: i64) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "UPDATE feed SET looked_back_at = ?2, look_back_due = max(look_back_due - ?3, 0) WHERE id = ?1";
            tx.db.prepare_cached(sql)?.execute([feed, at, due])?;
            Ok(())
        })
        .await
    }

    /// Records that a look-back is due at once, until a look-back has ended.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn request_look_back(&self, feed: i64) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            tx.db.execute("UPDATE feed SET look_back_due = look_back_due + 1 WHERE id = ?1", [feed])?;
            Ok(())
        })
        .await
    }

    /// Records until when the feed's publisher must not be asked; `None` ends the hold.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_held_until(&self, feed: i64, until: Option<Millis>) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "UPDATE feed SET held_until = ?2, next_poll_at = iif(?2 > next_poll_at, ?2, next_poll_at) WHERE id = ?1";
            tx.db.prepare_cached(sql)?.execute(params![feed, until])?;
            Ok(())
        })
        .await
    }

    /// Records how long a feed has been gone, as the sum of the waits between probes; zero while it is not gone.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_gone_for(&self, feed: i64, time: Duration) -> Result<(), StoreError> {
        let time = millis(time);
        self.submit(JobClass::default(), move |tx| {
            tx.db.prepare_cached("UPDATE feed SET gone_ms = ?2 WHERE id = ?1")?.execute([feed, time])?;
            Ok(())
        })
        .await
    }

    /// Records since when a feed has perhaps not been read, until [`Store::resolve_away`] decides, across restarts.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_away_since(&self, feed: i64, since: Millis) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            tx.db.execute("UPDATE feed SET away_since = coalesce(away_since, ?2) WHERE id = ?1", [feed, since])?;
            Ok(())
        })
        .await
    }

    /// Records whether a feed was not read for longer than its publisher keeps tombstones, and why: then it is to be
    /// resynced.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn resolve_away(&self, feed: i64, at: Millis, stale: Option<String>) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "UPDATE feed SET away_since = NULL, stale = iif(?2, 1, stale) WHERE id = ?1";
            tx.db.execute(sql, params![feed, stale.is_some()])?;
            match &stale {
                Some(detail) => Ok(journal::record_event(tx, Some(feed), at, "stale", detail)?),
                None => Ok(()),
            }
        })
        .await
    }
}
