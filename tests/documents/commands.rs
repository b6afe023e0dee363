//! The table of commands, and the lines to paste: each must be one that the program takes.

use std::collections::BTreeSet;

use feedmirror::cli::{Exit, command};

use crate::document::{blocks, pages, prose, root, same, spans, table, text};

/// Documents with lines to paste, beside the pages.
const DOCUMENTS: &[&str] = &["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md"];

fn commands() -> Vec<Vec<String>> {
    table(&text("docs/reference/cli.md"), "command")
}

#[test]
fn the_table_of_commands_is_whole() {
    let mut documented = BTreeSet::new();
    for row in commands() {
        documented.extend(spans(&row[0]).iter().map(|span| span.split([' ', '[']).next().unwrap().to_owned()));
    }
    let real = command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    same("commands", &documented, &real);
}

#[test]
fn every_flag_in_the_table_of_commands_exists() {
    for row in commands() {
        for span in spans(&row[0]) {
            let mut words = span.split([' ', '[', ']', '|', '(', ')']);
            let name = words.next().unwrap();
            let verb = command().find_subcommand(name).unwrap().clone();
            let known: Vec<&str> = verb.get_arguments().filter_map(clap::Arg::get_long).collect();
            for flag in words.filter_map(|word| word.strip_prefix("--")) {
                assert!(known.contains(&flag), "{name} has no --{flag}");
            }
        }
    }
}

#[test]
fn every_part_of_quarantine_is_in_the_table_of_commands() {
    let quarantine = command().find_subcommand("quarantine").unwrap().clone();
    let real: BTreeSet<String> = quarantine.get_subcommands().map(|part| part.get_name().to_owned()).collect();
    let cells = commands().into_iter().flat_map(|row| spans(&row[0])).collect::<Vec<_>>();
    let parts = cells.iter().find_map(|span| span.strip_prefix("quarantine ")).unwrap();
    same("parts of quarantine", &parts.split('|').map(str::to_owned).collect(), &real);
}

#[test]
fn every_line_to_paste_is_one_that_the_program_takes() {
    let mut taken = 0;
    for name in DOCUMENTS.iter().map(|name| (*name).to_owned()).chain(pages()) {
        for line in lines_to_paste(&text(&name)) {
            // Help that is asked for is an error to the parser, and none to whoever asks.
            let refused = command().try_get_matches_from(&line).err().filter(clap::Error::use_stderr);
            assert!(refused.is_none(), "{name}: {}: {}", line.join(" "), refused.unwrap());
            taken += 1;
        }
    }
    assert!(taken >= 60, "only {taken} lines were found");
}

/// Calls of the program in blocks and in spans, as words, without what the shell does with them.
fn lines_to_paste(document: &str) -> Vec<Vec<String>> {
    let mut lines: Vec<String> =
        blocks(document, "sh").iter().flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.extend(spans(&prose(document)).into_iter().filter(|span| span.starts_with("feedmirror ")));
    lines.iter().filter_map(|line| call(line)).collect()
}

/// `while feedmirror changes … | jq` → `feedmirror changes …`; a variable stands for a number.
fn call(line: &str) -> Option<Vec<String>> {
    let words = shell_words(line);
    let ours = |word: &str| word == "feedmirror" || word.ends_with("/feedmirror");
    let from = match words.iter().position(|word| word == "--") {
        Some(at) if line.starts_with("cargo run") => at,
        _ => {
            words.iter().position(|word| ours(word)).filter(|at| words[..*at].iter().all(|before| is_prefix(before)))?
        }
    };
    let end = |word: &&String| !["|", "||", "&&", "&", ">", ">>", "<", ";", "#", "\\"].contains(&word.as_str());
    let value = |word: &String| if word.starts_with('$') { "0".to_owned() } else { word.clone() };
    let rest = words[from + 1..].iter().take_while(end).map(value);
    let call: Vec<String> = ["feedmirror".to_owned()].into_iter().chain(rest).collect();
    Some(call)
}

/// What may stand before a call: settings of its environment, another user, a loop.
fn is_prefix(word: &str) -> bool {
    ["sudo", "-u", "feedmirror", "while", "$("].contains(&word) || word.contains('=')
}

/// Words as a shell cuts them: quotes hold together, a `#` begins a comment, operators are words.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for sign in line.chars() {
        match (quote, sign) {
            (Some(open), sign) if sign == open => quote = None,
            (None, '\'' | '"') => quote = Some(sign),
            (None, sign) if sign.is_whitespace() => {
                words.extend(Some(std::mem::take(&mut word)).filter(|w| !w.is_empty()))
            }
            (_, sign) => word.push(sign),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

#[test]
fn calls_are_cut_out_of_their_lines() {
    let cut = |line: &str| call(line).map(|words| words.join(" "));
    assert_eq!(cut("cargo run --release -- demo   # a demo").unwrap(), "feedmirror demo");
    assert_eq!(cut("feedmirror changes --since 5 | jq .").unwrap(), "feedmirror changes --since 5");
    assert_eq!(cut("sudo -u feedmirror feedmirror check"), cut("feedmirror feedmirror check"));
    assert_eq!(cut("sqlite3 mirror.db"), None);
    assert!(command().try_get_matches_from(["feedmirror", "checks"]).is_err());
}

/// Each exit code with the documents' words for it. A new one doesn't compile until it has some.
fn exits() -> [(Exit, &'static str); 6] {
    let words = |exit| match exit {
        Exit::Done => "done",
        Exit::Failed => "failed",
        Exit::Usage => "usage or configuration",
        Exit::NotLevel => "some feeds did not get level",
        Exit::DatabaseUnusable => "the database is unusable",
        Exit::DatabaseInUse => "another daemon holds the database",
    };
    [Exit::Done, Exit::Failed, Exit::Usage, Exit::NotLevel, Exit::DatabaseUnusable, Exit::DatabaseInUse]
        .map(|exit| (exit, words(exit)))
}

#[test]
fn the_exit_codes_are_those_of_the_program() {
    let expected: Vec<String> = exits().iter().map(|(exit, words)| format!("{} {words}", exit.code())).collect();
    let expected = format!("Exit codes: {}.", expected.join(" · "));
    let folded = text("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(folded.contains(&expected), "README must say: {expected}");
    let explained = table(&text("docs/reference/exit-codes.md"), "code")
        .iter()
        .map(|row| format!("{} {}", row[0], row[1]))
        .collect();
    let real = exits().iter().map(|(exit, words)| format!("{} {words}", exit.code())).collect();
    same("exit codes", &explained, &real);
}

#[test]
fn the_installation_names_files_that_exist_and_places_that_the_unit_uses() {
    let block =
        blocks(&text("docs/installing.md"), "sh").into_iter().find(|block| block.contains("systemd-sysusers")).unwrap();
    let unit = text("systemd/feedmirror.service");
    let mut installed = 0;
    for line in block.lines().filter(|line| line.starts_with("sudo install -m")) {
        let words: Vec<&str> = line.split(" #").next().unwrap().split_whitespace().collect();
        let [.., from, to] = words[..] else { panic!("{line}") };
        match from.strip_prefix("target/release/") {
            Some(binary) => assert_eq!(binary, env!("CARGO_PKG_NAME"), "{line}"),
            None => assert!(root().join(from).is_file(), "there is no {from}"),
        }
        let used = unit.contains(to) || to.ends_with(".conf") || to.ends_with(".service");
        assert!(used, "the unit doesn't use {to}");
        installed += 1;
    }
    assert_eq!(installed, 4, "the binary, the user, the unit and the configuration");
}
