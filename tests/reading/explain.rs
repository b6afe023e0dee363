//! `explain` over a stopped mirror's file: what is kept of deliveries, and what is printed once they are too long ago.

use crate::mirror_file::{MirrorFile, deleted, failed, updated};

fn count(mirror: &MirrorFile, sql: &str) -> i64 {
    rusqlite::Connection::open(mirror.path()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn of_a_feed_two_thousand_deliveries_are_kept_and_older_items_say_so() {
    // given a feed with one delivery more than are kept, and another feed with one
    let mirror = MirrorFile::new();
    let feed = mirror.feed("a");
    mirror.feed("b");
    mirror.polled("b", &[updated("only", 1, "{}")]);
    let written = (0..=2_000).map(|n| mirror.polling(&feed, &[updated(&n.to_string(), n + 1, "{}")]));
    for pending in written.collect::<Vec<_>>() {
        mirror.runtime.block_on(pending).unwrap().unwrap();
    }

    let (first, second) = (mirror.says(&["explain", "a", "0"]), mirror.says(&["explain", "a", "1"]));

    assert_eq!(count(&mirror, "SELECT count(*) FROM deliveries WHERE feed = 'a'"), 2_000);
    assert!(first.contains("too long ago to say more than: poll, 2026-01-02T03:04:05.678Z"), "{first}");
    assert!(second.contains("by a poll at the feed's cursor"), "{second}");
    assert!(mirror.says(&["explain", "b", "only"]).contains("by a poll at the feed's cursor"));
}

#[test]
fn a_delivery_that_wrote_nothing_leaves_no_row() {
    let mirror = MirrorFile::new();
    mirror.feed("a");
    mirror.polled("a", &[updated("1", 5, "{}"), updated("2", 5, "{}")]);
    mirror.polled("a", &[updated("1", 5, "{}")]);
    mirror.polled("a", &[updated("1", 4, "{}")]);
    mirror.polled("a", &[]);

    assert_eq!(count(&mirror, "SELECT count(*) FROM deliveries"), 1);
    let words = mirror.says(&["explain", "a", "1"]);
    assert!(words.contains("  with it   2 changes: "), "{words}");
    assert!(words.contains("  refused   2026-01-02T03:04:05.678Z"), "{words}");
}

#[test]
fn an_item_is_of_the_delivery_that_wrote_it_last() {
    let mirror = MirrorFile::new();
    mirror.feed("a");
    mirror.polled("a", &[updated("1", 1, "{}"), updated("2", 2, "{}")]);
    mirror.polled("a", &[updated("3", 3, "{}"), deleted("1", 4)]);

    let sql = "SELECT group_concat(id ORDER BY id) FROM items i JOIN deliveries d ON i.seq BETWEEN d.seq AND d.last_seq
               GROUP BY d.seq ORDER BY d.seq";
    let db = rusqlite::Connection::open(mirror.path()).unwrap();
    let mut select = db.prepare(sql).unwrap();
    let groups: Vec<String> = select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(groups, ["2", "1,3"]);
}

#[test]
fn a_feed_that_the_mirror_never_had_is_told_with_the_nearest() {
    let mirror = MirrorFile::new();
    mirror.feed("acme-sessions");
    let (code, errors) = failed(&mirror.run(&["explain", "acme-session", "1"]));
    assert_eq!(code, Some(1));
    assert!(errors.contains("did you mean acme-sessions?"), "{errors}");
}
