//! The SQLite file: opening and migrating it, and the one writer thread.
//!
//! Guarantees: one writer per file (a lock on the file); a delivery's items, quarantine rows, change numbers and cursor
//! commit together or not at all; no change number is ever given twice; a write that the environment refuses (a full
//! disk, a locked file) is tried again and never acknowledged before it is committed. Only this module and its children
//! know SQL; they decide nothing about feeds, requests or schedules.

pub mod ack;
pub mod apply;
mod checkpoint;
#[cfg(test)]
mod collisions;
pub mod commits;
mod duties;
pub mod endpoints;
mod erase;
mod feed_url;
pub mod feeds;
mod files;
pub mod forget;
mod journal;
pub mod retention;
mod keys;
mod lock;
mod epoch;
mod positions;
pub mod purge;
mod write_queue;
pub mod read;
pub mod rename;
pub mod restore;
pub mod resync;
mod schema;
pub mod quarantine_batch;
pub mod quarantine_orders;
pub mod snapshot;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use lock::DatabaseLock;
pub use lock::{is_in_use, stays_held};
use write_queue::WriteQueue;
use writer::Writer;

/// "fmir": marks a SQLite file as a mirror's database.
pub const APPLICATION_ID: i32 = 0x666D_6972;

/// Numbered, forward only.
const MIGRATIONS: &[&str] = &[include_str!("store/migrations/001.sql")];

/// The `user_version` that this program writes and reads.
pub const SCHEMA_VERSION: i32 = MIGRATIONS.len() as i32;

/// Large pages keep the tree over 1–2 KB rows shallow (see docs/design/store.md).
const PAGE_BYTES: u32 = 16 * 1024;
const CACHE_KIB: u32 = 48 * 1024;

/// Milliseconds since 1970 UTC, as stored.
pub type Millis = i64;

/// The wall clock, for what is stored.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// A span as it is stored.
pub fn millis(span: Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}

/// Why the file can't be used, or why a job was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process writes this file.
    #[error("{0} is in use by another feedmirror: stop it first, or name another database")]
    InUse(PathBuf),
    /// Not a database, another program's database, from a newer version, or damaged.
    #[error("{path} can't be used: {problem}")]
    Unusable {
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The environment keeps the file from being opened: a lock, a full disk, rights, a missing directory. Once the
    /// cause is gone, the file opens.
    #[error("{path} can't be used for now: {problem}")]
    Unavailable {
        path: PathBuf,
        /// What keeps the file from being opened.
        problem: String,
    },
    /// A statement failed; the delivery it belonged to was undone.
    #[error("database: {0}")]
    Sql(Arc<rusqlite::Error>),
    /// The job itself was refused; the text says why.
    #[error("{0}")]
    Refused(String),
    /// The writer has stopped.
    #[error("the writer has stopped")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(Arc::new(error))
    }
}

impl StoreError {
    /// Whether the file itself is damaged or gone, so that nothing can be written until an operator acts.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Unusable { .. } | Self::InUse(_) => true,
            Self::Sql(error) => matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
            ),
            Self::Unavailable { .. } | Self::Refused(_) | Self::Closed => false,
        }
    }

    /// Whether the environment refused (full disk, lock, I/O): the job is tried again until it succeeds.
    pub fn is_environment(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Sql(error) => is_environment_error(error),
            Self::InUse(_) | Self::Unusable { .. } | Self::Refused(_) | Self::Closed => false,
        }
    }
}

fn is_environment_error(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode as Code;
    matches!(
        error.sqlite_error_code(),
        Some(
            Code::DiskFull
                | Code::DatabaseBusy
                | Code::DatabaseLocked
                | Code::SystemIoFailure
                | Code::CannotOpen
                | Code::ReadOnly
                | Code::OutOfMemory
                | Code::PermissionDenied
                | Code::FileLockingProtocolFailed
        )
    )
}

