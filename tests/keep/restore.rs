//! `restore`: the mirror afterwards, what followers get, and what it refuses.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::{MirrorProcess, ScriptedPublisher, TestFeed, until};
use crate::{fill, level, names, path_of, refusal, snapshot, stdout_of, text};

const NEXT_BLOCK: i64 = 1 << 20;

fn position(mirror: &MirrorProcess) -> (String, i64) {
    let row = mirror.rows("SELECT epoch, seq FROM mirror").remove(0);
    (row[0].clone(), row[1].parse().unwrap())
}

fn kept_databases(mirror: &MirrorProcess) -> Vec<String> {
    names(&mirror.path(".")).into_iter().filter(|name| name.contains("before-restore")).collect()
}

#[test]
fn the_mirror_is_that_of_the_snapshot_and_its_feeds_go_on_from_there() {
    let (test_feed, publisher, mut mirror) = level(120);
    let then = test_feed.live();
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let cursor = Connection::open(&snapshot_file)
        .unwrap()
        .query_row("SELECT cursor FROM feeds", [], |row| row.get::<_, String>(0))
        .unwrap();
    test_feed.put("later");
    test_feed.delete("id-3");
    mirror.until("the changes came", |mirror| mirror.live("acme") == test_feed.live());
    mirror.stop();
    let now = test_feed.live();
    let (epoch, seq) = position(&mirror);

    let words = stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));

    assert!(words.contains("120 items"), "{words}");
    assert_eq!(mirror.live("acme"), then);
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));
    let (new_epoch, new_seq) = position(&mirror);
    assert_ne!(new_epoch, epoch);
    assert!(new_seq >= seq, "{new_seq} of {seq}");
    let detail = mirror.column("SELECT detail FROM events WHERE what = 'restored'");
    assert!(detail[0].starts_with(snapshot_file.file_name().unwrap().to_str().unwrap()), "{detail:?}");

    // The previous database is whole, by itself.
    let kept_databases = kept_databases(&mirror);
    assert_eq!(kept_databases.len(), 1, "{kept_databases:?}");
    let old = mirror.path(&kept_databases[0]);
    let old_items = Connection::open(&old).unwrap();
    let items: i64 = old_items.query_row("SELECT count(*) FROM live_items", [], |row| row.get(0)).unwrap();
    assert_eq!(items, i64::try_from(now.len()).unwrap());

    // From the snapshot's cursor, not from the beginning; and no change number is used twice.
    let requests = publisher.requests_to("/feed").len();
    mirror.start_again();
    mirror.until("level again", |mirror| mirror.live("acme") == test_feed.live());
    assert_eq!(publisher.url(&publisher.requests_to("/feed")[requests].target), cursor);
    assert!(mirror.number("SELECT min(seq) FROM items WHERE id = 'later'") > seq);
    assert!(mirror.number("SELECT seq FROM mirror") >= NEXT_BLOCK);
}

#[test]
fn those_who_follow_it_are_told_to_read_everything_again() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let (epoch, seq) = position(&mirror);
    mirror.stop();
    let mut command = mirror.command(&["changes", "--follow", "--db", "mirror.db"]);
    let mut follower = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 1];
    follower.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));

    let mut ended = None;
    until("the follower ends", || {
        ended = follower.try_wait().unwrap();
        ended.is_some()
    });
    let output = follower.wait_with_output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(ended.unwrap().code(), Some(1), "{words}");
    assert!(words.contains("read everything again"), "{words}");

    mirror.start_again();
    let address = mirror.column("SELECT ops_address FROM mirror").remove(0);
    let mut http = TcpStream::connect(&address).unwrap();
    http.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(http, "GET /api/changes?since={epoch}:{seq} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 410 "), "{answer}");
    assert!(answer.contains("read everything again"), "{answer}");
}

#[test]
fn a_feed_that_was_away_for_longer_than_deletions_are_remembered_is_read_anew_by_itself() {
    let (test_feed, publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let since = Instant::now();
    mirror.stop();
    // Deleted, and the publisher has forgotten that it was.
    test_feed.forget("id-7");
    until("the snapshot is old", || since.elapsed() > Duration::from_millis(2_500));

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));
    mirror.set_feed("acme", &publisher.url("/feed"), "retention = \"2s\"");
    mirror.start_again();

    mirror.until("what is gone is swept", |mirror| mirror.live("acme") == test_feed.live());
    assert!(mirror.number("SELECT swept FROM items WHERE id = 'id-7'") == 1);
    assert!(!mirror.events("acme", "stale").is_empty());
}

#[test]
fn beside_a_daemon_it_is_refused_and_nothing_changes() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let before = mirror.column("SELECT epoch FROM mirror");

    let (code, words) = refusal(&mirror.verb(&["restore", text(&snapshot_file)]));

    assert_eq!(code, 5, "{words}");
    assert_eq!(mirror.column("SELECT epoch FROM mirror"), before);
    assert!(mirror.is_running());
    assert_eq!(kept_databases(&mirror).len(), 0);
}

