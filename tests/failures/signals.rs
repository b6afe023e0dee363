//! The process and its environment: reloads, refusals to start, and notifications to systemd.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page, until};

fn endless(request: &Request) -> Reply {
    let at: i64 = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
    let reply = Reply::page(page(&[item(&format!("i{at}"), at + 1)], &format!("?at={}", at + 1)));
    reply.after(Duration::from_millis(5))
}

/// A feed that never ends, `/still`, and others from the test feed.
fn publisher_of(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let serving = Arc::clone(test_feed);
    ScriptedPublisher::start(
        move |request| if request.path() == "/still" { endless(request) } else { serving.page(request) },
    )
}

/// Checks that the feed was neither begun anew nor sent any request twice.
fn assert_undisturbed(publisher: &ScriptedPublisher) {
    let twice: Vec<String> = publisher
        .requests_to("/still")
        .into_iter()
        .filter(|request| request.count > 1)
        .map(|request| request.target)
        .collect();
    assert_eq!(twice, [] as [&str; 0], "asked twice");
}

#[test]
fn sighup_adds_changes_and_removes_feeds_and_disturbs_no_other() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher_of(&test_feed);
    let mut mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed("still", &publisher.url("/still"))
        .feed("leaving", &publisher.url("/leaving"))
        .feed("changing", &publisher.url("/changing"))
        .start();
    mirror.until_level("leaving");
    let cursor = mirror.until_level("changing").cursor;
    let before = publisher.count("/changing");

    // When
    mirror.drop_feed("leaving");
    mirror.set_feed("changing", &publisher.url("/changing"), r#"headers = { X-New = "yes" }"#);
    mirror.set_feed("joining", &publisher.url("/joining"), "");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then
    mirror.until_level("joining");
    mirror.until_health("leaving", "removed", "removed");
    assert_eq!(mirror.number("SELECT count(*) FROM items WHERE feed = 'leaving'"), 5);
    assert!(mirror.live("leaving").is_empty());
    until("asked with the new header", || {
        publisher.requests_to("/changing")[before..].iter().any(|request| request.header("x-new") == Some("yes"))
    });
    assert_eq!(mirror.row("changing").cursor, cursor);
    assert_eq!(publisher.requests_to("/changing").iter().filter(|request| request.target == "/changing").count(), 1);
    let (gone_on, left) = (publisher.count("/still"), publisher.count("/leaving"));
    until("the undisturbed one goes on", || publisher.count("/still") > gone_on + 20);
    assert_undisturbed(&publisher);
    assert_eq!(publisher.count("/leaving"), left);

    // When it comes back
    test_feed.put("meanwhile");
    mirror.set_feed("leaving", &publisher.url("/leaving"), "");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then: from its cursor.
    mirror.until("level again", |mirror| mirror.live("leaving") == test_feed.live());
    assert_eq!(publisher.requests_to("/leaving").iter().filter(|request| request.target == "/leaving").count(), 1);
    assert_undisturbed(&publisher);
}

#[test]
fn a_file_that_run_would_refuse_changes_nothing_and_says_so() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher_of(&test_feed);
    let mut mirror =
        MirrorProcess::new().feed("still", &publisher.url("/still")).feed("other", &publisher.url("/other")).start();
    mirror.until_level("other");

    for broken in ["[feeds.", "[pol]\nmin = \"8s\"\n"] {
        // When: the file drops a feed and has a mistake.
        let refusals_before = mirror.log().matches("nothing is changed").count();
        mirror.write("config.toml", broken);
        mirror.signal(Signal::SIGHUP);

        // Then
        mirror.until("it says so", |mirror| mirror.log().matches("nothing is changed").count() > refusals_before);
        test_feed.put("new");
        mirror.until("both go on", |mirror| mirror.live("other") == test_feed.live());
        let count = publisher.count("/still");
        until("the other one too", || publisher.count("/still") > count + 5);
    }
    assert_undisturbed(&publisher);
    assert!(mirror.is_running());
    assert!(mirror.log().contains("did you mean"), "{}", mirror.log());
}

