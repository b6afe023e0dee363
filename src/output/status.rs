//! The state of each feed: a table for people, and the rows themselves for programs.
//!
//! Feeds that need attention come first. Lag is now minus `level_at`: a feed where nothing happens has no lag. Times
//! are shown as spans from the `now` that is passed in. For feeds named in the request the status also lists the
//! endpoints, each with its state, and the reason for the feed's mode.

mod endpoints;

use std::cmp::Reverse;
use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width};
use jiff::Timestamp;
use serde::Serialize;

use super::estimate;
use super::format::{counted, number, plain, seconds_since, span, tail};
use crate::feed::{Health, PushTrust};
use crate::store::read::{
    EndpointRow, EventRow, FeedRow, FirstLoadRow, MirrorRow, QuarantineOrderRow, Reader, ResyncRow, StoreError,
};

/// A table's width where standard output is no terminal.
pub const WIDTH: u16 = 120;

/// The mirror and its feeds; as JSON, both under the SQL column names.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub mirror: MirrorRow,
    /// The feeds, by name.
    pub feeds: Vec<FeedRow>,
    /// The first loads under way whose end can be estimated.
    #[serde(skip)]
    pub loads: Vec<FirstLoadRow>,
    /// The resyncs under way.
    #[serde(skip)]
    pub resyncs: Vec<ResyncRow>,
    /// The orders to quarantined records that are not carried out yet.
    #[serde(skip)]
    pub orders: Vec<QuarantineOrderRow>,
    /// Details of the feeds that were asked for by name.
    #[serde(skip)]
    pub details: Vec<FeedDetail>,
}

/// A feed's endpoints and the last change of its mode.
#[derive(Clone, Debug)]
pub struct FeedDetail {
    pub feed: String,
    /// Its endpoints, by transport.
    pub endpoints: Vec<EndpointRow>,
    /// The event that last changed the mode, if it is still kept.
    pub mode_change: Option<EventRow>,
}

/// How much a feed needs attention; a health of a later version needs most.
pub(super) fn attention(health: &str, demoted: bool) -> u8 {
    match Health::from_word(health) {
        None | Some(Health::Failed) => 8,
        Some(Health::Suspect) => 7,
        Some(Health::Stuck) => 6,
        Some(Health::Gone) => 5,
        Some(Health::Retrying) => 4,
        Some(Health::Paused) => 3,
        Some(Health::Removed) => 2,
        Some(Health::Ok) => u8::from(demoted),
    }
}

impl FeedDetail {
    fn read(reader: &Reader, feed: &str) -> Result<Self, StoreError> {
        let mode_change = reader.events(Some(feed), usize::MAX)?.into_iter().rev().find(|event| event.what == "mode");
        Ok(Self { feed: feed.to_owned(), endpoints: reader.endpoints(Some(feed))?, mode_change })
    }
}

impl Status {
    /// Reads the status of these feeds, or of all when none is named.
    ///
    /// # Errors
    /// For a feed that is not in the mirror; when the file can't be read.
    pub fn read(reader: &Reader, names: &[String]) -> Result<Self, StoreError> {
        let (mirror, feeds, resyncs) = (reader.mirror()?, reader.feeds(names)?, reader.resyncs()?);
        let named = feeds.iter().filter(|feed| names.contains(&feed.name));
        let details = named.map(|feed| FeedDetail::read(reader, &feed.name)).collect::<Result<_, _>>()?;
        let (loads, mut orders) = (reader.first_loads()?, reader.quarantine_orders()?);
        orders.retain(|order| order.feed.as_ref().is_none_or(|feed| names.is_empty() || names.contains(feed)));
        Ok(Self { mirror, feeds, loads, resyncs, orders, details })
    }

    /// Feeds in the order of the table: those that need attention first, the worst first; then by name.
    pub fn by_attention(&self) -> Vec<&FeedRow> {
        let mut feeds: Vec<&FeedRow> = self.feeds.iter().collect();
        let demoted = |feed: &FeedRow| feed.push == PushTrust::Demoted.as_str();
        feeds.sort_by_key(|feed| (Reverse(attention(&feed.health, demoted(feed))), &feed.name));
        feeds
    }

    /// Live items of the feeds shown, as the view `live_items` counts them: without feeds gone or removed.
    pub fn live_items(&self) -> i64 {
        let live = |feed: &&FeedRow| !matches!(Health::from_word(&feed.health), Some(Health::Gone | Health::Removed));
        self.feeds.iter().filter(live).map(|feed| feed.items).sum()
    }

