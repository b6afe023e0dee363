//! Which files are read, which are refused, and for which users.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::mirror_file::{MirrorFile, command, failed, updated};

fn refused(path: &Path, arguments: &[&str]) -> String {
    let (code, errors) = failed(&command(path, arguments).output().unwrap());
    assert_eq!(code, Some(4), "{errors}");
    errors
}

#[test]
fn a_missing_file_is_named_and_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.db");
    let expected = format!(
        "feedmirror: {} can't be used: there is no such file: name a mirror with --db, or make one with feedmirror sync \
         or run\n",
        path.display()
    );
    for arguments in [&["status"][..], &["export"], &["changes", "--follow"], &["quarantine", "list"], &["events"]] {
        assert_eq!(refused(&path, arguments), expected);
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn another_program_s_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    let before = std::fs::read(&path).unwrap();
    let errors = refused(&path, &["status"]);
    assert!(errors.ends_with("it is not a feedmirror database: name another file\n"), "{errors}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn what_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("page.html");
    std::fs::write(&path, "<html>".repeat(1000)).unwrap();
    assert!(refused(&path, &["status"]).contains("it is not a SQLite database"), "says what it is not");
    assert!(refused(directory.path(), &["status"]).contains("it is not a file"), "a directory");
    std::fs::write(&path, "").unwrap();
    assert!(refused(&path, &["status"]).contains("it is not a feedmirror database"), "an empty file");
}

#[test]
fn a_newer_layout_asks_for_an_upgrade() {
    let mut mirror = MirrorFile::new();
    mirror.stop();
    let db = rusqlite::Connection::open(mirror.path()).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    assert!(refused(&mirror.path(), &["status"]).ends_with("upgrade feedmirror\n"), "what to do");
}

#[test]
fn names_with_signs_that_uris_use_are_read_as_they_are() {
    let mut mirror = MirrorFile::new();
    mirror.stop();
    let path = mirror.directory.path().join("a %41?#b.db");
    std::fs::copy(mirror.path(), &path).unwrap();
    assert!(command(&path, &["status"]).output().unwrap().status.success(), "{}", path.display());
}

/// The user that reads where root runs the tests.
const GROUP: u32 = 54_321;
const NOBODY: u32 = 65_534;

/// Root becomes another user of the file's group; any other user gives up their own rights to the file instead.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn as_group_member(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(if is_root() { Path::new("setpriv") } else { program });
    if is_root() {
        let ids = [format!("--reuid={NOBODY}"), format!("--regid={GROUP}"), "--clear-groups".to_owned()];
        command.args(ids).arg(program);
    }
    command.args(arguments).stdin(Stdio::null()).output().expect("setpriv, which util-linux has, and sqlite3")
}

/// The file and its companions as systemd's UMask=0027 leaves them, in a directory that the group can't write; dropped,
/// it makes the directory removable again.
struct Given<'a>(&'a Path);

impl<'a> Given<'a> {
    fn to_group(mirror: &'a MirrorFile) -> Self {
        let directory = mirror.directory.path();
        for entry in std::fs::read_dir(directory).unwrap() {
            give(&entry.unwrap().path(), if is_root() { 0o640 } else { 0o440 });
        }
        give(directory, if is_root() { 0o750 } else { 0o550 });
        Self(directory)
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        give(self.0, 0o750);
    }
}

fn give(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    if is_root() {
        chown(path, None, Some(GROUP)).unwrap();
    }
}

/// The binary where another user can reach it.
fn reachable_binary() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = directory.path().join("feedmirror");
    std::fs::copy(env!("CARGO_BIN_EXE_feedmirror"), &binary).unwrap();
    (directory, binary)
}

#[test]
fn the_file_s_group_reads_it_whether_the_daemon_runs_or_not() {
    // given a mirror whose last commit is still in the WAL
    let mut mirror = MirrorFile::new();
    mirror.feed("acme");
    mirror.polled("acme", &[updated("a", 1, "{\"name\":\"Yoga\"}")]);
    let (_kept, binary) = reachable_binary();
    for running in [true, false] {
        if !running {
            mirror.stop();
        }
        let _given = Given::to_group(&mirror);
        let path = mirror.path();
        let path = path.to_str().unwrap();
        // when a member of the group reads it with either program
        let ours = as_group_member(&binary, &["export", "--db", path]);
        let theirs =
            as_group_member(Path::new("sqlite3"), &["-readonly", path, "SELECT data ->> '$.name' FROM live_items"]);
        // then both see it
        let errors = String::from_utf8_lossy(&ours.stderr).into_owned();
        assert!(String::from_utf8_lossy(&ours.stdout).contains("{\"name\":\"Yoga\"}"), "running {running}: {errors}");
        let errors = String::from_utf8_lossy(&theirs.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&theirs.stdout), "Yoga\n", "running {running}: {errors}");
        let status = as_group_member(&binary, &["status", "--db", path]);
        assert_eq!(status.status.code(), Some(0));
    }
}

#[test]
fn a_copy_without_wal_files_is_read_where_none_can_be_made() {
    let mut mirror = MirrorFile::new();
    mirror.feed("acme");
    mirror.polled("acme", &[updated("a", 1, "{}")]);
    mirror.stop();
    for companion in ["mirror.db-wal", "mirror.db-shm"] {
        std::fs::remove_file(mirror.directory.path().join(companion)).unwrap();
    }
    let _given = Given::to_group(&mirror);
    let (_kept, binary) = reachable_binary();
    let path = mirror.path();
    let output = as_group_member(&binary, &["export", "--db", path.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "{output:?}");
}

#[test]
fn who_may_not_read_it_is_told_what_is_missing() {
    let mirror = MirrorFile::new();
    let _given = Given::to_group(&mirror);
    give(&mirror.path(), if is_root() { 0o600 } else { 0 });
    let (_kept, binary) = reachable_binary();
    let path = mirror.path();
    let (code, errors) = failed(&as_group_member(&binary, &["status", "--db", path.to_str().unwrap()]));
    assert_eq!(code, Some(4));
    assert!(
        errors.ends_with("this user may not read it or its -wal and -shm files: join the file's group\n"),
        "{errors}"
    );
}
