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

use super::files::Place;
use super::{StoreError, unavailable};

/// Whoever only looks whether a file is held holds it for a moment: so long is waited for that.
const LOOKED_AT: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(10);

/// Device and number of a file.
type Identity = (u64, u64);

#[derive(Clone, Copy)]
struct Known {
    file: &'static File,
    locked: bool,
}

/// Database files that this process has looked at.
static KNOWN: Mutex<BTreeMap<Identity, Known>> = Mutex::new(BTreeMap::new());

fn known_files() -> MutexGuard<'static, BTreeMap<Identity, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to write a database, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    identity: Identity,
    file: &'static File,
    path: PathBuf,
}

impl Lock {
    /// Takes the file at `path`, which is made where there is none. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Held`] when somebody has it, [`StoreError::Unavailable`] when it can't be reached or made,
    /// [`StoreError::Unusable`] when it is no file.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let place = Place::find(path).map_err(|error| unavailable(path, error))?;
        Self::of(&place, path)
    }

    /// The same, of a place that was found; `shown` is how it was named.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub(super) fn of(place: &Place, shown: &Path) -> Result<Self, StoreError> {
        loop {
            let (identity, file) = look_at(place, OFlags::CREATE).map_err(|error| refusal(shown, error))?;
            let lock = Self { identity, file, path: place.path() };
            if !lock.wait().map_err(|error| unavailable(shown, format!("it can't be locked: {error}")))? {
                // It was never ours to let go of.
                std::mem::forget(lock);
                return Err(StoreError::Held(shown.to_owned()));
            }
            // Another file may stand there by now, as after a restore.
            if place.directory().identity(place.name()).is_ok_and(|now| now == identity) {
                return Ok(lock);
            }
        }
    }

    fn wait(&self) -> io::Result<bool> {
        let deadline = Instant::now() + LOOKED_AT;
        while !self.try_once()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::park_timeout(AGAIN);
        }
        Ok(true)
    }

    fn try_once(&self) -> io::Result<bool> {
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

impl Drop for Lock {
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
pub fn is_held(path: &Path) -> bool {
    is_seen_held(path).unwrap_or_else(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether somebody is seen to write this database, and not for a moment only. Blocking.
pub fn stays_held(path: &Path) -> bool {
    let deadline = Instant::now() + LOOKED_AT;
    while is_seen_held(path).unwrap_or(false) {
        if Instant::now() >= deadline {
            return true;
        }
        std::thread::park_timeout(AGAIN);
    }
    false
}

fn is_seen_held(path: &Path) -> io::Result<bool> {
    let (identity, _) = look_at(&Place::find(path)?, OFlags::empty())?;
    let files = known_files();
    let Some(known) = files.get(&identity).filter(|known| !known.locked) else { return Ok(true) };
    Ok(match known.file.try_lock_shared() {
        Ok(()) => known.file.unlock().is_err(),
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => false,
    })
}

/// The one descriptor of the file that stands there.
fn look_at(place: &Place, more: OFlags) -> io::Result<(Identity, &'static File)> {
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
    let known = files.entry(identity).or_insert(Known { file, locked: false });
    Ok((identity, known.file))
}

fn refusal(path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => {
            let problem = "it is not a file: name a mirror's SQLite file".to_owned();
            StoreError::Unusable { path: path.to_owned(), problem }
        }
        _ => unavailable(path, error),
    }
}
