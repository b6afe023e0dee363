//! The accounts of the memory budget: which pages hold how much, which wait, and which are preempted. Pure, with time
//! passed in.
//!
//! - Bytes are charged as they arrive. A small page takes what is free. A larger page begins only where all that it is
//!   expected to need is free too, beside what others of its size or smaller still expect: so pages that have begun are
//!   completed, instead of all of them waiting half read. Expected bytes block no smaller page, and none at all once
//!   their page is slow.
//! - When nothing is free, the page that has waited longest exceeds the budget, one at a time; the bytes that it held
//!   before are free again. So nothing deadlocks, and memory is bounded by the budget and one largest page.
//! - A page whose publisher is slow is preempted by pages that wait for memory; so is a page whose host holds more than
//!   the waiting page's host would. Local pages, which wait to be decoded or written, are never preempted: they end by
//!   themselves.

mod preemption;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::transfer_rate::{TransferRate, WINDOW};

const UNIT: u64 = 4 << 10;
/// A page larger than this must fit whole before it begins.
const SMALL: u64 = 64 << 10;
/// A page that has waited so long for memory preempts slow pages.
pub(super) const PREEMPT_AFTER: Duration = Duration::from_millis(500);
/// A page that has waited so long preempts pages of hosts that hold more, too.
const PREEMPT_HOSTS_AFTER: Duration = Duration::from_secs(1);

/// The result of [`MemoryLedger::grow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrowResult {
    Granted,
    Waiting,
    Preempted,
}

/// The accounts of all pages.
pub(super) struct MemoryLedger {
    total: u64,
    used: u64,
    /// The bytes of `used` that depend on no publisher any more.
    local_bytes: u64,
    /// The number of the page that may exceed the budget.
    over_budget: Option<u64>,
    /// By number, which is by age.
    pages: BTreeMap<u64, PageAccount>,
    /// The waiting pages, in the order in which they are granted memory.
    waiting: BTreeSet<QueueRank>,
    /// Bytes held, by host.
    hosts: HashMap<Arc<str>, u64>,
    /// The bytes that pages that have begun still expect, by size.
    pending_by_size: [u64; 64],
    next: u64,
}

/// Pages that have begun come first, so that they are completed; then small pages, then those that must fit whole; of
/// each kind the smallest, then the oldest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct QueueRank {
    new: bool,
    must_fit_whole: bool,
    size: u32,
    number: u64,
}

/// The memory that a page waits for.
#[derive(Clone, Copy)]
struct MemoryRequest {
    bytes: u64,
    since: Instant,
    rank: QueueRank,
}

/// One page's memory.
struct PageAccount {
    /// None for a page that is never preempted.
    host: Option<Arc<str>>,
    held_bytes: u64,
    /// The bytes of `held_bytes` that have arrived.
    arrived_bytes: u64,
    expected_bytes: u64,
    /// The page's part of `pending_by_size`: index and bytes.
    pending: (usize, u64),
    begun: bool,
    is_local: bool,
    memory_request: Option<MemoryRequest>,
    awaits_admission: bool,
    waited: Duration,
    transfer_rate: TransferRate,
    is_preempted: bool,
    changed: Arc<Notify>,
}

impl PageAccount {
    /// Whether all that the page is expected to need must be free before it begins.
    fn must_fit_whole(&self, bytes: u64) -> bool {
        !self.begun && self.expected_bytes.max(bytes) > SMALL
    }

    fn rank(&self, number: u64, bytes: u64) -> QueueRank {
        QueueRank {
            new: !self.begun,
            must_fit_whole: self.must_fit_whole(bytes),
            size: size(self.expected_bytes.max(bytes)),
            number,
        }
    }

    /// The bytes that must be free for the page to hold `bytes`, besides those that it holds.
    fn need(&self, bytes: u64) -> u64 {
        let whole = if self.must_fit_whole(bytes) { self.expected_bytes.max(bytes) } else { bytes };
        whole.saturating_sub(self.held_bytes)
    }
}

