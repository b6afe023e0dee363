//! The documents' SQL: the names and columns are those of a file that the program makes, and every example finds something.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use feedmirror::store::Store;
use rusqlite::Connection;

use crate::document::{blocks, manual, same, spans, table, text};
use crate::support::{Reply, ScriptedPublisher, page};

/// The views of a file, with their columns in order.
fn views(database: &Path) -> BTreeMap<String, String> {
    let db = Connection::open(database).unwrap();
    let mut select = db
        .prepare(
            "SELECT v.name, (SELECT group_concat(name, ', ') FROM (SELECT name FROM pragma_table_info(v.name) ORDER BY cid))
             FROM sqlite_schema v WHERE v.type = 'view'",
        )
        .unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn the_sql_names_and_columns_are_those_of_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mirror.db");
    let (store, closing) = Store::open(&path).unwrap();
    drop(store);
    closing.finish();
    let real = views(&path);

    let documented = table(&text("docs/consuming/sql.md"), "name");

    let names: BTreeSet<String> = documented.iter().flat_map(|row| spans(&row[0])).collect();
    same("SQL names", &names, &real.keys().cloned().collect());
    let named = table(&text("README.md"), "name").iter().flat_map(|row| spans(&row[0])).collect();
    same("SQL names in README", &named, &real.keys().cloned().collect());
    for row in documented {
        let name = &spans(&row[0])[0];
        let columns = if name == "live_items" { &real["items"] } else { &spans(&row[1])[0] };
        assert_eq!(&real[name], columns, "the columns of {name}");
    }
}

/// The publisher of the examples' feed: sessions, one record that can't be read, and later one more session.
fn publisher() -> ScriptedPublisher {
    let asked = AtomicUsize::new(0);
    ScriptedPublisher::start(move |request| {
        if request.path() != "/sessions" {
            return Reply::status(404);
        }
        let session = |id: u32| {
            format!(
                r#"{{"state":"updated","kind":"ScheduledSession","id":"{id}","modified":{id},"data":{{"name":"Swim {id}","startDate":"2026-11-2{id}T09:00:00Z","remainingAttendeeCapacity":{id}}}}}"#
            )
        };
        let bad = r#"{"state":"updated","kind":"ScheduledSession","modified":1,"data":{}}"#.to_owned();
        let end = |position: u32| page(&[], &format!("/sessions?from={position}&after={position}"));
        Reply::page(match (request.query(), asked.fetch_add(1, Ordering::SeqCst)) {
            ("", _) => page(&[session(1), session(2), bad], "/sessions?from=2&after=2"),
            ("from=2&after=2", 0..=1) => end(2),
            ("from=2&after=2", _) => page(&[session(3)], "/sessions?from=3&after=3"),
            _ => end(3),
        })
    })
}

fn sync(database: &Path, feeds: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    command.arg("sync").args(feeds).args(["--tries", "1", "--quiet", "--db"]).arg(database);
    command.env_remove("FEEDMIRROR_CONFIG").stdin(Stdio::null()).output().unwrap()
}

#[test]
fn every_sql_example_runs_and_finds_something() {
    // given a mirror as an operator has it: a feed read twice, and one that is gone
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mirror.db");
    let publisher = publisher();
    let feeds = [format!("acme-sessions={}", publisher.url("/sessions")), format!("lost={}", publisher.url("/lost"))];
    for _ in 0..2 {
        let output = sync(&path, &feeds);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
    let examples = blocks(&manual(), "sql");
    let db = Connection::open(&path).unwrap();
    let mut run = 0;
    for example in examples.iter().flat_map(|block| block.split_inclusive(';')).filter(|sql| sql.contains(';')) {
        // when it is pasted
        let mut statement = db.prepare(example).unwrap_or_else(|error| panic!("{error}: {example}"));
        let mut rows = statement.query([]).unwrap();
        // then it answers
        let mut found = 0;
        while rows.next().unwrap_or_else(|error| panic!("{error}: {example}")).is_some() {
            found += 1;
        }
        assert!(found > 0, "finds nothing: {example}");
        run += 1;
    }
    assert!(run >= 5, "only {run} examples were found");
}

#[test]
fn the_first_screen_s_query_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mirror.db");
    let publisher = publisher();
    let output = sync(&path, &[format!("a={}", publisher.url("/sessions"))]);
    assert!(output.status.success(), "{output:?}");
    let screen = blocks(&text("README.md"), "sh").swap_remove(0);
    let line = screen.lines().find_map(|line| line.strip_prefix("sqlite3 mirror.db ")).expect("a line with sqlite3");

    let answer = Command::new("sqlite3").arg(&path).arg(line.trim_matches('"')).output().expect("sqlite3");

    assert_eq!(String::from_utf8(answer.stdout).unwrap(), "1|Swim 1\n2|Swim 2\n");
}

