//! What a delivery shows about its publisher: `modified` values of another class, a feed that went back.

use super::super::writer::WriteTx;
use super::super::{StoreError, journal};
use super::{Delivery, DeliveryCounts, FeedState, Purpose};
use crate::feed::Modified;

/// Records a finding when the class of `modified` values (numbers, date-times, other text) changes within a feed.
pub(super) fn check_modified_class(
    tx: &WriteTx<'_>,
    delivery: &Delivery,
    feed: &mut FeedState,
) -> Result<(), StoreError> {
    let (mut changes, mut sample) = (0, String::new());
    for item in &delivery.page.items {
        let class = match &item.modified {
            Modified::Int(_) => 1,
            other => i64::from(other.class(delivery.order)),
        };
        if feed.class != 0 && feed.class != class {
            changes += 1;
            sample = format!("item {} has `modified` {}: another kind of value than before", item.id, item.modified);
        }
        feed.class = class;
    }
    if changes > 0 {
        let finding =
            crate::feed::Finding { rule: "modified-class", detail: delivery.redactor.redact(&sample), count: changes };
        journal::record_finding(tx, feed.id, delivery.at, &finding)?;
    }
    Ok(())
}

/// Why the feed is suspect: over half of the last 20 differing items polled at the cursor were refused as older, so
/// that the feed went back.
pub(super) fn detect_going_back(delivery: &Delivery, feed: &mut FeedState, counts: &DeliveryCounts) -> Option<String> {
    const WINDOW: i64 = (1 << 20) - 1;
    if !matches!(delivery.purpose, Purpose::Poll(_)) || counts.older_bits_count == 0 {
        return None;
    }
    let earlier_bits = if counts.older_bits_count >= 20 { 0 } else { feed.differing << counts.older_bits_count };
    feed.differing = (earlier_bits | counts.differing) & WINDOW;
    let (stored, incoming) = counts.last_older.as_ref()?;
    if feed.suspect || feed.differing.count_ones() <= 10 {
        return None;
    }
    let (incoming, stored) = (delivery.redactor.redact(incoming), delivery.redactor.redact(stored));
    Some(format!(
        "went-back: most of what it sends is older than the mirror (it says {incoming}, the mirror holds {stored}); \
         if it was restored or replaced: feedmirror resync --trust-source"
    ))
}
