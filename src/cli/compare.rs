//! Compares a feed in the mirror with a fresh read of its source, from its beginning to its end. Nothing is written.
//!
//! While a daemon runs, both sides change during the comparison: differences are checked again for a while, and what
//! the mirror took in since the walk began is no difference.

use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use super::database_path::DatabasePath;
use super::read_only_walk::{FeedSource, ReadOnlyWalk};
use super::{Exit, GlobalArgs, stdout};
use crate::output::write_json_line;
use crate::store::is_in_use;
use crate::store::read::{Comparison, Difference, Reader, SourceListing};
use crate::terminal;

/// Differences are checked again for this long, while a daemon may still take them in.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// Wait between two such checks.
const RECHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The result of a comparison with the source.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SourceComparison {
    pub feed: String,
    /// Pages read.
    pub pages: u32,
    /// Why the walk's end lacks the standard's sign of an end, so that nothing could be called extra.
    pub unclean: Option<String>,
    /// Whether only the database file was named, so that no secrets were sent.
    pub without_secrets: bool,
    #[serde(flatten)]
    pub found: Comparison,
}

impl SourceComparison {
    /// Whether the mirror holds what its source has, as far as could be checked.
    pub fn is_well(&self) -> bool {
        self.found.differences() == 0 && self.unclean.is_none()
    }
}

/// Compares and prints; exits 1 where anything differs or the walk came to no clean end.
///
/// # Errors
/// As [`against_source`], and when standard output can't be written.
pub fn run(globals: &GlobalArgs, database_path: &DatabasePath, feed: &str, json: bool) -> anyhow::Result<Exit> {
    let comparison = against_source(globals, database_path, feed)?;
    let mut out = BufWriter::new(stdout(json));
    if json {
        write_json_line(&mut out, &comparison)?;
    } else {
        print(&mut out, &comparison)?;
    }
    out.flush()?;
    Ok(if comparison.is_well() { Exit::Done } else { Exit::Failed })
}

/// Reads the feed from its beginning and compares the items with those of the mirror.
///
/// # Errors
/// When the mirror has no such feed, it is not configured, a page can't be fetched, or a file fails.
pub fn against_source(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    feed: &str,
) -> anyhow::Result<SourceComparison> {
    let reader = database_path.open(globals)?;
    let source = FeedSource::of(globals, database_path, &reader, feed)?;
    super::runtime()?.block_on(compare(&source, &reader, feed))
}

async fn compare(source: &FeedSource, reader: &Reader, feed: &str) -> anyhow::Result<SourceComparison> {
    let mut fresh = SourceListing::new(source.settings.modified, reader.mirror()?.seq)?;
    let pages = source.pages()?;
    let mut walk = ReadOnlyWalk::new(source, &pages, None);
    let max_records = record_limit(reader, feed)?;
    let mut records = 0;
    while let Some(part) = walk.next().await.map_err(|reason| anyhow::anyhow!("{feed}: {reason}"))? {
        fresh.add_page(&part.page)?;
        records += part.page.items.len() as u64;
        if records > max_records {
            walk.unclean = Some(format!("endless: given up after {records} records"));
            break;
        }
    }
    let mut found = fresh.compare(reader, feed, walk.unclean.is_none())?;
    let until = Instant::now() + RECHECK_TIMEOUT;
    while found.differences() > 0 && is_in_use(reader.path()) && Instant::now() < until {
        tokio::time::sleep(RECHECK_INTERVAL).await;
        found = fresh.recheck(reader, feed)?;
    }
    let (pages, unclean) = (walk.pages, walk.unclean);
    Ok(SourceComparison { feed: feed.to_owned(), pages, unclean, without_secrets: source.file_only, found })
}

/// A publisher may send new pages for ever: a walk ends after a million records or four times what the mirror has,
/// whichever is more.
fn record_limit(reader: &Reader, feed: &str) -> anyhow::Result<u64> {
    let mirrored: i64 = reader.feeds(&[feed.to_owned()])?.iter().map(|feed| feed.items + feed.tombstones).sum();
    Ok(mirrored.unsigned_abs().saturating_mul(4).max(1_000_000))
}

fn print(out: &mut impl Write, comparison: &SourceComparison) -> io::Result<()> {
    let SourceComparison { feed, pages, unclean, without_secrets, found } = comparison;
    let Comparison { read, same, missing, extra, older, newer, differing } = found;
    writeln!(out, "{feed}: read {read} items on {pages} pages; {same} are the same")?;
    for (words, difference) in [
        ("live at the source and not in the mirror", missing),
        ("live in the mirror and not at the source", extra),
        ("older in the mirror", older),
        ("newer in the mirror", newer),
        ("of the same `modified` and another state or content", differing),
    ] {
        print_difference(out, words, difference)?;
    }
    if let Some(reason) = unclean {
        writeln!(out, "  the walk came to no clean end, so nothing was called extra: {reason}")?;
    }
    if *without_secrets {
        writeln!(out, "  only the file was named: no secrets or settings of the feed were used")?;
    }
    Ok(())
}

fn print_difference(out: &mut impl Write, words: &str, difference: &Difference) -> io::Result<()> {
    if difference.count == 0 {
        return Ok(());
    }
    writeln!(out, "  {} {words}", difference.count)?;
    let side = |side: &Option<(String, &str)>| match side {
        Some((modified, state)) => format!("{modified} {state}"),
        None => "nothing".to_owned(),
    };
    for sample in &difference.samples {
        let text =
            format!("{} {}: mirror {}, source {}", sample.kind, sample.id, side(&sample.mirror), side(&sample.source));
        writeln!(out, "    {}", terminal::sanitise_line(&text))?;
    }
    Ok(())
}
