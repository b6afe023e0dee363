//! How pages and records are decoded.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::feed::{ItemState, Modified};
use proptest::prelude::*;

fn read(json: &str) -> Page {
    page(json.as_bytes().to_vec(), &DecodeSettings::default()).unwrap()
}
fn refusal(bytes: &[u8]) -> String {
    page(bytes.to_vec(), &DecodeSettings::default()).unwrap_err().reason(str::to_owned)
}
fn word(text: &str) -> &str {
    text.split(':').next().unwrap()
}

#[test]
fn data_keep_their_bytes() {
    let json = r#" {"next":"n","license":"l","items":[
        {"state":"Updated","kind":"a","id":31,"modified":1520343434.0,"data":{ "x" : "\ud800", "n":1.50 }, "extra":[1]},
        {"state":"deleted","kind":"a","id":"\u00e9","modified":"2"}]}"#;
    let page = read(json);
    assert_eq!(page.data(&page.items[0]), r#"{ "x" : "\ud800", "n":1.50 }"#);
    assert_eq!(&*page.items[0].id, "31");
    assert_eq!(page.items[0].modified, Modified::Number("1520343434.0".into()));
    assert_eq!(&*page.items[1].id, "é");
    assert_eq!(page.items[1].state, ItemState::Deleted);
    assert_eq!((page.next.as_deref(), page.license.as_deref()), (Some("n"), Some("l")));
}

