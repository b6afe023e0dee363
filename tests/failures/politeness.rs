//! Politeness: how many requests a host gets at once, for which feeds, and how often.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page, until};

/// A page with one item and always another page after it.
fn endless(request: &Request) -> Reply {
    let at: i64 = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
    Reply::page(page(&[item(&format!("i{at}"), at + 1)], &format!("?at={}", at + 1)))
}

/// Seconds between the requests to a path, in order.
fn gaps(publisher: &ScriptedPublisher, path: &str) -> Vec<f64> {
    let requests = publisher.requests_to(path);
    requests.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).as_secs_f64()).collect()
}

#[test]
fn a_host_is_never_asked_more_at_once_than_it_may_be_over_all_feeds() {
    for (setting, most) in [("per_host = 2", 2), ("per_host = 5", 5)] {
        // Given
        let test_feed = TestFeed::of(30, 5);
        let serving = Arc::clone(&test_feed);
        let publisher = ScriptedPublisher::start(move |request| serving.page(request).after(Duration::from_millis(15)));
        let mut mirror = MirrorProcess::new().http(setting);
        let names: Vec<String> = (0..12).map(|n| format!("feed-{n}")).collect();
        for name in &names {
            mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
        }

        // When
        let mirror = mirror.start();

        // Then: as many at once as allowed, and never more.
        for name in &names {
            mirror.until_level(name);
            assert_eq!(mirror.live(name), test_feed.live());
        }
        assert_eq!(publisher.most_at_once(), most);
    }
}

#[test]
fn a_level_poll_waits_for_no_refresh() {
    // Given: one connection slot, twenty endless refreshes, and a feed that is soon level.
    const ENDLESS: usize = 20;
    let test_feed = TestFeed::of(2, 5);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/level" => serving.page(request),
        _ => endless(request).after(Duration::from_millis(20)),
    });
    let mut mirror = MirrorProcess::new().http("per_host = 1").feed("level", &publisher.url("/level"));
    for n in 0..ENDLESS {
        mirror = mirror.feed(&format!("endless-{n}"), &publisher.url(&format!("/endless-{n}")));
    }
    let mirror = mirror.start();
    mirror.until_level("level");

    // When
    let from = publisher.count("/level");
    until("polled on", || publisher.count("/level") >= from + 9);

    // Then: between two polls come the pages of one short wait, not one of each refresh.
    let requests = publisher.requests();
    let polls: Vec<usize> = (0..requests.len()).filter(|at| requests[*at].path() == "/level").skip(from).collect();
    let mut between: Vec<usize> = polls.windows(2).map(|pair| pair[1] - pair[0] - 1).collect();
    between.sort_unstable();
    assert!(between[between.len() / 2] < ENDLESS, "pages between two polls: {between:?}");
    // And the refreshes alternate among themselves.
    let counts: Vec<usize> = (0..ENDLESS).map(|n| publisher.count(&format!("/endless-{n}"))).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 2, "{counts:?}");
}

#[test]
fn the_rate_of_a_host_is_kept_over_all_feeds() {
    // Given
    let publisher = ScriptedPublisher::start(endless);
    let _mirror = MirrorProcess::new()
        .http("per_host = 4, rate = 25.0")
        .feed("a", &publisher.url("/a"))
        .feed("b", &publisher.url("/b"))
        .feed("c", &publisher.url("/c"))
        .start();

    // When
    until("many requests", || publisher.requests().len() > 45);

    // Then: no second holds more than a second's worth, apart from the clocks' jitter.
    let requests = publisher.requests();
    for pair in requests.windows(26) {
        let took = pair[25].at.duration_since(pair[0].at).as_secs_f64();
        assert!(took > 0.85, "26 requests in {took} s");
    }
}

