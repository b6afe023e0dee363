//! `findings`: ways in which publishers depart from the standard.

use std::io::{self, BufWriter, Write};

use super::place::Place;
use super::{Exit, Globals, lines, width};
use crate::output::journal;

/// What `findings` is told.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// This feed alone
    feed: Option<String>,
    /// Print rows as JSON, one a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Prints them, by feed and rule.
///
/// # Errors
/// When the file can't be read, has no such feed, or standard output can't be written.
pub fn run(globals: &Globals, args: Args) -> anyhow::Result<Exit> {
    let rows = args.place.open(globals)?.findings(args.feed.as_deref())?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        lines(&mut out, &rows)?;
    } else {
        journal::findings(&mut out, &rows, width())?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
