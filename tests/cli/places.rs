//! Where the configuration and the database are looked for, and which of several wins.

use crate::workspace::{RunOutput, SimulatorProcess, Workspace};

fn environment(workspace: &Workspace, arguments: &[&str], variables: &[(&str, &str)]) -> RunOutput {
    workspace.command(arguments).envs(variables.iter().copied()).output().unwrap().into()
}

/// Which configuration was read, by the number of its feeds.
fn feeds(ran: &RunOutput) -> Option<&str> {
    ran.out.split(", ").find(|part| part.contains("feed"))
}

#[test]
fn the_configuration_is_the_one_named_else_the_one_here() {
    let workspace = Workspace::new();
    let configuration = |count: usize| {
        (0..count).map(|n| format!("[feeds.f{n}]\nurl = \"https://acme.example/{n}\"\n")).collect::<String>()
    };
    workspace.write("feedmirror.toml", &configuration(2));
    workspace.write("three.toml", &configuration(3));
    workspace.write("four.toml", &configuration(4));
    let named = ("FEEDMIRROR_CONFIG", "three.toml");

    let by_folder = workspace.run(&["check"]);
    let by_environment = environment(&workspace, &["check"], &[named]);
    let by_flag = environment(&workspace, &["check", "--config", "four.toml"], &[named]);

    let read = [&by_folder, &by_environment, &by_flag].map(feeds);
    assert_eq!(read, [Some("2 feeds; 0 errors"), Some("3 feeds; 0 errors"), Some("4 feeds; 0 errors")]);
}

#[test]
fn without_any_the_places_looked_at_are_named() {
    if std::path::Path::new("/etc/feedmirror/config.toml").exists() {
        panic!("this machine runs feedmirror: its configuration would be found in place of none");
    }
    let workspace = Workspace::new();
    for verb in ["run", "check", "status", "sync"] {
        let ran = workspace.run(&[verb]);
        assert_eq!(ran.code, Some(2), "{verb}: {ran:?}");
        let printed = ran.err + &ran.out;
        for path in ["feedmirror.toml", "/etc/feedmirror/config.toml", "--config"] {
            assert!(printed.contains(path), "{verb}: {printed}");
        }
    }
    assert!(workspace.files().is_empty(), "{:?}", workspace.files());
}

#[test]
fn the_environment_overrides_the_file_and_flags_override_both() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let feed = format!("[feeds.acme]\nurl = \"{}\"\n", publisher.url(0));
    workspace.write("feedmirror.toml", &format!("database = \"file.db\"\n{feed}"));
    let database = |variables: &[(&str, &str)], flags: &[&str]| {
        let ran = environment(&workspace, &[&["sync"], flags].concat(), variables);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.out.trim_end().rsplit("; ").next().unwrap().rsplit('/').next().unwrap().to_owned()
    };
    let variable = ("FEEDMIRROR_DATABASE", "environment.db");
    assert_eq!(database(&[], &[]), "file.db");
    assert_eq!(database(&[variable], &[]), "environment.db");
    assert_eq!(database(&[variable, ("FEEDMIRROR_DB", "short.db")], &[]), "short.db");
    assert_eq!(database(&[variable, ("FEEDMIRROR_DB", "short.db")], &["--db", "flag.db"]), "flag.db");
    // and the verbs that read look at the same path
    let status = environment(&workspace, &["status"], &[("FEEDMIRROR_DB", "flag.db")]);
    assert!(status.out.contains("acme"), "{status:?}");
}

#[test]
fn a_variable_that_sets_nothing_is_a_mistake_with_a_name() {
    let workspace = Workspace::new();
    workspace.write("feedmirror.toml", "[feeds.acme]\nurl = \"https://acme.example/\"\n");
    let ran = environment(&workspace, &["check"], &[("FEEDMIRROR_POLL__MINI", "9s")]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.out.contains("FEEDMIRROR_POLL__MINI") && ran.out.contains("did you mean \"min\""), "{}", ran.out);
}
