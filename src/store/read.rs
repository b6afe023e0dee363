//! Reading the SQLite file: rows with the names of their SQL columns, pages of the change log, and one long read for
//! exports.
//!
//! Guarantees: opening never creates a database, and nothing here writes. Reading works while a daemon runs, without
//! one, and for a user of the file's group who may not write. Every read is one short transaction, so that no reader
//! holds the WAL back; only [`Reader::export_items`] reads for as long as there are rows. Texts are neither shortened
//! nor worded here.

mod copy;
mod comparison;
mod quarantine;
mod change_log;
mod lookup;
mod explain;
mod rows;
mod activity;
mod verify;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Params};

pub use super::StoreError;
use super::{APPLICATION_ID, SCHEMA_VERSION, open_error, schema};
pub use crate::feed::Seq;
pub use activity::HourlyActivity;
pub use change_log::{FeedKindFilter, LogPage};
pub use comparison::{Comparison, Difference, DifferenceSample, ItemContent, SourceListing};
pub use explain::ItemSearchResult;
pub use quarantine::QuarantineFilter;
use rows::ViewRow;
pub use rows::{
    ChangeRow, DeliveryRow, EndpointRow, EventRow, FeedRow, FindingRow, FirstLoadRow, ItemRow, MirrorRow,
    QuarantineCount, QuarantineOrderRow, QuarantineReason, QuarantineRow, RefusalRow, ResyncRow, StoredModified,
};
pub use verify::{CHECKS, VerifyReport, Violation};

/// A mirror's file, open for reading. A reader can be sent to another thread, and is used by one thread at a time.
#[derive(Debug)]
pub struct Reader {
    db: Connection,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Reader {
    /// Opens the file, which must be a mirror of a layout that this program knows.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] with what to do, when there is no such file, it can't be read, or it isn't a mirror.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let unusable = |problem: String| StoreError::Unusable { path: path.to_owned(), problem };
        // The file is never opened for a check: closing a second descriptor would drop this process's own locks on the
        // file (POSIX).
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(unusable("it is not a file: name a mirror's SQLite file".into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let problem = "there is no such file: name a mirror with --db, or make one with feedmirror sync or run";
                return Err(unusable(problem.into()));
            }
            Err(error) => return Err(unusable(format!("it can't be reached: {error}"))),
        }
        let db = connect(path, OpenFlags::empty())
            .or_else(|error| connect_if_idle(path, error))
            .map_err(|error| read_error(path, error))?;
        let reader = Self { db, path: path.to_owned(), file: identity(path) };
        reader.check()?;
        Ok(reader)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path leads to another file by now, as after a restore: then the caller opens a new reader.
    pub fn is_replaced(&self) -> bool {
        let now = identity(&self.path);
        now.is_some() && now != self.file
    }

    /// A number that changes with each commit of another connection. Cheap: no row is read.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn data_version(&self) -> Result<i64, StoreError> {
        Ok(self.db.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }

    /// The row of `mirror`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn mirror(&self) -> Result<MirrorRow, StoreError> {
        Ok(mirror(&self.db)?)
    }

    /// The named feeds, or all when `names` is empty, ordered by name.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a name that is not in the mirror; when the file can't be read.
    pub fn feeds(&self, names: &[String]) -> Result<Vec<FeedRow>, StoreError> {
        let mut feeds: Vec<FeedRow> = self.rows("feeds", "ORDER BY name", ())?;
        if names.is_empty() {
            return Ok(feeds);
        }
        for name in names {
            self.feed_id(name)?;
        }
        feeds.retain(|feed| names.contains(&feed.name));
        Ok(feeds)
    }

    /// A feed's endpoints, or all, ordered by feed.
    ///
    /// # Errors
    /// As [`Reader::feeds`].
    pub fn endpoints(&self, feed: Option<&str>) -> Result<Vec<EndpointRow>, StoreError> {
        self.feed_rows("endpoints", feed, "ORDER BY feed, transport", usize::MAX)
    }

    /// The last records that could not be understood, newest last.
    ///
    /// # Errors
    /// As [`Reader::feeds`].
    pub fn quarantine(&self, feed: Option<&str>, limit: usize) -> Result<Vec<QuarantineRow>, StoreError> {
        let mut rows = self.feed_rows("quarantine", feed, "ORDER BY id DESC", limit)?;
        rows.reverse();
        Ok(rows)
    }

