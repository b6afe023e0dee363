//! `events`: what happened to feeds and to the mirror.

use std::io::{BufWriter, Write};

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, lines, stdout};
use crate::output::listings;

/// Arguments of `events`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// This feed alone
    feed: Option<String>,
    /// The last so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Print rows as JSON, one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Prints events, the newest last.
///
/// # Errors
/// When the file can't be read, has no such feed, or standard output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let rows = args.database_path.open(globals)?.events(args.feed.as_deref(), args.limit)?;
    let mut out = BufWriter::new(stdout(args.json));
    if args.json {
        lines(&mut out, &rows)?;
    } else {
        listings::events(&mut out, &rows)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