#[test]
fn what_is_not_the_snapshot_that_was_made_is_refused_and_nothing_changes() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    let manifest = snapshot_file.with_extension("json");
    let (good, original_manifest) = (fs::read(&snapshot_file).unwrap(), fs::read_to_string(&manifest).unwrap());
    let before = (mirror.column("SELECT epoch FROM mirror"), names(&mirror.path(".")));
    let refused = |what: &str| {
        let (code, words) = refusal(&mirror.verb(&["restore", text(&snapshot_file)]));
        assert_eq!(code, 1, "{words}");
        assert!(words.contains(what), "{words}");
        assert_eq!((mirror.column("SELECT epoch FROM mirror"), names(&mirror.path("."))), before);
    };

    let mut changed = good.clone();
    changed[40_000] ^= 1;
    fs::write(&snapshot_file, &changed).unwrap();
    refused("sha256");

    fs::write(&snapshot_file, &good[..good.len() - 16 * 1024]).unwrap();
    refused("sha256");

    fs::write(&snapshot_file, &good).unwrap();
    fs::remove_file(&manifest).unwrap();
    refused("manifest");

    fs::write(&manifest, "{}").unwrap();
    refused("it is no manifest");

    fs::write(&manifest, original_manifest.replace("\"schema_version\": 1", "\"schema_version\": 99")).unwrap();
    refused("layout 99");

    // A digest that matches a changed file doesn't hide rows that are inconsistent.
    let db = Connection::open(&snapshot_file).unwrap();
    db.execute("UPDATE item SET data = '{}', flags = 1 WHERE id = 'id-1'", []).unwrap();
    drop(db);
    let sum = std::process::Command::new("sha256sum").arg(&snapshot_file).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap().split(' ').next().unwrap().to_owned();
    let mut fitted: serde_json::Value = serde_json::from_str(&original_manifest).unwrap();
    fitted["sha256"] = sum.into();
    fs::write(&manifest, fitted.to_string()).unwrap();
    refused("tombstone-with-data");
}

#[test]
fn a_damaged_database_is_replaced_and_kept() {
    let (test_feed, _publisher, mut mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    fs::write(mirror.path("mirror.db"), "no database at all".repeat(1_000)).unwrap();
    // Which would mirror it again: the snapshot holds all of so small a mirror.
    fs::remove_file(mirror.path("mirror.db-wal")).unwrap();

    let output = mirror.verb(&["restore", text(&snapshot_file)]);

    stdout_of(&output);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("change numbers go on from the snapshot's"), "{notes}");
    assert_eq!(mirror.live("acme"), test_feed.live());
    let kept_databases = kept_databases(&mirror);
    assert!(
        kept_databases.iter().any(|name| fs::read(mirror.path(name)).unwrap().starts_with(b"no database")),
        "{kept_databases:?}"
    );
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));
    mirror.start_again();
    mirror.until_level("acme");
}

#[test]
fn on_a_new_machine_there_is_nothing_to_keep() {
    let (test_feed, _publisher, mirror) = level(20);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let other = mirror.path("other");
    fs::create_dir(&other).unwrap();

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file), "--db", text(&other.join("mirror.db"))]));

    let db = Connection::open(other.join("mirror.db")).unwrap();
    let items: usize =
        db.query_row("SELECT count(*) FROM live_items", [], |row| row.get::<_, u32>(0)).unwrap() as usize;
    assert_eq!(items, test_feed.live().len());
    assert!(!names(&other).iter().any(|name| name.contains("before-restore") || name.contains("restoring")));
}

#[test]
fn the_old_database_is_let_go_of_when_asked() {
    let test_feed = TestFeed::of(5, 50);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::running("acme", &publisher.url("/feed"));
    mirror.until_level("acme");
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    mirror.stop();

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file), "--discard-old"]));

    assert_eq!(kept_databases(&mirror), [] as [&str; 0]);
    assert_eq!(mirror.live("acme"), test_feed.live());
}

/// Made by root for a daemon of another user; files of any other user stay theirs, which is the same promise.
#[test]
fn what_is_made_and_restored_belongs_to_whom_the_database_belongs_to() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    mirror.stop();
    let (database, folder) = (mirror.path("mirror.db"), mirror.path("."));
    if nix::unistd::geteuid().is_root() {
        for name in names(&folder) {
            std::os::unix::fs::chown(folder.join(name), Some(65_534), Some(65_534)).unwrap();
        }
    }
    let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    let expected = owner(&database);

    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    for path in
        [snapshot_file.clone(), snapshot_file.with_extension("json"), snapshot_file.parent().unwrap().to_owned()]
    {
        assert_eq!(owner(&path), expected, "{}", path.display());
    }

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));
    for name in ["mirror.db", "mirror.db-wal", "mirror.db-shm"] {
        assert_eq!(owner(&mirror.path(name)), expected, "{name}");
    }
    assert_eq!(fs::metadata(&database).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn killed_in_the_middle_the_old_database_stands_and_it_can_be_done_again() {
    let (_test_feed, _publisher, mut mirror) = level(20);
    mirror.stop();
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute_batch(&fill(60_000)).unwrap();
    drop(db);
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let before = mirror.column("SELECT epoch FROM mirror");
    let half = mirror.path("mirror.db.restoring");

    let mut child = mirror.command(&["restore", text(&snapshot_file)]).stdout(Stdio::null()).spawn().unwrap();
    until("it has begun", || half.exists());
    child.kill().unwrap();
    child.wait().unwrap();

    assert!(half.exists(), "it was killed in the middle");
    assert_eq!(mirror.column("SELECT epoch FROM mirror"), before);
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));

    assert!(!half.exists());
    assert_ne!(mirror.column("SELECT epoch FROM mirror"), before);
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));
}
