//! A snapshot put in the place of the database.
//!
//! Guarantees: a snapshot that is not what its manifest says, or not sound, is refused before anything is touched; until
//! the last step the database is the old one, whole, and after it the new one, with a new epoch and change numbers
//! beyond all that were given; no WAL of the old file is ever found beside the new one. Killed at any point, it can be
//! done again. Only with `discard_old`, and only where the disk can't hold both, is the old one removed first.

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

/// As every database: its group may read it.
const MODE: u32 = 0o640;

/// What a restore came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RestoreReport {
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
pub fn restore(snapshot: &Path, database: &Path, discard_old: bool) -> Result<RestoreReport, StoreError> {
    let place = ResolvedPath::resolve(database).map_err(|error| path_error(database, error))?;
    let target = RestoreTarget { given_path: database, owner: owner(&place)?, place };
    let there = target.size("")?;
    // Where there is nothing yet, an empty file holds the place, so that nobody begins a mirror there meanwhile.
    let lock = DatabaseLock::acquire_at(&target.place, database)?;
    let restored = target.restore(snapshot, there.unwrap_or(0), discard_old);
    if restored.is_err() && there.is_none() {
        target.remove("")?;
    }
    drop(lock);
    restored
}

/// Whom the database is to belong to: as before, or as its directory.
fn owner(place: &ResolvedPath) -> Result<Owner, StoreError> {
    place.owner().map_err(|error| path_error(&place.path(), error))
}

/// The manifest of a snapshot that is what it says, and sound.
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
    // Rows of an older layout are judged once they have been brought up to date.
    if manifest.schema_version == SCHEMA_VERSION {
        refuse_unsound(snapshot, &Reader::open(snapshot)?.verify(false)?)?;
    }
    Ok(manifest)
}

/// The last change number that the old database may have given; nothing where it can't be read any more.
fn last_given_seq(database: &Path, notes: &mut Vec<String>) -> i64 {
    let read = || -> Result<i64, StoreError> {
        let db = read::connect(database, OpenFlags::empty())?;
        let version = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        schema::check(&db, database, version)?;
        Ok(db.query_row("SELECT max(seq, reserved) FROM mirror_state", [], |row| row.get(0))?)
    };
    read().unwrap_or_else(|error| {
        notes.push(format!("the old database can't be read ({error}): change numbers go on from the snapshot's"));
        0
    })
}

/// The database's place while a restore works there.
struct RestoreTarget<'a> {
    given_path: &'a Path,
    place: ResolvedPath,
    owner: Owner,
}

