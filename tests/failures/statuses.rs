//! Statuses and broken connections: which of them wait, for how long, and which need the operator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page, until};

pub(crate) const HOUR: f64 = 3_600.0;

/// Answers from the test feed until `broken`, then by `fault`.
pub(crate) fn switched(
    test_feed: &Arc<TestFeed>,
    broken: &Arc<AtomicBool>,
    fault: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let (test_feed, broken) = (Arc::clone(test_feed), Arc::clone(broken));
    move |request| if broken.load(Ordering::SeqCst) { fault(request) } else { test_feed.page(request) }
}

#[test]
fn trouble_that_waiting_heals_keeps_rows_and_cursor_and_heals_by_itself() {
    // Given: level feeds, each about to get its own failure, and one without failure.
    let faults: Vec<(&str, &str, Reply)> = vec![
        ("f408", "http-408", Reply::status(408).body("slow down")),
        ("f425", "http-425", Reply::status(425)),
        ("f429", "http-429", Reply::status(429)),
        ("f500", "http-500", Reply::status(500).body("<html>oops</html>")),
        ("f502", "http-502", Reply::status(502)),
        ("f503", "http-503", Reply::status(503).header("Retry-After", "0")),
        ("f504", "http-504", Reply::status(504)),
        ("f520", "http-520", Reply::status(520)),
        ("silence", "timeout", Reply::silence()),
        ("reset", "broken-response", Reply::reset()),
        ("garbage", "broken-response", Reply::raw("\0\x01 this is no HTTP\r\n\r\n")),
    ];
    let (test_feed, broken) = (TestFeed::of(3, 2), Arc::new(AtomicBool::new(false)));
    let replies: Vec<(String, Reply)> =
        faults.iter().map(|(name, _, reply)| (format!("/{name}"), reply.clone())).collect();
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(switched(&test_feed, &broken, move |request| {
        let fault = replies.iter().find(|(path, _)| path == request.path());
        fault.map_or_else(|| serving.page(request), |(_, reply)| reply.clone())
    }));
    let mut mirror = MirrorProcess::new().http("per_host = 8").feed("sound", &publisher.url("/sound"));
    for (name, _, _) in &faults {
        mirror = mirror.feed_with(name, &publisher.url(&format!("/{name}")), r#"http.read_timeout = "300ms""#);
    }
    let mirror = mirror.start();
    let names: Vec<&str> = faults.iter().map(|(name, _, _)| *name).collect();
    let cursors: Vec<String> = names.iter().map(|name| mirror.until_level(name).cursor).collect();

    // When
    broken.store(true, Ordering::SeqCst);

    // Then: each waits, with its reason, and loses nothing.
    for ((name, word, _), cursor) in faults.iter().zip(&cursors) {
        let row = mirror.until_health(name, "retrying", word);
        assert_eq!((&row.cursor, row.items, row.mode.as_str()), (cursor, 3, "poll"), "{name}");
        assert_eq!(mirror.live(name), test_feed.live(), "{name}");
        assert!(row.failures > 0, "{name}");
    }
    assert!(mirror.row("f500").reason.contains("<html>oops"), "{}", mirror.row("f500").reason);
    let before = mirror.row("sound").level_at;
    mirror.until("the sound feed goes on", |mirror| mirror.row("sound").level_at > before);
    assert_eq!(mirror.row("sound").health, "ok");

    // When
    test_feed.put("late");
    broken.store(false, Ordering::SeqCst);

    // Then
    for name in names {
        let row = mirror.until_health(name, "ok", "");
        assert_eq!((row.failures, row.reason.as_str()), (0, ""), "{name}");
        mirror.until("what came meanwhile", |mirror| mirror.live(name) == test_feed.live());
    }
}

#[test]
fn a_publisher_that_is_down_or_has_no_name_yet_is_waited_for() {
    // Given: a port where nobody listens, and a host that no DNS knows (RFC 6761 §6.4).
    let address = ScriptedPublisher::start(|_| Reply::status(500)).address();
    let mirror = MirrorProcess::new()
        .feed("down", &format!("http://{address}/feed"))
        .feed("nameless", "http://feeds.nowhere.invalid/feed")
        .start();

    // Then
    mirror.until_health("down", "retrying", "refused-connection");
    mirror.until_health("nameless", "retrying", "connect");

    // When it comes up
    let test_feed = TestFeed::of(3, 2);
    let serving = Arc::clone(&test_feed);
    let _publisher = ScriptedPublisher::on(address, move |request| serving.page(request));

    // Then
    mirror.until_level("down");
    assert_eq!(mirror.live("down"), test_feed.live());
}

#[test]
fn retry_after_is_honoured_in_both_forms_and_clamped_to_retry_max() {
    // Given: the second answer comes after the requested wait; dates are compared with the publisher's own clock.
    let publisher = ScriptedPublisher::start(|request| match (request.path(), request.path_count) {
        ("/seconds", 1) => Reply::status(503).header("Retry-After", "1"),
        ("/date", 1) => Reply::status(429)
            .header("Date", "Mon, 06 Mar 2000 10:00:00 GMT")
            .header("Retry-After", "Mon, 06 Mar 2000 10:00:02 GMT"),
        ("/clamped", 1) => Reply::status(503).header("Retry-After", "86400"),
        ("/past", 1) => Reply::status(503).header("Retry-After", "Mon, 06 Mar 2000 10:00:00 GMT"),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed_with("seconds", &publisher.url("/seconds"), r#"retry.max = "5s""#)
        .feed_with("date", &publisher.url("/date"), r#"retry.max = "5s""#)
        .feed_with("clamped", &publisher.url("/clamped"), r#"retry.max = "600ms""#)
        .feed("past", &publisher.url("/past"))
        .start();

    // Then
    for (name, least, most) in [("seconds", 1.0, 4.0), ("date", 2.0, 5.0), ("clamped", 0.5, 4.0), ("past", 0.02, 3.0)] {
        mirror.until_level(name);
        let requests = publisher.requests_to(&format!("/{name}"));
        let waited = requests[1].at.duration_since(requests[0].at).as_secs_f64();
        assert!((least..most).contains(&waited), "{name} waited {waited} s");
    }
}

#[test]
fn the_third_503_without_a_word_when_waits_one_to_two_hours() {
    // Given (RPDE 1.0, "503"): two answers that name a wait, then answers that don't.
    let publisher = ScriptedPublisher::start(|request| match request.path_count {
        1 | 2 => Reply::status(503).header("Retry-After", "0"),
        _ => Reply::status(503),
    });
    let mirror = MirrorProcess::running("busy", &publisher.url("/feed"));

    // Then: five requests, and none more.
    mirror.until("a long wait", |mirror| mirror.row("busy").reason.ends_with("asked again in one to two hours"));
    let row = mirror.row("busy");
    assert_eq!((row.health.as_str(), row.word()), ("retrying", "http-503"));
    let wait = row.next_poll_in_s;
    assert!((HOUR - 40.0..=2.0 * HOUR).contains(&wait), "{wait} s");
    assert_eq!(publisher.requests().len(), 5);
    assert!(mirror.log().contains("failures=5"), "{}", mirror.log());
}

#[test]
fn sync_gives_up_after_three_503s_and_says_so() {
    let publisher = ScriptedPublisher::start(|_| Reply::status(503));
    let mirror = MirrorProcess::new().feed("busy", &publisher.url("/feed"));

    let output = mirror.verb(&["sync"]);

    assert_eq!(output.status.code(), Some(3));
    assert_eq!(publisher.requests().len(), 3);
    assert!(String::from_utf8_lossy(&output.stdout).contains("http-503"), "{output:?}");
}

#[test]
fn sync_gives_up_after_as_many_failures_as_asked_and_at_once_where_waiting_cannot_help() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/flaky" if request.path_count == 2 => Reply::page(page(&[item("a", 1)], "/flaky?from=1")),
        "/flaky" => Reply::status(500),
        "/denied" => Reply::status(401),
        "/gone" => Reply::status(410),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed("flaky", &publisher.url("/flaky"))
        .feed("denied", &publisher.url("/denied"))
        .feed("gone", &publisher.url("/gone"))
        .feed("fine", &publisher.url("/fine"));

    // When
    let output = mirror.verb(&["sync", "--tries", "4"]);

    // Then: a page in between restarts the count; the other feeds became level all the same.
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let counts = ["/flaky", "/denied", "/gone"].map(|path| publisher.count(path));
    assert_eq!(counts, [6, 1, 1]);
    assert_eq!(mirror.row("fine").mode, "poll");
    assert_eq!((mirror.row("denied").health, mirror.row("gone").health), ("failed".into(), "gone".into()));
}

#[test]
fn a_403_throttles_a_feed_that_answered_before_and_that_feed_alone() {
    // Given
    let (test_feed, broken) = (TestFeed::of(3, 2), Arc::new(AtomicBool::new(false)));
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(switched(&test_feed, &broken, move |request| match request.path() {
        "/throttled" => Reply::status(403),
        _ => serving.page(request),
    }));
    let mirror = MirrorProcess::new()
        .feed("throttled", &publisher.url("/throttled"))
        .feed("other", &publisher.url("/other"))
        .start();
    mirror.until_level("throttled");
    mirror.until_level("other");

    // When
    broken.store(true, Ordering::SeqCst);

    // Then
    let row = mirror.until_health("throttled", "retrying", "http-403");
    assert!(row.next_poll_in_s < 10.0);
    assert_eq!(mirror.live("throttled"), test_feed.live());
    let (before, requests) = (mirror.row("other").level_at, publisher.count("/throttled"));
    mirror.until("the other goes on", |mirror| mirror.row("other").level_at > before);
    until("the throttled one is asked again", || publisher.count("/throttled") > requests);
    broken.store(false, Ordering::SeqCst);
    mirror.until_health("throttled", "ok", "");
}

#[test]
fn a_401_and_a_403_from_the_first_need_the_operator_and_are_asked_hourly() {
    let publisher =
        ScriptedPublisher::start(|request| Reply::status(if request.path() == "/f401" { 401 } else { 403 }));
    let mirror =
        MirrorProcess::new().feed("f401", &publisher.url("/f401")).feed("f403", &publisher.url("/f403")).start();

    for (name, word) in [("f401", "http-401"), ("f403", "http-403")] {
        let row = mirror.until_health(name, "failed", word);
        let wait = row.next_poll_in_s;
        assert!((HOUR - 40.0..1.2 * HOUR).contains(&wait), "{name}: {wait} s");
        assert_eq!(publisher.count(&format!("/{name}")), 1);
    }
}

/// Accepts requests with the current token.
fn guarded(
    test_feed: &Arc<TestFeed>,
    token: &Arc<Mutex<String>>,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let (test_feed, token) = (Arc::clone(test_feed), Arc::clone(token));
    move |request| match request.header("x-token") == Some(token.lock().unwrap().as_str()) {
        true => test_feed.page(request),
        false => Reply::status(401),
    }
}

#[test]
fn a_rotated_secret_is_read_again_on_a_401_and_heals_by_itself() {
    // Given
    let (test_feed, token) = (TestFeed::of(3, 2), Arc::new(Mutex::new("first-secret".to_owned())));
    let publisher = ScriptedPublisher::start(guarded(&test_feed, &token));
    let mirror = MirrorProcess::new().feed_with(
        "guarded",
        &publisher.url("/f"),
        r#"headers = { X-Token = { file = "token" } }"#,
    );
    mirror.write("token", "first-secret\n");
    let mirror = mirror.start();
    mirror.until_level("guarded");

    // When
    mirror.write("token", "second-secret\n");
    *token.lock().unwrap() = "second-secret".to_owned();
    test_feed.put("after-rotation");

    // Then
    mirror.until("read with the new secret", |mirror| mirror.live("guarded") == test_feed.live());
    assert_eq!(mirror.row("guarded").health, "ok");
    assert!(mirror.events("guarded", "health").is_empty(), "it never failed: {:?}", mirror.events("guarded", "health"));
    for secret in ["first-secret", "second-secret"] {
        assert_eq!(mirror.holds_bytes(secret, &["token"]), [] as [&str; 0]);
    }
}

#[test]
fn a_secret_put_right_after_the_401_is_read_again_on_sighup() {
    // Given: the publisher has a new token, the file still the old one.
    let (test_feed, token) = (TestFeed::of(3, 2), Arc::new(Mutex::new("new".to_owned())));
    let publisher = ScriptedPublisher::start(guarded(&test_feed, &token));
    let mirror = MirrorProcess::new().feed_with(
        "guarded",
        &publisher.url("/f"),
        r#"headers = { X-Token = { file = "token" } }"#,
    );
    mirror.write("token", "old");
    let mirror = mirror.start();
    mirror.until_health("guarded", "failed", "http-401");

    // When
    mirror.write("token", "new");
    mirror.signal(Signal::SIGHUP);

    // Then
    mirror.until_level("guarded");
    assert_eq!(mirror.live("guarded"), test_feed.live());
}

#[test]
fn a_304_is_level_and_costs_no_page() {
    // Given: a last page with a tag that changes with the list.
    let test_feed = TestFeed::of(3, 10);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| {
        let tag = format!("\"{}\"", serving.newest());
        match request.header("if-none-match") == Some(&tag) {
            true => Reply::status(304).header("ETag", &tag),
            false => serving.page(request).header("ETag", &tag),
        }
    });
    let mirror = MirrorProcess::running("tagged", &publisher.url("/feed"));
    mirror.until_level("tagged");

    // When
    until("asked with the tag", || {
        publisher.requests().iter().any(|request| request.header("if-none-match").is_some())
    });
    let before = mirror.row("tagged");

    // Then
    mirror.until("level by 304s", |mirror| mirror.row("tagged").level_at > before.level_at);
    let row = mirror.row("tagged");
    assert_eq!((row.health.as_str(), row.reason.as_str(), &row.cursor), ("ok", "", &before.cursor));
    test_feed.put("new");
    mirror.until("a change still comes", |mirror| mirror.live("tagged") == test_feed.live());
}

#[test]
fn a_page_with_items_is_never_asked_for_conditionally() {
    // Given: a publisher that tags every page and would answer 304 to any request with the tag.
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.header("if-none-match") {
        Some("\"always\"") if request.query().contains("from=2&") => Reply::status(304),
        _ => serving.page(request).header("ETag", "\"always\""),
    });

    let mirror = MirrorProcess::running("tagged", &publisher.url("/feed"));

    mirror.until_level("tagged");
    assert_eq!(mirror.live("tagged"), test_feed.live());
    let conditional = publisher.requests().into_iter().filter(|request| request.header("if-none-match").is_some());
    assert!(conditional.into_iter().all(|request| request.query().contains("from=6&")));
}

#[test]
fn silence_and_drips_are_dropped_when_their_time_is_up() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/silent" => Reply::silence(),
        "/stalled" => Reply::page(page(&[item("a", 1)], "/stalled?from=1")).drip(Duration::from_secs(60)),
        "/drip" => Reply::page(page(&[item("a", 1)], "/drip?from=1")).drip(Duration::from_millis(40)),
        _ => Reply::page(page(&[], &request.target)),
    });
    let limits = r#"http = { read_timeout = "400ms", page_timeout = "900ms" }"#;
    let mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed_with("silent", &publisher.url("/silent"), limits)
        .feed_with("stalled", &publisher.url("/stalled"), limits)
        .feed_with("drip", &publisher.url("/drip"), limits)
        .start();

    // Then: each is asked again after its time, and nothing of it was taken.
    for (name, setting) in
        [("silent", "http.read_timeout"), ("stalled", "http.read_timeout"), ("drip", "http.page_timeout")]
    {
        let row = mirror.until_health(name, "retrying", "timeout");
        assert!(row.reason.contains(setting), "{name}: {}", row.reason);
        assert_eq!((row.items, row.cursor), (0, publisher.url(&format!("/{name}"))), "{name}");
        until("asked again", || publisher.count(&format!("/{name}")) > 1);
        let requests = publisher.requests_to(&format!("/{name}"));
        let waited = requests[1].at.duration_since(requests[0].at).as_secs_f64();
        let least = if name == "drip" { 0.9 } else { 0.4 };
        assert!((least..8.0).contains(&waited), "{name}: {waited} s");
    }
}
