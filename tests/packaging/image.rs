//! The Dockerfile, read: what it copies is there, and what it leaves runs as nobody in particular.

use feedmirror::cli::command;

use crate::{source, text};

/// The instructions, continued lines joined.
fn instructions() -> Vec<String> {
    let text = text("Dockerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.join("\n").replace("\\\n", " ").lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The last stage, which is what is shipped.
fn image() -> Vec<String> {
    let all = instructions();
    let from = all.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    all[from..].to_vec()
}

fn value(name: &str) -> String {
    let image = image();
    let given: Vec<&str> = image.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).collect();
    assert_eq!(given.len(), 1, "{name}: {image:#?}");
    given[0].to_owned()
}

#[test]
fn the_image_is_empty_but_for_what_is_copied_and_runs_as_an_ordinary_user() {
    assert_eq!(value("FROM"), "scratch");
    let (user, group) = (value("USER"), String::from("65532:65532"));
    assert_eq!(user, group, "a number, as there is no /etc/passwd");
    assert!(image().iter().any(|line| line.contains("/etc/ssl/certs/ca-certificates.crt")), "https needs authorities");
    assert_eq!(value("VOLUME"), "[\"/var/lib/feedmirror\"]");
    assert_eq!(value("STOPSIGNAL"), "SIGTERM");
    assert!(!image().iter().any(|line| line.starts_with("RUN ")), "there is no shell to run anything");
}

#[test]
fn the_image_calls_the_program_as_it_can_be_called() {
    let words = |json: &str| serde_json::from_str::<Vec<String>>(json).unwrap();
    let program = words(&value("ENTRYPOINT"));
    let health = value("HEALTHCHECK");
    let health = words(health.split_once("CMD ").unwrap().1.trim());
    for call in [[program.clone(), words(&value("CMD"))].concat(), health] {
        assert_eq!(call[0], program[0]);
        command().try_get_matches_from(&call).unwrap_or_else(|error| panic!("{call:?}: {error}"));
    }
}

#[test]
fn the_build_sees_all_that_it_needs_and_nothing_besides() {
    let ignored = text(".dockerignore");
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    assert_eq!(lines.next(), Some("*"), "everything is left out but what follows");
    let kept: Vec<&str> = lines.map(|line| line.strip_prefix('!').unwrap().trim_end_matches('/')).collect();
    for path in &kept {
        assert!(source().join(path).exists(), "there is no {path}");
    }
    // What `cargo build` reads, and the script that the image is built by.
    for needed in ["Cargo.toml", "Cargo.lock", ".cargo", "src", "templates", "benches", "packaging"] {
        assert!(kept.contains(&needed), "{needed} is left out");
    }
}

#[test]
fn the_image_is_built_with_the_oldest_rust_that_is_promised() {
    let from = instructions().into_iter().find(|line| line.ends_with(" AS build")).unwrap();
    let promised = format!("FROM rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(from.starts_with(&promised), "{from}: {promised} wanted");
}
