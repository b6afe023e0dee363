//! Erasure: the item is gone from the files, is not mirrored again by any transport, and followers of the change log
//! learn of it.

use std::sync::Arc;
use std::time::Duration;

use feedmirror::feed::FeedName;
use feedmirror::store::forget::ItemSelector;
use feedmirror::store::{Store, now};
use rusqlite::Connection;

use crate::code_and_output;
use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page};

const ID: &str = "person-4711";
/// Words that only this item's data contain.
const SECRET: &str = "person-4711@";

/// A test feed with the person's item among others.
fn test_feed() -> Arc<TestFeed> {
    let test_feed = TestFeed::of(40, 10);
    test_feed.put(ID);
    test_feed.put("last");
    test_feed
}

fn serve(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let test_feed = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request: &Request| test_feed.page(request))
}

fn files_with(mirror: &MirrorProcess, bytes: &str) -> Vec<String> {
    mirror.holds_bytes(bytes, &["log", "config.toml"])
}

#[test]
fn a_forgotten_item_leaves_the_files_and_does_not_come_back() {
    // given an item in several versions, and a follower that has it
    let test_feed = test_feed();
    let publisher = serve(&test_feed);
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/f"), "webhook.secret_file = \"hook\"");
    let mut mirror = mirror.tables("[webhooks]\nlisten = \"127.0.0.1:0\"\n");
    mirror.write("hook", "a-secret-of-a-webhook");
    mirror.start_again();
    mirror.until_level("f");
    test_feed.put(ID);
    test_feed.put("last");
    let newest = test_feed.newest().to_string();
    mirror.until("the second version", |mirror| {
        mirror.number(&format!("SELECT count(*) FROM live_items WHERE id = 'last' AND modified = {newest}")) == 1
    });
    assert!(!files_with(&mirror, SECRET).is_empty(), "the test looks where it is");
    let seq = mirror.number("SELECT max(seq) FROM changes");

    // when it is forgotten on the live daemon
    let (code, out, error) = code_and_output(mirror.verb(&["forget", "f", ID]));

    // then no file holds it, and followers get its deletion
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("1 item and 0 quarantined records removed"), "{out}");
    assert!(out.contains("erased from the database's files"), "{out}");
    assert!(out.contains("no snapshots in"), "{out}");
    assert_eq!(files_with(&mirror, SECRET), [""; 0]);
    let after = mirror.rows(&format!("SELECT id, state FROM changes WHERE seq > {seq}"));
    assert_eq!(after, [[ID, "deleted"]]);
    let details = mirror.events("f", "forgotten");
    assert_eq!((details.len(), details[0].contains(ID)), (1, false), "{details:?}");

    // and no poll, resync or post mirrors it again
    let modified = test_feed.put(ID);
    test_feed.put("later");
    mirror.until("the next poll", |mirror| mirror.ids("f").contains(&"later".to_owned()));
    code_and_output(mirror.verb(&["resync", "f"]));
    mirror.until("the resync", |mirror| mirror.events("f", "resync-done").len() == 1);
    let address = mirror.column("SELECT webhooks_address FROM mirror").remove(0);
    let posted = page(&[item(ID, modified + 1), item("posted", modified + 1)], "");
    assert_eq!(post(&format!("http://{address}/webhooks/f"), &posted), 204);
    mirror.until("the post", |mirror| mirror.ids("f").contains(&"posted".to_owned()));
    assert!(!mirror.ids("f").contains(&ID.to_owned()));
    assert_eq!(files_with(&mirror, SECRET), [""; 0]);

    // and once it is allowed again, a resync mirrors it
    let (code, _, error) = code_and_output(mirror.verb(&["forget", "f", ID, "--undo"]));
    assert_eq!(code, 0, "{error}");
    code_and_output(mirror.verb(&["resync", "f"]));
    mirror.until("it is back", |mirror| mirror.ids("f").contains(&ID.to_owned()));
    let (code, _, error) = code_and_output(mirror.verb(&["forget", "f", ID, "--undo"]));
    assert_eq!((code, error.contains("no such item was forgotten")), (1, true), "{error}");
    let counted = mirror.rows("SELECT items, tombstones FROM feeds").remove(0);
    let real = mirror.rows("SELECT total(state = 'updated'), total(state = 'deleted') FROM items").remove(0);
    let whole = |numbers: Vec<String>| numbers.iter().map(|n| n.parse::<f64>().unwrap() as i64).collect::<Vec<_>>();
    assert_eq!(whole(counted), whole(real));
}

fn post(url: &str, body: &str) -> u16 {
    let client = feedmirror::source::client::plain_client(crate::support::DEADLINE).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let request = client.post(url).bearer_auth("a-secret-of-a-webhook").body(body.to_owned());
    runtime.block_on(async { request.send().await.unwrap().status().as_u16() })
}

