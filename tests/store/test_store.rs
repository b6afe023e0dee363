//! A mirror under test: a store in a directory of its own, deliveries made of records, and rows read back with SQL.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use feedmirror::feed::{
    FeedName, Item, ItemState, Modified, ModifiedOrder, Page, TiePolicy, Transport, UnreadableRecord,
};
use feedmirror::store::apply::{Applied, Delivery, PageStep, Purpose, Redactor, ReleaseOnCommit};
use feedmirror::store::feeds::{FeedRegistration, StoredFeed};
use feedmirror::store::{Store, StoreError, StoreGuard};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// The pending result of a delivery.
pub(crate) type ApplyReceiver = oneshot::Receiver<Result<Applied, StoreError>>;

/// How long a condition may take to come true.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// An arbitrary time.
pub(crate) const AT: i64 = 1_700_000_000_000;

/// One record as a publisher sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) modified: Modified,
    /// The JSON text; `None` for a deletion.
    pub(crate) data: Option<String>,
}

/// An update of kind `Session`.
pub(crate) fn updated(id: &str, modified: i64, data: &str) -> Record {
    let data = Some(data.to_owned());
    Record { kind: "Session".into(), id: id.into(), modified: Modified::Int(modified), data }
}

/// A deletion of kind `Session`.
pub(crate) fn deleted(id: &str, modified: i64) -> Record {
    Record { kind: "Session".into(), id: id.into(), modified: Modified::Int(modified), data: None }
}

/// `count` updates with ids `{prefix}0`, `{prefix}1`, …, all with this `modified`.
pub(crate) fn many(prefix: &str, count: usize, modified: i64) -> Vec<Record> {
    (0..count).map(|n| updated(&format!("{prefix}{n}"), modified, "{}")).collect()
}

/// A record that could not be understood.
pub(crate) fn unreadable(reason: &'static str, raw: &str, id: Option<&str>) -> UnreadableRecord {
    UnreadableRecord {
        reason,
        detail: "made by a test".into(),
        raw: raw.into(),
        redacted: None,
        id: id.map(Into::into),
        count: 1,
    }
}

/// A page that holds these records, their data in one text as in a body.
pub(crate) fn page(records: &[Record], bad: &[UnreadableRecord]) -> Page {
    let (mut page, mut text) = (Page { unreadable: bad.to_vec(), ..Page::default() }, String::new());
    for record in records {
        let from = text.len();
        text.push_str(record.data.as_deref().unwrap_or_default());
        page.items.push(Item {
            kind: record.kind.as_str().into(),
            id: record.id.as_str().into(),
            modified: record.modified.clone(),
            state: if record.data.is_some() { ItemState::Updated } else { ItemState::Deleted },
            data_range: from..text.len(),
            record_range: from..text.len(),
        });
    }
    page.text = text.into();
    page
}

/// A valid feed name.
pub(crate) fn name(name: &str) -> FeedName {
    FeedName::new(name).unwrap()
}

/// A feed as configured, its URL on a host of its own.
pub(crate) fn registration(feed: &str) -> FeedRegistration {
    FeedRegistration {
        name: name(feed),
        provider: None,
        url: start_url(feed),
        attribution: Default::default(),
        config_error: None,
    }
}

/// The feed's start URL.
pub(crate) fn start_url(feed: &str) -> String {
    format!("https://{feed}.example/rpde")
}

/// A step of a walk to another page.
pub(crate) fn step(from_cursor: &str, next_cursor: &str) -> PageStep {
    PageStep { from_cursor: from_cursor.into(), next_cursor: next_cursor.into(), level: false, clean: true }
}

/// The step of an end seen by the standard's sign.
pub(crate) fn end(cursor: &str) -> PageStep {
    PageStep { from_cursor: cursor.into(), next_cursor: cursor.into(), level: true, clean: true }
}

/// A store that can be closed and opened again.
pub(crate) struct TestStore {
    pub(crate) path: PathBuf,
    open: Option<(Store, StoreGuard)>,
    runtime: tokio::runtime::Runtime,
    _directory: TempDir,
}

impl TestStore {
    /// An empty mirror that knows these feeds.
    pub(crate) fn with(feeds: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mirror.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut mirror = Self { path, open: None, runtime, _directory: directory };
        mirror.reopen();
        let feeds = feeds.iter().map(|feed| registration(feed)).collect();
        mirror.wait(mirror.store().register(AT, feeds, true)).unwrap();
        mirror
    }

