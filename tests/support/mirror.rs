//! A mirror under test: a folder of its own, a configuration, and the real binary as a child process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::test_feed::LiveItems;
use super::{DEADLINE, holds_within};

/// Waits as short as tests need them; `[http]` and further tables follow.
const QUICK: &str = r#"
database = "mirror.db"
poll = { min = "50ms", max = "200ms", lookback = "1h" }
retry = { min = "20ms", max = "200ms" }
ops = { listen = "127.0.0.1:0" }
log = { level = "info,feedmirror=debug" }
"#;

/// A mirror's folder, configuration and process. A process that still runs is killed on drop.
pub(crate) struct MirrorProcess {
    folder: TempDir,
    http: String,
    feeds: BTreeMap<String, String>,
    tables: String,
    environment: Vec<(String, String)>,
    /// A command that runs the binary, if it isn't run directly.
    wrapper: Vec<String>,
    child: Option<Child>,
}

/// A feed's row of the view `feeds`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FeedRow {
    pub(crate) mode: String,
    pub(crate) health: String,
    pub(crate) reason: String,
    pub(crate) cursor: String,
    pub(crate) items: i64,
    pub(crate) tombstones: i64,
    pub(crate) failures: i64,
    pub(crate) level_at: String,
    pub(crate) polled_at: String,
    /// Seconds from now, by the file.
    pub(crate) next_poll_in_s: f64,
}

impl FeedRow {
    /// The fixed word that the reason begins with.
    pub(crate) fn word(&self) -> &str {
        self.reason.split(':').next().unwrap_or_default()
    }
}

