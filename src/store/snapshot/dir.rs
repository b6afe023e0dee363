//! The directory of a database's snapshots: their names, one run at a time, what is left over, and pruning.
//!
//! `mirror-20261124T155254123Z.db` stands once it is whole; until then it is `.mirror-20261124T155254123Z.db.part`. Its
//! manifest is put in place first, so that a snapshot is never without.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{Manifest, StoreError, path_error};
use crate::store::Millis;
use crate::store::files::{Directory, Owner, ResolvedPath};

/// As the database: its group may read it.
const MODE: u32 = 0o640;
const PARTIAL_SUFFIX: &str = ".part";

/// The directory, held by this run.
pub(super) struct SnapshotDir {
    directory: Directory,
    /// As it was named.
    given_path: PathBuf,
    stem: String,
    owner: Owner,
    _lock: File,
}

impl SnapshotDir {
    /// Makes the directory where there is none, and removes what a killed run left.
    pub(super) fn open(database: &ResolvedPath, shown: &Path) -> Result<Self, StoreError> {
        let stem = Path::new(database.name()).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let owner = database.owner().map_err(|error| path_error(&database.path(), error))?;
        let directory = Directory::create_all(shown, owner).map_err(|error| path_error(shown, error))?;
        let lock = lock(&directory, &format!(".{stem}.lock"), shown, owner)?;
        let shelf = Self { directory, given_path: shown.to_owned(), stem, owner, _lock: lock };
        shelf.remove_leftovers()?;
        Ok(shelf)
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// An empty file for a snapshot of this moment.
    pub(super) fn begin(&self, at: Millis) -> Result<PartialSnapshot<'_>, StoreError> {
        let time = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
        let name = format!("{}-{}.db", self.stem, time.strftime("%Y%m%dT%H%M%S%3fZ"));
        if self.is_there(&name)? {
            return Err(self.path_error(format!("there is a {name} already: try again")));
        }
        let part = PartialSnapshot { dir: self, partial_name: format!(".{name}{PARTIAL_SUFFIX}"), name };
        self.create(&part.partial_name)?;
        Ok(part)
    }

    /// Removes all but the newest `keep` snapshots of the mirror with this epoch, and gives their names.
    pub(super) fn prune(&self, keep: usize, epoch: &str) -> Result<Vec<PathBuf>, StoreError> {
        let mut ours: Vec<String> = Vec::new();
        for name in self.names()?.into_iter().filter(|name| self.is_snapshot(name)) {
            // What has another's manifest, or none, was put here by somebody else.
            let manifest = Manifest::read(&self.directory.path().join(&name));
            if manifest.is_ok_and(|manifest| manifest.file == name && manifest.epoch == epoch) {
                ours.push(name);
            }
        }
        ours.sort();
        ours.truncate(ours.len().saturating_sub(keep));
        for name in &ours {
            self.remove(name)?;
            self.remove(&manifest_of(name))?;
        }
        self.sync()?;
        Ok(ours.iter().map(|name| self.given_path.join(name)).collect())
    }

    /// Half-written snapshots, and manifests whose snapshot never came or went first.
    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for name in self.names()? {
            let part = name.strip_prefix('.').and_then(|name| name.split_once(PARTIAL_SUFFIX));
            let half = part.is_some_and(|(name, _)| self.is_snapshot(name) || self.is_manifest(name));
            let snapshot = Path::new(&name).with_extension("db").to_string_lossy().into_owned();
            let alone = self.is_manifest(&name) && !self.is_there(&snapshot)?;
            if half || alone {
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
        let made = self.directory.create(OsStr::new(name), MODE, self.owner);
        made.map_err(|error| path_error(&self.given_path.join(name), error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let renamed = self.directory.rename(OsStr::new(from), OsStr::new(to));
        renamed.map_err(|error| path_error(&self.given_path.join(to), error))?;
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

/// A snapshot in the making; removed unless it is published.
pub(super) struct PartialSnapshot<'a> {
    dir: &'a SnapshotDir,
    name: String,
    partial_name: String,
}

impl PartialSnapshot<'_> {
    /// Its real path, for SQLite.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.directory.path().join(&self.partial_name)
    }

    /// Its name once it stands.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Puts manifest and snapshot in place, in this order.
    pub(super) fn publish(self, manifest: &Manifest) -> Result<PathBuf, StoreError> {
        let stands = manifest_of(&self.name);
        let half = format!(".{stands}{PARTIAL_SUFFIX}");
        let mut file = self.dir.create(&half)?;
        let failed = |error: std::io::Error| path_error(&self.dir.given_path.join(&half), error);
        serde_json::to_writer_pretty(&mut file, manifest).map_err(|error| failed(error.into()))?;
        file.write_all(b"\n").and_then(|()| file.sync_all()).map_err(failed)?;
        self.dir.rename(&half, &stands)?;
        self.dir.rename(&self.partial_name, &self.name)?;
        Ok(self.dir.given_path.join(&self.name))
    }
}

impl Drop for PartialSnapshot<'_> {
    fn drop(&mut self) {
        for side in ["", "-wal", "-shm", "-journal"] {
            // What can't be removed now is removed by the next run, which says so when it can't either.
            let _ = self.dir.remove(&format!("{}{side}", self.partial_name));
        }
    }
}

fn lock(directory: &Directory, name: &str, shown: &Path, owner: Owner) -> Result<File, StoreError> {
    let name = OsStr::new(name);
    let failed = |error| path_error(&shown.join(name), error);
    let file = match directory.create(name, MODE, owner) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => directory.file(name, OFlags::RDONLY),
        made => made,
    };
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(path_error(shown, "another run makes a snapshot here")),
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
