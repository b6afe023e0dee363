//! Newest wins, as a pure function of the stored item, the incoming one, and how it was delivered.

use std::cmp::Ordering;

use crate::feed::{Item, ItemState, Modified, ModifiedOrder, TiePolicy};
use crate::json;

/// An item as its row has it.
pub(super) struct StoredItem<'a> {
    pub(super) modified: Modified,
    pub(super) state: ItemState,
    pub(super) sweep_kind: SweepKind,
    pub(super) data: &'a [u8],
    /// Whether a `--trust-source` walk may replace the item: stored before the walk began and not yet seen by it.
    pub(super) replaceable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SweepKind {
    No,
    ByResync,
    ByTrustSource,
}

/// The rules for a delivery's items.
#[derive(Clone, Copy)]
pub(super) struct MergeRules {
    pub(super) order: ModifiedOrder,
    pub(super) ties: TiePolicy,
    pub(super) polled: bool,
    pub(super) resync: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Write,
    Same,
    Older,
    Tied,
}

pub(super) fn decide(stored: &StoredItem<'_>, incoming: &Item, data: &str, rules: MergeRules) -> Decision {
    let same_content = || stored.state == incoming.state && same_data(stored.data, data);
    if stored.replaceable {
        let same = stored.modified == incoming.modified && same_content();
        return if same { Decision::Same } else { Decision::Write };
    }
    let order = incoming.modified.compare(&stored.modified, rules.order);
    // A sweep's tombstone is only a conclusion and is replaced by a record of the publisher, by a tombstone too:
    // otherwise the order of the publisher's records would decide a tie.
    let is_replaced = match stored.sweep_kind {
        SweepKind::No => false,
        SweepKind::ByResync => order == Ordering::Equal,
        SweepKind::ByTrustSource => true,
    };
    if is_replaced && rules.polled {
        return Decision::Write;
    }
    match order {
        Ordering::Greater => Decision::Write,
        Ordering::Less => Decision::Older,
        Ordering::Equal if same_content() => Decision::Same,
        Ordering::Equal => match (stored.state, incoming.state) {
            (ItemState::Updated, ItemState::Deleted) => Decision::Write,
            (ItemState::Deleted, _) => Decision::Tied,
            (ItemState::Updated, ItemState::Updated) if rules.resync || rules.ties == TiePolicy::Replace => {
                Decision::Write
            }
            (ItemState::Updated, ItemState::Updated) => Decision::Tied,
        },
    }
}

/// Equal bytes, or else equal JSON; a text that can't be read as JSON equals only itself.
fn same_data(stored: &[u8], incoming: &str) -> bool {
    stored == incoming.as_bytes() || std::str::from_utf8(stored).is_ok_and(|stored| json::equal(stored, incoming))
}
