//! What the file alone knows of an item.

use crate::stream::StreamServer;
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page};
use crate::{WEBHOOKS, explain, post, publisher};

#[test]
fn a_polled_item_names_its_page_and_what_the_answer_said_of_itself() {
    // given a publisher whose pages come from a cache
    let publisher = ScriptedPublisher::start(|request| {
        let body = match request.query() {
            "" => page(&[item("a", 1), item("b", 2)], "/f?from=2&after=b"),
            "from=2&after=b" => page(&[item("c", 3)], "/f?from=3&after=c"),
            _ => page(&[], &request.target),
        };
        let reply = Reply::page(body).header("ETag", "\"v-1\"").header("Age", "7");
        reply.header("Date", "Sun, 06 Nov 1994 08:49:37 GMT").header("Last-Modified", "Sun, 06 Nov 1994 08:00:00 GMT")
    });
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");

    // when it is explained while the daemon runs
    let output = explain(&mirror, &["f", "c", "--json"]).json();
    let words = explain(&mirror, &["f", "c"]);

    // then
    let delivery = &output["items"][0]["delivery"];
    assert_eq!(delivery["url"], publisher.url("/f?from=2&after=b"));
    assert_eq!((&delivery["status"], &delivery["age"], &delivery["etag"]), (&200.into(), &7.into(), &"\"v-1\"".into()));
    assert_eq!(delivery["date"], "1994-11-06T08:49:37.000Z");
    assert_eq!(delivery["last_modified"], "1994-11-06T08:00:00.000Z");
    assert_eq!((&delivery["transport"], &delivery["purpose"]), (&"poll".into(), &"poll".into()));
    let seq = output["items"][0]["item"]["seq"].as_i64().unwrap();
    assert_eq!((delivery["seq"].as_i64(), delivery["last_seq"].as_i64()), (Some(seq), Some(seq)));
    assert_eq!(words.code, Some(0));
    words.assert_contains("f thing c: updated, modified 3, change number");
    words.assert_contains("by a poll at the feed's cursor\n");
    words.assert_contains(&format!("  from      {}\n", publisher.url("/f?from=2&after=b")));
    words.assert_contains(
        "  answer    200, 7 s in caches (age 7), ETag \"v-1\", the publisher's clock said 1994-11-06T08:49:37.000Z",
    );
    words.assert_contains("f: ok, mode poll");
    words.assert_contains("  behind    its end was last seen ");
    // and the first page wrote both of its items
    let both = mirror.rows(
        "SELECT d.url, count(*) FROM items i JOIN deliveries d ON i.seq BETWEEN d.seq AND d.last_seq GROUP BY 1 ORDER BY 1",
    );
    let first = publisher.url("/f");
    assert_eq!(both, [[first.as_str(), "2"], [&publisher.url("/f?from=2&after=b"), "1"]]);
}

