//! The daemon against a publisher that misbehaves in every way that heals, killed now and then: in the end the mirror
//! says what the publisher says. Two minutes; `SOAK_SECONDS=3600` for an hour (docs/performance.md has its result).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod publisher;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use publisher::SoakPublisher;
use rusqlite::{Connection, OpenFlags};
use serde_json::value::RawValue;

const FEEDS: usize = 8;
/// What the publisher shows when it posts.
const SECRET: &str = "soak-secret";
/// After the last fault everything must be right within this time: a look-back and a resync included.
const EQUAL_TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn the_mirror_equals_the_publisher_whatever_happens_between() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(120, |text| text.parse().expect("seconds"));
    let folder = tempfile::tempdir().unwrap();
    let webhooks = free_address();
    let publisher = SoakPublisher::start(FEEDS, &format!("http://{webhooks}/webhooks"), SECRET);
    let mirror = SoakMirror::new(folder.path(), &publisher, &webhooks);

    let kills = run_and_kill(&mirror, Duration::from_secs(seconds));

    publisher.post("/_freeze");
    publisher.post("/_calm");
    let last = mirror.start();
    let differences = wait_until_equal(&mirror, &publisher);
    let health = mirror.rows("SELECT name || ': ' || health || ' ' || coalesce(reason, '') FROM feeds");
    drop(last);
    let events =
        || mirror.rows("SELECT coalesce(feed, '') || ': ' || what || ' ' || detail FROM events WHERE what LIKE 'res%'");
    assert!(differences.is_empty(), "{kills} kills; {health:#?}\n{:#?}\n{differences:#?}", events());
    every_fault_fired(&publisher, seconds);
    the_file_is_sound(&mirror);
    assert!(kills >= seconds / 20, "only {kills} kills");
    push_delivered(&mirror);
}

/// An address that was free a moment ago: the daemon takes it again and again.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Kills the daemon after 2 to 9 seconds each, and starts it again.
fn run_and_kill(mirror: &SoakMirror, time: Duration) -> u64 {
    let began = Instant::now();
    let mut kills = 0;
    while began.elapsed() < time {
        let mut daemon = mirror.start();
        // Different each time, the same in each run.
        let lives = Duration::from_millis(2_000 + (kills * 2_654_435_761 % 7_000));
        let died = wait_for_end(&mut daemon.0, lives);
        assert!(!died, "the daemon ended by itself: {}", mirror.log());
        drop(daemon);
        kills += 1;
    }
    kills
}

/// Whether it ended by itself within `time`.
fn wait_for_end(child: &mut Child, time: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < time {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        pause();
    }
    false
}

#[expect(clippy::disallowed_methods, reason = "the one loop that waits for a condition")]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Waits until nothing differs; what still does at the deadline.
fn wait_until_equal(mirror: &SoakMirror, publisher: &SoakPublisher) -> Vec<String> {
    let began = Instant::now();
    loop {
        let differences: Vec<String> =
            publisher.names().iter().flat_map(|feed| compare(mirror, publisher, feed)).take(10).collect();
        if differences.is_empty() || began.elapsed() > EQUAL_TIMEOUT {
            return differences;
        }
        pause();
    }
}

/// What the publisher says is there, as it says it; what it no longer lists is at most a tombstone.
fn compare(mirror: &SoakMirror, publisher: &SoakPublisher, feed: &str) -> Vec<String> {
    let truth = publisher.published_items(feed);
    let mut held: BTreeMap<(String, String), SoakItem> = mirror.items(feed);
    let mut differences = Vec::new();
    for item in &truth {
        let id = item.id.as_str().map_or_else(|| item.id.to_string(), str::to_owned);
        match held.remove(&(item.kind.clone(), id.clone())) {
            None => differences.push(format!("{feed}: {id} is missing")),
            Some(held) => {
                let right = same_number(&held.modified, &item.modified)
                    && held.state == item.state.to_lowercase()
                    && held.data.as_deref() == item.data.as_deref().map(RawValue::get);
                if !right {
                    differences.push(format!("{feed}: {id} is {held:?}, not {item:?}"));
                }
            }
        }
    }
    let live = held.into_iter().filter(|(_, held)| held.state == "updated");
    differences
        .extend(live.map(|(key, held)| format!("{feed}: {key:?} is live, and the publisher has none: {held:?}")));
    differences
}

/// Some items come as text or with a fraction: one value in several spellings.
fn same_number(held: &str, said: &serde_json::Value) -> bool {
    let said = said.as_str().map_or_else(|| said.to_string(), str::to_owned);
    held.trim_end_matches(".0") == said.trim_end_matches(".0")
}