#[test]
fn one_feeds_bad_settings_stop_no_other() {
    // Given: before and after a reload.
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher_of(&test_feed);
    let mut mirror = MirrorProcess::new()
        .feed("sound", &publisher.url("/sound"))
        .feed_with("secretless", &publisher.url("/a"), r#"headers = { X-Key = { file = "not-there" } }"#)
        .feed("urlless", "gopher://127.0.0.1/")
        .start();

    // Then
    mirror.until_level("sound");
    for (name, named) in [("secretless", "not-there"), ("urlless", "url")] {
        let row = mirror.until_health(name, "failed", "settings");
        assert!(row.reason.contains(named), "{}", row.reason);
    }
    assert_eq!(publisher.count("/a"), 0);

    // When corrected
    mirror.write("not-there", "now it is");
    mirror.set_feed("urlless", &publisher.url("/b"), "");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then
    mirror.until_level("secretless");
    mirror.until_level("urlless");
    assert_eq!(mirror.live("urlless"), test_feed.live());
}

#[test]
fn whatever_run_cannot_use_has_its_own_exit_code_and_says_what() {
    let publisher = ScriptedPublisher::start(|request| Reply::page(page(&[], &request.target)));
    let refused = |mirror: &MirrorProcess, verb: &[&str]| {
        let output = mirror.verb(verb);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    // A second daemon, also where the first one has its listener, and `sync` beside a daemon: 5.
    let running = MirrorProcess::running("a", &publisher.url("/a"));
    let used_address = running.ops_address().unwrap();
    for verb in [&["run"][..], &["run", "--listen", &used_address], &["sync"]] {
        let (code, words) = refused(&running, verb);
        assert_eq!(code, Some(5), "{verb:?}: {words}");
        assert!(words.contains("mirror.db"), "{words}");
    }

    // A listener's address that is in use, of a mirror that no process writes: 1.
    let other = MirrorProcess::new().feed("a", &publisher.url("/a"));
    let (code, words) = refused(&other, &["run", "--listen", &used_address]);
    assert_eq!((code, words.contains(&used_address)), (Some(1), true), "{words}");

    // A foreign or damaged database: 4, and the file stays as it was.
    let foreign = MirrorProcess::new().feed("a", &publisher.url("/a"));
    rusqlite::Connection::open(foreign.path("mirror.db"))
        .and_then(|db| db.execute_batch("PRAGMA application_id = 77; CREATE TABLE theirs (x)"))
        .unwrap();
    let garbage = MirrorProcess::new().feed("a", &publisher.url("/a"));
    garbage.write("mirror.db", &"this is no database at all\n".repeat(500));
    for mirror in [&foreign, &garbage] {
        let before = fs::read(mirror.path("mirror.db")).unwrap();
        let (code, words) = refused(mirror, &["run"]);
        assert_eq!(code, Some(4), "{words}");
        assert!(words.contains("mirror.db"), "{words}");
        assert_eq!(fs::read(mirror.path("mirror.db")).unwrap(), before);
    }

    // A configuration with mistakes: 2, all of them named.
    let wrong = MirrorProcess::new().http("per_hots = 3").tables("[resync]\nmax_sweep = 7\n");
    let (code, words) = refused(&wrong, &["run"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("per_hots") && words.contains("per_host") && words.contains("max_sweep"), "{words}");
    let unreadable = MirrorProcess::new().tables("[feeds");
    let (code, words) = refused(&unreadable, &["run"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("line"), "{words}");
}

#[test]
fn systemd_is_told_of_readiness_reloads_life_and_the_end() {
    // Given
    let publisher = ScriptedPublisher::start(|request| Reply::page(page(&[], &request.target)));
    let mirror = MirrorProcess::new().feed("a", &publisher.url("/a"));
    let path = mirror.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let notifications = Arc::new(Mutex::new(Vec::<String>::new()));
    let notifier = Arc::clone(&notifications);
    std::thread::spawn(move || {
        let mut message = [0; 4096];
        while let Ok(length) = socket.recv(&mut message) {
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            notifier.lock().unwrap().extend(text.lines().map(str::to_owned));
        }
    });
    let count = |wanted: &str| notifications.lock().unwrap().iter().filter(|line| line.starts_with(wanted)).count();

    // When
    let mut mirror = mirror.env("NOTIFY_SOCKET", path.to_str().unwrap()).env("WATCHDOG_USEC", "600000").start();

    // Then
    until("READY", || count("READY=1") == 1);
    until("signs of life", || count("WATCHDOG=1") >= 3);
    assert_eq!((count("RELOADING=1"), count("STOPPING=1")), (0, 0));

    // When
    mirror.signal(Signal::SIGHUP);

    // Then: in this order, with the time that systemd asks for (sd_notify(3)).
    until("READY again", || count("READY=1") == 2);
    let lines = notifications.lock().unwrap().clone();
    let at = |wanted: &str| lines.iter().rposition(|line| line.starts_with(wanted)).unwrap();
    assert!(at("RELOADING=1") < at("READY=1"), "{lines:?}");
    assert_eq!(count("MONOTONIC_USEC="), 1);

    // When
    assert!(mirror.stop().success());

    // Then
    until("STOPPING", || count("STOPPING=1") == 1);
    assert!(count("STATUS=") >= 1, "{:?}", notifications.lock().unwrap());
}
