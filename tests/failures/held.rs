//! Nobody holds shared resources: orders, systemd's watchdog and other feeds go on while a publisher hangs or the
//! database is locked.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rusqlite::Connection;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, until};

/// How long an operator waits for an order at most, and how long the program that gives it takes to start.
const SOON: Duration = Duration::from_millis(2_000 + 1_000);

/// Receives the notifications to systemd.
pub(crate) struct NotifySocket(Arc<Mutex<Vec<String>>>);

impl NotifySocket {
    /// Requires a watchdog notification every 300 ms.
    pub(crate) fn of(mirror: MirrorProcess) -> (Self, MirrorProcess) {
        let path = mirror.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&lines);
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                telling.lock().unwrap().extend(text.lines().map(str::to_owned));
            }
        });
        let mirror = mirror.env("NOTIFY_SOCKET", path.to_str().unwrap()).env("WATCHDOG_USEC", "900000");
        (Self(lines), mirror)
    }

    pub(crate) fn count(&self, wanted: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|line| line.starts_with(wanted)).count()
    }
}

pub(crate) fn lock(mirror: &MirrorProcess) -> Connection {
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    db
}

/// The answer to an order, which must come in time.
fn ordered(mirror: &MirrorProcess, order: &[&str]) -> String {
    let began = Instant::now();
    let output = mirror.command(order).output().unwrap();
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{order:?}: {words}");
    assert!(began.elapsed() < SOON, "{order:?} took {:?}", began.elapsed());
    words
}

fn ready(mirror: &MirrorProcess) -> (u16, String) {
    mirror.get("/readyz")
}

#[test]
fn while_the_database_is_locked_orders_are_accepted_and_systemd_gets_its_signs_of_life() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror = MirrorProcess::new().feed("a", &publisher.url("/a")).feed("b", &publisher.url("/b"));
    let (systemd, mirror) = NotifySocket::of(mirror);
    let mut mirror = mirror.start();
    mirror.until_level("a");
    mirror.until_level("b");

    // When
    let locked = lock(&mirror);
    mirror.until("not ready", |mirror| ready(mirror).0 == 503);
    assert!(ready(&mirror).1.contains("locked"), "{}", ready(&mirror).1);

    // Then: orders that need no store are carried out, and the rest accepted.
    assert!(ordered(&mirror, &["poll-now", "b"]).contains("asked now"));
    assert!(ordered(&mirror, &["pause", "a"]).contains("accepted"));
    assert!(ordered(&mirror, &["purge", "b", "--yes"]).contains("accepted"));
    mirror.signal(Signal::SIGHUP);
    let signs = systemd.count("WATCHDOG=1");
    until("signs of life", || systemd.count("WATCHDOG=1") > signs + 10);
    assert_eq!(mirror.number("SELECT count(*) FROM events WHERE what = 'restarted'"), 0);

    // When
    drop(locked);

    // Then
    mirror.until_health("a", "paused", "paused");
    mirror.until("purged", |mirror| !mirror.events("b", "purged").is_empty());
    mirror.until("ready", |mirror| ready(mirror).0 == 200);
    assert!(mirror.stop().success());
}

/// A thread of the daemon that is stopped, as by a disk that no longer answers, while the other threads run on. It
/// continues when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn thread(mirror: &MirrorProcess, name: &str) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{}/task", mirror.pid())).unwrap();
        let threads = threads.map(|thread| thread.unwrap().path());
        let is_named =
            |thread: &std::path::PathBuf| std::fs::read_to_string(thread.join("comm")).unwrap().trim() == name;
        let number = |thread: std::path::PathBuf| thread.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let found: Vec<i32> = threads.filter(is_named).map(number).collect();
        let [thread] = found[..] else { panic!("one thread is called {name}, not {found:?}") };
        let thread = Pid::from_raw(thread);
        ptrace::attach(thread).expect("a child can be traced");
        let stopped = Self(thread);
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

