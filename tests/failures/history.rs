//! A feed's past: items that arrive behind the cursor, a publisher that went back, and a feed that was not read for too
//! long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, until};

#[test]
fn what_was_committed_late_behind_the_cursor_is_found_by_looking_back() {
    // Given
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror = MirrorProcess::new().feed_with("late", &publisher.url("/feed"), r#"poll.lookback = "500ms""#).start();
    mirror.until_level("late");
    test_feed.put("newest");
    mirror.until("the cursor moves on", |mirror| mirror.row("late").cursor.contains("newest"));
    let cursor = mirror.row("late").cursor;

    // When: two transactions that began before are committed only now (RPDE 1.0, "race conditions").
    test_feed.put_at("behind", 4);
    test_feed.put_at("id-0", 5);

    // Then
    mirror.until("found", |mirror| mirror.live("late") == test_feed.live());
    assert_eq!(mirror.row("late").cursor, cursor);
    mirror.until("it is told", |mirror| !mirror.events("late", "late-items").is_empty());
    assert_eq!(mirror.row("late").health, "ok");
}

#[test]
fn a_publisher_that_lost_its_list_is_suspect_and_nothing_is_removed_until_it_is_trusted_again() {
    // Given
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror =
        MirrorProcess::new().feed_with("replaced", &publisher.url("/feed"), r#"poll.lookback = "500ms""#).start();
    mirror.until_level("replaced");
    let before = mirror.live("replaced");

    // When: it answers as if it had never had anything.
    test_feed.clear();

    // Then: the cursor alone would never show it.
    let row = mirror.until_health("replaced", "suspect", "went-back");
    assert!(row.reason.contains("resync --trust-source"), "{}", row.reason);
    assert!(row.reason.contains(&publisher.url("/feed")), "{}", row.reason);
    assert_eq!((mirror.live("replaced"), row.tombstones), (before, 0));
    let level_at = row.level_at;
    mirror.until("it is polled on", |mirror| mirror.row("replaced").level_at > level_at);
    assert_eq!(mirror.row("replaced").health, "suspect");

    // When: the replacement fills up, with older values, and the operator trusts it.
    test_feed.put_at("id-1", 1);
    test_feed.put_at("other", 2);
    let order = mirror.verb(&["resync", "--trust-source", "replaced"]);

    // Then
    assert!(order.status.success(), "{order:?}");
    mirror.until_health("replaced", "ok", "");
    mirror.until("what it says now", |mirror| mirror.live("replaced") == test_feed.live());
    assert_eq!(mirror.number("SELECT count(*) FROM items WHERE state = 'deleted' AND swept"), 5);
}

#[test]
fn over_half_of_twenty_differing_items_older_than_the_mirror_is_suspect_and_half_is_not() {
    // Given: level feeds of 25 items; the pages at their cursors have `older` of twenty items older than the mirror.
    let restored = Arc::new(AtomicBool::new(false));
    let sending = Arc::clone(&restored);
    let publisher = ScriptedPublisher::start(move |request| {
        let older = if request.path() == "/half" { 10 } else { 11 };
        match request.query() {
            "" => {
                let items: Vec<String> = (0..25).map(|n| item(&format!("i{n}"), 1_000_000 + n)).collect();
                Reply::page(page(&items, &format!("{}?from=1000024", request.path())))
            }
            "from=1000024" if sending.load(Ordering::SeqCst) => {
                let modified = |n: i64| if n < older { 1_000 + n } else { 2_000_000 + n };
                let items: Vec<String> = (0..20).map(|n| item(&format!("i{n}"), modified(n))).collect();
                Reply::page(page(&items, &format!("{}?from=2000019", request.path())))
            }
            _ => Reply::page(page(&[], &request.target)),
        }
    });
    let mirror =
        MirrorProcess::new().feed("half", &publisher.url("/half")).feed("over", &publisher.url("/over")).start();
    mirror.until_level("half");
    mirror.until_level("over");

    // When
    restored.store(true, Ordering::SeqCst);

    // Then: both values are named; newer items were taken, older ones refused, none removed.
    let row = mirror.until_health("over", "suspect", "went-back");
    assert!(row.reason.contains("1010") && row.reason.contains("1000010"), "{}", row.reason);
    assert_eq!((row.items, row.tombstones), (25, 0));
    assert_eq!(mirror.events("over", "suspect").len(), 1);
    let (name, seen) = ("half", "SELECT count(*) FROM items WHERE feed = 'half' AND modified > 2000000");
    mirror.until("the rest of the other", |mirror| mirror.number(seen) == 10);
    mirror.until("level there", |mirror| mirror.row(name).cursor.ends_with("from=2000019"));
    assert_eq!(mirror.row(name).health, "ok");
    assert_eq!(mirror.number("SELECT count(*) FROM refusals WHERE feed = 'half'"), 10);
}

/// Waits until the file says that the feed was polled more than this many seconds ago.
fn until_away(mirror: &MirrorProcess, seconds: f64) {
    let away = format!("SELECT (julianday('now') - julianday(max(polled_at))) * 86400 > {seconds} FROM feeds");
    mirror.until("away for longer", |mirror| mirror.number(&away) == 1);
}

#[test]
fn a_feed_not_read_for_longer_than_its_retention_is_resynced_and_what_it_forgot_swept() {
    // Given
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::new()
        .feed_with("short", &publisher.url("/short"), r#"retention = "1s""#)
        .feed("long", &publisher.url("/long"))
        .start();
    mirror.until_level("short");
    mirror.until_level("long");

    // When: a record is deleted and forgotten while the feed is not read.
    assert!(mirror.stop().success());
    test_feed.forget("id-2");
    until_away(&mirror, 1.5);
    mirror.start_again();

    // Then
    mirror.until("resynced", |mirror| !mirror.events("short", "resync-done").is_empty());
    assert_eq!(mirror.live("short"), test_feed.live());
    assert_eq!(mirror.column("SELECT id FROM items WHERE feed = 'short' AND swept"), ["id-2"]);
    assert_eq!(mirror.events("short", "stale").len(), 1);
    // The other feed was unread for as long, and its publisher still lists the deletion.
    mirror.until_level("long");
    assert_eq!(mirror.events("long", "resync-began"), [] as [&str; 0]);
    assert_eq!(mirror.row("long").items, 6);
}

#[test]
fn a_resync_by_retention_waits_for_the_end_of_the_walk() {
    // Given: a refresh that hangs at its fourth page.
    let test_feed = TestFeed::of(12, 2);
    let (serving, open) = (Arc::clone(&test_feed), Arc::new(AtomicBool::new(false)));
    let opened = Arc::clone(&open);
    let publisher = ScriptedPublisher::start(move |request| {
        let hangs = request.query().contains("from=6&") && !opened.load(Ordering::SeqCst);
        if hangs { Reply::silence() } else { serving.page(request) }
    });
    let mut mirror = MirrorProcess::new().feed_with("slow", &publisher.url("/feed"), r#"retention = "1s""#).start();
    mirror.until("three pages", |mirror| mirror.row("slow").items == 6);
    until("the fourth is asked for", || publisher.requests().len() >= 4);

    // When
    assert!(mirror.stop().success());
    until_away(&mirror, 1.5);
    open.store(true, Ordering::SeqCst);
    mirror.start_again();

    // Then: the walk goes on to its end; only then the feed is read anew.
    mirror.until("resynced", |mirror| !mirror.events("slow", "resync-done").is_empty());
    let requests: Vec<String> = publisher.requests().into_iter().map(|request| request.target).collect();
    let level = requests.iter().position(|target| target.contains("from=12&")).unwrap();
    let anew = requests.iter().rposition(|target| target == "/feed").unwrap();
    assert!(anew > level, "{requests:?}");
    assert_eq!(requests.iter().filter(|target| *target == "/feed").count(), 2);
    assert_eq!(mirror.live("slow"), test_feed.live());
}

#[test]
fn values_that_change_their_class_are_found() {
    // Given
    let modified = Arc::new(AtomicI64::new(0));
    let form = Arc::clone(&modified);
    let publisher = ScriptedPublisher::start(move |request| match (request.query(), form.load(Ordering::SeqCst)) {
        ("", _) => Reply::page(page(&[item("a", 1_700_000_000)], "?from=a")),
        ("from=a", 1) => {
            let dated = item("b", 1).replace("\"modified\":1,", "\"modified\":\"2026-01-01T00:00:00Z\",");
            Reply::page(page(&[dated], "?from=b"))
        }
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::running("changing", &publisher.url("/feed"));
    mirror.until_level("changing");

    // When
    modified.store(1, Ordering::SeqCst);

    // Then
    mirror.until("both", |mirror| mirror.ids("changing") == ["a", "b"]);
    assert_eq!(mirror.finding("changing", "modified-class"), 1);
    assert_eq!(mirror.column("SELECT modified FROM items WHERE id = 'b'"), ["2026-01-01T00:00:00Z"]);
}