/// Runs a block of a document as a shell does, in a folder, with the program on its path.
fn shell(folder: &Path, script: &str) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_feedmirror")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(folder).env("PATH", path).stdin(Stdio::null());
    for name in ["FEEDMIRROR_CONFIG", "FEEDMIRROR_DB"] {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn block_with(words: &str) -> String {
    blocks(&manual(), "sh").into_iter().find(|block| block.contains(words)).unwrap_or_else(|| panic!("no {words}"))
}

#[test]
fn the_example_that_follows_the_change_log_hands_each_change_on_once_and_remembers_where_it_was() {
    // given the documented loop, but for its waiting, and a program to hand changes to
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher();
    let feeds = [format!("a={}", publisher.url("/sessions"))];
    assert!(sync(&folder.path().join("mirror.db"), &feeds).status.success());
    let script = block_with("/upsert").replace(" --follow", "");
    std::fs::write(folder.path().join("upsert"), "#!/bin/sh\ncat >> taken\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path().join("upsert"), executable).unwrap();

    // when it runs twice
    let outputs = [shell(folder.path(), &script), shell(folder.path(), &script)];

    // then each change was handed on once, and the position is one
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let taken = std::fs::read_to_string(folder.path().join("taken")).unwrap();
    let names: Vec<&str> =
        taken.lines().filter_map(|line| line.split("\"name\":\"").nth(1)?.split('"').next()).collect();
    assert_eq!(names, ["Swim 1", "Swim 2"]);
    let position = std::fs::read_to_string(folder.path().join("position")).unwrap();
    assert!(position.trim().ends_with(":2"), "{position}");
}

#[test]
fn a_backup_is_made_and_restored_as_documented_and_followers_notice() {
    // given a mirror, a follower's position, and a snapshot
    let folder = tempfile::tempdir().unwrap();
    let publisher = publisher();
    let (database, feeds) = (folder.path().join("mirror.db"), [format!("a={}", publisher.url("/sessions"))]);
    assert!(sync(&database, &feeds).status.success());
    let epoch =
        |sql: &str| -> String { Connection::open(&database).unwrap().query_row(sql, [], |row| row.get(0)).unwrap() };
    let before = epoch("SELECT epoch FROM mirror");
    let made = shell(folder.path(), &block_with("snapshot --db"));
    assert!(made.status.success(), "{made:?}");

    // when it is restored
    let written = "mirror-20261124T155254123Z.db";
    let names = std::fs::read_dir(folder.path().join("snapshots")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let taken = names.into_iter().find(|name| name.ends_with(".db")).unwrap();
    assert_eq!(taken.len(), written.len(), "the documented name is of the same form as {taken}");
    let script = block_with("restore --db").replace(written, &taken);
    let restored = shell(folder.path(), &script);
    assert!(restored.status.success(), "{restored:?}");

    // then it goes on, and who followed it is told to begin anew
    assert!(sync(&database, &feeds).status.success());
    assert_eq!(epoch("SELECT group_concat(id ORDER BY id) FROM live_items"), "1,2,3");
    assert_ne!(epoch("SELECT epoch FROM mirror"), before);
    let followed = shell(folder.path(), &format!("feedmirror changes --db mirror.db --since {before}:2"));
    assert_eq!(followed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&followed.stderr).contains("read everything again"), "{followed:?}");
}
