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

use super::pace::{Pace, WINDOW};

const UNIT: u64 = 4 << 10;
/// What is larger than this is weighed before it goes on.
const SMALL: u64 = 64 << 10;
/// Who has waited so long for memory asks slow pages to give way.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// Who has waited so long asks those of hosts that hold more, too.
const LONGER: Duration = Duration::from_secs(1);

/// What became of a wish for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Granted,
    Waits,
    GivesWay,
}

/// The account.
pub(super) struct Ledger {
    total: u64,
    used: u64,
    /// Of that, what doesn't depend on a publisher any more.
    ours: u64,
    beyond: Option<u64>,
    /// By number, which is by age.
    pages: BTreeMap<u64, Page>,
    /// Who waits, in the order of being served.
    waiting: BTreeSet<Place>,
    hosts: HashMap<Arc<str>, u64>,
    /// What pages that have begun still expect, by size.
    expected: [u64; 64],
    next: u64,
}

/// Pages that have begun come first, so that they end; then small ones, then those that are weighed; of each the
/// smallest, then the oldest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    new: bool,
    weighed: bool,
    size: u32,
    number: u64,
}

/// What a page waits for.
#[derive(Clone, Copy)]
struct Want {
    bytes: u64,
    since: Instant,
    place: Place,
}

/// What one page holds.
struct Page {
    /// None of whoever never gives way.
    host: Option<Arc<str>>,
    held: u64,
    /// Of that, what has come.
    came: u64,
    claim: u64,
    /// What its claim adds to those of its size.
    pending: (usize, u64),
    begun: bool,
    ours: bool,
    want: Option<Want>,
    kept_out: bool,
    waited: Duration,
    pace: Pace,
    gives_way: bool,
    changed: Arc<Notify>,
}

impl Page {
    /// Whether it has to find room for all that it is expected to need before it goes on.
    fn is_weighed(&self, bytes: u64) -> bool {
        !self.begun && self.claim.max(bytes) > SMALL
    }

    fn place(&self, number: u64, bytes: u64) -> Place {
        Place { new: !self.begun, weighed: self.is_weighed(bytes), size: size(self.claim.max(bytes)), number }
    }

    /// What has to be free for it to hold `bytes`, beside what it holds.
    fn need(&self, bytes: u64) -> u64 {
        let whole = if self.is_weighed(bytes) { self.claim.max(bytes) } else { bytes };
        whole.saturating_sub(self.held)
    }
}

impl Ledger {
    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            used: 0,
            ours: 0,
            beyond: None,
            pages: BTreeMap::new(),
            waiting: BTreeSet::new(),
            hosts: HashMap::new(),
            expected: [0; 64],
            next: 0,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Enters a page that holds nothing yet and is expected to need `claim`; one without a host is ours from the start.
    pub(super) fn enter(&mut self, host: Option<&str>, claim: u64) -> (u64, Arc<Notify>) {
        let known = host.and_then(|host| self.hosts.get_key_value(host).map(|(known, _)| Arc::clone(known)));
        let host = known.or_else(|| host.map(Arc::from));
        let changed = Arc::new(Notify::new());
        let page = Page {
            ours: host.is_none(),
            host,
            held: 0,
            came: 0,
            claim,
            pending: (0, 0),
            begun: false,
            want: None,
            kept_out: false,
            waited: Duration::ZERO,
            pace: Pace::default(),
            gives_way: false,
            changed: Arc::clone(&changed),
        };
        let number = self.next;
        self.next += 1;
        self.pages.insert(number, page);
        (number, changed)
    }

    pub(super) fn leave(&mut self, number: u64, now: Instant) {
        self.withdraw(number, now);
        self.set_held(number, 0);
        self.set_pending(number, 0);
        self.pages.remove(&number);
        if self.beyond == Some(number) {
            self.beyond = None;
        }
        self.settle(now);
    }

    pub(super) fn held(&self, number: u64) -> u64 {
        self.pages.get(&number).map_or(0, |page| page.held)
    }

    pub(super) fn claim(&self, number: u64) -> u64 {
        self.pages.get(&number).map_or(0, |page| page.claim)
    }

    /// How long the page has waited for memory, until now.
    pub(super) fn waited(&self, number: u64, now: Instant) -> Duration {
        let waited = |page: &Page| {
            page.waited + page.want.map_or(Duration::ZERO, |want| now.saturating_duration_since(want.since))
        };
        self.pages.get(&number).map_or(Duration::ZERO, waited)
    }

    pub(super) fn is_waiting(&self, number: u64) -> bool {
        self.pages.get(&number).is_some_and(|page| page.want.is_some() || page.kept_out)
    }

    /// How many wait, and the host that holds most.
    pub(super) fn overview(&self) -> (usize, Option<(&str, u64)>) {
        let most = self.hosts.iter().max_by_key(|(_, held)| **held).map(|(host, held)| (&**host, *held));
        (self.waiting.len(), most)
    }