    /// The feed's reason, with the resync under way, if there is one.
    pub fn reason(&self, feed: &FeedRow) -> Option<String> {
        let resync = self.resyncs.iter().find(|resync| resync.feed == feed.name);
        // The feed's own reason already reports a held sweep.
        let resync = resync.filter(|resync| resync.stage != "held").map(|resync| {
            let trust = if resync.trust_source { ", trusting the source" } else { "" };
            let stage = if resync.stage == "sweep" { "sweeping what is gone" } else { "reading the feed anew" };
            format!("resync: {stage}{trust}, since {}", resync.started_at)
        });
        match (&feed.reason, resync) {
            (Some(reason), Some(resync)) => Some(format!("{reason}; {resync}")),
            (reason, resync) => resync.or_else(|| reason.clone()),
        }
    }

    /// Progress of a feed's first load, where its dataset site states about how many items there are.
    pub fn progress(&self, feed: &FeedRow, now: Timestamp) -> Option<String> {
        let load = self.loads.iter().find(|load| load.feed == feed.name)?;
        let seconds = seconds_since(Some(&load.began_at), now)?;
        let (items, total) = (u64::try_from(feed.items).ok()?, u64::try_from(feed.total_items?).ok()?);
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let words = estimate::words(items, items, total, seconds as f64);
        Some(format!("first load: {words}"))
    }

    /// `3 feeds: 2 ok, 1 retrying; 1,234 live items`.
    pub fn summary(&self) -> String {
        let count = |health: &Health| self.feeds.iter().filter(|feed| feed.health == health.as_str()).count();
        let counts = Health::ALL.iter().map(|health| (health, count(health))).filter(|(_, count)| *count > 0);
        let counts: Vec<String> = counts.map(|(health, count)| format!("{} {health}", number(count as i64))).collect();
        let by_health = if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) };
        let feeds = counted(self.feeds.len() as i64, "feed");
        format!("{feeds}{by_health}; {}", counted(self.live_items(), "live item"))
    }
}

/// Writes the table, the reasons below it, the endpoints of feeds asked for by name, and the summary.
///
/// # Errors
/// When `out` can't be written.
pub fn table(out: &mut impl Write, status: &Status, now: Timestamp, width: u16) -> io::Result<()> {
    let feeds = status.by_attention();
    if !feeds.is_empty() {
        writeln!(out, "{}\n", rows(&feeds, now, width).trim_fmt())?;
    }
    let mut reasons = false;
    for feed in &feeds {
        let parts: Vec<String> = status.progress(feed, now).into_iter().chain(status.reason(feed)).collect();
        if parts.is_empty() {
            continue;
        }
        let reason = parts.join("; ");
        let since = seconds_since(feed.since.as_deref(), now).filter(|_| feed.health != "ok");
        let since = since.map(|seconds| format!(" for {}", span(seconds))).unwrap_or_default();
        let failures = if feed.failures > 1 { format!(", {} in a row", number(feed.failures)) } else { String::new() };
        writeln!(out, "{}: {}{since}{failures}: {}", plain(&feed.name), feed.health, plain(&reason))?;
        reasons = true;
    }
    for feed in &feeds {
        let Some(ahead) = seconds_since(feed.acked_until.as_deref(), now).map(|since| span(-since)) else { continue };
        let note = feed.ack_note.as_deref().map(|note| format!(": {}", plain(note))).unwrap_or_default();
        writeln!(out, "{}: alerts silenced for {ahead} more{note}", plain(&feed.name))?;
        reasons = true;
    }
    for order in &status.orders {
        let asked = seconds_since(Some(&order.asked_at), now).map(span).unwrap_or_default();
        let whose = order.feed.as_deref().map_or_else(|| "all feeds".to_owned(), plain);
        let reason = order.reason.as_deref().map(|reason| format!(" ({})", plain(reason))).unwrap_or_default();
        writeln!(out, "quarantine {} of {whose}{reason}: under way, asked for {asked} ago", order.verb)?;
        reasons = true;
    }
    if reasons {
        writeln!(out)?;
    }
    for detail in &status.details {
        endpoints::write_endpoints(out, detail, now)?;
    }
    writeln!(out, "{}", status.summary())?;
    let mirror = &status.mirror;
    writeln!(out, "mirror {} at seq {}", mirror.epoch, number(mirror.seq))
}

/// Columns before the cursor; `push` is shown only where a feed has push.
const COLUMNS: [&str; 8] = ["feed", "mode", "push", "health", "items", "tombstones", "lag", "next poll"];
const PUSH_COLUMN: usize = 2;
const NUMBER_COLUMNS: [&str; 4] = ["items", "tombstones", "lag", "next poll"];

