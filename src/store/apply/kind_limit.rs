//! A feed has at most [`MAX_KINDS`] kinds; records of further kinds are quarantined.

use std::collections::HashMap;
use std::sync::Arc;

use super::Delivery;
use crate::feed::{UnreadableRecord, truncate_text};
use crate::store::StoreError;
use crate::store::writer::WriteTx;

const MAX_KINDS: i64 = 1_000;

/// Quarantines the items whose kind is beyond the feed's limit; they are removed from the delivery's items for good.
pub(super) fn quarantine_excess_kinds(tx: &mut WriteTx<'_>, delivery: &mut Delivery) -> Result<(), StoreError> {
    let page = &mut delivery.page;
    let mut admitted: HashMap<Arc<str>, bool> = HashMap::new();
    let mut last: Option<&Arc<str>> = None;
    for item in &page.items {
        if !last.is_some_and(|last| Arc::ptr_eq(last, &item.kind)) && !admitted.contains_key(&item.kind) {
            admitted.insert(Arc::clone(&item.kind), tx.admit_kind(delivery.feed, &item.kind, MAX_KINDS)?);
        }
        last = Some(&item.kind);
    }
    if admitted.values().all(|admitted| *admitted) {
        return Ok(());
    }
    let is_admitted = |kind: &Arc<str>| admitted.get(kind).copied().unwrap_or(true);
    for item in page.items.extract_if(.., |item| !is_admitted(&item.kind)) {
        let redact = |text: &str| delivery.redactor.redact(text);
        let detail =
            truncate_text(redact(&format!("the feed has {MAX_KINDS} kinds already; this one is {:?}", item.kind)));
        let raw = page.text.get(item.record_range).unwrap_or_default().to_owned();
        let redacted = Some(redact(&raw)).filter(|redacted| *redacted != raw);
        page.unreadable.push(UnreadableRecord {
            reason: "too-many-kinds",
            detail,
            raw,
            redacted,
            id: Some(item.id),
            count: 1,
        });
    }
    Ok(())
}
