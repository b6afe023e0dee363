//! `events`: what happened to feeds and to the mirror.

use std::io::{BufWriter, Write};

use super::place::Place;
use super::{Exit, Globals, lines, stdout};
use crate::output::journal;

/// What `events` is told.
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
    place: Place,
}

/// Prints them, the newest last.
///
/// # Errors
/// When the file can't be read, has no such feed, or standard output can't be written.
pub fn run(globals: &Globals, args: Args) -> anyhow::Result<Exit> {
    let rows = args.place.open(globals)?.events(args.feed.as_deref(), args.limit)?;
    let mut out = BufWriter::new(stdout(args.json));
    if args.json {
        lines(&mut out, &rows)?;
    } else {
        journal::events(&mut out, &rows)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
