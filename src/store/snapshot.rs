//! Snapshots: consistent, checked copies of the file, made beside a daemon or without one.
//!
//! Guarantees: a snapshot under its final name is whole, synchronised, checked, and described by the manifest beside
//! it; files that a killed run left are removed by the next run; nothing is pruned before the new snapshot is
//! published, and only snapshots of this mirror are pruned, by name and by manifest, its epoch included. A snapshot is
//! marked as one (`store/epoch`). The database is read in one read transaction, for as long as copying its pages takes:
//! the writer goes on meanwhile, and the WAL can't be reset. Nothing is written to the database.

mod manifest;
mod dir;

use std::io::Read;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};

use super::files::{self, Directory, ResolvedPath};
use super::read::{self, Reader, VerifyReport};
use super::{Millis, StoreError, epoch, now, schema};
use dir::SnapshotDir;
pub use manifest::{FeedCount, Manifest};

/// Pages copied at once: 16 MiB.
const STEP_PAGES: i32 = 1_024;
/// Space to keep free beyond what is written: at least this, and at least a twentieth of it.
const MARGIN_BYTES: u64 = 16 << 20;

/// A published snapshot.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Snapshot {
    /// The snapshot's path.
    pub path: PathBuf,
    /// The snapshot's manifest.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Older snapshots that were removed.
    pub pruned: Vec<PathBuf>,
    /// How long the read transaction was open, in seconds: meanwhile the database's WAL could not be reset.
    pub pinned_s: f64,
}

/// The default directory of a database's snapshots: `snapshots` beside it.
pub fn default_directory(database: &Path) -> PathBuf {
    database.with_file_name("snapshots")
}

/// Makes a snapshot of `database` in `directory`, which is created where it is missing, then prunes all but the newest
/// `keep` of its snapshots there. Blocking.
///
/// # Errors
/// [`StoreError::Refused`] when the disk can't hold the snapshot, another run makes one there, or the copy is not
/// sound; then the copy is removed and nothing is pruned. [`StoreError::Unusable`] when the database is not a mirror.
pub fn take(database: &Path, directory: &Path, keep: Option<usize>) -> Result<Snapshot, StoreError> {
    let resolved = ResolvedPath::resolve(database).map_err(|error| path_error(database, error))?;
    let database = resolved.path();
    let reader = Reader::open(&database)?;
    let snapshot_dir = SnapshotDir::open(&resolved, directory)?;
    let read_snapshot = ReadSnapshot::open(&database)?;
    check_room(snapshot_dir.directory(), read_snapshot.bytes()?)?;
    drop(reader);
    let partial = snapshot_dir.begin(now())?;
    let start = std::time::Instant::now();
    let at = read_snapshot.copy(&partial.path())?;
    let pinned_s = start.elapsed().as_secs_f64();
    drop(read_snapshot);
    finalize_copy(&partial.path(), at)?;
    let copy = Reader::open(&partial.path())?;
    refuse_unsound(&partial.path(), &copy.verify(false)?)?;
    let mut manifest = Manifest::of(&copy, at)?;
    drop(copy);
    manifest.file = partial.name().to_owned();
    (manifest.bytes, manifest.sha256) = digest(&partial.path())?;
    let path = partial.publish(&manifest)?;
    let pruned = keep.map_or(Ok(Vec::new()), |keep| snapshot_dir.prune(keep, &manifest.epoch))?;
    Ok(Snapshot { path, manifest, pruned, pinned_s })
}

/// A read transaction: the database at one moment.
struct ReadSnapshot(Connection);

impl ReadSnapshot {
    fn open(database: &Path) -> Result<Self, StoreError> {
        let db = read::connect(database, OpenFlags::empty())?;
        db.execute_batch("BEGIN")?;
        db.query_row("SELECT seq FROM mirror_state", [], |_| Ok(()))?;
        Ok(Self(db))
    }

    fn bytes(&self) -> Result<u64, StoreError> {
        let pragma = |name: &str| self.0.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        Ok(u64::try_from(pragma("page_count")? * pragma("page_size")?).unwrap_or(u64::MAX))
    }

    /// Copies all pages to an existing, empty file. While the transaction is open, no commit of another process
    /// restarts the copy, as it would between the steps of a backup without one.
    fn copy(&self, to: &Path) -> Result<Millis, StoreError> {
        let at = now();
        let mut copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        schema::harden(&copy)?;
        // The file is used only once it has been synchronised whole: a partial copy never has to be rolled back.
        copy.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF")?;
        let backup = Backup::new(&self.0, &mut copy)?;
        loop {
            match backup.step(STEP_PAGES)? {
                StepResult::Done => break,
                StepResult::More => {}
                _ => return Err(StoreError::Refused("the database is locked by another program".into())),
            }
        }
        drop(backup);
        close(copy)?;
        Ok(at)
    }
}

/// Makes the copy a single file, so that readers create no WAL files beside it and its digest stays true, and marks it
/// as a snapshot.
fn finalize_copy(copy: &Path, at: Millis) -> Result<(), StoreError> {
    let db = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    schema::harden(&db)?;
    let mode: String = db.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0))?;
    if mode != "delete" {
        return Err(StoreError::Refused(format!("{} could not be made a single file", copy.display())));
    }
    epoch::mark_snapshot(&db, at)?;
    close(db)?;
    files::open(copy).and_then(|file| file.sync_all()).map_err(|error| path_error(copy, error))
}

fn close(connection: Connection) -> Result<(), StoreError> {
    connection.close().map_err(|(_, error)| error.into())
}

/// An error that names the first violation, if there is one.
pub(super) fn refuse_unsound(path: &Path, report: &VerifyReport) -> Result<(), StoreError> {
    let Some(first) = report.violations.first() else { return Ok(()) };
    let more = report.violations.len() - 1;
    let more = if more == 0 { String::new() } else { format!(", and {more} more checks failed") };
    let (path, check, sample) = (path.display(), first.check, &first.sample);
    Err(StoreError::Refused(format!(
        "{path} is not sound ({check}, {sample}{more}); feedmirror verify tells all of it"
    )))
}

/// Refuses when the file system of `directory` can't hold this many more bytes.
pub(super) fn check_room(directory: &Directory, bytes: u64) -> Result<(), StoreError> {
    let free = directory.free_bytes().map_err(|error| path_error(directory.path(), error))?;
    let needed = needed_bytes(bytes);
    if free >= needed {
        return Ok(());
    }
    let directory = directory.path().display();
    Err(StoreError::Refused(format!(
        "{directory} has {free} bytes free, and {needed} are wanted: make room, or name another directory"
    )))
}

/// Bytes with the margin.
pub(super) fn needed_bytes(bytes: u64) -> u64 {
    bytes.saturating_add(MARGIN_BYTES.max(bytes / 20))
}

/// Size and SHA-256 of a file that no connection of this process has open.
pub(super) fn digest(path: &Path) -> Result<(u64, String), StoreError> {
    let mut file = files::open(path).map_err(|error| path_error(path, error))?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).map_err(|error| path_error(path, error))?;
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        bytes += count as u64;
    }
    let hex = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((bytes, hex))
}

pub(super) fn path_error(path: &Path, error: impl std::fmt::Display) -> StoreError {
    StoreError::Refused(format!("{}: {error}", path.display()))
}