impl MemoryLedger {
    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            used: 0,
            local_bytes: 0,
            over_budget: None,
            pages: BTreeMap::new(),
            waiting: BTreeSet::new(),
            hosts: HashMap::new(),
            pending_by_size: [0; 64],
            next: 0,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Opens an account for a page that holds nothing yet; a page without a host is local from the start.
    pub(super) fn open_page(&mut self, host: Option<&str>, expected_bytes: u64) -> (u64, Arc<Notify>) {
        let known = host.and_then(|host| self.hosts.get_key_value(host).map(|(known, _)| Arc::clone(known)));
        let host = known.or_else(|| host.map(Arc::from));
        let changed = Arc::new(Notify::new());
        let page = PageAccount {
            is_local: host.is_none(),
            host,
            held_bytes: 0,
            arrived_bytes: 0,
            expected_bytes,
            pending: (0, 0),
            begun: false,
            memory_request: None,
            awaits_admission: false,
            waited: Duration::ZERO,
            transfer_rate: TransferRate::default(),
            is_preempted: false,
            changed: Arc::clone(&changed),
        };
        let number = self.next;
        self.next += 1;
        self.pages.insert(number, page);
        (number, changed)
    }

    pub(super) fn close_page(&mut self, number: u64, now: Instant) {
        self.withdraw(number, now);
        self.set_held(number, 0);
        self.set_pending(number, 0);
        self.pages.remove(&number);
        if self.over_budget == Some(number) {
            self.over_budget = None;
        }
        self.grant_waiting(now);
    }

    pub(super) fn held_bytes(&self, number: u64) -> u64 {
        self.pages.get(&number).map_or(0, |page| page.held_bytes)
    }

    pub(super) fn expected_bytes(&self, number: u64) -> u64 {
        self.pages.get(&number).map_or(0, |page| page.expected_bytes)
    }

    /// How long the page has waited for memory, until now.
    pub(super) fn waited(&self, number: u64, now: Instant) -> Duration {
        let waited = |page: &PageAccount| {
            page.waited
                + page.memory_request.map_or(Duration::ZERO, |request| now.saturating_duration_since(request.since))
        };
        self.pages.get(&number).map_or(Duration::ZERO, waited)
    }

    pub(super) fn is_waiting(&self, number: u64) -> bool {
        self.pages.get(&number).is_some_and(|page| page.memory_request.is_some() || page.awaits_admission)
    }

    /// How many pages wait, and the host that holds most, with its bytes.
    pub(super) fn overview(&self) -> (usize, Option<(&str, u64)>) {
        let most = self.hosts.iter().max_by_key(|(_, held)| **held).map(|(host, held)| (&**host, *held));
        (self.waiting.len(), most)
    }

    /// The page is expected to need this much, as far as is known now.
    pub(super) fn set_expected(&mut self, number: u64, bytes: u64) {
        if let Some(page) = self.pages.get_mut(&number).filter(|page| page.memory_request.is_none()) {
            page.expected_bytes = bytes.max(page.held_bytes);
        }
        self.update_pending(number);
    }

    /// Grows the page to `bytes`, if that is more than it holds.
    pub(super) fn grow(&mut self, number: u64, bytes: u64, now: Instant) -> GrowResult {
        let Some(page) = self.pages.get_mut(&number) else { return GrowResult::Granted };
        if page.held_bytes == 0 {
            page.transfer_rate.begin(now);
        }
        page.transfer_rate.record_bytes(bytes.saturating_sub(page.arrived_bytes), now);
        page.arrived_bytes = bytes;
        if bytes > page.held_bytes {
            if page.is_preempted {
                return GrowResult::Preempted;
            }
            let bytes = charged(bytes, page.expected_bytes);
            let rank = page.rank(number, bytes);
            let outranked = rank.must_fit_whole && self.waiting.range(..rank).next().is_some();
            if outranked || !self.try_grow(number, bytes) {
                self.enqueue(number, bytes, now);
                self.grant_waiting(now);
            }
        }
        match self.is_waiting(number) {
            true => GrowResult::Waiting,
            false => GrowResult::Granted,
        }
    }

