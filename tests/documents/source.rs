//! The source as text, without its tests, and the words that it gives to feeds, records and events.
//!
//! Words are found by the forms in which the code writes them down. A word that is put together at run time would not
//! be found: such words are not fixed, and nothing should search for them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::document::root;

/// The source of these modules, on one line each file, whitespace folded.
pub(crate) fn modules(names: &[&str]) -> String {
    let mut text = String::new();
    for name in names {
        let file = root().join("src").join(format!("{name}.rs"));
        text.push_str(&folded(&file));
        below(&root().join("src").join(name), &mut text);
    }
    text
}

fn below(folder: &Path, text: &mut String) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        match path.extension() {
            None => below(&path, text),
            Some(extension) if extension == "rs" => text.push_str(&folded(&path)),
            Some(_) => {}
        }
    }
}

/// rustfmt breaks lines where it likes: one space stands for any of it, and none follows an opening bracket.
fn folded(path: &Path) -> String {
    let whole = fs::read_to_string(path).unwrap();
    let tested = whole.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: Vec<&str> = tested.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let folded = code.join("\n").split_whitespace().collect::<Vec<_>>().join(" ");
    folded.replace("( ", "(").replace("{ ", "{") + "\n"
}

/// The words that stand in quotes right behind `before`.
pub(crate) fn quoted_behind(source: &str, before: &str) -> BTreeSet<String> {
    let found = source.split(before).skip(1).filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
    found.filter(|word| is_word(word)).map(str::to_owned).collect()
}

/// The first text in quotes of each call, where it is a word: `event(a, b, "word", …)`.
pub(crate) fn first_text_of_calls(source: &str, call: &str) -> BTreeSet<String> {
    let calls = source.split(call).skip(1).map(|rest| rest.split(';').next().unwrap());
    let texts = calls.filter_map(|arguments| arguments.split('"').nth(1));
    texts.filter(|word| is_word(word)).map(str::to_owned).collect()
}

/// The words before the colon of texts like `"word: what happened"`; a part put in at run time is `…`.
pub(crate) fn leading_words(source: &str) -> BTreeSet<String> {
    let texts = source.split('"').skip(1).filter_map(|text| text.split_once(": ").map(|(word, _)| word));
    let words = texts.map(|word| word.split_once('{').map_or(word.to_owned(), |(fixed, _)| format!("{fixed}…")));
    words.filter(|word| is_word(word.trim_end_matches("-…"))).collect()
}

/// `kebab-case`, and `http-404` too.
fn is_word(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.starts_with(|first: char| first.is_ascii_lowercase()) && text.split('-').all(part)
}

#[test]
fn words_are_found_in_the_forms_of_the_code() {
    let source = r#"page.find("a-rule", || x); event(bench, Some(feed), at, "a-thing", &format!("x")); event(a, b, c); let d = "no word";
        #[error("a-reason: {0}")] format!("http-{code}: no"); "two words: no"; "#;
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(quoted_behind(source, "find("), set(&["a-rule"]));
    assert_eq!(first_text_of_calls(source, "event("), set(&["a-thing"]));
    assert_eq!(leading_words(source), set(&["a-reason", "http-…"]));
}
