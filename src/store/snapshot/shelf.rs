//! The directory of a database's snapshots: their names, one run at a time, what is left over, and pruning.
//!
//! `mirror-20261124T155254123Z.db` stands once it is whole; until then it is `.mirror-20261124T155254123Z.db.part`. Its
//! manifest is put in place first, so that a snapshot is never without.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Manifest, StoreError, refused, synced};
use crate::store::Millis;

/// As the database: its group may read it.
const MODE: u32 = 0o640;
const PART: &str = ".part";

/// The directory, held by this run.
pub(super) struct Shelf {
    directory: PathBuf,
    stem: String,
    owner: (u32, u32),
    _lock: File,
}

impl Shelf {
    /// Makes the directory where there is none, and removes what a killed run left.
    pub(super) fn open(database: &Path, directory: &Path) -> Result<Self, StoreError> {
        let stem = database.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let model = fs::metadata(database).map_err(|error| refused(database, error))?;
        let owner = (model.uid(), model.gid());
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(|e| refused(directory, e))?;
            give(directory, owner)?;
        }
        let lock = lock(&directory.join(format!(".{stem}.lock")), directory)?;
        let shelf = Self { directory: directory.to_owned(), stem, owner, _lock: lock };
        shelf.clean()?;
        Ok(shelf)
    }

    /// An empty file for a snapshot of this moment.
    pub(super) fn begin(&self, at: Millis) -> Result<Part<'_>, StoreError> {
        let time = jiff::Timestamp::from_millisecond(at).unwrap_or_default();
        let name = format!("{}-{}.db", self.stem, time.strftime("%Y%m%dT%H%M%S%3fZ"));
        if self.directory.join(&name).exists() {
            return Err(refused(&self.directory, format!("there is a {name} already: try again")));
        }
        let path = self.directory.join(format!(".{name}{PART}"));
        let part = Part { shelf: self, name, path };
        create(&part.path, self.owner)?;
        Ok(part)
    }

    /// Removes all but the newest `keep` snapshots, and gives their names.
    pub(super) fn prune(&self, keep: usize) -> Result<Vec<PathBuf>, StoreError> {
        let mut ours: Vec<PathBuf> = Vec::new();
        for name in self.names()?.into_iter().filter(|name| self.is_snapshot(name)) {
            let path = self.directory.join(&name);
            // What has another's manifest, or none, was put here by somebody else.
            if Manifest::read(&path).is_ok_and(|manifest| manifest.file == name) {
                ours.push(path);
            }
        }
        ours.sort();
        ours.truncate(ours.len().saturating_sub(keep));
        for path in &ours {
            remove(path)?;
            remove(&Manifest::path(path))?;
        }
        synced(&self.directory)?;
        Ok(ours)
    }

    /// Half-written snapshots, and manifests whose snapshot never came or went first.
    fn clean(&self) -> Result<(), StoreError> {
        for name in self.names()? {
            let path = self.directory.join(&name);
            let part = name.strip_prefix('.').and_then(|name| name.split_once(PART));
            let half = part.is_some_and(|(name, _)| self.is_snapshot(name) || self.is_manifest(name));
            let alone = self.is_manifest(&name) && !path.with_extension("db").exists();
            if half || alone {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let entries = fs::read_dir(&self.directory).map_err(|error| refused(&self.directory, error))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        names.collect::<io::Result<_>>().map_err(|error| refused(&self.directory, error))
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

/// `20261124T155254123Z`.
fn is_time(text: &str) -> bool {
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.strip_suffix('Z').and_then(|text| text.split_once('T'));
    parts.is_some_and(|(day, time)| digits(day, 8) && digits(time, 9))
}

/// A snapshot in the making; removed unless it is published.
pub(super) struct Part<'a> {
    shelf: &'a Shelf,
    name: String,
    path: PathBuf,
}

impl Part<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its name once it stands.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Puts manifest and snapshot in place, in this order.
    pub(super) fn publish(self, manifest: &Manifest) -> Result<PathBuf, StoreError> {
        let path = self.shelf.directory.join(&self.name);
        let stands = Manifest::path(&path);
        let json = stands.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let half = self.shelf.directory.join(format!(".{json}{PART}"));
        let mut file = create(&half, self.shelf.owner)?;
        serde_json::to_writer_pretty(&mut file, manifest).map_err(|error| refused(&half, error))?;
        file.write_all(b"\n").and_then(|()| file.sync_all()).map_err(|error| refused(&half, error))?;
        fs::rename(&half, &stands).map_err(|error| refused(&half, error))?;
        synced(&self.shelf.directory)?;
        fs::rename(&self.path, &path).map_err(|error| refused(&path, error))?;
        synced(&self.shelf.directory)?;
        Ok(path)
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        for side in ["", "-wal", "-shm", "-journal"] {
            let mut path = self.path.clone().into_os_string();
            path.push(side);
            // What can't be removed now is removed by the next run, which says so when it can't either.
            let _ = remove(Path::new(&path));
        }
    }
}

fn lock(path: &Path, directory: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(path);
    let file = file.map_err(|error| refused(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(refused(directory, "another run makes a snapshot here")),
        Err(TryLockError::Error(error)) => Err(refused(path, error)),
    }
}

/// Whatever the umask says, the group may read it and others may not.
fn create(path: &Path, owner: (u32, u32)) -> Result<File, StoreError> {
    let file = OpenOptions::new().create_new(true).write(true).mode(MODE).open(path);
    let file = file.map_err(|error| refused(path, error))?;
    file.set_permissions(Permissions::from_mode(MODE)).map_err(|error| refused(path, error))?;
    give(path, owner)?;
    Ok(file)
}

/// What root makes belongs to whom the database belongs to; what anybody else makes stays theirs.
pub(in crate::store) fn give(path: &Path, (user, group): (u32, u32)) -> Result<(), StoreError> {
    let now = fs::metadata(path).map_err(|error| refused(path, error))?;
    if (now.uid(), now.gid()) == (user, group) {
        return Ok(());
    }
    match std::os::unix::fs::chown(path, Some(user), Some(group)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(refused(path, error)),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(path, error)),
        _ => Ok(()),
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
