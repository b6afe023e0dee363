//! A hostile environment: a full disk, a locked file, a foreign, damaged or newer one, and a second writer.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use feedmirror::feed::{ModifiedOrder, TiePolicy, Transport};
use feedmirror::store::apply::{Delivery, Purpose, Redactor, ReleaseOnCommit};
use feedmirror::store::{Intake, Store, StoreError};
use rusqlite::Connection;

use crate::program::{ChildProgram, report_line};
use crate::test_store::{AT, TestStore, page, registration, until, updated};

/// Longer than two of the writer's pauses before a retry.
const TWO_RETRIES: Duration = Duration::from_millis(1_500);

/// The child: applies one large item after another, and prints a line for each that is acknowledged and for each stop
/// of intake.
pub(crate) fn child(file: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, _guard) = Store::open(file).unwrap();
    let mut intake = store.intake();
    runtime.block_on(async {
        let feed = store.register(AT, vec![registration("acme")], true).await.unwrap().remove(0);
        for n in 0.. {
            let data = format!("\"{}\"", "x".repeat(200_000));
            let mut pending = store.apply(Delivery {
                feed: feed.id,
                generation: feed.generation,
                transport: Transport::Webhook,
                at: AT,
                page: page(&[updated(&n.to_string(), n, &data)], &[]),
                purpose: Purpose::Reread,
                order: ModifiedOrder::Standard,
                ties: TiePolicy::Keep,
                start_seq: i64::MAX,
                keep_order: false,
                release_on_commit: ReleaseOnCommit::default(),
                redactor: Redactor::default(),
                provenance: Default::default(),
            });
            let blocked = tokio::select! {
                answer = &mut pending => { answer.unwrap().unwrap(); None }
                blocked = intake.wait_for(|intake| *intake != Intake::Open) => Some(blocked.unwrap().clone()),
            };
            if let Some(blocked) = blocked {
                let early = tokio::time::timeout(TWO_RETRIES, &mut pending).await;
                report_line(&format!("{} {blocked:?}", if early.is_err() { "held" } else { "leaked" }));
                pending.await.unwrap().unwrap();
                intake.wait_for(|intake| *intake == Intake::Open).await.unwrap();
                let reader = Connection::open(file).unwrap();
                let rows: i64 = reader.query_row("SELECT items FROM feeds", [], |row| row.get(0)).unwrap();
                report_line(&format!("open {rows}"));
            }
            report_line("acknowledged");
        }
    });
}

/// Reads the child's lines until its intake stops, makes room, and checks that the child goes on and nothing is lost.
fn is_blocked_then_goes_on(mut child: ChildProgram, make_room: impl FnOnce(u32)) {
    let mut acknowledged = 0;
    let blocked = loop {
        let line = child.line().expect("it goes on");
        if line != "acknowledged" {
            break line;
        }
        acknowledged += 1;
    };
    assert!(blocked.starts_with("held Blocked(\"the database can't be written"), "{blocked}");
    assert!(acknowledged > 0);

    make_room(child.child.id());

    assert_eq!(child.line(), Some(format!("open {}", acknowledged + 1)));
    assert_eq!(child.line().as_deref(), Some("acknowledged"));
    child.kill();
}

#[test]
fn a_file_that_may_not_grow_stops_intake_until_it_may() {
    let directory = tempfile::tempdir().unwrap();
    let limited = "trap '' XFSZ; exec prlimit --fsize=4000000:unlimited \"$0\" \"$@\"";
    let child = ChildProgram::start(&["sh", "-c", limited], "starved", &directory.path().join("mirror.db"));

    is_blocked_then_goes_on(child, |process| {
        let process = process.to_string();
        let raised = Command::new("prlimit").args(["--pid", &process, "--fsize=unlimited:unlimited"]).status();
        assert!(raised.unwrap().success());
    });
}

/// A file system of 4 MB, half of it taken by another file. Needs root or user namespaces.
#[test]
fn a_full_disk_stops_intake_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().to_str().unwrap();
    let namespace = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
    let mounted = "mount -t tmpfs -o size=4m none \"$0\" && head -c 2000000 /dev/zero > \"$0/filler\" && exec \"$@\"";
    let before = ["unshare", namespace, "sh", "-c", mounted, disk];
    let child = ChildProgram::start(&before, "starved", &directory.path().join("mirror.db"));

    is_blocked_then_goes_on(child, |process| {
        std::fs::remove_file(format!("/proc/{process}/root{disk}/filler")).unwrap();
    });
}

#[test]
fn a_file_that_another_program_locks_stops_intake_until_it_lets_go() {
    let mirror = TestStore::with(&["acme"]);
    let delivery = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("1", 10, "{}")]);
    let intake = mirror.store().intake();
    let locker = Connection::open(&mirror.path).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();

    let mut pending = mirror.submit(delivery);
    until("intake is blocked", || matches!(&*intake.borrow(), Intake::Blocked(reason) if reason.contains("locked")));
    assert!(pending.try_recv().is_err(), "nothing is acknowledged");
    assert_eq!(mirror.store().queued(), 0, "the delivery is in the writer's hand");

    locker.execute_batch("COMMIT").unwrap();
    assert_eq!(mirror.answer(pending).new, 1);
    assert_eq!(*intake.borrow(), Intake::Open);
}

