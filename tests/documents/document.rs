//! Markdown, just well enough: tables, blocks of code, spans of code, and lists under a mark.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The project's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages under `docs/`, by their paths from the root, in order.
pub(crate) fn pages() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "md") => {
                    found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
                }
                false => {}
            }
        }
    }
    found.sort();
    found
}

/// README and all pages, one after the other.
pub(crate) fn manual() -> String {
    let names = ["README.md".to_owned()].into_iter().chain(pages());
    let texts: Vec<String> = names
        .map(|name| {
            let text = text(&name);
            assert!(text.matches("```").count().is_multiple_of(2), "{name}: a block of code has no end");
            text
        })
        .collect();
    texts.join("\n\n")
}

/// The spans of code in a text without blocks.
pub(crate) fn spans(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The document without its blocks of code.
pub(crate) fn prose(document: &str) -> String {
    document.split("```").step_by(2).collect()
}

/// The blocks of code in this language.
pub(crate) fn blocks(document: &str, language: &str) -> Vec<String> {
    let blocks = document.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(&format!("{language}\n"))).map(str::to_owned).collect()
}

/// The words in code under `<!-- words: NAME -->`, up to the end of the paragraph.
pub(crate) fn marked(document: &str, name: &str) -> BTreeSet<String> {
    let mark = format!("<!-- words: {name} -->");
    let mut parts = document.split(&mark).skip(1);
    let below = parts.next().unwrap_or_else(|| panic!("there is no {mark}"));
    assert!(parts.next().is_none(), "{mark} stands twice");
    let words = spans(below.trim_start().split("\n\n").next().unwrap());
    let once: BTreeSet<String> = words.iter().cloned().collect();
    assert_eq!(once.len(), words.len(), "a word stands twice under {mark}");
    once
}

/// The rows of the table whose first head is this one, each cut into cells.
pub(crate) fn table(document: &str, first_head: &str) -> Vec<Vec<String>> {
    let mut lines = document.lines().skip_while(|line| !line.starts_with(&format!("| {first_head} |")));
    assert!(lines.next().is_some(), "there is no table that begins with {first_head}");
    let rows: Vec<Vec<String>> = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "the table of {first_head} is empty");
    rows
}

/// A sign after a backslash is text, and so is the bar in `\|`.
fn cells(line: &str) -> Vec<String> {
    let whole = line.replace("\\|", "\u{0}");
    let cells = whole.trim_matches('|').split('|');
    cells.map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// Fails with what only one of the two has.
pub(crate) fn same(what: &str, documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let missing: Vec<&String> = real.difference(documented).collect();
    let invented: Vec<&String> = documented.difference(real).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: the document lacks {missing:?}; the code lacks {invented:?}"
    );
}

#[test]
fn tables_blocks_and_lists_are_found() {
    let document = "| a | b |\n|---|---|\n| `x\\|y` | 1 |\n\n```sql\nSELECT 1\n```\n<!-- words: w -->\n`one` and\n`two`.\n\n`three`\n";
    assert_eq!(table(document, "a"), [["`x|y`", "1"]]);
    assert_eq!(blocks(document, "sql"), ["SELECT 1\n"]);
    assert_eq!(marked(document, "w"), ["one", "two"].map(str::to_owned).into());
    assert!(!prose(document).contains("SELECT"));
}
