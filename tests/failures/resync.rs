//! Resyncs: beside polling, without noise, with a sweep only after a clean end, and held where the sweep would remove
//! too much.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, page_without_next, until};

fn seqs(mirror: &MirrorProcess, feed: &str) -> BTreeMap<String, String> {
    let rows = mirror.rows(&format!("SELECT id, seq FROM live_items WHERE feed = '{feed}'"));
    rows.into_iter().map(|mut row| (row.swap_remove(0), row.swap_remove(0))).collect()
}

#[test]
fn a_regular_resync_runs_beside_polling_and_gives_unchanged_items_no_new_seq() {
    // Given
    let test_feed = TestFeed::of(40, 5);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request).after(Duration::from_millis(10)));
    let mirror =
        MirrorProcess::new().feed_with("regular", &publisher.url("/feed"), r#"resync.every = "400ms""#).start();
    mirror.until_level("regular");
    let before = seqs(&mirror, "regular");

    // When: a record vanishes, and others appear and change during the resync.
    test_feed.forget("id-3");
    test_feed.put("id-7");
    let done = mirror.events("regular", "resync-done").len();
    for n in 0..20 {
        test_feed.put(&format!("new-{n}"));
        mirror.until("the new one, polled", |mirror| mirror.ids("regular").contains(&format!("new-{n}")));
    }

    // Then
    mirror.until("two resyncs more", |mirror| mirror.events("regular", "resync-done").len() >= done + 2);
    assert_eq!(mirror.live("regular"), test_feed.live());
    assert_eq!(mirror.column("SELECT id FROM items WHERE state = 'deleted' AND swept"), ["id-3"]);
    let after = seqs(&mirror, "regular");
    let changed: Vec<&String> = before.keys().filter(|id| after.get(*id) != before.get(*id)).collect();
    assert_eq!(changed, ["id-3", "id-7"]);
    assert_eq!(mirror.events("regular", "mode").len(), 1);
    assert!(mirror.events("regular", "health").is_empty());
}

#[test]
fn without_a_clean_end_nothing_is_swept() {
    // Given: publishers whose end never has the standard's sign: without `next`, with a constructed one, or on a page
    // with items.
    let shortened = Arc::new(AtomicBool::new(false));
    let short = Arc::clone(&shortened);
    let publisher = ScriptedPublisher::start(move |request| {
        let mut items: Vec<String> = (0..4).map(|n| item(&format!("i{n}"), n + 1)).collect();
        if short.load(Ordering::SeqCst) {
            items.remove(2);
        }
        match (request.path(), request.query()) {
            ("/none", _) => Reply::page(page_without_next(&items)),
            ("/own", _) => Reply::page(page(&items, &request.target)),
            ("/made", "from=0") => Reply::page(page_without_next(&items)),
            _ => Reply::page(page(&[], &request.target)),
        }
    });
    let every = r#"resync.every = "300ms""#;
    let mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed_with("none", &publisher.url("/none"), every)
        .feed_with("own", &publisher.url("/own"), every)
        .feed_with("made", &publisher.url("/made?from=0"), every)
        .start();
    let names = ["none", "own", "made"];
    names.iter().for_each(|name| drop(mirror.until_level(name)));

    // When
    shortened.store(true, Ordering::SeqCst);
    let before = names.map(|name| mirror.events(name, "resync-unclean").len());

    // Then
    for (name, before) in names.iter().zip(before) {
        mirror.until("two that end unclean", |mirror| mirror.events(name, "resync-unclean").len() >= before + 2);
        assert_eq!((mirror.row(name).items, mirror.row(name).tombstones), (4, 0), "{name}");
        assert_eq!(mirror.events(name, "resync-done"), [] as [&str; 0], "{name}");
    }
}

