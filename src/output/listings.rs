//! Lists of quarantine, findings and events, for people.
//!
//! Programs get the rows themselves, one per line ([`super::write_json_line`]). A record that is asked for by its
//! number is never shortened; lists shorten samples.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment};

use super::format::{head, number, plain};
use super::status::{at_least, bare};
use crate::store::read::{EventRow, FindingRow, QuarantineRow};

/// Characters of a sample that a list shows.
const MAX_SAMPLE_CHARS: usize = 200;

/// Lists records that could not be understood.
///
/// # Errors
/// When `out` can't be written.
pub fn quarantine(out: &mut impl Write, rows: &[QuarantineRow], width: u16) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "nothing is in quarantine");
    }
    let mut table = bare(width);
    table.set_header(["id", "feed", "transport", "reason", "count", "last at", "detail"]);
    for row in rows {
        let detail = row.detail.as_deref().unwrap_or_default();
        table.add_row([
            Cell::new(row.id).set_alignment(CellAlignment::Right),
            Cell::new(plain(&row.feed)),
            Cell::new(&row.transport),
            Cell::new(plain(&row.reason)),
            Cell::new(number(row.count)).set_alignment(CellAlignment::Right),
            Cell::new(second(&row.last_at)),
            Cell::new(head(&plain(detail), MAX_SAMPLE_CHARS)),
        ]);
    }
    at_least(&mut table, 6, 30);
    writeln!(out, "{}", table.trim_fmt())
}

/// Prints one record whole: its row, then the record itself as published.
///
/// # Errors
/// When `out` can't be written.
pub fn record(out: &mut impl Write, row: &QuarantineRow) -> io::Result<()> {
    let detail = plain(row.detail.as_deref().unwrap_or_default());
    writeln!(out, "id         {}", row.id)?;
    writeln!(out, "feed       {}", plain(&row.feed))?;
    writeln!(out, "transport  {}", row.transport)?;
    writeln!(out, "reason     {}", row.reason)?;
    writeln!(out, "detail     {detail}")?;
    writeln!(out, "count      {}", number(row.count))?;
    writeln!(out, "first at   {}", row.first_at)?;
    writeln!(out, "last at    {}", row.last_at)?;
    writeln!(out, "\n{}", row.raw.lines().map(plain).collect::<Vec<_>>().join("\n"))
}

/// Lists findings.
///
/// # Errors
/// When `out` can't be written.
pub fn findings(out: &mut impl Write, rows: &[FindingRow], width: u16) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "no findings");
    }
    let mut table = bare(width);
    table.set_header(["feed", "rule", "count", "last at", "latest sample"]);
    for row in rows {
        let detail = row.detail.as_deref().unwrap_or_default();
        table.add_row([
            Cell::new(plain(&row.feed)),
            Cell::new(plain(&row.rule)),
            Cell::new(number(row.count)).set_alignment(CellAlignment::Right),
            Cell::new(second(&row.last_at)),
            Cell::new(head(&plain(detail), MAX_SAMPLE_CHARS)),
        ]);
    }
    at_least(&mut table, 4, 30);
    writeln!(out, "{}", table.trim_fmt())
}

/// Lists events, one per line, the newest last.
///
/// # Errors
/// When `out` can't be written.
pub fn events(out: &mut impl Write, rows: &[EventRow]) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "no events");
    }
    for row in rows {
        let feed = plain(row.feed.as_deref().unwrap_or("(mirror)"));
        let detail = row.detail.as_deref().map_or_else(String::new, |detail| format!(": {}", plain(detail)));
        writeln!(out, "{}  {feed}  {}{detail}", row.at, plain(&row.what))?;
    }
    Ok(())
}

/// A time without fractions of a second: `2026-01-02T03:04:05Z`.
fn second(at: &str) -> String {
    at.split_once('.').map_or_else(|| at.to_owned(), |(whole, _)| format!("{whole}Z"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_event_is_a_line_that_no_terminal_obeys() {
        let row = EventRow {
            at: "2026-01-02T03:04:05.678Z".into(),
            feed: None,
            what: "started".into(),
            detail: Some("a\nb\u{1b}c".into()),
        };
        let mut out = Vec::new();
        events(&mut out, &[row]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "2026-01-02T03:04:05.678Z  (mirror)  started: a b\u{fffd}c\n");
    }

    #[test]
    fn times_in_lists_are_to_the_second() {
        assert_eq!(second("2026-01-02T03:04:05.678Z"), "2026-01-02T03:04:05Z");
    }
}
