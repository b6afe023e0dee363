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

use super::files::{self, Owner, Place};
use super::lock::Lock;
use super::read::{self, Reader};
use super::snapshot::{Manifest, check_room, digest, refused, sound, wanted};
use super::{SCHEMA_VERSION, StoreError, connect, explain, mark, migrate, now, schema};

/// As every database: its group may read it.
const MODE: u32 = 0o640;

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
    let place = Place::find(database).map_err(|error| refused(database, error))?;
    let target = Target { shown: database, owner: owner(&place)?, place };
    let there = target.size("")?;
    // Where there is nothing yet, an empty file holds the place, so that nobody begins a mirror there meanwhile.
    let lock = Lock::of(&target.place, database)?;
    let restored = target.restore(snapshot, there.unwrap_or(0), discard_old);
    if restored.is_err() && there.is_none() {
        target.remove("")?;
    }
    drop(lock);
    restored
}

/// Whom the database is to belong to: as before, or as its directory.
fn owner(place: &Place) -> Result<Owner, StoreError> {
    place.owner().map_err(|error| refused(&place.path(), error))
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
struct Target<'a> {
    shown: &'a Path,
    place: Place,
    owner: Owner,
}

impl Target<'_> {
    /// With the place held; `old` is the size of what stands there.
    fn restore(&self, snapshot: &Path, old: u64, discard_old: bool) -> Result<Restored, StoreError> {
        let manifest = trusted(snapshot)?;
        let mut notes = Vec::new();
        let given = if old > 0 { given(&self.place.path(), &mut notes) } else { 0 };
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
        migrate(&mut connect(&path).map_err(|error| explain(self.shown, error))?, self.shown)?;
        drop(copy);
        Ok(Restored { path: self.shown.to_owned(), kept, epoch, seq, snapshot: manifest, notes })
    }

    /// Where both don't fit, the old database goes first if it may: its content, since its name holds the place.
    fn make_room(&self, old: u64, bytes: u64, discard_old: bool) -> Result<(), StoreError> {
        let directory = self.place.directory();
        let free = directory.free().map_err(|error| refused(directory.path(), error))?;
        if free >= wanted(bytes) || !discard_old {
            return check_room(directory, bytes).map_err(|error| match old {
                0 => error,
                _ => StoreError::Refused(format!("{error}; or let go of the old database with --discard-old")),
            });
        }
        if free.saturating_add(old) < wanted(bytes) {
            return check_room(directory, bytes);
        }
        for side in ["-wal", "-shm", "-journal"] {
            self.remove(side)?;
        }
        let file = directory.file(self.place.name(), OFlags::RDWR).map_err(|error| refused(self.shown, error))?;
        file.set_len(0).map_err(|error| refused(self.shown, error))
    }

    /// A copy with a new epoch, on the disk, and held: whoever starts on it once it stands finds it taken until all is done.
    fn prepare(&self, snapshot: &Path, manifest: &Manifest, given: i64) -> Result<(Lock, String, i64), StoreError> {
        let (name, path) = (self.place.with(".restoring"), self.path(".restoring"));
        let failed = |error| refused(&path, error);
        let mut file = self.place.directory().create(&name, MODE, self.owner).map_err(failed)?;
        let mut from = files::open(snapshot).map_err(|error| refused(snapshot, error))?;
        io::copy(&mut from, &mut file).map_err(failed)?;
        drop(file);
        if digest(&path)?.1 != manifest.sha256 {
            return Err(refused(&path, "the copy differs from the snapshot: is the disk sound?"));
        }
        let place = Place::find(&path).map_err(failed)?;
        let lock = Lock::of(&place, &path)?;
        let mut db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        schema::harden(&db)?;
        schema::check(&db, snapshot, manifest.schema_version)?;
        let transaction = db.transaction()?;
        let detail = format!("{} of {}, its seq {}", manifest.file, manifest.created_at, manifest.seq);
        let (epoch, seq) = mark::new_epoch(&transaction, given, &detail)?;
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
            self.second_name("", kept)?;
            if self.size("-wal")?.is_some_and(|size| size > 0) {
                self.second_name("-wal", &format!("{kept}-wal"))?;
            }
        }
        // A WAL without a database is of one that was removed.
        for side in ["-wal", "-shm", "-journal"] {
            self.remove(side)?;
        }
        self.sync()?;
        Ok(kept.map(|kept| self.shown.with_file_name(self.place.with(&kept))))
    }

    /// A second name where the file system has such, else another file.
    fn second_name(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (directory, name, second) = (self.place.directory(), self.place.with(from), self.place.with(to));
        let copied = || -> io::Result<File> {
            let mut copy = directory.create(&second, MODE, self.owner)?;
            io::copy(&mut directory.file(&name, OFlags::RDONLY)?, &mut copy)?;
            Ok(copy)
        };
        let file = match directory.hard_link(&name, &second) {
            Ok(()) => directory.file(&second, OFlags::RDONLY),
            Err(_) => copied(),
        };
        file.and_then(|file| file.sync_all()).map_err(|error| refused(&self.path(to), error))
    }

    fn path(&self, more: &str) -> PathBuf {
        self.place.directory().path().join(self.place.with(more))
    }

    fn size(&self, more: &str) -> Result<Option<u64>, StoreError> {
        self.place.directory().size(&self.place.with(more)).map_err(|error| refused(&self.path(more), error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (from, name): (_, &OsStr) = (self.place.with(from), &self.place.with(to));
        self.place.directory().rename(&from, name).map_err(|error| refused(&self.path(to), error))?;
        self.sync()
    }

    fn remove(&self, more: &str) -> Result<(), StoreError> {
        self.place.directory().remove(&self.place.with(more)).map_err(|error| refused(&self.path(more), error))
    }

    fn remove_all(&self, more: &str) -> Result<(), StoreError> {
        ["", "-wal", "-shm", "-journal"].iter().try_for_each(|side| self.remove(&format!("{more}{side}")))
    }

    fn sync(&self) -> Result<(), StoreError> {
        let directory = self.place.directory();
        directory.sync().map_err(|error| refused(directory.path(), error))
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
