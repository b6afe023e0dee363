//! A mirror's file with an operators' listener, and a stub supervisor that records its requests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use feedmirror::feed::{
    FeedName, Finding, Health, Item, ItemState, Modified, ModifiedOrder as Ordering, Page, TiePolicy, Transport,
    UnreadableRecord,
};
use feedmirror::output::metrics::{FeedCounts, MirrorStats};
use feedmirror::server::{self, OpsContext, token};
use feedmirror::source::client::plain_client;
use feedmirror::store::apply::{Delivery, PageStep, Purpose, Redactor, ReleaseOnCommit};
use feedmirror::store::feeds::{FeedRegistration, HealthNote, StoredFeed};
use feedmirror::store::{Store, StoreGuard, now};
use feedmirror::supervisor::control::{Control, ControlError, StubRequest};
use rusqlite::{Connection, OpenFlags};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a condition may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A file that a test writes.
pub(crate) struct MirrorFixture {
    folder: TempDir,
    open: Option<(Store, StoreGuard)>,
}

pub(crate) fn name(name: &str) -> FeedName {
    FeedName::new(name).unwrap()
}

impl MirrorFixture {
    /// A file with these feeds, each on a host of its own.
    pub(crate) async fn with(feeds: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = Store::open(&folder.path().join("mirror.db")).unwrap();
        let file = Self { folder, open: Some(open) };
        let registration = |feed: &&str| FeedRegistration {
            name: name(feed),
            provider: None,
            url: format!("https://{feed}.example/\"><img src=x onerror=alert(1)>"),
            attribution: Default::default(),
            config_error: None,
        };
        file.store().register(now(), feeds.iter().map(registration).collect(), true).await.unwrap();
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mirror.db")
    }

    pub(crate) fn store(&self) -> &Store {
        &self.open.as_ref().unwrap().0
    }

    /// Closes the file, so that another process can hold it.
    pub(crate) fn close(&mut self) {
        let (store, store_guard) = self.open.take().unwrap();
        drop(store);
        store_guard.finish();
    }

    pub(crate) async fn feed(&self, feed: &str) -> StoredFeed {
        self.store().feed(&name(feed)).await.unwrap()
    }

    /// Writes records of kind `Session`; one without data is a deletion.
    pub(crate) async fn write(&self, feed: &str, records: &[(&str, i64, Option<&str>)]) {
        self.deliver(feed, records, Purpose::Reread).await;
    }

    /// Delivers the feed's end.
    pub(crate) async fn level(&self, feed: &str) {
        let cursor = self.feed(feed).await.cursor.unwrap();
        let step = PageStep { from_cursor: cursor.clone(), next_cursor: cursor, level: true, clean: true };
        self.deliver(feed, &[], Purpose::Poll(step)).await;
    }

    async fn deliver(&self, feed: &str, records: &[(&str, i64, Option<&str>)], purpose: Purpose) {
        let (mut page, mut text) = (Page::default(), String::new());
        for (id, modified, data) in records {
            let from = text.len();
            text.push_str(data.unwrap_or_default());
            page.items.push(Item {
                kind: "Session".into(),
                id: (*id).into(),
                modified: Modified::Int(*modified),
                state: if data.is_some() { ItemState::Updated } else { ItemState::Deleted },
                data_range: from..text.len(),
                record_range: from..text.len(),
            });
        }
        page.text = text.into();
        self.apply_page(feed, page, purpose).await;
    }

    async fn apply_page(&self, feed: &str, page: Page, purpose: Purpose) {
        let stored = self.feed(feed).await;
        let delivery = Delivery {
            feed: stored.id,
            generation: stored.generation,
            transport: Transport::Poll,
            at: now(),
            page,
            purpose,
            order: Ordering::Standard,
            ties: TiePolicy::Keep,
            start_seq: i64::MAX,
            keep_order: false,
            release_on_commit: ReleaseOnCommit::default(),
            redactor: Redactor::default(),
            provenance: Default::default(),
        };
        self.store().apply(delivery).await.unwrap().unwrap();
    }

    /// Ends a resync cleanly without items, so that its sweep is held.
    pub(crate) async fn hold_a_sweep(&self, feed: &str) {
        use feedmirror::store::resync::{ResyncEnd, SourceTrust};
        let resync =
            self.store().begin_resync(&name(feed), now(), SourceTrust::No, false).await.unwrap().resync.unwrap();
        let step =
            PageStep { from_cursor: resync.cursor.clone(), next_cursor: resync.cursor, level: true, clean: true };
        self.deliver(feed, &[], Purpose::Resync(step)).await;
        let stored = self.feed(feed).await;
        let result = self
            .store()
            .end_resync(stored.id, stored.resync.unwrap().walk_id, now(), 0.2, Default::default())
            .await
            .unwrap();
        assert!(matches!(result, ResyncEnd::Held(..)), "{result:?}");
    }

