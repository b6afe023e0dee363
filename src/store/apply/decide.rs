//! Newest wins, as a function of two items: what is stored, what comes in, and how it came.

use std::cmp::Ordering;

use crate::feed::{Item, Modified, Order, State, Ties};
use crate::json;

/// What the stored row says about an item.
pub(super) struct Stored<'a> {
    pub(super) modified: Modified,
    pub(super) state: State,
    pub(super) swept: Swept,
    pub(super) data: &'a [u8],
    /// Whether a `--trust-source` walk may replace it: stored before the walk began and not met by it yet.
    pub(super) replaceable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Swept {
    No,
    ByResync,
    ByTrust,
}

/// How the delivery's items are judged.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) order: Order,
    pub(super) ties: Ties,
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

pub(super) fn decide(stored: &Stored<'_>, incoming: &Item, data: &str, rules: Rules) -> Decision {
    let same_content = || stored.state == incoming.state && same_data(stored.data, data);
    if stored.replaceable {
        let same = stored.modified == incoming.modified && same_content();
        return if same { Decision::Same } else { Decision::Write };
    }
    let order = incoming.modified.compare(&stored.modified, rules.order);
    // What a sweep only concluded gives way to what the publisher says itself, to a tombstone of its own too:
    // otherwise a tie would end by which of its records comes first.
    let gives_way = match stored.swept {
        Swept::No => false,
        Swept::ByResync => order == Ordering::Equal,
        Swept::ByTrust => true,
    };
    if gives_way && rules.polled {
        return Decision::Write;
    }
    match order {
        Ordering::Greater => Decision::Write,
        Ordering::Less => Decision::Older,
        Ordering::Equal if same_content() => Decision::Same,
        Ordering::Equal => match (stored.state, incoming.state) {
            (State::Updated, State::Deleted) => Decision::Write,
            (State::Deleted, _) => Decision::Tied,
            (State::Updated, State::Updated) if rules.resync || rules.ties == Ties::Replace => Decision::Write,
            (State::Updated, State::Updated) => Decision::Tied,
        },
    }
}

/// Equal bytes, or else equal JSON; a text that can't be read as JSON equals only itself.
fn same_data(stored: &[u8], incoming: &str) -> bool {
    stored == incoming.as_bytes() || std::str::from_utf8(stored).is_ok_and(|stored| json::equal(stored, incoming))
}