/// SQLite waits 5 s for a lock: if each waiting delivery were tried once more, closing would take 5 s for each.
#[test]
fn a_writer_that_is_ended_while_the_file_is_locked_gives_up_and_acknowledges_nothing() {
    let mut mirror = TestStore::with(&["acme"]);
    let deliveries = ["1", "2", "3", "4"]
        .map(|id| mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated(id, 10, "{}")]));
    let intake = mirror.store().intake();
    let locker = Connection::open(&mirror.path).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let pending = deliveries.map(|delivery| mirror.submit(delivery));
    until("intake is blocked", || matches!(&*intake.borrow(), Intake::Blocked(_)));

    let start = Instant::now();
    mirror.close();

    assert!(start.elapsed() < Duration::from_secs(9), "it took {:?}", start.elapsed());
    for pending in pending {
        assert!(mirror.wait(pending).unwrap().is_err());
    }
    locker.execute_batch("COMMIT").unwrap();
    mirror.reopen();
    assert_eq!(mirror.value::<i64>("SELECT items FROM feeds"), 0);
}

fn refusal(file: &Path) -> String {
    match Store::open(file) {
        Err(error @ StoreError::Unusable { .. }) => {
            assert!(error.is_fatal());
            error.to_string()
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn a_file_that_is_no_mirror_is_refused_in_words_that_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("notes.txt");
    std::fs::write(&text, "not a database at all, but long enough to have a header of one hundred bytes. ".repeat(9))
        .unwrap();
    assert!(refusal(&text).ends_with("it is not a SQLite database: name another file"));

    let foreign = directory.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE cats (name TEXT)").unwrap();
    assert!(refusal(&foreign).ends_with("it is a database of another program: name another file"));
    let cats: i64 = Connection::open(&foreign)
        .unwrap()
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .unwrap();
    assert_eq!(cats, 1, "it is left alone");
}

/// Why the environment keeps a file from being opened, as text.
fn unavailable_reason(file: &Path) -> String {
    match Store::open(file) {
        Err(error @ StoreError::Unavailable { .. }) => {
            assert!(error.is_environment() && !error.is_fatal());
            error.to_string()
        }
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn a_file_that_the_environment_keeps_from_being_opened_is_not_unusable() {
    let directory = tempfile::tempdir().unwrap();
    let later = directory.path().join("mounted/later");
    assert!(unavailable_reason(&later.join("mirror.db")).contains("No such file or directory"));
    std::fs::create_dir_all(&later).unwrap();
    Store::open(&later.join("mirror.db")).unwrap().1.finish();

    let mut mirror = TestStore::with(&["acme"]);
    mirror.close();
    let locker = Connection::open(&mirror.path).unwrap();
    locker.execute_batch("BEGIN EXCLUSIVE; UPDATE feed SET items = items").unwrap();

    assert!(unavailable_reason(&mirror.path).ends_with("database is locked"));

    locker.execute_batch("COMMIT").unwrap();
    mirror.reopen();
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let mut mirror = TestStore::with(&["acme"]);
    mirror.close();
    Connection::open(&mirror.path).unwrap().pragma_update(None, "user_version", 99).unwrap();

    let text = refusal(&mirror.path);

    assert!(text.contains("layout 99") && text.ends_with("upgrade feedmirror"), "{text}");
    assert_eq!(mirror.value::<i64>("PRAGMA user_version"), 99);
}

#[test]
fn a_damaged_file_is_refused_at_the_start() {
    let mut mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &crate::test_store::many("n", 2_000, 10));
    mirror.close();
    Connection::open(&mirror.path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let mut bytes = std::fs::read(&mirror.path).unwrap();
    // All but the first page, which holds the schema.
    bytes[16 * 1024..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&mirror.path, bytes).unwrap();

    let text = refusal(&mirror.path);

    assert!(text.contains("it is damaged") && text.contains("restore a snapshot"), "{text}");
}

#[test]
fn damage_found_while_running_ends_all_writing_and_acknowledges_nothing() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &crate::test_store::many("n", 2_000, 10));
    let delivery =
        mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &crate::test_store::many("n", 2_000, 11));
    let other = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("1", 10, "{}")]);
    // The index's root page becomes one of a table: the next search in it finds nonsense.
    let editor = Connection::open(&mirror.path).unwrap();
    let root: i64 =
        editor.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'item_key'", [], |row| row.get(0)).unwrap();
    editor.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let file = std::fs::File::options().write(true).open(&mirror.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 16 * 1024], (root as u64 - 1) * 16 * 1024).unwrap();
    editor.execute_batch("UPDATE mirror_state SET version = 'so that no page is read from memory'").unwrap();

    let answer = mirror.wait(mirror.submit(delivery)).unwrap();

    assert!(answer.as_ref().is_err_and(StoreError::is_fatal), "{answer:?}");
    let intake = mirror.store().intake();
    until("the store is broken", || matches!(&*intake.borrow(), Intake::Broken(_)));
    assert!(mirror.wait(mirror.submit(other)).unwrap().is_err());
}

#[test]
fn a_second_writer_is_refused_until_the_first_has_finished() {
    let mut mirror = TestStore::with(&["acme"]);

    let second = Store::open(&mirror.path);
    assert!(matches!(&second, Err(StoreError::InUse(path)) if *path == mirror.path));

    mirror.close();
    let (_store, guard) = Store::open(&mirror.path).unwrap();
    guard.finish();
}

#[test]
fn a_writer_that_is_dropped_commits_waiting_deliveries_before_another_can_open_the_file() {
    let mut mirror = TestStore::with(&["acme"]);
    let delivery =
        mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &crate::test_store::many("n", 5_000, 10));
    let late = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("late", 10, "{}")]);

    let pending = mirror.submit(delivery);
    let store = mirror.abandon();
    mirror.reopen();

    assert_eq!(mirror.value::<i64>("SELECT items FROM feeds"), 5_000);
    assert_eq!(mirror.answer(pending).new, 5_000);
    assert!(matches!(mirror.wait(store.apply(late)).unwrap(), Err(StoreError::Closed)));
}
