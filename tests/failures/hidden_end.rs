//! Ends that never look like one: pages that only repeat, empty pages whose `next` contains the time, redirects that
//! lose the position, validators that mean nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, item, page, until};

/// Without look-backs, which go beside the polls.
const BRISK: &str = r#"poll = { min = "200ms", max = "400ms", lookback = "365d" }"#;

/// Repeats its last three items under an ever-new `next`; `newest` is the last of them.
fn repeating(newest: &Arc<AtomicI64>) -> ScriptedPublisher {
    let (newest, requests) = (Arc::clone(newest), AtomicUsize::new(0));
    ScriptedPublisher::start(move |_| {
        let last = newest.load(Ordering::Relaxed);
        let items: Vec<String> = (last - 2..=last).map(|n| item(&format!("i{n}"), n)).collect();
        Reply::page(page(&items, &format!("?asked={}", requests.fetch_add(1, Ordering::Relaxed))))
    })
}

/// Empty but for the items after the position asked for; its `next` is another one each time.
fn moving(newest: &Arc<AtomicI64>) -> ScriptedPublisher {
    let (newest, requests) = (Arc::clone(newest), AtomicUsize::new(0));
    ScriptedPublisher::start(move |request| {
        let read = request.query().split('&').find_map(|pair| pair.strip_prefix("from=")?.parse().ok()).unwrap_or(0);
        let last = newest.load(Ordering::Relaxed);
        let items: Vec<String> = (read + 1..=last).map(|n| item(&format!("i{n}"), n)).collect();
        Reply::page(page(&items, &format!("?from={last}&now={}", requests.fetch_add(1, Ordering::Relaxed))))
    })
}

fn never_hot(publisher: &ScriptedPublisher, at_once: usize) {
    until("polled on", || publisher.count("/feed") >= at_once + 8);
    let requests = publisher.requests_to("/feed");
    for pair in requests[at_once..].windows(2) {
        let gap = pair[1].at.duration_since(pair[0].at);
        assert!(gap >= Duration::from_millis(180), "asked again after {gap:?}");
    }
}

#[test]
fn a_last_page_that_repeats_its_items_under_an_ever_new_next_is_level_in_practice() {
    // Given
    let newest = Arc::new(AtomicI64::new(3));
    let publisher = repeating(&newest);

    let mirror = MirrorProcess::new().feed_with("torn", &publisher.url("/feed"), BRISK).start();

    // Then: ten pages that repeat the first, and one each poll from then on.
    let row = mirror.until_health("torn", "ok", "repeating-end");
    assert_eq!((row.items, row.mode.as_str(), row.level_at.is_empty()), (3, "poll", false));
    assert!(mirror.finding("torn", "repeating-end") >= 1);
    never_hot(&publisher, 11);

    // And new items come all the same, at the same pace.
    newest.store(5, Ordering::Relaxed);
    mirror.until("the new items", |mirror| mirror.ids("torn").len() == 5);
    let before = publisher.count("/feed");
    never_hot(&publisher, before + 1);
}

#[test]
fn empty_pages_whose_next_carries_the_clock_are_level_in_practice() {
    // Given
    let newest = Arc::new(AtomicI64::new(3));
    let publisher = moving(&newest);

    let mirror = MirrorProcess::new().feed_with("clock", &publisher.url("/feed"), BRISK).start();

    // Then: a page of items, ten empty ones, the last of them twice.
    let row = mirror.until_health("clock", "ok", "moving-end");
    assert_eq!((row.items, row.mode.as_str(), row.level_at.is_empty()), (3, "poll", false));
    let requests = publisher.requests_to("/feed");
    assert_eq!(requests[10].target, requests[11].target, "the tenth empty page is asked for again");
    never_hot(&publisher, 11);

    // And a new item comes.
    newest.store(4, Ordering::Relaxed);
    mirror.until("the new item", |mirror| mirror.ids("clock").len() == 4);
    let before = publisher.count("/feed");
    never_hot(&publisher, before + 1);
}

