//! One writer a file: a lock on the database itself, whatever path it was reached by.
//!
//! It is a lock of flock(2), which belongs to the file and not to a name of it, so a second path through a link finds it
//! held. SQLite's own locks are of another sort (fcntl(2)), and neither sees the other. A descriptor of the file is never
//! closed, and there is one a file: closing any would drop all of SQLite's locks that this process holds on it, those of
//! its readers too, and another process could then take the WAL away under them.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::files::ResolvedPath;
use super::{StoreError, unavailable};

/// Whoever only looks whether a file is held holds it for a moment: so long is waited for that.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);
const LOCK_RETRY_WAIT: Duration = Duration::from_millis(10);

/// Device and number of a file.
type Identity = (u64, u64);

#[derive(Clone, Copy)]
struct OpenedFile {
    file: &'static File,
    locked: bool,
}

/// Database files that this process has looked at.
static OPENED_FILES: Mutex<BTreeMap<Identity, OpenedFile>> = Mutex::new(BTreeMap::new());

fn known_files() -> MutexGuard<'static, BTreeMap<Identity, OpenedFile>> {
    OPENED_FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to write a database, until it is dropped.
#[derive(Debug)]
pub(super) struct DatabaseLock {
    identity: Identity,
    file: &'static File,
    path: PathBuf,
}

impl DatabaseLock {
    /// Takes the file at `path`, which is made where there is none. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Held`] when somebody has it, [`StoreError::Unavailable`] when it can't be reached or made,
    /// [`StoreError::Unusable`] when it is no file.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let place = ResolvedPath::resolve(path).map_err(|error| unavailable(path, error))?;
        Self::acquire_at(&place, path)
    }

    /// The same, of a place that was found; `shown` is how it was named.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub(super) fn acquire_at(place: &ResolvedPath, shown: &Path) -> Result<Self, StoreError> {
        loop {
            let (identity, file) =
                shared_descriptor(place, OFlags::CREATE).map_err(|error| lock_error(shown, error))?;
            let lock = Self { identity, file, path: place.path() };
            if !lock.lock_with_timeout().map_err(|error| unavailable(shown, format!("it can't be locked: {error}")))? {
                // It was never ours to let go of.
                std::mem::forget(lock);
                return Err(StoreError::InUse(shown.to_owned()));
            }
            // Another file may stand there by now, as after a restore.
            if place.directory().identity(place.name()).is_ok_and(|now| now == identity) {
                return Ok(lock);
            }
        }
    }

    fn lock_with_timeout(&self) -> io::Result<bool> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        while !self.try_lock()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::park_timeout(LOCK_RETRY_WAIT);
        }
        Ok(true)
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut files = known_files();
        let Some(known) = files.get_mut(&self.identity).filter(|known| !known.locked) else { return Ok(false) };
        match known.file.try_lock() {
            Ok(()) => {
                known.locked = true;
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The file, to look at and synchronise it apart from SQLite.
    pub(super) fn file(&self) -> &'static File {
        self.file
    }

    /// Its real path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DatabaseLock {
    fn drop(&mut self) {
        let mut files = known_files();
        if let Some(known) = files.get_mut(&self.identity) {
            known.locked = false;
        }
        if let Err(error) = self.file.unlock() {
            tracing::error!(%error, path = %self.path.display(), "the database could not be let go of");
        }
    }
}

/// Whether somebody writes this database, as far as one can see: whoever may not look at it asks the daemon.
pub fn is_in_use(path: &Path) -> bool {
    try_is_in_use(path).unwrap_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether somebody is seen to write this database, and not for a moment only. Blocking.
pub fn stays_held(path: &Path) -> bool {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while try_is_in_use(path).unwrap_or(false) {
        if Instant::now() >= deadline {
            return true;
        }
        std::thread::park_timeout(LOCK_RETRY_WAIT);
    }
    false
}

fn try_is_in_use(path: &Path) -> io::Result<bool> {
    let (identity, _) = shared_descriptor(&ResolvedPath::resolve(path)?, OFlags::empty())?;
    let files = known_files();
    let Some(known) = files.get(&identity).filter(|known| !known.locked) else { return Ok(true) };
    Ok(match known.file.try_lock_shared() {
        Ok(()) => known.file.unlock().is_err(),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    })
}

/// The one descriptor of the file that stands there.
fn shared_descriptor(place: &ResolvedPath, more: OFlags) -> io::Result<(Identity, &'static File)> {
    use std::os::unix::fs::MetadataExt;
    let mut files = known_files();
    if let Ok(identity) = place.directory().identity(place.name())
        && let Some(known) = files.get(&identity)
    {
        return Ok((identity, known.file));
    }
    let file: &'static File = Box::leak(Box::new(place.directory().file(place.name(), OFlags::RDONLY | more)?));
    let found = file.metadata()?;
    let identity = (found.dev(), found.ino());
    let known = files.entry(identity).or_insert(OpenedFile { file, locked: false });
    Ok((identity, known.file))
}

fn lock_error(path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => {
            let problem = "it is not a file: name a mirror's SQLite file".to_owned();
            StoreError::Unusable { path: path.to_owned(), problem }
        }
        _ => unavailable(path, error),
    }
}
