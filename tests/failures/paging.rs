//! Where pages refer to: `next` as sent, missing, constructed, empty, in a circle, or to the page itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, page_without_next, until};

#[test]
fn next_is_followed_as_sent_byte_for_byte() {
    // Given: one feed that uses every form of `next` that publishers are known for; each names the target to expect.
    let publisher = ScriptedPublisher::start(|request| {
        let port = request.header("host").unwrap().rsplit_once(':').unwrap().1.to_owned();
        let hops = [
            ("/rpde/feed".to_owned(), "feed?from=0001&after=".to_owned(), "/rpde/feed?from=0001&after="),
            (String::new(), "?from=2&after=a%3Ab%20c".to_owned(), "/rpde/feed?from=2&after=a%3Ab%20c"),
            (String::new(), "?from=3&after=a%253A%2fb".to_owned(), "/rpde/feed?from=3&after=a%253A%2fb"),
            (String::new(), "/other?after={d9-7}&q=%7e~!$()*,;:@".to_owned(), "/other?after={d9-7}&q=%7e~!$()*,;:@"),
            (String::new(), format!("//LocalHost:{port}/x?From=5&AFTER=Z&z=a+b"), "/x?From=5&AFTER=Z&z=a+b"),
            (String::new(), format!("HTTP://LOCALHOST:{port}/y?afterID=+6&&="), "/y?afterID=+6&&="),
            (String::new(), "../z/./page?u=http://h/x?y=1".to_owned(), "/z/page?u=http://h/x?y=1"),
        ];
        let at = hops.iter().position(|(first, _, target)| *target == request.target || *first == request.target);
        let next = match at {
            Some(0) if request.target == "/rpde/feed" => &hops[0].1,
            Some(at) if at + 1 < hops.len() => &hops[at + 1].1,
            _ => return Reply::page(page(&[], &request.target)),
        };
        Reply::page(page(&[item(&format!("i{}", request.target), 1)], next))
    });
    let port = publisher.address().port();

    let mirror = MirrorProcess::running("hops", &format!("http://localhost:{port}/rpde/feed"));

    // Then
    let row = mirror.until_level("hops");
    let targets: Vec<String> = publisher.requests().into_iter().take(8).map(|request| request.target).collect();
    assert_eq!(
        targets,
        [
            "/rpde/feed",
            "/rpde/feed?from=0001&after=",
            "/rpde/feed?from=2&after=a%3Ab%20c",
            "/rpde/feed?from=3&after=a%253A%2fb",
            "/other?after={d9-7}&q=%7e~!$()*,;:@",
            "/x?From=5&AFTER=Z&z=a+b",
            "/y?afterID=+6&&=",
            "/z/page?u=http://h/x?y=1",
        ]
    );
    assert_eq!(row.cursor, format!("HTTP://LOCALHOST:{port}/z/page?u=http://h/x?y=1"));
    assert_eq!(row.items, 7);
}

#[test]
fn a_missing_next_is_made_from_the_last_item_in_the_dialect_seen_or_configured() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match (request.path(), request.query()) {
        ("/draft", "from=0&after=x&limit=2") | ("/timestamp", "") => {
            Reply::page(page_without_next(&[item("a", 3), item("b c:{d}", 7)]))
        }
        ("/number", "afterChangeNumber=0") => Reply::page(page_without_next(&[item("a", 41)])),
        _ => Reply::page(page_without_next(&[])),
    });
    let mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed("draft", &publisher.url("/draft?from=0&after=x&limit=2"))
        .feed("number", &publisher.url("/number?afterChangeNumber=0"))
        .feed_with("timestamp", &publisher.url("/timestamp"), r#"dialect = "1.0""#)
        .start();

    // Then
    for (name, target) in [
        ("draft", "/draft?from=7&after=b%20c%3A%7Bd%7D&limit=2"),
        ("number", "/number?afterChangeNumber=41"),
        ("timestamp", "/timestamp?afterTimestamp=7&afterId=b%20c%3A%7Bd%7D"),
    ] {
        let row = mirror.until_level(name);
        let requests = publisher.requests_to(&format!("/{name}"));
        assert_eq!(requests[1].target, target);
        // The page after it is empty and has no `next` either: it counts as level, with a finding.
        mirror.until_health(name, "ok", "no-next");
        assert_eq!(row.cursor, publisher.url(target));
        assert!(mirror.finding(name, "no-next") >= 2);
    }
}