fn every_fault_fired(publisher: &SoakPublisher, seconds: u64) {
    let fired = publisher.fault_counts();
    let listed = Command::new(env!("CARGO_BIN_EXE_feedmirror")).args(["simulate", "--list-faults"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let kinds = ["heals", "stream", "pushed"].map(Some);
    let healing = listed.lines().filter(|line| kinds.contains(&line.split_whitespace().nth(1)));
    let silent: Vec<&str> = healing
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| fired.get(*name).is_none_or(|count| *count == 0))
        .collect();
    assert!(silent.is_empty(), "planned, and never seen in {seconds} s: {silent:?}");
    println!("faults fired: {fired:?}");
}

/// What was equal in the end came by push too, and not by polls alone.
fn push_delivered(mirror: &SoakMirror) {
    let idle =
        mirror.rows("SELECT feed || ' ' || transport FROM endpoints WHERE transport <> 'poll' AND delivered = 0");
    assert_eq!(idle, Vec::<String>::new(), "endpoints that brought nothing");
}

fn the_file_is_sound(mirror: &SoakMirror) {
    assert_eq!(mirror.rows("PRAGMA integrity_check"), ["ok"]);
    let wrong = mirror.rows(
        "SELECT name FROM feeds f WHERE items <> (SELECT count(*) FROM items i WHERE i.feed = f.name AND state = 'updated')
            OR tombstones <> (SELECT count(*) FROM items i WHERE i.feed = f.name AND state = 'deleted')",
    );
    assert_eq!(wrong, Vec::<String>::new(), "counts that are wrong");
    let twice = mirror.rows("SELECT feed || id FROM items GROUP BY feed, kind, id HAVING count(*) > 1");
    assert_eq!(twice, Vec::<String>::new(), "items held twice");
    let data = mirror.rows("SELECT id FROM items WHERE state = 'deleted' AND data IS NOT NULL");
    assert_eq!(data, Vec::<String>::new(), "tombstones with data");
}

#[derive(Debug)]
struct SoakItem {
    modified: String,
    state: String,
    data: Option<String>,
}

/// The real daemon over one file.
struct SoakMirror {
    config: PathBuf,
    database: PathBuf,
    log: PathBuf,
}

/// Killed with SIGKILL when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl SoakMirror {
    /// Some feeds have no push, some a stream, some take posts, some both.
    fn new(folder: &Path, publisher: &SoakPublisher, webhooks: &str) -> Self {
        let mut text = "database = \"soak.db\"\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n\
             [poll]\nmin = \"100ms\"\nmax = \"1s\"\nlookback = \"20s\"\n\
             [resync]\nevery = \"40s\"\n\
             [retry]\nmin = \"50ms\"\nmax = \"500ms\"\n\
             [http]\nper_host = 8\nread_timeout = \"1s\"\npage_timeout = \"3s\"\nmax_page_bytes = \"8MiB\"\n\
             [push]\nprove_after = \"1s\"\naudit = \"2s\"\ngrace = \"500ms\"\n"
            .to_owned();
        text.push_str(&format!("[webhooks]\nlisten = \"{webhooks}\"\n"));
        for (n, feed) in publisher.names().iter().enumerate() {
            let url = publisher.url(feed);
            text.push_str(&format!("[feeds.{feed}]\nurl = \"{url}\"\n"));
            if n % 4 == 1 || n % 4 == 3 {
                text.push_str(&format!("sse.url = \"{url}/stream\"\n"));
            }
            if n % 4 >= 2 {
                text.push_str("webhook = { secret_file = \"secret\" }\n");
            }
        }
        std::fs::write(folder.join("secret"), SECRET).unwrap();
        let config = folder.join("soak.toml");
        std::fs::write(&config, text).unwrap();
        Self { config, database: folder.join("soak.db"), log: folder.join("soak.log") }
    }

    fn start(&self) -> Daemon {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
        command.arg("--config").arg(&self.config).arg("run").stdout(Stdio::null()).stderr(log);
        Daemon(command.spawn().unwrap())
    }

    /// Its last lines.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn open(&self) -> Option<Connection> {
        Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()
    }

    fn rows(&self, sql: &str) -> Vec<String> {
        let db = self.open().expect("a database");
        let mut statement = db.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn items(&self, feed: &str) -> BTreeMap<(String, String), SoakItem> {
        let db = self.open().expect("a database");
        let sql = "SELECT kind, id, CAST(modified AS TEXT), state, data FROM items WHERE feed = ?1";
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([feed], |row| {
            let held = SoakItem { modified: row.get(2)?, state: row.get(3)?, data: row.get(4)? };
            Ok(((row.get(0)?, row.get(1)?), held))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }
}
