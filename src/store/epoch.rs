//! The mark in a snapshot, by which a program that opens the file for writing recognises a snapshot.
//!
//! Guarantees: a snapshot that is opened for writing, whatever its path, begins a new epoch in the first transaction,
//! with an event: the changes that followers of the mirror have read since are not in the snapshot, and the new epoch
//! tells them so. A snapshot that was copied over a database is not mixed with the WAL of that database.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension};

use super::lock::DatabaseLock;
use super::{APPLICATION_ID, Millis, StoreError, journal, now};
use crate::feed::Seq;

/// Offsets in SQLite's header: of the file format's write version (1: rollback journal), and of the application id.
const WRITE_VERSION_OFFSET: usize = 18;
const APPLICATION_ID_RANGE: std::ops::Range<usize> = 68..72;
const ROLLBACK_JOURNAL: u8 = 1;

/// Marks a copy as a snapshot made at `at`.
pub(super) fn mark_snapshot(db: &Connection, at: Millis) -> rusqlite::Result<()> {
    db.execute("UPDATE mirror_state SET snapshot_at = ?1", [at]).map(drop)
}

/// Begins a new epoch in a snapshot that is opened for writing; changes nothing in any other file.
pub(super) fn begin_epoch_if_snapshot(db: &mut Connection) -> Result<(), StoreError> {
    let transaction = db.transaction()?;
    let sql = "SELECT snapshot_at, seq FROM mirror_state WHERE snapshot_at IS NOT NULL";
    let snapshot = transaction.query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, Seq>(1)?))).optional()?;
    let Some((at, seq)) = snapshot else { return Ok(()) };
    let time = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
    let detail = format!("a snapshot of {time}, its seq {seq}, is written to: it was put here without restore");
    let (epoch, _) = new_epoch(&transaction, 0, &detail)?;
    transaction.commit()?;
    tracing::warn!(epoch, "this is a snapshot: those who follow the mirror are told to read everything again");
    Ok(())
}

/// Gives the mirror in this file another epoch, with change numbers beyond `last_seq`; returns the epoch and the file's
/// `seq`.
pub(super) fn new_epoch(db: &Connection, last_seq: Seq, detail: &str) -> rusqlite::Result<(String, Seq)> {
    let sql = "UPDATE mirror_state SET epoch = lower(hex(randomblob(8))), reserved = max(seq, reserved, ?1),
                   seq = max(seq, reserved, ?1), started_at = NULL, ops_address = NULL, webhooks_address = NULL,
                   snapshot_at = NULL
               RETURNING epoch, seq";
    let epoch_and_seq = db.query_row(sql, [last_seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    journal::insert_event(db, None, now(), "restored", detail)?;
    Ok(epoch_and_seq)
}

/// A snapshot is written with a rollback journal and never has a WAL. A WAL beside it belongs to the database that the
/// snapshot was copied over, and SQLite would apply that WAL to the snapshot.
pub(super) fn set_foreign_wal_aside(lock: &DatabaseLock) -> std::io::Result<()> {
    let mut header = [0; 100];
    if lock.file().read_exact_at(&mut header, 0).is_err() {
        return Ok(());
    }
    let is_mirror = header.get(APPLICATION_ID_RANGE) == Some(&APPLICATION_ID.to_be_bytes());
    if !is_mirror || header.get(WRITE_VERSION_OFFSET) != Some(&ROLLBACK_JOURNAL) {
        return Ok(());
    }
    let beside = |suffix: &str| {
        let mut path = OsString::from(lock.path());
        path.push(suffix);
        PathBuf::from(path)
    };
    let wal = beside("-wal");
    if !std::fs::symlink_metadata(&wal).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let renamed_wal = beside("-wal.of-another-file");
    std::fs::rename(&wal, &renamed_wal)?;
    tracing::warn!(wal = %renamed_wal.display(), "a snapshot was copied over a database: what that one left is set aside");
    match std::fs::remove_file(beside("-shm")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
