//! Resyncs: which rows they keep, sweep or spare, and which sweeps are held until the operator accepts them.

use feedmirror::feed::{Health, Modified, Transport};
use feedmirror::store::StoreError;
use feedmirror::store::apply::{Applied, DeliveryVerdict, PageStep, Purpose};
use feedmirror::store::feeds::HealthNote;
use feedmirror::store::resync::{ResyncEnd, ResyncStage, SourceTrust};

use crate::test_store::{AT, Record, TestStore, deleted, many, name, registration, unreadable, updated};

/// The share of live items that may be swept without the operator.
const MAX_SWEEP: f64 = 0.2;
pub(crate) const END: &str = "https://acme.example/rpde?afterTimestamp=99";

pub(crate) fn begin(mirror: &TestStore, trust: SourceTrust) {
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, trust, false)).unwrap();
}

pub(crate) fn finish(mirror: &TestStore) -> ResyncEnd {
    let feed = mirror.feed("acme");
    mirror
        .wait(mirror.store().end_resync(feed.id, feed.resync.unwrap().walk_id, AT, MAX_SWEEP, Default::default()))
        .unwrap()
}

/// Runs an accepted sweep, as the resync loop does.
fn sweep(mirror: &TestStore) -> ResyncEnd {
    let feed = mirror.feed("acme");
    mirror.wait(mirror.store().sweep(feed.id, feed.resync.unwrap().walk_id, AT)).unwrap()
}

/// A whole resync that reads these records and ends cleanly.
pub(crate) fn resync(mirror: &TestStore, trust: SourceTrust, records: &[Record]) -> ResyncEnd {
    begin(mirror, trust);
    mirror.walk("acme", END, records);
    finish(mirror)
}

fn live(mirror: &TestStore) -> i64 {
    let counted: i64 = mirror.value("SELECT count(*) FROM live_items WHERE feed = 'acme'");
    assert_eq!(counted, mirror.value::<i64>("SELECT items FROM feeds WHERE name = 'acme'"), "the counter agrees");
    counted
}

fn swept(mirror: &TestStore) -> i64 {
    mirror.value("SELECT count(*) FROM items WHERE swept AND state = 'deleted' AND data IS NULL")
}

#[test]
fn a_resync_keeps_unchanged_rows_and_their_seq_and_sweeps_what_is_gone() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("same", 10, "{}"), updated("gone", 11, "{}"), updated("newer", 12, "{}")]);
    let (same, gone) = (mirror.seq("same"), mirror.seq("gone"));

    let ended = resync(&mirror, SourceTrust::No, &[updated("same", 10, "{}"), updated("newer", 20, "{}")]);

    assert_eq!(ended, ResyncEnd::Done(1));
    assert_eq!(mirror.seq("same"), same);
    assert!(mirror.seq("gone") > gone, "a sweep is a change");
    assert_eq!(mirror.item("gone"), "11 deleted - swept");
    assert_eq!(mirror.item("newer"), "20 updated {}");
    assert_eq!((live(&mirror), mirror.feed("acme").resync), (2, None));
}

#[test]
fn a_resyncs_own_cursor_becomes_the_poll_cursor_only_at_its_clean_end() {
    let mirror = TestStore::with(&["acme"]);
    let before = mirror.cursor("acme");
    begin(&mirror, SourceTrust::No);
    mirror.walk("acme", END, &[updated("1", 10, "{}")]);
    assert_eq!(mirror.cursor("acme"), before);

    finish(&mirror);

    assert_eq!(mirror.cursor("acme"), END);
}

#[test]
fn nothing_is_swept_after_an_unclean_end() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}"), updated("2", 10, "{}")]);
    let before = mirror.cursor("acme");
    begin(&mirror, SourceTrust::No);
    let from_cursor = mirror.feed("acme").resync.unwrap().cursor;
    let generated =
        PageStep { from_cursor, next_cursor: "https://acme.example/made".into(), level: false, clean: false };
    mirror.apply(mirror.delivery("acme", Transport::Poll, Purpose::Resync(generated), &[updated("1", 10, "{}")]));
    mirror.walk("acme", END, &[]);

    assert_eq!(finish(&mirror), ResyncEnd::Unclean);

    assert_eq!((live(&mirror), swept(&mirror)), (2, 0));
    assert_eq!((mirror.cursor("acme"), mirror.feed("acme").resync), (before, None));
}

