//! Bounds of quarantine, findings, refusals, events, positions and deliveries.

use feedmirror::feed::{Finding, Modified, Transport, UnreadableRecord};
use feedmirror::store::apply::Purpose;
use rusqlite::types::Value;

use crate::test_store::{AT, Record, TestStore, many, step, unreadable, updated};

fn deliver_bad(mirror: &TestStore, bad: Vec<UnreadableRecord>) -> u64 {
    let mut delivery = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[]);
    delivery.page.unreadable = bad;
    mirror.apply(delivery).quarantined
}

fn dropped(mirror: &TestStore) -> i64 {
    mirror.value("SELECT coalesce(sum(count), 0) FROM findings WHERE rule = 'quarantine-full'")
}

#[test]
fn a_record_is_quarantined_whole_with_its_reason_and_the_same_one_again_only_counts() {
    let mirror = TestStore::with(&["acme"]);
    let raw = "{\"id\": null,\n \"x\":\"\u{1F3CA}\"}";

    deliver_bad(&mirror, vec![unreadable("no-id", raw, None)]);
    deliver_bad(&mirror, vec![unreadable("no-id", raw, None), unreadable("no-kind", raw, None)]);

    let rows = mirror.rows("SELECT feed, transport, reason, detail, raw, count FROM quarantine ORDER BY id");
    let row = |reason: &str, count| {
        let words = ["acme", "webhook", reason, "made by a test", raw].map(|word| Value::Text(word.into()));
        [words.to_vec(), vec![Value::Integer(count)]].concat()
    };
    assert_eq!(rows, [row("no-id", 2), row("no-kind", 1)]);
}

#[test]
fn a_feed_keeps_ten_thousand_quarantined_records_and_counts_the_rest() {
    let mirror = TestStore::with(&["acme"]);
    let bad = (0..10_003).map(|n| unreadable("no-id", &format!("{{\"n\":{n}}}"), None)).collect();

    assert_eq!(deliver_bad(&mirror, bad), 10_003, "the page goes on");

    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM quarantine"), 10_000);
    assert_eq!(dropped(&mirror), 3);
}

#[test]
fn a_feed_keeps_64_mib_of_quarantine_and_has_room_again_once_rows_are_dropped() {
    let mirror = TestStore::with(&["acme"]);
    let mib = |n: u32| unreadable("too-large", &format!("{n:04}").repeat(1 << 18), None);

    for n in 0..65 {
        deliver_bad(&mirror, vec![mib(n)]);
    }
    let kept: i64 = mirror.value("SELECT sum(octet_length(raw) + octet_length(detail)) FROM quarantine");
    assert!(kept <= 64 << 20, "{kept}");
    assert_eq!((mirror.value::<i64>("SELECT count(*) FROM quarantine"), dropped(&mirror)), (63, 2));

    let first: i64 = mirror.value("SELECT min(id) FROM quarantine");
    assert!(mirror.wait(mirror.store().drop_quarantined(first)).unwrap());
    assert!(!mirror.wait(mirror.store().drop_quarantined(first)).unwrap(), "it is gone");
    deliver_bad(&mirror, vec![mib(100)]);
    assert_eq!((mirror.value::<i64>("SELECT count(*) FROM quarantine"), dropped(&mirror)), (63, 2));
}

#[test]
fn findings_are_counted_per_rule() {
    let mirror = TestStore::with(&["acme"]);
    let finding = |count| Finding { rule: "no-next", detail: format!("{count} times"), count };
    let mut delivery = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[]);
    delivery.page.findings = vec![finding(3), Finding { rule: "bom", detail: "x".into(), count: 1 }];
    mirror.apply(delivery);

    mirror.wait(mirror.store().record_finding(mirror.feed("acme").id, AT, finding(4))).unwrap();

    let rows = mirror.rows("SELECT rule, count FROM findings WHERE feed = 'acme' ORDER BY rule");
    let row = |rule: &str, count| vec![Value::Text(rule.into()), Value::Integer(count)];
    assert_eq!(rows, [row("bom", 1), row("no-next", 7)]);
}

#[test]
fn an_item_whose_modified_changes_its_class_is_a_finding() {
    let mirror = TestStore::with(&["acme"]);
    let dated = Record { modified: Modified::Text("2024-01-01T00:00:00Z".into()), ..updated("1", 0, "{}") };
    mirror.push("acme", &[updated("1", 10, "{}"), updated("2", 11, "{}")]);
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM findings"), 0);

    mirror.push("acme", &[dated]);

    assert_eq!(mirror.rows("SELECT rule FROM findings"), [[Value::Text("modified-class".into())]]);
}

#[test]
fn refusals_say_what_was_refused_and_are_bounded() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 60, 100));
    mirror.push("acme", &[updated("n7", 3, "{}")]);
    let row = mirror.rows("SELECT transport, kind, id, modified, reason FROM refusals");
    let texts = |texts: [&str; 3]| texts.map(|word| Value::Text(word.into())).to_vec();
    let tail = vec![Value::Integer(3), Value::Text("older: the mirror holds 100".into())];
    assert_eq!(row, [[texts(["webhook", "Session", "n7"]), tail].concat()]);

    for modified in 0..30 {
        mirror.push("acme", &many("n", 60, modified));
    }

    let kept: i64 = mirror.value("SELECT count(*) FROM refusals WHERE feed = 'acme'");
    assert!((100..=1_000).contains(&kept), "{kept}");
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM refusals WHERE modified = 29"), 60, "the newest are kept");
}

