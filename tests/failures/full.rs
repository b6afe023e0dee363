//! A full disk or a locked file when the mirror starts: a daemon waits and says so, `sync` ends and says why (DESIGN
//! §2, rule 7).

use std::sync::Arc;

use crate::held::{NotifySocket, lock};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, until};

/// Takes all the space of the disk.
const FILL: &str = "{ head -c 8000000 /dev/zero > \"$0/filler\" 2>/dev/null; true; }";

fn publisher(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let serving = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request| serving.page(request))
}

/// A mirror that was level once, stopped, and moved to a full disk.
fn moved(publisher: &ScriptedPublisher) -> MirrorProcess {
    let mut mirror = MirrorProcess::running("a", &publisher.url("/a"));
    mirror.until_level("a");
    assert!(mirror.stop().success());
    let from = mirror.path("mirror.db").display().to_string();
    mirror.on_small_disk(&format!("cp {from} {from}.token \"$0\" && {FILL}"))
}

fn waits_for_room_and_begins(mirror: MirrorProcess, publisher: &ScriptedPublisher, test_feed: &TestFeed) {
    let (systemd, mut mirror) = NotifySocket::of(mirror);
    let requests = publisher.requests().len();

    // When
    mirror.write_config();
    mirror.spawn();

    // Then
    until("READY", || systemd.count("READY=1") == 1);
    mirror.until("not ready", |mirror| mirror.get("/readyz").0 == 503);
    let message = mirror.get("/readyz").1;
    assert!(message.contains("full") || message.contains("I/O"), "{message}");
    assert_eq!(mirror.get("/healthz").0, 200);
    until("signs of life", || systemd.count("WATCHDOG=1") >= 3);
    assert_eq!(publisher.requests().len(), requests, "nothing is read that could not be written");

    // When
    mirror.make_room();

    // Then
    mirror.until("ready", |mirror| mirror.get("/readyz").0 == 200);
    test_feed.put("new");
    mirror.until("the news", |mirror| mirror.get("/api/items").1.contains("\"new\""));
    mirror.until("a token", |mirror| {
        std::fs::exists(format!("/proc/{}/root{}", mirror.pid(), mirror.path("disk/mirror.db.token").display()))
            .unwrap()
    });
    assert!(mirror.stop().success());
}

#[test]
fn a_daemon_started_on_a_full_disk_says_so_and_begins_when_there_is_room() {
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher(&test_feed);
    let mirror = moved(&publisher);

    waits_for_room_and_begins(mirror, &publisher, &test_feed);
}

#[test]
fn a_daemon_started_for_the_first_time_on_a_full_disk_begins_when_there_is_room() {
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher(&test_feed);
    let mirror = MirrorProcess::new().feed("a", &publisher.url("/a")).on_small_disk(FILL);

    waits_for_room_and_begins(mirror, &publisher, &test_feed);
}

/// Exit code 4, with the reason in the message.
fn is_unusable(mirror: &MirrorProcess, words: &[&str]) {
    let ran = mirror.verb(&["sync"]);
    let message = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(4), "{message}");
    assert!(
        message.contains("mirror.db can't be used for now") && words.iter().any(|word| message.contains(word)),
        "{message}"
    );
}

#[test]
fn sync_on_a_full_disk_ends_and_says_why() {
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher(&test_feed);
    let mirror = moved(&publisher);

    is_unusable(&mirror, &["full", "I/O"]);
}

#[test]
fn sync_that_fills_the_disk_ends_and_says_why() {
    // Given: space for some of the items.
    let publisher = ScriptedPublisher::start(|request| {
        let large = item("x", 1).replace("x@1", &"large".repeat(50_000));
        let at: usize = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
        let large = large.replace("\"id\":\"x\"", &format!("\"id\":\"x{at}\""));
        Reply::page(page(&[large], &format!("/a?at={}", at + 1)))
    });
    let mirror = MirrorProcess::new().feed("a", &publisher.url("/a")).on_small_disk("true");

    is_unusable(&mirror, &["full"]);
}

#[test]
fn sync_on_a_locked_file_ends_and_says_why() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let publisher = publisher(&test_feed);
    let mut mirror = MirrorProcess::running("a", &publisher.url("/a"));
    mirror.until_level("a");
    assert!(mirror.stop().success());
    let requests = publisher.requests().len();
    let _locked = lock(&mirror);

    // Then
    is_unusable(&mirror, &["locked"]);
    assert_eq!(publisher.requests().len(), requests);
}
