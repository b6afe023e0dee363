//! One writer per file, whatever path names it, and one history per epoch, however a snapshot came to its path.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::{Connection, OpenFlags};

use crate::support::{MirrorProcess, until};
use crate::{fill, level, names, path_of, refusal, snapshot, stdout_of, text};

/// Opens it for reading only: a connection that writes would checkpoint the WAL when it closes.
fn reader(file: &Path) -> Connection {
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

fn epoch(file: &Path) -> String {
    reader(file).query_row("SELECT epoch FROM mirror", [], |row| row.get(0)).unwrap()
}

fn restored(file: &Path) -> Vec<String> {
    let db = reader(file);
    let mut select = db.prepare("SELECT detail FROM events WHERE what = 'restored' AND feed IS NULL").unwrap();
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn a_second_path_to_a_file_finds_it_held() {
    // Given: a daemon, and three more paths to its file.
    let (test_feed, publisher, mut mirror) = level(20);
    let folder = mirror.path(".");
    symlink("mirror.db", folder.join("link.db")).unwrap();
    fs::hard_link(folder.join("mirror.db"), folder.join("hard.db")).unwrap();
    symlink(".", folder.join("here")).unwrap();
    let url = publisher.url("/feed");

    // When a second writer comes by any of these paths, then it is refused, and an order goes to the daemon.
    for path in ["link.db", "hard.db", "here/mirror.db", "here/link.db"] {
        let (code, words) = refusal(&mirror.verb(&["sync", &url, "--db", path]));
        assert_eq!(code, 5, "{path}: {words}");
        assert!(words.contains("is in use by another feedmirror"), "{path}: {words}");
        assert_eq!(mirror.verb(&["restore", "none.db", "--db", path]).status.code(), Some(5), "{path}");
    }
    test_feed.put("later");
    mirror.until("the daemon goes on", |mirror| mirror.live("acme") == test_feed.live());
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));

    // When the daemon has ended, then any of the paths is accepted.
    mirror.stop();
    stdout_of(&mirror.verb(&["sync", &format!("acme={url}"), "--db", "here/link.db"]));
    assert!(!folder.join("link.db-wal").exists(), "what stands beside it stands beside the file itself");
}

#[test]
fn nobody_begins_a_mirror_where_a_restore_works() {
    // Given: a snapshot that takes a while, and a path where there is nothing yet.
    let (_test_feed, publisher, mut mirror) = level(20);
    mirror.stop();
    Connection::open(mirror.path("mirror.db")).unwrap().execute_batch(&fill(60_000)).unwrap();
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    fs::create_dir(mirror.path("other")).unwrap();
    let mut restore = mirror.command(&["restore", text(&snapshot_file), "--db", "other/mirror.db"]);
    let mut restore = restore.stdout(Stdio::null()).spawn().unwrap();
    until("it has begun", || mirror.path("other/mirror.db.restoring").exists());
    let process = Pid::from_raw(i32::try_from(restore.id()).unwrap());
    kill(process, Signal::SIGSTOP).unwrap();

    // When another process would write there, then it is refused.
    let (code, words) = refusal(&mirror.verb(&["sync", &publisher.url("/feed"), "--db", "other/mirror.db"]));

    assert_eq!(code, 5, "{words}");
    kill(process, Signal::SIGCONT).unwrap();
    assert!(restore.wait().unwrap().success());
    let db = Connection::open(mirror.path("other/mirror.db")).unwrap();
    assert_eq!(db.query_row("SELECT count(*) FROM items", [], |row| row.get::<_, i64>(0)).unwrap(), 20);
}

#[test]
fn a_restore_that_is_refused_leaves_no_file_where_there_was_none() {
    let (_test_feed, _publisher, mirror) = level(5);
    fs::create_dir(mirror.path("other")).unwrap();
    let (code, words) = refusal(&mirror.verb(&["restore", "none.db", "--db", "other/mirror.db"]));
    assert_eq!((code, names(&mirror.path("other"))), (1, Vec::new()), "{words}");
}

