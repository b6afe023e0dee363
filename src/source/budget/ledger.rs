//! Who holds how much of the budget, who waits, and who gives way: a pure account, with time passed in.
//!
//! - Bytes are charged as they come. A page that is small so far takes what is free. A larger one begins only where what
//!   it is expected to need is free too, beside what others of its size or smaller still expect: so pages that have begun
//!   come to their end, instead of all of them waiting half read. What is expected holds nothing from smaller pages, and
//!   nothing at all once its page is slow.
//! - When nothing is free, the one that has waited longest goes beyond the budget, one at a time; what it held returns.
//!   So nothing deadlocks, and memory is bounded by the budget and one largest page.
//! - A page that its publisher lets wait gives way to those that wait for memory; so does one whose host holds more than
//!   the waiting one's would. Never what is with us already, which ends by itself: to be decoded, or to be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::transfer_rate::{TransferRate, WINDOW};

const UNIT: u64 = 4 << 10;
/// What is larger than this is weighed before it goes on.
const SMALL: u64 = 64 << 10;
/// Who has waited so long for memory asks slow pages to give way.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// Who has waited so long asks those of hosts that hold more, too.
const LONGER: Duration = Duration::from_secs(1);

/// What became of a wish for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrowResult {
    Granted,
    Waiting,
    Preempted,
}

/// The account.
pub(super) struct MemoryLedger {
    total: u64,
    used: u64,
    /// Of that, what doesn't depend on a publisher any more.
    local_bytes: u64,
    over_budget: Option<u64>,
    /// By number, which is by age.
    pages: BTreeMap<u64, PageAccount>,
    /// Who waits, in the order of being served.
    waiting: BTreeSet<QueueRank>,
    hosts: HashMap<Arc<str>, u64>,
    /// What pages that have begun still expect, by size.
    pending_by_size: [u64; 64],
    next: u64,
}

/// Pages that have begun come first, so that they end; then small ones, then those that are weighed; of each the
/// smallest, then the oldest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct QueueRank {
    new: bool,
    must_fit_whole: bool,
    size: u32,
    number: u64,
}

/// What a page waits for.
#[derive(Clone, Copy)]
struct MemoryRequest {
    bytes: u64,
    since: Instant,
    rank: QueueRank,
}

/// What one page holds.
struct PageAccount {
    /// None of whoever never gives way.
    host: Option<Arc<str>>,
    held_bytes: u64,
    /// Of that, what has come.
    arrived_bytes: u64,
    expected_bytes: u64,
    /// What its claim adds to those of its size.
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
    /// Whether it has to find room for all that it is expected to need before it goes on.
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

    /// What has to be free for it to hold `bytes`, beside what it holds.
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

    /// Enters a page that holds nothing yet and is expected to need `claim`; one without a host is ours from the start.
    pub(super) fn open_page(&mut self, host: Option<&str>, claim: u64) -> (u64, Arc<Notify>) {
        let known = host.and_then(|host| self.hosts.get_key_value(host).map(|(known, _)| Arc::clone(known)));
        let host = known.or_else(|| host.map(Arc::from));
        let changed = Arc::new(Notify::new());
        let page = PageAccount {
            is_local: host.is_none(),
            host,
            held_bytes: 0,
            arrived_bytes: 0,
            expected_bytes: claim,
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
            page.waited + page.memory_request.map_or(Duration::ZERO, |want| now.saturating_duration_since(want.since))
        };
        self.pages.get(&number).map_or(Duration::ZERO, waited)
    }

    pub(super) fn is_waiting(&self, number: u64) -> bool {
        self.pages.get(&number).is_some_and(|page| page.memory_request.is_some() || page.awaits_admission)
    }

    /// How many wait, and the host that holds most.
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

