//! Only results go to standard output; `-q` silences the rest; a reader that stops reading is no failure.

use std::process::Stdio;

use crate::workspace::{SimulatorProcess, Workspace};

#[test]
fn progress_goes_to_standard_error_and_quiet_silences_it() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let good = format!("good={}", publisher.url(0));
    let bad = format!("bad={}", publisher.url(0).replace("/sessions-1", "/nothing"));

    let loud = workspace.run(&["sync", &good, &bad, "--json"]);
    let quiet = workspace.run(&["sync", &good, &bad, "--json", "-q"]);

    assert!(loud.err.contains("good: level, 30 records in "), "{}", loud.err);
    assert_eq!((loud.rows().len(), quiet.rows().len()), (2, 2));
    assert_eq!(quiet.err, "");
    assert_eq!(quiet.code, Some(3), "the exit code and the rows still tell");
}

#[test]
fn a_failure_is_one_line_that_begins_with_the_program_s_name() {
    let workspace = Workspace::new();
    for verb in [&["status", "--db", "none.db"][..], &["export", "--db", "none.db"], &["sync"], &["run"]] {
        let ran = workspace.run(verb);
        assert_eq!(ran.out, "", "{verb:?}");
        assert!(ran.err.starts_with("feedmirror: ") && ran.err.lines().count() == 1, "{verb:?}: {}", ran.err);
    }
}

#[test]
fn who_stops_reading_the_output_is_no_failure() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let (db, url) = (["--db", "a.db"], publisher.url(0).to_owned());
    assert_eq!(workspace.run(&["sync", &url, db[0], db[1]]).code, Some(0));
    for verb in [
        &["sync", &url, db[0], db[1]][..],
        &["status", db[0], db[1]],
        &["export", db[0], db[1]],
        &["changes", db[0], db[1]],
        &["events", db[0], db[1]],
        &["completions", "bash"],
        &["man"],
        &["simulate", "--list-faults"],
    ] {
        // given an output whose reader is gone
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        // when a verb writes to it
        let output = workspace.command(verb).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        // then the verb ends without a message
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{verb:?}: {err}");
        assert!(!err.contains("feedmirror: ") && !err.contains("panicked"), "{verb:?}: {err}");
    }
}