#[test]
fn a_snapshot_copied_over_the_database_is_a_new_epoch_and_followers_are_told() {
    // Given: a mirror that went on after its snapshot, and a follower that has seen it.
    let (test_feed, _publisher, mut mirror) = level(120);
    let then = test_feed.live();
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    test_feed.put("later");
    test_feed.delete("id-3");
    mirror.until("the changes came", |mirror| mirror.live("acme") == test_feed.live());
    mirror.stop();
    let file = mirror.path("mirror.db");
    let (before, seq) = (epoch(&file), mirror.number("SELECT seq FROM mirror"));
    assert!(fs::metadata(mirror.path("mirror.db-wal")).unwrap().len() > 0, "its WAL holds newer pages");

    // When the snapshot is copied over it, and written to.
    fs::copy(&snapshot_file, &file).unwrap();
    stdout_of(&mirror.verb(&["pause", "acme"]));

    // Then it is the snapshot, unmixed, under another epoch, with an event.
    assert_eq!(mirror.live("acme"), then);
    let after = epoch(&file);
    assert_ne!(after, before);
    let events = restored(&file);
    assert!(events.len() == 1 && events[0].contains("without restore"), "{events:?}");
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));
    assert!(mirror.path("mirror.db-wal.of-another-file").exists(), "what the old one left is kept aside");
    let (code, words) = refusal(&mirror.verb(&["changes", "--since", &format!("{before}:{seq}")]));
    assert_eq!(code, 1);
    assert!(words.contains("read everything again"), "{words}");

    // And it keeps that epoch: the next run begins no other.
    stdout_of(&mirror.verb(&["resume", "acme"]));
    mirror.start_again();
    mirror.until("level again", |mirror| mirror.live("acme") == test_feed.live());
    assert_eq!((epoch(&file), restored(&file).len()), (after, 1));
}

#[test]
fn a_snapshot_is_a_new_epoch_wherever_it_is_written_to_and_nowhere_else() {
    let (_test_feed, _publisher, mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let before = epoch(&mirror.path("mirror.db"));

    // Reading changes nothing.
    let bytes = fs::read(&snapshot_file).unwrap();
    for verb in ["status", "verify", "export"] {
        stdout_of(&mirror.verb(&[verb, "--db", text(&snapshot_file)]));
    }
    assert_eq!(fs::read(&snapshot_file).unwrap(), bytes);
    assert_eq!(epoch(&snapshot_file), before);

    // Writing to the snapshot itself does, once.
    stdout_of(&mirror.verb(&["pause", "acme", "--db", text(&snapshot_file)]));
    let after = epoch(&snapshot_file);
    assert_ne!(after, before);
    stdout_of(&mirror.verb(&["resume", "acme", "--db", text(&snapshot_file)]));
    assert_eq!((epoch(&snapshot_file), restored(&snapshot_file).len()), (after, 1));
}

#[test]
fn what_was_restored_is_no_snapshot_any_more() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));
    let file = mirror.path("mirror.db");
    let after = epoch(&file);
    stdout_of(&mirror.verb(&["pause", "acme"]));
    assert_eq!((epoch(&file), restored(&file).len()), (after, 1));
}

#[test]
fn each_mirror_prunes_its_own_snapshots_alone() {
    // Given: two mirrors of one name that put their snapshots into one folder.
    let (_test_feed, _publisher, one) = level(10);
    let (_other_shelf, _other_publisher, other) = level(10);
    let folder = one.path("backup");
    let take = |mirror: &MirrorProcess| snapshot(mirror, &["--to", text(&folder), "--keep", "1"])["file"].clone();
    let theirs = take(&other);
    take(&one);

    // When one makes another.
    let last = take(&one);

    // Then its older one is gone, and the other mirror's stays.
    let mut left = [theirs.as_str().unwrap().to_owned(), last.as_str().unwrap().to_owned()];
    left.sort();
    let databases: Vec<String> = names(&folder).into_iter().filter(|name| name.ends_with(".db")).collect();
    assert_eq!(databases, left);
}