#[test]
fn a_secret_of_the_query_is_not_told() {
    let publisher = ScriptedPublisher::start(|request| {
        let next = "/f?from=1&after=a&key=hunter2";
        Reply::page(if request.query().contains("from") { page(&[], next) } else { page(&[item("a", 1)], next) })
    });
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/f"), "query = { key = { file = \"key\" } }");
    mirror.write("key", "hunter2");
    let mirror = mirror.start();
    mirror.until_level("f");

    let output = explain(&mirror, &["f", "a", "--json"]);

    assert!(!output.out.contains("hunter2"), "{}", output.out);
    assert_eq!(output.json()["items"][0]["delivery"]["url"], publisher.url("/f"));
}

#[test]
fn a_streamed_item_names_its_stream_and_event() {
    let publisher = publisher(&TestFeed::of(1, 10));
    let stream = StreamServer::start();
    let mirror =
        MirrorProcess::new().feed_with("f", &publisher.url("/f"), &format!("sse.url = {:?}", stream.url())).start();
    mirror.until("a stream", |_| !stream.heads().is_empty());
    stream.send(&format!("event: itemupdate\nid: e-9\ndata: {}\n\n", item("s", 9)));
    mirror.until("the item", |mirror| mirror.ids("f").contains(&"s".to_owned()));

    let output = explain(&mirror, &["f", "s", "--json"]).json();

    let delivery = &output["items"][0]["delivery"];
    assert_eq!((&delivery["transport"], &delivery["purpose"]), (&"sse".into(), &"push".into()));
    assert_eq!(delivery["event_id"], "e-9");
    assert_eq!(delivery["url"], format!("{}?from=1&after=id-0", stream.url()));
    assert!(delivery["status"].is_null(), "{delivery}");
    explain(&mirror, &["f", "s"]).assert_contains("pushed over the stream\n");
}

#[test]
fn a_posted_item_and_what_was_refused_of_it_since_are_told() {
    let publisher = publisher(&TestFeed::of(1, 10));
    let keys = "webhook = { secret_file = \"hook\" }";
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/f"), keys).tables(WEBHOOKS);
    mirror.write("hook", post::SECRET);
    let mirror = mirror.start();
    mirror.until("level", |mirror| !mirror.row("f").level_at.is_empty());
    let nameless = r#"{"id":"w","kind":"thing","state":"updated","data":{}}"#.to_owned();
    for items in [vec![item("w", 20)], vec![item("w", 19)], vec![nameless]] {
        assert_eq!(post::page(&mirror, &items).status, 204);
    }

    let output = explain(&mirror, &["f", "w", "--json"]).json();
    let words = explain(&mirror, &["f", "w"]);

    let found = &output["items"][0];
    assert_eq!((&found["delivery"]["transport"], &found["delivery"]["url"]), (&"webhook".into(), &().into()));
    assert_eq!(found["refusals"][0]["reason"], "older: the mirror holds 20");
    assert_eq!(found["quarantine"].as_array().unwrap().len(), 1);
    words.assert_contains("posted to the webhook\n");
    words.assert_contains("webhook: modified 19, older: the mirror holds 20\n");
    words.assert_contains(&format!("(quarantine show {})", found["quarantine"][0]["id"]));
}

#[test]
fn an_item_is_found_by_the_url_that_its_data_call_it() {
    let named = |id: &str, name: &str| {
        format!(r#"{{"state":"updated","kind":"thing","id":"{id}","modified":1,"data":{{"@id":"{name}"}}}}"#)
    };
    let items = [named("1", "https:\\/\\/acme.example\\/things\\/77"), named("2", "https://acme.example/things/777")];
    let publisher = ScriptedPublisher::start(move |request| {
        let items = if request.query().is_empty() { &items[..] } else { &[] };
        Reply::page(page(items, "/f?from=1&after=2"))
    });
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");

    let alone = explain(&mirror, &["https://acme.example/things/77", "--json"]);
    let in_its_feed = explain(&mirror, &["f", "https://acme.example/things/777", "--json"]);
    let unknown = explain(&mirror, &["https://acme.example/things/7"]);

    assert_eq!((alone.code, &alone.json()["items"][0]["item"]["id"]), (Some(0), &"1".into()));
    assert!(alone.err.contains("searching"), "{}", alone.err);
    assert_eq!(in_its_feed.json()["items"][0]["item"]["id"], "2");
    assert_eq!(unknown.code, Some(1));
    unknown.assert_contains("https://acme.example/things/7: the mirror has no such item\n");
}

#[test]
fn of_an_unknown_item_it_tells_what_is_known_instead() {
    // given two feeds, one of which could not read the item that the other has
    let bad = r#"{"id":"x","kind":"thing","state":"maybe","modified":3}"#.to_owned();
    let publisher = ScriptedPublisher::start(move |request| {
        let items = match request.target.as_str() {
            "/f" => vec![bad.clone()],
            "/g" => vec![item("x", 3)],
            _ => vec![],
        };
        Reply::page(page(&items, &format!("{}?from=3&after=x", request.path())))
    });
    let mirror = MirrorProcess::new().feed("f", &publisher.url("/f")).feed("g", &publisher.url("/g")).start();
    mirror.until("level", |mirror| ["f", "g"].iter().all(|feed| !mirror.row(feed).level_at.is_empty()));

    let output = explain(&mirror, &["f", "x"]);
    let other_kind = explain(&mirror, &["g", "x", "--kind", "nothing"]);
    let no_id = explain(&mirror, &["f"]);

    assert_eq!(output.code, Some(1));
    output.assert_contains("x: the mirror has no such item\n");
    output.assert_contains("poll: unknown-state: ");
    output.assert_contains("elsewhere g thing x: updated\n");
    assert_eq!(other_kind.code, Some(1));
    other_kind.assert_contains("elsewhere g thing x: updated\n");
    assert_eq!(no_id.code, Some(2));
}

#[test]
fn a_purge_takes_the_deliveries_with_it_and_is_told() {
    let publisher = publisher(&TestFeed::of(3, 10));
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert_eq!(mirror.number("SELECT count(*) FROM deliveries"), 1);
    assert!(mirror.verb(&["purge", "f", "--yes"]).status.success());

    let output = explain(&mirror, &["f", "id-1"]);

    assert_eq!(mirror.number("SELECT count(*) FROM deliveries"), 0);
    assert_eq!(output.code, Some(1));
    output.assert_contains("  purged    ");
    output.assert_contains("paused: purged");
}

#[test]
fn a_tombstone_says_who_made_it() {
    // given one item that its publisher deleted, and one that a resync no longer found
    let test_feed = TestFeed::of(300, 1_000);
    let publisher = publisher(&test_feed);
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    test_feed.delete("id-1");
    mirror.until("a deletion", |mirror| mirror.row("f").tombstones == 1);
    test_feed.forget("id-2");
    assert!(mirror.verb(&["resync", "f"]).status.success());
    mirror.until("a sweep", |mirror| mirror.row("f").tombstones == 2);

    let (by_publisher, swept) = (explain(&mirror, &["f", "id-1"]), explain(&mirror, &["f", "id-2"]));

    by_publisher.assert_contains("deleted by its publisher");
    by_publisher.assert_contains("by a poll at the feed's cursor");
    swept.assert_contains("deleted, since its publisher's feed no longer has it");
    swept.assert_contains("a resync read the whole feed and did not find it");
}

#[test]
fn of_a_feed_that_was_purged_for_good_that_alone_is_told() {
    let publisher = publisher(&TestFeed::of(1, 10));
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert!(mirror.stop().success());
    mirror.drop_feed("f");
    mirror.set_feed("g", &publisher.url("/g"), "");
    let mut mirror = mirror.start();
    assert!(mirror.verb(&["purge", "f", "--yes"]).status.success());
    assert!(mirror.stop().success());

    let output = explain(&mirror, &["f", "id-0"]);

    assert_eq!(output.code, Some(1));
    assert!(output.err.contains("f is no longer configured, and was purged at 20"), "{}", output.err);
}
