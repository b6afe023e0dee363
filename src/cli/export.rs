//! `export`: items as NDJSON, JSON, CSV or GeoJSON, to standard output or to a file that appears only once it is
//! complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, into_anyhow};
use crate::output::export::{ExportFormat, ExportRequest, ExportSummary, export};
use crate::store::read::{FeedKindFilter, Reader};
use crate::terminal::SanitisingWriter;

const BUFFER_BYTES: usize = 256 << 10;

/// Arguments of `export`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Items of this feed; may be repeated
    #[arg(long, value_name = "FEED")]
    feed: Vec<String>,
    /// Items of this kind; may be repeated
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only what changed after this change number
    #[arg(long, value_name = "SEQ", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    since: i64,
    /// Tombstones too
    #[arg(long)]
    deleted: bool,
    /// How items are written
    #[arg(long, value_enum, default_value_t)]
    format: ExportFormat,
    /// CSV: leave cells as they are that a spreadsheet would take for formulas
    #[arg(long)]
    raw_cells: bool,
    /// Write to this file; it appears once it is whole
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Writes the items.
///
/// # Errors
/// When the database can't be read, has no such feed, or the output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let reader = args.database_path.open(globals)?;
    let filter = FeedKindFilter { feeds: args.feed, kinds: args.kind };
    let request = ExportRequest {
        filter,
        since: args.since,
        deleted: args.deleted,
        format: args.format,
        raw_cells: args.raw_cells,
    };
    let Some(path) = args.output else {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, stdout(args.format));
        export(&reader, &request, &mut out).map_err(into_anyhow)?;
        out.flush()?;
        return Ok(Exit::Done);
    };
    let summary = to_file(&reader, &request, &path)?;
    if !globals.quiet {
        print_export_summary(&path, &summary);
    }
    Ok(Exit::Done)
}

/// Standard output for a format; CSV is neither text nor JSON.
fn stdout(format: ExportFormat) -> SanitisingWriter<io::StdoutLock<'static>> {
    let (out, terminal) = (io::stdout().lock(), io::stdout().is_terminal());
    if format == ExportFormat::Csv {
        SanitisingWriter::bytes(out, terminal)
    } else {
        SanitisingWriter::json(out, terminal)
    }
}

/// Writes a temporary file beside the path and renames it, so that an incomplete file is never seen under its name.
fn to_file(reader: &Reader, request: &ExportRequest, path: &Path) -> anyhow::Result<ExportSummary> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        // A pipe or a device is written to directly: renaming would replace it with a file.
        let file = File::options().write(true).open(path);
        return write_items(reader, request, file.with_context(|| format!("cannot write {}", path.display()))?);
    }
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let mut name_with_dot = OsString::from(".");
    name_with_dot.push(name);
    name_with_dot.push(format!(".{}.part", std::process::id()));
    let temporary = path.with_file_name(name_with_dot);
    let file = File::create(&temporary).with_context(|| format!("cannot write beside {}", path.display()))?;
    let result = write_items(reader, request, file).and_then(|summary| {
        fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(summary)
    });
    if result.is_err() {
        // The write's error is returned; that the temporary file can't be removed either would add nothing.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_items(reader: &Reader, request: &ExportRequest, file: File) -> anyhow::Result<ExportSummary> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let summary = export(reader, request, &mut out).map_err(into_anyhow)?;
    out.flush()?;
    let file = out.get_ref();
    if file.metadata()?.is_file() {
        file.sync_all()?;
    }
    Ok(summary)
}

#[expect(clippy::print_stderr, reason = "the position where the export ends is no result, and worth knowing")]
fn print_export_summary(path: &Path, ExportSummary { items, mirror }: &ExportSummary) {
    let items = format!("{items} item{}", if *items == 1 { "" } else { "s" });
    eprintln!("feedmirror: {items} to {}, as of position {}:{}", path.display(), mirror.epoch, mirror.seq);
}