#[test]
fn an_old_last_page_from_a_cache_ends_no_resync() {
    // Given: a feed that was level at its second page once, and has gone on to a third since.
    let (grown, stale) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (growing, caching) = (Arc::clone(&grown), Arc::clone(&stale));
    let publisher = ScriptedPublisher::start(move |request| {
        let items = |range: std::ops::Range<i64>| range.map(|n| item(&format!("i{n}"), n)).collect::<Vec<_>>();
        match request.query() {
            "" => Reply::page(page(&items(1..4), "/feed?p=1")),
            "p=1" if growing.load(Ordering::SeqCst) && !caching.swap(false, Ordering::SeqCst) => {
                Reply::page(page(&items(4..8), "/feed?p=2"))
            }
            _ => Reply::page(page(&[], &request.target)),
        }
    });
    let mirror = MirrorProcess::new().feed_with("cached", &publisher.url("/feed"), r#"resync.every = "1s""#).start();
    mirror.until_level("cached");
    grown.store(true, Ordering::SeqCst);
    mirror.until("all of it", |mirror| mirror.row("cached").items == 7);

    // When: the next resync is served the earlier last page.
    stale.store(true, Ordering::SeqCst);
    mirror.until("the old page was served", |_| !stale.load(Ordering::SeqCst));
    let done = mirror.events("cached", "resync-done").len();
    mirror.until("a resync more", |mirror| mirror.events("cached", "resync-done").len() > done);

    // Then
    assert_eq!((mirror.row("cached").items, mirror.row("cached").tombstones), (7, 0));
}

#[test]
fn a_resync_without_a_clean_end_comes_again_only_when_it_is_due() {
    // Given
    let publisher = ScriptedPublisher::start(|_| Reply::page(page_without_next(&[item("a", 1)])));
    let mirror = MirrorProcess::new().feed_with("none", &publisher.url("/none"), r#"resync.every = "1s""#).start();

    // When
    mirror.until("three of them", |mirror| mirror.events("none", "resync-unclean").len() >= 3);

    // Then
    let gaps = mirror.column(
        "SELECT (julianday(at) - julianday(lag(at) OVER (ORDER BY at))) * 86400 FROM events WHERE what = 'resync-began'",
    );
    let gaps: Vec<f64> = gaps.iter().filter(|gap| !gap.is_empty()).map(|gap| gap.parse().unwrap()).collect();
    assert!(gaps.len() >= 2 && gaps.iter().all(|gap| *gap > 0.99), "{gaps:?}");
}

#[test]
fn resyncs_go_one_a_host_at_a_time() {
    // Given
    let test_feed = TestFeed::of(20, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request).after(Duration::from_millis(5)));
    let names = ["one", "two", "three"];
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for name in names {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();
    names.iter().for_each(|name| drop(mirror.until_level(name)));
    let before = publisher.requests().len();

    // When
    assert!(mirror.verb(&["resync", "one", "two", "three"]).status.success());
    for name in names {
        mirror.until("resynced", |mirror| !mirror.events(name, "resync-done").is_empty());
    }

    // Then: the pages before the end, which polling doesn't request, come feed by feed.
    let mut order: Vec<String> = publisher.requests()[before..]
        .iter()
        .filter(|request| !request.query().contains("from=20&"))
        .map(|request| request.path().to_owned())
        .collect();
    assert_eq!(order.len(), 30);
    order.dedup();
    assert_eq!(order.len(), 3, "{order:?}");
}

#[test]
fn a_sweep_of_everything_or_of_too_much_is_held_until_it_is_accepted() {
    // Given: name, items, how many of them vanish, and whether that is too much (over a fifth and over 100, or all).
    let cases = [("all", 3, 3, true), ("third", 330, 110, true), ("many", 600, 110, false), ("small", 60, 59, false)];
    let test_feeds: Vec<Arc<TestFeed>> = cases.iter().map(|(_, items, _, _)| TestFeed::of(*items, 500)).collect();
    let serving = test_feeds.clone();
    let publisher = ScriptedPublisher::start(move |request| {
        let at = cases.iter().position(|(name, ..)| request.path() == format!("/{name}")).unwrap();
        serving[at].page(request)
    });
    let mut mirror = MirrorProcess::new().http("per_host = 4");
    for (name, ..) in cases {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();
    cases.iter().for_each(|(name, ..)| drop(mirror.until_level(name)));

    // When
    for ((_, _, vanish, _), test_feed) in cases.iter().zip(&test_feeds) {
        (0..*vanish).for_each(|n| test_feed.forget(&format!("id-{n}")));
    }
    assert!(mirror.verb(&["resync", "all", "third", "many", "small"]).status.success());

    // Then
    for ((name, items, vanish, is_held), test_feed) in cases.iter().zip(&test_feeds) {
        if *is_held {
            let row = mirror.until_health(name, "suspect", "held-sweep");
            assert!(row.reason.contains(&format!("{vanish} of {items}")), "{}", row.reason);
            assert_eq!((row.items, row.tombstones), (*items as i64, 0), "{name}");
            assert_eq!(mirror.live(name).len(), *items, "{name}");
        } else {
            mirror.until("swept", |mirror| !mirror.events(name, "resync-done").is_empty());
            assert_eq!(mirror.live(name), test_feed.live(), "{name}");
            assert_eq!(mirror.row(name).tombstones, *vanish as i64, "{name}");
        }
    }

    // When
    assert!(mirror.verb(&["resync", "--accept", "third"]).status.success());

    // Then: that sweep, and no other.
    mirror.until_health("third", "ok", "");
    assert_eq!(mirror.live("third"), test_feeds[1].live());
    assert_eq!((mirror.row("all").health.as_str(), mirror.row("all").items), ("suspect", 3));
}

#[test]
fn a_held_sweep_is_still_held_after_a_restart() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::running("all", &publisher.url("/feed"));
    mirror.until_level("all");
    test_feed.clear();
    assert!(mirror.verb(&["resync", "all"]).status.success());
    mirror.until_health("all", "suspect", "held-sweep");

    // When
    mirror.kill();
    mirror.start_again();

    // Then
    let before = mirror.row("all").polled_at;
    mirror.until("polled on", |mirror| mirror.row("all").polled_at > before);
    assert_eq!((mirror.row("all").health.as_str(), mirror.row("all").items), ("suspect", 3));
    assert!(mirror.verb(&["resync", "--accept", "all"]).status.success());
    mirror.until("swept", |mirror| mirror.row("all").items == 0);
}

#[test]
fn a_record_that_a_resync_cannot_read_is_not_swept() {
    // Given
    let spoilt = Arc::new(AtomicBool::new(false));
    let bad = Arc::clone(&spoilt);
    let publisher = ScriptedPublisher::start(move |request| match (request.query(), bad.load(Ordering::SeqCst)) {
        ("", false) => Reply::page(page(&[item("a", 1), item("b", 2), item("c", 3), item("d", 4)], "?from=4")),
        ("", true) => Reply::page(page(&[item("a", 1), item("b", 2).replace("updated", "?"), item("d", 4)], "?from=4")),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::running("spoilt", &publisher.url("/feed"));
    mirror.until_level("spoilt");

    // When
    spoilt.store(true, Ordering::SeqCst);
    assert!(mirror.verb(&["resync", "spoilt"]).status.success());

    // Then: `b` is there, though it can't be read; `c` is gone.
    mirror.until("resynced", |mirror| !mirror.events("spoilt", "resync-done").is_empty());
    assert_eq!(mirror.ids("spoilt"), ["a", "b", "d"]);
}

#[test]
fn a_feed_whose_url_moves_is_read_anew_and_trusted_while_its_old_rows_are_served() {
    // Given: the new URL has other items, some older than those of the old one, and holds back its second page.
    let (old, new, open) = (TestFeed::of(6, 2), TestFeed::new(2), Arc::new(AtomicBool::new(false)));
    for (id, modified) in [("id-4", 1), ("id-5", 2), ("other", 3)] {
        new.put_at(id, modified);
    }
    let (serving_old, serving_new, opened) = (Arc::clone(&old), Arc::clone(&new), Arc::clone(&open));
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/old" => serving_old.page(request),
        _ if !request.query().is_empty() && !opened.load(Ordering::SeqCst) => Reply::status(500),
        _ => serving_new.page(request),
    });
    let mut mirror = MirrorProcess::running("moving", &publisher.url("/old"));
    mirror.until_level("moving");

    // When
    mirror.set_feed("moving", &publisher.url("/new"), "");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then: no item is removed before the new URL was read to its end.
    until("the new place is read", || publisher.requests_to("/new").iter().any(|request| !request.query().is_empty()));
    let ids = mirror.ids("moving");
    assert!(old.live().keys().all(|id| ids.contains(id)), "{ids:?}");
    let asked_old = publisher.count("/old");

    // When
    open.store(true, Ordering::SeqCst);

    // Then
    mirror.until("what the new place says", |mirror| mirror.live("moving") == new.live());
    let row = mirror.until_level("moving");
    assert!(row.cursor.starts_with(&publisher.url("/new")), "{}", row.cursor);
    assert_eq!(publisher.count("/old"), asked_old);
    new.put("after");
    mirror.until("polling goes on there", |mirror| mirror.live("moving") == new.live());
}

#[test]
fn a_place_moved_to_that_is_torn_is_not_read_over_and_over_and_the_old_rows_stay() {
    // Given
    let test_feed = TestFeed::of(6, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/new" if request.query().contains("from=4&") => Reply::status(410),
        _ => serving.page(request),
    });
    let mut mirror = MirrorProcess::running("moving", &publisher.url("/old"));
    mirror.until_level("moving");

    // When
    mirror.set_feed("moving", &publisher.url("/new"), "");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then: twice, then hourly.
    mirror.until("a long wait", |mirror| mirror.row("moving").next_poll_in_s > 3_000.0);
    let row = mirror.row("moving");
    assert_eq!((row.health.as_str(), row.word()), ("retrying", "http-410"));
    assert_eq!(publisher.requests_to("/new").iter().filter(|request| request.query().is_empty()).count(), 2);
    assert_eq!(mirror.live("moving"), test_feed.live());
}

#[test]
fn a_resync_survives_a_kill_and_goes_on_from_its_own_cursor() {
    // Given: a resync that hangs at its third page.
    let test_feed = TestFeed::of(12, 2);
    let (serving, hang) = (Arc::clone(&test_feed), Arc::new(AtomicBool::new(false)));
    let hanging = Arc::clone(&hang);
    let publisher = ScriptedPublisher::start(move |request| {
        let hangs = request.query().contains("from=4&") && hanging.load(Ordering::SeqCst);
        if hangs { Reply::silence() } else { serving.page(request) }
    });
    let mut mirror = MirrorProcess::running("killed", &publisher.url("/feed"));
    mirror.until_level("killed");
    let before = seqs(&mirror, "killed");
    hang.store(true, Ordering::SeqCst);
    test_feed.forget("id-10");
    assert!(mirror.verb(&["resync", "killed"]).status.success());
    until("it hangs", || {
        publisher.requests().iter().any(|request| request.query().contains("from=4&") && request.count == 2)
    });

    // The request's effect is written a moment later.
    mirror.until("two pages are written", |mirror| mirror.column("SELECT cursor FROM resync")[0].contains("from=4&"));

    // When
    mirror.kill();
    hang.store(false, Ordering::SeqCst);
    mirror.start_again();

    // Then
    mirror.until("resynced", |mirror| !mirror.events("killed", "resync-done").is_empty());
    assert_eq!(mirror.live("killed"), test_feed.live());
    assert_eq!(publisher.requests().iter().filter(|request| request.target == "/feed").count(), 2);
    let after = seqs(&mirror, "killed");
    assert!(after.iter().all(|(id, seq)| before.get(id) == Some(seq)), "unchanged items got a new seq");
}
