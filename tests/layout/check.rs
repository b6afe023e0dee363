//! Compares one file's words with its row of the table. The tests below prove that it can fail.

use crate::rules::{CRATES_OF_FEED, DEPENDENCY_RULES, RULES, Rule};
use crate::source_text::{Token, mentions, tokens, without_tests};

pub(crate) fn complaints(file: &str, text: &str, dependencies: &[String]) -> Vec<String> {
    let place = module_path(file);
    let Some(rule) = RULES.iter().find(|rule| rule.module == place[0]) else {
        return vec![format!(
            "{file}: module `{}` has no row in tests/layout/rules.rs: say there what it may use",
            place[0]
        )];
    };
    let tokens = without_tests(&tokens(text));
    let mut found: Vec<(usize, String)> = Vec::new();
    for (line, path) in crate_paths(&tokens, &place) {
        if !allowed(rule, &path) {
            found.push((line, format!("`{}` must not use `{}`: {}", rule.module, path.join("::"), rule.because)));
        }
    }
    for never in rule.never {
        for line in mentions(&tokens, never) {
            found.push((line, format!("`{}` must not use `{never}`: {}", rule.module, rule.because)));
        }
    }
    for home in DEPENDENCY_RULES.iter().filter(|home| !home.only_in.contains(&rule.module)) {
        for line in mentions(&tokens, home.dependency) {
            found.push((line, format!("`{}` belongs in {:?} alone: {}", home.dependency, home.only_in, home.because)));
        }
    }
    if rule.module == "feed" {
        for name in dependencies.iter().filter(|name| !CRATES_OF_FEED.contains(&name.as_str())) {
            for line in mentions(&tokens, &format!("{name}::")) {
                found.push((line, format!("`feed` must not use `{name}`: {}", rule.because)));
            }
        }
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|(line, complaint)| format!("{file}:{line}: {complaint}")).collect()
}

/// `src/store/apply.rs` is `[store, apply]`; the two roots go by their file's name.
fn module_path(file: &str) -> Vec<String> {
    let inner = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inner.split('/').map(str::to_owned).collect()
}

fn allowed(rule: &Rule, path: &[String]) -> bool {
    let Some(head) = path.first() else { return true };
    let is_module = head == "*" || RULES.iter().any(|rule| rule.module == head);
    if head == rule.module || !is_module {
        return true;
    }
    rule.may_use.iter().any(|may| *may == "*" || may.split("::").eq(path.iter().take(may.split("::").count())))
}

/// Every path into this crate, from its root, with the line of its last word; `use` groups are spread out.
fn crate_paths(tokens: &[Token], place: &[String]) -> Vec<(usize, Vec<String>)> {
    let root = place == ["main"] || place == ["lib"];
    let mut blocks: Vec<Option<String>> = Vec::new();
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let text = tokens[at].text.as_str();
        let before = |back: usize| at.checked_sub(back).map_or("", |at| tokens[at].text.as_str());
        match text {
            "{" => blocks.push((before(2) == "mod").then(|| before(1).to_owned())),
            "}" => drop(blocks.pop()),
            "crate" | "feedmirror" | "super" if before(1) != "::" && followed_by_path(tokens, at) => {
                let mut from: Vec<String> = Vec::new();
                if text == "super" {
                    from.extend(if root { &[] } else { place }.iter().cloned());
                    from.extend(blocks.iter().flatten().cloned());
                    from.pop();
                }
                spread(tokens, at + 2, from, &mut found);
            }
            _ => {}
        }
    }
    found
}

fn followed_by_path(tokens: &[Token], at: usize) -> bool {
    tokens.get(at + 1).is_some_and(|token| token.text == "::")
}

/// Reads what follows `prefix::` and returns where it ends.
fn spread(tokens: &[Token], mut at: usize, mut prefix: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let Some(token) = tokens.get(at) else { return at };
    if token.text == "{" {
        at += 1;
        while tokens.get(at).is_some_and(|token| token.text != "}") {
            at = if tokens[at].text == "," { at + 1 } else { spread(tokens, at, prefix.clone(), found) };
        }
        return at + 1;
    }
    match token.text.as_str() {
        "super" => drop(prefix.pop()),
        "self" => {}
        name => prefix.push(name.to_owned()),
    }
    if followed_by_path(tokens, at) {
        return spread(tokens, at + 2, prefix, found);
    }
    found.push((token.line, prefix));
    let alias = tokens.get(at + 1).is_some_and(|token| token.text == "as");
    at + if alias { 3 } else { 1 }
}

