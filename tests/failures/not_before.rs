//! "Not before" belongs to the feed: what a publisher asks for holds whoever wants to ask it, and only the operator goes
//! before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page, until};

/// Seconds between a request and the one after it, of all that the publisher was asked.
fn pause_after(asked: &[Request], at: usize) -> f64 {
    asked[at + 1].at.duration_since(asked[at].at).as_secs_f64()
}

#[test]
fn what_a_look_back_or_a_resync_is_told_holds_the_whole_feed_and_its_polls() {
    for keys in [r#"poll.lookback = "400ms""#, r#"resync.every = "400ms""#] {
        // Given: a level feed whose own URL has had enough, while its end answers.
        let (shelf, enough) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
        let (serving, annoyed, told) = (Arc::clone(&shelf), Arc::clone(&enough), Arc::new(AtomicUsize::new(0)));
        let refused = Arc::clone(&told);
        let publisher = ScriptedPublisher::start(move |request| {
            let at_end = request.query().contains("from=6&");
            if at_end || !annoyed.load(Ordering::SeqCst) || refused.fetch_add(1, Ordering::SeqCst) > 0 {
                return serving.page(request);
            }
            Reply::status(429).header("Retry-After", "2")
        });
        let keys = format!("{keys}\nretry = {{ min = \"20ms\", max = \"30s\" }}");
        let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), &keys).start();
        mirror.until_level("f");

        // When
        enough.store(true, Ordering::SeqCst);
        until("told to wait", || told.load(Ordering::SeqCst) > 0);
        until("asked on", || told.load(Ordering::SeqCst) > 1);

        // Then: none of its loops asked in between, but for what was under way.
        let asked = publisher.requests();
        let longest = (0..asked.len() - 1).map(|at| pause_after(&asked, at)).fold(0.0, f64::max);
        assert!(longest > 1.7, "{keys}: {longest} s");
    }
}

#[test]
fn an_operators_poll_now_goes_before_what_the_publisher_asked_for_and_a_restart_or_resume_does_not() {
    // Given: told by a look-back to come again in ten minutes.
    let (shelf, enough) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
    let (serving, annoyed) = (Arc::clone(&shelf), Arc::clone(&enough));
    let publisher = ScriptedPublisher::start(move |request| {
        let at_end = request.query().contains("from=6&");
        if !at_end && annoyed.load(Ordering::SeqCst) {
            return Reply::status(503).header("Retry-After", "600");
        }
        serving.page(request)
    });
    let keys = "poll.lookback = \"400ms\"\nretry = { min = \"20ms\", max = \"1h\" }";
    let mut mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), keys).start();
    mirror.until_level("f");
    enough.store(true, Ordering::SeqCst);
    mirror.until("a long wait", |mirror| mirror.row("f").next_poll_in_s > 500.0);
    let before = publisher.requests().len();

    // When
    assert!(mirror.stop().success());
    mirror.start_again();
    assert!(mirror.verb(&["pause", "f"]).status.success());
    assert!(mirror.verb(&["resume", "f"]).status.success());
    assert!(mirror.row("f").next_poll_in_s > 400.0);
    let ran = mirror.verb(&["resync", "f"]);
    assert!(String::from_utf8_lossy(&ran.stdout).contains("when its publisher may be asked again"), "{ran:?}");
    assert!(mirror.verb(&["poll-now", "f"]).status.success());

    // Then: one request, by the order, for the end.
    until("asked", || publisher.requests().len() > before);
    until("the end asked for", || publisher.requests()[before..].iter().any(|asked| asked.query().contains("from=6&")));
    let others = publisher.requests()[before..].iter().filter(|asked| !asked.query().contains("from=6&")).count();
    assert!(others <= 1, "the resync, by the same order: {others}");
}

#[test]
fn a_resync_that_is_unavailable_three_times_waits_an_hour_or_two() {
    // Given
    let (shelf, down) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
    let (serving, broken) = (Arc::clone(&shelf), Arc::clone(&down));
    let publisher = ScriptedPublisher::start(move |request| {
        let at_end = request.query().contains("from=6&");
        if !at_end && broken.load(Ordering::SeqCst) { Reply::status(503) } else { serving.page(request) }
    });
    let mirror = MirrorProcess::running("f", &publisher.url("/feed"));
    mirror.until_level("f");

    // When
    down.store(true, Ordering::SeqCst);
    assert!(mirror.verb(&["resync", "f"]).status.success());

    // Then: the third is the last, and nobody asks for something else meanwhile.
    mirror.until("a long wait", |mirror| mirror.row("f").next_poll_in_s > 3_500.0);
    let unavailable = publisher.requests().iter().filter(|asked| asked.target == "/feed").count();
    assert_eq!(unavailable, 1 + 3);
}

#[test]
fn a_look_back_of_slow_pages_stops_no_poll() {
    // Given: a feed whose old pages take long.
    let (shelf, slow) = (TestFeed::of(30, 2), Arc::new(AtomicBool::new(false)));
    let (serving, slowed, old) = (Arc::clone(&shelf), Arc::clone(&slow), Arc::new(AtomicUsize::new(0)));
    let looked_back = Arc::clone(&old);
    let publisher = ScriptedPublisher::start(move |request| {
        let from: i64 = request.query().split(['=', '&']).nth(1).map_or(0, |from| from.parse().unwrap());
        if from >= 30 || !slowed.load(Ordering::SeqCst) {
            return serving.page(request);
        }
        looked_back.fetch_add(1, Ordering::SeqCst);
        serving.page(request).after(Duration::from_millis(300))
    });
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), r#"poll.lookback = "1s""#).start();
    mirror.until_level("f");

    // When
    slow.store(true, Ordering::SeqCst);
    until("a look-back is under way", || old.load(Ordering::SeqCst) >= 2);
    shelf.put("new");
    let put = Instant::now();
    mirror.until("the new one", |mirror| mirror.ids("f").iter().any(|id| id == "new"));

    // Then: long before the slow pages were over.
    assert!(put.elapsed() < Duration::from_secs(2), "{:?}", put.elapsed());
}

#[test]
fn a_feed_whose_cursor_is_dead_and_that_is_torn_is_not_read_over_and_over() {
    // Given: a regular resync that meets a dead page each time.
    let torn = Arc::new(AtomicBool::new(false));
    let tearing = Arc::clone(&torn);
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&[item("a", 1)], "/feed?from=1")),
        "from=1" if tearing.load(Ordering::SeqCst) => Reply::status(410),
        "from=1" => Reply::page(page(&[item("b", 2)], "/feed?from=2")),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), r#"resync.every = "300ms""#).start();
    mirror.until_level("f");

    // When
    torn.store(true, Ordering::SeqCst);
    mirror.until("it waits", |mirror| mirror.number("SELECT count(*) FROM resync WHERE deaths > 1") == 1);
    let (read, polled) = (publisher.requests_to("/feed").len(), mirror.row("f").polled_at);
    let anew = || publisher.requests().iter().filter(|asked| asked.target == "/feed").count();
    let before = anew();
    until("polled on", || publisher.requests_to("/feed").len() > read + 10);

    // Then: polls go on, and the resync waits, restarts included, until it is wanted.
    assert!(mirror.row("f").polled_at > polled);
    assert_eq!(anew(), before);
    torn.store(false, Ordering::SeqCst);
    let done = mirror.events("f", "resync-done").len();
    assert!(mirror.verb(&["resync", "f"]).status.success());
    mirror.until("done", |mirror| mirror.events("f", "resync-done").len() > done);
}
