//! What became of a delivery, as whoever handed it over is told.

use crate::feed::{ItemVersion, RecordOutcome};

/// Whether a delivery was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeliveryVerdict {
    /// Committed.
    #[default]
    Committed,
    /// Of an older generation, or its feed is gone from the store: discarded.
    OldGeneration,
    /// The stored cursor is no longer the one it was asked with: discarded.
    CursorMoved,
}

/// What became of a delivery's records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Whether it was taken at all.
    pub verdict: DeliveryVerdict,
    /// Items the mirror did not hold.
    pub new: u64,
    /// Items written over older ones.
    pub changed: u64,
    /// Of the written ones, tombstones.
    pub deleted: u64,
    /// Of the new ones, tombstones.
    pub new_deleted: u64,
    /// Items held already.
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
    /// What a push endpoint brought, or what a poll found that push should bring too; some of it where that is much.
    pub item_versions: Vec<ItemVersion>,
}

/// So many items of several deliveries are named.
const MAX_SUMMED_ITEM_VERSIONS: usize = 4_000;

impl Applied {
    /// Items written.
    pub fn written(&self) -> u64 {
        self.new + self.changed
    }

    /// Records looked at.
    pub fn record_count(&self) -> u64 {
        self.written() + self.same + self.older + self.tied + self.quarantined + self.forgotten
    }

    /// Each record once, by what became of it: `new` and `changed` are updates, `deleted` are tombstones of either sort.
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

    /// Adds what became of another delivery.
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
