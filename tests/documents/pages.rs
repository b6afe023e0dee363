//! The pages under `docs/`: a book that is whole, and whole as files; and README, which is short.

use std::collections::BTreeSet;
use std::fs;

use feedmirror::cli::command;

use crate::document::{pages, root, same, text};

const SUMMARY: &str = "docs/SUMMARY.md";

/// The pages that the summary lists, each with its title there.
fn listed() -> Vec<(String, String)> {
    let summary = text(SUMMARY);
    let items = summary.lines().filter_map(|line| line.trim_start().strip_prefix("- ["));
    let parts = items.map(|item| item.strip_suffix(')').and_then(|item| item.split_once("](")).unwrap());
    parts.map(|(title, page)| (format!("docs/{page}"), title.to_owned())).collect()
}

#[test]
fn the_summary_lists_every_page_once_under_its_own_title() {
    let listed = listed();
    for (page, title) in &listed {
        let heading = text(page).lines().next().unwrap().to_owned();
        assert_eq!(heading, format!("# {title}"), "{page}");
    }
    let names: BTreeSet<String> = listed.iter().map(|(page, _)| page.clone()).collect();
    assert_eq!(names.len(), listed.len(), "a page is listed twice");
    same("pages", &names, &pages().into_iter().filter(|page| page != SUMMARY).collect());
}

#[test]
fn the_summary_is_one_that_mdbook_reads() {
    for line in text(SUMMARY).lines() {
        let known = line.is_empty() || line.starts_with("# ") || (line.starts_with("- [") && line.ends_with(".md)"));
        assert!(known, "neither a part's title nor a page: {line}");
    }
    let book: toml::Table = text("book.toml").parse().unwrap();
    assert_eq!(book["book"]["src"].as_str(), Some("docs"));
    assert_eq!(book["build"]["create-missing"].as_bool(), Some(false), "a page that is missing is a mistake");
}

#[test]
fn a_page_has_one_title() {
    for page in pages() {
        let titles = crate::document::prose(&text(&page)).lines().filter(|line| line.starts_with("# ")).count();
        assert!(titles == 1 || page == SUMMARY, "{page} has {titles} titles");
    }
}

#[test]
fn readme_is_short_and_has_a_picture() {
    let readme = text("README.md");
    assert!((8_000..=10_240).contains(&readme.len()), "README has {} bytes, 8 to 10 KB wanted", readme.len());
    let pictures: Vec<&str> = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    let pictures: Vec<&&str> = pictures.iter().filter(|target| target.ends_with(".png")).collect();
    assert_eq!(pictures.len(), 1, "one picture: {pictures:?}");
    let picture = fs::read(root().join(pictures[0])).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() < 200 * 1024, "{} bytes", picture.len());
}

/// A page ends with what the code says, behind this mark.
const WRITTEN: &str = "<!-- what follows is written by `WRITE_DOCUMENTS=1 cargo test --test documents` -->\n\n";

fn ends_with_what_the_code_says(page: &str, said: &str) {
    let now = text(page);
    let (before, _) = now.split_once(WRITTEN).unwrap_or_else(|| panic!("{page} has no mark"));
    let wanted = format!("{before}{WRITTEN}{said}");
    if std::env::var_os("WRITE_DOCUMENTS").is_some() {
        fs::write(root().join(page), &wanted).unwrap();
    }
    assert!(text(page) == wanted, "{page} is out of date: WRITE_DOCUMENTS=1 writes it anew");
}

#[test]
fn the_page_of_settings_is_the_example_configuration() {
    let example = text("config.example.toml");
    ends_with_what_the_code_says("docs/reference/configuration.md", &format!("```toml\n{example}```\n"));
}

#[test]
fn the_page_of_the_command_line_has_the_help_of_every_command() {
    let mut said = String::new();
    let mut program = command().term_width(100).mut_args(|flag| flag.hide_env_values(true));
    said.push_str(&helped("Every command", &mut program.clone()));
    program.build();
    for verb in program.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let parts = verb.get_subcommands().filter(|part| part.get_name() != "help");
        for command in [verb].into_iter().chain(parts) {
            // What every command takes is said once, with the program.
            let mut command = command.clone().mut_args(|flag| {
                let everywhere = flag.is_global_set() || flag.get_id() == "help";
                flag.hide(everywhere).hide_env_values(true)
            });
            let name = command.get_bin_name().unwrap().trim_start_matches("feedmirror ").to_owned();
            said.push_str(&helped(&format!("`{name}`"), &mut command));
        }
    }
    ends_with_what_the_code_says("docs/reference/cli.md", &format!("{}\n", said.trim_end()));
}

fn helped(title: &str, command: &mut clap::Command) -> String {
    let help = command.render_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    format!("### {title}\n\n```text\n{}\n```\n\n", lines.join("\n").trim_end())
}