#[test]
fn events_are_bounded_per_feed_and_for_the_mirror() {
    let mirror = TestStore::with(&["acme", "other"]);
    let (acme, other) = (mirror.feed("acme").id, mirror.feed("other").id);
    mirror.wait(mirror.store().record_event(Some(other), AT, "mode", "the other's")).unwrap();
    for n in 0..1_100 {
        mirror.wait(mirror.store().record_event(Some(acme), AT, "mode", &n.to_string())).unwrap();
        mirror.wait(mirror.store().record_event(None, AT, "started", &n.to_string())).unwrap();
    }

    for feed in ["feed = 'acme'", "feed IS NULL"] {
        let kept: i64 = mirror.value(&format!("SELECT count(*) FROM events WHERE {feed}"));
        assert!((500..=1_000).contains(&kept), "{feed}: {kept}");
        let newest: i64 = mirror.value(&format!("SELECT max(CAST(detail AS INTEGER)) FROM events WHERE {feed}"));
        assert_eq!(newest, 1_099, "{feed}");
    }
    assert_eq!(
        mirror.value::<i64>("SELECT count(*) FROM events WHERE feed = 'other'"),
        1,
        "a loud feed crowds none out"
    );
}

/// Positions are thinned out with age: a look-back finds a position of any age, and their number doesn't grow with the
/// feed.
#[test]
fn positions_of_the_cursor_are_bounded() {
    let mirror = TestStore::with(&["acme"]);
    let feed = mirror.feed("acme").id;
    let mut cursor_before = mirror.cursor("acme");
    for n in 0..2_000 {
        let cursor = format!("https://acme.example/{n}");
        let item = updated(&n.to_string(), n, "{}");
        let mut delivery =
            mirror.delivery("acme", Transport::Poll, Purpose::Poll(step(&cursor_before, &cursor)), &[item]);
        delivery.at = AT + n;
        mirror.apply(delivery);
        cursor_before = cursor;
    }

    assert!(mirror.value::<i64>("SELECT count(*) FROM position") <= 150);
    let position = |before| mirror.wait(mirror.store().look_back_start(feed, before, 0)).unwrap();
    assert_eq!(position(AT + 1_999).as_deref(), Some("https://acme.example/1998"), "where page 1999 was asked");
    assert!(position(AT + 600).is_some());
    assert_eq!(position(AT - 1), None);
    let within = mirror.wait(mirror.store().look_back_start(feed, AT - 1, 10)).unwrap();
    assert_eq!(within.as_deref(), Some("https://acme.example/1989"), "the last ten pages");
}

/// Items that are sent older again and again, long events, pages with a long URL.
#[test]
fn refusals_events_findings_and_deliveries_are_bounded_in_bytes_too() {
    let mirror = TestStore::with(&["acme"]);
    let feed = mirror.feed("acme").id;
    let long = |n: usize| format!("{n:08}").repeat(500);
    mirror.push("acme", &(0..50).map(|n| updated(&long(n), 1_000, "{}")).collect::<Vec<_>>());

    for n in 0..40 {
        mirror.push("acme", &(0..50).map(|id| updated(&long(id), n, "{}")).collect::<Vec<_>>());
    }
    for n in 0..1_100 {
        mirror.wait(mirror.store().record_event(Some(feed), AT, "mode", &format!("{n} {}", long(n)))).unwrap();
        mirror
            .wait(mirror.store().record_finding(feed, AT, Finding { rule: "bom", detail: long(n), count: 1 }))
            .unwrap();
        let mut delivery = mirror.delivery("acme", Transport::Poll, Purpose::Reread, &[updated("1", n as i64, "{}")]);
        delivery.provenance.url = Some(format!("https://acme.example/{}", "x".repeat(2_000)));
        mirror.apply(delivery);
    }

    let mib = |table: &str, size: &str| -> i64 { mirror.value(&format!("SELECT sum({size}) FROM {table}")) };
    let refusal_bytes = mib("refusals", "octet_length(id) + octet_length(reason)");
    assert!((1 << 19..=1 << 20).contains(&refusal_bytes), "{refusal_bytes}");
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM refusals WHERE modified = 39"), 50, "the newest are kept");
    let event_bytes = mib("events", "octet_length(detail)");
    assert!((1 << 19..=1 << 20).contains(&event_bytes), "{event_bytes}");
    let detail: String = mirror.value("SELECT detail FROM event ORDER BY n DESC LIMIT 1");
    assert!(detail.ends_with('…') && detail.len() <= 1_024, "{}", detail.len());
    assert!(mib("findings", "octet_length(detail)") <= 1_024);
    let delivery_bytes = mib("deliveries", "octet_length(url)");
    assert!((1 << 20..=2 << 20).contains(&delivery_bytes), "{delivery_bytes}");
}
