//! The provenance of items: one row for each delivery that wrote an item, bounded per feed. An item's seq lies in its
//! delivery's range.
//!
//! It costs one insert per page, and nothing per item. No decision depends on these rows.

use rusqlite::params;

use super::{Delivery, Purpose};
use crate::feed::Seq;
use crate::store::writer::WriteTx;
use crate::store::{Millis, StoreError, journal};

/// Rows kept for a feed; of older items the mirror only knows transport and time.
const KEPT: i64 = 2_000;
/// Bytes of text kept for a feed, and the SQL expression for the bytes of a row.
const KEPT_BYTES: i64 = 2 << 20;
const SIZE: &str =
    "coalesce(octet_length(url), 0) + coalesce(octet_length(event_id), 0) + coalesce(octet_length(etag), 0)";
/// A URL, entity tag or event id longer than this is left out, so that rows stay small whatever a publisher sends.
const MAX_TEXT_BYTES: usize = 2_048;

/// The request of a delivery, and the response's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The URL requested, without secrets; of a stream the URL at which it was opened.
    pub url: Option<String>,
    /// The id of a pushed event.
    pub event_id: Option<String>,
    /// The HTTP status.
    pub status: Option<u16>,
    /// `Age`: seconds that the response spent in caches (RFC 9111 §5.1).
    pub age: Option<u64>,
    /// The response's entity tag.
    pub etag: Option<String>,
    /// `Date`: the publisher's clock.
    pub date: Option<Millis>,
    /// `Last-Modified`: when the page last changed, as the publisher says.
    pub last_modified: Option<Millis>,
}

/// Stores the delivery's provenance if it wrote an item; `first` is the first seq that it could write.
pub(super) fn record(tx: &WriteTx<'_>, delivery: &Delivery, first: Seq) -> Result<(), StoreError> {
    let last = tx.last_seq();
    if last < first {
        return Ok(());
    }
    let provenance = &delivery.provenance;
    let age = provenance.age.map(|age| i64::try_from(age).unwrap_or(i64::MAX));
    let n: i64 = tx
        .db
        .prepare_cached(
            "INSERT INTO delivery VALUES (?1, ?2, ?3, (SELECT coalesce(max(n), 0) + 1 FROM delivery WHERE feed = ?3),
                 ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) RETURNING n",
        )?
        .query_row(
            params![
                first,
                last,
                delivery.feed,
                delivery.transport.code(),
                purpose(delivery),
                delivery.at,
                short(provenance.url.as_ref()),
                short(provenance.event_id.as_ref()),
                provenance.status,
                age,
                short(provenance.etag.as_ref()),
                provenance.date,
                provenance.last_modified
            ],
            |row| row.get(0),
        )?;
    let mut trim = tx.db.prepare_cached("DELETE FROM delivery WHERE feed = ?1 AND n <= ?2")?;
    trim.execute([delivery.feed, n - KEPT])?;
    let texts = [&provenance.url, &provenance.event_id, &provenance.etag];
    let size = texts.iter().filter_map(|text| short(text.as_ref())).map(String::len).sum();
    Ok(journal::trim_bytes(tx, ("delivery", SIZE), Some(delivery.feed), (KEPT, KEPT_BYTES), size)?)
}

fn short(text: Option<&String>) -> Option<&String> {
    text.filter(|text| text.len() <= MAX_TEXT_BYTES)
}

fn purpose(delivery: &Delivery) -> &'static str {
    match delivery.purpose {
        Purpose::Poll(_) => "poll",
        Purpose::Resync(_) => "resync",
        Purpose::Push(_) => "push",
        Purpose::Reread if delivery.provenance.url.is_some() => "look-back",
        Purpose::Reread => "retry",
    }
}
