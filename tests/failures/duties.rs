//! A duty is over when it is done, and a changed clock does not decide about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, until};

/// Changes the file of a mirror that isn't running.
fn change(mirror: &MirrorProcess, sql: &str) {
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_feed_that_was_away_too_long_is_read_anew_though_its_catching_up_was_cut_short() {
    // Given: a feed that has much to catch up with after a long downtime, and hangs in the middle of it.
    let (test_feed, hang) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
    let (serving, hanging) = (Arc::clone(&test_feed), Arc::clone(&hang));
    let publisher = ScriptedPublisher::start(move |request| {
        let hangs = request.query().contains("from=10&") && hanging.load(Ordering::SeqCst);
        if hangs { Reply::silence() } else { serving.page(request) }
    });
    let mut mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), r#"retention = "1h""#).start();
    mirror.until_level("f");
    assert!(mirror.stop().success());
    test_feed.forget("id-2");
    for n in 0..8 {
        test_feed.put(&format!("new-{n}"));
    }
    change(&mirror, "UPDATE feed SET polled_at = polled_at - 7200000");
    hang.store(true, Ordering::SeqCst);
    mirror.start_again();
    until("it hangs", || publisher.requests().iter().any(|request| request.query().contains("from=10&")));
    mirror.until("pages before are written", |mirror| mirror.row("f").cursor.contains("from=10&"));

    // When
    mirror.kill();
    hang.store(false, Ordering::SeqCst);
    mirror.start_again();

    // Then
    mirror.until("resynced", |mirror| !mirror.events("f", "resync-done").is_empty());
    assert_eq!(mirror.live("f"), test_feed.live());
    assert_eq!(mirror.column("SELECT id FROM items WHERE swept"), ["id-2"]);
}

#[test]
fn a_time_in_the_future_is_due_and_holds_no_resync_back() {
    // Given: a resync at a time in the future, because the clock was wrong.
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), r#"resync.every = "1h""#).start();
    mirror.until_level("f");
    assert!(mirror.stop().success());
    change(&mirror, "UPDATE feed SET read_anew_at = read_anew_at + 864000000");

    // When
    mirror.start_again();

    // Then: once.
    mirror.until("resynced", |mirror| !mirror.events("f", "resync-done").is_empty());
    let polled = mirror.row("f").polled_at;
    mirror.until("polled on", |mirror| mirror.row("f").polled_at > polled);
    assert_eq!(mirror.events("f", "resync-began").len(), 1);
}

#[test]
fn a_feed_that_is_purged_and_resumed_is_read_once() {
    // Given: a feed whose resync is due soon.
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), r#"resync.every = "1h""#).start();
    mirror.until_level("f");
    assert!(mirror.stop().success());
    change(&mirror, "UPDATE feed SET read_anew_at = read_anew_at - 3590000");
    mirror.start_again();

    // When
    assert!(mirror.verb(&["purge", "f"]).status.success());
    change_waits(&mirror);
    let before = publisher.requests().len();
    assert!(mirror.verb(&["resume", "f"]).status.success());
    mirror.until("all of it", |mirror| mirror.live("f") == test_feed.live());
    until("polled on", || publisher.requests().len() > before + 10);

    // Then
    let anew = publisher.requests()[before..].iter().filter(|request| request.target == "/feed").count();
    assert_eq!(anew, 1);
    assert_eq!(mirror.events("f", "resync-began"), [""; 0]);
}

/// Waits until a time has come that was due within ten seconds.
fn change_waits(mirror: &MirrorProcess) {
    let late = "SELECT (julianday('now') - julianday(max(at))) * 86400 < 60 FROM events WHERE what = 'purged'";
    mirror.until("purged", |mirror| mirror.number(late) == 1);
}

#[test]
fn a_clock_that_is_set_ahead_purges_no_gone_feed() {
    // Given: a feed gone a moment ago, though the file's times say long ago.
    let (test_feed, gone) = (TestFeed::of(3, 2), Arc::new(AtomicBool::new(false)));
    let (serving, removed) = (Arc::clone(&test_feed), Arc::clone(&gone));
    let publisher = ScriptedPublisher::start(move |request| match removed.load(Ordering::SeqCst) {
        true => Reply::status(410),
        false => serving.page(request),
    });
    let mut mirror =
        MirrorProcess::new().feed_with("f", &publisher.url("/feed"), r#"purge_gone_after = "30m""#).start();
    mirror.until_level("f");
    gone.store(true, Ordering::SeqCst);
    mirror.until_health("f", "gone", "http-410");
    assert!(mirror.stop().success());
    change(&mirror, "UPDATE endpoint SET since = since - 864000000");
    mirror.start_again();

    // When
    let before = publisher.requests().len();
    assert!(mirror.verb(&["poll-now", "f"]).status.success());
    until("asked", || publisher.requests().len() > before);

    // Then
    let failures = mirror.number("SELECT failures FROM feeds");
    mirror.until("noted", |mirror| {
        mirror.number("SELECT failures FROM feeds") > failures || mirror.row("f").failures > 1
    });
    assert_eq!((mirror.row("f").health.as_str(), mirror.row("f").items), ("gone", 3));
}

#[test]
fn a_url_whose_query_changes_is_asked_for_at_once_where_the_feed_was() {
    // Given: a publisher that requires a new key, and answers the old one with an error.
    let (test_feed, changed) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
    let (serving, rotated) = (Arc::clone(&test_feed), Arc::clone(&changed));
    let publisher = ScriptedPublisher::start(move |request| {
        let key = if rotated.load(Ordering::SeqCst) { "key=new" } else { "key=old" };
        if !request.query().contains(key) {
            return Reply::status(400);
        }
        let json = serving.json(request);
        Reply::page(json.replace("/feed?from=", &format!("/feed?{key}&from=")))
    });
    let mut mirror = MirrorProcess::running("f", &publisher.url("/feed?key=old"));
    mirror.until_level("f");
    assert!(mirror.stop().success());

    // When
    changed.store(true, Ordering::SeqCst);
    mirror.set_feed("f", &publisher.url("/feed?key=new"), "");
    let before = publisher.requests().len();
    mirror.start_again();
    test_feed.put("after");

    // Then: from its cursor, not from its beginning.
    mirror.until("the new one", |mirror| mirror.live("f") == test_feed.live());
    assert!(
        publisher.requests()[before..]
            .iter()
            .all(|request| request.query().contains("key=new&from=6") || request.query().contains("key=new&from=7"))
    );
}

#[test]
fn a_next_that_is_too_long_is_not_followed_and_its_pages_items_are_taken() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match request.query() {
        "" => Reply::page(page(&[item("a", 1)], "/feed?p=1")),
        _ => Reply::page(page(&[item("b", 2)], &format!("/feed?p={}", "x".repeat(70_000)))),
    });

    // When
    let mirror = MirrorProcess::running("f", &publisher.url("/feed"));

    // Then
    let row = mirror.until_health("f", "retrying", "long-next");
    assert_eq!((row.cursor, mirror.ids("f")), (publisher.url("/feed?p=1"), vec!["a".to_owned(), "b".to_owned()]));
    assert!(row.reason.len() < 200, "{}", row.reason);
}
