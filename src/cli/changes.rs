//! `changes`: the change log as NDJSON, once or for as long as somebody reads it.

use std::io::Write;
use std::time::{Duration, Instant};

use super::database_path::DatabasePath;
use super::stop_signal::{StopSignal, until_stopped};
use super::{Exit, GlobalArgs, into_anyhow, stdout};
use crate::output::changes::{ChangeSelection, LogPosition, mark, page};
use crate::store::read::{FeedKindFilter, Reader};

/// Changes of one page.
const PAGE_ROWS: usize = 1_000;
/// A followed file is looked at this often, without reading a row.
const LOOK: Duration = Duration::from_millis(200);
/// The position is told this often, whether anything changed or not.
const TELL: Duration = Duration::from_secs(15);

/// What `changes` is told.
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

/// Prints changes, and after each batch the position to come back with.
///
/// # Errors
/// For a position of another mirror; when the file can't be read, has no such feed, or standard output can't be written.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let reader = args.database_path.open(globals)?;
    let filter = FeedKindFilter { feeds: args.feed, kinds: args.kind };
    let mut log = ChangeLogReader {
        reader,
        selection: ChangeSelection { filter, data: args.data },
        position: args.since,
        left: args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        last_written: None,
    };
    if args.follow {
        return until_stopped(move |stop| log.follow(stop));
    }
    log.catch_up()?;
    if log.last_written.as_ref().is_none_or(|(position, _)| *position != log.position) {
        log.tell(Vec::new())?;
    }
    Ok(Exit::Done)
}

/// A reader of the log and how far it has come.
struct ChangeLogReader {
    reader: Reader,
    selection: ChangeSelection,
    position: LogPosition,
    /// Changes still wanted.
    left: Option<usize>,
    /// Which position was told last, and when.
    last_written: Option<(LogPosition, Instant)>,
}

impl ChangeLogReader {
    /// Prints what there is, each page with its position.
    fn catch_up(&mut self) -> anyhow::Result<()> {
        loop {
            let limit = self.left.map_or(PAGE_ROWS, |left| left.min(PAGE_ROWS));
            if limit == 0 {
                return Ok(());
            }
            let mut out = Vec::new();
            let batch = page(&self.reader, &self.position, &self.selection, limit, &mut out).map_err(into_anyhow)?;
            self.left = self.left.map(|left| left.saturating_sub(batch.rows));
            self.position = batch.position;
            if batch.rows > 0 {
                self.tell(out)?;
            }
            if batch.end {
                return Ok(());
            }
        }
    }

    /// Prints what changes as it does.
    fn follow(&mut self, stop: &StopSignal) -> anyhow::Result<Exit> {
        let mut seen = None;
        loop {
            // Looked at before the log is read: what is committed in between is read again rather than missed.
            let version = Some(self.reader.data_version()?);
            if version != seen {
                self.catch_up()?;
                seen = version;
            }
            if self.last_written.as_ref().is_none_or(|(_, at)| at.elapsed() >= TELL) {
                self.tell(Vec::new())?;
            }
            if self.left == Some(0) || stop.within(LOOK) {
                return Ok(Exit::Done);
            }
            if self.reader.is_replaced() {
                self.reader = Reader::open(self.reader.path())?;
                seen = None;
            }
        }
    }

    /// Writes a batch and the position it leads to.
    fn tell(&mut self, mut batch: Vec<u8>) -> anyhow::Result<()> {
        mark(&mut batch, &self.position)?;
        let mut out = stdout(true);
        out.write_all(&batch)?;
        out.flush()?;
        self.last_written = Some((self.position.clone(), Instant::now()));
        Ok(())
    }
}
