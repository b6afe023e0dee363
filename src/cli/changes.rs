//! `changes`: the change log as NDJSON, once, or with `--follow` until the reader goes away.

use std::io::Write;
use std::time::{Duration, Instant};

use super::database_path::DatabasePath;
use super::stop_signal::{StopSignal, until_stopped};
use super::{Exit, GlobalArgs, into_anyhow, stdout};
use crate::output::changes::{ChangeSelection, LogPosition, mark, page};
use crate::store::read::{FeedKindFilter, Reader};

/// Changes read at once.
const PAGE_ROWS: usize = 1_000;
/// How often a followed file is checked for changes, without reading a row.
const FOLLOW_CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// How often the position is printed, whether anything changed or not.
const POSITION_INTERVAL: Duration = Duration::from_secs(15);

/// Arguments of `changes`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Changes after this position: a change number, or epoch:number
    #[arg(long, value_name = "POS", default_value = "0")]
    since: LogPosition,
    /// Changes of this feed; may be repeated
    #[arg(long, value_name = "FEED")]
    feed: Vec<String>,
    /// Changes of this kind; may be repeated
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// The items' JSON too
    #[arg(long)]
    data: bool,
    /// At most so many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Go on with what changes from now on, until interrupted
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Prints changes, and after each batch the position from which to go on.
///
/// # Errors
/// For a position of another mirror; when the file can't be read, has no such feed, or standard output can't be
/// written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let reader = args.database_path.open(globals)?;
    let filter = FeedKindFilter { feeds: args.feed, kinds: args.kind };
    let mut log = ChangeLogReader {
        reader,
        selection: ChangeSelection { filter, data: args.data },
        position: args.since,
        remaining: args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        last_written: None,
    };
    if args.follow {
        return until_stopped(move |stop| log.follow(stop));
    }
    log.catch_up()?;
    if log.last_written.as_ref().is_none_or(|(position, _)| *position != log.position) {
        log.write_batch(Vec::new())?;
    }
    Ok(Exit::Done)
}

/// The change log's reader and its position.
struct ChangeLogReader {
    reader: Reader,
    selection: ChangeSelection,
    position: LogPosition,
    /// How many more changes are wanted.
    remaining: Option<usize>,
    /// The position that was printed last, and when.
    last_written: Option<(LogPosition, Instant)>,
}

impl ChangeLogReader {
    /// Prints the changes there are, each page with its position.
    fn catch_up(&mut self) -> anyhow::Result<()> {
        loop {
            let limit = self.remaining.map_or(PAGE_ROWS, |remaining| remaining.min(PAGE_ROWS));
            if limit == 0 {
                return Ok(());
            }
            let mut out = Vec::new();
            let batch = page(&self.reader, &self.position, &self.selection, limit, &mut out).map_err(into_anyhow)?;
            self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(batch.rows));
            self.position = batch.position;
            if batch.rows > 0 {
                self.write_batch(out)?;
            }
            if batch.end {
                return Ok(());
            }
        }
    }

    /// Prints changes as they come.
    fn follow(&mut self, stop: &StopSignal) -> anyhow::Result<Exit> {
        let mut seen = None;
        loop {
            // The version is read before the log: a change committed in between is read twice rather than missed.
            let version = Some(self.reader.data_version()?);
            if version != seen {
                self.catch_up()?;
                seen = version;
            }
            if self.last_written.as_ref().is_none_or(|(_, at)| at.elapsed() >= POSITION_INTERVAL) {
                self.write_batch(Vec::new())?;
            }
            if self.remaining == Some(0) || stop.within(FOLLOW_CHECK_INTERVAL) {
                return Ok(Exit::Done);
            }
            if self.reader.is_replaced() {
                self.reader = Reader::open(self.reader.path())?;
                seen = None;
            }
        }
    }

    /// Writes a batch and the position after it.
    fn write_batch(&mut self, mut batch: Vec<u8>) -> anyhow::Result<()> {
        mark(&mut batch, &self.position)?;
        let mut out = stdout(true);
        out.write_all(&batch)?;
        out.flush()?;
        self.last_written = Some((self.position.clone(), Instant::now()));
        Ok(())
    }
}
