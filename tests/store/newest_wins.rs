//! Newest wins: which versions are written, and which are refused.

use feedmirror::feed::{Modified, TiePolicy, Transport};
use feedmirror::store::StoreError;
use feedmirror::store::apply::{Applied, DeliveryVerdict, Purpose, PushPosition};
use feedmirror::store::resync::{ResyncEnd, SourceTrust};
use rusqlite::types::Value;

use crate::test_store::{AT, Record, TestStore, deleted, end, many, name, step, updated};

#[test]
fn a_late_update_does_not_revive_a_tombstone() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}"), deleted("1", 20)]);

    let applied = mirror.push("acme", &[updated("1", 15, "{}")]);

    assert_eq!(applied, Applied { older: 1, ..Applied::default() });
    assert_eq!(mirror.item("1"), "20 deleted -");
}

#[test]
fn a_deletion_beats_an_update_of_the_same_modified_in_either_order() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}"), deleted("2", 10)]);

    let applied = mirror.push("acme", &[deleted("1", 10), updated("2", 10, "{}")]);

    assert_eq!(applied, Applied { changed: 1, deleted: 1, tied: 1, ..Applied::default() });
    assert_eq!((mirror.item("1"), mirror.item("2")), ("10 deleted -".into(), "10 deleted -".into()));
}

#[test]
fn a_deletion_beats_an_update_on_a_tie_in_a_resync_and_with_ties_replace_too() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[deleted("1", 10)]);
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();

    let mut delivery = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("1", 10, "{}")]);
    delivery.ties = TiePolicy::Replace;

    assert_eq!(mirror.apply(delivery).tied, 1);
    assert_eq!(mirror.walk("acme", "https://acme.example/2", &[updated("1", 10, "{}")]).tied, 1);
    assert_eq!(mirror.item("1"), "10 deleted -");
}

