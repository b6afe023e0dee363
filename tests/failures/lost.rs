//! 404 and 410: a dead cursor is told apart from a feed that is gone, and neither is read over and over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::statuses::{HOUR, switched};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, until};

/// A publisher whose positions die whenever it is rebuilt: only those of the present era are known.
struct RebuiltPublisher {
    test_feed: Arc<TestFeed>,
    era: Arc<AtomicUsize>,
    publisher: ScriptedPublisher,
}

impl RebuiltPublisher {
    fn start(status: u16) -> Self {
        let (test_feed, era) = (TestFeed::of(5, 2), Arc::new(AtomicUsize::new(1)));
        let (serving, present) = (Arc::clone(&test_feed), Arc::clone(&era));
        let publisher = ScriptedPublisher::start(move |request| {
            let era = present.load(Ordering::SeqCst);
            if !request.query().is_empty() && !request.query().contains(&format!("era={era}")) {
                return Reply::status(status);
            }
            Reply::page(serving.json(request).replace("?from", &format!("?era={era}&from")))
        });
        Self { test_feed, era, publisher }
    }

    fn rebuild(&self) {
        self.era.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_dead_cursor_of_a_living_feed_is_a_resync_that_sweeps_and_then_at_most_weekly() {
    for status in [404, 410] {
        // Given
        let rebuilt = RebuiltPublisher::start(status);
        let mirror = MirrorProcess::running("rebuilt", &rebuilt.publisher.url("/feed"));
        mirror.until_level("rebuilt");
        assert_eq!(mirror.live("rebuilt"), rebuilt.test_feed.live());

        // When
        rebuilt.test_feed.forget("id-0");
        rebuilt.test_feed.put("id-new");
        rebuilt.rebuild();

        // Then: read anew without an order, and items that are gone are swept tombstones.
        mirror.until("resynced", |mirror| !mirror.events("rebuilt", "resync-done").is_empty());
        assert_eq!(mirror.live("rebuilt"), rebuilt.test_feed.live());
        assert_eq!(mirror.column("SELECT id FROM items WHERE swept AND state = 'deleted' AND data IS NULL"), ["id-0"]);
        mirror.until_health("rebuilt", "ok", "");
        rebuilt.test_feed.put("id-newer");
        mirror.until("polling goes on from there", |mirror| mirror.live("rebuilt") == rebuilt.test_feed.live());

        // When it happens again within the week
        rebuilt.rebuild();

        // Then
        let row = mirror.until_health("rebuilt", "stuck", "dead-cursor");
        assert_eq!(row.items, 6);
        assert_eq!(mirror.events("rebuilt", "resync-began").len(), 1);
        assert_eq!(mirror.live("rebuilt"), rebuilt.test_feed.live());
    }
}

#[test]
fn sync_reads_a_feed_with_a_dead_cursor_anew_at_once() {
    // Given
    let rebuilt = RebuiltPublisher::start(404);
    let mirror = MirrorProcess::new().feed("rebuilt", &rebuilt.publisher.url("/feed"));
    assert!(mirror.verb(&["sync"]).status.success());
    rebuilt.test_feed.forget("id-0");
    rebuilt.rebuild();

    // When
    let output = mirror.verb(&["sync"]);

    // Then
    assert!(output.status.success(), "{output:?}");
    assert_eq!(mirror.live("rebuilt"), rebuilt.test_feed.live());
}

#[test]
fn a_feed_with_a_dead_page_in_its_middle_is_not_read_over_and_over() {
    // Given: a page that is never there; the page before it always refers to it.
    let test_feed = TestFeed::of(12, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.query().contains("from=6&") {
        true => Reply::status(404),
        false => serving.page(request),
    });

    let mirror = MirrorProcess::running("torn", &publisher.url("/feed"));

    // Then: read anew, a second time in case its positions had changed meanwhile, and then no more within the week.
    let row = mirror.until_health("torn", "stuck", "dead-cursor");
    assert_eq!((row.items, row.mode.as_str()), (6, "refresh"));
    let requests = |part: &str| publisher.requests().iter().filter(|request| request.query().contains(part)).count();
    let dead = requests("from=6&");
    until("the cursor is asked on", || requests("from=6&") > dead + 8);
    assert_eq!(requests("from=2&"), 3);
    mirror.until("both are told", |mirror| mirror.events("torn", "resync-failed").len() == 2);
}

#[test]
fn a_feed_that_is_gone_keeps_its_rows_but_not_live_and_is_probed_hourly() {
    // Given
    let (test_feed, broken) = (TestFeed::of(3, 2), Arc::new(AtomicBool::new(false)));
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(switched(&test_feed, &broken, move |request| match request.path() {
        "/gone" => Reply::status(404),
        _ => serving.page(request),
    }));
    let mut mirror =
        MirrorProcess::new().feed("gone", &publisher.url("/gone")).feed("other", &publisher.url("/other")).start();
    mirror.until_level("gone");
    mirror.until_level("other");

    // When
    broken.store(true, Ordering::SeqCst);

    // Then
    let row = mirror.until_health("gone", "gone", "http-404");
    assert!((HOUR - 40.0..1.2 * HOUR).contains(&row.next_poll_in_s), "{} s", row.next_poll_in_s);
    assert_eq!((row.items, row.tombstones), (3, 0));
    assert_eq!(mirror.number("SELECT count(*) FROM items WHERE feed = 'gone' AND state = 'updated'"), 3);
    assert!(mirror.live("gone").is_empty());
    assert_eq!(mirror.live("other"), test_feed.live());
    // Its own URL was asked too before the feed was called gone.
    assert!(publisher.requests_to("/gone").iter().any(|request| request.count > 1 && request.query().is_empty()));

    // When the feed is back, and polled
    mirror.stop();
    broken.store(false, Ordering::SeqCst);
    assert!(mirror.verb(&["sync"]).status.success());

    // Then
    assert_eq!(mirror.live("gone"), test_feed.live());
}

#[test]
fn a_gone_feed_is_purged_by_itself_where_that_is_configured() {
    // Given
    let (test_feed, broken) = (TestFeed::of(3, 2), Arc::new(AtomicBool::new(false)));
    let publisher = ScriptedPublisher::start(switched(&test_feed, &broken, |_| Reply::status(410)));
    let mirror = MirrorProcess::new().feed_with("gone", &publisher.url("/feed"), r#"purge_gone_after = "1ms""#).start();
    mirror.until_level("gone");
    broken.store(true, Ordering::SeqCst);
    mirror.until_health("gone", "gone", "http-410");

    // When it is polled again, and still gone
    assert!(mirror.verb(&["poll-now", "gone"]).status.success());

    // Then: followers get its removal too.
    mirror.until_health("gone", "paused", "paused");
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 0);
    assert_eq!(mirror.rows("SELECT feed, kind, id, state FROM changes"), [["gone", "", "", "purged"]]);
}
