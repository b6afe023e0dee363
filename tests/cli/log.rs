//! The daemon's log: its format, its level, and that no part of it goes to standard output.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::until;
use crate::workspace::{RunOutput, SimulatorProcess, Workspace};

const CONFIGURATION: &str = "poll.min = \"1s\"\nops.listen = \"127.0.0.1:0\"\n";

/// Replaced by the stream that the daemon's standard error is.
const JOURNAL: &str = "(standard error)";

/// Runs the daemon until its feed is level, and stops it.
fn run(
    publisher: &SimulatorProcess,
    configuration: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> RunOutput {
    let workspace = Workspace::new();
    let feed = format!("[feeds.acme]\nurl = \"{}\"\n", publisher.url(0));
    workspace.write("feedmirror.toml", &format!("{CONFIGURATION}{configuration}{feed}"));
    let mut command = workspace.command(&[arguments, &["run"]].concat());
    let journal = workspace.journal_stream();
    let environment =
        environment.iter().map(|(name, value)| (*name, if *value == JOURNAL { &journal } else { *value }));
    let running = workspace.start_as(command.envs(environment));
    until("the feed level", || {
        !workspace.sql("mirror.db", "SELECT name FROM feeds WHERE level_at IS NOT NULL").is_empty()
    });
    running.signal(Signal::SIGTERM);
    let ran = running.wait_for_exit();
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{ran:?}");
    ran
}

fn events(ran: &RunOutput) -> Vec<Value> {
    ran.err.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn json_is_an_object_a_line_with_time_level_and_message() {
    let publisher = SimulatorProcess::of(1);
    let configured = run(&publisher, "log.format = \"json\"\n", &[], &[]);
    let by_environment = run(&publisher, "", &[], &[("FEEDMIRROR_LOG__FORMAT", "json")]);
    for ran in [configured, by_environment] {
        let events = events(&ran);
        let messages: Vec<&str> = events.iter().map(|event| event["message"].as_str().unwrap()).collect();
        assert!(messages.contains(&"running") && messages.contains(&"stopping"), "{messages:?}");
        for event in events {
            assert!(event["timestamp"].as_str().unwrap().ends_with('Z'), "{event}");
            assert!(["ERROR", "WARN", "INFO"].contains(&event["level"].as_str().unwrap()), "{event}");
        }
    }
}

#[test]
fn text_is_a_line_an_event_without_colours_where_no_terminal_shows_it() {
    let ran = run(&SimulatorProcess::of(1), "", &[], &[]);
    assert!(ran.err.contains("Z  INFO running ops=\"127.0.0.1:"), "{}", ran.err);
    assert!(ran.err.contains("Z  WARN feedmirror.toml: poll.min: "), "{}", ran.err);
    assert!(!ran.err.contains('\x1b'), "{:?}", ran.err);
}

#[test]
fn the_journal_is_told_each_lines_priority_and_keeps_the_time_itself() {
    let publisher = SimulatorProcess::of(1);
    let journal = |configuration: &str| run(&publisher, configuration, &[], &[("JOURNAL_STREAM", JOURNAL)]).err;

    let text = journal("");
    assert!(text.lines().any(|line| line.starts_with("<6> INFO running ops=\"127.0.0.1:")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("<4> WARN feedmirror.toml: poll.min: ")), "{text}");

    let json = journal("log.format = \"json\"\n");
    for line in json.lines() {
        let (priority, object) = line.split_at(3);
        let event: Value = serde_json::from_str(object).unwrap_or_else(|error| panic!("{error}: {line}"));
        let expected = match event["level"].as_str().unwrap() {
            "ERROR" => "<3>",
            "WARN" => "<4>",
            "INFO" => "<6>",
            level => panic!("{level}: {line}"),
        };
        assert_eq!(priority, expected, "{line}");
    }
    assert!(json.contains("running"), "{json}");
}

#[test]
fn an_inherited_journal_stream_is_not_taken_for_standard_error() {
    let ran = run(&SimulatorProcess::of(1), "", &[], &[("JOURNAL_STREAM", "8:1")]);
    assert!(ran.err.contains("Z  INFO running ops=\"127.0.0.1:"), "{}", ran.err);
    assert!(!ran.err.contains("<6>"), "{}", ran.err);
}

#[test]
fn flags_overrule_the_configured_level() {
    let publisher = SimulatorProcess::of(1);
    let debug = |ran: &RunOutput| events(ran).iter().any(|event| event["level"] == "DEBUG");
    let json = "log = { format = \"json\", level = \"info\" }\n";

    let loud = run(&publisher, json, &["-vv"], &[]);
    let quiet = run(&publisher, json, &["-q"], &[]);
    let configured = run(&publisher, "log = { format = \"json\", level = \"debug\" }\n", &[], &[]);

    assert!(debug(&loud), "{}", loud.err);
    assert_eq!(quiet.err, "");
    assert!(debug(&configured), "{}", configured.err);
}