    fn enqueue(&mut self, number: u64, bytes: u64, now: Instant) {
        self.withdraw(number, now);
        let Some(page) = self.pages.get_mut(&number) else { return };
        let rank = page.rank(number, bytes);
        page.memory_request = Some(MemoryRequest { bytes, since: now, rank });
        self.waiting.insert(rank);
    }

    /// Ends the page's wait and adds it to the time waited.
    pub(super) fn withdraw(&mut self, number: u64, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        if let Some(request) = page.memory_request.take() {
            page.waited += now.saturating_duration_since(request.since);
            self.waiting.remove(&request.rank);
        }
    }

    /// Grows the page to `bytes`, if that much is free.
    fn try_grow(&mut self, number: u64, bytes: u64) -> bool {
        let Some(page) = self.pages.get(&number) else { return true };
        if self.over_budget != Some(number) {
            let rank = page.rank(number, bytes);
            let others = &self.pending_by_size[..=rank.size as usize];
            let others = if rank.must_fit_whole { others.iter().sum() } else { 0 };
            if self.used + others + page.need(bytes) > self.total {
                return false;
            }
        }
        if let Some(page) = self.pages.get_mut(&number) {
            page.expected_bytes = page.expected_bytes.max(bytes);
            page.begun |= page.expected_bytes > SMALL;
        }
        self.set_held(number, bytes);
        self.update_pending(number);
        true
    }

    /// Grants memory to the waiting pages by rank, as far as it is free; then the oldest page exceeds the budget.
    fn grant_waiting(&mut self, now: Instant) {
        loop {
            let mut after = None;
            while let Some(rank) = self.next_waiting(after) {
                after = Some(rank);
                let bytes = self.requested_bytes(rank.number);
                if self.try_grow(rank.number, bytes) {
                    self.grant(rank.number, now);
                } else if rank.must_fit_whole {
                    break;
                }
            }
            if self.over_budget.is_some() {
                return;
            }
            // A page that has no host and holds nothing can wait until memory is free.
            let may =
                |number: &u64| self.pages.get(number).is_some_and(|page| page.host.is_some() || page.held_bytes > 0);
            let Some(number) = self.waiting.iter().map(|rank| rank.number).filter(may).min() else { return };
            let bytes = self.requested_bytes(number);
            self.set_pending(number, 0);
            self.set_held(number, 0);
            self.over_budget = Some(number);
            self.try_grow(number, bytes);
            self.grant(number, now);
        }
    }

