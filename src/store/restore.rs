//! Replaces the database by a snapshot.
//!
//! Guarantees: a snapshot that doesn't agree with its manifest, or is not sound, is refused before anything is changed;
//! until the last step the database is the old one, whole, and after it the new one, with a new epoch and change
//! numbers beyond all that were given; a WAL of the old file is never left beside the new one. A restore that is killed
//! at any point can be run again. Only with `discard_old`, and only where the disk can't hold both, is the old database
//! removed first.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::OFlags;

use super::files::{self, Owner, ResolvedPath};
use super::lock::DatabaseLock;
use super::read::{self, Reader};
use super::snapshot::{Manifest, check_room, digest, needed_bytes, path_error, refuse_unsound};
use super::{SCHEMA_VERSION, StoreError, connect, epoch, migrate, now, open_error, schema};

/// The mode of every database: its group may read it.
const MODE: u32 = 0o640;

/// The result of a restore.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RestoreReport {
    pub path: PathBuf,
    /// Path of the old database, if there was one and it was kept.
    pub kept: Option<PathBuf>,
    /// The mirror's new identity.
    pub epoch: String,
    /// The last change number: later ones are greater.
    pub seq: i64,
    /// The snapshot's manifest.
    pub snapshot: Manifest,
    /// Steps that failed for the old database.
    pub notes: Vec<String>,
}

/// Replaces `database` by a copy of `snapshot`. Blocking.
///
/// # Errors
/// [`StoreError::InUse`] while a daemon or another feedmirror process writes the database; [`StoreError::Refused`] when
/// the snapshot doesn't agree with its manifest, is not sound, is of a newer layout, or the disk can't hold it.
pub fn restore(snapshot: &Path, database: &Path, discard_old: bool) -> Result<RestoreReport, StoreError> {
    let resolved = ResolvedPath::resolve(database).map_err(|error| path_error(database, error))?;
    let target = RestoreTarget { given_path: database, owner: owner(&resolved)?, resolved };
    let old_size = target.size("")?;
    // Where there is no database yet, an empty file is created and locked, so that no other process begins a mirror
    // there meanwhile.
    let lock = DatabaseLock::acquire_at(&target.resolved, database)?;
    let report = target.restore(snapshot, old_size.unwrap_or(0), discard_old);
    if report.is_err() && old_size.is_none() {
        target.remove("")?;
    }
    drop(lock);
    report
}

/// The owner of the new database: the old one's, or the directory's.
fn owner(resolved: &ResolvedPath) -> Result<Owner, StoreError> {
    resolved.owner().map_err(|error| path_error(&resolved.path(), error))
}

/// The manifest of a snapshot, after checking that the snapshot agrees with it and is sound.
fn verified_manifest(snapshot: &Path) -> Result<Manifest, StoreError> {
    let manifest = Manifest::read(snapshot)?;
    if manifest.schema_version > SCHEMA_VERSION {
        let layout = manifest.schema_version;
        return Err(path_error(
            snapshot,
            format!("it has layout {layout}, newer than this feedmirror: upgrade feedmirror"),
        ));
    }
    let (bytes, sha256) = digest(snapshot)?;
    if (bytes, &sha256) != (manifest.bytes, &manifest.sha256) {
        return Err(path_error(snapshot, "it is not what its manifest says (sha256): it was changed or damaged"));
    }
    // Rows of an older layout are checked once they have been migrated.
    if manifest.schema_version == SCHEMA_VERSION {
        refuse_unsound(snapshot, &Reader::open(snapshot)?.verify(false)?)?;
    }
    Ok(manifest)
}

/// The last change number that the old database may have given; 0 where it can't be read any more.
fn last_given_seq(database: &Path, notes: &mut Vec<String>) -> i64 {
    let read_seq = || -> Result<i64, StoreError> {
        let db = read::connect(database, OpenFlags::empty())?;
        let version = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        schema::check(&db, database, version)?;
        Ok(db.query_row("SELECT max(seq, reserved) FROM mirror_state", [], |row| row.get(0))?)
    };
    read_seq().unwrap_or_else(|error| {
        notes.push(format!("the old database can't be read ({error}): change numbers go on from the snapshot's"));
        0
    })
}