#[test]
fn without_next_and_dialect_or_with_the_same_page_again_it_is_as_level_and_polled_at_its_pace() {
    // Given: a feed that is one file, and one that ignores all parameters.
    let publisher = ScriptedPublisher::start(|_| Reply::page(page_without_next(&[item("a", 3), item("b", 7)])));
    let mirror = MirrorProcess::new()
        .feed_with("file", &publisher.url("/file"), r#"poll = { min = "200ms", max = "200ms" }"#)
        .feed_with("deaf", &publisher.url("/deaf?from=0&after=x"), r#"poll = { min = "200ms", max = "200ms" }"#)
        .start();

    // Then
    for name in ["file", "deaf"] {
        let row = mirror.until_health(name, "ok", "no-next");
        assert_eq!((row.items, row.mode.as_str()), (2, "poll"), "{name}");
        until("polled on", || publisher.count(&format!("/{name}")) >= 6);
        let requests = publisher.requests_to(&format!("/{name}"));
        let (first, last) = (&requests[2], requests.last().unwrap());
        let pace = last.at.duration_since(first.at).as_secs_f64() / (requests.len() - 3) as f64;
        assert!(pace >= 0.2, "{name}: asked every {pace} s");
        assert!(mirror.finding(name, "no-next") >= 1, "{name}");
    }
}

#[test]
fn an_empty_page_with_another_next_is_followed_at_once_ten_times_then_one_each_poll_min() {
    // Given: twenty filtered pages before the first item.
    let publisher = ScriptedPublisher::start(|request| {
        let at: usize = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
        match at {
            20 => Reply::page(page(&[item("a", 1)], "?at=21")),
            21 => Reply::page(page(&[], &request.target)),
            _ => Reply::page(page(&[], &format!("?at={}", at + 1))),
        }
    });

    let mirror = MirrorProcess::new()
        .feed_with("filtered", &publisher.url("/feed"), r#"poll = { min = "200ms", max = "1s" }"#)
        .start();

    // Then
    mirror.until_level("filtered");
    assert_eq!(mirror.ids("filtered"), ["a"]);
    assert_eq!(mirror.finding("filtered", "empty-pages"), 1);
    let requests = publisher.requests();
    let gap = |from: usize, to: usize| requests[to].at.duration_since(requests[from].at);
    assert!(gap(0, 9) < Duration::from_secs(1), "the first ten took {:?}", gap(0, 9));
    assert_eq!(
        requests[9].target, requests[10].target,
        "the tenth is asked for again: its `next` might carry the clock"
    );
    for n in 10..=21 {
        assert!(gap(n - 1, n) >= Duration::from_millis(200), "page {n} was asked after {:?}", gap(n - 1, n));
    }
}

#[test]
fn items_on_a_page_that_sends_to_itself_are_applied_and_it_is_as_level() {
    // Given: a publisher whose only page grows.
    let test_feed = TestFeed::of(3, 100);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| {
        let ids: Vec<(String, i64)> = serving.live().into_iter().map(|(id, (modified, _))| (id, modified)).collect();
        let items: Vec<String> = ids.iter().map(|(id, modified)| item(id, *modified)).collect();
        Reply::page(page(&items, &request.target))
    });

    let mirror = MirrorProcess::running("own", &publisher.url("/feed"));

    // Then
    mirror.until_health("own", "ok", "self-next");
    assert_eq!((mirror.live("own"), mirror.row("own").mode.as_str()), (test_feed.live(), "poll"));
    assert!(mirror.finding("own", "self-next") >= 1);
    test_feed.put("new");
    mirror.until("what is new on it comes", |mirror| mirror.live("own") == test_feed.live());
}

#[test]
fn a_loop_applies_its_items_backs_off_and_is_left_when_the_publisher_mends() {
    for length in [2_usize, 60] {
        // Given: pages that form a circle, each with an item.
        let mended = Arc::new(AtomicBool::new(false));
        let open = Arc::clone(&mended);
        let publisher = ScriptedPublisher::start(move |request| {
            let at: usize = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
            if at == length {
                return Reply::page(page(&[], &request.target));
            }
            let next = if open.load(Ordering::SeqCst) { at + 1 } else { (at + 1) % length };
            Reply::page(page(&[item(&format!("i{at:02}"), 1 + at as i64)], &format!("?at={next}")))
        });
        let mirror = MirrorProcess::new()
            .feed_with("circle", &publisher.url("/feed?at=0"), r#"retry = { min = "50ms", max = "30s" }"#)
            .start();

        // Then: all items, the reason, and waits that grow although the pages as such answer.
        mirror.until_health("circle", "retrying", "loop");
        assert_eq!(mirror.ids("circle").len(), length);
        mirror.until("failures that count up", |mirror| mirror.row("circle").failures >= 4);
        assert!(mirror.finding("circle", "loop") >= 1);
        // Each walk reads the circle once at most.
        let rounds = publisher.count("/feed") as f64 / length as f64;
        assert!(rounds <= mirror.row("circle").failures as f64 + 2.0, "{rounds} rounds");

        // When
        mended.store(true, Ordering::SeqCst);

        // Then
        assert_eq!(mirror.until_level("circle").failures, 0);
    }
}

#[test]
fn sync_gives_a_loop_up_like_any_failure_in_a_row() {
    let publisher = ScriptedPublisher::start(|request| {
        let next = if request.query() == "at=1" { 2 } else { 1 };
        Reply::page(page(&[item("a", 1)], &format!("?at={next}")))
    });
    let mirror = MirrorProcess::new().feed("circle", &publisher.url("/feed"));

    let output = mirror.verb(&["sync", "--tries", "3"]);

    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("loop"), "{output:?}");
}

#[test]
fn an_endless_feed_does_not_keep_others_from_their_turn() {
    // Given: a feed with a new page after every page, and a small one on the same host.
    let test_feed = TestFeed::of(20, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/endless" => {
            let at: usize = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
            Reply::page(page(&[item(&format!("i{at}"), at as i64)], &format!("?at={}", at + 1)))
        }
        _ => serving.page(request).after(Duration::from_millis(5)),
    });

    let mirror = MirrorProcess::new()
        .http("per_host = 1")
        .feed("endless", &publisher.url("/endless"))
        .feed("small", &publisher.url("/small"))
        .start();

    // Then: alternately, so that the small feed's dozen pages come among as many of the other.
    mirror.until_level("small");
    let requests = publisher.requests();
    let first = requests.iter().position(|request| request.path() == "/small").unwrap();
    let last =
        requests.iter().position(|request| request.path() == "/small" && request.query().contains("from=20&")).unwrap();
    assert!(last - first <= 40, "{} requests between its first page and its last", last - first);
    assert_eq!(mirror.live("small"), test_feed.live());
    let (before, pages) = (mirror.row("small").level_at, publisher.count("/endless"));
    mirror.until("both go on", |mirror| {
        mirror.row("small").level_at > before && publisher.count("/endless") > pages + 10
    });
}

#[test]
fn the_end_is_recognised_whatever_the_redirects_and_no_page_is_asked_twice_on_the_way() {
    // Given: every request is redirected to a URL that serves the page.
    let test_feed = TestFeed::of(9, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/feed" => Reply::redirect(307, &format!("/moved/feed?{}", request.query())),
        _ => Reply::page(serving.json(request).replace("/moved/feed?", "/feed?")),
    });

    let began = Instant::now();
    let mirror = MirrorProcess::running("moved", &publisher.url("/feed"));

    // Then
    let row = mirror.until_level("moved");
    assert_eq!((mirror.live("moved"), row.reason.as_str()), (test_feed.live(), ""));
    assert_eq!(row.cursor, publisher.url("/feed?from=9&after=id-8"));
    let refreshed: Vec<String> =
        publisher.requests_to("/feed").into_iter().take(5).map(|request| request.target).collect();
    assert_eq!(refreshed.iter().collect::<HashSet<_>>().len(), 5, "after {:?}: {refreshed:?}", began.elapsed());
}