#[test]
fn at_rest_it_leaves_the_file_too_with_its_quarantined_records_and_the_copies_that_hold_it_are_named() {
    // given a mirror that has had the item as a good and as a bad record, and two snapshots, one from before
    let bad = format!(r#"{{"state":"odd","kind":"thing","id":"{ID}","modified":5,"data":{{"name":"{SECRET}5"}}}}"#);
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&[item("other", 1), item(ID, 2), bad.clone(), item("last", 9)], "/f?from=9&after=last")),
        _ => Reply::page(page(&[], "/f?from=9&after=last")),
    });
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    mirror.stop();
    std::fs::create_dir(mirror.path("snapshots")).unwrap();
    let copy = |name: &str| {
        let db = Connection::open(mirror.path("mirror.db")).unwrap();
        db.execute("VACUUM INTO ?1", [mirror.path(name).to_str().unwrap()]).unwrap();
    };
    copy("snapshots/mirror-20260101T000000Z.db");

    // when it is forgotten
    let (code, out, error) = code_and_output(mirror.verb(&["forget", "f", ID]));

    // then no file of the database holds it, and the one snapshot that does is named
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("1 item and 1 quarantined record removed"), "{out}");
    assert!(out.contains("mirror-20260101T000000Z.db still holds it"), "{out}");
    assert!(out.contains("1 of 1 snapshots"), "{out}");
    for name in ["mirror.db", "mirror.db-wal"] {
        let bytes = std::fs::read(mirror.path(name)).unwrap_or_default();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{name}");
    }
    assert_eq!(mirror.rows("SELECT quarantine_rows, quarantine_bytes FROM feed"), [["0", "0"]]);

    // and a new snapshot does not hold it
    std::fs::remove_file(mirror.path("snapshots/mirror-20260101T000000Z.db")).unwrap();
    copy("snapshots/mirror-20260102T000000Z.db");
    let (_, out, _) = code_and_output(mirror.verb(&["forget", "f", ID]));
    assert!(out.contains("(forgotten before)") && out.contains("none of the 1 snapshots"), "{out}");
    let beside: Vec<_> = std::fs::read_dir(mirror.path("snapshots")).unwrap().collect();
    assert_eq!(beside.len(), 1, "searching leaves no trace");
}

#[test]
fn one_kind_is_forgotten_and_the_other_stays() {
    let other = item("same", 3).replace("thing", "other");
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&[item("same", 1), other.clone()], "/f?from=3&after=same")),
        _ => Reply::page(page(&[], "/f?from=3&after=same")),
    });
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    mirror.stop();

    let (code, out, _) = code_and_output(mirror.verb(&["forget", "f", "same", "--kind", "thing"]));

    assert_eq!(code, 0);
    assert!(out.contains("a cursor names it"), "{out}");
    assert_eq!(mirror.column("SELECT kind FROM live_items"), ["other"]);
    let (code, _, error) = code_and_output(mirror.verb(&["forget", "nope", "same"]));
    assert_eq!((code, error.contains("no feed nope")), (1, true), "{error}");
}

#[test]
fn an_old_version_goes_from_the_free_pages_that_it_left() {
    // given an item that was large once: the free pages still hold its old data
    let large = format!(r#"{{"name":"{}"}}"#, format!("{SECRET}large ").repeat(8_000));
    let large = item(ID, 1).replace(&format!(r#"{{"name":"{SECRET}1"}}"#), &large);
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(std::slice::from_ref(&large), "/f?from=1&after=1")),
        "from=1&after=1" => Reply::page(page(&[item(ID, 2), item("last", 3)], "/f?from=3&after=last")),
        _ => Reply::page(page(&[], "/f?from=3&after=last")),
    });
    let mirror = MirrorProcess::new().feed("f", &publisher.url("/f"));
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    assert!(mirror.number("PRAGMA freelist_count") > 0, "the test frees pages");
    let holds = |bytes: &str| files_with(&mirror, bytes).contains(&"mirror.db".to_owned());
    assert!(holds("person-4711@large"), "and they hold the old version");

    // when it is forgotten
    let (code, out, error) = code_and_output(mirror.verb(&["forget", "f", ID]));

    // then they don't
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(files_with(&mirror, SECRET), [""; 0]);
    assert_eq!(mirror.number("SELECT count(*) FROM blank"), 0);
}

#[test]
fn once_its_tombstone_has_gone_nothing_names_it_and_it_is_still_not_taken() {
    // given an item, and a record in quarantine with its id
    let bad = format!(r#"{{"state":"odd","kind":"thing","id":"{ID}","modified":5}}"#);
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&[item(ID, 2), bad.clone(), item("last", 9)], "/f?from=9&after=last")),
        _ => Reply::page(page(&[], "/f?from=9&after=last")),
    });
    let mirror = MirrorProcess::new().feed("f", &publisher.url("/f")).tables("[keep]\nforgotten = \"1ms\"\n");
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    assert_eq!(code_and_output(mirror.verb(&["forget", "f", ID])).0, 0);
    assert_eq!(mirror.row("f").tombstones, 1);

    // when its tombstone is too old, and the feed is read anew
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    assert_eq!(mirror.row("f").tombstones, 0);
    assert_eq!(code_and_output(mirror.verb(&["resync", "f"])).0, 0);
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);

    // then both are gone
    assert_eq!(mirror.events("f", "resync-done").len(), 1);
    assert_eq!(mirror.ids("f"), ["last"]);
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 0);
    assert_eq!(mirror.number("SELECT met FROM forgotten"), 2, "both came again");
    assert!(files_with(&mirror, ID).is_empty(), "{:?}", files_with(&mirror, ID));
}

