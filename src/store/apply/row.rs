//! An item's row: the flags, and the publisher's `modified` as stored.

use rusqlite::types::ValueRef;

use super::decide::SweepKind;
use crate::feed::Modified;

pub(in crate::store) const DELETED_FLAG: i64 = 1;
pub(super) const SWEPT_FLAG: i64 = 2;
pub(super) const SWEPT_BY_TRUST_FLAG: i64 = 4;
pub(in crate::store) const NUMBER_FLAG: i64 = 8;
pub(in crate::store) const FORGOTTEN_FLAG: i64 = 16;
/// Of a forgotten item: it was a tombstone before, and stays one if it is unforgotten.
pub(in crate::store) const WAS_DELETED_FLAG: i64 = 32;

/// Whether a row can have these flags: only a tombstone is swept or forgotten, and no other flags exist.
pub(in crate::store) fn are_flags_valid(flags: i64) -> bool {
    let tombstone_flags = SWEPT_FLAG | SWEPT_BY_TRUST_FLAG | FORGOTTEN_FLAG | WAS_DELETED_FLAG;
    let deleted = flags & DELETED_FLAG != 0;
    flags & !(DELETED_FLAG | NUMBER_FLAG | tombstone_flags) == 0 && (deleted || flags & tombstone_flags == 0)
}

/// Approximate bytes that an item takes in the file besides id and data: row, index entry, free space in pages.
pub(in crate::store) const ROW_BYTES: i64 = 230;

/// The flags of a tombstone made by a sweep.
pub(in crate::store) fn swept_flags(flags: i64, trust: bool) -> i64 {
    (flags & NUMBER_FLAG) | DELETED_FLAG | if trust { SWEPT_BY_TRUST_FLAG } else { SWEPT_FLAG }
}

/// The flags of a tombstone in place of an item that was forgotten on request.
pub(in crate::store) fn forgotten_flags(flags: i64) -> i64 {
    (flags & NUMBER_FLAG) | DELETED_FLAG | FORGOTTEN_FLAG
}

/// A publisher's value as stored: an integer where it is one of 64 bits, text otherwise.
pub(in crate::store) struct SqlModified<'a>(pub(in crate::store) &'a Modified);

impl rusqlite::ToSql for SqlModified<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(match self.0 {
            Modified::Int(n) => (*n).into(),
            Modified::Number(text) | Modified::Text(text) => {
                rusqlite::types::ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes()))
            }
        })
    }
}

pub(in crate::store) fn stored_modified(value: ValueRef<'_>, flags: i64) -> Modified {
    match value {
        ValueRef::Integer(n) => Modified::Int(n),
        other => {
            let text = other.as_str().unwrap_or_default();
            if flags & NUMBER_FLAG == 0 { Modified::Text(text.into()) } else { Modified::Number(text.into()) }
        }
    }
}

pub(super) fn sweep_kind(flags: i64) -> SweepKind {
    match flags & (SWEPT_FLAG | SWEPT_BY_TRUST_FLAG) {
        0 => SweepKind::No,
        SWEPT_FLAG => SweepKind::ByResync,
        _ => SweepKind::ByTrustSource,
    }
}