impl RestoreTarget<'_> {
    /// With the place held; `old` is the size of what stands there.
    fn restore(&self, snapshot: &Path, old: u64, discard_old: bool) -> Result<RestoreReport, StoreError> {
        let manifest = verified_manifest(snapshot)?;
        let mut notes = Vec::new();
        let given = if old > 0 { last_given_seq(&self.place.path(), &mut notes) } else { 0 };
        self.remove_all(".restoring")?;
        self.make_room(old, manifest.bytes, discard_old)?;
        let (copy, epoch, seq) = self.prepare(snapshot, &manifest, given).inspect_err(|_| {
            // What can't be removed now is removed by the next restore.
            let _ = self.remove_all(".restoring");
        })?;
        let kept = self.put_aside(old > 0, discard_old, &mut notes)?;
        self.rename(".restoring", "")?;
        // As every database that was opened once: in WAL mode, with the files that its group's readers can't make.
        let path = self.place.path();
        migrate(&mut connect(&path).map_err(|error| open_error(self.given_path, error))?, self.given_path)?;
        drop(copy);
        Ok(RestoreReport { path: self.given_path.to_owned(), kept, epoch, seq, snapshot: manifest, notes })
    }

    /// Where both don't fit, the old database goes first if it may: its content, since its name holds the place.
    fn make_room(&self, old: u64, bytes: u64, discard_old: bool) -> Result<(), StoreError> {
        let directory = self.place.directory();
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
        for side in ["-wal", "-shm", "-journal"] {
            self.remove(side)?;
        }
        let file =
            directory.file(self.place.name(), OFlags::RDWR).map_err(|error| path_error(self.given_path, error))?;
        file.set_len(0).map_err(|error| path_error(self.given_path, error))
    }

    /// A copy with a new epoch, on the disk, and held: whoever starts on it once it stands finds it taken until all is done.
    fn prepare(
        &self,
        snapshot: &Path,
        manifest: &Manifest,
        given: i64,
    ) -> Result<(DatabaseLock, String, i64), StoreError> {
        let (name, path) = (self.place.name_with_suffix(".restoring"), self.path(".restoring"));
        let failed = |error| path_error(&path, error);
        let mut file = self.place.directory().create(&name, MODE, self.owner).map_err(failed)?;
        let mut from = files::open(snapshot).map_err(|error| path_error(snapshot, error))?;
        io::copy(&mut from, &mut file).map_err(failed)?;
        drop(file);
        if digest(&path)?.1 != manifest.sha256 {
            return Err(path_error(&path, "the copy differs from the snapshot: is the disk sound?"));
        }
        let place = ResolvedPath::resolve(&path).map_err(failed)?;
        let lock = DatabaseLock::acquire_at(&place, &path)?;
        let mut db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        schema::harden(&db)?;
        schema::check(&db, snapshot, manifest.schema_version)?;
        let transaction = db.transaction()?;
        let detail = format!("{} of {}, its seq {}", manifest.file, manifest.created_at, manifest.seq);
        let (epoch, seq) = epoch::new_epoch(&transaction, given, &detail)?;
        transaction.commit()?;
        db.close().map_err(|(_, error)| error)?;
        lock.file().sync_all().map_err(failed)?;
        Ok((lock, epoch, seq))
    }

    /// Where the old database stands from now on, WAL and all; its own name stays as well, until the new one takes it.
    fn put_aside(&self, old: bool, discard_old: bool, notes: &mut Vec<String>) -> Result<Option<PathBuf>, StoreError> {
        if old && self.size("")?.is_some_and(|size| size > 0) {
            write_wal_back(&self.place.path(), notes);
        }
        let time = jiff::Timestamp::from_millisecond(now()).unwrap_or_default();
        let kept = (old && !discard_old).then(|| format!(".before-restore-{}", time.strftime("%Y%m%dT%H%M%S%3fZ")));
        if let Some(kept) = &kept {
            self.link_or_copy("", kept)?;
            if self.size("-wal")?.is_some_and(|size| size > 0) {
                self.link_or_copy("-wal", &format!("{kept}-wal"))?;
            }
        }
        // A WAL without a database is of one that was removed.
        for side in ["-wal", "-shm", "-journal"] {
            self.remove(side)?;
        }
        self.sync()?;
        Ok(kept.map(|kept| self.given_path.with_file_name(self.place.name_with_suffix(&kept))))
    }

    /// A second name where the file system has such, else another file.
    fn link_or_copy(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (directory, name, second) =
            (self.place.directory(), self.place.name_with_suffix(from), self.place.name_with_suffix(to));
        let copied = || -> io::Result<File> {
            let mut copy = directory.create(&second, MODE, self.owner)?;
            io::copy(&mut directory.file(&name, OFlags::RDONLY)?, &mut copy)?;
            Ok(copy)
        };
        let file = match directory.hard_link(&name, &second) {
            Ok(()) => directory.file(&second, OFlags::RDONLY),
            Err(_) => copied(),
        };
        file.and_then(|file| file.sync_all()).map_err(|error| path_error(&self.path(to), error))
    }

    fn path(&self, more: &str) -> PathBuf {
        self.place.directory().path().join(self.place.name_with_suffix(more))
    }

    fn size(&self, more: &str) -> Result<Option<u64>, StoreError> {
        self.place
            .directory()
            .size(&self.place.name_with_suffix(more))
            .map_err(|error| path_error(&self.path(more), error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (from, name): (_, &OsStr) = (self.place.name_with_suffix(from), &self.place.name_with_suffix(to));
        self.place.directory().rename(&from, name).map_err(|error| path_error(&self.path(to), error))?;
        self.sync()
    }

    fn remove(&self, more: &str) -> Result<(), StoreError> {
        self.place
            .directory()
            .remove(&self.place.name_with_suffix(more))
            .map_err(|error| path_error(&self.path(more), error))
    }

    fn remove_all(&self, more: &str) -> Result<(), StoreError> {
        ["", "-wal", "-shm", "-journal"].iter().try_for_each(|side| self.remove(&format!("{more}{side}")))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let directory = self.place.directory();
        directory.sync().map_err(|error| path_error(directory.path(), error))
    }
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
