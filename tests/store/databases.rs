//! Databases of released versions can be opened and read, and have the rows that they had.
//!
//! `tests/databases/VERSION.db.zst` was made by that version's code from [`make`]. A version's file is written once, when
//! it is released, and never again. Until 0.1.0 is out its layout may change; then make the file anew with
//! `WRITE_FIXTURES=1 cargo test --test store databases`.

use std::path::{Path, PathBuf};
use std::sync::Once;

use feedmirror::feed::{Finding, Transport};
use feedmirror::store::apply::Purpose;
use feedmirror::store::feeds::FeedRegistration;
use feedmirror::store::resync::{ResyncEnd, SourceTrust};
use rusqlite::Connection;
use rusqlite::types::Value;

use crate::test_store::{AT, TestStore, deleted, end, name, registration, start_url, step, unreadable, updated};

const CURSOR: &str = "https://acme.example/rpde?afterTimestamp=20&afterId=2";
const RESYNCED: &str = "https://acme.example/rpde?afterTimestamp=10&afterId=1";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/databases/0.1.0.db.zst")
}

/// A mirror with rows of every kind: live items, tombstones, a sweep, quarantine, findings, a refusal, a purge, a
/// running resync.
fn make() -> TestStore {
    let mirror = TestStore::with(&["acme", "gone", "purged"]);
    let store = mirror.store();
    let acme = FeedRegistration { provider: Some("ACME".into()), ..registration("acme") };
    mirror.wait(store.register(AT, vec![acme, registration("purged")], true)).unwrap();
    mirror.wait(store.record_start(AT, Some("127.0.0.1:8470".into()), None)).unwrap();

    mirror.push("gone", &[updated("1", 1, "{}")]);
    mirror.push("purged", &[updated("1", 1, "{}")]);
    mirror.wait(store.purge(&name("purged"), AT)).unwrap();

    let swim = updated("1", 10, "{\"name\" : \"Swim\"}");
    let polled = Purpose::Poll(step(&start_url("acme"), CURSOR));
    let mut delivery =
        mirror.delivery("acme", Transport::Poll, polled, &[swim.clone(), updated("swept", 15, "{}"), deleted("2", 20)]);
    delivery.page.license = Some("https://creativecommons.org/licenses/by/4.0/".into());
    delivery.page.unreadable.push(unreadable("no-kind", r#"{"id":"spared"}"#, Some("spared")));
    delivery.page.findings.push(Finding { rule: "bom", detail: "a sample".into(), count: 2 });
    mirror.apply(delivery);
    mirror.wait(store.begin_resync(&name("acme"), AT, SourceTrust::No, false)).unwrap();
    mirror.walk("acme", CURSOR, &[swim.clone(), deleted("2", 20)]);
    let resync = mirror.feed("acme").resync.unwrap();
    let ended =
        mirror.wait(store.end_resync(mirror.feed("acme").id, resync.walk_id, AT, 0.2, Default::default())).unwrap();
    assert_eq!(ended, ResyncEnd::Done(1));

    mirror.push("acme", &[updated("1", 9, "{}"), updated("pushed", 30, "[1, 2]"), updated("unmet", 31, "{}")]);
    mirror.apply(mirror.delivery("acme", Transport::Poll, Purpose::Poll(end(CURSOR)), &[]));
    mirror.wait(store.begin_resync(&name("acme"), AT, SourceTrust::No, true)).unwrap();
    mirror.walk("acme", RESYNCED, &[swim]);
    mirror
}

/// The whole file in one piece, its WAL written back.
fn bytes(mut mirror: TestStore) -> Vec<u8> {
    mirror.close();
    Connection::open(&mirror.path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    std::fs::read(&mirror.path).unwrap()
}

/// The fixture, opened by today's code.
fn released() -> TestStore {
    static WRITTEN: Once = Once::new();
    if std::env::var_os("WRITE_FIXTURES").is_some() {
        WRITTEN.call_once(|| {
            std::fs::write(fixture(), zstd::encode_all(&bytes(make())[..], 19).unwrap()).unwrap();
        });
    }
    let packed = std::fs::read(fixture()).expect("WRITE_FIXTURES=1 makes it");
    let mut mirror = TestStore::with(&[]);
    mirror.close();
    for suffix in ["-wal", "-shm"] {
        let mut name = mirror.path.clone().into_os_string();
        name.push(suffix);
        std::fs::remove_file(name).unwrap();
    }
    std::fs::write(&mirror.path, zstd::decode_all(&packed[..]).unwrap()).unwrap();
    mirror.reopen();
    mirror
}

fn layout(mirror: &TestStore) -> Vec<Vec<Value>> {
    let mut layout = mirror.rows("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name");
    layout.extend(
        ["user_version", "application_id", "page_size"]
            .map(|pragma| mirror.rows(&format!("PRAGMA {pragma}")).remove(0)),
    );
    layout
}

/// Fails for a migration that was edited instead of added, and for one that gives an old file another layout than a new
/// one.
#[test]
fn a_released_database_has_the_layout_of_a_new_one() {
    assert_eq!(layout(&released()), layout(&make()));
}

#[test]
fn a_released_database_reads_right() {
    let mirror = released();

    let items = mirror.rows("SELECT feed || ' ' || kind || ' ' || id || ' ' || modified || ' ' || state || ' ' || coalesce(data, '-') || ' ' || transport || ' ' || swept FROM items ORDER BY seq");
    let expected = [
        "gone Session 1 1 updated {} webhook 0",
        "acme Session 1 10 updated {\"name\" : \"Swim\"} poll 0",
        "acme Session 2 20 deleted - poll 0",
        "acme Session swept 15 deleted - poll 1",
        "acme Session pushed 30 updated [1, 2] webhook 0",
        "acme Session unmet 31 updated {} webhook 0",
    ];
    assert_eq!(items, expected.map(|item| vec![Value::Text(item.into())]));
    let feeds = mirror.rows("SELECT name || ' ' || coalesce(provider, '-') || ' ' || health || ' ' || items || ' ' || tombstones || ' ' || coalesce(cursor, '-') FROM feeds ORDER BY name");
    let expected = [
        format!("acme ACME ok 3 2 {CURSOR}"),
        format!("gone - removed 1 0 {}", start_url("gone")),
        "purged - paused 0 0 -".to_owned(),
    ];
    assert_eq!(feeds, expected.map(|feed| vec![Value::Text(feed)]));
    let count = |what: &str| mirror.value::<i64>(&format!("SELECT count(*) FROM {what}"));
    assert_eq!(count("changes WHERE state = 'purged' AND feed = 'purged'"), 1);
    assert_eq!(count("quarantine WHERE feed = 'acme' AND raw = '{\"id\":\"spared\"}'"), 1);
    assert_eq!(count("findings WHERE rule = 'bom' AND count = 2"), 1);
    assert_eq!(count("refusals WHERE id = '1' AND modified = 9"), 1);
    assert!(count("events") > 5);
    assert_eq!(mirror.value::<String>("PRAGMA integrity_check"), "ok");
}

#[test]
fn a_released_database_goes_on_where_it_was_left() {
    let mirror = released();
    let last: i64 = mirror.value("SELECT max(seq) FROM changes");

    // The running resync has seen item 1; it goes on and sweeps the items that it doesn't see.
    let resync = mirror.feed("acme").resync.unwrap();
    assert_eq!(resync.cursor, RESYNCED);
    mirror.walk("acme", CURSOR, &[updated("pushed", 30, "[1,2]")]);
    let ended = mirror
        .wait(mirror.store().end_resync(mirror.feed("acme").id, resync.walk_id, AT, 0.2, Default::default()))
        .unwrap();

    assert_eq!(ended, ResyncEnd::Done(1));
    assert_eq!(
        (mirror.item("unmet"), mirror.item("1")),
        ("31 deleted - swept".into(), "10 updated {\"name\" : \"Swim\"}".into())
    );
    assert!(mirror.seq("unmet") > last, "numbers go on");
    assert_eq!(mirror.push("acme", &[updated("1", 10, "{\"name\":\"Swim\"}")]).same, 1);
}
