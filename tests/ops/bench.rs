//! A mirror's file with a listener before it, and a supervisor that notes what it is asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use feedmirror::feed::{
    FeedName, Finding, Health, Item, Modified, Order as Ordering, Page, State, Ties, Transport, Unreadable,
};
use feedmirror::output::metrics::{FeedCounts, Own};
use feedmirror::server::{self, Ops, token};
use feedmirror::source::client::plain_client;
use feedmirror::store::apply::{Delivery, Held, Purpose, Redactor, Step};
use feedmirror::store::feeds::{Note, Registration, StoredFeed};
use feedmirror::store::{Closing, Store, now};
use feedmirror::supervisor::control::{Asked, Control, ControlError};
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
pub(crate) struct File {
    folder: TempDir,
    open: Option<(Store, Closing)>,
}

pub(crate) fn name(name: &str) -> FeedName {
    FeedName::new(name).unwrap()
}

impl File {
    /// With these feeds, each on a host of its own.
    pub(crate) async fn with(feeds: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = Store::open(&folder.path().join("mirror.db")).unwrap();
        let file = Self { folder, open: Some(open) };
        let registration = |feed: &&str| Registration {
            name: name(feed),
            provider: None,
            url: format!("https://{feed}.example/\"><img src=x onerror=alert(1)>"),
            attribution: Default::default(),
            broken: None,
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

    /// Lets nothing hold the file any more.
    pub(crate) fn close(&mut self) {
        let (store, closing) = self.open.take().unwrap();
        drop(store);
        closing.finish();
    }

    pub(crate) async fn feed(&self, feed: &str) -> StoredFeed {
        self.store().feed(&name(feed)).await.unwrap()
    }

    /// Writes records of kind `Session`; one without data is a deletion.
    pub(crate) async fn write(&self, feed: &str, records: &[(&str, i64, Option<&str>)]) {
        self.deliver(feed, records, Purpose::Again).await;
    }

    /// Sees the feed's end.
    pub(crate) async fn level(&self, feed: &str) {
        let cursor = self.feed(feed).await.cursor.unwrap();
        let step = Step { asked: cursor.clone(), cursor, level: true, clean: true };
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
                state: if data.is_some() { State::Updated } else { State::Deleted },
                data: from..text.len(),
                record: from..text.len(),
            });
        }
        page.text = text.into();
        self.hand_over(feed, page, purpose).await;
    }

    async fn hand_over(&self, feed: &str, page: Page, purpose: Purpose) {
        let stored = self.feed(feed).await;
        let delivery = Delivery {
            feed: stored.id,
            generation: stored.generation,
            transport: Transport::Poll,
            at: now(),
            page,
            purpose,
            order: Ordering::Standard,
            ties: Ties::Keep,
            stood: i64::MAX,
            follows: false,
            held: Held::default(),
            redactor: Redactor::default(),
            origin: Default::default(),
        };
        self.store().apply(delivery).await.unwrap().unwrap();
    }

    /// Walks a resync to a clean end that found nothing, so that its sweep is held.
    pub(crate) async fn hold_a_sweep(&self, feed: &str) {
        use feedmirror::store::resync::{Ended, Trust};
        let resync = self.store().begin_resync(&name(feed), now(), Trust::No, false).await.unwrap().resync.unwrap();
        let step = Step { asked: resync.cursor.clone(), cursor: resync.cursor, level: true, clean: true };
        self.deliver(feed, &[], Purpose::Resync(step)).await;
        let stored = self.feed(feed).await;
        let ended = self
            .store()
            .end_resync(stored.id, stored.resync.unwrap().walk, now(), 0.2, Default::default())
            .await
            .unwrap();
        assert!(matches!(ended, Ended::Held(..)), "{ended:?}");
    }

    /// Puts records, each with its reason, into quarantine.
    pub(crate) async fn quarantine(&self, feed: &str, records: &[(&'static str, &str)]) {
        let unreadable = |(reason, raw): &(&'static str, &str)| Unreadable {
            reason,
            detail: format!("{reason} it is"),
            raw: (*raw).to_owned(),
            shown: None,
            id: None,
            count: 1,
        };
        let page = Page { unreadable: records.iter().map(unreadable).collect(), ..Page::default() };
        self.hand_over(feed, page, Purpose::Again).await;
    }

    pub(crate) async fn finds(&self, feed: &str, rule: &'static str, detail: &str) {
        let finding = Finding { rule, detail: detail.into(), count: 1 };
        self.store().finding(self.feed(feed).await.id, now(), finding).await.unwrap();
    }

    pub(crate) async fn ails(&self, feed: &str, reason: &str) {
        let note = Note {
            health: Health::Retrying,
            reason: Some(reason.into()),
            failures: 3,
            next_poll_at: Some(now() + 90_000),
        };
        let id = self.feed(feed).await.id;
        self.store().note(id, now(), note).await.unwrap();
    }

    /// One value, read as any reader would.
    pub(crate) fn value<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        let connection = Connection::open_with_flags(self.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// `epoch:seq` of now.
    pub(crate) fn position(&self) -> String {
        self.value("SELECT epoch || ':' || seq FROM mirror")
    }
}

/// A listener before such a file.
pub(crate) struct Bench {
    pub(crate) file: File,
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    pub(crate) ready: watch::Sender<Option<String>>,
    pub(crate) client: reqwest::Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Bench {
    /// On loopback, and with a supervisor that does whatever it is told.
    pub(crate) async fn with(feeds: &[&str]) -> Self {
        Self::listening("127.0.0.1:0", feeds, |asked| Ok(format!("did {asked:?}"))).await
    }

    pub(crate) async fn listening(
        address: &str,
        feeds: &[&str],
        answer: impl Fn(&Asked) -> Result<String, ControlError> + Send + Sync + 'static,
    ) -> Self {
        let file = File::with(feeds).await;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let control = Control::answered_by(move |order| {
            let answered = answer(&order);
            noted.lock().unwrap().push(order);
            std::future::ready(answered)
        });
        Self::serving(address, file, control, asked).await
    }

    pub(crate) async fn serving(address: &str, file: File, control: Control, asked: Arc<Mutex<Vec<Asked>>>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = token::token(None, &file.path()).unwrap();
        let (ready, readiness) = watch::channel(None);
        let counts = FeedCounts { feed: "acme".into(), pages: 17, ..FeedCounts::default() };
        let ops = Ops {
            database: file.path(),
            control,
            token: token.clone(),
            ready: readiness,
            live: Arc::new(move || vec![counts.clone()]),
            own: Arc::new(Own::default),
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
            asked,
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
    pub(crate) async fn got(&self, path: &str) -> (u16, String) {
        told(self.get(path)).await
    }

    /// Status and text of a POST with the token.
    pub(crate) async fn ordered(&self, path: &str, body: &str) -> (u16, String) {
        told(self.post(path).bearer_auth(&self.token).body(body.to_owned())).await
    }

    /// What the supervisor was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

pub(crate) async fn told(request: reqwest::RequestBuilder) -> (u16, String) {
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
    shown(tokio::task::spawn_blocking(run).await.unwrap())
}

/// The real binary, without what the environment might tell it.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    for name in ["FEEDMIRROR_DB", "FEEDMIRROR_CONFIG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error.
pub(crate) fn shown(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
