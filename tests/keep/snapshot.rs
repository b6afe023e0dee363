//! `snapshot`: its contents, what it leaves in the directory, and what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use crate::support::{MirrorProcess, holds_within, until};
use crate::{fill, level, names, path_of, refusal, snapshot, stdout_of, text};

#[test]
fn beside_a_daemon_that_writes_all_the_time_it_is_one_moment_of_the_mirror_and_its_manifest_is_true() {
    let (test_feed, publisher, mut mirror) = level(1_000);
    mirror.stop();
    // So large that it is copied in several steps, with commits between them.
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute_batch(&fill(60_000)).unwrap();
    drop(db);
    mirror.start_again();
    let stop = Arc::new(AtomicBool::new(false));
    let (changing, stopped) = (Arc::clone(&test_feed), Arc::clone(&stop));
    let publishing = std::thread::spawn(move || {
        for n in 0.. {
            changing.put(&format!("id-{}", n % 1_500));
            if n % 7 == 0 {
                changing.delete(&format!("id-{}", n % 1_100));
            }
            if holds_within(std::time::Duration::from_millis(2), || stopped.load(Ordering::SeqCst)) {
                return;
            }
        }
    });
    let before = mirror.number("SELECT seq FROM mirror");
    mirror.until("changes come", |mirror| mirror.number("SELECT seq FROM mirror") > before + 100);

    let manifests = [0; 4].map(|_| {
        let manifest = snapshot(&mirror, &[]);
        let mirrored_seq = manifest["seq"].as_i64().unwrap();
        mirror.until("the daemon goes on", |mirror| mirror.number("SELECT seq FROM mirror") > mirrored_seq);
        manifest
    });

    stop.store(true, Ordering::SeqCst);
    publishing.join().unwrap();
    assert!(mirror.is_running());
    for manifest in &manifests {
        let path = path_of(manifest);
        let beside: serde_json::Value =
            serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        for key in beside.as_object().unwrap().keys() {
            assert_eq!(beside[key], manifest[key], "{key}");
        }
        let bytes = fs::read(&path).unwrap();
        let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(manifest["sha256"], sha256.as_str());
        assert_eq!(manifest["bytes"], bytes.len());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

        let db = Connection::open(&path).unwrap();
        let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let live = number("SELECT count(*) FROM items WHERE state = 'updated'");
        let deleted = number("SELECT count(*) FROM items WHERE state = 'deleted'");
        assert_eq!(manifest["feeds"], serde_json::json!([{"feed": "acme", "items": live, "tombstones": deleted}]));
        assert_eq!((&manifest["items"], &manifest["tombstones"]), (&live.into(), &deleted.into()));
        assert!(number("SELECT max(seq) FROM items") <= manifest["seq"].as_i64().unwrap());
        let epoch: String = db.query_row("SELECT epoch FROM mirror", [], |row| row.get(0)).unwrap();
        assert_eq!(manifest["epoch"], epoch.as_str());
        assert_eq!(manifest["schema_version"], number("PRAGMA user_version"));
        drop(db);
        assert!(stdout_of(&mirror.verb(&["verify", "--db", text(&path)])).starts_with("sound"));
    }
    let seqs: Vec<i64> = manifests.iter().map(|manifest| manifest["seq"].as_i64().unwrap()).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}: each is of its own moment");
    // The daemon's own file is sound too, and it comes level with what the publisher holds.
    assert!(stdout_of(&mirror.verb(&["verify"])).starts_with("sound"));
    mirror.until("level with the publisher", |mirror| mirror.live("acme") == test_feed.live());
    drop(publisher);
}

#[test]
fn nothing_but_the_snapshot_and_its_manifest_is_left() {
    let (_test_feed, _publisher, mut mirror) = level(10);
    mirror.stop();

    let path = path_of(&snapshot(&mirror, &[]));

    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(path.parent().unwrap().file_name().unwrap(), "snapshots");
    let manifest = name.replace(".db", ".json");
    assert_eq!(names(path.parent().unwrap()), [".mirror.lock".to_owned(), name, manifest]);
}

