//! The mark in a snapshot by which whoever opens it for writing knows that it is one.
//!
//! Guarantees: a snapshot that is written to, wherever it lies and however it came there, begins a new epoch in the first
//! transaction, with an event: what followers of the mirror have seen since is not in it, and they must be told. A
//! snapshot that was copied over a database is not mixed with what that one has left in its WAL.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension};

use super::lock::DatabaseLock;
use super::{APPLICATION_ID, Millis, StoreError, journal, now};
use crate::feed::Seq;

/// Where SQLite's header tells how a file is written (1: with a rollback journal), and whose it is.
const WRITTEN_AT: usize = 18;
const APPLICATION_AT: std::ops::Range<usize> = 68..72;
const ROLLBACK: u8 = 1;

/// Marks a copy as a snapshot of this moment.
pub(super) fn mark_snapshot(db: &Connection, at: Millis) -> rusqlite::Result<()> {
    db.execute("UPDATE mirror_state SET snapshot_at = ?1", [at]).map(drop)
}

/// Begins a new epoch in a snapshot that is about to be written to; in any other file it changes nothing.
pub(super) fn begin_epoch_if_snapshot(db: &mut Connection) -> Result<(), StoreError> {
    let transaction = db.transaction()?;
    let sql = "SELECT snapshot_at, seq FROM mirror_state WHERE snapshot_at IS NOT NULL";
    let found = transaction.query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, Seq>(1)?))).optional()?;
    let Some((at, seq)) = found else { return Ok(()) };
    let time = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
    let detail = format!("a snapshot of {time}, its seq {seq}, is written to: it was put here without restore");
    let (epoch, _) = new_epoch(&transaction, 0, &detail)?;
    transaction.commit()?;
    tracing::warn!(epoch, "this is a snapshot: those who follow the mirror are told to read everything again");
    Ok(())
}

/// Another identity for the mirror in this file, whose change numbers go on beyond `given`; it and its `seq`.
pub(super) fn new_epoch(db: &Connection, given: Seq, detail: &str) -> rusqlite::Result<(String, Seq)> {
    let sql = "UPDATE mirror_state SET epoch = lower(hex(randomblob(8))), reserved = max(seq, reserved, ?1),
                   seq = max(seq, reserved, ?1), started_at = NULL, ops_address = NULL, webhooks_address = NULL,
                   snapshot_at = NULL
               RETURNING epoch, seq";
    let renewed = db.query_row(sql, [given], |row| Ok((row.get(0)?, row.get(1)?)))?;
    journal::insert_event(db, None, now(), "restored", detail)?;
    Ok(renewed)
}

/// A snapshot is written with a rollback journal and never has a WAL. One that stands beside it is of the database that it
/// was copied over, and SQLite would play it into the snapshot.
pub(super) fn set_foreign_wal_aside(lock: &DatabaseLock) -> std::io::Result<()> {
    let mut header = [0; 100];
    if lock.file().read_exact_at(&mut header, 0).is_err() {
        return Ok(());
    }
    let ours = header.get(APPLICATION_AT) == Some(&APPLICATION_ID.to_be_bytes());
    if !ours || header.get(WRITTEN_AT) != Some(&ROLLBACK) {
        return Ok(());
    }
    let beside = |more: &str| {
        let mut path = OsString::from(lock.path());
        path.push(more);
        PathBuf::from(path)
    };
    let wal = beside("-wal");
    if !std::fs::symlink_metadata(&wal).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let aside = beside("-wal.of-another-file");
    std::fs::rename(&wal, &aside)?;
    tracing::warn!(wal = %aside.display(), "a snapshot was copied over a database: what that one left is set aside");
    match std::fs::remove_file(beside("-shm")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
