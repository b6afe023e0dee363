//! Writes the WAL back beside the writer, on a connection of its own.
//!
//! The bulk is copied and synchronised while the writer goes on, what is left while it takes small work alone; only the
//! last few pages, without which SQLite can't start the WAL anew, are copied with the writer held at the gate. A reader
//! that stays long keeps the WAL from being reset, never the writer from writing.

use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use super::write_queue::WriteQueue;

/// What the WAL file is cut back to once it has been written back.
pub(super) const KEPT_WAL_BYTES: i64 = 512 << 20;
/// Written back from this many WAL pages (16 KiB each) on: 128 MiB.
const START_PAGES: i64 = 8 << 10;
/// With a rest of at most this many pages large work is put off: 8 MiB.
const REMAINING_PAGES: i64 = 512;
/// Passes beside the writer before large work is put off all the same.
const PASSES: usize = 4;
/// An idle WAL is written back after this long.
const IDLE: Duration = Duration::from_secs(15);
/// Told once when the WAL has grown beyond this many pages without being reset: 128 MiB.
const PINNED_PAGES: i64 = 8 << 10;

/// Between two tries to empty a WAL.
const TRUNCATE_RETRY_WAIT: Duration = Duration::from_secs(1);
/// How long such a try waits for readers, the writer held meanwhile.
const TRUNCATE_BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// Where writer and checkpointer meet.
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
    /// How often it was to be emptied; up to which of those that was tried, and done.
    truncations_requested: u64,
    truncations_tried: u64,
    truncations_done: u64,
}

impl CheckpointGate {
    /// Held by the writer for a group, by the checkpointer for the rest of a WAL.
    pub(super) fn enter(&self) -> MutexGuard<'_, ()> {
        self.group_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer has committed and the WAL holds so many pages.
    pub(super) fn committed(&self, pages: i32) {
        let mut wal = self.wal();
        wal.pages = i64::from(pages);
        if wal.pages >= START_PAGES {
            self.changed.notify_all();
        }
    }

    /// Told at its start and at its end.
    fn report_pinned(&self, pages: i64) {
        let news = self.pinned.send_if_modified(|before| {
            let news = (*before == 0) != (pages == 0);
            *before = pages;
            news
        });
        if news && pages > 0 {
            tracing::warn!(wal_pages = pages, "a long reader keeps the WAL from being written back");
        }
    }

    /// The writer has ended.
    pub(super) fn close(&self) {
        self.wal().closed = true;
        self.changed.notify_all();
    }

    /// Pages of a WAL that a long reader keeps from being written back; 0 when none does.
    pub(super) fn pinned(&self) -> watch::Receiver<i64> {
        self.pinned.subscribe()
    }

    /// Has the WAL cut to nothing, so that no old version of a page stays in it. Blocking; false while a reader still
    /// needs it, which `patience` did not outlast: it is cut once that one has gone.
    pub(super) fn request_truncate(&self, patience: Duration) -> bool {
        let mut wal = self.wal();
        wal.truncations_requested += 1;
        let wanted = wal.truncations_requested;
        self.changed.notify_all();
        let deadline = Instant::now() + patience;
        while wal.truncations_done < wanted && !wal.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            wal = self.changed.wait_timeout(wal, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        wal.truncations_done >= wanted
    }

    fn wal(&self) -> MutexGuard<'_, WalState> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a large or an idle WAL; `None` once the writer has ended.
    fn wait_for_work(&self, done: i64) -> Option<()> {
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
                // Again and again, for as long as a reader is in the way.
                let waits = |wal: &mut WalState| !wal.closed && wal.truncations_requested == wal.truncations_tried;
                let waited = self.changed.wait_timeout_while(wal, TRUNCATE_RETRY_WAIT, waits);
                return if waited.unwrap_or_else(PoisonError::into_inner).0.closed { None } else { Some(()) };
            }
            if wal.pages - done.min(wal.pages) >= START_PAGES || (left.is_zero() && wal.pages > done) {
                return Some(());
            }
            let left = if left.is_zero() { IDLE } else { left };
            wal = self.changed.wait_timeout(wal, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Until the writer ends. `file` is the database, to synchronise it apart from SQLite, which does that only in the pass
/// that copies the last page: the one that the writer waits for.
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
                // Emptying waits like the rest: whatever keeps it from being written back stays for a while.
                wal.truncations_tried = wal.truncations_requested;
            }
        }
    }
    if let Err(error) = checkpoint_passive(db).and_then(|end| truncate_wal(db, gate, end)) {
        tracing::warn!(%error, "the WAL could not be written back at the end; the next start does it");
    }
}

/// Pages in the WAL and pages written back, at the end.
fn write_back(db: &Connection, file: &File, gate: &CheckpointGate, queue: &WriteQueue) -> rusqlite::Result<(i64, i64)> {
    let mut before = 0;
    for _ in 0..PASSES {
        let (log, copied) = checkpoint_passive(db)?;
        let stuck = copied < log && copied == before;
        let rest = gate.wal().pages - copied;
        if rest <= REMAINING_PAGES || stuck {
            break;
        }
        before = copied;
    }
    synchronise(file);
    queue.set_large_deferred(true);
    // The group that is open ends first: its pages are the most of what is left.
    drop(gate.enter());
    checkpoint_passive(db)?;
    synchronise(file);
    let _held = gate.enter();
    let end = checkpoint_passive(db)?;
    gate.wal().pages = end.0 - end.1;
    Ok(end)
}

/// Cuts the WAL to nothing where that was asked for.
fn truncate_wal(db: &Connection, gate: &CheckpointGate, end: (i64, i64)) -> rusqlite::Result<(i64, i64)> {
    let asked = {
        let mut wal = gate.wal();
        if wal.truncations_requested == wal.truncations_done {
            return Ok(end);
        }
        wal.truncations_tried = wal.truncations_requested;
        wal.truncations_requested
    };
    let _held = gate.enter();
    db.busy_timeout(TRUNCATE_BUSY_TIMEOUT)?;
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    db.busy_timeout(Duration::from_secs(5))?;
    if !busy? {
        let mut wal = gate.wal();
        (wal.truncations_done, wal.pages) = (asked, 0);
        gate.changed.notify_all();
        return Ok((0, 0));
    }
    Ok(end)
}

/// SQLite does it again, and judges by what it is told then.
fn synchronise(file: &File) {
    if let Err(error) = file.sync_data() {
        tracing::warn!(%error, "the database file could not be synchronised ahead of the write-back's end");
    }
}

fn checkpoint_passive(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(1)?, row.get(2)?)))
}
