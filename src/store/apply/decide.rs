//! Newest wins, as a function of two items: what is stored, what comes in, and how it came.

use std::cmp::Ordering;

use crate::feed::{Item, ItemState, Modified, ModifiedOrder, TiePolicy};
use crate::json;

/// What the stored row says about an item.
pub(super) struct StoredItem<'a> {
    pub(super) modified: Modified,
    pub(super) state: ItemState,
    pub(super) sweep_kind: SweepKind,
    pub(super) data: &'a [u8],
    /// Whether a `--trust-source` walk may replace it: stored before the walk began and not met by it yet.
    pub(super) replaceable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SweepKind {
    No,
    ByResync,
    ByTrustSource,
}

/// How the delivery's items are judged.
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
    // What a sweep only concluded gives way to what the publisher says itself, to a tombstone of its own too:
    // otherwise a tie would end by which of its records comes first.
    let gives_way = match stored.sweep_kind {
        SweepKind::No => false,
        SweepKind::ByResync => order == Ordering::Equal,
        SweepKind::ByTrustSource => true,
    };
    if gives_way && rules.polled {
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
