//! Readers while the writer runs, and after it: long readers stop no writes, and the file's group may read.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;

use crate::test_store::{TestStore, until, updated};

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How often the WAL has been begun anew: bytes 12 to 15 of its header (SQLite, "WAL header format").
fn wal_starts(file: &Path) -> u32 {
    let wal = std::fs::read(beside(file, "-wal")).unwrap();
    u32::from_be_bytes(wal[12..16].try_into().unwrap())
}

/// 70 MiB of changes: more than the WAL may hold before it is written back.
fn write_much(mirror: &TestStore, modified: i64) {
    let data = format!("\"{}\"", "x".repeat(1 << 20));
    for n in 0..70 {
        mirror.push("acme", &[updated(&n.to_string(), modified, &data)]);
    }
}

#[test]
fn a_long_reader_stops_no_writes_and_the_wal_begins_anew_once_it_ends() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 1, "{}")]);
    let mut reader = mirror.sql();
    let reading = reader.transaction().unwrap();
    let seen = |db: &Connection| -> i64 { db.query_row("SELECT items FROM feeds", [], |row| row.get(0)).unwrap() };
    assert_eq!(seen(&reading), 1);

    write_much(&mirror, 2);
    let starts = wal_starts(&mirror.path);
    assert_eq!((seen(&reading), seen(&mirror.sql())), (1, 70), "the reader sees what was there when it began");
    assert!(std::fs::metadata(beside(&mirror.path, "-wal")).unwrap().len() > 64 << 20);

    drop(reading);
    let mut modified = 3;
    until("the WAL begins anew", || {
        mirror.push("acme", &[updated("1", modified, "{}")]);
        modified += 1;
        wal_starts(&mirror.path) > starts
    });
}

/// As another user of the file's group who may not write; as root that is user 65534, else ourselves without the rights.
fn read_as_a_group_member(file: &Path) -> String {
    let root = nix::unistd::geteuid().is_root();
    let directory = file.parent().unwrap();
    let files = ["", "-wal", "-shm"].map(|suffix| beside(file, suffix));
    for path in files.iter().map(PathBuf::as_path).chain([directory]) {
        if root {
            chown(path, None, Some(65_534)).unwrap();
        }
        let mode = match (path == directory, root) {
            (true, true) => 0o750,
            (true, false) => 0o550,
            (false, true) => 0o640,
            (false, false) => 0o440,
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new(if root { "setpriv" } else { "sqlite3" });
    if root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sqlite3"]);
    }
    let query = "SELECT name, items, (SELECT data ->> '$.name' FROM live_items) FROM feeds";
    let output = command.arg("-readonly").arg(file).arg(query).output().expect("needs sqlite3 and setpriv");
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o750)).unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn the_files_group_reads_it_with_the_sqlite3_program_whether_the_daemon_runs_or_not() {
    let mut mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, r#"{"name":"Swim"}"#)]);

    assert_eq!(read_as_a_group_member(&mirror.path), "acme|1|Swim\n", "while it runs");

    mirror.close();
    assert!(beside(&mirror.path, "-wal").exists() && beside(&mirror.path, "-shm").exists(), "the WAL files persist");
    assert_eq!(read_as_a_group_member(&mirror.path), "acme|1|Swim\n", "after it has ended");
}
