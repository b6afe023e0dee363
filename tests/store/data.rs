//! Data that other JSON parsers refuse: stored as sent, compared like all other data, and never the cause of a failing
//! query.

use feedmirror::decode::rpde::{CheckedPage, DecodeSettings};
use feedmirror::feed::{ModifiedOrder, Page, Transport};
use feedmirror::store::apply::{Applied, Purpose};
use feedmirror::store::resync::SourceTrust;
use proptest::prelude::*;
use rusqlite::Connection;

use crate::test_store::{AT, Record, TestStore, name, step, unreadable, updated};

/// A number that no double holds, one of 400 digits, half a character as text and as key.
fn odd(space: &str) -> String {
    let digits = "7".repeat(400);
    format!(r#"{{{space}"n":{space}[1e999,{digits}{space}],"\ud800":"\udfff"{space}}}"#)
}

#[test]
fn a_resync_gives_no_new_seq_for_white_space_whatever_the_data() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, &odd("")), updated("2", 10, &odd(""))]);
    let seqs = (mirror.seq("1"), mirror.seq("2"));
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();

    let spaced = updated("1", 10, &odd(" \n"));
    let other = updated("2", 10, &odd("").replace("1e999", "1e998"));
    let applied = mirror.walk("acme", "https://acme.example/2", &[spaced, other]);

    assert_eq!(applied, Applied { same: 1, changed: 1, ..Applied::default() });
    assert_eq!(mirror.seq("1"), seqs.0);
    assert!(mirror.seq("2") > seqs.1);
    assert_eq!(mirror.item("1"), format!("10 updated {}", odd("")), "the stored bytes stay");
}

fn pages(json: String) -> Vec<Page> {
    let mut body = CheckedPage::check(json.into_bytes(), &DecodeSettings::default(), &|| false).unwrap();
    std::iter::from_fn(|| body.next_part()).collect()
}

fn item(data: &str) -> String {
    format!(r#"{{"items":[{{"state":"updated","kind":"k","id":1,"modified":1,"data":{data}}}]}}"#)
}

#[test]
fn accepted_data_nests_as_deep_as_sqlite_reads_and_no_deeper() {
    let db = Connection::open_in_memory().unwrap();
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        for (levels, accepted) in [(1_000, true), (1_001, false)] {
            let data = format!("{}1{}", open.repeat(levels), close.repeat(levels));
            let page = &pages(item(&data))[0];
            assert_eq!((page.items.len(), page.unreadable.len()), (usize::from(accepted), usize::from(!accepted)));
            let read = db.query_row("SELECT ?1 ->> '$.a'", [data], |row| row.get::<_, Option<String>>(0));
            assert_eq!(read.is_ok(), accepted, "{read:?}");
        }
    }
}

#[test]
fn many_bad_records_in_a_resync_spare_their_items_even_those_that_are_only_counted() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("kept", 10, "{}"), updated("counted", 10, "{}"), updated("gone", 10, "{}")]);
    mirror.wait(mirror.store().begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();
    let from_cursor = mirror.feed("acme").resync.unwrap().cursor;

    let mut delivery = mirror.delivery("acme", Transport::Poll, Purpose::Resync(step(&from_cursor, &from_cursor)), &[]);
    delivery.page.unreadable = vec![unreadable("no-data", "{}", Some("kept"))];
    delivery.page.unreadable[0].count = 7;
    (delivery.page.overflow.count, delivery.page.overflow.ids) = (5, vec!["counted".into()]);
    assert_eq!(mirror.apply(delivery).quarantined, 12);
    let walk = mirror.feed("acme").resync.unwrap().walk_id;
    let level = step(&from_cursor, &from_cursor);
    let level = feedmirror::store::apply::PageStep { level: true, ..level };
    mirror.apply(mirror.delivery("acme", Transport::Poll, Purpose::Resync(level), &[]));
    mirror.wait(mirror.store().end_resync(mirror.feed("acme").id, walk, AT, 1.0, ModifiedOrder::Standard)).unwrap();

    assert_eq!(mirror.value::<String>("SELECT group_concat(id) FROM live_items"), "kept,counted");
    assert_eq!(mirror.value::<i64>("SELECT sum(count) FROM quarantine"), 7);
    assert_eq!(mirror.value::<i64>("SELECT count FROM findings WHERE rule = 'quarantine-full'"), 5);
}

#[test]
fn a_feed_has_a_thousand_kinds_and_records_of_further_ones_are_quarantined() {
    let mut mirror = TestStore::with(&["acme", "other"]);
    let of_kind = |n: usize, modified| Record { kind: format!("k{n}"), ..updated(&format!("{n}"), modified, "{}") };
    let first: Vec<_> = (0..600).map(|n| of_kind(n, 1)).collect();
    let second: Vec<_> = (500..1_100).map(|n| of_kind(n, 2)).collect();
    mirror.push("acme", &first);

    let applied = mirror.push("acme", &second);

    assert_eq!((applied.new, applied.changed, applied.quarantined), (400, 100, 100));
    let reason = "SELECT DISTINCT reason || ' ' || raw || ' ' || sum(count) FROM quarantine";
    assert_eq!(mirror.value::<String>(reason), "too-many-kinds {} 100");
    assert_eq!(mirror.push("other", &[of_kind(1_099, 1)]).new, 1, "each feed has its own");
    mirror.reopen();
    let applied = mirror.push("acme", &[of_kind(999, 3), of_kind(1_000, 3)]);
    assert_eq!((applied.changed, applied.quarantined), (1, 1));
}

/// Any text that the grammar allows.
fn json() -> impl Strategy<Value = String> {
    let text = r#""([ -!#-\[\]-~é\u{10ffff}]|\\["\\/bfnrt]|\\u(0000|d800|DFFF|d83d\\ude00|00e9)){0,3}""#;
    let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,5})?";
    let leaf = prop_oneof![text.boxed(), number.boxed(), "true|false|null".boxed()];
    leaf.prop_recursive(5, 30, 4, move |inner| {
        let member =
            (text, "[ \n\t\r]?", inner.clone()).prop_map(|(key, blank, value)| format!("{key}{blank}:{value}"));
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(|values| format!("[{}]", values.join(" ,"))),
            proptest::collection::vec(member, 0..4).prop_map(|members| format!("{{{}}}", members.join(",\r\n"))),
        ]
    })
}

proptest! {
    #[test]
    fn all_data_that_the_grammar_allows_is_accepted_and_read_by_sqlite(data in json()) {
        let db = Connection::open_in_memory().unwrap();
        let page = &pages(item(&data))[0];
        if data == "null" {
            prop_assert_eq!(page.unreadable[0].reason, "no-data");
        } else {
            prop_assert_eq!(page.data(&page.items[0]), &data);
            let valid: bool = db.query_row("SELECT json_valid(?1)", [&data], |row| row.get(0)).unwrap();
            let read = db.query_row("SELECT ?1 ->> '$.name'", [&data], |_| Ok(()));
            prop_assert!(valid && read.is_ok(), "{:?}", read);
        }
    }
}
