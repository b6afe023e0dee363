//! Retention: rows that are too old are removed, and no others; settings that would do harm are refused.

use std::sync::Arc;

use crate::code_and_output;
use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page};

#[test]
fn what_is_older_than_it_is_to_be_kept_goes_by_itself_and_is_told_once() {
    let bad = r#"{"state":"odd","kind":"thing","id":"x","modified":1}"#.to_owned();
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&[bad.clone(), item("a", 2)], "/f?from=2&after=a")),
        _ => Reply::page(page(&[], "/f?from=2&after=a")),
    });
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 1);
    mirror.stop();

    let mut mirror = mirror.tables("[keep]\nquarantine = \"1s\"\nevents = \"off\"\n");
    mirror.start_again();
    mirror.until("the record is too old", |mirror| mirror.number("SELECT count(*) FROM quarantine") == 0);

    let sql = "SELECT detail FROM events WHERE what = 'housekeeping'";
    mirror.until("an event", |mirror| mirror.column(sql) == ["too old to be kept: 1 quarantine"]);
    assert_eq!(mirror.rows("SELECT quarantine_rows, quarantine_bytes FROM feed"), [["0", "0"]]);
    assert_eq!(mirror.ids("f"), ["a"]);
}

#[test]
fn tombstones_go_where_that_is_asked_for_and_the_counts_stay_right() {
    let test_feed = TestFeed::of(3, 10);
    test_feed.delete("id-0");
    let publisher = {
        let test_feed = Arc::clone(&test_feed);
        ScriptedPublisher::start(move |request: &Request| test_feed.page(request))
    };
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    mirror.stop();
    assert_eq!(mirror.row("f").tombstones, 1);
    // A year passes for the tombstone.
    let db = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute("UPDATE item SET changed_at = changed_at - 31536000000 WHERE flags & 1", []).unwrap();
    drop(db);

    // kept by default, at the end of a sync too
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    assert_eq!(mirror.row("f").tombstones, 1);

    let mirror = mirror.tables("[keep]\ntombstones = \"37d\"\n");
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    assert_eq!(mirror.row("f").tombstones, 0);
    assert_eq!(mirror.number("SELECT count(*) FROM items WHERE state = 'deleted'"), 0);
    assert_eq!(mirror.ids("f"), ["id-1", "id-2"]);
    assert_eq!(mirror.number("SELECT bytes > 0 FROM feeds"), 1);
}

#[test]
fn tombstones_are_kept_for_at_least_the_longest_retention_and_thirty_days() {
    let mirror = MirrorProcess::new().feed_with("f", "https://acme.example/f", "retention = \"14d\"");
    let mirror = mirror.tables("[keep]\ntombstones = \"43d\"\n");
    let (code, out, error) = code_and_output(mirror.verb(&["check"]));
    assert_eq!(code, 2, "{out}{error}");
    assert!(format!("{out}{error}").contains("keep.tombstones"), "{out}{error}");

    let mirror = MirrorProcess::new().feed_with("f", "https://acme.example/f", "retention = \"14d\"");
    let mirror = mirror.tables("[keep]\ntombstones = \"44d\"\n");
    assert_eq!(code_and_output(mirror.verb(&["check"])).0, 0);
}
