//! `--add`: a file for each dataset, written whole or not at all, and never over anybody's work.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use url::Url;

use super::current_config::CurrentConfig;
use super::{in_words, print_note};
use crate::cli::{GlobalArgs, lines, stdout};
use crate::config::{self, Overrides};
use crate::discover::changes::{ChangeKind, ListingChange, unlisted_feeds};
use crate::discover::names::NamedDataset;
use crate::discover::provider_file::render_file;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum FileOutcome {
    Written,
    Updated,
    Unchanged,
    /// Left as it is, since somebody has edited it.
    Edited,
}

/// A file as `--json` prints it.
#[derive(Serialize)]
struct FileRow {
    file: String,
    result: FileOutcome,
    provider: String,
    feeds: usize,
    dataset_url: String,
}

/// Writes the files, prints what became of each, and tells what to do next.
pub(super) fn run(
    globals: &GlobalArgs,
    configured: &CurrentConfig,
    named: &[NamedDataset],
    changes: &[ListingChange],
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
    if rows.iter().any(|row| matches!(row.result, FileOutcome::Written | FileOutcome::Updated)) {
        next(globals, configured, folder)?;
    }
    Ok(())
}

fn one(
    configured: &CurrentConfig,
    folder: &Path,
    named: &NamedDataset,
    from: &Url,
    prune: bool,
) -> anyhow::Result<FileRow> {
    let own = configured.files.get(&named.provider);
    let left = own.filter(|_| !prune).map(|own| unlisted_feeds(named, &own.feeds)).unwrap_or_default();
    // Where it was found first is where it is looked for again.
    let first = own.map(|own| own.site.from.as_str()).filter(|first| !first.is_empty());
    let text = render_file(named, &left, first.unwrap_or(from.as_str()));
    let path = own.map_or_else(|| folder.join(format!("{}.toml", named.provider)), |own| own.path.clone());
    let result = match own {
        Some(own) if own.is_edited() => FileOutcome::Edited,
        Some(own) if own.text == text => FileOutcome::Unchanged,
        Some(_) => FileOutcome::Updated,
        None => FileOutcome::Written,
    };
    if matches!(result, FileOutcome::Written | FileOutcome::Updated) {
        write(&path, &text, result == FileOutcome::Written)
            .with_context(|| format!("{} can't be written", path.display()))?;
    }
    Ok(FileRow {
        file: path.display().to_string(),
        result,
        provider: named.provider.clone(),
        feeds: named.names.len() + left.len(),
        dataset_url: named.dataset.url.clone(),
    })
}

/// Beside its place first, then there; a new one not in place of one that appeared meanwhile.
fn write(path: &Path, text: &str, new: bool) -> io::Result<()> {
    let part = temporary_path(path);
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
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

fn print(rows: &[FileRow], json: bool) -> io::Result<()> {
    let mut out = stdout(json);
    if json {
        return lines(&mut out, rows);
    }
    for FileRow { file, result, feeds, dataset_url, .. } in rows {
        let word = match result {
            FileOutcome::Written => "written",
            FileOutcome::Updated => "updated",
            FileOutcome::Unchanged => "unchanged",
            FileOutcome::Edited => "edited by hand, left as it is",
        };
        writeln!(out, "{file}: {word}: {} of {dataset_url}", super::counted(*feeds, "feed"))?;
    }
    out.flush()
}

/// What the files don't say: what moved or vanished, and what an edited file misses.
fn report(rows: &[FileRow], changes: &[ListingChange], prune: bool) {
    for change in changes {
        let edited = rows.iter().any(|row| row.dataset_url == change.dataset_url && row.result == FileOutcome::Edited);
        let note = match change.change {
            _ if edited => "; its file was edited by hand: change it there",
            ChangeKind::Appeared => continue,
            ChangeKind::Moved => "; it will be read anew, and its rows stay",
            ChangeKind::Vanished if prune => "; its rows stay until purge",
            ChangeKind::Vanished => "; it stays configured: --prune takes it out of a file of discover's",
            ChangeKind::SiteVanished => "; its file stays: remove it if you like",
        };
        print_note(&format!("{}{note}", in_words(change)));
    }
}

fn next(globals: &GlobalArgs, configured: &CurrentConfig, folder: &Path) -> anyhow::Result<()> {
    let Some(main) = &configured.main else {
        print_note(&format!("include = [\"{}/*.toml\"] in a configuration makes feeds of them", folder.display()));
        return Ok(());
    };
    let config = config::load(globals.config.as_deref(), &Overrides::default())
        .with_context(|| format!("with these files {} is refused", main.display()))?;
    let within = |file: &PathBuf| file.parent().is_some_and(|parent| same(parent, folder));
    if !config.files.iter().any(within) {
        print_note(&format!("{} includes none of {}: add it to include", main.display(), folder.display()));
        return Ok(());
    }
    print_note("check it by feedmirror check; a running daemon takes it by systemctl reload feedmirror (or kill -HUP)");
    Ok(())
}

fn same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