fn rows(feeds: &[&FeedRow], now: Timestamp, width: u16) -> Table {
    let has_push = feeds.iter().any(|feed| feed.push != PushTrust::None.as_str());
    let is_shown = |at: &usize| has_push || *at != PUSH_COLUMN;
    let heads: Vec<&str> = (0..COLUMNS.len()).filter(is_shown).map(|at| COLUMNS[at]).collect();
    let mut table = bare(width);
    table.set_header(heads.iter().copied().chain(["cursor"]));
    let rows: Vec<Vec<String>> = feeds
        .iter()
        .map(|feed| {
            cells(feed, now).into_iter().enumerate().filter(|(at, _)| is_shown(at)).map(|(_, cell)| cell).collect()
        })
        .collect();
    // The width that the other columns leave: a cursor is cut, never wrapped.
    let widest = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0).max(heads[at].len());
    let others: usize = (0..heads.len()).map(|at| widest(at).max(10)).sum();
    let cursor_width = usize::from(width).saturating_sub(others + COLUMNS.len() * 2).max(12);
    for (feed, row) in feeds.iter().zip(rows) {
        let mut cells: Vec<Cell> = row.into_iter().map(Cell::new).collect();
        let health = heads.iter().position(|head| *head == "health").and_then(|at| cells.get_mut(at));
        if let (Some(cell), Some(colour)) = (health, colour(&feed.health)) {
            *cell = Cell::new(&feed.health).fg(colour);
        }
        cells.push(Cell::new(
            feed.cursor.as_deref().map_or_else(String::new, |cursor| tail(&plain(cursor_part(cursor)), cursor_width)),
        ));
        table.add_row(cells);
    }
    for (at, _) in heads.iter().enumerate().filter(|(_, head)| NUMBER_COLUMNS.contains(head)) {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn cells(feed: &FeedRow, now: Timestamp) -> [String; 8] {
    let lag = seconds_since(feed.level_at.as_deref(), now).map_or_else(|| "not yet".to_owned(), span);
    let next = match seconds_since(next_poll_at(feed), now) {
        None => "–".to_owned(),
        Some(late) if late >= 60 => format!("{} ago", span(late)),
        Some(late) if late >= 0 => "now".to_owned(),
        Some(ahead) => format!("in {}", span(-ahead)),
    };
    let push = if feed.push == PushTrust::None.as_str() { "–".to_owned() } else { feed.push.clone() };
    let (items, tombstones) = (number(feed.items), number(feed.tombstones));
    [plain(&feed.name), feed.mode.clone(), push, feed.health.clone(), items, tombstones, lag, next]
}

/// When a feed is polled next; never while it is paused or removed, whatever was planned before.
pub(super) fn next_poll_at(feed: &FeedRow) -> Option<&str> {
    let is_idle = matches!(Health::from_word(&feed.health), Some(Health::Paused | Health::Removed));
    feed.next_poll_at.as_deref().filter(|_| !is_idle)
}

/// The part of a cursor that differs between cursors: its query, or else its path.
fn cursor_part(cursor: &str) -> &str {
    match cursor.split_once('?') {
        Some((_, query)) if !query.is_empty() => query,
        _ => cursor.split_once("://").map_or(cursor, |(_, rest)| rest),
    }
}

fn colour(health: &str) -> Option<Color> {
    match Health::from_word(health)? {
        Health::Ok => None,
        Health::Retrying | Health::Paused | Health::Removed => Some(Color::Yellow),
        Health::Stuck | Health::Suspect | Health::Gone | Health::Failed => Some(Color::Red),
    }
}

/// A table without lines, of at most this width; wider content is wrapped.
pub(super) fn bare(width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width);
    table
}