    fn next_waiting(&self, after: Option<QueueRank>) -> Option<QueueRank> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.waiting.range((from, Bound::Unbounded)).next().copied()
    }

    fn requested_bytes(&self, number: u64) -> u64 {
        self.pages.get(&number).and_then(|page| page.memory_request).map_or(0, |request| request.bytes)
    }

    fn grant(&mut self, number: u64, now: Instant) {
        self.withdraw(number, now);
        if let Some(page) = self.pages.get(&number) {
            page.changed.notify_one();
        }
    }

    /// Shrinks the page to `bytes`, which is all that it is expected to need.
    pub(super) fn shrink(&mut self, number: u64, bytes: u64, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        let bytes = bytes.next_multiple_of(UNIT).min(page.held_bytes);
        page.expected_bytes = bytes;
        page.arrived_bytes = page.arrived_bytes.min(bytes);
        // A page that has released all its bytes is preempted no more.
        page.is_preempted &= bytes > 0;
        self.set_pending(number, 0);
        if self.over_budget == Some(number) && self.used + bytes <= self.total {
            self.set_held(number, 0);
            self.over_budget = None;
        }
        self.set_held(number, bytes);
        self.grant_waiting(now);
    }

    /// Splits off a part of the page's bytes as a page of its own, which is local.
    pub(super) fn split(&mut self, number: u64, bytes: u64) -> (u64, Arc<Notify>) {
        let bytes = bytes.min(self.held_bytes(number));
        let host = self.pages.get(&number).and_then(|page| page.host.clone());
        let (part, changed) = self.open_page(host.as_deref(), 0);
        self.mark_arrived(part);
        let left = self.held_bytes(number) - bytes;
        self.set_held(number, 0);
        self.set_pending(number, 0);
        if self.over_budget == Some(number) {
            self.over_budget = Some(part);
        }
        self.set_held(part, bytes);
        self.set_held(number, left);
        if let Some(page) = self.pages.get_mut(&number) {
            page.expected_bytes = left;
            page.arrived_bytes = page.arrived_bytes.min(left);
            page.begun = false;
            page.is_preempted &= left > 0;
        }
        (part, changed)
    }

    /// The page no longer depends on its publisher.
    pub(super) fn mark_arrived(&mut self, number: u64) {
        let is_over_budget = self.over_budget == Some(number);
        let Some(page) = self.pages.get_mut(&number) else { return };
        if !page.is_local && !is_over_budget {
            self.local_bytes += page.held_bytes;
        }
        page.is_local = true;
    }

    /// Records whether the page waits for bytes of its publisher.
    pub(super) fn set_receiving(&mut self, number: u64, is_receiving: bool, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        page.transfer_rate.set_receiving(is_receiving, now);
        self.update_pending(number);
    }

    pub(super) fn is_preempted(&self, number: u64) -> bool {
        self.pages.get(&number).is_some_and(|page| page.is_preempted)
    }

    /// Whether local bytes leave room for `bytes`; where they don't, the page awaits admission.
    pub(super) fn is_admitted(&mut self, number: u64, bytes: u64) -> bool {
        let room = self.local_bytes + bytes.min(self.total) <= self.total;
        if let Some(page) = self.pages.get_mut(&number) {
            page.awaits_admission = !room;
        }
        room
    }

    /// Whether the page is first in the queue, or has begun: there are few such pages.
    pub(super) fn is_near_front(&self, number: u64) -> bool {
        let begun = self.pages.get(&number).is_some_and(|page| page.begun);
        begun || self.waiting.first().is_some_and(|rank| rank.number == number)
    }

    /// The bytes that the pages need that rank before.
    fn bytes_ahead(&self, rank: QueueRank) -> u64 {
        let needs = |rank: &QueueRank| {
            self.pages.get(&rank.number).map_or(0, |page| page.need(self.requested_bytes(rank.number)))
        };
        self.waiting.range(..rank).map(needs).sum()
    }

    /// The bytes that the page's host holds; those of the page alone where it has no host.
    fn host_bytes(&self, page: &PageAccount) -> u64 {
        page.host.as_ref().and_then(|host| self.hosts.get(host)).copied().unwrap_or(page.held_bytes)
    }

    fn set_held(&mut self, number: u64, bytes: u64) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        let before = std::mem::replace(&mut page.held_bytes, bytes);
        if let Some(host) = &page.host {
            let held = self.hosts.entry(Arc::clone(host)).or_default();
            *held = *held + bytes - before;
            if *held == 0 {
                self.hosts.remove(host);
            }
        }
        if self.over_budget != Some(number) {
            self.used = self.used + bytes - before;
            if page.is_local {
                self.local_bytes = self.local_bytes + bytes - before;
            }
        }
    }

    /// Updates the bytes that a page that has begun still expects.
    fn update_pending(&mut self, number: u64) {
        let Some(page) = self.pages.get(&number) else { return };
        let counts = page.begun && self.over_budget != Some(number);
        let pending = if counts { page.expected_bytes.saturating_sub(page.held_bytes) } else { 0 };
        self.set_pending(number, pending);
    }

    fn set_pending(&mut self, number: u64, bytes: u64) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        let (at, before) = std::mem::replace(&mut page.pending, (size(page.expected_bytes) as usize, bytes));
        self.pending_by_size[at] -= before;
        self.pending_by_size[page.pending.0] += bytes;
    }
}

/// The bytes charged for `bytes`: whole units, which grow with `bytes`, up to what the page is expected to need.
fn charged(bytes: u64, expected_bytes: u64) -> u64 {
    let exact = bytes.next_multiple_of(UNIT);
    let coarse = bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(UNIT));
    coarse.min(expected_bytes.max(exact))
}

/// Sizes by powers of two, above `SMALL`.
fn size(bytes: u64) -> u32 {
    64 - (bytes.saturating_sub(1) / SMALL).leading_zeros()
}

#[cfg(test)]
mod tests;
