//! Links between the documents, and the names of settings in the environment that our own tools use.

use std::fs;
use std::path::{Path, PathBuf};

use crate::document::{prose, root};

/// Every document of the project, wherever it lies.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&root(), &|path| path.extension().is_some_and(|extension| extension == "md"), &mut found);
    found
}

fn collect(folder: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap_or_default().to_owned();
        match path.is_dir() {
            true if name == "target" || (name.starts_with('.') && name != ".ci") => {}
            true => collect(&path, wanted, found),
            false if wanted(&path) => found.push(path),
            false => {}
        }
    }
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|sign| sign.is_alphanumeric() || " -_".contains(*sign));
    kept.map(|sign| if sign == ' ' { '-' } else { sign }).collect()
}

fn targets(text: &str) -> Vec<String> {
    prose(text).split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

#[test]
fn relative_links_lead_somewhere() {
    let mut followed = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in targets(&text).iter().filter(|target| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(path.exists(), "{}: {target} leads nowhere", document.display());
            // As a book the pages stand alone.
            let (docs, there) = (root().join("docs"), path.canonicalize().unwrap());
            let leaves = document.starts_with(&docs) && !there.starts_with(docs.canonicalize().unwrap());
            assert!(!leaves, "{}: {target} leads out of docs/", document.display());
            if !heading.is_empty() {
                let there = fs::read_to_string(&path).unwrap();
                let found = there.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == heading);
                assert!(found, "{}: {} has no heading #{heading}", document.display(), path.display());
            }
            followed += 1;
        }
    }
    assert!(followed > 60, "only {followed} links were found");
}

#[test]
fn anchors_are_made_of_headings() {
    assert_eq!(anchor("### Under systemd"), "under-systemd");
    assert_eq!(anchor("## Why not …"), "why-not-");
}

/// Every variable that begins so is a setting, and one that is none is refused: `run` would not start under our tools.
#[test]
fn our_own_tools_use_no_variable_that_the_program_takes_for_a_setting() {
    let mut files = Vec::new();
    let ours = |path: &Path| {
        let path = path.strip_prefix(root()).unwrap();
        path == Path::new("test") || ["tests", "benches", ".ci"].iter().any(|folder| path.starts_with(folder))
    };
    let text = |path: &Path| path.extension().is_none_or(|extension| extension == "rs" || extension == "toml");
    collect(&root(), &|path| ours(path) && text(path), &mut files);
    assert!(files.len() > 20);
    let prefix = ["FEED", "MIRROR_"].concat();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for rest in text.split(&prefix).skip(1) {
            let name: String = rest.chars().take_while(|sign| sign.is_ascii_uppercase() || *sign == '_').collect();
            let setting = ["", "DB", "CONFIG", "DATABASE"].contains(&name.as_str()) || name.contains("__");
            assert!(setting, "{}: {prefix}{name} looks like a setting and is none", file.display());
        }
    }
}
