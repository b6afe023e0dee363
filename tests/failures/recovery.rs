//! Stops and starts: a stop on request, kills at any point, and continuing from what is stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, until};

const END: Duration = Duration::from_secs(5);

#[test]
fn sigterm_ends_a_refresh_within_five_seconds_and_the_next_start_goes_on_from_the_cursor() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // Given: a long refresh, and a feed that waits for an answer that never comes.
        let test_feed = TestFeed::of(80, 2);
        let serving = Arc::clone(&test_feed);
        let publisher = ScriptedPublisher::start(move |request| match request.path() {
            "/dead" => Reply::silence(),
            _ => serving.page(request).after(Duration::from_millis(10)),
        });
        let mut mirror = MirrorProcess::new()
            .feed_with("long", &publisher.url("/long"), "")
            .feed_with("dead", &publisher.url("/dead"), r#"http.read_timeout = "60s""#)
            .start();
        until("in the middle", || publisher.count("/long") >= 10);

        // When
        let began = Instant::now();
        mirror.signal(signal);
        let status = mirror.wait_for_exit();

        // Then
        assert!(began.elapsed() < END, "{:?}", began.elapsed());
        assert_eq!(status.code(), Some(0), "{}", mirror.log());
        let row = mirror.row("long");
        assert!(row.items >= 16 && row.items < 80, "{row:?}");
        let requests = publisher.count("/long");

        // When
        mirror.start_again();

        // Then
        mirror.until_level("long");
        assert_eq!(publisher.url(&publisher.requests_to("/long")[requests].target), row.cursor);
        assert_eq!(publisher.requests_to("/long").iter().filter(|request| request.query().is_empty()).count(), 1);
        assert_eq!(mirror.live("long"), test_feed.live());
    }
}

/// The position of a cursor in the test feed's dialect.
fn position(cursor: &str) -> i64 {
    let from = cursor.split_once("from=").map_or("0", |(_, query)| query.split('&').next().unwrap());
    from.parse().unwrap()
}

#[test]
fn killed_anywhere_in_a_refresh_nothing_is_lost_and_the_cursor_never_leads_the_data() {
    // Given
    let test_feed = TestFeed::of(4_000, 10);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request).after(Duration::from_millis(1)));
    let mut mirror = MirrorProcess::new().feed("killed", &publisher.url("/feed"));
    mirror.write_config();

    // When: killed ten times, after another number of requests each.
    for round in 1..=10_usize {
        let before = publisher.requests().len();
        mirror.spawn();
        until("some requests", || publisher.requests().len() > before + round * 7 % 20);
        mirror.kill();

        // Then: all items before the cursor are there.
        let at = position(&mirror.row("killed").cursor);
        let mirrored = mirror.live("killed");
        let expected = test_feed.live().into_iter().filter(|(_, (modified, _))| *modified <= at);
        let lost: Vec<String> =
            expected.filter(|(id, record)| mirrored.get(id) != Some(record)).map(|(id, _)| id).collect();
        assert_eq!(lost, [] as [&str; 0], "after kill {round}, the cursor at {at}");
        test_feed.put(&format!("id-{}", round * 3));
        test_feed.delete(&format!("id-{}", round * 5 + 1));
    }

    // Then
    assert_eq!(mirror.row("killed").mode, "refresh", "the kills came too late");
    mirror.start_again();
    mirror.until_level("killed");
    mirror.until("equal", |mirror| mirror.live("killed") == test_feed.live());
    assert_eq!(mirror.column("PRAGMA integrity_check"), ["ok"]);
    let row = mirror.row("killed");
    let counted = |state: &str| mirror.number(&format!("SELECT count(*) FROM items WHERE state = '{state}'"));
    assert_eq!((row.items, row.tombstones), (counted("updated"), counted("deleted")));
    assert_eq!(mirror.number("SELECT count(*) - count(DISTINCT seq) FROM changes"), 0);
    assert_eq!(mirror.number("SELECT count(*) - count(DISTINCT kind || id) FROM items"), 0);
}

#[test]
fn a_wait_that_was_stored_is_kept_over_a_restart_and_broken_by_poll_now() {
    // Given: a feed whose publisher asks for a long wait.
    let publisher = ScriptedPublisher::start(|_| Reply::status(503).header("Retry-After", "600"));
    let mut mirror = MirrorProcess::new().feed_with("away", &publisher.url("/feed"), r#"retry.max = "1h""#).start();
    mirror.until_health("away", "retrying", "http-503");
    let wait = mirror.row("away").next_poll_in_s;
    assert!((590.0..661.0).contains(&wait), "{wait} s");

    // When
    assert!(mirror.stop().success());
    mirror.start_again();
    let again = mirror.verb(&["poll-now", "away"]);

    // Then: one request before, none by the restart, one by the order.
    assert!(again.status.success(), "{again:?}");
    until("asked again", || publisher.requests().len() > 1);
    assert_eq!(publisher.requests().len(), 2);
}
