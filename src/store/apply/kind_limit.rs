//! A feed has at most so many kinds; records of further ones are kept aside.

use std::collections::HashMap;
use std::sync::Arc;

use super::Delivery;
use crate::feed::{UnreadableRecord, truncate_text};
use crate::store::StoreError;
use crate::store::writer::WriteTx;

const KINDS: i64 = 1_000;

/// Sets aside the items whose kind the feed has no room for; they leave the delivery's items for good.
pub(super) fn quarantine_excess_kinds(tx: &mut WriteTx<'_>, delivery: &mut Delivery) -> Result<(), StoreError> {
    let page = &mut delivery.page;
    let mut taken: HashMap<Arc<str>, bool> = HashMap::new();
    let mut last: Option<&Arc<str>> = None;
    for item in &page.items {
        if !last.is_some_and(|last| Arc::ptr_eq(last, &item.kind)) && !taken.contains_key(&item.kind) {
            taken.insert(Arc::clone(&item.kind), tx.admit_kind(delivery.feed, &item.kind, KINDS)?);
        }
        last = Some(&item.kind);
    }
    if taken.values().all(|taken| *taken) {
        return Ok(());
    }
    let is_taken = |kind: &Arc<str>| taken.get(kind).copied().unwrap_or(true);
    for item in page.items.extract_if(.., |item| !is_taken(&item.kind)) {
        let redact = |text: &str| delivery.redactor.redact(text);
        let detail = truncate_text(redact(&format!("the feed has {KINDS} kinds already; this one is {:?}", item.kind)));
        let raw = page.text.get(item.record_range).unwrap_or_default().to_owned();
        let shown = Some(redact(&raw)).filter(|shown| *shown != raw);
        page.unreadable.push(UnreadableRecord {
            reason: "too-many-kinds",
            detail,
            raw,
            redacted: shown,
            id: Some(item.id),
            count: 1,
        });
    }
    Ok(())
}
