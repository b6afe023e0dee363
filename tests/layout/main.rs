//! Holds the module rules of ARCHITECTURE by reading `src/` as text: who may know whom, where SQL and clocks live,
//! how long a file may grow. It reads names only: what a type leaks through its public fields it can't see.
//! Code under `#[cfg(test)]` and files named `tests.rs` are free: a module's own tests may borrow a neighbour.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod check;
mod rules;
mod source_text;

use std::fs;
use std::path::{Path, PathBuf};

use check::complaints;

const MOST_LINES: usize = 500;
const LONGER: &str = "longer than 500 lines because";

#[test]
fn modules_know_only_whom_they_may() {
    let root = root();
    let files = files_below(&root.join("src"), "rs");
    assert!(!files.is_empty(), "no sources found below {}", root.display());
    let dependencies = dependencies(&fs::read_to_string(root.join("Cargo.toml")).unwrap());
    assert!(dependencies.iter().any(|name| name == "rusqlite"), "Cargo.toml's dependencies could not be read");

    let complaints: Vec<String> = files
        .iter()
        .filter(|file| file.file_stem().is_none_or(|stem| stem != "tests"))
        .flat_map(|file| {
            let shown = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            complaints(&shown, &fs::read_to_string(file).unwrap(), &dependencies)
        })
        .collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn long_files_say_why_and_nothing_is_left_undone() {
    let root = root();
    let mut files = files_below(&root.join("src"), "rs");
    files.extend(files_below(&root.join("src"), "sql"));
    files.extend(files_below(&root.join("tests"), "rs"));
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let shown = file.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            tidiness(&shown, &fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "fixtures") {
                found.extend(files_below(&path, extension));
            }
        } else if path.extension().is_some_and(|given| given == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The names in `[dependencies]`, as paths spell them.
fn dependencies(manifest: &str) -> Vec<String> {
    let after = manifest.split_once("\n[dependencies]\n").map_or("", |(_, after)| after);
    after
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim().trim_end_matches(".workspace").replace('-', "_"))
        .collect()
}

fn tidiness(file: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if lines > MOST_LINES && !text.lines().next().unwrap_or_default().contains(LONGER) {
        complaints.push(format!("{file}: {lines} lines; split it, or let its first line say `{LONGER} …`"));
    }
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
    for (number, line) in text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| line.contains(mark.as_str())) {
            complaints.push(format!("{file}:{}: {mark}: do it now, or file an issue", number + 1));
        }
    }
    complaints
}

#[test]
fn a_long_file_or_a_mark_is_noticed() {
    let long = "\n".repeat(501);
    assert_eq!(tidiness("src/a.rs", &long).len(), 1);
    assert!(tidiness("src/a.rs", &format!("// {LONGER} it is a table{long}")).is_empty());
    let marked = ["fn f() {}\n// TO", "DO later\n"].concat();
    assert!(tidiness("src/a.rs", &marked)[0].starts_with("src/a.rs:2: "));
}
