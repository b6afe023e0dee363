//! A snapshot put in the place of the database.
//!
//! Guarantees: a snapshot that is not what its manifest says, or not sound, is refused before anything is touched; until
//! the last step the database is the old one, whole, and after it the new one, with a new epoch and change numbers
//! beyond all that were given; no WAL of the old file is ever found beside the new one. Killed at any point, it can be
//! done again. Only with `discard_old`, and only where the disk can't hold both, is the old one removed first.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::read::Reader;
use super::snapshot::{Manifest, beside, check_room, digest, free, give, refused, sound, synced, wanted};
use super::{SCHEMA_VERSION, StoreError, connect, explain, journal, lock, migrate, now};

/// What a restore came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Restored {
    /// The database.
    pub path: PathBuf,
    /// Where the one before it is kept, if there was one and it was kept.
    pub kept: Option<PathBuf>,
    /// The mirror's new identity.
    pub epoch: String,
    /// What the next change numbers come after.
    pub seq: i64,
    /// What the snapshot says of itself.
    pub snapshot: Manifest,
    /// What could not be done for the old database.
    pub notes: Vec<String>,
}

/// Puts `snapshot` in the place of `database`. Blocking.
///
/// # Errors
/// [`StoreError::Held`] while a daemon or another program of ours writes the database; [`StoreError::Refused`] when the
/// snapshot is not what its manifest says, is not sound, is of a newer layout, or the disk can't hold it.
pub fn restore(snapshot: &Path, database: &Path, discard_old: bool) -> Result<Restored, StoreError> {
    let lock = lock(database)?;
    let owner = owner(database)?;
    give(&with(database, ".lock"), owner)?;
    let manifest = trusted(snapshot)?;
    let old = database.try_exists().map_err(|error| refused(database, error))?;
    let mut notes = Vec::new();
    let given = if old { given(database, &mut notes) } else { 0 };
    let copy = with(database, ".restoring");
    remove_all(&copy)?;
    make_room(database, manifest.bytes, discard_old)?;
    let (epoch, seq) = prepare(snapshot, &copy, &manifest, given).inspect_err(|_| {
        // What can't be removed now is removed by the next restore.
        let _ = remove_all(&copy);
    })?;
    fs::set_permissions(&copy, Permissions::from_mode(0o640)).map_err(|error| refused(&copy, error))?;
    give(&copy, owner)?;
    let kept = put_aside(database, discard_old, &mut notes)?;
    fs::rename(&copy, database).map_err(|error| refused(database, error))?;
    synced(beside(database))?;
    // As every database that was opened once: in WAL mode, with the files that its group's readers can't make.
    migrate(&mut connect(database).map_err(|error| explain(database, error))?, database)?;
    drop(lock);
    Ok(Restored { path: database.to_owned(), kept, epoch, seq, snapshot: manifest, notes })
}

/// Whom the database is to belong to: as before, or as its directory.
fn owner(database: &Path) -> Result<(u32, u32), StoreError> {
    let found = fs::metadata(database).or_else(|_| fs::metadata(beside(database)));
    found.map(|found| (found.uid(), found.gid())).map_err(|error| refused(database, error))
}

/// The manifest of a snapshot that is what it says, and sound.
fn trusted(snapshot: &Path) -> Result<Manifest, StoreError> {
    let manifest = Manifest::read(snapshot)?;
    if manifest.schema_version > SCHEMA_VERSION {
        let layout = manifest.schema_version;
        return Err(refused(
            snapshot,
            format!("it has layout {layout}, newer than this feedmirror: upgrade feedmirror"),
        ));
    }
    let (bytes, sha256) = digest(snapshot)?;
    if (bytes, &sha256) != (manifest.bytes, &manifest.sha256) {
        return Err(refused(snapshot, "it is not what its manifest says (sha256): it was changed or damaged"));
    }
    // Rows of an older layout are judged once they have been brought up to date.
    if manifest.schema_version == SCHEMA_VERSION {
        sound(snapshot, &Reader::open(snapshot)?.verify(false)?)?;
    }
    Ok(manifest)
}