#[test]
fn a_reader_that_stays_is_told_of_and_the_wal_is_cut_once_it_has_gone() {
    // given a reader in the middle of a query
    let test_feed = test_feed();
    let publisher = serve(&test_feed);
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    let reader = Connection::open(mirror.path("mirror.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM items").unwrap();
    let in_wal = |mirror: &MirrorProcess| files_with(mirror, SECRET).contains(&"mirror.db-wal".to_owned());

    // when the item is forgotten
    let (code, out, error) = code_and_output(mirror.verb(&["forget", "f", ID]));

    // then it is done, and the output says what is left to do
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("stay in the WAL until it can be written back"), "{out}");
    assert!(in_wal(&mirror));
    test_feed.put("fresh");
    mirror.until("intake goes on", |mirror| mirror.ids("f").contains(&"fresh".to_owned()));
    reader.execute_batch("COMMIT").unwrap();
    mirror.until("the WAL is cut", |mirror| files_with(mirror, SECRET).is_empty());
}

#[test]
fn what_the_end_of_a_run_cut_short_of_forgetting_and_erasing_goes_on_with_the_next() {
    // given an item, its records in quarantine, and free pages with an old version of it
    let large = format!(r#"{{"name":"{}"}}"#, format!("{SECRET}large ").repeat(8_000));
    let large = item(ID, 1).replace(&format!(r#"{{"name":"{SECRET}1"}}"#), &large);
    let bad = |n: usize| format!(r#"{{"state":"odd","kind":"thing","id":"{ID}","modified":{n},"data":"{SECRET}{n}"}}"#);
    let bad: Vec<String> = (0..500).map(bad).collect();
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(std::slice::from_ref(&large), "/f?from=1&after=1")),
        "from=1&after=1" => Reply::page(page(&[item(ID, 2), item("last", 3)], "/f?from=3&after=last")),
        "from=3&after=last" => Reply::page(page(&bad, "/f?from=4&after=last")),
        _ => Reply::page(page(&[], "/f?from=4&after=last")),
    });
    let mut mirror = MirrorProcess::new().feed("f", &publisher.url("/f"));
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    assert_eq!(mirror.number("SELECT quarantine_rows FROM feed"), 500);
    assert!(mirror.number("PRAGMA freelist_count") > 0, "the test frees pages");

    // when a run ends as soon as the item is forgotten
    let name = FeedName::new("f").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (store, store_guard) = Store::open(&mirror.path("mirror.db")).unwrap();
        let named = ItemSelector { id: ID.to_owned(), kind: None };
        let cut_short = tokio::time::timeout(Duration::ZERO, store.forget(&name, now(), named)).await;
        assert!(cut_short.is_err());
        store_guard.finish();
    });
    assert_eq!(mirror.number("SELECT forgotten FROM feed"), 1);
    assert!(!files_with(&mirror, SECRET).is_empty());

    // then the next run removes and erases the rest, and the erasure is finished
    mirror.start_again();
    mirror.until("erased", |mirror| {
        mirror.number("SELECT count(*) FROM erasure") == 0 && files_with(mirror, SECRET).is_empty()
    });
    assert_eq!(mirror.number("SELECT count(*) FROM blank") + mirror.number("SELECT count(*) FROM quarantine"), 0);
    assert_eq!(mirror.ids("f"), ["last"]);
    assert!(mirror.stop().success());
    let (code, out, _) = code_and_output(mirror.verb(&["verify"]));
    assert_eq!(code, 0, "{out}");
}

#[test]
fn a_wal_that_a_reader_kept_until_the_end_of_a_run_is_cut_by_the_next() {
    // given a reader in the middle of a query, and an item that was forgotten
    let test_feed = test_feed();
    let publisher = serve(&test_feed);
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    let reader = Connection::open(mirror.path("mirror.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM items").unwrap();
    let (code, out, _) = code_and_output(mirror.verb(&["forget", "f", ID]));
    assert_eq!((code, out.contains("stay in the WAL")), (0, true), "{out}");

    // when the run is killed, and the reader closes the file
    mirror.kill();
    reader.execute_batch("COMMIT").unwrap();
    assert!(!files_with(&mirror, SECRET).is_empty());
    let left = "SELECT count(*) FROM erasure";
    assert_eq!(mirror.number(left), 1);

    // then the next run truncates the WAL, and records that it has
    mirror.start_again();
    mirror.until("the WAL is cut", |mirror| mirror.number(left) == 0 && files_with(mirror, SECRET).is_empty());
}