#[test]
fn items_pushed_or_changed_since_the_walk_began_are_not_swept() {
    let mirror = TestStore::with(&["acme"]);
    let ids = ["pushed-same", "pushed-newer", "pushed-older", "polled-same"];
    mirror.push("acme", &ids.map(|id| updated(id, 10, "{}")));
    mirror.push("acme", &[updated("met", 10, "{}")]);
    begin(&mirror, SourceTrust::No);

    mirror.push("acme", &[updated("pushed-same", 10, "{}"), updated("pushed-newer", 11, "{}")]);
    mirror.push("acme", &[updated("pushed-older", 9, "{}"), updated("pushed-new", 1, "{}")]);
    mirror.poll("acme", &[updated("polled-same", 10, "{}")]);
    mirror.walk("acme", END, &[updated("met", 10, "{}")]);

    assert_eq!(finish(&mirror), ResyncEnd::Done(0));
    assert_eq!(live(&mirror), 6);
}

#[test]
fn records_that_the_walk_quarantined_are_spared_by_their_id() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("broken", 10, "{}"), updated("gone", 10, "{}"), updated("met", 10, "{}")]);
    begin(&mirror, SourceTrust::No);
    let from_cursor = mirror.feed("acme").resync.unwrap().cursor;
    let purpose = Purpose::Resync(crate::test_store::step(&from_cursor, END));
    let mut delivery = mirror.delivery("acme", Transport::Poll, purpose, &[updated("met", 10, "{}")]);
    delivery.page.unreadable.push(unreadable("no-modified", r#"{"id":"broken"}"#, Some("broken")));
    delivery.page.unreadable.push(unreadable("no-id", "{}", None));
    assert_eq!(mirror.apply(delivery).quarantined, 2);

    assert_eq!(finish(&mirror), ResyncEnd::Done(1));

    assert_eq!((mirror.item("broken"), mirror.item("gone")), ("10 updated {}".into(), "10 deleted - swept".into()));
}

#[test]
fn a_sweep_of_everything_is_held_however_small_the_feed() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 3, 10));

    assert_eq!(resync(&mirror, SourceTrust::No, &[]), ResyncEnd::Held(3, 3));

    let feed = mirror.feed("acme");
    assert_eq!((live(&mirror), swept(&mirror)), (3, 0));
    assert_eq!((feed.health, feed.resync.unwrap().stage), (Health::Suspect, ResyncStage::Held));
    let reason = feed.reason.unwrap();
    assert!(reason.starts_with("held-sweep") && reason.contains("3 of 3"), "{reason}");
}

/// Of 500 live items a fifth is 100, and 100 is not over 100.
#[test]
fn a_sweep_of_more_than_a_fifth_and_over_a_hundred_is_held() {
    for (live_before, gone, held) in [(500, 101, true), (500, 100, false), (510, 102, false), (101, 100, false)] {
        let mirror = TestStore::with(&["acme"]);
        mirror.push("acme", &many("n", live_before, 10));

        let ended = resync(&mirror, SourceTrust::No, &many("n", live_before - gone, 10));

        let (gone_rows, live_rows) = (gone as i64, live_before as i64);
        let expected = if held { ResyncEnd::Held(gone_rows, live_rows) } else { ResyncEnd::Done(gone_rows) };
        assert_eq!(ended, expected, "{gone} of {live_before}");
        assert_eq!(swept(&mirror), if held { 0 } else { gone_rows }, "{gone} of {live_before}");
    }
}

#[test]
fn under_trust_source_a_sweep_is_held_as_any_unless_it_was_accepted_beforehand() {
    for (trust, held) in
        [(SourceTrust::Requested, true), (SourceTrust::UrlMoved, true), (SourceTrust::RequestedAndAccepted, false)]
    {
        let mirror = TestStore::with(&["acme"]);
        mirror.push("acme", &many("n", 300, 10));

        let ended = resync(&mirror, trust, &many("n", 10, 5));

        assert_eq!(ended, if held { ResyncEnd::Held(290, 300) } else { ResyncEnd::Done(290) }, "{trust:?}");
        assert_eq!(live(&mirror), if held { 300 } else { 10 }, "{trust:?}");
        let reason = mirror.feed("acme").reason.unwrap_or_default();
        assert_eq!(reason.contains("10 read, 290 to go"), held, "{reason}");
    }
}

