//! Status, quarantine, findings and events: rows under the SQL names, tables for people.

use feedmirror::feed::{Attribution, Finding, Health, Mode, PushTrust, Transport};
use feedmirror::store::endpoints::PushTrustUpdate;
use feedmirror::store::feeds::{FeedRegistration, HealthNote};
use feedmirror::store::read::Reader;

use crate::mirror_file::{AT, MirrorFile, deleted, failed, json_lines, updated};

/// Two feeds, one failing; an item, a tombstone, a refusal, a record in quarantine, a finding.
fn busy_mirror() -> MirrorFile {
    let mirror = MirrorFile::new();
    mirror.feed("acme-sessions");
    let failing = mirror.feed("trouble");
    let nameless = "{\"state\":\"updated\",\"kind\":\"Session\",\"modified\":9,\"data\":{}}".to_owned();
    mirror.polled("acme-sessions", &[updated("a", 5, "{\"n\":1}"), deleted("b", 6), nameless]);
    mirror.polled("acme-sessions", &[updated("a", 4, "{\"n\":0}")]);
    mirror.polled("acme-sessions", &[]);
    let note = HealthNote {
        health: Health::Retrying,
        reason: Some("timeout: no bytes for 30 s".into()),
        failures: 3,
        next_poll_at: Some(AT),
    };
    mirror.runtime.block_on(mirror.store().record_health(failing.id, AT, note)).unwrap();
    let finding = Finding { rule: "bom", detail: "it begins with one".into(), count: 2 };
    mirror.runtime.block_on(mirror.store().record_finding(failing.id, AT, finding)).unwrap();
    mirror
}

/// The view's columns as SQLite reports them.
fn columns(mirror: &MirrorFile, view: &str) -> Vec<String> {
    let db = rusqlite::Connection::open(mirror.path()).unwrap();
    let mut select = db.prepare("SELECT name FROM pragma_table_info(?1) ORDER BY cid").unwrap();
    let names = select.query_map([view], |row| row.get(0)).unwrap();
    names.collect::<Result<_, _>>().unwrap()
}

/// A JSON object's keys in the order of its text.
fn keys(object: &str) -> Vec<String> {
    struct Keys;
    impl<'de> serde::de::Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    let mut reading = serde_json::Deserializer::from_str(object);
    serde::Deserializer::deserialize_map(&mut reading, Keys).unwrap()
}

#[test]
fn json_rows_have_the_views_columns_in_their_order() {
    let mirror = busy_mirror();
    for (view, arguments) in [
        ("quarantine", &["quarantine", "list", "--json"][..]),
        ("quarantine", &["quarantine", "show", "1", "--json"]),
        ("findings", &["findings", "--json"]),
        ("events", &["events", "--json"]),
    ] {
        let text = mirror.says(arguments);
        assert_eq!(keys(text.lines().next().unwrap()), columns(&mirror, view), "{view}");
    }
}

#[test]
fn every_row_the_reader_gives_has_its_view_s_columns() {
    let mirror = busy_mirror();
    let reader = Reader::open(&mirror.path()).unwrap();
    let text = |row: serde_json::Result<String>| row.unwrap();
    let changes = reader.changes(0, 10, &Default::default(), false).unwrap();
    let items = reader.items(0, 10, &Default::default(), true).unwrap();
    for (view, row) in [
        ("mirror", text(serde_json::to_string(&reader.mirror().unwrap()))),
        ("feeds", text(serde_json::to_string(&reader.feeds(&[]).unwrap()[0]))),
        ("endpoints", text(serde_json::to_string(&reader.endpoints(None).unwrap()[0]))),
        ("refusals", text(serde_json::to_string(&reader.refusals(None, 1).unwrap()[0]))),
        ("deliveries", text(serde_json::to_string(&reader.delivery_of(items.rows[0].seq).unwrap().unwrap()))),
        ("changes", text(serde_json::to_string(&changes.rows[0].0))),
        ("items", text(serde_json::to_string(&items.rows[0]))),
    ] {
        assert_eq!(keys(&row), columns(&mirror, view), "{view}");
    }
}

