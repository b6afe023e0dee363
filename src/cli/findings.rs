//! `findings`: ways in which publishers depart from the standard, as a list or as a report to send to them.

use std::io::{BufWriter, Write};

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, lines, stdout, width};
use crate::output::listings;
use crate::output::report::{self, ReportScope};

/// Arguments of `findings`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// This feed alone
    feed: Option<String>,
    /// Feeds of this provider alone, or of this host where feeds have no provider
    #[arg(long, value_name = "PROVIDER", conflicts_with = "feed")]
    provider: Option<String>,
    /// What to send to each publisher: the rule, where the standard has it, what to do, samples; quarantine too
    #[arg(long)]
    report: bool,
    /// Print rows as JSON, one a line; of a report, a publisher a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Prints findings by feed and rule, or a report by publisher.
///
/// # Errors
/// When the file can't be read, has no such feed or provider, or standard output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let reader = args.database_path.open(globals)?;
    let scope = ReportScope { feed: args.feed, provider: args.provider };
    let mut out = BufWriter::new(stdout(args.json));
    match (args.report, args.json) {
        (true, true) => lines(&mut out, &report::read(&reader, &scope)?)?,
        (true, false) => report::text(&mut out, &report::read(&reader, &scope)?)?,
        (false, true) => lines(&mut out, &report::rows(&reader, &scope)?)?,
        (false, false) => listings::findings(&mut out, &report::rows(&reader, &scope)?, width())?,
    }
    out.flush()?;
    Ok(Exit::Done)
}
