//! What a file may bring along: nothing of it is run, and what is an operator's own is left alone.

use rusqlite::Connection;

use crate::support::MirrorProcess;
use crate::{level, path_of, refit, refusal, said, snapshot, text};

const ENDLESS: &str = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n)";

/// A mirror at rest, changed by somebody.
fn changed(change: &str) -> MirrorProcess {
    let (_shelf, _publisher, mut mirror) = level(20);
    mirror.stop();
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(change).unwrap();
    mirror
}

/// All verbs that read or write it refuse it in these words.
fn is_refused(mirror: &MirrorProcess, words: &str) {
    for verb in [&["status"][..], &["verify"], &["export"], &["changes"], &["snapshot"], &["pause", "acme"], &["run"]] {
        let (code, said) = refusal(&mirror.verb(verb));
        assert_eq!(code, 4, "{verb:?}: {said}");
        assert!(said.contains(words), "{verb:?}: {said}");
    }
}

#[test]
fn a_snapshot_with_a_trigger_is_neither_sound_nor_restored() {
    let (_shelf, _publisher, mut mirror) = level(20);
    let taken = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    let plant = "CREATE TRIGGER planted AFTER UPDATE ON mirror_state BEGIN DELETE FROM item; END";
    Connection::open(&taken).unwrap().execute_batch(plant).unwrap();
    refit(&taken);

    for verb in [vec!["verify", "--db", text(&taken)], vec!["restore", text(&taken)]] {
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
    // Given: an index, a table, and a view that never ends, of an operator's own.
    let own = format!(
        "CREATE INDEX by_name ON item (data ->> '$.name');
         CREATE TABLE notes (id, note); INSERT INTO notes VALUES ('id-1', 'mine');
         CREATE VIEW endless AS {ENDLESS} SELECT sum(n) FROM n;
         ANALYZE"
    );
    let (_shelf, _publisher, mut mirror) = level(20);
    mirror.stop();
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(&own).unwrap();

    // When the daemon runs on it, and all that reads it does.
    mirror.start_again();
    mirror.until_level("acme");
    said(&mirror.verb(&["status"]));
    assert!(said(&mirror.verb(&["verify"])).starts_with("sound"));
    let taken = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    said(&mirror.verb(&["restore", text(&taken)]));

    // Then it is still there.
    let names = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema
                 WHERE name IN ('by_name', 'notes', 'endless') ORDER BY name)";
    assert_eq!(mirror.column(names), ["by_name,endless,notes"]);
    assert_eq!(mirror.column("SELECT note FROM notes"), ["mine"]);
}

#[test]
fn a_trigger_that_is_planted_beside_a_running_daemon_does_not_run() {
    let (shelf, _publisher, mirror) = level(20);
    let plant = "CREATE TRIGGER planted AFTER INSERT ON item BEGIN DELETE FROM finding; DELETE FROM item; END";
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(plant).unwrap();
    shelf.put("later");
    mirror.until("the change came", |mirror| mirror.live("acme") == shelf.live());
}