#[test]
fn rows_say_what_the_views_say() {
    let mirror = busy_mirror();
    let reader = Reader::open(&mirror.path()).unwrap();
    let db = rusqlite::Connection::open(mirror.path()).unwrap();
    let (item, swept) = (&reader.items(0, 10, &Default::default(), true).unwrap().rows[1], false);
    let sql =
        "SELECT feed || kind || id || modified || state || seq || changed_at || transport FROM items WHERE id = 'b'";
    let seen: String = db.query_row(sql, [], |row| row.get(0)).unwrap();
    let ours = [&item.feed, &item.kind, &item.id, &item.modified.to_string(), &item.state, &item.seq.to_string()];
    assert_eq!(ours.map(String::as_str).concat() + &item.changed_at + &item.transport, seen);
    assert_eq!((item.swept, &item.data), (swept, &None));
    let refusal = &reader.refusals(Some("acme-sessions"), 5).unwrap()[0];
    let seen: String = db.query_row("SELECT at || id || reason FROM refusals", [], |row| row.get(0)).unwrap();
    assert_eq!(format!("{}{}{}", refusal.at, refusal.id, refusal.reason), seen);
    assert_eq!(refusal.at, "2026-01-02T03:04:05.678Z");
}

#[test]
fn status_as_json_is_one_object_of_the_two_views() {
    let mirror = busy_mirror();
    let text = mirror.says(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert_eq!(keys(&text), ["mirror", "feeds"]);
    let mut sorted = columns(&mirror, "feeds");
    sorted.sort();
    assert_eq!(status["feeds"][0].as_object().unwrap().keys().cloned().collect::<Vec<_>>(), sorted);
    assert_eq!(status["feeds"][0]["name"], "acme-sessions");
    assert_eq!(status["feeds"][0]["items"], 1);
    assert_eq!(status["feeds"][0]["tombstones"], 1);
    assert_eq!(status["feeds"][1]["reason"], "timeout: no bytes for 30 s");
}

#[test]
fn status_puts_trouble_first_and_says_why() {
    let mirror = busy_mirror();
    let text = mirror.says(&["status"]);
    let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("no {word} in\n{text}"));
    assert!(at("trouble") < at("acme-sessions"), "{text}");
    assert!(text.contains("3 in a row: timeout: no bytes for 30 s\n"), "{text}");
    assert!(text.contains("2 feeds: 1 ok, 1 retrying; 1 live item\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
}

#[test]
fn status_of_one_feed_shows_that_one() {
    let mirror = busy_mirror();
    let text = mirror.says(&["status", "acme-sessions"]);
    assert!(text.contains("acme-sessions") && !text.contains("trouble"), "{text}");
}

#[test]
fn status_of_a_pushed_feed_says_how_its_endpoints_are_and_why_its_mode_is_what_it_is() {
    // given a feed that its stream kept live until the stream was lost, and that its webhook keeps live now
    let mirror = busy_mirror();
    let id = mirror.runtime.block_on(mirror.store().feed(&mirror.name("acme-sessions"))).unwrap().id;
    let standing =
        |why: &str| PushTrustUpdate { push: PushTrust::Proven, feed_push: PushTrust::Proven, why: why.into() };
    mirror.runtime.block_on(async {
        let store = mirror.store();
        store.set_push_endpoints(id, AT, vec![Transport::Sse, Transport::Webhook]).await.unwrap();
        store.set_push_trust(id, AT, Transport::Webhook, standing("proven: it delivered a")).await.unwrap();
        store.count_missed(id, Transport::Webhook, 2, 0).await.unwrap();
        store.count_missed(id, Transport::Webhook, 0, 1).await.unwrap();
        store.set_mode(id, AT, Mode::Sse, "push delivers").await.unwrap();
        let lost = Some("push-lost: sse: stream-ended: the publisher closed the stream".to_owned());
        store.record_endpoint_health(id, AT, Transport::Sse, Health::Retrying, lost).await.unwrap();
        store.set_mode(id, AT, Mode::Webhook, "push-lost: sse: stream-ended").await.unwrap();
    });

    let all = mirror.says(&["status"]);
    let one = mirror.says(&["status", "acme-sessions"]);

    // then the list of all feeds shows mode and push, and a single feed's status also shows the last change of its mode
    let row = |text: &str| -> Vec<String> {
        let row = text.lines().find(|line| line.trim_start().starts_with("acme-sessions ")).unwrap();
        row.split_whitespace().take(4).map(str::to_owned).collect()
    };
    assert_eq!(row(&all), ["acme-sessions", "webhook", "proven", "ok"], "{all}");
    assert!(!all.contains("its mode changed"), "{all}");
    let contains = |what: &str| assert!(one.contains(what), "no {what} in\n{one}");
    contains(" ago: sse → webhook: push-lost: sse: stream-ended\n");
    assert_eq!(one.matches("its mode changed").count(), 1, "{one}");
    contains("acme-sessions: poll: ok; last page ");
    contains("acme-sessions: sse: retrying for ");
    contains(
        ": push-lost: sse: stream-ended: the publisher closed the stream; unproven: polled until it has delivered;",
    );
    contains("acme-sessions: webhook: ok; proven ");
    contains("; 0 items brought, 2 missed (1 of them came late)\n");
    // and the JSON is as before
    let json: serde_json::Value = serde_json::from_str(&mirror.says(&["status", "acme-sessions", "--json"])).unwrap();
    assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["feeds", "mirror"]);
}

#[test]
fn an_unknown_feed_is_told_with_the_nearest() {
    let mirror = busy_mirror();
    for arguments in
        [&["status", "acme-session"][..], &["export", "--feed", "acme-session"], &["events", "acme-session"]]
    {
        let (code, errors) = failed(&mirror.run(arguments));
        assert_eq!(code, Some(1), "{errors}");
        let expected = "feedmirror: there is no feed acme-session in the mirror; did you mean acme-sessions?\n";
        assert_eq!(errors, expected);
    }
}

#[test]
fn a_quarantined_record_is_listed_and_shown_whole() {
    let mirror = busy_mirror();
    let rows = json_lines(&mirror.says(&["quarantine", "list", "acme-sessions", "--json"]));
    assert_eq!(rows.len(), 1);
    let raw = "{\"state\":\"updated\",\"kind\":\"Session\",\"modified\":9,\"data\":{}}";
    assert_eq!(rows[0]["raw"], raw);
    let list = mirror.says(&["quarantine", "list"]);
    assert!(list.contains(rows[0]["reason"].as_str().unwrap()), "{list}");
    let text = mirror.says(&["quarantine", "show", &rows[0]["id"].to_string()]);
    assert!(text.contains("feed       acme-sessions\n") && text.ends_with(&format!("\n{raw}\n")), "{text}");
    let (code, errors) = failed(&mirror.run(&["quarantine", "show", "999"]));
    assert_eq!((code, errors.as_str()), (Some(1), "feedmirror: there is no record 999 in quarantine\n"));
}

#[test]
fn findings_and_events_tell_what_was_seen() {
    let mirror = busy_mirror();
    let findings = mirror.says(&["findings", "trouble"]);
    assert!(findings.contains("bom") && findings.contains("it begins with one"), "{findings}");
    let events = mirror.says(&["events", "trouble"]);
    assert!(events.contains("2026-01-02T03:04:05.678Z  trouble  health: ok → retrying: timeout"), "{events}");
    let last = mirror.says(&["events", "--limit", "1"]);
    assert_eq!(last.lines().count(), 1, "{last}");
}

#[test]
fn the_last_events_come_in_the_order_they_happened() {
    let mirror = MirrorFile::new();
    let feed = mirror.feed("a");
    for n in 0..5 {
        mirror.runtime.block_on(mirror.store().record_event(Some(feed.id), AT, "seek", &n.to_string())).unwrap();
    }
    for arguments in [&["events", "--json", "--limit", "2"][..], &["events", "a", "--json", "--limit", "2"]] {
        let rows = json_lines(&mirror.says(arguments));
        assert_eq!(rows.iter().map(|row| row["detail"].as_str().unwrap()).collect::<Vec<_>>(), ["3", "4"]);
    }
}

#[test]
fn status_says_how_far_a_first_load_is_where_its_size_is_known() {
    let mirror = MirrorFile::new();
    let url = "https://acme.example/acme".to_owned();
    let attribution = Attribution { total_items: Some(4), ..Attribution::default() };
    let feed = FeedRegistration { name: mirror.name("acme"), provider: None, url, attribution, config_error: None };
    mirror.runtime.block_on(mirror.store().register(AT, vec![feed], false)).unwrap();
    mirror.feed("unknown");
    mirror.polled("acme", &[updated("1", 1, "{}")]);

    let text = mirror.says(&["status"]);

    assert!(text.contains("\nacme: ok: first load: about 25 %, some "), "{text}");
    assert!(!text.contains("unknown: ok"), "{text}");
}