impl MirrorProcess {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            http: r#"connect_timeout = "2s", read_timeout = "5s", page_timeout = "20s""#.to_owned(),
            feeds: BTreeMap::new(),
            tables: String::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            child: None,
        }
    }

    /// With one feed, running.
    pub(crate) fn running(name: &str, url: &str) -> Self {
        Self::new().feed(name, url).start()
    }

    /// Adds a feed.
    pub(crate) fn feed(self, name: &str, url: &str) -> Self {
        self.feed_with(name, url, "")
    }

    /// Adds a feed, or changes one, with further keys.
    pub(crate) fn feed_with(mut self, name: &str, url: &str, keys: &str) -> Self {
        self.set_feed(name, url, keys);
        self
    }

    pub(crate) fn set_feed(&mut self, name: &str, url: &str, keys: &str) {
        self.feeds.insert(name.to_owned(), format!("[feeds.{name:?}]\nurl = {url:?}\n{keys}\n"));
    }

    pub(crate) fn drop_feed(&mut self, name: &str) {
        self.feeds.remove(name);
    }

    /// Adds keys to `http`, as `per_host = 4`.
    pub(crate) fn http(mut self, keys: &str) -> Self {
        self.http = format!("{}, {keys}", self.http);
        self
    }

    /// Adds whole tables.
    pub(crate) fn tables(mut self, toml: &str) -> Self {
        self.tables.push_str(toml);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts the database on a disk of 4 MB of its own, prepared by `prepare`, a shell command in which `$0` is the
    /// disk.
    ///
    /// # Panics
    /// Where neither root nor user namespaces are available.
    pub(crate) fn on_small_disk(mut self, prepare: &str) -> Self {
        let disk = self.path("disk");
        fs::create_dir(&disk).unwrap();
        let namespace = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
        let unshare =
            Command::new("unshare").args([namespace, "true"]).output().expect("unshare, of Debian's util-linux");
        let message = String::from_utf8_lossy(&unshare.stderr);
        assert!(
            unshare.status.success(),
            "a small disk takes root, or sysctl kernel.unprivileged_userns_clone=1: {message}"
        );
        let script = format!("mount -t tmpfs -o size=4m none \"$0\" && {prepare} && exec \"$@\"");
        let wrapper = ["unshare", namespace, "sh", "-c", &script, disk.to_str().unwrap()];
        self.wrapper = wrapper.map(str::to_owned).to_vec();
        self.env("FEEDMIRROR_DB", disk.join("mirror.db").to_str().unwrap())
    }

    /// Removes the file `filler` from the disk that the running daemon's database is on.
    pub(crate) fn make_room(&self) {
        let disk = self.path("disk/filler");
        fs::remove_file(format!("/proc/{}/root{}", self.pid(), disk.display())).unwrap();
    }

    /// A file in the mirror's folder; relative paths of the configuration lead there.
    pub(crate) fn write(&self, name: &str, text: &str) {
        // Moved into place: a daemon that reads it meanwhile gets the old text or the new.
        let next = self.path("being-written");
        fs::write(&next, text).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&next, self.path(name)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write_config(&self) {
        let feeds: String = self.feeds.values().map(String::as_str).collect();
        self.write("config.toml", &format!("{QUICK}http = {{ {} }}\n{feeds}{}", self.http, self.tables));
    }

    /// The binary with this mirror's configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_feedmirror");
        let mut words = self.wrapper.iter().map(String::as_str).chain([binary]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .arg("--config")
            .arg(self.path("config.toml"))
            .args(arguments)
            .current_dir(self.folder.path());
        for name in ["FEEDMIRROR_CONFIG", "FEEDMIRROR_DB", "NOTIFY_SOCKET", "HTTP_PROXY", "http_proxy"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        command
    }

    /// Runs the daemon and waits until it is ready.
    pub(crate) fn start(mut self) -> Self {
        self.start_again();
        self
    }

    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.write_config();
        let before = self.starts();
        self.spawn();
        let ready = holds_within(DEADLINE, || self.starts() > before);
        assert!(ready, "it did not start\n{}", self.log());
    }

    /// How often the log says that a daemon is ready.
    pub(crate) fn starts(&self) -> usize {
        self.log().matches(" running ops=").count()
    }

    /// Runs the daemon without waiting for anything.
    pub(crate) fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let errors = log.try_clone().unwrap();
        self.child = Some(self.command(&["run"]).stdout(log).stderr(errors).spawn().unwrap());
    }

    /// Runs a verb to its end.
    pub(crate) fn verb(&self, arguments: &[&str]) -> Output {
        self.write_config();
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Asks the process to end, and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit()
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for the process's exit.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let mut status = None;
        let ended = holds_within(DEADLINE, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        if !ended {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end within {DEADLINE:?}\n{}", self.log());
        }
        status.unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until `condition` holds, or fails with the mirror's rows and log.
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        self.until_within(DEADLINE, what, condition);
    }

    pub(crate) fn until_within(&self, deadline: Duration, what: &str, condition: impl Fn(&Self) -> bool) {
        if holds_within(deadline, || condition(self)) {
            return;
        }
        panic!("within {deadline:?} not seen: {what}\n{}", self.account());
    }

    /// The mirror's feeds, events and log, for a failed test.
    pub(crate) fn account(&self) -> String {
        let feeds = self.rows("SELECT name, mode, health, reason, cursor, items, tombstones, failures FROM feeds");
        let events = self.rows("SELECT at, feed, what, detail FROM events");
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        let lines = |rows: Vec<Vec<String>>| rows.iter().map(|row| row.join(" | ")).collect::<Vec<_>>().join("\n");
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("--- feeds\n{}\n--- events\n{}\n--- log\n{tail}", lines(feeds), lines(events))
    }

    fn database(&self) -> Option<Connection> {
        let db = Connection::open_with_flags(self.path("mirror.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        db.busy_timeout(Duration::from_secs(5)).ok()?;
        Some(db)
    }

    /// A query's rows as text; none while there is no database yet.
    pub(crate) fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let Some(db) = self.database() else { return Vec::new() };
        let Ok(mut statement) = db.prepare(sql) else { return Vec::new() };
        let columns = statement.column_count();
        let text = |row: &rusqlite::Row<'_>, i| {
            let value: rusqlite::types::Value = row.get(i)?;
            Ok(match value {
                rusqlite::types::Value::Null => String::new(),
                rusqlite::types::Value::Integer(n) => n.to_string(),
                rusqlite::types::Value::Real(n) => n.to_string(),
                rusqlite::types::Value::Text(text) => text,
                rusqlite::types::Value::Blob(bytes) => format!("{bytes:?}"),
            })
        };
        let rows = statement.query_map([], |row| (0..columns).map(|i| text(row, i)).collect()).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// The first column of a query's rows.
    pub(crate) fn column(&self, sql: &str) -> Vec<String> {
        self.rows(sql).into_iter().map(|mut row| row.swap_remove(0)).collect()
    }

    /// A query's only number; 0 while there is no database yet.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        self.column(sql).first().map_or(0, |text| text.parse().unwrap())
    }

    pub(crate) fn row(&self, name: &str) -> FeedRow {
        let sql = format!(
            "SELECT mode, health, reason, cursor, items, tombstones, failures, level_at, polled_at,
                    (julianday(next_poll_at) - julianday('now')) * 86400 FROM feeds WHERE name = '{name}'"
        );
        let Some(row) = self.rows(&sql).into_iter().next() else { return FeedRow::default() };
        let number = |text: &str| text.parse().unwrap();
        FeedRow {
            mode: row[0].clone(),
            health: row[1].clone(),
            reason: row[2].clone(),
            cursor: row[3].clone(),
            items: number(&row[4]),
            tombstones: number(&row[5]),
            failures: number(&row[6]),
            level_at: row[7].clone(),
            polled_at: row[8].clone(),
            next_poll_in_s: row[9].parse().unwrap_or(0.0),
        }
    }

    pub(crate) fn until_health(&self, name: &str, health: &str, word: &str) -> FeedRow {
        self.until(&format!("{name} {health}, {word}"), |mirror| {
            let row = mirror.row(name);
            row.health == health && (word.is_empty() || row.word() == word)
        });
        self.row(name)
    }

    /// Waits until the feed was level at least once, and is healthy.
    pub(crate) fn until_level(&self, name: &str) -> FeedRow {
        self.until(&format!("{name} level"), |mirror| {
            let row = mirror.row(name);
            row.mode == "poll" && row.health == "ok" && !row.level_at.is_empty()
        });
        self.row(name)
    }

    /// The rows of `live_items` of a feed.
    pub(crate) fn live(&self, feed: &str) -> LiveItems {
        let sql = format!("SELECT id, modified, data FROM live_items WHERE feed = '{feed}'");
        let rows = self.rows(&sql);
        rows.into_iter().map(|row| (row[0].clone(), (row[1].parse().unwrap(), row[2].clone()))).collect()
    }

    pub(crate) fn ids(&self, feed: &str) -> Vec<String> {
        self.column(&format!("SELECT id FROM live_items WHERE feed = '{feed}' ORDER BY id"))
    }

    pub(crate) fn finding(&self, feed: &str, rule: &str) -> i64 {
        self.number(&format!("SELECT total(count) FROM findings WHERE feed = '{feed}' AND rule = '{rule}'"))
    }

    pub(crate) fn events(&self, feed: &str, what: &str) -> Vec<String> {
        self.column(&format!("SELECT detail FROM events WHERE feed = '{feed}' AND what = '{what}'"))
    }

    /// Names of the mirror's files, log included, that hold these bytes, except the named ones.
    pub(crate) fn holds_bytes(&self, bytes: &str, aside: &[&str]) -> Vec<String> {
        let mut holding = Vec::new();
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let text = fs::read(self.path(&name)).unwrap();
            if !aside.contains(&name.as_str()) && text.windows(bytes.len()).any(|window| window == bytes.as_bytes()) {
                holding.push(name);
            }
        }
        holding
    }

    /// The ops listener's address, if it has been logged.
    pub(crate) fn ops_address(&self) -> Option<String> {
        let log = self.log();
        let line = log.lines().rev().find_map(|line| Some(line.split_once(" ops=")?.1))?;
        Some(line.split_whitespace().next()?.trim_matches('"').to_owned())
    }

    /// Status and whole response of a GET at the ops listener; 0 while nothing listens there.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let Some(address) = self.ops_address() else { return (0, String::new()) };
        let Ok(mut connection) = TcpStream::connect(&address) else { return (0, String::new()) };
        // HTTP/1.0: the answer comes in one piece.
        write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        (answer.split_whitespace().nth(1).unwrap().parse().unwrap(), answer)
    }

    /// The most memory the process ever held, in bytes.
    pub(crate) fn most_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

impl Drop for MirrorProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