mod the_checker_itself {
    use super::complaints;

    fn lines(file: &str, text: &str) -> Vec<String> {
        let dependencies = ["serde".to_owned(), "url".to_owned(), "rusqlite".to_owned()];
        let start = |complaint: String| complaint.split(": ").take(2).collect::<Vec<_>>().join(": ");
        complaints(file, text, &dependencies).into_iter().map(start).collect()
    }

    #[test]
    fn names_file_line_and_reason() {
        let found = complaints("src/decode/rpde.rs", "use crate::feed::Item;\n\nuse crate::store::apply;\n", &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("src/decode/rpde.rs:3: `decode` must not use `store::apply`: "), "{found:?}");
    }

    #[test]
    fn sees_through_groups_aliases_and_inline_paths() {
        let text = "use crate::{\n    feed::{self as words, Item},\n    store::{self, read},\n};\nfn f() { crate::source::get() }\n";
        assert_eq!(
            lines("src/schedule.rs", text),
            [
                "src/schedule.rs:3: `schedule` must not use `store::read`",
                "src/schedule.rs:3: `schedule` must not use `store`",
                "src/schedule.rs:5: `schedule` must not use `source::get`",
            ]
        );
    }

    #[test]
    fn follows_super_out_of_the_module() {
        assert!(lines("src/store/apply.rs", "use super::read;\nmod inner { use super::super::read; }\n").is_empty());
        assert_eq!(
            lines("src/store/apply.rs", "use super::super::worker;\n"),
            ["src/store/apply.rs:1: `store` must not use `worker`"]
        );
        assert_eq!(lines("src/mode.rs", "use super::*;\n"), ["src/mode.rs:1: `mode` must not use `*`"]);
    }

    #[test]
    fn a_part_of_a_module_may_be_all_that_is_open() {
        assert!(lines("src/output/status.rs", "use crate::store::read::Reader;\n").is_empty());
        assert_eq!(
            lines("src/output/status.rs", "use crate::store::apply;\n"),
            ["src/output/status.rs:1: `output` must not use `store::apply`"]
        );
        assert_eq!(lines("src/main.rs", "use feedmirror::daemon;\n"), ["src/main.rs:1: `main` must not use `daemon`"]);
    }

    #[test]
    fn clocks_sql_and_foreign_crates_are_seen() {
        assert_eq!(
            lines("src/mode.rs", "fn f() {\n    let now = std::time::Instant::now();\n}\n"),
            ["src/mode.rs:2: `mode` must not use `Instant::now`"]
        );
        assert_eq!(
            lines("src/worker.rs", "use rusqlite::Connection;\n"),
            ["src/worker.rs:1: `rusqlite` belongs in [\"store\"] alone"]
        );
        assert_eq!(lines("src/feed.rs", "use url::Url;\n"), ["src/feed.rs:1: `feed` must not use `url`"]);
    }

    #[test]
    fn comments_strings_and_tests_are_not_code() {
        let text = r##"//! [`crate::store`]
/* crate::store /* nested */ crate::source */
const A: &str = "crate::store \" crate::source"; const B: char = '"'; fn f<'a>(_: &'a str) {}
const C: &str = r#"crate::store " "#; const D: u8 = b'\'';
#[cfg(test)]
mod tests { use crate::store; fn f() { std::time::Instant::now(); } }
pub(crate) fn g() {}
"##;
        assert_eq!(lines("src/mode.rs", text), Vec::<String>::new());
        assert_eq!(
            lines("src/mode.rs", &format!("{text}use crate::cli;")),
            ["src/mode.rs:8: `mode` must not use `cli`"]
        );
    }

    #[test]
    fn a_module_without_a_row_is_asked_for_one() {
        assert_eq!(
            lines("src/extra/part.rs", "")[0],
            "src/extra/part.rs: module `extra` has no row in tests/layout/rules.rs"
        );
    }
}
