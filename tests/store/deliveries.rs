//! The provenance of items: one row for each delivery that wrote an item.

use feedmirror::feed::Transport;
use feedmirror::store::apply::{DeliveryVerdict, PageStep, Provenance, Purpose, PushPosition};
use feedmirror::store::resync::SourceTrust;
use rusqlite::types::Value;

use crate::test_store::{AT, TestStore, name, step, updated};

fn purposes(mirror: &TestStore) -> Vec<Vec<Value>> {
    mirror.rows("SELECT purpose || ' ' || transport FROM deliveries ORDER BY seq")
}

fn texts(all: &[&str]) -> Vec<Vec<Value>> {
    all.iter().map(|text| vec![Value::Text((*text).to_owned())]).collect()
}

#[test]
fn a_row_says_what_the_delivery_was_for() {
    let mirror = TestStore::with(&["acme"]);
    mirror.poll("acme", &[updated("1", 1, "{}")]);
    let pushed = Purpose::Push(PushPosition::default());
    mirror.apply(mirror.delivery("acme", Transport::Webhook, pushed, &[updated("2", 2, "{}")]));
    let mut look_back = mirror.delivery("acme", Transport::Poll, Purpose::Reread, &[updated("3", 3, "{}")]);
    look_back.provenance = Provenance { url: Some("https://acme.example/rpde?from=1".into()), ..Provenance::default() };
    mirror.apply(look_back);
    mirror.apply(mirror.delivery("acme", Transport::Sse, Purpose::Reread, &[updated("4", 4, "{}")]));
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();
    mirror.walk("acme", "https://acme.example/rpde?from=9", &[updated("5", 5, "{}")]);

    assert_eq!(purposes(&mirror), texts(&["poll poll", "push webhook", "look-back poll", "retry sse", "resync poll"]));
}

#[test]
fn what_is_not_taken_leaves_no_row() {
    // given a page that was requested with a cursor that is no longer stored, and one of an older generation
    let mirror = TestStore::with(&["acme"]);
    let outdated_page = Purpose::Poll(step("https://acme.example/elsewhere", "https://acme.example/next"));
    let outdated_page = mirror.delivery("acme", Transport::Poll, outdated_page, &[updated("1", 1, "{}")]);
    let mut old_generation = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("2", 2, "{}")]);
    old_generation.generation -= 1;

    let verdicts = [mirror.apply(outdated_page).verdict, mirror.apply(old_generation).verdict];

    assert_eq!(verdicts, [DeliveryVerdict::CursorMoved, DeliveryVerdict::OldGeneration]);
    assert_eq!(purposes(&mirror), texts(&[]));
}

#[test]
fn what_a_publisher_makes_endless_is_left_out() {
    let mirror = TestStore::with(&["acme"]);
    let cursor = mirror.cursor("acme");
    let next = PageStep { from_cursor: cursor.clone(), next_cursor: cursor, level: false, clean: true };
    let mut delivery = mirror.delivery("acme", Transport::Poll, Purpose::Poll(next), &[updated("1", 1, "{}")]);
    let long = Some("x".repeat(3_000));
    let age = Some(u64::MAX);
    delivery.provenance =
        Provenance { url: long.clone(), etag: long.clone(), event_id: long, age, ..Provenance::default() };
    mirror.apply(delivery);

    let row = mirror.rows("SELECT url, etag, event_id, age FROM deliveries").remove(0);
    assert_eq!(row, [Value::Null, Value::Null, Value::Null, Value::Integer(i64::MAX)]);
}

#[test]
fn a_swept_item_is_of_no_delivery() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("gone", 1, "{}"), updated("kept", 2, "{}")]);
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();
    mirror.walk("acme", "https://acme.example/rpde?from=9", &[updated("kept", 2, "{}")]);
    let feed = mirror.feed("acme");
    mirror.wait(mirror.store().end_resync(feed.id, feed.resync.unwrap().walk_id, AT, 0.9, Default::default())).unwrap();
    mirror.push("acme", &[updated("later", 3, "{}")]);

    let sql = "SELECT i.id || ' ' || coalesce(d.seq = i.seq, 'none') FROM items i
               LEFT JOIN deliveries d ON i.seq BETWEEN d.seq AND d.last_seq WHERE i.id <> 'kept' ORDER BY i.seq";
    assert_eq!(mirror.rows(sql), texts(&["gone none", "later 1"]));
}
