//! What root does in a directory that belongs to the daemon's user: symbolic links there lead it nowhere. As another
//! user, one's own links are followed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::MirrorProcess;
use crate::{level, names, path_of, refusal, snapshot, stdout_of, text};

/// The owner of the daemon's files where root runs the tests; else the user who runs them.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A stopped mirror in a directory of the daemon's user.
fn at_rest() -> MirrorProcess {
    let (_test_feed, _publisher, mut mirror) = level(20);
    mirror.stop();
    mirror.write_config();
    give_to_daemon(&mirror);
    mirror
}

fn give_to_daemon(mirror: &MirrorProcess) {
    let folder = mirror.path(".");
    if is_root() {
        for name in names(&folder) {
            lchown(folder.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        lchown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A symbolic link made by the daemon's user.
fn lay(target: &Path, link: &Path) {
    symlink(target, link).unwrap();
    if is_root() {
        lchown(link, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A directory of root's with a file in it.
fn roots() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shadow");
    fs::write(&file, "root's own").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    (directory, file)
}

fn is_untouched(file: &Path) {
    let found = fs::metadata(file).unwrap();
    assert_eq!(fs::read(file).unwrap(), b"root's own");
    assert_eq!((found.uid(), found.mode() & 0o777), (nix::unistd::geteuid().as_raw(), 0o600));
}

/// Runs a verb as the daemon's user.
fn as_daemon(mirror: &MirrorProcess, arguments: &[&str]) -> Output {
    if !is_root() {
        return mirror.verb(arguments);
    }
    give_to_daemon(mirror);
    let binary = tempfile::tempdir().unwrap();
    fs::set_permissions(binary.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = binary.path().join("feedmirror");
    fs::copy(env!("CARGO_BIN_EXE_feedmirror"), &program).unwrap();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".to_owned()]);
    command.arg(program).arg("--config").arg(mirror.path("config.toml")).args(arguments);
    command.current_dir(mirror.path(".")).stdin(Stdio::null()).output().expect("setpriv, which util-linux has")
}

#[test]
fn root_follows_no_link_of_the_daemon_s_user_and_that_user_does() {
    let mirror = at_rest();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), PermissionsExt::from_mode(0o777)).unwrap();
    lay(elsewhere.path(), &mirror.path("snapshots"));

    if is_root() {
        let (code, words) = refusal(&mirror.verb(&["snapshot"]));
        assert_eq!(code, 1);
        assert!(words.contains("snapshots is a link that user 65534 laid"), "{words}");
        assert_eq!(names(elsewhere.path()), [""; 0]);
    }

    stdout_of(&as_daemon(&mirror, &["snapshot"]));
    assert_eq!(names(elsewhere.path()).len(), 3);
}

#[test]
fn a_link_that_root_laid_is_followed() {
    let mirror = at_rest();
    let backup = tempfile::tempdir().unwrap();
    symlink(backup.path(), mirror.path("snapshots")).unwrap();
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    assert_eq!(names(backup.path()).len(), 3);
    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));
}

#[test]
fn neither_a_link_nor_a_second_name_in_the_lock_s_place_gives_a_file_away() {
    let mirror = at_rest();
    let (directory, file) = roots();
    fs::create_dir(mirror.path("snapshots")).unwrap();
    let lock = mirror.path("snapshots/.mirror.lock");

    lay(&file, &lock);
    let (code, words) = refusal(&mirror.verb(&["snapshot"]));
    assert_eq!(code, 1);
    assert!(words.contains(".mirror.lock"), "{words}");
    is_untouched(&file);

    fs::remove_file(&lock).unwrap();
    lay(&directory.path().join("none"), &lock);
    refusal(&mirror.verb(&["snapshot"]));
    assert_eq!(names(directory.path()), ["shadow"], "nothing is made where it leads");

    fs::remove_file(&lock).unwrap();
    if fs::hard_link(&file, &lock).is_ok() {
        stdout_of(&mirror.verb(&["snapshot"]));
        is_untouched(&file);
    }
}

#[test]
fn a_pipe_in_the_lock_s_place_is_not_waited_for() {
    let mirror = at_rest();
    fs::create_dir(mirror.path("snapshots")).unwrap();
    nix::unistd::mkfifo(&mirror.path("snapshots/.mirror.lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (code, words) = refusal(&mirror.verb(&["snapshot"]));
    assert_eq!(code, 1);
    assert!(words.contains("it is not a file"), "{words}");
}

#[test]
fn what_a_restore_writes_goes_through_no_link() {
    let mirror = at_rest();
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let (directory, file) = roots();
    for name in ["mirror.db.restoring", "mirror.db.lock"] {
        lay(&file, &mirror.path(name));
    }

    stdout_of(&mirror.verb(&["restore", text(&snapshot_file)]));

    is_untouched(&file);
    assert_eq!(names(directory.path()), ["shadow"]);
    assert!(!mirror.path("mirror.db.restoring").exists());
    let owner = fs::metadata(mirror.path("mirror.db")).unwrap().uid();
    assert_eq!(owner, if is_root() { NOBODY } else { nix::unistd::geteuid().as_raw() });
}

#[test]
fn root_writes_no_database_and_reads_no_snapshot_through_a_link_of_the_daemon_s_user() {
    let mirror = at_rest();
    let snapshot_file = path_of(&snapshot(&mirror, &[]));
    let (directory, file) = roots();
    lay(&directory.path().join("made.db"), &mirror.path("link.db"));
    fs::copy(&snapshot_file, directory.path().join("hidden.db")).unwrap();
    fs::copy(snapshot_file.with_extension("json"), directory.path().join("hidden.json")).unwrap();
    lay(&directory.path().join("hidden.db"), &mirror.path("hidden.db"));
    lay(&directory.path().join("hidden.json"), &mirror.path("hidden.json"));
    if !is_root() {
        return stdout_of(&mirror.verb(&["restore", "hidden.db", "--db", "link.db"])).clear();
    }

    for call in [
        vec!["restore", "hidden.db"],
        vec!["restore", text(&snapshot_file), "--db", "link.db"],
        vec!["sync", "http://127.0.0.1:9/feed", "--db", "link.db"],
    ] {
        let (code, words) = refusal(&mirror.verb(&call));
        assert_ne!(code, 0);
        assert!(words.contains("is a link that user 65534 laid"), "{call:?}: {words}");
    }
    is_untouched(&file);
    assert!(!directory.path().join("made.db").exists());
}
