//! Shows a sync's progress on standard error: a line per feed on a terminal, plain lines at intervals elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Interval;

use super::summary::FeedSummary;
use super::{FeedSync, LoadEstimate};
use crate::cli::GlobalArgs;
use crate::output::estimate;
use crate::terminal;
use crate::worker::FeedCounters;

/// Feeds that have a line of their own at once; the others count in the total only.
const MAX_FEED_LINES: usize = 12;
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Whether progress bars are shown: standard error is a terminal.
pub(super) fn is_watched(globals: &GlobalArgs) -> bool {
    !globals.quiet && std::io::stderr().is_terminal()
}

/// Shows progress, or nothing with `--quiet`.
pub(super) struct Progress {
    display: ProgressDisplay,
    tick: Interval,
    began: Instant,
    running: BTreeMap<String, (Arc<FeedCounters>, Option<LoadEstimate>)>,
    feeds: usize,
    level: usize,
    failed: usize,
    done: ProgressTotals,
    /// What all feeds come to together; none once one of them doesn't say.
    expected: Option<LoadEstimate>,
}

enum ProgressDisplay {
    Hidden,
    Lines,
    Bars { multi: MultiProgress, total: ProgressBar, bars: BTreeMap<String, ProgressBar> },
}

#[derive(Clone, Copy, Default)]
struct ProgressTotals {
    records: u64,
    pages: u64,
    bytes: u64,
}

impl ProgressTotals {
    fn of(counts: &FeedCounters) -> Self {
        Self {
            records: counts.records.load(Ordering::Relaxed),
            pages: counts.pages.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self { records: self.records + other.records, pages: self.pages + other.pages, bytes: self.bytes + other.bytes }
    }

    fn text(self, time: Duration) -> String {
        let a_second = self.records as f64 / time.as_secs_f64().max(0.001);
        format!(
            "{} records, {} pages, {}, {}/s",
            HumanCount(self.records),
            HumanCount(self.pages),
            HumanBytes(self.bytes),
            HumanCount(a_second as u64)
        )
    }
}

impl Progress {
    pub(super) fn start(globals: &GlobalArgs, database: &Path) -> Self {
        let display = match (globals.quiet, is_watched(globals)) {
            (true, _) => ProgressDisplay::Hidden,
            (false, false) => ProgressDisplay::Lines,
            (false, true) => {
                let multi = MultiProgress::new();
                let total = multi.add(line());
                total.set_prefix(terminal::sanitise_line(&database.display().to_string()));
                ProgressDisplay::Bars { multi, total, bars: BTreeMap::new() }
            }
        };
        let every = if matches!(display, ProgressDisplay::Bars { .. }) { REDRAW_INTERVAL } else { PLAIN_INTERVAL };
        let tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        Self {
            display,
            tick,
            began: Instant::now(),
            running: BTreeMap::new(),
            feeds: 0,
            level: 0,
            failed: 0,
            done: ProgressTotals::default(),
            expected: Some(LoadEstimate { before: 0, total: 0 }),
        }
    }

    pub(super) fn add(&mut self, feed_sync: &FeedSync) {
        self.feeds += 1;
        self.expected = self.expected.zip(feed_sync.expected).map(|(all, one)| all.plus(one));
        self.running.insert(feed_sync.name.clone(), (Arc::clone(&feed_sync.counts), feed_sync.expected));
    }

    pub(super) fn finish_feed(&mut self, row: &FeedSummary) {
        match row.trouble {
            None => self.level += 1,
            Some(_) => self.failed += 1,
        }
        if let Some((counts, _)) = self.running.remove(&row.feed) {
            self.done = self.done.plus(ProgressTotals::of(&counts));
        }
        let words = match &row.trouble {
            None => format!("{}: {}, {} records in {:.1} s", row.feed, row.result, HumanCount(row.read), row.seconds),
            Some(trouble) => format!("{}: {}: {trouble}", row.feed, row.result),
        };
        match &mut self.display {
            ProgressDisplay::Hidden => {}
            ProgressDisplay::Lines => eprint_line(&words),
            ProgressDisplay::Bars { bars, .. } => {
                if let Some(bar) = bars.remove(&row.feed) {
                    bar.finish_and_clear();
                }
            }
        }
    }

    /// Draws, in its rhythm.
    pub(super) async fn tick(&mut self) {
        self.tick.tick().await;
        let sum = self.running.values().fold(self.done, |sum, (counts, _)| sum.plus(ProgressTotals::of(counts)));
        let failed = if self.failed == 0 { String::new() } else { format!(", {} given up", self.failed) };
        let words = progress_text(sum, self.expected, self.began.elapsed());
        let words = format!("{} of {} feeds level{failed}; {words}", self.level, self.feeds);
        match &mut self.display {
            ProgressDisplay::Hidden => {}
            ProgressDisplay::Lines => {
                eprint_line(&words);
                for (name, (counts, _)) in &self.running {
                    counts.failure_wait().iter().for_each(|wait| eprint_line(&format!("{name}: {}", waiting(wait))));
                }
            }
            ProgressDisplay::Bars { multi, total, bars } => {
                total.set_message(words);
                for (name, (counts, expected)) in &self.running {
                    if !bars.contains_key(name) && bars.len() < MAX_FEED_LINES {
                        let bar = multi.add(line());
                        bar.set_prefix(terminal::sanitise_line(name));
                        bars.insert(name.clone(), bar);
                    }
                    if let Some(bar) = bars.get(name) {
                        let words = progress_text(ProgressTotals::of(counts), *expected, self.began.elapsed());
                        bar.set_message(counts.failure_wait().as_ref().map_or(words, waiting));
                    }
                }
            }
        }
    }

    pub(super) fn finish(self) {
        if let ProgressDisplay::Bars { multi, total, bars } = self.display {
            bars.values().for_each(ProgressBar::finish_and_clear);
            total.finish_and_clear();
            // What can't be cleared stays on the screen, no more.
            let _ = multi.clear();
        }
    }
}

impl LoadEstimate {
    fn plus(self, other: Self) -> Self {
        Self { before: self.before + other.before, total: self.total + other.total }
    }
}

/// A feed's progress, or that of all: how far its first load is, where that is known, and what was read so far.
fn progress_text(sum: ProgressTotals, expected: Option<LoadEstimate>, time: Duration) -> String {
    let text = sum.text(time);
    match expected {
        None => text,
        Some(LoadEstimate { before, total }) => {
            let far = estimate::words(before + sum.records, sum.records, total, time.as_secs_f64());
            format!("{far}; {text}")
        }
    }
}

/// What a feed waits for after a failure.
fn waiting((why, left): &(String, Duration)) -> String {
    format!("asked again in {} s: {}", left.as_secs_f64().ceil(), crate::terminal::sanitise_line(why))
}

fn line() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(REDRAW_INTERVAL);
    bar
}

/// Writes a line; when standard error is closed, nobody can be shown it.
fn eprint_line(words: &str) {
    let _ = writeln!(std::io::stderr(), "{}", terminal::sanitise_line(words));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_load_says_how_far_it_is_where_its_size_is_known() {
        // 100 records in 10 s on top of 500 items, of about 1,000
        let sum = ProgressTotals { records: 100, pages: 2, bytes: 4096 };
        let known = progress_text(sum, Some(LoadEstimate { before: 500, total: 1000 }), Duration::from_secs(10));
        assert_eq!(known, "about 60 %, some 40 s to go; 100 records, 2 pages, 4.00 KiB, 10/s");
        assert_eq!(progress_text(sum, None, Duration::from_secs(10)), "100 records, 2 pages, 4.00 KiB, 10/s");
    }
}
