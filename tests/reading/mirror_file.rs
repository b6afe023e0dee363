//! A mirror's file made through the library, and the real binary to read it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use feedmirror::decode::rpde::{self, DecodeSettings};
use feedmirror::feed::{FeedName, ModifiedOrder, TiePolicy, Transport};
use feedmirror::store::apply::{Applied, Delivery, PageStep, Purpose, Redactor, ReleaseOnCommit};
use feedmirror::store::feeds::{FeedRegistration, StoredFeed};
use feedmirror::store::{Store, StoreGuard};
use tokio::runtime::Runtime;

/// 2026-01-02T03:04:05.678Z.
pub(crate) const AT: i64 = 1_767_323_045_678;

/// Receives the result of a delivery from the writer thread.
type DeliveryReceiver = tokio::sync::oneshot::Receiver<Result<Applied, feedmirror::store::StoreError>>;

/// A mirror that is being written, as by a daemon.
pub(crate) struct MirrorFile {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) runtime: Runtime,
    pub(crate) store: Option<Store>,
    store_guard: Option<StoreGuard>,
}

impl MirrorFile {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (store, store_guard) = Store::open(&directory.path().join("mirror.db")).unwrap();
        Self { directory, runtime, store: Some(store), store_guard: Some(store_guard) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("mirror.db")
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(crate) fn feed(&self, name: &str) -> StoredFeed {
        let url = format!("https://acme.example/{name}");
        let feed = FeedRegistration {
            name: self.name(name),
            provider: None,
            url,
            attribution: Default::default(),
            config_error: None,
        };
        self.runtime.block_on(self.store().register(AT, vec![feed], false)).unwrap().remove(0)
    }

    pub(crate) fn name(&self, name: &str) -> FeedName {
        FeedName::new(name).unwrap()
    }

    /// Writes a page of these items, as text, as if it had been polled at the feed's cursor.
    pub(crate) fn polled(&self, name: &str, items: &[String]) -> Applied {
        let feed = self.runtime.block_on(self.store().feed(&self.name(name))).unwrap();
        let answer = self.polling(&feed, items);
        self.runtime.block_on(answer).unwrap().unwrap()
    }

    /// Sends such a page to the writer thread without waiting for its commit.
    pub(crate) fn polling(&self, feed: &StoredFeed, items: &[String]) -> DeliveryReceiver {
        let cursor = feed.cursor.clone().unwrap();
        let body = format!("{{\"items\":[{}],\"next\":\"{cursor}\"}}", items.join(","));
        let page = rpde::page(body.into_bytes(), &DecodeSettings::default()).unwrap();
        let step = PageStep { next_cursor: cursor.clone(), from_cursor: cursor, level: items.is_empty(), clean: true };
        let delivery = Delivery {
            feed: feed.id,
            generation: feed.generation,
            transport: Transport::Poll,
            at: AT,
            page,
            purpose: Purpose::Poll(step),
            order: ModifiedOrder::default(),
            ties: TiePolicy::Keep,
            start_seq: i64::MAX,
            keep_order: false,
            release_on_commit: ReleaseOnCommit::default(),
            redactor: Redactor::default(),
            provenance: Default::default(),
        };
        self.store().apply(delivery)
    }

    /// Ends the writer thread, as when the daemon stops.
    pub(crate) fn stop(&mut self) {
        self.store = None;
        if let Some(store_guard) = self.store_guard.take() {
            store_guard.finish();
        }
    }

    /// The output of a verb on this mirror; the verb must succeed.
    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        command(&self.path(), arguments).output().unwrap()
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        let mut command = command(&self.path(), arguments);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for MirrorFile {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A process that is killed when its test ends.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// The exit code, once the process has ended by itself.
    pub(crate) fn ends(&mut self) -> Option<i32> {
        let ended = eventually(|| self.0.try_wait().unwrap());
        ended.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn command(database: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    command.args(arguments).arg("--db").arg(database).stdin(Stdio::null());
    command
}

/// The result of `look`, within ten seconds.
#[expect(clippy::disallowed_methods, reason = "the one polling loop, under a deadline")]
pub(crate) fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not come about within ten seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An item with these data, as a publisher would write it.
pub(crate) fn updated(id: &str, modified: i64, data: &str) -> String {
    of_kind("Session", id, modified, data)
}

pub(crate) fn of_kind(kind: &str, id: &str, modified: i64, data: &str) -> String {
    format!("{{\"state\":\"updated\",\"kind\":\"{kind}\",\"id\":\"{id}\",\"modified\":{modified},\"data\":{data}}}")
}

pub(crate) fn deleted(id: &str, modified: i64) -> String {
    format!("{{\"state\":\"deleted\",\"kind\":\"Session\",\"id\":\"{id}\",\"modified\":{modified}}}")
}

/// Each line as JSON.
pub(crate) fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The exit code and standard error.
pub(crate) fn failed(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
