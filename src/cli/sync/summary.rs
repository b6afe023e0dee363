//! The summary: one line per feed, as a table for people or as JSON for programs.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use super::FeedSync;
use crate::supervisor::sync::SyncOutcome;

/// The result of one feed's sync.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FeedSummary {
    pub(super) feed: String,
    /// `level`, `paused`, `given-up` or `stopped`.
    pub(super) result: &'static str,
    /// Live items in the mirror.
    pub(super) items: i64,
    /// Tombstones in the mirror.
    pub(super) tombstones: i64,
    /// Records read now.
    pub(super) read: u64,
    /// Items written now.
    pub(super) written: u64,
    /// Records quarantined now.
    pub(super) quarantined: u64,
    pub(super) pages: u64,
    /// Bytes over the wire.
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    pub(super) items_per_second: f64,
    /// Why the feed is not level.
    pub(super) trouble: Option<String>,
    /// What needs attention although the feed is level.
    pub(super) remark: Option<String>,
}

impl FeedSummary {
    pub(super) fn new(feed_sync: &FeedSync, outcome: SyncOutcome) -> Self {
        let counts = &feed_sync.counts;
        let seconds = feed_sync.began.elapsed().as_secs_f64();
        let read = counts.records.load(Ordering::Relaxed);
        let (result, trouble) = match outcome {
            SyncOutcome::Level => ("level", None),
            SyncOutcome::Paused => ("paused", Some("paused by the operator".to_owned())),
            SyncOutcome::GivenUp(reason) => ("given-up", Some(reason)),
            SyncOutcome::Stopped => ("stopped", Some("interrupted; the next run goes on from here".to_owned())),
        };
        Self {
            feed: feed_sync.name.clone(),
            result,
            items: 0,
            tombstones: 0,
            read,
            written: counts.written.load(Ordering::Relaxed),
            quarantined: counts.quarantined.load(Ordering::Relaxed),
            pages: counts.pages.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            seconds,
            items_per_second: read as f64 / seconds.max(0.001),
            trouble,
            remark: None,
        }
    }

    /// Whether the feed is level, or paused by the operator.
    pub(super) fn is_well(&self) -> bool {
        matches!(self.result, "level" | "paused")
    }
}

pub(super) fn print(
    out: &mut impl Write,
    rows: &[FeedSummary],
    took: Duration,
    json: bool,
    database: &Path,
) -> io::Result<()> {
    if json {
        for row in rows {
            serde_json::to_writer(&mut *out, row)?;
            writeln!(out)?;
        }
        return Ok(());
    }
    writeln!(out, "{}", table(rows))?;
    for row in rows {
        if let Some(trouble) = &row.trouble {
            writeln!(out, "{}: {}: {trouble}", row.feed, row.result)?;
        }
        if row.quarantined > 0 {
            let records = pluralise(row.quarantined, "record");
            writeln!(out, "{}: {records} quarantined: feedmirror quarantine list {}", row.feed, row.feed)?;
        }
        if let Some(remark) = &row.remark {
            writeln!(out, "{}: {remark}", row.feed)?;
        }
    }
    writeln!(out, "{}", closing(rows, took, database))
}

fn table(rows: &[FeedSummary]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["feed", "result", "items", "tombstones", "read", "pages", "bytes", "seconds", "items/s"]);
    for row in rows {
        table.add_row([
            row.feed.clone(),
            row.result.to_owned(),
            HumanCount(row.items.unsigned_abs()).to_string(),
            HumanCount(row.tombstones.unsigned_abs()).to_string(),
            HumanCount(row.read).to_string(),
            HumanCount(row.pages).to_string(),
            HumanBytes(row.bytes).to_string(),
            format!("{:.1}", row.seconds),
            HumanCount(row.items_per_second as u64).to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn pluralise(count: u64, what: &str) -> String {
    format!("{} {what}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

fn closing(rows: &[FeedSummary], took: Duration, database: &Path) -> String {
    let level = rows.iter().filter(|row| row.result == "level").count();
    let read: u64 = rows.iter().map(|row| row.read).sum();
    let a_second = read as f64 / took.as_secs_f64().max(0.001);
    format!(
        "{level} of {} level in {:.1} s: {}, {}/s; {}",
        pluralise(rows.len() as u64, "feed"),
        took.as_secs_f64(),
        pluralise(read, "record"),
        HumanCount(a_second as u64),
        database.display()
    )
}