#[test]
fn a_bad_record_is_quarantined_whole_and_the_rest_read() {
    let good = r#"{"state":"updated","kind":"k","id":"g","modified":1,"data":{}}"#;
    for (reason, bad) in [
        ("no-id", r#"{"state":"updated","kind":"k","modified":1,"data":{}}"#),
        ("no-id", r#"{"state":"updated","kind":"k","id":"","modified":1,"data":{}}"#),
        ("bad-id", r#"{"state":"updated","kind":"k","id":true,"modified":1,"data":{}}"#),
        ("bad-id", r#"{"state":"updated","kind":"k","id":{},"modified":1,"data":{}}"#),
        ("bad-id", r#"{"state":"updated","kind":"k","id":"\ud800","modified":1,"data":{}}"#),
        ("no-modified", r#"{"state":"updated","kind":"k","id":1,"data":{}}"#),
        ("no-modified", r#"{"state":"updated","kind":"k","id":1,"modified":null,"data":{}}"#),
        ("bad-modified", r#"{"state":"updated","kind":"k","id":1,"modified":[1],"data":{}}"#),
        ("no-kind", r#"{"state":"updated","id":1,"modified":1,"data":{}}"#),
        ("unknown-state", r#"{"state":"Gone","kind":"k","id":1,"modified":1,"data":{}}"#),
        ("unknown-state", r#"{"kind":"k","id":1,"modified":1,"data":{}}"#),
        ("no-data", r#"{"state":"updated","kind":"k","id":1,"modified":1}"#),
        ("no-data", r#"{"state":"updated","kind":"k","id":1,"modified":1,"data":null}"#),
        ("not-an-object", "[1,{}]"),
        ("not-an-object", "7"),
        ("not-an-object", "null"),
        ("not-an-object", "\"x\""),
    ] {
        let page = read(&format!(r#"{{"items":[{good},{bad},{good}],"next":"n"}}"#));
        assert_eq!(page.items.len(), 2, "{bad}");
        assert_eq!((page.unreadable[0].reason, page.unreadable[0].raw.as_str()), (reason, bad));
    }
}

#[test]
fn a_page_that_cannot_be_read_is_refused_whole() {
    assert_eq!(word(&refusal(b"")), "not-json");
    assert_eq!(word(&refusal(b"No ride data found")), "not-json");
    assert_eq!(word(&refusal(br#"{"items":[{"id":1}"#)), "not-json");
    assert_eq!(word(&refusal(br#"{"items":[]} x"#)), "not-json");
    assert_eq!(word(&refusal(b"<!DOCTYPE html><p>hello")), "html");
    assert_eq!(word(&refusal(br#"{"error":"busy"}"#)), "no-items");
    assert_eq!(word(&refusal(br#"{"items":{"a":1}}"#)), "no-items");
    assert_eq!(word(&refusal(b"[]")), "no-items");
    assert_eq!(word(&refusal(b"{\"items\":[\"\xe9\"]}")), "wrong-encoding");
    assert_eq!(word(&refusal(b"\xff\xfe{\0}\0")), "wrong-encoding");
}

#[test]
fn departures_from_the_standard_are_read_with_findings() {
    let settings = DecodeSettings { kind: Some("K".into()), order: ModifiedOrder::Standard };
    let json = "\u{feff}{\"items\":[{\"state\":\"updated\",\"@id\":\"a\",\"modified\":5,\"data\":1},\
         {\"state\":\"deleted\",\"id\":\"b\",\"modified\":4,\"data\":{}},\
         {\"state\":\"deleted\",\"id\":\"b\",\"modified\":4}]}";
    let page = page(json.as_bytes().to_vec(), &settings).unwrap();
    let rules: Vec<_> = page.findings.iter().map(|f| (f.rule, f.count)).collect();
    assert_eq!(
        rules,
        [
            ("bom", 1),
            ("at-id", 1),
            ("no-kind", 3),
            ("data-not-object", 1),
            ("deleted-with-data", 1),
            ("out-of-order", 1),
            ("duplicate", 1)
        ]
    );
    assert_eq!((&*page.items[0].kind, page.data(&page.items[0])), ("K", "1"));
    assert_eq!(page.data(&page.items[1]), "");
}

#[test]
fn very_deep_data_are_read_and_quarantined_beyond_what_sqlite_reads() {
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let item =
        |levels| format!(r#"{{"state":"updated","kind":"k","id":{levels},"modified":1,"data":{}}}"#, deep(levels));
    let deleted = format!(r#"{{"state":"deleted","kind":"k","id":1,"modified":1,"data":{}}}"#, deep(100_000));
    let page = read(&format!(
        r#"{{"x":{},"items":[{},{},{},{deleted},{}]}}"#,
        deep(100_000),
        deep(100_000),
        item(1_000),
        item(1_001),
        item(100_000)
    ));
    assert_eq!(reasons(&page), ["not-an-object", "data-too-deep", "data-too-deep"]);
    assert_eq!(page.items.iter().map(|item| &*item.id).collect::<Vec<_>>(), ["1000", "1"]);
}

fn reasons(page: &Page) -> Vec<&str> {
    page.unreadable.iter().map(|record| record.reason).collect()
}

#[test]
fn a_record_that_other_parsers_refuse_affects_no_other_record() {
    let digits = "7".repeat(400);
    let item = |id: &str, data: &str| {
        format!(
            r#"{{"state":"updated","kind":"k","id":"{id}","modified":1,"data":{data},"x":{digits},"\ud800":"\udfff"}}"#
        )
    };
    let field = |field: &str| format!(r#"{{"state":"updated","kind":"k","id":"f","modified":1,"data":{{}},{field}}}"#);
    let records = [
        item("a", r#"{"n":1e999}"#),
        "1e999".into(),
        digits.clone(),
        r#""\ud800""#.into(),
        field(r#""id":1e999"#),
        field(&format!(r#""id":{digits}"#)),
        field(r#""id":"\ud800""#),
        field(r#""modified":1e999"#),
        field(&format!(r#""modified":{digits}"#)),
        field(r#""modified":"\ud83d""#),
        field(r#""kind":"\ud83d""#),
        field(r#""state":"\ud83d""#),
        item("b", &format!(r#"{{"n":{digits},"\udead":"\udead"}}"#)),
    ];

    let page = read(&format!(
        r#"{{"\ud800":1e999,"x":{digits},"y":"\udfff","license":"\ud800","items":[{}],"next":"n"}}"#,
        records.join(",")
    ));

    let bad = ["not-an-object", "not-an-object", "not-an-object", "bad-id", "bad-id", "bad-id"];
    let worse = ["bad-modified", "bad-modified", "bad-modified", "bad-kind", "unknown-state"];
    assert_eq!(reasons(&page), [&bad[..], &worse[..]].concat());
    let data: Vec<_> = page.items.iter().map(|item| page.data(item)).collect();
    assert_eq!(data, [r#"{"n":1e999}"#.into(), format!(r#"{{"n":{digits},"\udead":"\udead"}}"#)]);
    assert_eq!((page.next.as_deref(), page.license.as_deref()), (Some("n"), None));
}

#[test]
fn a_field_that_is_too_long_quarantines_its_record_with_the_reason() {
    let item = |kind: usize, id: usize, modified: usize| {
        let text = |length| "é".repeat(length / 2);
        let (kind, id, modified) = (text(kind), text(id), text(modified));
        format!(r#"{{"state":"updated","kind":"{kind}","id":"{id}","modified":"{modified}","data":{{}}}}"#)
    };
    let records = [item(256, 4096, 256), item(258, 2, 2), item(2, 4098, 2), item(2, 2, 258), item(9_000, 2, 2)];
    let license = |length: usize| format!(r#"{{"items":[{}],"license":"{}"}}"#, records.join(","), "l".repeat(length));

    let page = read(&license(4096));

    assert_eq!(page.items.len(), 1);
    assert_eq!(reasons(&page), ["kind-too-long", "id-too-long", "modified-too-long", "kind-too-long"]);
    assert_eq!((page.license.map(|license| license.len()), page.findings.len()), (Some(4096), 0));
    let page = read(&license(4097));
    assert_eq!((page.license, page.findings[0].rule), (None, "license-too-long"));
}

#[test]
fn null_in_place_of_a_list_is_empty_and_not_the_end_of_the_feed() {
    let page = read(r#"{"items":null,"next":"n"}"#);
    assert!(page.is_empty() && page.null_items);
    assert_eq!((page.findings[0].rule, page.next.as_deref()), ("items-null", Some("n")));
}

#[test]
fn data_that_is_no_object_is_kept_with_a_finding() {
    let item = |data: &str| format!(r#"{{"state":"updated","kind":"k","id":{data:?},"modified":1,"data":{data}}}"#);
    let page = read(&format!(r#"{{"items":[{},{},{}]}}"#, item("\"x\""), item("[1]"), item("{}")));
    let data: Vec<_> = page.items.iter().map(|item| page.data(item)).collect();
    assert_eq!(data, ["\"x\"", "[1]", "{}"]);
    assert_eq!((page.findings[0].rule, page.findings[0].count), ("data-not-object", 2));
}

fn parts(json: String) -> (CheckedPage, Vec<Page>) {
    let mut body = CheckedPage::check(json.into_bytes(), &DecodeSettings::default(), &|| false).unwrap();
    let mut parts = Vec::new();
    while body.has_more() {
        parts.push(body.next_part().unwrap());
    }
    assert!(body.next_part().is_none());
    (body, parts)
}

fn tombstone(kind: &str, id: usize, modified: usize) -> String {
    format!(r#"{{"state":"deleted","kind":"{kind}","id":{id},"modified":{modified}}}"#)
}

#[test]
fn a_large_page_comes_in_parts_that_know_of_those_before() {
    let mut records: Vec<String> = (0..4_500).map(|id| tombstone("k", id, id)).collect();
    records[4_499] = tombstone("k", 7, 1);

    let (body, parts) = parts(format!(r#"{{"license":"l","items":[{}],"next":"n"}}"#, records.join(" , ")));

    assert_eq!(parts.iter().map(|part| part.items.len()).collect::<Vec<_>>(), [2_000, 2_000, 500]);
    let ids: Vec<_> = parts.iter().flat_map(|part| &part.items).map(|item| item.id.parse::<usize>().unwrap()).collect();
    assert_eq!(ids, (0..4_499).chain([7]).collect::<Vec<_>>());
    assert_eq!(body.records(), 4_500);
    for part in &parts {
        assert_eq!((part.next.as_deref(), part.license.as_deref()), (Some("n"), Some("l")));
    }
    let rules: Vec<_> = parts.iter().map(|part| part.findings.iter().map(|f| f.rule).collect::<Vec<_>>()).collect();
    assert_eq!(rules, [vec![], vec![], vec!["out-of-order", "duplicate"]]);
    let text = parts.into_iter().next_back().unwrap().text;
    drop(body);
    assert!(text.into_unshared().is_some(), "the last part is the last to hold the text");
}

#[test]
fn large_records_are_parts_of_their_own() {
    let item = |id: &str, size: usize| {
        format!(r#"{{"state":"updated","kind":"k","id":"{id}","modified":1,"data":"{}"}}"#, "x".repeat(size))
    };
    let records = [item("a", 5 << 20), item("b", 2 << 20), item("c", 1 << 20), item("d", 3 << 20), item("e", 9)];
    let (_, parts) = parts(format!(r#"{{"items":[{}]}}"#, records.join(",")));
    let ids: Vec<Vec<&str>> = parts.iter().map(|part| part.items.iter().map(|item| &*item.id).collect()).collect();
    assert_eq!(ids, [vec!["a"], vec!["b", "c"], vec!["d", "e"]]);
    assert_eq!(parts[2].data(&parts[2].items[1]), "\"xxxxxxxxx\"");
}

#[test]
fn equal_bad_records_are_one_and_a_count() {
    let zeros = "0,".repeat(3 << 20);
    let (body, parts) = parts(format!(r#"{{"items":[{zeros}0,1,0]}}"#));
    let counts: Vec<_> = parts.iter().flat_map(|part| &part.unreadable).map(|bad| (&*bad.raw, bad.count)).collect();
    assert_eq!(counts, [("0", (3 << 20) + 2), ("1", 1)]);
    assert_eq!(body.records(), (3 << 20) + 3);
}

#[test]
fn bad_records_beyond_the_limit_of_quarantine_are_counted_with_their_ids() {
    let records: Vec<String> = (0..12_345).map(|id| format!(r#"{{"id":{id}}}"#)).collect();
    let (_, parts) = parts(format!(r#"{{"items":[{}]}}"#, records.join(",")));
    assert_eq!(parts.iter().map(|part| part.unreadable.len()).sum::<usize>(), 10_000);
    assert_eq!(parts.iter().map(|part| part.overflow.count).sum::<u64>(), 2_345);
    assert!(parts.iter().all(|part| part.unreadable.len() + part.overflow.ids.len() <= 2_000));
    assert_eq!(parts.iter().flat_map(|part| &part.overflow.ids).last().unwrap().as_ref(), "12344");
}

#[test]
fn a_page_has_at_most_a_thousand_kinds() {
    let records: Vec<String> = (0..3_000).map(|n| tombstone(&format!("k{}", n % 1_500), n, n)).collect();
    let page = read(&format!(r#"{{"items":[{}]}}"#, records.join(",")));
    assert_eq!(page.items.len(), 2_000);
    assert_eq!(page.unreadable.len(), 1_000);
    assert!(page.unreadable.iter().all(|bad| bad.reason == "too-many-kinds" && bad.id.is_some()));
}

#[test]
fn the_last_of_several_lists_counts() {
    let page =
        read(&format!(r#"{{"items":[{}],"items":[0],"items":[{}]}}"#, tombstone("a", 1, 2), tombstone("b", 1, 1)));
    assert_eq!((page.items.len(), &*page.items[0].kind, page.unreadable.len(), page.findings.len()), (1, "b", 0, 0));
}

#[test]
fn records_that_come_one_by_one_stand_alone() {
    let good = tombstone("k", 1, 1);
    let records: [&[u8]; 6] = [good.as_bytes(), b"{", b"\xff", b"1 2", good.as_bytes(), b"{"];
    let page = super::records(records, &DecodeSettings::default());
    assert_eq!(page.items.len(), 2);
    let bad: Vec<_> = page.unreadable.iter().map(|bad| (bad.reason, bad.count)).collect();
    assert_eq!(bad, [("not-json", 2), ("not-json", 1), ("wrong-encoding", 1)]);
    assert_eq!(page.findings, []);
}

proptest! {
    #[test]
    fn no_bytes_bring_it_down_and_parts_hold_every_record(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            r#"\{("items":(\[((1e999|\{"id":[0-9]\}|"\\ud800"|x),?){0,5}\]|null)|"next":("n"|1),?)*\}?"#
                .prop_map(String::into_bytes),
        ]
    ) {
        if let Ok(mut body) = CheckedPage::check(bytes, &DecodeSettings::default(), &|| false) {
            let mut records = 0;
            while let Some(part) = body.next_part() {
                records += part.record_count();
            }
            prop_assert_eq!(records, body.records());
        }
    }
}

#[test]
fn a_page_that_nobody_waits_for_is_read_no_further() {
    let json = format!("{{\"items\":[0{}]}}", ",0".repeat(100_000));
    let calls = std::cell::Cell::new(0);
    let stopped = || {
        calls.set(calls.get() + 1);
        calls.get() == 2
    };
    let refused = CheckedPage::check(json.into_bytes(), &DecodeSettings::default(), &stopped).err();
    assert_eq!((refused, calls.get()), (Some(DecodeError::Stopped), 2));
}
