//! The daemon's log: its form, its level, and that nothing of it goes to standard output.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::desk::{Desk, Ran, Simulated};
use crate::support::until;

const CONFIGURATION: &str = "poll.min = \"1s\"\nops.listen = \"127.0.0.1:0\"\n";

/// Runs the daemon until its feed is level, and ends it.
fn run(publisher: &Simulated, configuration: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let desk = Desk::new();
    let feed = format!("[feeds.acme]\nurl = \"{}\"\n", publisher.url(0));
    desk.write("feedmirror.toml", &format!("{CONFIGURATION}{configuration}{feed}"));
    let mut command = desk.command(&[arguments, &["run"]].concat());
    let running = desk.start_as(command.envs(environment.iter().copied()));
    until("the feed level", || !desk.sql("mirror.db", "SELECT name FROM feeds WHERE level_at IS NOT NULL").is_empty());
    running.signal(Signal::SIGTERM);
    let ran = running.ended();
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{ran:?}");
    ran
}

fn events(ran: &Ran) -> Vec<Value> {
    ran.err.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn json_is_an_object_a_line_with_time_level_and_message() {
    let publisher = Simulated::of(1);
    let configured = run(&publisher, "log.format = \"json\"\n", &[], &[]);
    let told = run(&publisher, "", &[], &[("FEEDMIRROR_LOG__FORMAT", "json")]);
    for ran in [configured, told] {
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
    let ran = run(&Simulated::of(1), "", &[], &[]);
    assert!(ran.err.contains("Z  INFO running ops=\"127.0.0.1:"), "{}", ran.err);
    assert!(ran.err.contains("Z  WARN feedmirror.toml: poll.min: "), "{}", ran.err);
    assert!(!ran.err.contains('\x1b'), "{:?}", ran.err);
}

#[test]
fn flags_overrule_the_configured_level() {
    let publisher = Simulated::of(1);
    let debug = |ran: &Ran| events(ran).iter().any(|event| event["level"] == "DEBUG");
    let json = "log = { format = \"json\", level = \"info\" }\n";

    let loud = run(&publisher, json, &["-vv"], &[]);
    let quiet = run(&publisher, json, &["-q"], &[]);
    let configured = run(&publisher, "log = { format = \"json\", level = \"debug\" }\n", &[], &[]);

    assert!(debug(&loud), "{}", loud.err);
    assert_eq!(quiet.err, "");
    assert!(debug(&configured), "{}", configured.err);
}
