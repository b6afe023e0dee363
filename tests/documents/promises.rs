//! The promises: README names each, the page says it in full, and the tests that prove it are there.

use crate::document::{spans, text};

/// Each promise of the page, with the tests that it names.
fn promises() -> Vec<(String, Vec<String>)> {
    let page = text("docs/promises.md");
    let parts = page.split("\n## ").skip(1).map(|part| part.split_once('\n').unwrap());
    let named = |body: &str| spans(body.split("\nProven by:\n").nth(1).expect("a list behind `Proven by:`"));
    parts.map(|(heading, body)| (heading.to_owned(), named(body))).collect()
}

#[test]
fn every_promise_names_tests_that_exist() {
    for (promise, tests) in promises() {
        assert!(tests.len() >= 3, "{promise} rests on {tests:?}");
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{promise}: {test} names no file"));
            let source = text(file);
            let (before, _) = source
                .split_once(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("{promise}: {file} has no test {name}"));
            let attributes = before.rsplit("\n}").next().unwrap();
            let marked = ["#[test]", "#[tokio::test"].iter().any(|mark| attributes.contains(mark));
            assert!(marked, "{promise}: {test} is no test");
        }
    }
}

#[test]
fn readme_promises_what_the_page_says_in_full() {
    let readme = text("README.md");
    let items = readme.lines().filter_map(|line| line.split_once(". **"));
    let named: Vec<&str> = items
        .filter(|(number, _)| number.parse::<u32>().is_ok())
        .map(|(_, rest)| rest.split_once("**").unwrap().0)
        .collect();
    let said = promises();
    assert_eq!(named, said.iter().map(|(heading, _)| heading.as_str()).collect::<Vec<_>>());
}