    /// The page is to hold `bytes`, if that is more than now.
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
            let place = page.rank(number, bytes);
            let outranked = place.must_fit_whole && self.waiting.range(..place).next().is_some();
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
        let place = page.rank(number, bytes);
        page.memory_request = Some(MemoryRequest { bytes, since: now, rank: place });
        self.waiting.insert(place);
    }

    /// The page waits no more; what it waited counts.
    pub(super) fn withdraw(&mut self, number: u64, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        if let Some(want) = page.memory_request.take() {
            page.waited += now.saturating_duration_since(want.since);
            self.waiting.remove(&want.rank);
        }
    }

    /// Gives the page what it wishes for, if that is free.
    fn try_grow(&mut self, number: u64, bytes: u64) -> bool {
        let Some(page) = self.pages.get(&number) else { return true };
        if self.over_budget != Some(number) {
            let place = page.rank(number, bytes);
            let others = &self.pending_by_size[..=place.size as usize];
            let others = if place.must_fit_whole { others.iter().sum() } else { 0 };
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

    /// Serves whoever waits and can be: the smallest first, then by age; then the oldest goes beyond.
    fn grant_waiting(&mut self, now: Instant) {
        loop {
            let mut after = None;
            while let Some(place) = self.behind(after) {
                after = Some(place);
                let bytes = self.wanted(place.number);
                if self.try_grow(place.number, bytes) {
                    self.grant(place.number, now);
                } else if place.must_fit_whole {
                    break;
                }
            }
            if self.over_budget.is_some() {
                return;
            }
            // Who has no host and holds nothing can wait until there is room.
            let may =
                |number: &u64| self.pages.get(number).is_some_and(|page| page.host.is_some() || page.held_bytes > 0);
            let Some(number) = self.waiting.iter().map(|place| place.number).filter(may).min() else { return };
            let bytes = self.wanted(number);
            self.set_pending(number, 0);
            self.set_held(number, 0);
            self.over_budget = Some(number);
            self.try_grow(number, bytes);
            self.grant(number, now);
        }
    }

    fn behind(&self, place: Option<QueueRank>) -> Option<QueueRank> {
        let from = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.waiting.range((from, Bound::Unbounded)).next().copied()
    }

    fn wanted(&self, number: u64) -> u64 {
        self.pages.get(&number).and_then(|page| page.memory_request).map_or(0, |want| want.bytes)
    }

    fn grant(&mut self, number: u64, now: Instant) {
        self.withdraw(number, now);
        if let Some(page) = self.pages.get(&number) {
            page.changed.notify_one();
        }
    }

    /// The page is `bytes` large and no larger, as far as is known.
    pub(super) fn shrink(&mut self, number: u64, bytes: u64, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        let bytes = bytes.next_multiple_of(UNIT).min(page.held_bytes);
        page.expected_bytes = bytes;
        page.arrived_bytes = page.arrived_bytes.min(bytes);
        // Whoever waits for it has what it held.
        page.is_preempted &= bytes > 0;
        self.set_pending(number, 0);
        if self.over_budget == Some(number) && self.used + bytes <= self.total {
            self.set_held(number, 0);
            self.over_budget = None;
        }
        self.set_held(number, bytes);
        self.grant_waiting(now);
    }

    /// A part of what the page holds goes on by itself, and is ours.
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
        let beyond = self.over_budget == Some(number);
        let Some(page) = self.pages.get_mut(&number) else { return };
        if !page.is_local && !beyond {
            self.local_bytes += page.held_bytes;
        }
        page.is_local = true;
    }

    /// Its publisher is waited for, or no more.
    pub(super) fn set_receiving(&mut self, number: u64, receives: bool, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        page.transfer_rate.set_receiving(receives, now);
        self.update_pending(number);
    }

    pub(super) fn is_preempted(&self, number: u64) -> bool {
        self.pages.get(&number).is_some_and(|page| page.is_preempted)
    }

    /// Whether as much could be taken in once publishers have no part in what is held; until then the page waits.
    pub(super) fn is_admitted(&mut self, number: u64, bytes: u64) -> bool {
        let room = self.local_bytes + bytes.min(self.total) <= self.total;
        if let Some(page) = self.pages.get_mut(&number) {
            page.awaits_admission = !room;
        }
        room
    }

    /// Whether the page is the next to be served, or has begun: of these there are few.
    pub(super) fn is_near_front(&self, number: u64) -> bool {
        let begun = self.pages.get(&number).is_some_and(|page| page.begun);
        begun || self.waiting.first().is_some_and(|place| place.number == number)
    }

    /// The page has waited for as long as that: asks others to give way, as far as that helps it.
    pub(super) fn preempt_others(&mut self, number: u64, now: Instant) {
        let waited = self.waited(number, now);
        let Some(page) = self.pages.get(&number) else { return };
        let Some(want) = page.memory_request.filter(|_| waited >= PATIENCE) else { return };
        let need = page.need(want.bytes);
        let (mine, fits) = (self.host_bytes(page) + need, page.held_bytes + need <= self.total);
        let mut victims: Vec<(bool, u64, u64)> = Vec::new();
        let mut coming = 0;
        for (other, page) in &self.pages {
            let beyond = self.over_budget == Some(*other);
            if *other == number || page.held_bytes == 0 || page.host.is_none() || !(fits || beyond) {
                continue;
            }
            let gives = if beyond { u64::MAX } else { page.held_bytes };
            if page.is_preempted {
                coming = u64::saturating_add(coming, gives);
                continue;
            }
            let stopped = page.transfer_rate.is_receiving() || page.memory_request.is_some();
            if !page.is_local && stopped && page.transfer_rate.is_slow(now) {
                victims.push((true, gives, *other));
            } else if waited >= LONGER && !beyond && self.host_bytes(page) > mine {
                let long = page.transfer_rate.is_receiving() && page.transfer_rate.receiving_time_at(now) >= WINDOW;
                if long || page.memory_request.is_some() {
                    victims.push((false, self.host_bytes(page), *other));
                }
            }
        }
        let need = if victims.is_empty() { 0 } else { need + self.bytes_ahead(want.rank) };
        victims.sort_unstable();
        while coming < need
            && let Some((_, _, other)) = victims.pop()
        {
            let gives = if self.over_budget == Some(other) { u64::MAX } else { self.held_bytes(other) };
            coming = coming.saturating_add(gives);
            if let Some(page) = self.pages.get_mut(&other) {
                page.is_preempted = true;
                page.changed.notify_one();
            }
        }
        // Of a page that turns out to be slow nothing is expected any more.
        let open: Vec<u64> = self.pages.iter().filter(|(_, page)| page.pending.1 > 0).map(|(at, _)| *at).collect();
        for at in open {
            if self.pages.get(&at).is_some_and(|page| page.transfer_rate.is_slow(now)) {
                self.set_pending(at, 0);
            }
        }
        self.grant_waiting(now);
    }

    /// What those need that are served before.
    fn bytes_ahead(&self, place: QueueRank) -> u64 {
        let needs =
            |place: &QueueRank| self.pages.get(&place.number).map_or(0, |page| page.need(self.wanted(place.number)));
        self.waiting.range(..place).map(needs).sum()
    }

    /// What its host holds, or it alone where it has none.
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

    /// Says anew what a page that has begun still expects.
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

/// What is charged for so many bytes: whole units, which grow with them, up to what the page is expected to need.
fn charged(bytes: u64, claim: u64) -> u64 {
    let exact = bytes.next_multiple_of(UNIT);
    let coarse = bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(UNIT));
    coarse.min(claim.max(exact))
}

/// Sizes by powers of two, above what is small.
fn size(bytes: u64) -> u32 {
    64 - (bytes.saturating_sub(1) / SMALL).leading_zeros()
}

#[cfg(test)]
mod tests;
