//! Writes the WAL back beside the writer, on a connection of its own.
//!
//! Most pages are copied and synchronised while the writer goes on, the rest while it takes small jobs alone; only for
//! the last few pages, without which SQLite can't restart the WAL, does the writer wait at the checkpoint gate. A long
//! reader keeps the WAL from being reset, never the writer from writing.

use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use super::write_queue::WriteQueue;

/// The size to which the WAL file is truncated once it has been written back.
pub(super) const KEPT_WAL_BYTES: i64 = 512 << 20;
/// The WAL is written back from this many pages (16 KiB each) on: 128 MiB.
const START_PAGES: i64 = 8 << 10;
/// With at most this many pages left, large jobs are deferred: 8 MiB.
const REMAINING_PAGES: i64 = 512;
/// Passes beside the writer before large jobs are deferred all the same.
const PASSES: usize = 4;
/// An idle WAL is written back after this long.
const IDLE: Duration = Duration::from_secs(15);
/// A warning is logged once when the WAL has grown beyond this many pages without being reset: 128 MiB.
const PINNED_PAGES: i64 = 8 << 10;

/// The wait between two attempts to truncate the WAL.
const TRUNCATE_RETRY_WAIT: Duration = Duration::from_secs(1);
/// How long such an attempt waits for readers, while the writer waits at the gate.
const TRUNCATE_BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// What the writer and the checkpointer share: the lock on the open group, and the WAL's state.
#[derive(Default)]
pub(super) struct CheckpointGate {
    group_lock: Mutex<()>,
    wal: Mutex<WalState>,
    changed: Condvar,
    pinned: watch::Sender<i64>,
}

#[derive(Default)]
struct WalState {
    pages: i64,
    closed: bool,
    /// Number of truncations requested; of those, how many were tried, and how many were done.
    truncations_requested: u64,
    truncations_tried: u64,
    truncations_done: u64,
}

impl CheckpointGate {
    /// Locked by the writer for a group, by the checkpointer for the last pages of a WAL.
    pub(super) fn enter(&self) -> MutexGuard<'_, ()> {
        self.group_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the writer has committed and that the WAL holds this many pages.
    pub(super) fn committed(&self, pages: i32) {
        let mut wal = self.wal();
        wal.pages = i64::from(pages);
        if wal.pages >= START_PAGES {
            self.changed.notify_all();
        }
    }

    /// Publishes the number of pinned pages; logs once when pinning begins.
    fn report_pinned(&self, pages: i64) {
        let changed = self.pinned.send_if_modified(|before| {
            let changed = (*before == 0) != (pages == 0);
            *before = pages;
            changed
        });
        if changed && pages > 0 {
            tracing::warn!(wal_pages = pages, "a long reader keeps the WAL from being written back");
        }
    }

    /// Records that the writer has ended.
    pub(super) fn close(&self) {
        self.wal().closed = true;
        self.changed.notify_all();
    }

    /// Pages of a WAL that a long reader keeps from being written back; 0 when none does.
    pub(super) fn pinned(&self) -> watch::Receiver<i64> {
        self.pinned.subscribe()
    }

