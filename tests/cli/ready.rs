//! `status --ready`: for supervisors of a daemon that can only run a program, as containers do.

use nix::sys::signal::Signal;

use crate::support::until;
use crate::workspace::{SimulatorProcess, Workspace};

#[test]
fn ready_is_said_by_a_running_daemon_alone() {
    // Given: a daemon.
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let feed = format!("[feeds.acme]\nurl = \"{}\"\n", publisher.url(0));
    workspace.write("feedmirror.toml", &format!("ops.listen = \"127.0.0.1:0\"\n{feed}"));
    let before = workspace.run(&["status", "--ready"]);
    assert_eq!((before.code, before.out.as_str()), (Some(4), ""), "no file yet: {before:?}");
    let running = workspace.start(&["run"]);

    // When it runs, then it is ready, by configuration and by file.
    until("the daemon ready", || workspace.run(&["status", "--ready"]).code == Some(0));
    let by_file = workspace.run(&["status", "--ready", "--db", "mirror.db"]);
    assert_eq!((by_file.code, by_file.out.as_str(), by_file.err.as_str()), (Some(0), "", ""), "{by_file:?}");

    // When it has ended, then the file alone is not enough.
    running.signal(Signal::SIGTERM);
    running.wait_for_exit();
    let after = workspace.run(&["status", "--ready"]);
    assert_eq!((after.code, after.out.as_str()), (Some(1), ""), "{after:?}");
    assert!(!after.err.is_empty());
}

/// The package starts the daemon as soon as it is installed, before any feed is configured.
#[test]
fn the_packages_configuration_runs_as_it_is() {
    let workspace = Workspace::new();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/config.toml");
    let packaged = std::fs::read_to_string(path).unwrap();
    let database = "/var/lib/feedmirror/mirror.db";
    assert!(packaged.contains(&format!("\ndatabase = \"{database}\"\n")), "{packaged}");
    workspace.write("feedmirror.toml", &packaged.replace(database, "mirror.db"));
    let checked = workspace.run(&["check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");

    let running = workspace.start_as(workspace.command(&["run"]).env("FEEDMIRROR_OPS__LISTEN", "127.0.0.1:0"));
    until("the daemon ready", || workspace.run(&["status", "--ready", "--db", "mirror.db"]).code == Some(0));
    running.signal(Signal::SIGTERM);
    let ran = running.wait_for_exit();
    assert_eq!(ran.code, Some(0), "{ran:?}");
}