/// The last change number that the old database may have given; nothing where it can't be read any more.
fn given(database: &Path, notes: &mut Vec<String>) -> i64 {
    let read = || -> rusqlite::Result<i64> {
        let db = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.query_row("SELECT max(seq, reserved) FROM mirror_state", [], |row| row.get(0))
    };
    read().unwrap_or_else(|error| {
        notes.push(format!("the old database can't be read ({error}): change numbers go on from the snapshot's"));
        0
    })
}

/// Where both don't fit, the old database goes first if it may.
fn make_room(database: &Path, bytes: u64, discard_old: bool) -> Result<(), StoreError> {
    let directory = beside(database);
    let old = fs::metadata(database).map_or(0, |found| found.len());
    let free = free(directory)?;
    if free >= wanted(bytes) || !discard_old {
        return check_room(directory, bytes).map_err(|error| match old {
            0 => error,
            _ => StoreError::Refused(format!("{error}; or let go of the old database with --discard-old")),
        });
    }
    if free.saturating_add(old) < wanted(bytes) {
        return check_room(directory, bytes);
    }
    remove_all(database)
}

/// A copy with a new epoch, on the disk.
fn prepare(snapshot: &Path, copy: &Path, manifest: &Manifest, given: i64) -> Result<(String, i64), StoreError> {
    fs::copy(snapshot, copy).map_err(|error| refused(copy, error))?;
    if digest(copy)?.1 != manifest.sha256 {
        return Err(refused(copy, "the copy differs from the snapshot: is the disk sound?"));
    }
    let mut db = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let transaction = db.transaction()?;
    let sql = "UPDATE mirror_state SET epoch = lower(hex(randomblob(8))), reserved = max(seq, reserved, ?1),
                   seq = max(seq, reserved, ?1), started_at = NULL, ops_address = NULL, webhooks_address = NULL
               RETURNING epoch, seq";
    let (epoch, seq) = transaction.query_row(sql, [given], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let detail = format!("{} of {}, its seq {}", manifest.file, manifest.created_at, manifest.seq);
    journal::add_event(&transaction, None, now(), "restored", &detail)?;
    transaction.commit()?;
    db.close().map_err(|(_, error)| error)?;
    synced(copy)?;
    Ok((epoch, seq))
}

/// Where the old database stands from now on, WAL and all; its own name stays as well, until the new one takes it.
fn put_aside(database: &Path, discard_old: bool, notes: &mut Vec<String>) -> Result<Option<PathBuf>, StoreError> {
    if !database.try_exists().map_err(|error| refused(database, error))? {
        // A WAL without a database is of one that was removed.
        remove_all(database)?;
        return Ok(None);
    }
    write_wal_back(database, notes);
    let kept = (!discard_old).then(|| {
        let time = jiff::Timestamp::from_millisecond(now()).unwrap_or_default();
        with(database, &format!(".before-restore-{}", time.strftime("%Y%m%dT%H%M%S%3fZ")))
    });
    if let Some(kept) = &kept {
        link(database, kept)?;
        let wal = with(database, "-wal");
        if fs::metadata(&wal).is_ok_and(|found| found.len() > 0) {
            link(&wal, &with(kept, "-wal"))?;
        }
    }
    for side in ["-wal", "-shm"] {
        remove(&with(database, side))?;
    }
    synced(beside(database))?;
    Ok(kept)
}

/// So that the old file is whole by itself. Where it can't be done, its WAL is kept beside it.
fn write_wal_back(database: &Path, notes: &mut Vec<String>) {
    let written = connect(database)
        .and_then(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)));
    match written {
        Ok(0) => {}
        Ok(_) => notes.push("a reader is busy with the old database: its WAL goes with it".to_owned()),
        Err(error) => notes.push(format!("the old database's WAL can't be written back ({error}) and goes with it")),
    }
}

/// A second name where the file system has such, else another one.
fn link(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).map_err(|error| refused(to, error))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(|error| refused(to, error))
}

fn remove_all(database: &Path) -> Result<(), StoreError> {
    ["", "-wal", "-shm", "-journal"].iter().try_for_each(|side| remove(&with(database, side)))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(path, error)),
        _ => Ok(()),
    }
}

fn with(path: &Path, more: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(more);
    name.into()
}
