//! The directory of a database's snapshots: file names, the lock for one run at a time, removing leftovers, and
//! pruning.
//!
//! Guarantees: `mirror-20261124T155254123Z.db` exists only once it is whole; until then the file is
//! `.mirror-20261124T155254123Z.db.part`. The manifest gets its name first, so that a snapshot is never without one.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{Manifest, StoreError, path_error};
use crate::store::Millis;
use crate::store::files::{Directory, Owner, ResolvedPath};

/// The database's mode: its group may read it.
const MODE: u32 = 0o640;
const PARTIAL_SUFFIX: &str = ".part";

/// The directory, locked by this run.
pub(super) struct SnapshotDir {
    directory: Directory,
    /// The path as the caller named it.
    given_path: PathBuf,
    stem: String,
    owner: Owner,
    _lock: File,
}

impl SnapshotDir {
    /// Creates the directory where there is none, and removes the files that a killed run left.
    pub(super) fn open(database: &ResolvedPath, given_path: &Path) -> Result<Self, StoreError> {
        let stem = Path::new(database.name()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let owner = database.owner().map_err(|error| path_error(&database.path(), error))?;
        let directory = Directory::create_all(given_path, owner).map_err(|error| path_error(given_path, error))?;
        let lock = lock(&directory, &format!(".{stem}.lock"), given_path, owner)?;
        let dir = Self { directory, given_path: given_path.to_owned(), stem, owner, _lock: lock };
        dir.remove_leftovers()?;
        Ok(dir)
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// An empty partial file for a snapshot made at `at`.
    pub(super) fn begin(&self, at: Millis) -> Result<PartialSnapshot<'_>, StoreError> {
        let time = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
        let name = format!("{}-{}.db", self.stem, time.strftime("%Y%m%dT%H%M%S%3fZ"));
        if self.is_there(&name)? {
            return Err(self.path_error(format!("there is a {name} already: try again")));
        }
        let partial = PartialSnapshot { dir: self, partial_name: format!(".{name}{PARTIAL_SUFFIX}"), name };
        self.create(&partial.partial_name)?;
        Ok(partial)
    }

    /// Removes all but the newest `keep` snapshots of the mirror with this epoch, and gives their names.
    pub(super) fn prune(&self, keep: usize, epoch: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut snapshots: Vec<String> = Vec::new();
        for name in self.names()?.into_iter().filter(|name| self.is_snapshot(name)) {
            // A snapshot with another manifest, or with none, is not one of this mirror's.
            let manifest = Manifest::read(&self.directory.path().join(&name));
            if manifest.is_ok_and(|manifest| manifest.file == name && manifest.epoch == epoch) {
                snapshots.push(name);
            }
        }
        snapshots.sort();
        snapshots.truncate(snapshots.len().saturating_sub(keep));
        for name in &snapshots {
            self.remove(name)?;
            self.remove(&manifest_of(name))?;
        }
        self.sync()?;
        Ok(snapshots.iter().map(|name| self.given_path.join(name)).collect())
    }

    /// Removes partial files, and manifests without a snapshot.
    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for name in self.names()? {
            let partial = name.strip_prefix('.').and_then(|name| name.split_once(PARTIAL_SUFFIX));
            let is_partial = partial.is_some_and(|(name, _)| self.is_snapshot(name) || self.is_manifest(name));
            let snapshot = Path::new(&name).with_extension("db").to_string_lossy().into_owned();
            let is_orphaned_manifest = self.is_manifest(&name) && !self.is_there(&snapshot)?;
            if is_partial || is_orphaned_manifest {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let names = self.directory.names().map_err(|error| self.path_error(error))?;
        Ok(names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn is_there(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.directory.size(OsStr::new(name)).map_err(|error| self.path_error(error))?.is_some())
    }

    fn create(&self, name: &str) -> Result<File, StoreError> {
        let created = self.directory.create(OsStr::new(name), MODE, self.owner);
        created.map_err(|error| path_error(&self.given_path.join(name), error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let result = self.directory.rename(OsStr::new(from), OsStr::new(to));
        result.map_err(|error| path_error(&self.given_path.join(to), error))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.directory.remove(OsStr::new(name)).map_err(|error| path_error(&self.given_path.join(name), error))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.directory.sync().map_err(|error| self.path_error(error))
    }

    fn path_error(&self, error: impl std::fmt::Display) -> StoreError {
        path_error(&self.given_path, error)
    }

    fn is_snapshot(&self, name: &str) -> bool {
        self.is_named(name, ".db")
    }

    fn is_manifest(&self, name: &str) -> bool {
        self.is_named(name, ".json")
    }

    fn is_named(&self, name: &str, extension: &str) -> bool {
        let time = name.strip_prefix(&self.stem).and_then(|rest| rest.strip_prefix('-'));
        time.and_then(|time| time.strip_suffix(extension)).is_some_and(is_time)
    }
}

/// The name of a snapshot's manifest.
fn manifest_of(name: &str) -> String {
    Manifest::path(Path::new(name)).to_string_lossy().into_owned()
}

/// `20261124T155254123Z`.
fn is_time(text: &str) -> bool {
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.strip_suffix('Z').and_then(|text| text.split_once('T'));
    parts.is_some_and(|(day, time)| digits(day, 8) && digits(time, 9))
}

/// A snapshot that is being written; removed unless it is published.
pub(super) struct PartialSnapshot<'a> {
    dir: &'a SnapshotDir,
    name: String,
    partial_name: String,
}

impl PartialSnapshot<'_> {
    /// The partial file's real path, for SQLite.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.directory.path().join(&self.partial_name)
    }

    /// The name once it is published.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Renames manifest and snapshot to their final names, in this order.
    pub(super) fn publish(self, manifest: &Manifest) -> Result<PathBuf, StoreError> {
        let manifest_name = manifest_of(&self.name);
        let partial_manifest = format!(".{manifest_name}{PARTIAL_SUFFIX}");
        let mut file = self.dir.create(&partial_manifest)?;
        let failed = |error: std::io::Error| path_error(&self.dir.given_path.join(&partial_manifest), error);
        serde_json::to_writer_pretty(&mut file, manifest).map_err(|error| failed(error.into()))?;
        file.write_all(b"\n").and_then(|()| file.sync_all()).map_err(failed)?;
        self.dir.rename(&partial_manifest, &manifest_name)?;
        self.dir.rename(&self.partial_name, &self.name)?;
        Ok(self.dir.given_path.join(&self.name))
    }
}

impl Drop for PartialSnapshot<'_> {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            // What can't be removed now is removed by the next run, which says so when it can't either.
            let _ = self.dir.remove(&format!("{}{suffix}", self.partial_name));
        }
    }
}

fn lock(directory: &Directory, name: &str, given_path: &Path, owner: Owner) -> Result<File, StoreError> {
    let name = OsStr::new(name);
    let failed = |error| path_error(&given_path.join(name), error);
    let file = match directory.create(name, MODE, owner) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => directory.file(name, OFlags::RDONLY),
        result => result,
    };
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(path_error(given_path, "another run makes a snapshot here")),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_given_form_are_times() {
        assert!(is_time("20261124T155254123Z"));
        for other in ["20261124T155254123", "20261124T155254Z", "2026112xT155254123Z", "", "before-upgrade"] {
            assert!(!is_time(other), "{other}");
        }
    }
}