    /// Has the WAL truncated to zero bytes, so that no old version of a page stays in it. Blocking. False when a reader
    /// still needs the WAL after `timeout`: then the WAL is truncated once that reader has ended.
    pub(super) fn request_truncate(&self, timeout: Duration) -> bool {
        let mut wal = self.wal();
        wal.truncations_requested += 1;
        let number = wal.truncations_requested;
        self.changed.notify_all();
        let deadline = Instant::now() + timeout;
        while wal.truncations_done < number && !wal.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            wal = self.changed.wait_timeout(wal, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        wal.truncations_done >= number
    }

    fn wal(&self) -> MutexGuard<'_, WalState> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a large WAL, an idle one, or a request to truncate; `None` once the writer has ended.
    fn wait_for_work(&self, written_back: i64) -> Option<()> {
        let mut wal = self.wal();
        let deadline = Instant::now() + IDLE;
        loop {
            if wal.closed {
                return None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if wal.truncations_requested > wal.truncations_tried {
                return Some(());
            }
            if wal.truncations_requested > wal.truncations_done {
                // Tried again and again, for as long as a reader needs the WAL.
                let is_waiting = |wal: &mut WalState| !wal.closed && wal.truncations_requested == wal.truncations_tried;
                let result = self.changed.wait_timeout_while(wal, TRUNCATE_RETRY_WAIT, is_waiting);
                return if result.unwrap_or_else(PoisonError::into_inner).0.closed { None } else { Some(()) };
            }
            if wal.pages - written_back.min(wal.pages) >= START_PAGES || (left.is_zero() && wal.pages > written_back) {
                return Some(());
            }
            let left = if left.is_zero() { IDLE } else { left };
            wal = self.changed.wait_timeout(wal, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Runs until the writer ends. `file` is the database, which is synchronised here apart from SQLite: SQLite does so
/// only in the pass that copies the last page, and the writer waits for that pass.
pub(super) fn run(db: &Connection, file: &File, gate: &CheckpointGate, queue: &WriteQueue) {
    let mut failing = false;
    let mut stuck_at = 0;
    while gate.wait_for_work(stuck_at).is_some() {
        let written_back = write_back(db, file, gate, queue).and_then(|end| truncate_wal(db, gate, end));
        queue.set_large_deferred(false);
        match written_back {
            Ok((log, copied)) => {
                failing = false;
                stuck_at = if copied < log { log } else { 0 };
                let now_pinned = stuck_at > PINNED_PAGES;
                gate.report_pinned(if now_pinned { log } else { 0 });
            }
            Err(error) => {
                if !failing {
                    tracing::error!(%error, "the WAL can't be written back");
                }
                failing = true;
                let mut wal = gate.wal();
                stuck_at = wal.pages;
                // The truncation waits as well: the cause that keeps the WAL from being written back will last for a
                // while.
                wal.truncations_tried = wal.truncations_requested;
            }
        }
    }
    if let Err(error) = checkpoint_passive(db).and_then(|end| truncate_wal(db, gate, end)) {
        tracing::warn!(%error, "the WAL could not be written back at the end; the next start does it");
    }
}

/// Writes the WAL back; gives the pages in the WAL and the pages written back at the end.
fn write_back(db: &Connection, file: &File, gate: &CheckpointGate, queue: &WriteQueue) -> rusqlite::Result<(i64, i64)> {
    let mut last_copied = 0;
    for _ in 0..PASSES {
        let (log, copied) = checkpoint_passive(db)?;
        let stuck = copied < log && copied == last_copied;
        let left = gate.wal().pages - copied;
        if left <= REMAINING_PAGES || stuck {
            break;
        }
        last_copied = copied;
    }
    synchronise(file);
    queue.set_large_deferred(true);
    // The open group ends first: its pages are most of what is left.
    drop(gate.enter());
    checkpoint_passive(db)?;
    synchronise(file);
    let _group_guard = gate.enter();
    let result = checkpoint_passive(db)?;
    gate.wal().pages = result.0 - result.1;
    Ok(result)
}

/// Truncates the WAL to zero bytes where that was requested.
fn truncate_wal(db: &Connection, gate: &CheckpointGate, end: (i64, i64)) -> rusqlite::Result<(i64, i64)> {
    let requested = {
        let mut wal = gate.wal();
        if wal.truncations_requested == wal.truncations_done {
            return Ok(end);
        }
        wal.truncations_tried = wal.truncations_requested;
        wal.truncations_requested
    };
    let _group_guard = gate.enter();
    db.busy_timeout(TRUNCATE_BUSY_TIMEOUT)?;
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    db.busy_timeout(Duration::from_secs(5))?;
    if !busy? {
        let mut wal = gate.wal();
        (wal.truncations_done, wal.pages) = (requested, 0);
        gate.changed.notify_all();
        return Ok((0, 0));
    }
    Ok(end)
}

/// A failure here is only logged: SQLite synchronises the file again, and acts on that result.
fn synchronise(file: &File) {
    if let Err(error) = file.sync_data() {
        tracing::warn!(%error, "the database file could not be synchronised ahead of the write-back's end");
    }
}

fn checkpoint_passive(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(1)?, row.get(2)?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

    use super::*;

    #[test]
    fn a_wal_that_cannot_be_written_back_is_tried_again_each_second_at_most() {
        // Given: a database whose WAL can't be written back.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mirror.db");
        let mut db = Connection::open(&path).unwrap();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n)").unwrap();
        let (file, tries) = (File::open(&path).unwrap(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&tries);
        db.authorizer(Some(move |context: AuthContext<'_>| match context.action {
            AuthAction::Pragma { .. } => {
                counted.fetch_add(1, Ordering::Relaxed);
                Authorization::Deny
            }
            _ => Authorization::Allow,
        }))
        .unwrap();
        let (gate, queue) = (CheckpointGate::default(), WriteQueue::default());

        // When it is to be emptied
        let emptied = std::thread::scope(|scope| {
            let (file, gate, queue) = (&file, &gate, &queue);
            scope.spawn(move || run(&db, file, gate, queue));
            let emptied = gate.request_truncate(TRUNCATE_RETRY_WAIT * 3 / 2);
            gate.close();
            emptied
        });

        // Then
        let tries = tries.load(Ordering::Relaxed);
        assert!(!emptied);
        assert!((2..=4).contains(&tries), "{tries} tries");
    }
}
