//! Where items came from: one bounded row for each delivery that wrote something. An item's seq lies in its row's range.
//!
//! The bulk path pays one insert a page for it, and items nothing. Nothing is decided by these rows.

use rusqlite::params;

use super::{Delivery, Purpose};
use crate::feed::Seq;
use crate::store::writer::WriteTx;
use crate::store::{Millis, StoreError, journal};

/// Rows kept for a feed; of older items the mirror only knows how and when they came.
const KEPT: i64 = 2_000;
/// Bytes of text kept in them, and the expression that counts a row's.
const KEPT_BYTES: i64 = 2 << 20;
const SIZE: &str =
    "coalesce(octet_length(url), 0) + coalesce(octet_length(event_id), 0) + coalesce(octet_length(etag), 0)";
/// A URL, tag or event id longer than this is left out: rows stay small whatever a publisher sends.
const LONGEST: usize = 2_048;

/// Where a delivery was asked for, and what the answer said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The URL asked for, without secrets; of a stream the one it was opened at.
    pub url: Option<String>,
    /// A pushed event's own id.
    pub event_id: Option<String>,
    /// The HTTP status.
    pub status: Option<u16>,
    /// Seconds that the answer had spent in caches.
    pub age: Option<u64>,
    /// Its entity tag.
    pub etag: Option<String>,
    /// The publisher's clock.
    pub date: Option<Millis>,
    /// When the page last changed, as the publisher says.
    pub last_modified: Option<Millis>,
}

/// Keeps the delivery's origin if it wrote anything; its first seq was to be `first`.
pub(super) fn record(tx: &WriteTx<'_>, delivery: &Delivery, first: Seq) -> Result<(), StoreError> {
    let last = tx.last_seq();
    if last < first {
        return Ok(());
    }
    let origin = &delivery.provenance;
    let age = origin.age.map(|age| i64::try_from(age).unwrap_or(i64::MAX));
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
                short(origin.url.as_ref()),
                short(origin.event_id.as_ref()),
                origin.status,
                age,
                short(origin.etag.as_ref()),
                origin.date,
                origin.last_modified
            ],
            |row| row.get(0),
        )?;
    let mut trim = tx.db.prepare_cached("DELETE FROM delivery WHERE feed = ?1 AND n <= ?2")?;
    trim.execute([delivery.feed, n - KEPT])?;
    let texts = [&origin.url, &origin.event_id, &origin.etag];
    let size = texts.iter().filter_map(|text| short(text.as_ref())).map(String::len).sum();
    Ok(journal::trim_bytes(tx, ("delivery", SIZE), Some(delivery.feed), (KEPT, KEPT_BYTES), size)?)
}

fn short(text: Option<&String>) -> Option<&String> {
    text.filter(|text| text.len() <= LONGEST)
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
