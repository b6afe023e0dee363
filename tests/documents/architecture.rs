//! ARCHITECTURE's tables: the map of modules and the dependencies.

use std::collections::BTreeSet;
use std::fs;

use crate::document::{root, same, spans, table, text};
use crate::source::modules;

fn dependencies(section: &str) -> BTreeSet<String> {
    let manifest: toml::Table = toml::from_str(&text("Cargo.toml")).unwrap();
    manifest[section].as_table().unwrap().keys().cloned().collect()
}

#[test]
fn every_dependency_is_justified() {
    let map = text("ARCHITECTURE.md");
    let justified = table(&map, "crate").iter().flat_map(|row| spans(&row[0])).collect();
    same("dependencies", &justified, &dependencies("dependencies"));

    let for_tests = map.split("For tests alone:").nth(1).expect("a line `For tests alone:`");
    let for_tests = spans(for_tests.split("\n\n").next().unwrap()).into_iter().collect();
    same("dependencies of tests", &for_tests, &dependencies("dev-dependencies"));
}

/// A row's modules: in `source/http` `client` both are in `source`; `output/*` is whatever there is.
fn modules_of(cell: &str) -> Vec<String> {
    let mut folder = String::new();
    let mut modules = Vec::new();
    for span in spans(cell) {
        match span.rsplit_once('/') {
            Some((parent, name)) => {
                folder = format!("{parent}/");
                modules.push(if name == "*" { parent.to_owned() } else { span.clone() });
            }
            None => modules.push(format!("{folder}{span}")),
        }
    }
    modules
}

#[test]
fn the_map_names_modules_that_exist_and_leaves_none_out() {
    let map = text("ARCHITECTURE.md");
    let named: Vec<String> = table(&map, "where").iter().flat_map(|row| modules_of(&row[0])).collect();
    for module in &named {
        assert!(root().join(format!("src/{module}.rs")).is_file(), "the map names {module}, which is no module");
    }
    let covered: BTreeSet<String> = named.iter().map(|name| name.split('/').next().unwrap().to_owned()).collect();
    let entries = fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let stems = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let real = stems.filter(|stem| !["lib", "main"].contains(&stem.as_str())).collect();
    same("modules", &covered, &real);
}

/// A word as its own text, in an identifier, or in a column's or a type's name.
#[test]
fn every_word_of_the_glossary_is_one_that_the_code_uses() {
    let code = modules(&["feed", "decode", "mode", "schedule", "worker", "supervisor", "store"]).to_lowercase();
    let glossary = table(&text("ARCHITECTURE.md"), "word");
    for row in &glossary {
        let word = &spans(&row[0])[0];
        let forms = [word.clone(), word.replace('-', "_"), word.replace('-', "")];
        assert!(forms.iter().any(|form| code.contains(form)), "the code uses no {word}");
        assert!(row[1].len() > 20, "{word} is not explained");
    }
    assert!(glossary.len() >= 20, "only {} words", glossary.len());
}

#[test]
fn a_row_s_modules_are_read_as_the_map_means_them() {
    assert_eq!(modules_of("`source/http` `client`"), ["source/http", "source/client"]);
    assert_eq!(modules_of("`schedule` `mode`"), ["schedule", "mode"]);
    assert_eq!(modules_of("`cli/*`"), ["cli"]);
}

#[test]
fn the_changelog_is_in_the_form_of_keep_a_changelog_and_begins_with_this_version() {
    let changelog = text("CHANGELOG.md");
    let sections: Vec<(&str, &str)> = changelog
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| heading.strip_prefix('[').unwrap().split_once("] - ").unwrap())
        .collect();
    assert_eq!(sections[0].0, env!("CARGO_PKG_VERSION"), "the newest section is this version's");
    let is_day = |day: &str| day.parse::<jiff::civil::Date>().is_ok();
    assert!(sections[0].1 == "unreleased" || is_day(sections[0].1), "{sections:?}");
    assert!(sections[1..].iter().all(|(_, day)| is_day(day)), "{sections:?}");
    for group in changelog.lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"].contains(&group), "{group}");
    }
}
