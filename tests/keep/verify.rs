//! `verify`: each thing that can be wrong is found under its name, and the daemon's own rows are never wrong.

use std::collections::BTreeSet;
use std::fs;

use feedmirror::store::read::CHECKS;
use rusqlite::Connection;

use crate::support::MirrorProcess;
use crate::{level, path_of, snapshot, stdout_of, text};

/// A check, and a change that makes it find something; in the order of [`CHECKS`], except `unreadable`.
const PLANTED: &[(&str, &str)] = &[
    ("mirror-row", "UPDATE mirror_state SET epoch = ''"),
    ("seq-ahead", "UPDATE mirror_state SET seq = 3"),
    ("seq-ahead", "UPDATE mirror_state SET reserved = seq - 1"),
    ("seq-shared", "INSERT INTO purge SELECT min(seq), 'acme', 0 FROM item"),
    ("bad-flags", "UPDATE item SET flags = flags | 2 WHERE id = 'id-1'"),
    ("bad-flags", "UPDATE item SET flags = flags | 16 WHERE id = 'id-1'"),
    ("bad-flags", "UPDATE item SET flags = flags | 64 WHERE id = 'id-1'"),
    ("tombstone-with-data", "UPDATE item SET data = '{}' WHERE id = 'id-2'"),
    ("live-without-data", "UPDATE item SET data = NULL WHERE id = 'id-1'"),
    ("unknown-kind", "UPDATE item SET kind = 77 WHERE id = 'id-1'"),
    ("item-key", "UPDATE item SET key = key + 1 WHERE id = 'id-1'"),
    ("item-key", "UPDATE item SET id = 'id-99' WHERE id = 'id-1'"),
    (
        "item-twice",
        "INSERT INTO item SELECT seq + 1000, feed, key, kind, transport, flags, changed_at, id, modified, data
         FROM item WHERE id = 'id-1'",
    ),
    ("item-count", "UPDATE feed SET items = items - 1"),
    ("item-count", "DELETE FROM item WHERE id = 'id-1'"),
    ("tombstone-count", "UPDATE feed SET tombstones = tombstones + 1"),
    ("quarantine-count", "UPDATE feed SET quarantine_rows = 2"),
    (
        "quarantine-count",
        "INSERT INTO quarantined (feed, transport, digest, reason, raw, first_at, last_at)
         SELECT id, 0, 1, 'no-id', '{}', 0, 0 FROM feed",
    ),
    ("no-endpoint", "DELETE FROM endpoint"),
    ("no-cursor", "UPDATE endpoint SET cursor = NULL"),
    ("cursor-ahead", "UPDATE endpoint SET id = 'id-500'"),
    ("never-level", "UPDATE feed SET level_at = NULL"),
    ("walk-leftovers", "INSERT INTO seen SELECT feed, seq, 0 FROM item WHERE id = 'id-1'"),
    ("walk-leftovers", "INSERT INTO spared SELECT id, 'x' FROM feed"),
    ("orphan", "PRAGMA foreign_keys = OFF; INSERT INTO endpoint (feed, transport) VALUES (99, 1)"),
    ("orphan", "INSERT INTO event (at, feed, what) VALUES (0, 99, 'health')"),
    ("orphan", "INSERT INTO position VALUES (99, 0, 0, 'c', 'k', 'i')"),
    ("orphan", "UPDATE item SET feed = 99 WHERE id = 'id-1'"),
];

/// These checks don't look at each item.
const QUICK: &[&str] = &[
    "mirror-row",
    "seq-ahead",
    "seq-shared",
    "item-twice",
    "quarantine-count",
    "no-endpoint",
    "no-cursor",
    "cursor-ahead",
    "never-level",
    "walk-leftovers",
    "orphan",
];

/// A sound stopped mirror, with live items and tombstones, all in one file.
fn at_rest() -> MirrorProcess {
    let (test_feed, _publisher, mut mirror) = level(30);
    test_feed.delete("id-2");
    mirror.until("the deletion came", |mirror| mirror.live("acme") == test_feed.live());
    mirror.stop();
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    mirror
}

/// The findings of `verify` in a changed copy: checks with their counts, and the exit code.
fn found(mirror: &MirrorProcess, change: &str, more: &[&str]) -> (Vec<(String, i64)>, i32) {
    let copy = mirror.path("changed.db");
    fs::copy(mirror.path("mirror.db"), &copy).unwrap();
    let db = Connection::open(&copy).unwrap();
    db.execute_batch(change).unwrap();
    drop(db);
    let arguments: Vec<&str> =
        ["verify", "--json", "--db", copy.to_str().unwrap()].iter().chain(more).copied().collect();
    let output = mirror.verb(&arguments);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let violations = report["violations"].as_array().unwrap().iter();
    let violations = violations.map(|v| (v["check"].as_str().unwrap().to_owned(), v["count"].as_i64().unwrap()));
    (violations.collect(), output.status.code().unwrap())
}