    /// Puts records, each with its reason, into quarantine.
    pub(crate) async fn quarantine(&self, feed: &str, records: &[(&'static str, &str)]) {
        let unreadable = |(reason, raw): &(&'static str, &str)| UnreadableRecord {
            reason,
            detail: format!("{reason} it is"),
            raw: (*raw).to_owned(),
            redacted: None,
            id: None,
            count: 1,
        };
        let page = Page { unreadable: records.iter().map(unreadable).collect(), ..Page::default() };
        self.apply_page(feed, page, Purpose::Reread).await;
    }

    pub(crate) async fn record_finding(&self, feed: &str, rule: &'static str, detail: &str) {
        let finding = Finding { rule, detail: detail.into(), count: 1 };
        self.store().record_finding(self.feed(feed).await.id, now(), finding).await.unwrap();
    }

    pub(crate) async fn set_retrying(&self, feed: &str, reason: &str) {
        let note = HealthNote {
            health: Health::Retrying,
            reason: Some(reason.into()),
            failures: 3,
            next_poll_at: Some(now() + 90_000),
        };
        let id = self.feed(feed).await.id;
        self.store().record_health(id, now(), note).await.unwrap();
    }

    /// One value, read over a connection of its own.
    pub(crate) fn value<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        let connection = Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// The present position, `epoch:seq`.
    pub(crate) fn position(&self) -> String {
        self.value("SELECT epoch || ':' || seq FROM mirror")
    }
}

/// An operators' listener on such a file.
pub(crate) struct OpsHarness {
    pub(crate) file: MirrorFixture,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) ready: watch::Sender<Option<String>>,
    pub(crate) client: reqwest::Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
    received_orders: Arc<Mutex<Vec<StubRequest>>>,
}

impl OpsHarness {
    /// On loopback, with a supervisor that carries out every order.
    pub(crate) async fn with(feeds: &[&str]) -> Self {
        Self::listening("127.0.0.1:0", feeds, |request| Ok(format!("did {request:?}"))).await
    }

    pub(crate) async fn listening(
        address: &str,
        feeds: &[&str],
        answer: impl Fn(&StubRequest) -> Result<String, ControlError> + Send + Sync + 'static,
    ) -> Self {
        let file = MirrorFixture::with(feeds).await;
        let received_orders = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&received_orders);
        let control = Control::with_stub(move |order| {
            let result = answer(&order);
            recorded.lock().unwrap().push(order);
            std::future::ready(result)
        });
        Self::serving(address, file, control, received_orders).await
    }

    pub(crate) async fn serving(
        address: &str,
        file: MirrorFixture,
        control: Control,
        received_orders: Arc<Mutex<Vec<StubRequest>>>,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = token::read_or_create(None, &file.path()).unwrap();
        let (ready, readiness) = watch::channel(None);
        let counts = FeedCounts { feed: "acme".into(), pages: 17, ..FeedCounts::default() };
        let ops = OpsContext {
            database: file.path(),
            control,
            token: token.clone(),
            unready_reason: readiness,
            feed_counts: Arc::new(move || vec![counts.clone()]),
            own_metrics: Arc::new(MirrorStats::default),
        };
        let shutdown = CancellationToken::new();
        Self {
            file,
            address,
            token: token.expose_secret().to_owned(),
            ready,
            client: plain_client(DEADLINE).unwrap(),
            serving: tokio::spawn(server::serve(listener, ops, shutdown.clone())),
            shutdown,
            received_orders,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.address.port())
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(self.url(path))
    }

    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(self.url(path))
    }

    /// Status and text of a GET.
    pub(crate) async fn get_text(&self, path: &str) -> (u16, String) {
        status_and_text(self.get(path)).await
    }

    /// Status and text of a POST with the token.
    pub(crate) async fn post_order(&self, path: &str, body: &str) -> (u16, String) {
        status_and_text(self.post(path).bearer_auth(&self.token).body(body.to_owned())).await
    }

    /// The supervisor's requests so far.
    pub(crate) fn received_orders(&self) -> Vec<StubRequest> {
        self.received_orders.lock().unwrap().clone()
    }
}

pub(crate) async fn status_and_text(request: reqwest::RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Lines of JSON.
pub(crate) fn lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Runs the real binary over a file.
pub(crate) async fn run(database: &Path, arguments: &[&str]) -> (i32, String, String) {
    let database = database.to_str().unwrap().to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || command().args(&arguments).args(["--db", &database]).output().unwrap();
    exit_and_output(tokio::task::spawn_blocking(run).await.unwrap())
}

/// The real binary, without the environment variables that it reads.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    for name in ["FEEDMIRROR_DB", "FEEDMIRROR_CONFIG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
pub(crate) fn exit_and_output(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
