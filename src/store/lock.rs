//! One writer per file: a lock on the database file itself, whichever path it is opened by.
//!
//! The lock is one of flock(2), which belongs to the file and not to a name, so that a second path through a link finds
//! it locked. SQLite's own locks are of another type (fcntl(2)), and neither sees the other. There is one descriptor
//! per file, and it is never closed: closing any descriptor would drop all of SQLite's locks that this process holds on
//! the file, those of its readers too, and another process could then remove the WAL that they read.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::files::ResolvedPath;
use super::{StoreError, unavailable};

/// A process that only checks whether a file is in use locks it for a moment: how long to wait for that.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);
const LOCK_RETRY_WAIT: Duration = Duration::from_millis(10);

/// Device and inode number of a file.
type Identity = (u64, u64);

#[derive(Clone, Copy)]
struct OpenedFile {
    file: &'static File,
    locked: bool,
}

/// Database files that this process has opened.
static OPENED_FILES: Mutex<BTreeMap<Identity, OpenedFile>> = Mutex::new(BTreeMap::new());

fn opened_files() -> MutexGuard<'static, BTreeMap<Identity, OpenedFile>> {
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
    /// Locks the file at `path`, which is created where there is none. Blocking.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has locked it, [`StoreError::Unavailable`] when it can't be opened or
    /// created, [`StoreError::Unusable`] when it is no file.
    pub(super) fn acquire(path: &Path) -> Result<Self, StoreError> {
        let resolved = ResolvedPath::resolve(path).map_err(|error| unavailable(path, error))?;
        Self::acquire_at(&resolved, path)
    }

    /// The same for a resolved path; `given_path` is the path for error messages.
    ///
    /// # Errors
    /// As [`DatabaseLock::acquire`].
    pub(super) fn acquire_at(resolved: &ResolvedPath, given_path: &Path) -> Result<Self, StoreError> {
        loop {
            let (identity, file) =
                shared_descriptor(resolved, OFlags::CREATE).map_err(|error| lock_error(given_path, error))?;
            let lock = Self { identity, file, path: resolved.path() };
            if !lock
                .lock_with_timeout()
                .map_err(|error| unavailable(given_path, format!("it can't be locked: {error}")))?
            {
                // This process never had the lock, so that `Drop` must not release it.
                std::mem::forget(lock);
                return Err(StoreError::InUse(given_path.to_owned()));
            }
            // The path may lead to another file by now, as after a restore.
            if resolved.directory().identity(resolved.name()).is_ok_and(|now| now == identity) {
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
        let mut files = opened_files();
        let Some(opened) = files.get_mut(&self.identity).filter(|opened| !opened.locked) else { return Ok(false) };
        match opened.file.try_lock() {
            Ok(()) => {
                opened.locked = true;
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The file's one descriptor, to read and synchronise the file apart from SQLite.
    pub(super) fn file(&self) -> &'static File {
        self.file
    }

    /// The file's real path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DatabaseLock {
    fn drop(&mut self) {
        let mut files = opened_files();
        if let Some(opened) = files.get_mut(&self.identity) {
            opened.locked = false;
        }
        if let Err(error) = self.file.unlock() {
            tracing::error!(%error, path = %self.path.display(), "the database could not be let go of");
        }
    }
}

/// Whether a process writes this database. True also where this user may not open the file: the caller then asks the
/// daemon.
pub fn is_in_use(path: &Path) -> bool {
    try_is_in_use(path).unwrap_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether a process keeps this database locked for longer than a check takes. Blocking.
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
    let files = opened_files();
    let Some(opened) = files.get(&identity).filter(|opened| !opened.locked) else { return Ok(true) };
    Ok(match opened.file.try_lock_shared() {
        Ok(()) => opened.file.unlock().is_err(),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    })
}

/// The one descriptor of the file at this path; opens it the first time.
fn shared_descriptor(resolved: &ResolvedPath, flags: OFlags) -> io::Result<(Identity, &'static File)> {
    use std::os::unix::fs::MetadataExt;
    let mut files = opened_files();
    if let Ok(identity) = resolved.directory().identity(resolved.name())
        && let Some(opened) = files.get(&identity)
    {
        return Ok((identity, opened.file));
    }
    let file: &'static File = Box::leak(Box::new(resolved.directory().file(resolved.name(), OFlags::RDONLY | flags)?));
    let found = file.metadata()?;
    let identity = (found.dev(), found.ino());
    let opened = files.entry(identity).or_insert(OpenedFile { file, locked: false });
    Ok((identity, opened.file))
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