    /// The quarantined record with this id.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn quarantined(&self, id: i64) -> Result<Option<QuarantineRow>, StoreError> {
        Ok(self.rows("quarantine", "WHERE id = ?1", [id])?.pop())
    }

    /// How full each feed's quarantine is, ordered by feed; feeds without quarantined or dropped records are left out.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn quarantine_counts(&self) -> Result<Vec<QuarantineCount>, StoreError> {
        let source = "(SELECT name AS feed, quarantine_rows AS rows, quarantine_bytes AS bytes,
                              quarantine_dropped AS dropped FROM feed)";
        self.rows(source, "WHERE rows > 0 OR dropped > 0 ORDER BY feed", ())
    }

    /// The findings, ordered by feed and rule.
    ///
    /// # Errors
    /// As [`Reader::feeds`].
    pub fn findings(&self, feed: Option<&str>) -> Result<Vec<FindingRow>, StoreError> {
        self.feed_rows("findings", feed, "ORDER BY feed, rule", usize::MAX)
    }

    /// The last events, newest last.
    ///
    /// # Errors
    /// As [`Reader::feeds`].
    pub fn events(&self, feed: Option<&str>, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        self.newest_rows(rows::EVENTS, feed, limit)
    }

    /// The last items refused as older or tied, newest last.
    ///
    /// # Errors
    /// As [`Reader::feeds`].
    pub fn refusals(&self, feed: Option<&str>, limit: usize) -> Result<Vec<RefusalRow>, StoreError> {
        self.newest_rows(rows::REFUSALS, feed, limit)
    }

    /// The running first loads of feeds whose approximate number of items is known, ordered by feed.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn first_loads(&self) -> Result<Vec<FirstLoadRow>, StoreError> {
        let source = "(SELECT name AS feed, strftime('%Y-%m-%dT%H:%M:%fZ', began_at / 1000.0, 'unixepoch') AS began_at
                       FROM feed WHERE mode = 'refresh' AND total_items IS NOT NULL AND began_at IS NOT NULL)";
        self.rows(source, "ORDER BY feed", ())
    }

    /// The orders to quarantined records that are not carried out yet, the oldest first.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn quarantine_orders(&self) -> Result<Vec<QuarantineOrderRow>, StoreError> {
        let source = "(SELECT n, iif(retry, 'retry', 'drop') AS verb, feed, reason,
                              strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS asked_at
                       FROM quarantine_order)";
        self.rows(source, "ORDER BY n", ())
    }

    /// The running resyncs, ordered by feed.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn resyncs(&self) -> Result<Vec<ResyncRow>, StoreError> {
        let source = "(SELECT f.name AS feed, r.stage AS stage, r.cursor AS cursor, r.trust <> 0 AS trust_source,
                              strftime('%Y-%m-%dT%H:%M:%fZ', r.started_at / 1000.0, 'unixepoch') AS started_at,
                              r.unseen AS unseen, r.live AS live
                       FROM resync r JOIN feed f ON f.id = r.feed)";
        self.rows(source, "ORDER BY feed", ())
    }

    /// The feed's id, or an error that names the most similar feed.
    fn feed_id(&self, name: &str) -> Result<i64, StoreError> {
        let found = self.db.prepare_cached("SELECT id FROM feed WHERE name = ?1")?.query_row([name], |row| row.get(0));
        found.optional()?.map_or_else(|| Err(self.unknown_feed(name)?), Ok)
    }

    fn unknown_feed(&self, name: &str) -> Result<StoreError, StoreError> {
        let mut names = self.db.prepare_cached("SELECT name FROM feed ORDER BY name")?;
        let names = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        let similarity = |candidate: &&String| strsim::jaro_winkler(candidate, name);
        let most_similar = names.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let hint = match most_similar {
            Some(candidate) if similarity(&candidate) > 0.7 => format!("; did you mean {candidate}?"),
            Some(_) => "; feedmirror status lists those there are".to_owned(),
            None => "; it has no feeds yet".to_owned(),
        };
        Ok(StoreError::Refused(format!("there is no feed {name} in the mirror{hint}")))
    }

    fn feed_rows<R: ViewRow>(
        &self,
        view: &str,
        feed: Option<&str>,
        order: &str,
        limit: usize,
    ) -> Result<Vec<R>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let Some(feed) = feed else { return self.rows(view, &format!("{order} LIMIT ?1"), [limit]) };
        self.feed_id(feed)?;
        self.rows(view, &format!("WHERE feed = ?1 {order} LIMIT ?2"), (feed, limit))
    }

    /// The last rows of a numbered table, found by their numbers, which the views leave out.
    fn newest_rows<R: ViewRow>(&self, source: &str, feed: Option<&str>, limit: usize) -> Result<Vec<R>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows: Vec<R> = match feed {
            None => self.rows(source, "ORDER BY n DESC LIMIT ?1", [limit])?,
            Some(feed) => {
                let feed_id = self.feed_id(feed)?;
                self.rows(source, "WHERE number = ?1 ORDER BY n DESC LIMIT ?2", [feed_id, limit])?
            }
        };
        rows.reverse();
        Ok(rows)
    }

    fn rows<R: ViewRow>(&self, source: &str, rest: &str, values: impl Params) -> Result<Vec<R>, StoreError> {
        let sql = format!("SELECT {} FROM {source} {rest}", R::COLUMNS.join(", "));
        let mut select = self.db.prepare_cached(&sql)?;
        let rows = select.query_map(values, R::read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn check(&self) -> Result<(), StoreError> {
        let pragma = |name: &str| {
            let value = self.db.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
            value.map_err(|error| read_error(&self.path, error))
        };
        let problem = match (pragma("application_id")?, pragma("user_version")?) {
            (APPLICATION_ID, SCHEMA_VERSION) => {
                return schema::check(&self.db, &self.path, SCHEMA_VERSION).map_err(|error| match error {
                    StoreError::Sql(error) => read_error(&self.path, error),
                    error => error,
                });
            }
            (APPLICATION_ID, version) if version > SCHEMA_VERSION => {
                format!("it has layout {version}, this feedmirror knows up to {SCHEMA_VERSION}: upgrade feedmirror")
            }
            (APPLICATION_ID, version) => {
                format!("it has the older layout {version}: start feedmirror run once, which brings it up to date")
            }
            _ => "it is not a feedmirror database: name another file".to_owned(),
        };
        Err(StoreError::Unusable { path: self.path.clone(), problem })
    }
}

fn mirror(db: &Connection) -> rusqlite::Result<MirrorRow> {
    let sql = format!("SELECT {} FROM mirror", MirrorRow::COLUMNS.join(", "));
    db.prepare_cached(&sql)?.query_row([], MirrorRow::read)
}

pub(super) fn connect(path: impl AsRef<Path>, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | flags;
    let db = Connection::open_with_flags(path, flags)?;
    schema::harden(&db)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.pragma_update(None, "query_only", true)?;
    // SQLite opens the file only with the first real read.
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(db)
}

/// Connects to a copy without WAL files in a directory where this user can't create them: no process can be writing
/// such a file.
fn connect_if_idle(path: &Path, error: rusqlite::Error) -> rusqlite::Result<Connection> {
    use rusqlite::ErrorCode::{CannotOpen, ReadOnly};
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let has_wal = std::fs::metadata(wal).is_ok_and(|wal| wal.len() > 0);
    let (Some(CannotOpen | ReadOnly), Some(name), false) = (error.sqlite_error_code(), path.to_str(), has_wal) else {
        return Err(error);
    };
    connect_immutable(name)
}

/// Opens a file that no process writes, without locks and WAL files.
fn connect_immutable(name: &str) -> rusqlite::Result<Connection> {
    let name = name.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    // Two slashes at the start would name a host.
    let name = if name.starts_with("//") { format!("//{name}") } else { name };
    connect(format!("file:{name}?immutable=1"), OpenFlags::SQLITE_OPEN_URI)
}

fn read_error(path: &Path, error: impl std::borrow::Borrow<rusqlite::Error>) -> StoreError {
    let error = error.borrow();
    let problem = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::PermissionDenied) => {
            "this user may not read it or its -wal and -shm files: join the file's group"
        }
        _ => return open_error(path, error),
    };
    StoreError::Unusable { path: path.to_owned(), problem: problem.into() }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None
}