#[test]
fn what_the_daemon_wrote_is_sound_running_or_not() {
    let (test_feed, _publisher, mirror) = level(200);
    test_feed.delete("id-5");
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound; 20"));

    let mirror = at_rest();
    assert_eq!(found(&mirror, "", &[]), (Vec::new(), 0));
    assert_eq!(found(&mirror, "", &["--quick"]), (Vec::new(), 0));
}

#[test]
fn a_mirror_that_has_forgotten_items_is_sound_and_its_snapshot_can_be_restored() {
    // Given: a live item and a tombstone, both forgotten beside the daemon.
    let (test_feed, _publisher, mut mirror) = level(30);
    test_feed.delete("id-2");
    mirror.until("the deletion came", |mirror| mirror.live("acme") == test_feed.live());
    for id in ["id-2", "id-3"] {
        assert!(stdout_of(&mirror.verb(&["forget", "acme", id])).contains("never taken again"));
    }

    // When the file is checked, then it is sound; and a snapshot is made of it, and restored.
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound; 30"));
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound; 30"));
    assert_eq!(mirror.rows("SELECT items, tombstones FROM feeds"), [["28", "2"]]);
    assert_eq!(mirror.number("SELECT count(*) FROM forgotten"), 2);
}

#[test]
fn each_planted_violation_is_named() {
    let mirror = at_rest();
    for (check, change) in PLANTED {
        let (violations, code) = found(&mirror, change, &[]);
        assert!(violations.iter().any(|(name, _)| name == check), "{change}: {violations:?}");
        assert_eq!(code, 1, "{change}");
        let quick = found(&mirror, change, &["--quick"]);
        if QUICK.contains(check) {
            assert!(quick.0.iter().any(|(name, _)| name == check), "--quick, {change}: {quick:?}");
        }
    }
    let planted: BTreeSet<&str> = PLANTED.iter().map(|(check, _)| *check).chain(["integrity", "unreadable"]).collect();
    assert_eq!(planted, CHECKS.iter().copied().collect(), "each check has its plant");
}

#[test]
fn violations_are_counted_and_shown_by_a_sample() {
    let mirror = at_rest();
    let change = "UPDATE item SET data = NULL WHERE id IN ('id-11', 'id-12', 'id-13')";
    assert_eq!(found(&mirror, change, &[]).0, [("live-without-data".to_owned(), 3)]);

    let output = mirror.verb(&["verify", "--db", "changed.db"]);

    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.starts_with("live-without-data: 3, such as seq "), "{words}");
    assert!(words.contains(", id id-11\nnot sound; 30 item rows looked at"), "{words}");
}

#[test]
fn an_index_that_lacks_a_row_is_found() {
    let mirror = at_rest();
    let change = "PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = 'CREATE INDEX item_key ON item (feed, key) WHERE seq < 0' WHERE name = 'item_key';
        PRAGMA writable_schema = RESET; REINDEX item_key;
        PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = 'CREATE INDEX item_key ON item (feed, key)' WHERE name = 'item_key'";
    let (violations, code) = found(&mirror, change, &[]);
    assert!(violations.iter().any(|(name, count)| name == "integrity" && *count >= 30), "{violations:?}");
    assert_eq!(code, 1);
}

#[test]
fn damaged_pages_are_named_or_make_the_file_unusable() {
    let mirror = at_rest();
    let path = mirror.path("damaged.db");
    let damaged = |table: &str| {
        let mut bytes = fs::read(mirror.path("mirror.db")).unwrap();
        let sql = format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'");
        let root: usize = mirror.number(&sql).try_into().unwrap();
        // The tree's page except for its header: its cells are nowhere now.
        bytes[(root - 1) * 16 * 1024 + 8..(root - 1) * 16 * 1024 + 200].fill(0xff);
        fs::write(&path, bytes).unwrap();
        mirror.verb(&["verify", "--db", "damaged.db"])
    };

    let output = damaged("item");

    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains("integrity: ") && words.contains("unreadable: "), "{words}");

    fs::write(&path, "no database at all".repeat(1_000)).unwrap();
    assert_eq!(mirror.verb(&["verify", "--db", "damaged.db"]).status.code(), Some(4));
    assert_eq!(mirror.verb(&["verify", "--db", "nowhere.db"]).status.code(), Some(4));
}
