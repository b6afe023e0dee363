//! `quarantine`: lists, shows, retries or drops records that could not be understood.

use std::io::{BufWriter, Write};

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, control, lines, stdout, width};
use crate::output::{self, listings};
use crate::supervisor::control::{QuarantineOrder, QuarantineSelection};

/// Arguments of `quarantine`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: QuarantineAction,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum QuarantineAction {
    /// List the records
    List {
        /// This feed's alone
        feed: Option<String>,
        /// The last so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Print rows as JSON, one a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database_path: DatabasePath,
    },
    /// Show a record whole, as published
    Show {
        /// Its number, from the list
        id: i64,
        /// Print the row as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database_path: DatabasePath,
    },
    /// Read records again: those that can be understood now are applied
    Retry {
        #[command(flatten)]
        selection: RecordArgs,
        #[command(flatten)]
        database_path: DatabasePath,
    },
    /// Remove records
    Drop {
        #[command(flatten)]
        selection: RecordArgs,
        #[command(flatten)]
        database_path: DatabasePath,
    },
}

/// Which records are meant: those that match every option given.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct RecordArgs {
    /// Their numbers, from the list
    #[arg(value_name = "ID", conflicts_with = "all")]
    ids: Vec<i64>,
    /// This feed's
    #[arg(long, value_name = "FEED", conflicts_with = "all")]
    feed: Option<String>,
    /// Those with this reason, a word as in the list
    #[arg(long, value_name = "REASON", conflicts_with = "all")]
    reason: Option<String>,
    /// All there are
    #[arg(long)]
    all: bool,
}

impl RecordArgs {
    fn order(self, globals: &GlobalArgs, database_path: &DatabasePath, order: QuarantineOrder) -> anyhow::Result<Exit> {
        if let ([id], None, None) = (&*self.ids, &self.feed, &self.reason) {
            return control::quarantine(globals, database_path, *id, order == QuarantineOrder::Retry);
        }
        let selection = QuarantineSelection { ids: self.ids, feed: self.feed, reason: self.reason };
        control::quarantine_batch(globals, database_path, &selection, order)
    }
}

/// Lists or shows records, or gives them an order.
///
/// # Errors
/// When the file can't be read, has no such feed or record, the daemon refuses, or standard output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    match args.action {
        QuarantineAction::List { feed, limit, json, database_path } => {
            list(globals, &database_path, feed.as_deref(), limit, json)
        }
        QuarantineAction::Show { id, json, database_path } => show(globals, &database_path, id, json),
        QuarantineAction::Retry { selection, database_path } => {
            selection.order(globals, &database_path, QuarantineOrder::Retry)
        }
        QuarantineAction::Drop { selection, database_path } => {
            selection.order(globals, &database_path, QuarantineOrder::Drop)
        }
    }
}

fn list(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    feed: Option<&str>,
    limit: usize,
    json: bool,
) -> anyhow::Result<Exit> {
    let rows = database_path.open(globals)?.quarantine(feed, limit)?;
    let mut out = BufWriter::new(stdout(json));
    if json {
        lines(&mut out, &rows)?;
    } else {
        listings::quarantine(&mut out, &rows, width())?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn show(globals: &GlobalArgs, database_path: &DatabasePath, id: i64, json: bool) -> anyhow::Result<Exit> {
    let row = database_path.open(globals)?.quarantined(id)?;
    let Some(row) = row else { anyhow::bail!("there is no record {id} in quarantine") };
    let mut out = BufWriter::new(stdout(json));
    if json {
        output::write_json_line(&mut out, &row)?;
    } else {
        listings::record(&mut out, &row)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
