//! Comparing a feed in the mirror with a fresh read of its source, from its beginning to its end. Nothing is written.
//!
//! While a daemon runs, both sides change under the comparison: what differs is looked at again for a while, and what
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

/// What differs is looked at again for this long, while a daemon may still take it in.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// What a comparison with the source came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SourceComparison {
    /// The feed.
    pub feed: String,
    /// Pages read.
    pub pages: u32,
    /// Why the end of the walk was not one by the standard's sign, so that nothing could be called extra.
    pub unclean: Option<String>,
    /// Whether only the file was named, so that no secrets were sent.
    pub without_secrets: bool,
    /// What was found.
    #[serde(flatten)]
    pub found: Comparison,
}

impl SourceComparison {
    /// Whether the mirror holds what its source has, as far as could be seen.
    pub fn is_well(&self) -> bool {
        self.found.differences() == 0 && self.unclean.is_none()
    }
}

/// Compares and prints; exits 1 where anything differs or the walk came to no clean end.
///
/// # Errors
/// As [`against_source`], and when standard output can't be written.
pub fn run(globals: &GlobalArgs, place: &DatabasePath, feed: &str, json: bool) -> anyhow::Result<Exit> {
    let compared = against_source(globals, place, feed)?;
    let mut out = BufWriter::new(stdout(json));
    if json {
        write_json_line(&mut out, &compared)?;
    } else {
        print(&mut out, &compared)?;
    }
    out.flush()?;
    Ok(if compared.is_well() { Exit::Done } else { Exit::Failed })
}

/// Reads the feed from its beginning and compares what came with what the mirror holds.
///
/// # Errors
/// When the mirror has no such feed, it is not configured, a page can't be had, or a file fails.
pub fn against_source(globals: &GlobalArgs, place: &DatabasePath, feed: &str) -> anyhow::Result<SourceComparison> {
    let reader = place.open(globals)?;
    let source = FeedSource::of(globals, place, &reader, feed)?;
    super::runtime()?.block_on(compare(&source, &reader, feed))
}

async fn compare(source: &FeedSource, reader: &Reader, feed: &str) -> anyhow::Result<SourceComparison> {
    let mut fresh = SourceListing::new(source.settings.modified, reader.mirror()?.seq)?;
    let pages = source.pages()?;
    let mut walk = ReadOnlyWalk::new(source, &pages, None);
    let most = most_records(reader, feed)?;
    let mut records = 0;
    while let Some(got) = walk.next().await.map_err(|reason| anyhow::anyhow!("{feed}: {reason}"))? {
        fresh.add_page(&got.page)?;
        records += got.page.items.len() as u64;
        if records > most {
            walk.unclean = Some(format!("endless: given up after {records} records"));
            break;
        }
    }
    let mut found = fresh.compare(reader, feed, walk.unclean.is_none())?;
    let until = Instant::now() + RECHECK_TIMEOUT;
    while found.differences() > 0 && is_in_use(reader.path()) && Instant::now() < until {
        tokio::time::sleep(PAUSE).await;
        found = fresh.recheck(reader, feed)?;
    }
    let (pages, unclean) = (walk.pages, walk.unclean);
    Ok(SourceComparison { feed: feed.to_owned(), pages, unclean, without_secrets: source.by_the_file, found })
}

/// A publisher may send new pages for ever: a walk ends beyond a million records and four times what the mirror has.
fn most_records(reader: &Reader, feed: &str) -> anyhow::Result<u64> {
    let held: i64 = reader.feeds(&[feed.to_owned()])?.iter().map(|feed| feed.items + feed.tombstones).sum();
    Ok(held.unsigned_abs().saturating_mul(4).max(1_000_000))
}

fn print(out: &mut impl Write, compared: &SourceComparison) -> io::Result<()> {
    let SourceComparison { feed, pages, unclean, without_secrets, found } = compared;
    let Comparison { read, same, missing, extra, older, newer, differing } = found;
    writeln!(out, "{feed}: read {read} items on {pages} pages; {same} are the same")?;
    for (words, difference) in [
        ("live at the source and not in the mirror", missing),
        ("live in the mirror and not at the source", extra),
        ("older in the mirror", older),
        ("newer in the mirror", newer),
        ("of the same `modified` and another state or content", differing),
    ] {
        different(out, words, difference)?;
    }
    if let Some(reason) = unclean {
        writeln!(out, "  the walk came to no clean end, so nothing was called extra: {reason}")?;
    }
    if *without_secrets {
        writeln!(out, "  only the file was named: no secrets or settings of the feed were used")?;
    }
    Ok(())
}

fn different(out: &mut impl Write, words: &str, difference: &Difference) -> io::Result<()> {
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