#[test]
fn a_resync_whose_newest_item_is_older_than_what_was_polled_before_is_held_however_little_it_would_sweep() {
    // Given: the last two items that were polled are missing from the listing.
    let mirror = TestStore::with(&["acme"]);
    let ids = ["1", "2", "3", "4", "5", "6"];
    let all: Vec<Record> = ids.iter().zip(10..).map(|(id, modified)| updated(id, modified, "{}")).collect();
    mirror.poll("acme", &all);
    let cursor = mirror.cursor("acme");

    // When
    let ended = resync(&mirror, SourceTrust::No, &all[..4]);

    // Then: the reason has both values, and the poll cursor is unchanged.
    assert_eq!(ended, ResyncEnd::Held(2, 6));
    let reason = mirror.feed("acme").reason.unwrap();
    assert!(
        reason.contains("short listing") && reason.contains("13") && reason.contains("4 read, 2 to go"),
        "{reason}"
    );
    assert_eq!((live(&mirror), mirror.cursor("acme")), (6, cursor));

    // When
    mirror.wait(mirror.store().accept_sweep(mirror.feed("acme").id, AT)).unwrap();

    // Then
    assert_eq!((sweep(&mirror), live(&mirror)), (ResyncEnd::Done(2), 4));
    assert_eq!(mirror.feed("acme").health, Health::Ok);
}

#[test]
fn pushed_items_and_items_of_another_kind_make_no_listing_short() {
    let mirror = TestStore::with(&["acme"]);
    let other = |id: &str, modified| Record { kind: "Other".into(), ..updated(id, modified, "{}") };
    mirror.poll("acme", &[updated("1", 10, "{}"), updated("2", 11, "{}"), other("3", 500)]);
    mirror.push("acme", &[updated("pushed", 900, "{}")]);

    let ended = resync(&mirror, SourceTrust::No, &[updated("2", 11, "{}"), other("3", 500)]);

    assert_eq!(ended, ResyncEnd::Done(2));
}

#[test]
fn an_accepted_sweep_goes_on_after_a_restart_and_ends_suspect() {
    let mut mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 3, 10));
    resync(&mirror, SourceTrust::No, &[]);

    mirror.wait(mirror.store().accept_sweep(mirror.feed("acme").id, AT)).unwrap();
    mirror.reopen();
    assert_eq!(mirror.feed("acme").resync.unwrap().stage, ResyncStage::Sweep);
    assert_eq!(sweep(&mirror), ResyncEnd::Done(3));

    let feed = mirror.feed("acme");
    assert_eq!((live(&mirror), swept(&mirror)), (0, 3));
    assert_eq!((feed.health, feed.reason, feed.resync), (Health::Ok, None, None));
}

#[test]
fn what_comes_back_while_a_sweep_is_held_is_not_swept_once_accepted() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 3, 10));
    resync(&mirror, SourceTrust::No, &[]);

    mirror.push("acme", &[updated("n1", 10, "{}")]);
    mirror.wait(mirror.store().accept_sweep(mirror.feed("acme").id, AT)).unwrap();
    sweep(&mirror);

    assert_eq!((mirror.item("n1"), live(&mirror)), ("10 updated {}".into(), 1));
}

#[test]
fn there_is_nothing_to_accept_where_no_sweep_is_held() {
    let mirror = TestStore::with(&["acme"]);
    begin(&mirror, SourceTrust::No);

    let accepted = mirror.wait(mirror.store().accept_sweep(mirror.feed("acme").id, AT));

    assert!(matches!(accepted, Err(StoreError::Refused(_))), "{accepted:?}");
}

#[test]
fn trust_source_replaces_what_is_newer_and_was_stored_before_the_walk_began() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("newer", 900, r#"{"n":9}"#), deleted("revived", 900), updated("same", 5, "{}")]);
    let same = mirror.seq("same");
    begin(&mirror, SourceTrust::Requested);
    mirror.push("acme", &[updated("pushed", 900, "{}")]);

    let page =
        [updated("newer", 5, "{}"), updated("revived", 5, "{}"), updated("same", 5, "{}"), updated("pushed", 5, "{}")];
    let applied = mirror.walk("acme", END, &page);

    assert_eq!(applied, Applied { changed: 2, same: 1, older: 1, ..Applied::default() });
    assert_eq!(mirror.item("newer"), "5 updated {}");
    assert_eq!(mirror.item("revived"), "5 updated {}");
    assert_eq!(mirror.item("pushed"), "900 updated {}");
    assert_eq!(mirror.seq("same"), same);
}

