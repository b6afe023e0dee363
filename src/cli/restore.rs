//! `restore`: puts a snapshot in the database's place, with a new epoch.

use std::io::Write;
use std::path::PathBuf;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, stdout};
use crate::store::restore::restore;

/// Arguments of `restore`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The snapshot, with its manifest beside it
    snapshot: PathBuf,
    /// Don't keep the database that is there now
    #[arg(long)]
    discard_old: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Restores the snapshot, and prints where the previous database is.
///
/// # Errors
/// While a daemon holds the database; when the snapshot is not what its manifest says, or the disk can't hold it.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let report = restore(&args.snapshot, &args.database_path.path(globals)?, args.discard_old)?;
    for note in &report.notes {
        super::print_error(&anyhow::anyhow!("{note}"));
    }
    let mut out = stdout(false);
    let snapshot = &report.snapshot;
    writeln!(out, "{}: restored as of {}, {} items", report.path.display(), snapshot.created_at, snapshot.items)?;
    if let Some(kept) = &report.kept {
        writeln!(out, "{}: the database before it; remove it once all is well", kept.display())?;
    }
    writeln!(out, "epoch {}: those who follow the mirror are told to read everything again", report.epoch)?;
    Ok(Exit::Done)
}