    /// The page is expected to need this much, as far as is known now.
    pub(super) fn expect(&mut self, number: u64, bytes: u64) {
        if let Some(page) = self.pages.get_mut(&number).filter(|page| page.want.is_none()) {
            page.claim = bytes.max(page.held);
        }
        self.refresh(number);
    }

    /// The page is to hold `bytes`, if that is more than now.
    pub(super) fn wish(&mut self, number: u64, bytes: u64, now: Instant) -> Wish {
        let Some(page) = self.pages.get_mut(&number) else { return Wish::Granted };
        if page.held == 0 {
            page.pace.begin(now);
        }
        page.pace.came(bytes.saturating_sub(page.came), now);
        page.came = bytes;
        if bytes > page.held {
            if page.gives_way {
                return Wish::GivesWay;
            }
            let bytes = charged(bytes, page.claim);
            let place = page.place(number, bytes);
            let outranked = place.weighed && self.waiting.range(..place).next().is_some();
            if outranked || !self.take(number, bytes) {
                self.wait(number, bytes, now);
                self.settle(now);
            }
        }
        match self.is_waiting(number) {
            true => Wish::Waits,
            false => Wish::Granted,
        }
    }

    fn wait(&mut self, number: u64, bytes: u64, now: Instant) {
        self.withdraw(number, now);
        let Some(page) = self.pages.get_mut(&number) else { return };
        let place = page.place(number, bytes);
        page.want = Some(Want { bytes, since: now, place });
        self.waiting.insert(place);
    }

    /// The page waits no more; what it waited counts.
    pub(super) fn withdraw(&mut self, number: u64, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        if let Some(want) = page.want.take() {
            page.waited += now.saturating_duration_since(want.since);
            self.waiting.remove(&want.place);
        }
    }

    /// Gives the page what it wishes for, if that is free.
    fn take(&mut self, number: u64, bytes: u64) -> bool {
        let Some(page) = self.pages.get(&number) else { return true };
        if self.beyond != Some(number) {
            let place = page.place(number, bytes);
            let others = &self.expected[..=place.size as usize];
            let others = if place.weighed { others.iter().sum() } else { 0 };
            if self.used + others + page.need(bytes) > self.total {
                return false;
            }
        }
        if let Some(page) = self.pages.get_mut(&number) {
            page.claim = page.claim.max(bytes);
            page.begun |= page.claim > SMALL;
        }
        self.set_held(number, bytes);
        self.refresh(number);
        true
    }

