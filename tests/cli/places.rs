//! Where the configuration and the database are looked for, and which of several wins.

use crate::workspace::{RunOutput, SimulatorProcess, Workspace};

fn environment(desk: &Workspace, arguments: &[&str], variables: &[(&str, &str)]) -> RunOutput {
    desk.command(arguments).envs(variables.iter().copied()).output().unwrap().into()
}

/// Which configuration was read, by the number of its feeds.
fn feeds(ran: &RunOutput) -> Option<&str> {
    ran.out.split(", ").find(|part| part.contains("feed"))
}

#[test]
fn the_configuration_is_the_one_named_else_the_one_here() {
    let desk = Workspace::new();
    let configuration = |count: usize| {
        (0..count).map(|n| format!("[feeds.f{n}]\nurl = \"https://acme.example/{n}\"\n")).collect::<String>()
    };
    desk.write("feedmirror.toml", &configuration(2));
    desk.write("three.toml", &configuration(3));
    desk.write("four.toml", &configuration(4));
    let named = ("FEEDMIRROR_CONFIG", "three.toml");

    let here = desk.run(&["check"]);
    let by_environment = environment(&desk, &["check"], &[named]);
    let by_flag = environment(&desk, &["check", "--config", "four.toml"], &[named]);

    let read = [&here, &by_environment, &by_flag].map(feeds);
    assert_eq!(read, [Some("2 feeds; 0 errors"), Some("3 feeds; 0 errors"), Some("4 feeds; 0 errors")]);
}

#[test]
fn without_any_the_places_looked_at_are_named() {
    if std::path::Path::new("/etc/feedmirror/config.toml").exists() {
        panic!("this machine runs feedmirror: its configuration would be found in place of none");
    }
    let desk = Workspace::new();
    for verb in ["run", "check", "status", "sync"] {
        let ran = desk.run(&[verb]);
        assert_eq!(ran.code, Some(2), "{verb}: {ran:?}");
        let told = ran.err + &ran.out;
        for place in ["feedmirror.toml", "/etc/feedmirror/config.toml", "--config"] {
            assert!(told.contains(place), "{verb}: {told}");
        }
    }
    assert!(desk.files().is_empty(), "{:?}", desk.files());
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let (desk, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let feed = format!("[feeds.acme]\nurl = \"{}\"\n", publisher.url(0));
    desk.write("feedmirror.toml", &format!("database = \"file.db\"\n{feed}"));
    let database = |variables: &[(&str, &str)], flags: &[&str]| {
        let ran = environment(&desk, &[&["sync"], flags].concat(), variables);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.out.trim_end().rsplit("; ").next().unwrap().rsplit('/').next().unwrap().to_owned()
    };
    let variable = ("FEEDMIRROR_DATABASE", "environment.db");
    assert_eq!(database(&[], &[]), "file.db");
    assert_eq!(database(&[variable], &[]), "environment.db");
    assert_eq!(database(&[variable, ("FEEDMIRROR_DB", "short.db")], &[]), "short.db");
    assert_eq!(database(&[variable, ("FEEDMIRROR_DB", "short.db")], &["--db", "flag.db"]), "flag.db");
    // and readers look at the same place
    let shown = environment(&desk, &["status"], &[("FEEDMIRROR_DB", "flag.db")]);
    assert!(shown.out.contains("acme"), "{shown:?}");
}

#[test]
fn a_variable_that_sets_nothing_is_a_mistake_with_a_name() {
    let desk = Workspace::new();
    desk.write("feedmirror.toml", "[feeds.acme]\nurl = \"https://acme.example/\"\n");
    let ran = environment(&desk, &["check"], &[("FEEDMIRROR_POLL__MINI", "9s")]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.out.contains("FEEDMIRROR_POLL__MINI") && ran.out.contains("did you mean \"min\""), "{}", ran.out);
}
