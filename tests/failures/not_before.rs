//! "Not before" belongs to the feed: a publisher's requested wait applies to every request for the feed, and only the
//! operator may go before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page, until};

/// Seconds between a request and the one after it, of all that the publisher received.
fn pause_after(requests: &[Request], at: usize) -> f64 {
    requests[at + 1].at.duration_since(requests[at].at).as_secs_f64()
}

#[test]
fn what_a_look_back_or_a_resync_is_told_holds_the_whole_feed_and_its_polls() {
    for keys in [r#"poll.lookback = "400ms""#, r#"resync.every = "400ms""#] {
        // Given: a level feed whose own URL asks for a wait, while its end answers.
        let (test_feed, enough) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
        let (serving, throttled, refusals) =
            (Arc::clone(&test_feed), Arc::clone(&enough), Arc::new(AtomicUsize::new(0)));
        let refused = Arc::clone(&refusals);
        let publisher = ScriptedPublisher::start(move |request| {
            let at_end = request.query().contains("from=6&");
            if at_end || !throttled.load(Ordering::SeqCst) || refused.fetch_add(1, Ordering::SeqCst) > 0 {
                return serving.page(request);
            }
            Reply::status(429).header("Retry-After", "2")
        });
        let keys = format!("{keys}\nretry = {{ min = \"20ms\", max = \"30s\" }}");
        let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), &keys).start();
        mirror.until_level("f");

        // When
        enough.store(true, Ordering::SeqCst);
        until("told to wait", || refusals.load(Ordering::SeqCst) > 0);
        until("asked on", || refusals.load(Ordering::SeqCst) > 1);

        // Then: none of its loops sent a request in between, except those under way.
        let requests = publisher.requests();
        let longest = (0..requests.len() - 1).map(|at| pause_after(&requests, at)).fold(0.0, f64::max);
        assert!(longest > 1.7, "{keys}: {longest} s");
    }
}

#[test]
fn an_operators_poll_now_goes_before_what_the_publisher_asked_for_and_a_restart_or_resume_does_not() {
    // Given: a feed whose look-back was told to wait for ten minutes.
    let (test_feed, enough) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
    let (serving, throttled) = (Arc::clone(&test_feed), Arc::clone(&enough));
    let publisher = ScriptedPublisher::start(move |request| {
        let at_end = request.query().contains("from=6&");
        if !at_end && throttled.load(Ordering::SeqCst) {
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
    until("the end asked for", || {
        publisher.requests()[before..].iter().any(|request| request.query().contains("from=6&"))
    });
    let others = publisher.requests()[before..].iter().filter(|request| !request.query().contains("from=6&")).count();
    assert!(others <= 1, "the resync, by the same order: {others}");
}

#[test]
fn a_resync_that_is_unavailable_three_times_waits_an_hour_or_two() {
    // Given
    let (test_feed, down) = (TestFeed::of(6, 2), Arc::new(AtomicBool::new(false)));
    let (serving, broken) = (Arc::clone(&test_feed), Arc::clone(&down));
    let publisher = ScriptedPublisher::start(move |request| {
        let at_end = request.query().contains("from=6&");
        if !at_end && broken.load(Ordering::SeqCst) { Reply::status(503) } else { serving.page(request) }
    });
    let mirror = MirrorProcess::running("f", &publisher.url("/feed"));
    mirror.until_level("f");

    // When
    down.store(true, Ordering::SeqCst);
    assert!(mirror.verb(&["resync", "f"]).status.success());

    // Then: the third is the last, and no other request is sent meanwhile.
    mirror.until("a long wait", |mirror| mirror.row("f").next_poll_in_s > 3_500.0);
    let unavailable = publisher.requests().iter().filter(|request| request.target == "/feed").count();
    assert_eq!(unavailable, 1 + 3);
}

#[test]
fn a_look_back_of_slow_pages_stops_no_poll() {
    // Given: a feed whose old pages take long.
    let (test_feed, slow) = (TestFeed::of(30, 2), Arc::new(AtomicBool::new(false)));
    let (serving, slowed, old) = (Arc::clone(&test_feed), Arc::clone(&slow), Arc::new(AtomicUsize::new(0)));
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
    test_feed.put("new");
    let put = Instant::now();
    mirror.until("the new one", |mirror| mirror.ids("f").iter().any(|id| id == "new"));

    // Then: long before the slow pages were over.
    assert!(put.elapsed() < Duration::from_secs(2), "{:?}", put.elapsed());
}

#[test]
fn a_feed_whose_cursor_is_dead_and_that_is_torn_is_not_read_over_and_over() {
    // Given: a regular resync that gets a dead page each time.
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
    let anew = || publisher.requests().iter().filter(|request| request.target == "/feed").count();
    let before = anew();
    until("polled on", || publisher.requests_to("/feed").len() > read + 10);

    // Then: polls go on, and the resync waits, restarts included, until an operator orders it.
    assert!(mirror.row("f").polled_at > polled);
    assert_eq!(anew(), before);
    torn.store(false, Ordering::SeqCst);
    let done = mirror.events("f", "resync-done").len();
    assert!(mirror.verb(&["resync", "f"]).status.success());
    mirror.until("done", |mirror| mirror.events("f", "resync-done").len() > done);
}