#[test]
fn a_writer_that_is_held_makes_the_mirror_unready_by_its_own_age() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let (systemd, mirror) = NotifySocket::of(MirrorProcess::new().feed("a", &publisher.url("/a")));
    let mut mirror = mirror.start();
    mirror.until_level("a");
    let says_ready = |mirror: &MirrorProcess, ready: &str| {
        mirror.get("/metrics").1.contains(&format!("\nfeedmirror_ready {ready}\n"))
    };
    assert!(ready(&mirror).0 == 200 && says_ready(&mirror, "1"));

    // When: writes are not refused, but don't happen.
    let began = Instant::now();
    let writer = Stopped::thread(&mirror, "writer");
    test_feed.put("new");

    // Then
    mirror.until("not ready", |mirror| ready(mirror).0 == 503);
    assert!(began.elapsed() > Duration::from_secs(8), "a large commit is none: {:?}", began.elapsed());
    let message = ready(&mirror).1;
    assert!(message.contains("the database's writer is held: nothing was committed for over 10 s"), "{message}");
    assert!(says_ready(&mirror, "0"));
    assert_eq!(mirror.get("/healthz").0, 200);
    let signs = systemd.count("WATCHDOG=1");
    until("signs of life", || systemd.count("WATCHDOG=1") > signs + 3);
    mirror.until("its age", |mirror| ready(mirror).1.contains("for over 20 s"));

    // When
    drop(writer);

    // Then
    mirror.until("ready", |mirror| ready(mirror).0 == 200 && says_ready(mirror, "1"));
    mirror.until("the news", |mirror| mirror.live("a") == test_feed.live());
    assert!(mirror.stop().success());
}

#[test]
fn orders_to_many_records_are_accepted_while_the_database_is_locked_and_carried_out_though_nobody_waits() {
    // Given: two feeds with records in quarantine.
    let bad = |n: usize| format!(r#"{{"state":"odd","kind":"thing","id":"x{n}","modified":1}}"#);
    let bad: Vec<String> = (0..120).map(bad).collect();
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&bad, &format!("{}?at=1", request.path()))),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::new().feed("a", &publisher.url("/a")).feed("b", &publisher.url("/b")).start();
    mirror.until_level("a");
    mirror.until_level("b");
    let left = |feed: &str| format!("SELECT quarantine_rows FROM feed WHERE name = '{feed}'");
    assert_eq!((mirror.number(&left("a")), mirror.number(&left("b"))), (120, 120));
    let locked = lock(&mirror);

    // When: before the daemon knows that the database is locked, and after.
    let mut message = ordered(&mirror, &["quarantine", "retry", "--feed", "a"]);
    mirror.until("not ready", |mirror| ready(mirror).0 == 503);
    message += &ordered(&mirror, &["quarantine", "drop", "--feed", "b"]);

    // Then
    assert_eq!(message.matches("accepted").count(), 2, "{message}");

    // When
    drop(locked);

    // Then
    mirror.until("dropped", |mirror| mirror.number(&left("b")) == 0);
    mirror.until("told", |mirror| mirror.log().contains("120 records dropped"));
    mirror.until("told", |mirror| mirror.log().contains("still there: 120 records, the first: record "));
    assert_eq!(mirror.number(&left("a")), 120);
}

#[test]
fn a_daemon_started_on_a_locked_file_says_so_and_begins_when_it_can() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::running("a", &publisher.url("/a"));
    mirror.until_level("a");
    assert!(mirror.stop().success());
    let (systemd, mut mirror) = NotifySocket::of(mirror);
    let locked = lock(&mirror);
    let requests = publisher.requests().len();

    // When
    mirror.spawn();

    // Then
    until("READY", || systemd.count("READY=1") == 1);
    mirror.until("not ready", |mirror| ready(mirror).0 == 503);
    assert!(ready(&mirror).1.contains("locked"), "{}", ready(&mirror).1);
    until("signs of life", || systemd.count("WATCHDOG=1") >= 3);
    assert_eq!(publisher.requests().len(), requests, "nothing is read that could not be written");

    // When
    drop(locked);

    // Then
    mirror.until("ready", |mirror| ready(mirror).0 == 200);
    test_feed.put("new");
    mirror.until("it goes on", |mirror| mirror.live("a") == test_feed.live());
    assert!(mirror.stop().success());
}

