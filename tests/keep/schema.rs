//! What a file's schema may contain: no code in it is run, and an operator's own objects are left alone.

use rusqlite::Connection;

use crate::support::MirrorProcess;
use crate::{level, path_of, refit, refusal, snapshot, stdout_of, text};

const ENDLESS: &str = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n)";

/// A stopped mirror, changed by somebody.
fn changed(change: &str) -> MirrorProcess {
    let (_test_feed, _publisher, mut mirror) = level(20);
    mirror.stop();
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(change).unwrap();
    mirror
}

/// All verbs that read or write it refuse it with these words.
fn is_refused(mirror: &MirrorProcess, words: &str) {
    for verb in [&["status"][..], &["verify"], &["export"], &["changes"], &["snapshot"], &["pause", "acme"], &["run"]] {
        let (code, message) = refusal(&mirror.verb(verb));
        assert_eq!(code, 4, "{verb:?}: {message}");
        assert!(message.contains(words), "{verb:?}: {message}");
    }
}

#[test]
fn a_snapshot_with_a_trigger_is_neither_sound_nor_restored() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    let plant = "CREATE TRIGGER planted AFTER UPDATE ON mirror_state BEGIN DELETE FROM item; END";
    Connection::open(&snapshot_file).unwrap().execute_batch(plant).unwrap();
    refit(&snapshot_file);

    for verb in [vec!["verify", "--db", text(&snapshot_file)], vec!["restore", text(&snapshot_file)]] {
        let (code, words) = refusal(&mirror.verb(&verb));
        assert_eq!(code, 4, "{verb:?}: {words}");
        assert!(words.contains("its trigger \"planted\" would run inside feedmirror"), "{verb:?}: {words}");
    }
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 20);
}

#[test]
fn a_file_with_a_trigger_is_refused() {
    let mirror = changed("CREATE TRIGGER mine AFTER INSERT ON item BEGIN SELECT 1; END");
    is_refused(&mirror, "its trigger \"mine\" would run inside feedmirror: drop it");
}

#[test]
fn a_view_that_is_not_ours_under_our_name_is_not_run() {
    let mirror = changed(&format!("DROP VIEW feeds; CREATE VIEW feeds AS {ENDLESS} SELECT sum(n) AS name FROM n"));
    is_refused(&mirror, "its view feeds is not as feedmirror makes it");
}

#[test]
fn a_table_of_ours_that_is_a_view_or_is_missing_is_seen() {
    let view =
        format!("ALTER TABLE mirror_state RENAME TO hidden; CREATE VIEW mirror_state AS {ENDLESS} SELECT * FROM n");
    is_refused(&changed(&view), "mirror_state");
    is_refused(&changed("DROP INDEX item_key"), "its index item_key is missing");
}

#[test]
fn a_table_that_acts_on_ours_is_refused() {
    let mirror = changed("CREATE TABLE notes (item REFERENCES item (seq) ON DELETE CASCADE, note)");
    is_refused(&mirror, "its table \"notes\" has a foreign key to a table of feedmirror's");
}

#[test]
fn what_an_operator_adds_is_left_alone_and_never_run() {
    // Given: an operator's own index, table, and view that never ends.
    let own = format!(
        "CREATE INDEX by_name ON item (data ->> '$.name');
         CREATE TABLE notes (id, note); INSERT INTO notes VALUES ('id-1', 'mine');
         CREATE VIEW endless AS {ENDLESS} SELECT sum(n) FROM n;
         ANALYZE"
    );
    let (_test_feed, _publisher, mut mirror) = level(20);
    mirror.stop();
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(&own).unwrap();

    // When the daemon runs on it, and all that reads it does.
    mirror.start_again();
    mirror.until_level("acme");
    stdout_of(&mirror.verb(&["status"]));
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));

    // Then it is still there.
    let names = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema
                 WHERE name IN ('by_name', 'notes', 'endless') ORDER BY name)";
    assert_eq!(mirror.column(names), ["by_name,endless,notes"]);
    assert_eq!(mirror.column("SELECT note FROM notes"), ["mine"]);
}

#[test]
fn a_trigger_that_is_planted_beside_a_running_daemon_does_not_run() {
    let (test_feed, _publisher, mirror) = level(20);
    let plant = "CREATE TRIGGER planted AFTER INSERT ON item BEGIN DELETE FROM finding; DELETE FROM item; END";
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(plant).unwrap();
    test_feed.put("later");
    mirror.until("the change came", |mirror| mirror.live("acme") == test_feed.live());
}
