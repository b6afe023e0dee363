//! What became of a delivery: the result for the caller of [`Store::apply`](crate::store::Store::apply).

use crate::feed::{ItemVersion, RecordOutcome};

/// Whether a delivery was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeliveryVerdict {
    /// Committed.
    #[default]
    Committed,
    /// Read under an older generation, or its feed is no longer in the store: discarded.
    OldGeneration,
    /// The stored cursor is no longer the one with which it was requested: discarded.
    CursorMoved,
}

/// What became of a delivery's records, as counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether the delivery was committed at all.
    pub verdict: DeliveryVerdict,
    /// Items that were not stored.
    pub new: u64,
    /// Items written over older versions.
    pub changed: u64,
    /// Tombstones among the written items.
    pub deleted: u64,
    /// Tombstones among the new items.
    pub new_deleted: u64,
    /// Items stored already.
    pub same: u64,
    /// Items refused as older.
    pub older: u64,
    /// Items refused as tied.
    pub tied: u64,
    /// Records quarantined.
    pub quarantined: u64,
    /// Records dropped, since they were forgotten on request.
    pub forgotten: u64,
    /// Why the feed became suspect with this delivery.
    pub suspect: Option<String>,
    /// Items that a push endpoint delivered, or that a poll wrote and push should deliver too; bounded, so that large
    /// deliveries list only some.
    pub item_versions: Vec<ItemVersion>,
}

/// Item versions are added up to about this number for several deliveries.
const MAX_SUMMED_ITEM_VERSIONS: usize = 4_000;

impl Applied {
    /// Number of items written.
    pub fn written(&self) -> u64 {
        self.new + self.changed
    }

    /// Number of records.
    pub fn record_count(&self) -> u64 {
        self.written() + self.same + self.older + self.tied + self.quarantined + self.forgotten
    }

    /// Number of records by outcome, each record once: `new` and `changed` are updates, `deleted` are tombstones of
    /// either sort.
    pub fn outcomes(&self) -> [(RecordOutcome, u64); 7] {
        [
            (RecordOutcome::New, self.new - self.new_deleted),
            (RecordOutcome::Changed, self.changed - (self.deleted - self.new_deleted)),
            (RecordOutcome::Deleted, self.deleted),
            (RecordOutcome::Same, self.same),
            (RecordOutcome::Older, self.older),
            (RecordOutcome::Tied, self.tied),
            (RecordOutcome::Quarantined, self.quarantined),
        ]
    }

    /// Adds another delivery's counts.
    pub fn add(&mut self, other: Self) {
        self.new += other.new;
        self.changed += other.changed;
        self.deleted += other.deleted;
        self.new_deleted += other.new_deleted;
        self.same += other.same;
        self.older += other.older;
        self.tied += other.tied;
        self.quarantined += other.quarantined;
        self.forgotten += other.forgotten;
        self.suspect = other.suspect.or(self.suspect.take());
        if self.item_versions.len() < MAX_SUMMED_ITEM_VERSIONS {
            self.item_versions.extend(other.item_versions);
        }
    }
}
