//! `snapshot`: a consistent, checked copy of the database, with a manifest beside it.

use std::io::{self, Write};
use std::path::PathBuf;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, stdout};
use crate::output;
use crate::store::snapshot::{Snapshot, default_directory, take};

/// Arguments of `snapshot`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The directory it goes to; by default `snapshots` beside the database
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Remove all but the newest N there, once the new one stands; by default none is removed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Print the manifest as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Takes a snapshot and prints where it is.
///
/// # Errors
/// When the database is not a mirror, the disk can't hold the copy, or the copy is not sound.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let database = args.database_path.path(globals)?;
    let directory = args.to.unwrap_or_else(|| default_directory(&database));
    let keep = args.keep.map(|keep| usize::try_from(keep).unwrap_or(usize::MAX));
    let snapshot = take(&database, &directory, keep)?;
    let mut out = stdout(args.json);
    if args.json {
        output::write_json_line(&mut out, &snapshot)?;
    } else {
        print_snapshot(&mut out, &snapshot)?;
    }
    Ok(Exit::Done)
}

fn print_snapshot(out: &mut impl Write, snapshot: &Snapshot) -> io::Result<()> {
    let Snapshot { path, manifest, pruned, .. } = snapshot;
    writeln!(
        out,
        "{}: {} items and {} tombstones of {} feeds, {} bytes, checked",
        path.display(),
        manifest.items,
        manifest.tombstones,
        manifest.feeds.len(),
        manifest.bytes
    )?;
    pruned.iter().try_for_each(|old| writeln!(out, "{}: removed", old.display()))
}