#[test]
fn the_newest_are_kept_and_what_is_no_snapshot_of_this_database_is_left_alone() {
    let (_test_feed, _publisher, mirror) = level(10);
    let directory = mirror.path("kept");
    let snapshots: Vec<String> =
        (0..3).map(|_| snapshot(&mirror, &["--to", "kept"])["file"].as_str().unwrap().to_owned()).collect();
    // No snapshots of this database: by name, by another database's name, and by having no manifest or another's.
    let others = ["mirror-before-upgrade.db", "other-20200101T000000000Z.db", "mirror-20200101T000000000Z.db"];
    for name in others {
        fs::write(directory.join(name), "mine").unwrap();
    }
    fs::copy(directory.join(&snapshots[0]), directory.join("mirror-20200102T000000000Z.db")).unwrap();
    let manifest = snapshots[0].replace(".db", ".json");
    fs::copy(directory.join(manifest), directory.join("mirror-20200102T000000000Z.json")).unwrap();

    let last = snapshot(&mirror, &["--to", "kept", "--keep", "2"]);

    let mut expected = vec![snapshots[2].clone(), last["file"].as_str().unwrap().to_owned()];
    expected.extend(others.map(str::to_owned));
    expected.push("mirror-20200102T000000000Z.db".to_owned());
    expected.sort();
    let left: Vec<String> = names(&directory).into_iter().filter(|name| name.ends_with(".db")).collect();
    assert_eq!(left, expected);
    let pruned: Vec<&str> = last["pruned"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert_eq!(pruned, [format!("kept/{}", snapshots[0]), format!("kept/{}", snapshots[1])]);
    assert_eq!(names(&directory).iter().filter(|name| name.ends_with(".json")).count(), 3);
}

#[test]
fn a_copy_that_is_not_sound_is_refused_and_nothing_is_pruned_for_it() {
    let (_test_feed, _publisher, mut mirror) = level(10);
    let first = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute("UPDATE feed SET items = items + 1", []).unwrap();
    drop(db);

    let (code, words) = refusal(&mirror.verb(&["snapshot", "--keep", "1"]));

    assert_eq!(code, 1);
    assert!(words.contains("not sound (item-count, acme says 11, there are 10"), "{words}");
    let left = names(first.parent().unwrap());
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(first.exists());
}

/// Needs root or user namespaces, as the store's test of a full disk does.
#[test]
fn a_disk_that_can_t_hold_it_is_seen_before_it_begins() {
    let (_test_feed, _publisher, mut mirror) = level(10);
    let snapshot = path_of(&snapshot(&mirror, &[]));
    mirror.stop();
    let small = mirror.path("small");
    fs::create_dir(&small).unwrap();
    let database = mirror.path("mirror.db");
    let target = small.join("mirror.db");
    let calls: [&[&str]; 2] = [
        &["snapshot", "--db", text(&database), "--to", text(&small)],
        &["restore", text(&snapshot), "--db", text(&target)],
    ];
    for call in calls {
        let namespace = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
        let script = "mount -t tmpfs -o size=4m none \"$0\"; \"$@\"; code=$?; ls -A \"$0\"; exit $code";
        let mut command = Command::new("unshare");
        command.args([namespace, "sh", "-c", script, text(&small), env!("CARGO_BIN_EXE_feedmirror")]).args(call);

        let output = command.stdin(Stdio::null()).output().unwrap();

        let (code, words) = refusal(&output);
        assert_eq!(code, 1, "{words}");
        assert!(words.contains("bytes free, and ") && words.contains("are wanted"), "{words}");
        let left = String::from_utf8(output.stdout).unwrap();
        assert!(left.lines().all(|name| name.ends_with(".lock")), "{left}");
    }
}

/// Both don't fit on the disk: the old one is removed when that is allowed, and not before. Needs what the test above
/// needs.
#[test]
fn where_the_disk_can_t_hold_both_the_old_database_goes_only_when_asked() {
    let (_test_feed, _publisher, mut mirror) = level(10);
    mirror.stop();
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute_batch(&fill(14_000)).unwrap();
    drop(db);
    let snapshot = path_of(&snapshot(&mirror, &[]));
    let small = mirror.path("small");
    fs::create_dir(&small).unwrap();
    let target = small.join("mirror.db");
    let restore = |more: &str| {
        let namespace = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
        let script = "mount -t tmpfs -o size=36m none \"$0\"; head -c 17000000 /dev/zero > \"$0/mirror.db\"; \"$@\";
                      code=$?; stat -c '%n %s' \"$0\"/*.db; ls \"$0\"; exit $code";
        let mut command = Command::new("unshare");
        command.args([namespace, "sh", "-c", script, text(&small), env!("CARGO_BIN_EXE_feedmirror"), "restore"]);
        command.args([text(&snapshot), "--db", text(&target)]).args((!more.is_empty()).then_some(more));
        command.stdin(Stdio::null()).output().unwrap()
    };

    let failed = restore("");
    let (code, words) = refusal(&failed);
    assert_eq!(code, 1);
    assert!(words.contains("or let go of the old database with --discard-old"), "{words}");
    assert!(String::from_utf8(failed.stdout).unwrap().contains("mirror.db 17000000\n"));

    let left = stdout_of(&restore("--discard-old"));
    assert!(left.contains("10 items") && !left.contains("mirror.db 17000000"), "{left}");
    assert!(!left.contains("before-restore") && !left.contains("restoring"), "{left}");
}

#[test]
fn what_a_killed_run_left_is_gone_after_the_next() {
    let (_test_feed, _publisher, mut mirror) = level(10);
    mirror.stop();
    // Large enough that copying and checking it takes a while.
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute_batch(&fill(60_000)).unwrap();
    drop(db);
    let directory = mirror.path("snapshots");
    let half = || names(&directory).into_iter().find(|name| name.ends_with(".part"));
    let mut child = mirror.command(&["snapshot"]).stdout(Stdio::null()).spawn().unwrap();
    until("it has begun", || half().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(half().is_some(), "it was killed in the middle");
    assert!(!names(&directory).iter().any(|name| name.starts_with("mirror-")), "nothing stands under its name");
    fs::write(directory.join("mirror-20200101T000000000Z.json"), "a manifest whose snapshot never came").unwrap();

    let manifest_json = snapshot(&mirror, &[]);

    let file = manifest_json["file"].as_str().unwrap().to_owned();
    assert_eq!(names(&directory), [".mirror.lock".to_owned(), file.clone(), file.replace(".db", ".json")]);
}

#[test]
fn two_runs_at_once_don_t_meet() {
    let (_test_feed, _publisher, mut mirror) = level(10);
    mirror.stop();
    fs::create_dir(mirror.path("snapshots")).unwrap();
    let lock = fs::File::create(mirror.path("snapshots/.mirror.lock")).unwrap();
    lock.lock().unwrap();

    let (code, words) = refusal(&mirror.verb(&["snapshot"]));

    assert_eq!(code, 1);
    assert!(words.contains("another run makes a snapshot here"), "{words}");
    lock.unlock().unwrap();
    snapshot(&mirror, &[]);
}

#[test]
fn without_a_mirror_there_is_nothing_to_copy_and_no_directory_is_made() {
    let mirror = MirrorProcess::new();

    let (code, words) = refusal(&mirror.verb(&["snapshot"]));

    assert_eq!(code, 4, "{words}");
    assert!(!mirror.path("snapshots").exists());
}
