//! The change log as NDJSON, page by page: each change is a line, and each batch ends with the position to go on from.
//!
//! Delivery is at least once: a reader that upserts by (feed, kind, id) and returns with the last position it was given
//! misses nothing. A position counts everything read of the log, matching the filter or not. Positions of another
//! mirror are refused, never answered with an empty page.

use std::io::{self, Write};
use std::str::FromStr;

use super::{OutputError, data_field, field};
use crate::store::read::{ChangeRow, FeedKindFilter, LogPage, Reader, Seq};

/// A position in the change log: `seq`, or `epoch:seq`, which also names the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The mirror's identity, where it is known.
    pub epoch: Option<String>,
    /// The last change number read.
    pub seq: Seq,
}

impl FromStr for LogPosition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (epoch, seq) = match text.rsplit_once(':') {
            Some((epoch, seq)) => (Some(epoch.to_owned()), seq),
            None => (None, text),
        };
        let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        match seq.parse() {
            Ok(seq) if digits && epoch.as_deref() != Some("") => Ok(Self { epoch, seq }),
            _ => Err(format!("{text:?} is no position: it is a number, or epoch:number as a batch's last line says")),
        }
    }
}

impl LogPosition {
    /// Checks that a mirror of this epoch, which is at `seq`, issued the position.
    ///
    /// # Errors
    /// [`OutputError::ReadAgain`] where it didn't: what followed the position there is not what follows it here.
    pub fn check(&self, epoch: &str, seq: Seq) -> Result<(), OutputError> {
        if self.epoch.as_ref().is_some_and(|own| own != epoch) {
            return Err(OutputError::ReadAgain(format!("position {self} is of another mirror than this, {epoch}")));
        }
        if self.seq > seq {
            return Err(OutputError::ReadAgain(format!("position {self} lies ahead of the mirror, which is at {seq}")));
        }
        Ok(())
    }
}

impl std::fmt::Display for LogPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.epoch {
            Some(epoch) => write!(f, "{epoch}:{}", self.seq),
            None => self.seq.fmt(f),
        }
    }
}

/// Which changes to read, and whether with their data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSelection {
    /// Feeds and kinds; a purge concerns all kinds.
    pub filter: FeedKindFilter,
    /// Whether each change includes the item's JSON.
    pub data: bool,
}

/// The result of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeBatch {
    /// Where to go on, with the epoch.
    pub position: LogPosition,
    /// Changes in the page.
    pub rows: usize,
    /// Whether the log's end has been reached.
    pub end: bool,
}

/// Writes one page of changes after a position, without the line that [`mark`] writes.
///
/// # Errors
/// [`OutputError::ReadAgain`] for a position of another mirror; when the file can't be read.
pub fn page(
    reader: &Reader,
    after: &LogPosition,
    selection: &ChangeSelection,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<ChangeBatch, OutputError> {
    let page = read(reader, after, selection, limit)?;
    for (row, data) in &page.rows {
        change(out, row, selection.data.then_some(data.as_deref()))?;
    }
    let position = LogPosition { epoch: Some(page.epoch), seq: page.last_seq };
    Ok(ChangeBatch { position, rows: page.rows.len(), end: page.end })
}

/// Reads one page of changes after a position.
///
/// # Errors
/// As [`page`].
pub fn read(
    reader: &Reader,
    after: &LogPosition,
    selection: &ChangeSelection,
    limit: usize,
) -> Result<LogPage<(ChangeRow, Option<String>)>, OutputError> {
    let page = reader.changes(after.seq, limit, &selection.filter, selection.data)?;
    after.check(&page.epoch, page.mirror_seq)?;
    Ok(page)
}

/// Writes one change as a line; `data` is left out when it wasn't asked for, and null where there is none.
///
/// # Errors
/// When `out` can't be written.
pub fn change(out: &mut impl Write, row: &ChangeRow, data: Option<Option<&str>>) -> io::Result<()> {
    out.write_all(b"{")?;
    field(out, true, "seq", &row.seq)?;
    field(out, false, "feed", &row.feed)?;
    field(out, false, "kind", &row.kind)?;
    field(out, false, "id", &row.id)?;
    field(out, false, "modified", &row.modified)?;
    field(out, false, "state", &row.state)?;
    field(out, false, "changed_at", &row.changed_at)?;
    if let Some(data) = data {
        data_field(out, data)?;
    }
    out.write_all(b"}\n")
}

/// Writes the line that ends a batch: the position up to which the whole log has been read.
///
/// # Errors
/// When `out` can't be written.
pub fn mark(out: &mut impl Write, position: &LogPosition) -> io::Result<()> {
    out.write_all(b"{")?;
    field(out, true, "epoch", &position.epoch)?;
    field(out, false, "last_seq", &position.seq)?;
    out.write_all(b"}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_read_back() {
        for text in ["0", "17", "a1b2:17"] {
            assert_eq!(text.parse::<LogPosition>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in ["", "-1", "+1", "1.5", "x", ":1", "a:", "a:b", "99999999999999999999"] {
            assert!(text.parse::<LogPosition>().is_err(), "{text}");
        }
    }
}
