//! `--add`: writes a file for each dataset, complete or not at all, and never over a file that somebody edited.

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

/// What was done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum FileOutcome {
    Written,
    Updated,
    Unchanged,
    /// Left as it is, because somebody has edited it.
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

/// Writes the files, prints what was done with each, and says what to do next.
pub(super) fn run(
    globals: &GlobalArgs,
    current: &CurrentConfig,
    named: &[NamedDataset],
    changes: &[ListingChange],
    from: &Url,
    prune: bool,
    json: bool,
) -> anyhow::Result<()> {
    let folder = current.folder.as_deref().context("no folder was named")?;
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let mut rows = Vec::new();
    for named in named {
        rows.push(write_dataset(current, folder, named, from, prune)?);
    }
    print(&rows, json)?;
    print_changes(&rows, changes, prune);
    if rows.iter().any(|row| matches!(row.result, FileOutcome::Written | FileOutcome::Updated)) {
        print_next_step(globals, current, folder)?;
    }
    Ok(())
}

fn write_dataset(
    current: &CurrentConfig,
    folder: &Path,
    named: &NamedDataset,
    from: &Url,
    prune: bool,
) -> anyhow::Result<FileRow> {
    let own = current.files.get(&named.provider);
    let unlisted = own.filter(|_| !prune).map(|own| unlisted_feeds(named, &own.feeds)).unwrap_or_default();
    // The file keeps the URL from which the dataset was first found.
    let first_from = own.map(|own| own.site.from.as_str()).filter(|first_from| !first_from.is_empty());
    let text = render_file(named, &unlisted, first_from.unwrap_or(from.as_str()));
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
        feeds: named.names.len() + unlisted.len(),
        dataset_url: named.dataset.url.clone(),
    })
}

/// Writes a temporary file beside the path and renames it; a new file never replaces one that appeared meanwhile.
fn write(path: &Path, text: &str, new: bool) -> io::Result<()> {
    let temporary = temporary_path(path);
    let result = File::create(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if new && path.try_exists()? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "somebody else has just made it"));
        }
        fs::rename(&temporary, path)
    });
    if result.is_err() {
        // The write's error is returned; that the temporary file can't be removed either would add nothing.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// A name that `*.toml` doesn't match.
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

/// Prints what the files don't say: which feeds moved or vanished, and what an edited file lacks.
fn print_changes(rows: &[FileRow], changes: &[ListingChange], prune: bool) {
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

fn print_next_step(globals: &GlobalArgs, current: &CurrentConfig, folder: &Path) -> anyhow::Result<()> {
    let Some(main) = &current.main else {
        print_note(&format!("include = [\"{}/*.toml\"] in a configuration makes feeds of them", folder.display()));
        return Ok(());
    };
    let config = config::load(globals.config.as_deref(), &Overrides::default())
        .with_context(|| format!("with these files {} is refused", main.display()))?;
    let is_in_folder = |file: &PathBuf| file.parent().is_some_and(|parent| is_same_path(parent, folder));
    if !config.files.iter().any(is_in_folder) {
        print_note(&format!("{} includes none of {}: add it to include", main.display(), folder.display()));
        return Ok(());
    }
    print_note("check it by feedmirror check; a running daemon takes it by systemctl reload feedmirror (or kill -HUP)");
    Ok(())
}

fn is_same_path(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
