//! `ack`: silences feeds' alerts for a while, without pausing them.

use jiff::Timestamp;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, UsageError, control};
use crate::supervisor::ack::{self, Ack};
use crate::supervisor::control::Order;

/// Arguments of `ack`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    /// Until when: a time like 2026-12-01T09:00:00Z, or a duration from now like 12h or 7d
    #[arg(long, value_name = "TIME|DURATION", default_value = ack::DEFAULT, allow_hyphen_values = true)]
    until: String,
    /// Why, or who takes care of it
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Let alerts come again
    #[arg(long, conflicts_with_all = ["until", "note"])]
    clear: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Silences feeds' alerts, or lets them come again.
///
/// # Errors
/// When the time can't be read or lies in the past, and as [`control::pause`].
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let order = match args.clear {
        true => Order::Ack(None),
        false => Order::Ack(Some(Ack::parse(Some(&args.until), args.note, Timestamp::now()).map_err(UsageError)?)),
    };
    control::send_orders(globals, &args.database_path, &args.feeds, &order)
}