#[test]
fn a_resync_that_comes_to_such_an_end_sweeps_nothing() {
    // Given: an item that the publisher no longer has.
    let newest = Arc::new(AtomicI64::new(3));
    let publisher = repeating(&newest);
    let mirror = MirrorProcess::new().feed_with("torn", &publisher.url("/feed"), BRISK).start();
    mirror.until_health("torn", "ok", "repeating-end");
    newest.store(6, Ordering::Relaxed);
    mirror.until("the new items", |mirror| mirror.ids("torn").len() == 6);

    assert!(mirror.verb(&["resync", "torn"]).status.success());

    // Then
    mirror.until("the resync's end", |mirror| !mirror.events("torn", "resync-unclean").is_empty());
    assert_eq!(mirror.ids("torn").len(), 6);
    assert_eq!(mirror.number("SELECT count(*) FROM items WHERE swept"), 0);
}

#[test]
fn sync_comes_to_its_end_with_a_remark() {
    // Given
    let (torn, clock) = (repeating(&Arc::new(AtomicI64::new(3))), moving(&Arc::new(AtomicI64::new(3))));
    let mirror = MirrorProcess::new().feed_with("torn", &torn.url("/feed"), BRISK).feed_with(
        "clock",
        &clock.url("/feed"),
        BRISK,
    );
    mirror.write_config();

    for arguments in [&["sync", "--json"][..], &["sync"]] {
        let ran = mirror.verb(arguments);

        let out = String::from_utf8(ran.stdout).unwrap();
        assert_eq!(ran.status.code(), Some(0), "{out}");
        assert!(out.contains("repeating-end") && out.contains("moving-end"), "{out}");
    }
}

#[test]
fn a_redirect_that_loses_the_position_is_never_the_end() {
    // Given: the redirect's target looks like the end of the requested position.
    let publisher = ScriptedPublisher::start(|request| match request.target.as_str() {
        "/feed" => Reply::page(page(&[item("a", 1)], "/moved?from=1")),
        "/moved?from=1" => Reply::redirect(302, "/moved"),
        _ => Reply::page(page(&[], "/moved?from=1")),
    });

    let mirror = MirrorProcess::new().feed_with("moved", &publisher.url("/feed"), BRISK).start();

    // Then
    let row = mirror.until_health("moved", "retrying", "lost-cursor");
    assert_eq!((row.items, row.level_at.as_str()), (1, ""));
    assert!(mirror.finding("moved", "lost-cursor") >= 1);
}

#[test]
fn a_validator_that_is_answered_412_or_with_nothing_is_given_up_after_the_first() {
    for refusal in [Reply::status(412), Reply::page(""), Reply::page("").gzip()] {
        // Given
        let publisher = ScriptedPublisher::start(move |request| match request.header("if-none-match") {
            Some(_) => refusal.clone(),
            None => Reply::page(page(&[], &request.target)).header("ETag", "\"e1\""),
        });

        let mirror = MirrorProcess::new().feed_with("tagged", &publisher.url("/feed"), BRISK).start();

        // Then
        mirror.until_level("tagged");
        until("polled on", || publisher.count("/feed") >= 8);
        let conditional =
            publisher.requests().iter().filter(|request| request.header("if-none-match").is_some()).count();
        assert_eq!(conditional, 1);
        assert_eq!(mirror.row("tagged").word(), "");
        let health = mirror.events("tagged", "health");
        assert!(health.iter().all(|detail| !detail.contains("retrying")), "{health:?}");
    }
}

#[test]
fn a_next_with_a_raw_fragment_or_blanks_around_it_is_followed_and_told() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match request.target.as_str() {
        "/feed" => Reply::page(page(&[item("a", 1)], " /feed?from=1 ")),
        "/feed?from=1" => Reply::page(page(&[item("b", 2)], "/feed?from=2#2&after=b")),
        _ => Reply::page(page(&[], &request.target)),
    });

    let mirror = MirrorProcess::running("odd", &publisher.url("/feed"));

    // Then
    let row = mirror.until_level("odd");
    assert_eq!((row.items, row.cursor), (2, publisher.url("/feed?from=2")));
    let detail = mirror.column("SELECT detail FROM findings WHERE rule = 'next-fragment'");
    assert!(detail[0].contains("2&after=b"), "{detail:?}");
}
