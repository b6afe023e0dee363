//! A feed has at most so many kinds; records of further ones are kept aside.

use std::collections::HashMap;
use std::sync::Arc;

use super::Delivery;
use crate::feed::{Unreadable, cut};
use crate::store::StoreError;
use crate::store::writer::Bench;

const KINDS: i64 = 1_000;

/// Sets aside the items whose kind the feed has no room for; they leave the delivery's items for good.
pub(super) fn set_aside(bench: &mut Bench<'_>, delivery: &mut Delivery) -> Result<(), StoreError> {
    let page = &mut delivery.page;
    let mut taken: HashMap<Arc<str>, bool> = HashMap::new();
    let mut last: Option<&Arc<str>> = None;
    for item in &page.items {
        if !last.is_some_and(|last| Arc::ptr_eq(last, &item.kind)) && !taken.contains_key(&item.kind) {
            taken.insert(Arc::clone(&item.kind), bench.takes_kind(delivery.feed, &item.kind, KINDS)?);
        }
        last = Some(&item.kind);
    }
    if taken.values().all(|taken| *taken) {
        return Ok(());
    }
    let is_taken = |kind: &Arc<str>| taken.get(kind).copied().unwrap_or(true);
    for item in page.items.extract_if(.., |item| !is_taken(&item.kind)) {
        let redact = |text: &str| delivery.redactor.redact(text);
        let detail = cut(redact(&format!("the feed has {KINDS} kinds already; this one is {:?}", item.kind)));
        let raw = page.text.get(item.record).unwrap_or_default().to_owned();
        let shown = Some(redact(&raw)).filter(|shown| *shown != raw);
        page.unreadable.push(Unreadable { reason: "too-many-kinds", detail, raw, shown, id: Some(item.id), count: 1 });
    }
    Ok(())
}