    pub(crate) fn store(&self) -> &Store {
        &self.open.as_ref().unwrap().0
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Ends the writer, so that the file can be read, copied or damaged.
    pub(crate) fn close(&mut self) {
        if let Some((store, guard)) = self.open.take() {
            drop(store);
            guard.finish();
        }
    }

    /// Drops the writer without finishing it, as a panic would; returns the remaining handle.
    pub(crate) fn abandon(&mut self) -> Store {
        self.open.take().unwrap().0
    }

    pub(crate) fn reopen(&mut self) {
        self.close();
        self.open = Some(Store::open(&self.path).unwrap());
    }

    pub(crate) fn feed(&self, feed: &str) -> StoredFeed {
        self.wait(self.store().feed(&name(feed))).unwrap()
    }

    pub(crate) fn cursor(&self, feed: &str) -> String {
        self.feed(feed).cursor.unwrap()
    }

    /// A delivery under the feed's current generation.
    pub(crate) fn delivery(&self, feed: &str, transport: Transport, purpose: Purpose, records: &[Record]) -> Delivery {
        let stored = self.feed(feed);
        Delivery {
            feed: stored.id,
            generation: stored.generation,
            transport,
            at: AT,
            page: page(records, &[]),
            purpose,
            order: ModifiedOrder::Standard,
            ties: TiePolicy::Keep,
            start_seq: i64::MAX,
            keep_order: false,
            release_on_commit: ReleaseOnCommit::default(),
            redactor: Redactor::default(),
            provenance: Default::default(),
        }
    }

    pub(crate) fn submit(&self, delivery: Delivery) -> ApplyReceiver {
        self.store().apply(delivery)
    }

    pub(crate) fn answer(&self, receiver: ApplyReceiver) -> Applied {
        self.wait(receiver).expect("the writer answers").expect("the delivery is applied")
    }

    pub(crate) fn apply(&self, delivery: Delivery) -> Applied {
        self.answer(self.submit(delivery))
    }

    /// A webhook's delivery.
    pub(crate) fn push(&self, feed: &str, records: &[Record]) -> Applied {
        self.apply(self.delivery(feed, Transport::Webhook, Purpose::Reread, records))
    }

    /// A page polled apart from the cursor, as by a look-back.
    pub(crate) fn look_back(&self, feed: &str, records: &[Record]) -> Applied {
        self.apply(self.delivery(feed, Transport::Poll, Purpose::Reread, records))
    }

    /// A page polled at the cursor, which stays unchanged.
    pub(crate) fn poll(&self, feed: &str, records: &[Record]) -> Applied {
        let cursor = self.cursor(feed);
        self.apply(self.delivery(feed, Transport::Poll, Purpose::Poll(step(&cursor, &cursor)), records))
    }

    /// A page of the running resync, whose cursor moves to `cursor`.
    pub(crate) fn walk(&self, feed: &str, cursor: &str, records: &[Record]) -> Applied {
        let from_cursor = self.feed(feed).resync.unwrap().cursor;
        self.apply(self.delivery(feed, Transport::Poll, Purpose::Resync(step(&from_cursor, cursor)), records))
    }

    /// A read-only connection, as any reader's.
    pub(crate) fn sql(&self) -> Connection {
        Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// One value of the first row.
    pub(crate) fn value<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.sql().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// All rows, each a list of values.
    pub(crate) fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let connection = self.sql();
        let mut statement = connection.prepare(sql).unwrap();
        let width = statement.column_count();
        let rows = statement.query_map([], |row| (0..width).map(|column| row.get(column)).collect()).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    /// Modified, state, data and swept of one `Session` item of `acme`, joined by spaces.
    pub(crate) fn item(&self, id: &str) -> String {
        let sql = "SELECT modified || ' ' || state || ' ' || coalesce(data, '-') || iif(swept, ' swept', '')
                   FROM items WHERE feed = 'acme' AND kind = 'Session' AND id = ?1";
        self.sql().query_row(sql, [id], |row| row.get(0)).unwrap()
    }

    pub(crate) fn seq(&self, id: &str) -> i64 {
        self.sql().query_row("SELECT seq FROM items WHERE feed = 'acme' AND id = ?1", [id], |row| row.get(0)).unwrap()
    }
}

/// Waits until `condition` holds.
#[expect(clippy::disallowed_methods, reason = "the one loop that waits for a condition under a deadline")]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