#[test]
fn of_two_tied_updates_the_stored_one_stays_unless_the_feed_says_replace() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, r#"{"n":1}"#)]);

    assert_eq!(mirror.push("acme", &[updated("1", 10, r#"{"n":2}"#)]).tied, 1);
    assert_eq!(mirror.item("1"), r#"10 updated {"n":1}"#);

    let mut delivery = mirror.delivery("acme", Transport::Sse, Purpose::Reread, &[updated("1", 10, r#"{"n":3}"#)]);
    delivery.ties = TiePolicy::Replace;
    assert_eq!(mirror.apply(delivery).changed, 1);
    assert_eq!(mirror.item("1"), r#"10 updated {"n":3}"#);
}

#[test]
fn in_a_resync_the_incoming_one_of_two_tied_updates_is_stored() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, r#"{"n":1}"#)]);
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();

    assert_eq!(mirror.walk("acme", "https://acme.example/2", &[updated("1", 10, r#"{"n":2}"#)]).changed, 1);

    assert_eq!(mirror.item("1"), r#"10 updated {"n":2}"#);
}

#[test]
fn equal_json_is_the_same_content_and_the_stored_bytes_stay() {
    let mirror = TestStore::with(&["acme"]);
    let stored = r#"{"a":1,"b":"é"}"#;
    mirror.push("acme", &[updated("1", 10, stored)]);
    let seq = mirror.seq("1");

    let applied = mirror.push("acme", &[updated("1", 10, "{ \"b\": \"\\u00e9\", \"a\": 1 }")]);

    assert_eq!(applied, Applied { same: 1, ..Applied::default() });
    assert_eq!((mirror.item("1"), mirror.seq("1")), (format!("10 updated {stored}"), seq));
}

/// Sweeps everything but `kept` out of the mirror's one feed.
fn sweep_all_but_kept(mirror: &TestStore, trust: SourceTrust, kept: &Record) {
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, trust, false)).unwrap();
    mirror.walk("acme", "https://acme.example/end", std::slice::from_ref(kept));
    let feed = mirror.feed("acme");
    let ended = mirror
        .wait(mirror.store().end_resync(feed.id, feed.resync.unwrap().walk_id, AT, 1.0, Default::default()))
        .unwrap();
    assert!(matches!(ended, ResyncEnd::Done(_)), "{ended:?}");
}

#[test]
fn a_swept_tombstone_loses_a_tie_to_poll_and_to_nothing_else() {
    let mirror = TestStore::with(&["acme"]);
    let kept = updated("kept", 1, "{}");
    mirror.push("acme", &[kept.clone(), updated("1", 10, r#"{"n":1}"#)]);
    sweep_all_but_kept(&mirror, SourceTrust::No, &kept);
    assert_eq!(mirror.item("1"), "10 deleted - swept");

    assert_eq!(mirror.push("acme", &[updated("1", 10, r#"{"n":1}"#)]).tied, 1, "a tie from push");
    assert_eq!(mirror.poll("acme", &[updated("1", 9, r#"{"n":0}"#)]).older, 1, "an older one from poll");
    assert_eq!(mirror.poll("acme", &[updated("1", 10, r#"{"n":1}"#)]).changed, 1, "a tie from poll");

    assert_eq!(mirror.item("1"), r#"10 updated {"n":1}"#);
}

/// Otherwise the result would depend on whether the tied deletion or the tied update is polled first.
#[test]
fn a_polled_deletion_makes_a_swept_tombstone_the_publishers_own() {
    let mirror = TestStore::with(&["acme"]);
    let kept = updated("kept", 1, "{}");
    mirror.push("acme", &[kept.clone(), updated("1", 10, "{}")]);
    sweep_all_but_kept(&mirror, SourceTrust::No, &kept);

    mirror.poll("acme", &[deleted("1", 10), updated("1", 10, "{}")]);

    assert_eq!(mirror.item("1"), "10 deleted -");
}

#[test]
fn what_trust_source_swept_loses_to_any_later_poll_but_not_to_push() {
    let mirror = TestStore::with(&["acme"]);
    let kept = updated("kept", 1, "{}");
    mirror.push("acme", &[kept.clone(), updated("1", 900, "{}"), updated("2", 900, "{}")]);
    sweep_all_but_kept(&mirror, SourceTrust::Requested, &kept);
    assert_eq!(mirror.item("1"), "900 deleted - swept");

    assert_eq!(mirror.push("acme", &[updated("1", 5, "{}")]).older, 1);
    assert_eq!(mirror.poll("acme", &[updated("1", 5, "{}"), deleted("2", 5)]).changed, 2);

    assert_eq!((mirror.item("1"), mirror.item("2")), ("5 updated {}".into(), "5 deleted -".into()));
}

#[test]
fn what_was_read_under_an_older_generation_is_not_written() {
    let mirror = TestStore::with(&["acme"]);
    let cursor = mirror.cursor("acme");
    let push = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("1", 10, "{}")]);
    let poll = mirror.delivery("acme", Transport::Poll, Purpose::Poll(step(&cursor, "x")), &[updated("2", 10, "{}")]);
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::Requested, false)).unwrap();

    assert_eq!(mirror.apply(push).verdict, DeliveryVerdict::OldGeneration);
    assert_eq!(mirror.apply(poll).verdict, DeliveryVerdict::OldGeneration);

    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM items"), 0);
    assert_eq!(mirror.cursor("acme"), cursor);
}

#[test]
fn a_new_feed_gets_no_deliveries_of_a_purged_one() {
    let mirror = TestStore::with(&["acme", "old"]);
    let late = mirror.delivery("old", Transport::Webhook, Purpose::Reread, &[updated("1", 10, "{}")]);
    let acme = vec![crate::test_store::registration("acme")];
    mirror.wait(mirror.store().register(AT, acme, true)).unwrap();
    mirror.wait(mirror.store().purge(&name("old"), AT)).unwrap();
    mirror.wait(mirror.store().register(AT, vec![crate::test_store::registration("new")], false)).unwrap();

    assert_eq!(mirror.apply(late).verdict, DeliveryVerdict::OldGeneration);

    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM items"), 0);
}

#[test]
fn a_polled_page_whose_cursor_has_moved_is_not_written() {
    let mirror = TestStore::with(&["acme"]);
    let cursor = mirror.cursor("acme");
    let late = mirror.delivery("acme", Transport::Poll, Purpose::Poll(step(&cursor, "b")), &[updated("1", 10, "{}")]);
    mirror.wait(mirror.store().seek(&name("acme"), AT, "https://acme.example/sought".into())).unwrap();

    assert_eq!(mirror.apply(late).verdict, DeliveryVerdict::CursorMoved);

    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM items"), 0);
    assert_eq!(mirror.cursor("acme"), "https://acme.example/sought");
}

#[test]
fn push_never_moves_the_poll_cursor() {
    let mirror = TestStore::with(&["acme"]);
    let before = mirror.cursor("acme");

    mirror.push("acme", &[updated("1", 10, "{}")]);
    mirror.look_back("acme", &[updated("2", 10, "{}")]);

    assert_eq!(mirror.cursor("acme"), before);
}

#[test]
fn a_batch_of_a_stream_counts_only_after_the_previous_one() {
    let mirror = TestStore::with(&["acme"]);
    let store = mirror.store();
    let feed = mirror.wait(store.feed(&name("acme"))).unwrap();
    mirror.wait(store.set_push_endpoints(feed.id, AT, vec![Transport::Sse])).unwrap();
    let batch = |id: &str, from_cursor: Option<&str>| {
        let position = PushPosition {
            cursor: Some(format!("at-{id}")),
            from_cursor: from_cursor.map(str::to_owned),
            event_id: None,
        };
        mirror.apply(mirror.delivery("acme", Transport::Sse, Purpose::Push(position), &[updated(id, 10, "{}")])).verdict
    };

    assert_eq!(batch("1", None), DeliveryVerdict::Committed);
    // Given: the batch that would have moved the cursor to 2 failed.
    assert_eq!(batch("3", Some("at-2")), DeliveryVerdict::CursorMoved);
    assert_eq!(batch("2", Some("at-1")), DeliveryVerdict::Committed);
    assert_eq!(batch("3", Some("at-2")), DeliveryVerdict::Committed);
    assert_eq!(mirror.value::<i64>("SELECT delivered FROM endpoints WHERE transport = 'sse'"), 3);
}

#[test]
fn a_delivery_that_fails_takes_none_of_its_group_with_it() {
    let mirror = TestStore::with(&["acme"]);
    let push = |id: &str| mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated(id, 10, "{}")]);
    // Made before the file is locked: making one asks the writer for the feed.
    let deliveries = ["first", "bad", "last"].map(push);
    // An index of an operator's own, that this one item can't be entered in.
    let refuse = "CREATE INDEX refuse ON item (abs(-9223372036854775807 - (id = 'bad')))";
    let locker = rusqlite::Connection::open(&mirror.path).unwrap();
    locker.execute_batch(refuse).unwrap();

    // Given a locked file, so that all three wait and share one transaction.
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let pending = deliveries.map(|delivery| mirror.submit(delivery));
    locker.execute_batch("COMMIT").unwrap();
    let [first, bad, last] = pending.map(|pending| mirror.wait(pending).unwrap());

    assert!(first.is_ok() && last.is_ok());
    assert!(matches!(bad, Err(StoreError::Sql(_))), "{bad:?}");
    let ids = mirror.rows("SELECT id FROM items ORDER BY seq");
    assert_eq!(ids, vec![vec![Value::Text("first".into())], vec![Value::Text("last".into())]]);
    assert_eq!(mirror.value::<i64>("SELECT items FROM feeds WHERE name = 'acme'"), 2);
}

#[test]
fn a_polled_page_and_its_cursor_commit_together_and_an_end_is_level() {
    let mirror = TestStore::with(&["acme"]);
    let first = mirror.cursor("acme");
    let second = "https://acme.example/rpde?afterTimestamp=10&afterId=1%3A";

    let going_on = Purpose::Poll(step(&first, second));
    mirror.apply(mirror.delivery("acme", Transport::Poll, going_on, &[updated("1", 10, "{}")]));
    assert_eq!((mirror.cursor("acme").as_str(), mirror.feed("acme").level_at), (second, None));

    mirror.apply(mirror.delivery("acme", Transport::Poll, Purpose::Poll(end(second)), &[]));
    assert_eq!((mirror.cursor("acme").as_str(), mirror.feed("acme").level_at), (second, Some(AT)));
}

#[test]
fn data_and_modified_are_kept_as_sent() {
    let mirror = TestStore::with(&["acme"]);
    let data = "{\"name\" : \"caf\\u00e9 \u{1F3CA}\",\n\t\"n\":1.50e2, \"n\": 2}";
    let sent = |id: &str, modified| Record { modified, ..updated(id, 0, data) };
    mirror.push(
        "acme",
        &[
            sent("int", Modified::from_number("638966025666647075")),
            sent("big", Modified::from_number("18446744073709551616")),
            sent("float", Modified::from_number("1520343434.0")),
            sent("text", Modified::Text("000123".into())),
            sent("row", Modified::Text("0x00000000DEADBEEF".into())),
        ],
    );

    let text = |text: &str| Value::Text(text.into());
    let expected = [
        ("int", Value::Integer(638_966_025_666_647_075)),
        ("big", text("18446744073709551616")),
        ("float", text("1520343434.0")),
        ("text", text("000123")),
        ("row", text("0x00000000DEADBEEF")),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(id, modified)| vec![text(id), modified, text(data)]).collect();
    assert_eq!(mirror.rows("SELECT id, modified, data FROM items ORDER BY seq"), expected);
}

#[test]
fn an_id_is_one_item_only_within_its_kind_and_feed() {
    let mirror = TestStore::with(&["acme", "other"]);
    let other_kind = Record { kind: "Slot".into(), ..updated("1", 5, "{}") };

    mirror.push("acme", &[updated("1", 10, "{}"), other_kind]);
    mirror.push("other", &[updated("1", 1, "{}")]);

    let rows = mirror.rows("SELECT feed || kind || modified FROM items ORDER BY 1");
    let expected = ["acmeSession10", "acmeSlot5", "otherSession1"];
    assert_eq!(rows, expected.map(|row| vec![Value::Text(row.into())]));
}

#[test]
fn small_jobs_go_before_queued_large_ones() {
    let mirror = TestStore::with(&["acme", "other"]);
    let push = |feed: &str, records: &[Record]| mirror.delivery(feed, Transport::Webhook, Purpose::Reread, records);
    // Made before the file is locked: making one asks the writer for the feed.
    let opener = push("other", &[updated("opener", 10, "{}")]);
    let large = ["first", "second", "third"].map(|prefix| push("acme", &many(prefix, 60, 10)));
    let small = push("other", &[updated("small", 10, "{}")]);

    let locker = rusqlite::Connection::open(&mirror.path).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut pending = vec![mirror.submit(opener)];
    pending.extend(large.map(|delivery| mirror.submit(delivery)));
    pending.push(mirror.submit(small));
    locker.execute_batch("COMMIT").unwrap();
    for pending in pending {
        mirror.answer(pending);
    }

    let seq = |id: &str| -> i64 { mirror.value(&format!("SELECT seq FROM items WHERE id = '{id}'")) };
    assert!(seq("small") < seq("second0"), "at most the one that the writer has begun goes first");
}

#[test]
fn a_small_last_page_does_not_overtake_the_large_ones_before_it() {
    let mirror = TestStore::with(&["acme"]);
    let (a, b, c) = (mirror.cursor("acme"), "https://acme.example/b", "https://acme.example/c");
    let page = |step, records: &[Record]| mirror.delivery("acme", Transport::Poll, Purpose::Poll(step), records);
    let first = page(step(&a, b), &many("first", 60, 10));
    let mut second = page(step(b, c), &many("second", 60, 10));
    let mut last = page(end(c), &[updated("end", 11, "{}")]);
    (second.keep_order, last.keep_order) = (true, true);

    let locker = rusqlite::Connection::open(&mirror.path).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let pending = [first, second, last].map(|delivery| mirror.submit(delivery));
    locker.execute_batch("COMMIT").unwrap();

    let verdicts = pending.map(|pending| mirror.answer(pending).verdict);
    assert_eq!(verdicts, [DeliveryVerdict::Committed; 3]);
    assert_eq!(mirror.cursor("acme"), c);
}

#[test]
fn a_feed_read_again_in_its_stored_order_is_compared_item_by_item() {
    let mirror = TestStore::with(&["acme", "other"]);
    let ids: Vec<String> = (1..=60).map(|n| n.to_string()).collect();
    // Two feeds' rows lie between each other, and some have moved to the end since.
    for chunk in ids.chunks(20) {
        let records: Vec<Record> = chunk.iter().map(|id| updated(id, 10, "{}")).collect();
        mirror.push("acme", &records);
        mirror.push("other", &records);
    }
    let moved: Vec<Record> = ids.iter().step_by(7).map(|id| updated(id, 20, r#"{"n":1}"#)).collect();
    mirror.push("acme", &moved);

    let again: Vec<Record> =
        ids.iter().map(|id| if id == "30" { updated(id, 15, "{}") } else { updated(id, 10, "{}") }).collect();
    let applied = mirror.push("acme", &again);

    let older = moved.len() as u64;
    assert_eq!(applied, Applied { older, changed: 1, same: 60 - older - 1, ..Applied::default() });
    assert_eq!(mirror.push("other", &again).changed, 1);
}