/// Keeps the other columns from narrowing a column below this width.
pub(super) fn at_least(table: &mut Table, column: usize, width: u16) {
    if let Some(column) = table.column_mut(column) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn feed(name: &str, health: &str, reason: Option<&str>) -> FeedRow {
        FeedRow {
            name: name.into(),
            provider: None,
            url: "https://acme.example/feed".into(),
            mode: "poll".into(),
            health: health.into(),
            reason: reason.map(str::to_owned),
            since: Some("2026-01-01T00:00:00.000Z".into()),
            cursor: Some(format!("https://acme.example/feed?afterTimestamp=1&afterId={}", "9".repeat(200))),
            items: 1_234_567,
            tombstones: 89,
            level_at: Some("2026-01-01T02:00:00.000Z".into()),
            polled_at: None,
            changed_at: None,
            next_poll_at: Some("2026-01-01T02:00:11.500Z".into()),
            failures: 0,
            push: "none".into(),
            license: None,
            publisher: None,
            dataset_url: None,
            total_items: None,
            acked_until: None,
            ack_note: None,
            bytes: 0,
        }
    }

    fn status(feeds: Vec<FeedRow>) -> Status {
        let mirror = MirrorRow {
            epoch: "e1".into(),
            seq: 1_000_000,
            version: String::new(),
            started_at: None,
            ops_address: None,
            webhooks_address: None,
        };
        Status { mirror, feeds, loads: Vec::new(), resyncs: Vec::new(), orders: Vec::new(), details: Vec::new() }
    }

    fn shown(status: &Status) -> String {
        let mut out = Vec::new();
        table(&mut out, status, "2026-01-01T02:00:03Z".parse().unwrap(), WIDTH).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_needs_attention_comes_first_with_its_reason() {
        let feeds = vec![feed("a", "ok", None), feed("z", "retrying", Some("timeout: no answer\u{1b}[2J"))];
        let text = shown(&status(feeds));
        let (z, a) = (text.find("z  ").unwrap(), text.find("a  ").unwrap());
        assert!(z < a, "{text}");
        assert!(text.contains("\nz: retrying for 2 h: timeout: no answer\u{fffd}[2J\n"), "{text}");
        assert!(text.contains("2 feeds: 1 ok, 1 retrying; 2,469,134 live items\n"), "{text}");
    }

    #[test]
    fn a_row_fits_its_line_and_says_lag_and_next_poll() {
        let text = shown(&status(vec![feed("acme-sessions", "ok", None)]));
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(WIDTH)), "{text}");
        let row = text.lines().find(|line| line.contains("acme-sessions")).unwrap();
        for word in ["poll", "ok", "1,234,567", "89", "3 s", "in 8 s", "…9999"] {
            assert!(row.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn a_feed_that_rests_has_no_next_poll() {
        let text = shown(&status(vec![feed("acme", "paused", Some("paused: by the operator"))]));
        assert!(!text.contains("in 8 s"), "{text}");
    }

    #[test]
    fn items_of_a_feed_that_is_gone_are_not_live() {
        let text = shown(&status(vec![feed("a", "gone", None), feed("b", "ok", None)]));
        assert!(text.contains("2 feeds: 1 ok, 1 gone; 1,234,567 live items\n"), "{text}");
    }

    #[test]
    fn a_resync_under_way_is_said_in_words() {
        let mut status = status(vec![feed("a", "ok", None)]);
        status.resyncs.push(ResyncRow {
            feed: "a".into(),
            stage: "walk".into(),
            cursor: String::new(),
            trust_source: true,
            started_at: "2026-01-01T01:00:00.000Z".into(),
            unseen: None,
            live: None,
        });
        let text = shown(&status);
        let said = "a: ok: resync: reading the feed anew, trusting the source, since 2026-01-01T01:00:00.000Z\n";
        assert!(text.contains(said), "{text}");
    }

    #[test]
    fn a_first_load_says_how_far_it_is_and_when_it_may_be_done() {
        // 400 of 1,000 items in the two hours since it began
        let loading = FeedRow { mode: "refresh".into(), items: 400, total_items: Some(1000), ..feed("a", "ok", None) };
        let mut status = status(vec![loading]);
        status.loads.push(FirstLoadRow { feed: "a".into(), began_at: "2026-01-01T00:00:11.500Z".into() });
        let text = shown(&status);
        assert!(text.contains("\na: ok: first load: about 40 %, some 2 h to go\n"), "{text}");
    }

    #[test]
    fn an_acked_feed_says_for_how_long_and_why() {
        let acked_until = Some("2026-01-02T02:00:03.000Z".into());
        let acked = FeedRow { acked_until, ack_note: Some("they know\u{1b}[2J".into()), ..feed("a", "ok", None) };
        let text = shown(&status(vec![acked]));
        assert!(text.contains("\na: alerts silenced for 24 h more: they know\u{fffd}[2J\n\n"), "{text}");
    }

    #[test]
    fn push_is_a_column_where_a_feed_has_some() {
        let polled = shown(&status(vec![feed("a", "ok", None)]));
        assert!(!polled.contains("push"), "{polled}");
        let pushed = FeedRow { mode: "sse".into(), push: "proven".into(), ..feed("b", "ok", None) };
        let text = shown(&status(vec![feed("a", "ok", None), pushed]));
        let words = |name: &str| -> Vec<String> {
            let row = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
            row.split_whitespace().take(4).map(str::to_owned).collect()
        };
        assert_eq!(words("feed"), ["feed", "mode", "push", "health"], "{text}");
        assert_eq!(words("b "), ["b", "sse", "proven", "ok"], "{text}");
        assert_eq!(words("a "), ["a", "poll", "–", "ok"], "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(WIDTH)), "{text}");
    }

    #[test]
    fn an_empty_mirror_says_so() {
        assert_eq!(shown(&status(Vec::new())), "0 feeds; 0 live items\nmirror e1 at seq 1,000,000\n");
    }
}
