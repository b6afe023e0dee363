//! Shows what is stored: to people as tables, to programs as JSON under the SQL column names.
//!
//! Everything here writes to a given writer and reads one open file, so that verbs and the listener share it. Nothing
//! here fetches, decides or stores. `data` is copied as the publisher's bytes and never re-encoded. Text from
//! publishers is hostile: control characters never reach a terminal.

pub mod changes;
pub mod estimate;
pub mod explain;
pub mod export;
pub mod listings;
pub mod metrics;
pub mod page;
pub mod report;
pub mod rules;
pub mod sizes;
pub mod status;
pub mod storage_stats;
mod format;

use std::io::{self, Write};

use crate::store::read::StoreError;

/// Why something could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The file can't be read, or has no such feed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output can't be written; the reader may have gone away.
    #[error("the output can't be written")]
    Write(#[from] io::Error),
    /// A position that this mirror never issued.
    #[error("{0}: read everything again")]
    ReadAgain(String),
}

/// Writes a row as one line of JSON.
///
/// # Errors
/// When `out` can't be written.
pub fn write_json_line(out: &mut impl Write, row: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, row)?;
    out.write_all(b"\n")
}

/// Writes `"name":value`, with a comma before it unless it is the first.
fn field(out: &mut impl Write, first: bool, name: &str, value: &impl serde::Serialize) -> io::Result<()> {
    write!(out, "{}\"{name}\":", if first { "" } else { "," })?;
    Ok(serde_json::to_writer(&mut *out, value)?)
}

/// Writes `,"data":` and the publisher's bytes. A line break between JSON tokens is whitespace, and there is none
/// within them: replaced by a space, the text stays on one line and has the same meaning.
fn data_field(out: &mut impl Write, data: Option<&str>) -> io::Result<()> {
    out.write_all(b",\"data\":")?;
    let Some(data) = data else { return out.write_all(b"null") };
    for (at, part) in data.split(['\n', '\r']).enumerate() {
        if at > 0 {
            out.write_all(b" ")?;
        }
        out.write_all(part.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn data_is_copied_byte_for_byte_and_stays_on_one_line() {
        let mut out = Vec::new();
        data_field(&mut out, Some("{\"a\" :\t1.0,\r\n\"b\":\"\\n\\u00e9é\"}")).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), ",\"data\":{\"a\" :\t1.0,  \"b\":\"\\n\\u00e9é\"}");
    }

    #[test]
    fn a_tombstone_has_no_data() {
        let mut out = Vec::new();
        data_field(&mut out, None).unwrap();
        assert_eq!(out, b",\"data\":null");
    }
}