    /// Serves whoever waits and can be: the smallest first, then by age; then the oldest goes beyond.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut after = None;
            while let Some(place) = self.behind(after) {
                after = Some(place);
                let bytes = self.wanted(place.number);
                if self.take(place.number, bytes) {
                    self.grant(place.number, now);
                } else if place.weighed {
                    break;
                }
            }
            if self.beyond.is_some() {
                return;
            }
            // Who has no host and holds nothing can wait until there is room.
            let may = |number: &u64| self.pages.get(number).is_some_and(|page| page.host.is_some() || page.held > 0);
            let Some(number) = self.waiting.iter().map(|place| place.number).filter(may).min() else { return };
            let bytes = self.wanted(number);
            self.set_pending(number, 0);
            self.set_held(number, 0);
            self.beyond = Some(number);
            self.take(number, bytes);
            self.grant(number, now);
        }
    }

    fn behind(&self, place: Option<Place>) -> Option<Place> {
        let from = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.waiting.range((from, Bound::Unbounded)).next().copied()
    }

    fn wanted(&self, number: u64) -> u64 {
        self.pages.get(&number).and_then(|page| page.want).map_or(0, |want| want.bytes)
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
        let bytes = bytes.next_multiple_of(UNIT).min(page.held);
        page.claim = bytes;
        page.came = page.came.min(bytes);
        // Whoever waits for it has what it held.
        page.gives_way &= bytes > 0;
        self.set_pending(number, 0);
        if self.beyond == Some(number) && self.used + bytes <= self.total {
            self.set_held(number, 0);
            self.beyond = None;
        }
        self.set_held(number, bytes);
        self.settle(now);
    }

    /// A part of what the page holds goes on by itself, and is ours.
    pub(super) fn split(&mut self, number: u64, bytes: u64) -> (u64, Arc<Notify>) {
        let bytes = bytes.min(self.held(number));
        let host = self.pages.get(&number).and_then(|page| page.host.clone());
        let (part, changed) = self.enter(host.as_deref(), 0);
        self.arrived(part);
        let left = self.held(number) - bytes;
        self.set_held(number, 0);
        self.set_pending(number, 0);
        if self.beyond == Some(number) {
            self.beyond = Some(part);
        }
        self.set_held(part, bytes);
        self.set_held(number, left);
        if let Some(page) = self.pages.get_mut(&number) {
            page.claim = left;
            page.came = page.came.min(left);
            page.begun = false;
            page.gives_way &= left > 0;
        }
        (part, changed)
    }

    /// The page no longer depends on its publisher.
    pub(super) fn arrived(&mut self, number: u64) {
        let beyond = self.beyond == Some(number);
        let Some(page) = self.pages.get_mut(&number) else { return };
        if !page.ours && !beyond {
            self.ours += page.held;
        }
        page.ours = true;
    }

    /// Its publisher is waited for, or no more.
    pub(super) fn receives(&mut self, number: u64, receives: bool, now: Instant) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        page.pace.waits(receives, now);
        self.refresh(number);
    }

    pub(super) fn gives_way(&self, number: u64) -> bool {
        self.pages.get(&number).is_some_and(|page| page.gives_way)
    }

    /// Whether as much could be taken in once publishers have no part in what is held; until then the page waits.
    pub(super) fn is_admitted(&mut self, number: u64, bytes: u64) -> bool {
        let room = self.ours + bytes.min(self.total) <= self.total;
        if let Some(page) = self.pages.get_mut(&number) {
            page.kept_out = !room;
        }
        room
    }

    /// Whether the page is the next to be served, or has begun: of these there are few.
    pub(super) fn is_pressing(&self, number: u64) -> bool {
        let begun = self.pages.get(&number).is_some_and(|page| page.begun);
        begun || self.waiting.first().is_some_and(|place| place.number == number)
    }

    /// The page has waited for as long as that: asks others to give way, as far as that helps it.
    pub(super) fn press(&mut self, number: u64, now: Instant) {
        let waited = self.waited(number, now);
        let Some(page) = self.pages.get(&number) else { return };
        let Some(want) = page.want.filter(|_| waited >= PATIENCE) else { return };
        let need = page.need(want.bytes);
        let (mine, fits) = (self.held_by(page) + need, page.held + need <= self.total);
        let mut victims: Vec<(bool, u64, u64)> = Vec::new();
        let mut coming = 0;
        for (other, page) in &self.pages {
            let beyond = self.beyond == Some(*other);
            if *other == number || page.held == 0 || page.host.is_none() || !(fits || beyond) {
                continue;
            }
            let gives = if beyond { u64::MAX } else { page.held };
            if page.gives_way {
                coming = u64::saturating_add(coming, gives);
                continue;
            }
            let stopped = page.pace.is_waited_for() || page.want.is_some();
            if !page.ours && stopped && page.pace.is_slow(now) {
                victims.push((true, gives, *other));
            } else if waited >= LONGER && !beyond && self.held_by(page) > mine {
                let long = page.pace.is_waited_for() && page.pace.time(now) >= WINDOW;
                if long || page.want.is_some() {
                    victims.push((false, self.held_by(page), *other));
                }
            }
        }
        let need = if victims.is_empty() { 0 } else { need + self.ahead_of(want.place) };
        victims.sort_unstable();
        while coming < need
            && let Some((_, _, other)) = victims.pop()
        {
            let gives = if self.beyond == Some(other) { u64::MAX } else { self.held(other) };
            coming = coming.saturating_add(gives);
            if let Some(page) = self.pages.get_mut(&other) {
                page.gives_way = true;
                page.changed.notify_one();
            }
        }
        // Of a page that turns out to be slow nothing is expected any more.
        let open: Vec<u64> = self.pages.iter().filter(|(_, page)| page.pending.1 > 0).map(|(at, _)| *at).collect();
        for at in open {
            if self.pages.get(&at).is_some_and(|page| page.pace.is_slow(now)) {
                self.set_pending(at, 0);
            }
        }
        self.settle(now);
    }

    /// What those need that are served before.
    fn ahead_of(&self, place: Place) -> u64 {
        let needs =
            |place: &Place| self.pages.get(&place.number).map_or(0, |page| page.need(self.wanted(place.number)));
        self.waiting.range(..place).map(needs).sum()
    }

    /// What its host holds, or it alone where it has none.
    fn held_by(&self, page: &Page) -> u64 {
        page.host.as_ref().and_then(|host| self.hosts.get(host)).copied().unwrap_or(page.held)
    }

    fn set_held(&mut self, number: u64, bytes: u64) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        let before = std::mem::replace(&mut page.held, bytes);
        if let Some(host) = &page.host {
            let held = self.hosts.entry(Arc::clone(host)).or_default();
            *held = *held + bytes - before;
            if *held == 0 {
                self.hosts.remove(host);
            }
        }
        if self.beyond != Some(number) {
            self.used = self.used + bytes - before;
            if page.ours {
                self.ours = self.ours + bytes - before;
            }
        }
    }

    /// Says anew what a page that has begun still expects.
    fn refresh(&mut self, number: u64) {
        let Some(page) = self.pages.get(&number) else { return };
        let counts = page.begun && self.beyond != Some(number);
        let pending = if counts { page.claim.saturating_sub(page.held) } else { 0 };
        self.set_pending(number, pending);
    }

    fn set_pending(&mut self, number: u64, bytes: u64) {
        let Some(page) = self.pages.get_mut(&number) else { return };
        let (at, before) = std::mem::replace(&mut page.pending, (size(page.claim) as usize, bytes));
        self.expected[at] -= before;
        self.expected[page.pending.0] += bytes;
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
