//! `forget`: removes an item for good, for erasure requests, and names the snapshots that still hold it.
//!
//! The item's id is on the command line only: nothing that this verb writes contains it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, control, stdout};
use crate::store::read::Reader;
use crate::supervisor::control::ItemSelector;

/// Arguments of `forget`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The feed's name
    feed: String,
    /// The item's id; one that begins with a hyphen follows --
    #[arg(allow_negative_numbers = true)]
    id: String,
    /// Of this kind alone; by default of any
    #[arg(long, value_name = "KIND", allow_negative_numbers = true)]
    kind: Option<String>,
    /// Let a forgotten item be taken again
    #[arg(long)]
    undo: bool,
    /// Where the copies lie that are searched for it [default: snapshots, beside the database]
    #[arg(long, value_name = "DIR")]
    snapshots: Option<PathBuf>,
    /// Don't ask first; without a terminal nothing is asked
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Forgets the item, and names the snapshots that still hold it.
///
/// # Errors
/// When there is no such feed, the daemon can't be reached, or a snapshot can't be read.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let item = ItemSelector { kind: args.kind, id: args.id };
    if args.undo {
        return control::forget(globals, &args.database_path, args.feed, item, true);
    }
    if !args.yes && !control::confirm(&format!("remove this item of {} for good", args.feed))? {
        bail!("nothing was removed");
    }
    let database = args.database_path.path(globals)?;
    let exit = control::forget(globals, &args.database_path, args.feed.clone(), item.clone(), false)?;
    let folder = match args.snapshots {
        Some(folder) => folder,
        None => database.with_file_name("snapshots"),
    };
    search(&folder, &args.feed, &item)?;
    Ok(exit)
}

/// Names each snapshot that holds the item, and each that can't be read.
fn search(folder: &Path, feed: &str, item: &ItemSelector) -> anyhow::Result<()> {
    let mut out = stdout(false);
    let snapshots = snapshot_files(folder)?;
    let mut holding = 0;
    for snapshot in &snapshots {
        let holds =
            Reader::open_copy(snapshot).and_then(|reader| reader.contains_item(feed, item.kind.as_deref(), &item.id));
        match holds {
            Ok(false) => {}
            Ok(true) => {
                holding += 1;
                writeln!(out, "{} still holds it", snapshot.display())?;
            }
            Err(error) => {
                holding += 1;
                writeln!(out, "{} can't be searched: {error}", snapshot.display())?;
            }
        }
    }
    match (snapshots.len(), holding) {
        (0, _) => writeln!(out, "no snapshots in {}", folder.display())?,
        (count, 0) => writeln!(out, "none of the {count} snapshots in {} holds it", folder.display())?,
        (count, holding) => {
            writeln!(out, "{holding} of {count} snapshots in {}: remove them, or let them expire", folder.display())?;
        }
    }
    Ok(())
}

fn snapshot_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("the snapshots in {} can't be listed", folder.display());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(unreadable),
    };
    let mut snapshots = Vec::new();
    for entry in entries {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "db") {
            snapshots.push(path);
        }
    }
    snapshots.sort();
    Ok(snapshots)
}