/// Whether the file takes writes now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intake {
    /// The file takes writes.
    Open,
    /// The file takes no writes; the reason as text. Writing goes on by itself when the cause is gone.
    Blocked(String),
    /// The file is damaged: nothing is written any more.
    Broken(String),
}

/// A handle to the one writer; cheap to clone. The handle does not keep the writer alive: [`StoreGuard`] does.
#[derive(Clone)]
pub struct Store {
    queue: Arc<WriteQueue>,
    intake: watch::Receiver<Intake>,
    pinned_wal_pages: watch::Receiver<i64>,
    checkpoint_gate: Arc<checkpoint::CheckpointGate>,
    purge_notices: Arc<purge::PurgeNotices>,
    path: Arc<Path>,
}

/// The writer's thread and the file's lock; [`StoreGuard::finish`] waits for the last commit.
pub struct StoreGuard {
    queue: Arc<WriteQueue>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _lock: DatabaseLock,
}

impl StoreGuard {
    /// Lets what is queued commit, writes the WAL back and releases the file. Blocking.
    pub fn finish(self) {
        drop(self);
    }
}

/// The lock is a field, so it is dropped last: no other process can write while this writer still works.
impl Drop for StoreGuard {
    fn drop(&mut self) {
        self.queue.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

impl Store {
    /// Opens or creates the file, migrates it, and starts the writer. Blocking.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process writes the file, [`StoreError::Unusable`] when it is damaged or not a
    /// mirror, [`StoreError::Unavailable`] when the environment keeps it from being opened.
    pub fn open(path: &Path) -> Result<(Self, StoreGuard), StoreError> {
        Self::open_with(path, keys::KEY_SHIFT)
    }

    fn open_with(path: &Path, key_shift: u32) -> Result<(Self, StoreGuard), StoreError> {
        let lock = DatabaseLock::acquire(path)?;
        epoch::set_foreign_wal_aside(&lock).map_err(|error| unavailable(path, error))?;
        let mut connection = connect(lock.path()).map_err(|error| open_error(path, error))?;
        migrate(&mut connection, path)?;
        let checkpointer = connect(lock.path()).map_err(|error| open_error(path, error))?;
        let (intake_sender, intake) = watch::channel(Intake::Open);
        let queue = Arc::new(WriteQueue::default());
        let gate = Arc::new(checkpoint::CheckpointGate::default());
        let pinned_wal_pages = gate.pinned();
        let writer = Writer::new(connection, Arc::clone(&queue), Arc::clone(&gate), intake_sender, key_shift)
            .map_err(|error| open_error(path, error))?;
        let file = lock.file();
        let checkpointer_queue = Arc::clone(&queue);
        let checkpoint_gate = Arc::clone(&gate);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body).map_err(|error| unavailable(path, error))
        };
        let threads = vec![
            spawn("writer", Box::new(move || writer.run()))?,
            spawn("checkpointer", Box::new(move || checkpoint::run(&checkpointer, file, &gate, &checkpointer_queue)))?,
        ];
        let store = Self {
            queue: Arc::clone(&queue),
            intake,
            pinned_wal_pages,
            checkpoint_gate,
            purge_notices: Arc::default(),
            path: path.into(),
        };
        Ok((store, StoreGuard { queue, threads, _lock: lock }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file takes writes now, and every change of that.
    pub fn intake(&self) -> watch::Receiver<Intake> {
        self.intake.clone()
    }

    /// Pages of a WAL that a long reader keeps from being written back; 0 when none does.
    pub fn pinned_wal_pages(&self) -> watch::Receiver<i64> {
        self.pinned_wal_pages.clone()
    }

    /// Returns once the writer has committed an empty job: proof that the writer works.
    ///
    /// # Errors
    /// When the writer has stopped.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.submit(write_queue::JobClass::default(), |_| Ok(())).await
    }

    /// Number of deliveries and other jobs that wait for the writer.
    pub fn queued(&self) -> usize {
        let (small, large) = self.queue.depths();
        small + large
    }

    /// How long the writer has had jobs without answering one: jobs wait or run, and nothing is committed.
    pub fn busy_for(&self) -> Duration {
        self.queue.busy_for()
    }

    /// Numbers of small and of large jobs that wait for the writer.
    pub fn queue_depths(&self) -> (usize, usize) {
        self.queue.depths()
    }

    /// How long commits took since the start.
    pub fn commits(&self) -> commits::CommitTimes {
        self.queue.commits.times()
    }

    /// Bytes of a WAL that a long reader keeps from being written back; 0 when none does.
    pub fn pinned_wal_bytes(&self) -> u64 {
        u64::try_from(*self.pinned_wal_pages.borrow()).unwrap_or(0) * u64::from(PAGE_BYTES)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    schema::harden(&connection)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    // Readers of the file's group can't create the WAL files, so they are kept when the last connection closes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn unavailable(path: &Path, problem: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable { path: path.to_owned(), problem: problem.to_string() }
}

fn open_error(path: &Path, error: impl std::borrow::Borrow<rusqlite::Error>) -> StoreError {
    let error = error.borrow();
    let problem = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => "it is not a SQLite database: name another file".to_owned(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            format!("it is damaged ({error}): restore a snapshot, or move it away and let the feeds be read anew")
        }
        _ if is_environment_error(error) => return unavailable(path, error),
        _ => error.to_string(),
    };
    StoreError::Unusable { path: path.to_owned(), problem }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let unusable = |problem: String| StoreError::Unusable { path: path.to_owned(), problem };
    let sql = |error| open_error(path, error);
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(sql);
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sql)?;
    if application != APPLICATION_ID && (tables > 0 || application != 0) {
        return Err(unusable("it is a database of another program: name another file".into()));
    }
    if version > SCHEMA_VERSION {
        let ours = SCHEMA_VERSION;
        return Err(unusable(format!(
            "it has layout {version}, this feedmirror knows up to {ours}: upgrade feedmirror"
        )));
    }
    if tables > 0 {
        schema::check(connection, path, version).map_err(|error| with_path(path, error))?;
    } else {
        connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(sql)?;
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(sql)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(sql)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(sql)?;
    // Deleted content is overwritten where its page is written anyway; `erase` overwrites whole free pages.
    connection.pragma_update(None, "secure_delete", "FAST").map_err(sql)?;
    connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB)).map_err(sql)?;
    connection.pragma_update(None, "journal_size_limit", checkpoint::KEPT_WAL_BYTES).map_err(sql)?;
    if tables > 0 {
        check_small_files(connection, path)?;
    }
    for (done, statements) in MIGRATIONS.iter().enumerate().skip(usize::try_from(version).unwrap_or(0)) {
        let transaction = connection.transaction().map_err(sql)?;
        transaction.execute_batch(statements).map_err(sql)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sql)?;
        transaction.pragma_update(None, "user_version", done as i32 + 1).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    epoch::begin_epoch_if_snapshot(connection).map_err(|error| with_path(path, error))
}

/// Adds the file's path to the error of a failed statement.
fn with_path(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Sql(error) => open_error(path, error),
        error => error,
    }
}

/// Looks for damage at the start where that takes under a second; in a larger file, damage shows when a statement reads
/// the damaged page.
fn check_small_files(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    const CHECKED_BYTES: u64 = 64 << 20;
    if std::fs::metadata(path).map_or(0, |m| m.len()) > CHECKED_BYTES {
        return Ok(());
    }
    let problem: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|error| open_error(path, error))?;
    if problem == "ok" {
        return Ok(());
    }
    Err(StoreError::Unusable {
        path: path.to_owned(),
        problem: format!(
            "it is damaged ({problem}): restore a snapshot, or move it away and let the feeds be read anew"
        ),
    })
}