#[test]
fn after_a_429_a_host_gets_one_request_at_a_time_until_one_succeeds() {
    // Given: four at once, until the publisher throttles twenty requests.
    const REFUSED: usize = 20;
    let (throttled, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let calm_open = Arc::new(AtomicUsize::new(0));
    let (throttling, open, calm) = (Arc::clone(&throttled), Arc::clone(&refused), Arc::clone(&calm_open));
    let publisher = ScriptedPublisher::start(move |request| {
        let delay = Duration::from_millis(20);
        let mut open = open.lock().unwrap();
        if throttling.load(Ordering::SeqCst) && open.len() < REFUSED {
            open.push(request.open);
            return Reply::status(429).after(delay);
        }
        if open.len() == REFUSED {
            calm.fetch_max(request.open, Ordering::SeqCst);
        }
        endless(request).after(delay)
    });
    let mut mirror = MirrorProcess::new().http("per_host = 4");
    for n in 0..6 {
        mirror = mirror.feed(&format!("feed-{n}"), &publisher.url(&format!("/feed-{n}")));
    }
    let _mirror = mirror.start();
    until("four at once", || publisher.most_at_once() == 4);

    // When
    throttled.store(true, Ordering::SeqCst);
    until("enough refusals", || refused.lock().unwrap().len() == REFUSED);

    // Then: once those under way are over, one at a time; afterwards as before.
    let open = refused.lock().unwrap().clone();
    assert!(open[8..].iter().all(|open| *open == 1), "{open:?}");
    until("four at once again", || calm_open.load(Ordering::SeqCst) == 4);
}

#[test]
fn hosts_of_one_pattern_share_one_budget() {
    for (tables, most) in [("", 3), ("[hosts.\"*.example.org\"]\nper_host = 1\n", 1)] {
        // Given: three hosts, all reached through one proxy, so that their names need no DNS.
        let test_feed = TestFeed::of(30, 3);
        let serving = Arc::clone(&test_feed);
        let proxy = ScriptedPublisher::start(move |request| serving.page(request).after(Duration::from_millis(20)));
        let through = format!("http.proxy = \"http://{}\"", proxy.address());
        let mut mirror = MirrorProcess::new().http("per_host = 1").tables(tables);
        for host in ["a", "b", "c.d"] {
            mirror = mirror.feed_with(&format!("feed-{host}"), &format!("http://{host}.example.org/feed"), &through);
        }

        // When
        let mirror = mirror.start();

        // Then
        for host in ["a", "b", "c.d"] {
            mirror.until_level(&format!("feed-{host}"));
            assert_eq!(mirror.live(&format!("feed-{host}")), test_feed.live());
        }
        assert_eq!(proxy.most_at_once(), most, "{tables}");
    }
}

#[test]
fn a_failing_feed_backs_off_alone() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/failing" => Reply::status(500),
        _ => Reply::page(page(&[], &request.target)),
    });
    let _mirror = MirrorProcess::new()
        .feed_with("failing", &publisher.url("/failing"), r#"retry = { min = "50ms", max = "10s" }"#)
        .feed_with("sound", &publisher.url("/sound"), r#"poll = { min = "50ms", max = "50ms" }"#)
        .start();

    // When
    until("many polls of the sound one", || publisher.count("/sound") >= 40);

    // Then: 40 polls take two seconds; by then the doubled waits leave room for a handful of tries.
    assert!(publisher.count("/failing") <= 14, "{:?}", gaps(&publisher, "/failing"));
    assert!(gaps(&publisher, "/failing").iter().all(|gap| *gap >= 0.05));
}

#[test]
fn polls_grow_rare_while_nothing_comes_and_frequent_when_something_does() {
    // Given
    let test_feed = TestFeed::of(2, 10);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror = MirrorProcess::new()
        .feed_with("moody", &publisher.url("/feed"), r#"poll = { min = "50ms", max = "1s" }"#)
        .start();

    // Then: from the shortest wait to the longest.
    until("rare", || gaps(&publisher, "/feed").last().is_some_and(|gap| *gap >= 0.95));
    let idle: Vec<f64> = gaps(&publisher, "/feed").split_off(test_feed.live().len());
    assert!(idle[0] < 0.5, "{idle:?}");
    assert!(idle.iter().all(|gap| *gap < 1.1 + 1.0), "{idle:?}");

    // When: a change at every poll.
    let mut polls = 0;
    until("frequent again", || {
        if publisher.count("/feed") > polls {
            polls = publisher.count("/feed");
            test_feed.put("busy");
        }
        gaps(&publisher, "/feed").last().is_some_and(|gap| *gap > 0.04 && *gap < 0.2)
    });
    mirror.until("the last change", |mirror| mirror.live("moody") == test_feed.live());
}

#[test]
fn an_answer_is_not_asked_for_again_while_it_is_fresh_within_poll_max() {
    // Given (RFC 9111 §4.2.1)
    let publisher = ScriptedPublisher::start(|request| {
        let reply = Reply::page(page(&[], &request.target));
        match request.path() {
            "/max-age" => reply.header("Cache-Control", "public, max-age=1"),
            "/aged" => reply.header("Cache-Control", "max-age=3600").header("Age", "3600"),
            "/expires" => {
                reply.header("Date", "Mon, 06 Mar 2000 10:00:00 GMT").header("Expires", "Mon, 06 Mar 2000 10:00:01 GMT")
            }
            _ => reply.header("Cache-Control", "max-age=86400"),
        }
    });
    let patient = r#"poll = { min = "50ms", max = "20s" }"#;
    let _mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed_with("max-age", &publisher.url("/max-age"), patient)
        .feed_with("expires", &publisher.url("/expires"), patient)
        .feed_with("aged", &publisher.url("/aged"), r#"poll = { min = "50ms", max = "50ms" }"#)
        .feed_with("clamped", &publisher.url("/clamped"), r#"poll = { min = "50ms", max = "400ms" }"#)
        .start();

    // Then
    until("each asked again", || {
        ["/max-age", "/expires", "/clamped"].iter().all(|path| publisher.count(path) >= 3)
            && publisher.count("/aged") >= 6
    });
    for path in ["/max-age", "/expires"] {
        assert!(gaps(&publisher, path).iter().all(|gap| (0.99..6.0).contains(gap)), "{:?}", gaps(&publisher, path));
    }
    assert!(gaps(&publisher, "/clamped").iter().all(|gap| *gap > 0.39), "{:?}", gaps(&publisher, "/clamped"));
    assert!(gaps(&publisher, "/aged").iter().any(|gap| *gap < 0.5), "{:?}", gaps(&publisher, "/aged"));
}

#[test]
fn a_dead_feed_delays_no_feed_of_another_host_and_its_own_only_by_its_share() {
    // Given: a feed that never answers, neighbours on its host, and one elsewhere.
    let (here, there) = (TestFeed::of(20, 5), TestFeed::of(20, 5));
    let (serving_here, serving_there) = (Arc::clone(&here), Arc::clone(&there));
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/dead" => Reply::silence(),
        _ => serving_here.page(request),
    });
    let elsewhere = ScriptedPublisher::start(move |request| serving_there.page(request));

    // When
    let mirror = MirrorProcess::new()
        .feed_with("dead", &publisher.url("/dead"), r#"http.read_timeout = "30s""#)
        .feed("neighbour", &publisher.url("/neighbour"))
        .feed("elsewhere", &elsewhere.url("/feed"))
        .start();
    until("the dead one is asked", || publisher.count("/dead") == 1);

    // Then: level, and changes come, long before the silence ends.
    for (name, test_feed) in [("neighbour", &here), ("elsewhere", &there)] {
        mirror.until_level(name);
        test_feed.put("change");
        mirror.until("a change", |mirror| mirror.live(name) == test_feed.live());
    }
    assert_eq!((publisher.count("/dead"), mirror.row("dead").health), (1, "ok".to_owned()));
}

#[test]
fn who_waits_for_a_place_says_for_which_and_who_holds_it() {
    // Given: one connection slot, and a feed that uses it for long.
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/holder" => Reply::silence(),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mut mirror = MirrorProcess::new()
        .http("per_host = 1")
        .feed_with("holder", &publisher.url("/holder"), r#"http.read_timeout = "60s""#)
        .start();
    until("it holds", || publisher.count("/holder") == 1);

    // When
    mirror.set_feed("waiter", &publisher.url("/waiter"), "");
    mirror.write_config();
    mirror.signal(nix::sys::signal::Signal::SIGHUP);

    // Then
    let row = mirror.until_health("waiter", "ok", "waiting");
    let host = publisher.address().to_string();
    assert!(row.reason.contains(&host) && row.reason.contains("holder"), "{}", row.reason);
}