/// A publisher restored from a backup pushes its old versions while the walk is under way.
#[test]
fn an_older_version_pushed_during_the_walk_does_not_shield_the_row_from_trust_source() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 900, r#"{"n":9}"#)]);
    begin(&mirror, SourceTrust::Requested);
    assert_eq!(mirror.push("acme", &[updated("1", 5, "{}")]).older, 1);

    assert_eq!(mirror.walk("acme", END, &[updated("1", 5, "{}")]).changed, 1);

    assert_eq!(mirror.item("1"), "5 updated {}");
}

#[test]
fn within_a_trust_source_walk_the_newest_of_duplicates_is_kept() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 900, "{}"), updated("2", 7, "{}")]);
    begin(&mirror, SourceTrust::Requested);

    mirror.walk(
        "acme",
        END,
        &[updated("1", 8, "{}"), updated("1", 6, "{}"), updated("2", 7, "{}"), updated("2", 3, "{}")],
    );

    assert_eq!((mirror.item("1"), mirror.item("2")), ("8 updated {}".into(), "7 updated {}".into()));
}

#[test]
fn a_plain_resync_does_not_take_the_trust_from_a_walk_that_has_it() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 900, "{}")]);
    begin(&mirror, SourceTrust::UrlMoved);
    begin(&mirror, SourceTrust::No);

    assert_eq!(mirror.walk("acme", END, &[updated("1", 5, "{}")]).changed, 1);
}

#[test]
fn a_resync_survives_a_restart_with_its_cursor_and_seen_items() {
    let mut mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("met", 10, "{}"), updated("gone", 10, "{}"), updated("later", 10, "{}")]);
    begin(&mirror, SourceTrust::No);
    mirror.walk("acme", "https://acme.example/2", &[updated("met", 10, "{}")]);

    mirror.reopen();
    assert_eq!(mirror.feed("acme").resync.unwrap().cursor, "https://acme.example/2");
    mirror.walk("acme", END, &[updated("later", 10, "{}")]);

    assert_eq!(finish(&mirror), ResyncEnd::Done(1));
    assert_eq!((mirror.item("gone"), live(&mirror)), ("10 deleted - swept".into(), 2));
}

#[test]
fn what_one_resync_began_is_not_ended_by_another() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}"), updated("2", 10, "{}")]);
    begin(&mirror, SourceTrust::No);
    mirror.walk("acme", END, &[updated("1", 10, "{}")]);
    let feed = mirror.feed("acme");
    begin(&mirror, SourceTrust::Requested);

    let replaced = feed.resync.unwrap().walk_id;
    let ended = mirror.wait(mirror.store().end_resync(feed.id, replaced, AT, MAX_SWEEP, Default::default())).unwrap();

    assert_eq!(ended, ResyncEnd::Replaced);
    assert_eq!((live(&mirror), mirror.cursor("acme")), (2, feed.cursor.unwrap()));
}

#[test]
fn a_page_of_the_walk_asked_with_another_cursor_is_not_written() {
    let mirror = TestStore::with(&["acme"]);
    begin(&mirror, SourceTrust::No);
    let purpose = Purpose::Resync(crate::test_store::step("https://acme.example/elsewhere", END));

    let applied = mirror.apply(mirror.delivery("acme", Transport::Poll, purpose, &[updated("1", 10, "{}")]));

    assert_eq!(applied.verdict, DeliveryVerdict::CursorMoved);
    assert_eq!(live(&mirror), 0);
}

#[test]
fn a_feed_is_suspect_once_eleven_of_the_last_twenty_differing_polled_items_were_older() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 20, 100));
    let newer: Vec<_> = many("n", 9, 101);
    let older = |count: usize| many("n", count, 50).into_iter().map(|record| Record { id: "n19".into(), ..record });

    mirror.poll("acme", &newer);
    let same = mirror.poll("acme", &many("n", 9, 101));
    assert_eq!(same.same, 9, "items that are equal don't count");
    let ten = mirror.poll("acme", &older(10).collect::<Vec<_>>());
    assert_eq!((ten.older, ten.suspect), (10, None));
    let eleventh = mirror.poll("acme", &[Record { modified: Modified::Int(51), ..updated("n19", 0, "{}") }]);

    let reason = eleventh.suspect.expect("suspect");
    assert!(reason.starts_with("went-back"), "{reason}");
    assert!(reason.contains("51") && reason.contains("100"), "both values: {reason}");
    let note = HealthNote { health: Health::Ok, reason: None, failures: 0, next_poll_at: None };
    mirror.wait(mirror.store().record_health(mirror.feed("acme").id, AT, note)).unwrap();
    assert_eq!(mirror.feed("acme").health, Health::Suspect, "only a resync ends it");
    assert_eq!(live(&mirror), 20, "nothing is removed unasked");

    assert_eq!(resync(&mirror, SourceTrust::Requested, &many("n", 20, 50)), ResyncEnd::Done(0));
    assert_eq!((mirror.feed("acme").health, mirror.item("n19")), (Health::Ok, "50 updated {}".into()));
}