/// The database's path while a restore is running.
struct RestoreTarget<'a> {
    given_path: &'a Path,
    resolved: ResolvedPath,
    owner: Owner,
}

impl RestoreTarget<'_> {
    /// Runs with the path locked; `old` is the size of the old database in bytes.
    fn restore(&self, snapshot: &Path, old: u64, discard_old: bool) -> Result<RestoreReport, StoreError> {
        let manifest = verified_manifest(snapshot)?;
        let mut notes = Vec::new();
        let last_seq = if old > 0 { last_given_seq(&self.resolved.path(), &mut notes) } else { 0 };
        self.remove_all(".restoring")?;
        self.make_room(old, manifest.bytes, discard_old)?;
        let (copy_lock, epoch, seq) = self.prepare(snapshot, &manifest, last_seq).inspect_err(|_| {
            // What can't be removed now is removed by the next restore.
            let _ = self.remove_all(".restoring");
        })?;
        let kept = self.put_aside(old > 0, discard_old, &mut notes)?;
        self.rename(".restoring", "")?;
        // Opened once, the database is in WAL mode, with the WAL files that readers of its group can't create.
        let path = self.resolved.path();
        migrate(&mut connect(&path).map_err(|error| open_error(self.given_path, error))?, self.given_path)?;
        drop(copy_lock);
        Ok(RestoreReport { path: self.given_path.to_owned(), kept, epoch, seq, snapshot: manifest, notes })
    }

    /// Where both don't fit, and with `discard_old`, truncates the old database; its empty file stays, since it is
    /// locked.
    fn make_room(&self, old: u64, bytes: u64, discard_old: bool) -> Result<(), StoreError> {
        let directory = self.resolved.directory();
        let free = directory.free_bytes().map_err(|error| path_error(directory.path(), error))?;
        if free >= needed_bytes(bytes) || !discard_old {
            return check_room(directory, bytes).map_err(|error| match old {
                0 => error,
                _ => StoreError::Refused(format!("{error}; or let go of the old database with --discard-old")),
            });
        }
        if free.saturating_add(old) < needed_bytes(bytes) {
            return check_room(directory, bytes);
        }
        for suffix in ["-wal", "-shm", "-journal"] {
            self.remove(suffix)?;
        }
        let file =
            directory.file(self.resolved.name(), OFlags::RDWR).map_err(|error| path_error(self.given_path, error))?;
        file.set_len(0).map_err(|error| path_error(self.given_path, error))
    }

    /// A copy with a new epoch, synchronised and locked: another process that opens it after the rename finds it in use
    /// until the restore is done.
    fn prepare(
        &self,
        snapshot: &Path,
        manifest: &Manifest,
        last_seq: i64,
    ) -> Result<(DatabaseLock, String, i64), StoreError> {
        let (name, path) = (self.resolved.name_with_suffix(".restoring"), self.path(".restoring"));
        let failed = |error| path_error(&path, error);
        let mut file = self.resolved.directory().create(&name, MODE, self.owner).map_err(failed)?;
        let mut from = files::open(snapshot).map_err(|error| path_error(snapshot, error))?;
        io::copy(&mut from, &mut file).map_err(failed)?;
        drop(file);
        if digest(&path)?.1 != manifest.sha256 {
            return Err(path_error(&path, "the copy differs from the snapshot: is the disk sound?"));
        }
        let resolved = ResolvedPath::resolve(&path).map_err(failed)?;
        let lock = DatabaseLock::acquire_at(&resolved, &path)?;
        let mut db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        schema::harden(&db)?;
        schema::check(&db, snapshot, manifest.schema_version)?;
        let transaction = db.transaction()?;
        let detail = format!("{} of {}, its seq {}", manifest.file, manifest.created_at, manifest.seq);
        let (epoch, seq) = epoch::new_epoch(&transaction, last_seq, &detail)?;
        transaction.commit()?;
        db.close().map_err(|(_, error)| error)?;
        lock.file().sync_all().map_err(failed)?;
        Ok((lock, epoch, seq))
    }

    /// Gives the old database and its WAL a second name, which is returned; its own name stays until the new database
    /// replaces it.
    fn put_aside(&self, old: bool, discard_old: bool, notes: &mut Vec<String>) -> Result<Option<PathBuf>, StoreError> {
        if old && self.size("")?.is_some_and(|size| size > 0) {
            write_wal_back(&self.resolved.path(), notes);
        }
        let time = jiff::Timestamp::from_millisecond(now()).unwrap_or_default();
        let kept_suffix =
            (old && !discard_old).then(|| format!(".before-restore-{}", time.strftime("%Y%m%dT%H%M%S%3fZ")));
        if let Some(kept_suffix) = &kept_suffix {
            self.link_or_copy("", kept_suffix)?;
            if self.size("-wal")?.is_some_and(|size| size > 0) {
                self.link_or_copy("-wal", &format!("{kept_suffix}-wal"))?;
            }
        }
        // A WAL without a database belongs to one that was removed.
        for suffix in ["-wal", "-shm", "-journal"] {
            self.remove(suffix)?;
        }
        self.sync()?;
        Ok(kept_suffix.map(|kept_suffix| self.given_path.with_file_name(self.resolved.name_with_suffix(&kept_suffix))))
    }

    /// A hard link where the file system has them, else a copy.
    fn link_or_copy(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (directory, name, second) =
            (self.resolved.directory(), self.resolved.name_with_suffix(from), self.resolved.name_with_suffix(to));
        let copy_file = || -> io::Result<File> {
            let mut copy = directory.create(&second, MODE, self.owner)?;
            io::copy(&mut directory.file(&name, OFlags::RDONLY)?, &mut copy)?;
            Ok(copy)
        };
        let file = match directory.hard_link(&name, &second) {
            Ok(()) => directory.file(&second, OFlags::RDONLY),
            Err(_) => copy_file(),
        };
        file.and_then(|file| file.sync_all()).map_err(|error| path_error(&self.path(to), error))
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.resolved.directory().path().join(self.resolved.name_with_suffix(suffix))
    }

    fn size(&self, suffix: &str) -> Result<Option<u64>, StoreError> {
        self.resolved
            .directory()
            .size(&self.resolved.name_with_suffix(suffix))
            .map_err(|error| path_error(&self.path(suffix), error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (from, name): (_, &OsStr) = (self.resolved.name_with_suffix(from), &self.resolved.name_with_suffix(to));
        self.resolved.directory().rename(&from, name).map_err(|error| path_error(&self.path(to), error))?;
        self.sync()
    }

    fn remove(&self, suffix: &str) -> Result<(), StoreError> {
        self.resolved
            .directory()
            .remove(&self.resolved.name_with_suffix(suffix))
            .map_err(|error| path_error(&self.path(suffix), error))
    }

    fn remove_all(&self, name_suffix: &str) -> Result<(), StoreError> {
        ["", "-wal", "-shm", "-journal"].iter().try_for_each(|suffix| self.remove(&format!("{name_suffix}{suffix}")))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let directory = self.resolved.directory();
        directory.sync().map_err(|error| path_error(directory.path(), error))
    }
}

/// Writes the WAL back, so that the old file is complete by itself. Where that fails, the WAL is kept beside the old
/// file.
fn write_wal_back(database: &Path, notes: &mut Vec<String>) {
    let busy = connect(database)
        .and_then(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)));
    match busy {
        Ok(0) => {}
        Ok(_) => notes.push("a reader is busy with the old database: its WAL goes with it".to_owned()),
        Err(error) => notes.push(format!("the old database's WAL can't be written back ({error}) and goes with it")),
    }
}
