//! `status`: each feed's state, from the file alone.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use super::database_path::DatabasePath;
use super::stop_signal::{StopSignal, until_stopped};
use super::{Exit, GlobalArgs, TO_THE_TOP, control, into_anyhow, stdout, width};
use crate::output::{self, sizes, status};
use crate::store::read::Reader;

/// Interval at which `--watch` prints the status again.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Arguments of `status`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// These feeds alone, with each of their endpoints
    #[arg(value_name = "FEED")]
    feeds: Vec<String>,
    /// Show it again every 2 seconds, until interrupted
    #[arg(long)]
    watch: bool,
    /// What each feed and each provider takes in the file, largest first
    #[arg(long)]
    sizes: bool,
    /// Print one JSON object with the rows of mirror and feeds
    #[arg(long)]
    json: bool,
    /// Print nothing; fail unless a running daemon says that it is ready
    #[arg(long, conflicts_with_all = ["feeds", "watch", "json"])]
    ready: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Prints the status, once or repeatedly.
///
/// # Errors
/// When the file can't be read, has no such feed, or standard output can't be written; with `--ready` when no daemon
/// says that it is.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    if args.ready {
        return control::ready(globals, &args.database_path);
    }
    let reader = args.database_path.open(globals)?;
    if args.watch {
        return until_stopped(move |stop| watch(reader, &args, stop));
    }
    show(&reader, &args, &mut BufWriter::new(stdout(args.json)))?;
    Ok(Exit::Done)
}

fn watch(mut reader: Reader, args: &Args, stop: &StopSignal) -> anyhow::Result<Exit> {
    let is_terminal = io::stdout().is_terminal() && !args.json;
    loop {
        let mut text = Vec::new();
        show(&reader, args, &mut text)?;
        if is_terminal {
            io::stdout().write_all(TO_THE_TOP.as_bytes())?;
        }
        let mut out = stdout(args.json);
        out.write_all(&text)?;
        out.flush()?;
        drop(out);
        if stop.within(WATCH_INTERVAL) {
            return Ok(Exit::Done);
        }
        if reader.is_replaced() {
            reader = Reader::open(reader.path())?;
        }
    }
}

fn show(reader: &Reader, args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let status = status::Status::read(reader, &args.feeds)?;
    let written = if args.json {
        output::write_json_line(out, &status)
    } else if args.sizes {
        sizes::table(out, &status, width())
    } else {
        status::table(out, &status, jiff::Timestamp::now(), width())
    };
    written.and_then(|()| out.flush()).map_err(|error| into_anyhow(error.into()))
}
