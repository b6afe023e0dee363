//! How many bytes each feed and each provider takes in the file, for operators who need space.
//!
//! Counted as items are written, so that nothing has to be scanned: about the size of the rows, without the file's free
//! pages and the mirror's own tables.

use std::collections::BTreeMap;
use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment};

use super::format::{number, plain};
use super::status::{Status, bare};

/// Writes the feeds, the largest first, then the providers, then the total.
///
/// # Errors
/// When `out` can't be written.
pub fn table(out: &mut impl Write, status: &Status, width: u16) -> io::Result<()> {
    let mut feeds: Vec<_> = status.feeds.iter().map(|feed| (feed.name.as_str(), SizeTotals::of(feed))).collect();
    feeds.sort_by(|a, b| (b.1.bytes, a.0).cmp(&(a.1.bytes, b.0)));
    let mut providers: BTreeMap<&str, SizeTotals> = BTreeMap::new();
    let mut all = SizeTotals::default();
    for feed in &status.feeds {
        if let Some(provider) = &feed.provider {
            providers.entry(provider).or_default().add(SizeTotals::of(feed));
        }
        all.add(SizeTotals::of(feed));
    }
    rows(out, "feed", feeds.into_iter(), width)?;
    if !providers.is_empty() {
        writeln!(out)?;
        rows(out, "provider", providers.into_iter(), width)?;
    }
    writeln!(out, "{} bytes in all, about", number(all.bytes))
}

#[derive(Clone, Copy, Default)]
struct SizeTotals {
    items: i64,
    tombstones: i64,
    bytes: i64,
}

impl SizeTotals {
    fn of(feed: &crate::store::read::FeedRow) -> Self {
        Self { items: feed.items, tombstones: feed.tombstones, bytes: feed.bytes }
    }

    fn add(&mut self, other: Self) {
        self.items += other.items;
        self.tombstones += other.tombstones;
        self.bytes += other.bytes;
    }
}

fn rows<'a>(
    out: &mut impl Write,
    what: &str,
    totals: impl Iterator<Item = (&'a str, SizeTotals)>,
    width: u16,
) -> io::Result<()> {
    let mut table = bare(width);
    table.set_header([what, "items", "tombstones", "bytes"]);
    for (name, total) in totals {
        let numbers = [total.items, total.tombstones, total.bytes].map(|count| Cell::new(number(count)));
        table.add_row(std::iter::once(Cell::new(plain(name))).chain(numbers));
    }
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{table}")
}
