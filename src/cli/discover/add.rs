//! `--add`: a file for each dataset, written whole or not at all, and never over anybody's work.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use url::Url;

use super::configured::Configured;
use super::{in_words, tell};
use crate::cli::{Globals, lines, stdout};
use crate::config::{self, Overrides};
use crate::discover::changes::{Change, What, gone};
use crate::discover::file::text;
use crate::discover::names::Named;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Became {
    Written,
    Updated,
    Unchanged,
    /// Left as it is, since somebody has edited it.
    Edited,
}

/// A file as `--json` prints it.
#[derive(Serialize)]
struct Row {
    file: String,
    result: Became,
    provider: String,
    feeds: usize,
    dataset_url: String,
}

/// Writes the files, prints what became of each, and tells what to do next.
pub(super) fn run(
    globals: &Globals,
    configured: &Configured,
    named: &[Named],
    changes: &[Change],
    from: &Url,
    prune: bool,
    json: bool,
) -> anyhow::Result<()> {
    let folder = configured.folder.as_deref().context("no folder was named")?;
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let mut rows = Vec::new();
    for named in named {
        rows.push(one(configured, folder, named, from, prune)?);
    }
    print(&rows, json)?;
    report(&rows, changes, prune);
    if rows.iter().any(|row| matches!(row.result, Became::Written | Became::Updated)) {
        next(globals, configured, folder)?;
    }
    Ok(())
}

fn one(configured: &Configured, folder: &Path, named: &Named, from: &Url, prune: bool) -> anyhow::Result<Row> {
    let own = configured.files.get(&named.provider);
    let left = own.filter(|_| !prune).map(|own| gone(named, &own.feeds)).unwrap_or_default();
    // Where it was found first is where it is looked for again.
    let first = own.map(|own| own.site.from.as_str()).filter(|first| !first.is_empty());
    let text = text(named, &left, first.unwrap_or(from.as_str()));
    let path = own.map_or_else(|| folder.join(format!("{}.toml", named.provider)), |own| own.path.clone());
    let result = match own {
        Some(own) if own.is_edited() => Became::Edited,
        Some(own) if own.text == text => Became::Unchanged,
        Some(_) => Became::Updated,
        None => Became::Written,
    };
    if matches!(result, Became::Written | Became::Updated) {
        write(&path, &text, result == Became::Written)
            .with_context(|| format!("{} can't be written", path.display()))?;
    }
    Ok(Row {
        file: path.display().to_string(),
        result,
        provider: named.provider.clone(),
        feeds: named.names.len() + left.len(),
        dataset_url: named.dataset.url.clone(),
    })
}

/// Beside its place first, then there; a new one not in place of one that appeared meanwhile.
fn write(path: &Path, text: &str, new: bool) -> io::Result<()> {
    let part = part(path);
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if new && path.try_exists()? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "somebody else has just made it"));
        }
        fs::rename(&part, path)
    });
    if written.is_err() {
        // What failed is told; that the remains can't be removed either would say no more.
        let _ = fs::remove_file(&part);
    }
    written
}

/// Not matched by `*.toml`.
fn part(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

fn print(rows: &[Row], json: bool) -> io::Result<()> {
    let mut out = stdout(json);
    if json {
        return lines(&mut out, rows);
    }
    for Row { file, result, feeds, dataset_url, .. } in rows {
        let word = match result {
            Became::Written => "written",
            Became::Updated => "updated",
            Became::Unchanged => "unchanged",
            Became::Edited => "edited by hand, left as it is",
        };
        writeln!(out, "{file}: {word}: {} of {dataset_url}", super::counted(*feeds, "feed"))?;
    }
    out.flush()
}

/// What the files don't say: what moved or vanished, and what an edited file misses.
fn report(rows: &[Row], changes: &[Change], prune: bool) {
    for change in changes {
        let edited = rows.iter().any(|row| row.dataset_url == change.dataset_url && row.result == Became::Edited);
        let note = match change.change {
            _ if edited => "; its file was edited by hand: change it there",
            What::Appeared => continue,
            What::Moved => "; it will be read anew, and its rows stay",
            What::Vanished if prune => "; its rows stay until purge",
            What::Vanished => "; it stays configured: --prune takes it out of a file of discover's",
            What::SiteVanished => "; its file stays: remove it if you like",
        };
        tell(&format!("{}{note}", in_words(change)));
    }
}

fn next(globals: &Globals, configured: &Configured, folder: &Path) -> anyhow::Result<()> {
    let Some(main) = &configured.main else {
        tell(&format!("include = [\"{}/*.toml\"] in a configuration makes feeds of them", folder.display()));
        return Ok(());
    };
    let config = config::load(globals.config.as_deref(), &Overrides::default())
        .with_context(|| format!("with these files {} is refused", main.display()))?;
    let within = |file: &PathBuf| file.parent().is_some_and(|parent| same(parent, folder));
    if !config.files.iter().any(within) {
        tell(&format!("{} includes none of {}: add it to include", main.display(), folder.display()));
        return Ok(());
    }
    tell("check it by feedmirror check; a running daemon takes it by systemctl reload feedmirror (or kill -HUP)");
    Ok(())
}

fn same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
