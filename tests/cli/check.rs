//! `check`: reports all mistakes at once, and with `--online` what each feed's URL answers.

use crate::workspace::{SimulatorProcess, Workspace, nobody};

fn feed(name: &str, url: &str) -> String {
    format!("[feeds.{name}]\nurl = \"{url}\"\n")
}

#[test]
fn a_sound_configuration_is_done_and_mistakes_are_told_all_at_once() {
    let workspace = Workspace::new();
    workspace.write("feedmirror.toml", &feed("acme", "https://acme.example/"));
    let sound = workspace.run(&["check"]);
    assert_eq!((sound.code, sound.err.as_str()), (Some(0), ""), "{sound:?}");

    workspace.write("feedmirror.toml", &format!("pol.min = \"9s\"\n{}", feed("acme", "ftp://acme.example/")));
    let mistaken = workspace.run(&["check"]);
    assert_eq!(mistaken.code, Some(2));
    let errors: Vec<&str> = mistaken.out.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "{}", mistaken.out);
    assert!(errors.iter().any(|line| line.contains("did you mean \"poll\"")), "{errors:?}");
    assert!(errors.iter().any(|line| line.contains("feeds.acme.url")), "{errors:?}");
    // and no file was created
    assert_eq!(workspace.files(), ["feedmirror.toml"]);
}

#[test]
fn online_every_feed_is_asked_and_one_that_does_not_answer_fails_the_check() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(2));
    let good = feed("sessions", publisher.url(0)) + &feed("facilities", publisher.url(1));
    workspace.write("feedmirror.toml", &good);
    let passed = workspace.run(&["check", "--online"]);
    assert_eq!(passed.code, Some(0), "{passed:?}");
    let answers = passed.out.lines().filter(|line| line.ends_with(": 10 items, and more pages")).count();
    assert_eq!(answers, 2, "{}", passed.out);

    workspace.write("feedmirror.toml", &(good + &feed("nobody", &nobody())));
    let failed = workspace.run(&["check", "--online"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let failures: Vec<&str> = failed.out.lines().filter(|line| line.starts_with("failed: ")).collect();
    assert_eq!(failures.len(), 1, "{}", failed.out);
    assert!(
        failures[0].starts_with("failed: nobody: ") && failures[0].contains(": refused-connection: "),
        "{failures:?}"
    );
    assert!(!workspace.path("mirror.db").exists(), "asking writes nothing");

    let rows = workspace.run(&["check", "--online", "--json"]).rows();
    let levels: Vec<_> =
        rows.iter().map(|row| (row["name"].as_str().unwrap(), row["level"].as_str().unwrap())).collect();
    assert_eq!(levels, [("facilities", "ok"), ("nobody", "failed"), ("sessions", "ok")]);
}

#[test]
fn online_a_stream_is_opened_and_a_broker_asked_for_its_queue() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let broker = nobody().replacen("http://", "amqp://guest:hunter2@", 1);
    workspace.write("broker", broker.trim_end_matches("/feed"));
    let stream = format!("sse.url = \"{}/stream\"\n", publisher.url(0));
    workspace.write("feedmirror.toml", &(feed("sessions", publisher.url(0)) + &stream));
    let passed = workspace.run(&["check", "--online"]);
    assert_eq!(passed.code, Some(0), "{passed:?}");
    assert!(
        passed.out.contains(&format!("ok: sessions: {}/stream: a stream of events\n", publisher.url(0))),
        "{passed:?}"
    );

    let page = format!("sse.url = \"{}\"\n", publisher.url(0));
    let queue = "amqp = { url_file = \"broker\", queue = \"things\" }\n";
    workspace.write("feedmirror.toml", &(feed("sessions", publisher.url(0)) + &page + queue));
    let failed = workspace.run(&["check", "--online", "--json"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let rows = failed.rows();
    let probes = rows.iter().filter(|row| row["level"] != "warning");
    let levels: Vec<_> = probes.map(|row| (row["key"].as_str().unwrap(), row["level"].as_str().unwrap())).collect();
    assert_eq!(levels, [("url", "ok"), ("sse.url", "failed"), ("amqp.queue", "failed")], "{rows:?}");
    let last = rows.last().unwrap()["message"].as_str().unwrap();
    assert!(last.starts_with("refused-connection: "), "{rows:?}");
    assert!(!failed.out.contains("hunter2"), "{}", failed.out);
}
