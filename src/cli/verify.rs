//! `verify`: whether the database is intact, and whether the invariants between its rows hold.

use std::io::{self, Write};

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, stdout};
use crate::output;
use crate::store::read::VerifyReport;

/// Arguments of `verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Leave out comparing indexes with their tables, and looking at items one by one
    #[arg(long)]
    quick: bool,
    /// Compare a feed with a fresh read of its source in place of checking the file; nothing is written
    #[arg(long, value_name = "FEED", conflicts_with = "quick")]
    against_source: Option<String>,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Checks the database and prints what is wrong; exit code 1 if anything is.
///
/// # Errors
/// When the database is not a mirror, or too damaged to be checked.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    if let Some(feed) = &args.against_source {
        return super::compare::run(globals, &args.database_path, feed, args.json);
    }
    let report = args.database_path.open(globals)?.verify(args.quick)?;
    let mut out = stdout(args.json);
    if args.json {
        output::write_json_line(&mut out, &report)?;
    } else {
        print_verify_report(&mut out, &report, args.quick)?;
    }
    Ok(if report.is_sound() { Exit::Done } else { Exit::Failed })
}

fn print_verify_report(out: &mut impl Write, report: &VerifyReport, quick: bool) -> io::Result<()> {
    for found in &report.violations {
        writeln!(out, "{}: {}, such as {}", found.check, found.count, found.sample)?;
    }
    let looked_at = if quick { "quickly checked".to_owned() } else { format!("{} item rows looked at", report.rows) };
    let verdict = if report.is_sound() { "sound" } else { "not sound" };
    writeln!(out, "{verdict}; {looked_at}, {:.1} s", report.pinned_s)
}