#[test]
fn a_probe_of_a_first_page_that_hangs_keeps_no_order_and_no_other_feed() {
    // Given: one feed's cursor is dead, and its own URL does not answer.
    let publisher = ScriptedPublisher::start(|request| match (request.path(), request.query(), request.count) {
        ("/b", ..) => Reply::page(page(&[], &request.target)),
        ("/a", "", 1) => Reply::page(page(&[item("x", 1)], "/a?at=1")),
        ("/a", "", _) => Reply::silence(),
        _ if request.count < 3 => Reply::page(page(&[], "/a?at=1")),
        _ => Reply::status(404),
    });
    let mirror =
        MirrorProcess::new().http("per_host = 4").feed("a", &publisher.url("/a")).feed("b", &publisher.url("/b"));
    let (systemd, mirror) = NotifySocket::of(mirror);
    let mirror = mirror.start();
    mirror.until_level("b");
    mirror.until("it is probed", |_| publisher.requests().iter().filter(|request| request.target == "/a").count() > 1);

    // When
    let polled = publisher.count("/b");
    assert!(ordered(&mirror, &["poll-now", "b"]).contains("asked now"));
    let words = ordered(&mirror, &["pause", "a"]);

    // Then
    assert!(words.contains("is paused"), "{words}");
    assert_eq!(mirror.row("a").health, "paused");
    until("the other one is asked", || publisher.count("/b") > polled);
    let signs = systemd.count("WATCHDOG=1");
    until("signs of life", || systemd.count("WATCHDOG=1") > signs + 3);
}

#[test]
fn a_purge_hides_everything_at_once_and_a_resume_waits_for_the_rest() {
    // Given
    const ITEMS: usize = 3_000;
    let items: Vec<String> = (0..ITEMS).map(|n| item(&format!("i{n}"), 1)).collect();
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&items, "/a?at=1")),
        _ => Reply::page(page(&[], "/a?at=1")),
    });
    let mut mirror = MirrorProcess::running("a", &publisher.url("/a"));
    mirror.until_level("a");
    let requests =
        |publisher: &ScriptedPublisher| publisher.requests().iter().filter(|request| request.target == "/a").count();
    assert_eq!((requests(&publisher), mirror.number("SELECT count(*) FROM live_items")), (1, ITEMS as i64));

    // When
    let words = ordered(&mirror, &["purge", "a", "--yes"]);

    // Then
    assert!(words.contains("is purged"), "{words}");
    for view in ["items", "live_items", "changes WHERE state <> 'purged'", "deliveries"] {
        assert_eq!(mirror.number(&format!("SELECT count(*) FROM {view}")), 0, "{view}");
    }
    assert_eq!(mirror.number("SELECT count(*) FROM changes WHERE state = 'purged'"), 1);
    mirror.until_health("a", "paused", "paused");

    // When: resumed at once, and killed before the rows are certainly gone.
    ordered(&mirror, &["resume", "a"]);
    mirror.kill();
    mirror.start_again();

    // Then: it is read anew, and no old row is left.
    mirror.until("read anew", |mirror| mirror.live("a").len() == ITEMS);
    mirror.until("all is gone", |mirror| mirror.number("SELECT count(*) FROM removal") == 0);
    // Once more where it was killed during the page.
    assert!((2..=3).contains(&requests(&publisher)), "asked {} times", requests(&publisher));
    assert_eq!(mirror.number("SELECT count(*) FROM item"), ITEMS as i64);
    assert!(mirror.stop().success());
    let verified = mirror.verb(&["verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}