/// A slow poll is answered with the items that the publisher had at the time of the request.
#[test]
fn items_pushed_during_a_request_make_no_feed_suspect() {
    let mirror = TestStore::with(&["acme"]);
    mirror.poll("acme", &many("n", 30, 100));
    let request_seq = mirror.feed("acme").last_seq;
    mirror.push("acme", &many("n", 30, 900));

    let cursor = mirror.cursor("acme");
    let poll = |start_seq| {
        let purpose = Purpose::Poll(crate::test_store::step(&cursor, &cursor));
        let mut delivery = mirror.delivery("acme", Transport::Poll, purpose, &many("n", 30, 101));
        delivery.start_seq = start_seq;
        mirror.apply(delivery)
    };
    let applied = poll(request_seq);

    assert_eq!((applied.older, applied.suspect), (30, None));
    assert!(poll(mirror.feed("acme").last_seq).suspect.is_some(), "an item stored before the request counts");
}

#[test]
fn push_and_look_backs_never_make_a_feed_suspect() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 30, 100));

    assert_eq!(mirror.push("acme", &many("n", 30, 1)).suspect, None);
    assert_eq!(mirror.look_back("acme", &many("n", 30, 1)).suspect, None);
}

#[test]
fn a_feed_whose_url_moves_is_read_anew_trusting_the_source_with_its_rows_kept() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 900, "{}"), updated("2", 900, "{}")]);
    let before = mirror.feed("acme");
    let mut moved = registration("acme");
    moved.url = "https://new.example/rpde".into();
    mirror.wait(mirror.store().register(AT, vec![moved.clone()], true)).unwrap();

    let feed = mirror.feed("acme");
    assert_eq!((feed.cursor, feed.generation), (None, before.generation + 1));
    let resync = feed.resync.unwrap();
    assert_eq!((resync.cursor.as_str(), resync.trust), (moved.url.as_str(), SourceTrust::UrlMoved));
    assert_eq!(live(&mirror), 2);

    mirror.walk("acme", "https://new.example/end", &[updated("1", 5, "{}")]);
    assert_eq!(finish(&mirror), ResyncEnd::Done(1));
    assert_eq!((mirror.item("1"), mirror.item("2")), ("5 updated {}".into(), "900 deleted - swept".into()));
    assert_eq!(mirror.cursor("acme"), "https://new.example/end");
}

#[test]
fn a_moved_feed_in_which_nothing_is_found_again_is_held() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 900, "{}")]);
    let mut moved = registration("acme");
    moved.url = "https://new.example/rpde".into();
    mirror.wait(mirror.store().register(AT, vec![moved], true)).unwrap();
    mirror.walk("acme", "https://new.example/end", &[]);

    assert_eq!(finish(&mirror), ResyncEnd::Held(1, 1));

    assert_eq!(live(&mirror), 1);
}

#[test]
fn a_url_that_changes_its_query_or_scheme_alone_is_the_same_feed() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}")]);
    let cursor = "https://acme.example/rpde?afterTimestamp=10&afterId=1";
    mirror.wait(mirror.store().seek(&name("acme"), AT, cursor.into())).unwrap();
    let mut same = registration("acme");
    same.url = "http://acme.example/rpde?limit=100".into();

    mirror.wait(mirror.store().register(AT, vec![same], true)).unwrap();

    // Then: its position is the same, in the form of the new URL.
    let feed = mirror.feed("acme");
    let rebased = "http://acme.example/rpde?afterTimestamp=10&afterId=1&limit=100";
    assert_eq!((feed.cursor.as_deref(), feed.generation, feed.resync), (Some(rebased), 1, None));
}
