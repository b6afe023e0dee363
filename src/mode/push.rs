//! When push is trusted: records what each push endpoint of a feed delivered and missed, and decides the feed's mode.
//!
//! Pure: moments are passed in, as the time since some fixed one. An endpoint is trusted (`proven`) once it has
//! delivered a version new to the mirror, or one that a poll found at most `grace` earlier. The trust ends when a poll
//! finds an item that the endpoint should have delivered and does not deliver within `grace`. A version that
//! the mirror has had for longer proves nothing: anybody who once saw such a body can send it again. Items that changed
//! while the mirror refused intake, or while the endpoint was not up all the time, count as missed by no endpoint.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::PushSettings;
use crate::feed::{ItemVersion, Mode, Modified, ModifiedOrder, PushTrust, Transport};

/// A moment: the time since some fixed one.
pub type Moment = Duration;

/// The most items of an endpoint that are kept as found by poll, and as pushed.
const MAX_REMEMBERED_ITEMS: usize = 4_096;
/// How long a missed item is kept, to count it as late if it is delivered after all.
const LATE_WINDOW: Duration = Duration::from_secs(600);

/// A change of the trust in an endpoint, with the reason for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustChange {
    pub transport: Transport,
    /// How far the endpoint is trusted now.
    pub push: PushTrust,
    /// The reason, beginning with a fixed word.
    pub why: String,
}

/// The items that an endpoint has missed, and those that came late, since the counts were last taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissCounts {
    pub transport: Transport,
    /// Items that the endpoint should have delivered and did not within the grace.
    pub missed: u64,
    /// Items that the endpoint delivered after that.
    pub late: u64,
}

/// A poll that came to the feed's end.
#[derive(Clone, Debug)]
pub struct PollSummary {
    /// When the poll began.
    pub began: Moment,
    /// The item versions that the poll found and the mirror did not have.
    pub found: Vec<ItemVersion>,
}

/// The record of all push endpoints of a feed.
#[derive(Debug)]
pub struct PushLedger {
    settings: PushSettings,
    order: ModifiedOrder,
    level: bool,
    /// When the last poll that came to the end began.
    last_poll_began: Option<Moment>,
    /// When the mirror last refused what was pushed.
    last_refusal: Option<Moment>,
    endpoints: Vec<EndpointTrust>,
}

/// The trust in one push endpoint.
#[derive(Debug)]
struct EndpointTrust {
    transport: Transport,
    push: PushTrust,
    up_since: Option<Moment>,
    /// Whether a poll has come to the feed's end since the endpoint is up: the changes before are mirrored too.
    caught_up: bool,
    /// Missed and late items that are not taken yet.
    missed: u64,
    late: u64,
    polled_items: HashMap<ItemKey, PolledItem>,
    pushed_items: HashMap<ItemKey, PushedItem>,
    pushed_order: VecDeque<ItemKey>,
}

type ItemKey = (Arc<str>, Box<str>);

/// An item that a poll found, and that push may still deliver.
#[derive(Clone, Debug)]
struct PolledItem {
    modified: Modified,
    at: Moment,
    /// Whether the endpoint should have delivered the item.
    push_expected: bool,
    missed: bool,
}

/// The newest version of an item that an endpoint delivered lately, and when it delivered that last.
#[derive(Clone, Debug)]
struct PushedItem {
    modified: Modified,
    at: Moment,
}

impl EndpointTrust {
    fn new(transport: Transport, push: PushTrust) -> Self {
        Self {
            transport,
            push,
            up_since: None,
            caught_up: false,
            missed: 0,
            late: 0,
            polled_items: HashMap::new(),
            pushed_items: HashMap::new(),
            pushed_order: VecDeque::new(),
        }
    }

    fn is_live(&self) -> bool {
        self.push == PushTrust::Proven && self.up_since.is_some() && self.caught_up
    }

    fn set_trust(&mut self, push: PushTrust, why: String) -> Option<TrustChange> {
        self.push = push;
        Some(TrustChange { transport: self.transport, push, why })
    }

    /// Trusts the endpoint, because of a version that was new or that a poll found just before.
    fn mark_proven(&mut self, id: &str) -> Option<TrustChange> {
        match self.push {
            PushTrust::Unproven => self.set_trust(PushTrust::Proven, format!("proven: it delivered {id}")),
            PushTrust::Demoted => self.set_trust(PushTrust::Proven, format!("proven: it delivered {id} in time again")),
            PushTrust::Proven | PushTrust::None => None,
        }
    }

    fn record_pushed(&mut self, version: &ItemVersion, at: Moment, order: ModifiedOrder) {
        let key = (Arc::clone(&version.kind), version.id.clone());
        let pushed = PushedItem { modified: version.modified.clone(), at };
        match self.pushed_items.entry(key) {
            // An older version that is delivered again does not replace the newer one.
            Entry::Occupied(entry) if entry.get().modified.compare(&pushed.modified, order).is_gt() => {}
            Entry::Occupied(mut entry) => {
                entry.insert(pushed);
            }
            Entry::Vacant(entry) => {
                self.pushed_order.push_back(entry.key().clone());
                entry.insert(pushed);
            }
        }
        if self.pushed_order.len() > MAX_REMEMBERED_ITEMS
            && let Some(oldest) = self.pushed_order.pop_front()
        {
            self.pushed_items.remove(&oldest);
        }
    }
}

impl PushLedger {
    /// A ledger with no endpoint up; `known` is how far each endpoint was trusted before a restart.
    pub fn new(
        settings: PushSettings,
        order: ModifiedOrder,
        known: impl IntoIterator<Item = (Transport, PushTrust)>,
    ) -> Self {
        let endpoints = known.into_iter().map(|(transport, push)| {
            let push = if push == PushTrust::None { PushTrust::Unproven } else { push };
            EndpointTrust::new(transport, push)
        });
        Self {
            settings,
            order,
            level: false,
            last_poll_began: None,
            last_refusal: None,
            endpoints: endpoints.collect(),
        }
    }

    /// The feed's mode: by the first endpoint that is trusted, up, and caught up by a poll.
    pub fn mode(&self) -> Mode {
        if !self.level {
            return Mode::Refresh;
        }
        match self.endpoints.iter().find(|endpoint| endpoint.is_live()).map(|endpoint| endpoint.transport) {
            Some(Transport::Sse) => Mode::Sse,
            Some(Transport::Webhook) => Mode::Webhook,
            Some(Transport::Amqp) => Mode::Amqp,
            Some(Transport::Poll) | None => Mode::Poll,
        }
    }

    /// How far the feed's push is trusted: as far as its best endpoint.
    pub fn best_trust(&self) -> PushTrust {
        let has = |push| self.endpoints.iter().any(|endpoint| endpoint.push == push);
        [PushTrust::Proven, PushTrust::Unproven, PushTrust::Demoted]
            .into_iter()
            .find(|push| has(*push))
            .unwrap_or(PushTrust::None)
    }

    /// The counts since the last call; resets them.
    pub fn take_miss_counts(&mut self) -> Vec<MissCounts> {
        let counts = self.endpoints.iter_mut().map(|endpoint| MissCounts {
            transport: endpoint.transport,
            missed: std::mem::take(&mut endpoint.missed),
            late: std::mem::take(&mut endpoint.late),
        });
        counts.filter(|count| count.missed + count.late > 0).collect()
    }

    fn endpoint_mut(&mut self, transport: Transport) -> Option<&mut EndpointTrust> {
        self.endpoints.iter_mut().find(|endpoint| endpoint.transport == transport)
    }

    /// An endpoint is connected, or listens.
    pub fn mark_up(&mut self, transport: Transport, now: Moment) {
        if let Some(endpoint) = self.endpoint_mut(transport)
            && endpoint.up_since.is_none()
        {
            endpoint.up_since = Some(now);
            endpoint.caught_up = false;
        }
    }

    /// An endpoint is lost.
    pub fn mark_down(&mut self, transport: Transport) {
        if let Some(endpoint) = self.endpoint_mut(transport) {
            endpoint.up_since = None;
            endpoint.caught_up = false;
            // Items missed before are kept: the endpoint may still deliver them.
            endpoint.polled_items.retain(|_, found| !found.push_expected || found.missed);
        }
    }

    /// The mirror refused what was pushed: an item that is missing may have been among that.
    pub fn record_refusal(&mut self, now: Moment) {
        self.last_refusal = Some(now);
        self.endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.polled_items.values_mut().for_each(|found| found.push_expected = false));
    }

    /// The items that an endpoint delivered are committed; `versions` in the order of delivery.
    pub fn record_pushed_items(
        &mut self,
        transport: Transport,
        now: Moment,
        versions: &[ItemVersion],
    ) -> Option<TrustChange> {
        let (order, grace) = (self.order, self.settings.grace);
        let endpoint = self.endpoint_mut(transport)?;
        let mut proving_id = None;
        for version in versions {
            endpoint.record_pushed(version, now, order);
            let key = (Arc::clone(&version.kind), version.id.clone());
            let polled = endpoint
                .polled_items
                .get(&key)
                .filter(|found| version.modified.compare(&found.modified, order).is_ge());
            let in_time = polled.is_some_and(|found| now.saturating_sub(found.at) <= grace);
            endpoint.late += u64::from(polled.is_some_and(|found| found.missed));
            if polled.is_some() {
                endpoint.polled_items.remove(&key);
            }
            if proving_id.is_none() && (version.written || in_time) {
                proving_id = Some(version.id.clone());
            }
        }
        endpoint.mark_proven(&proving_id?)
    }

    /// A poll came to the feed's end. It proves the endpoints that delivered, while the poll ran, an item that it
    /// found.
    pub fn record_poll(&mut self, now: Moment, poll: PollSummary) -> Vec<TrustChange> {
        let (last_poll_began, last_refusal, order) = (self.last_poll_began, self.last_refusal, self.order);
        let in_time = poll.began..=poll.began + self.settings.grace;
        let mut changes = Vec::new();
        for endpoint in &mut self.endpoints {
            // Up during the whole time since the last poll began, in which the mirror refused nothing.
            let up_throughout = last_poll_began.is_some_and(|last_poll_began| {
                endpoint.up_since.is_some_and(|up| up <= last_poll_began)
                    && last_refusal.is_none_or(|last_refusal| last_refusal < last_poll_began)
            });
            let push_expected = up_throughout && endpoint.is_live();
            for version in &poll.found {
                let key = (Arc::clone(&version.kind), version.id.clone());
                let has = |pushed: &&PushedItem| pushed.modified.compare(&version.modified, order).is_ge();
                match endpoint.pushed_items.get(&key).filter(has).map(|pushed| pushed.at) {
                    Some(at) if in_time.contains(&at) => changes.extend(endpoint.mark_proven(&version.id)),
                    Some(_) => {}
                    None if endpoint.polled_items.len() < MAX_REMEMBERED_ITEMS => {
                        let found =
                            PolledItem { modified: version.modified.clone(), at: now, push_expected, missed: false };
                        endpoint.polled_items.insert(key, found);
                    }
                    None => {}
                }
            }
            endpoint.caught_up |= endpoint.up_since.is_some_and(|up| up <= poll.began);
        }
        self.last_poll_began = Some(poll.began);
        self.level = true;
        changes
    }

    /// Decides what depends on the passing of time: missed items, and streams that have stayed open.
    pub fn tick(&mut self, now: Moment) -> Vec<TrustChange> {
        let PushSettings { prove_after, grace, .. } = self.settings;
        let mut changes = Vec::new();
        for endpoint in &mut self.endpoints {
            let mut missed = Vec::new();
            endpoint.polled_items.retain(|key, found| {
                let since = now.saturating_sub(found.at);
                if found.push_expected && !found.missed && since > grace {
                    found.missed = true;
                    missed.push(key.1.clone());
                }
                since <= if found.missed { LATE_WINDOW } else { grace }
            });
            endpoint.missed += missed.len() as u64;
            missed.sort_unstable();
            if let Some(first) = missed.first().filter(|_| endpoint.push == PushTrust::Proven) {
                let why = format!(
                    "missed: a poll found {} that it did not bring within {grace:?} ({first})",
                    if missed.len() == 1 { "an item".to_owned() } else { format!("{} items", missed.len()) },
                );
                changes.extend(endpoint.set_trust(PushTrust::Demoted, why));
            }
            let has_stayed_open = endpoint.up_since.is_some_and(|up| now.saturating_sub(up) >= prove_after);
            if has_stayed_open && endpoint.transport == Transport::Sse && endpoint.push == PushTrust::Unproven {
                let why = format!("proven: the connection has stayed open for {prove_after:?}");
                changes.extend(endpoint.set_trust(PushTrust::Proven, why));
            }
        }
        changes
    }

    /// When [`Self::tick`] has something to decide next.
    pub fn next_tick(&self) -> Option<Moment> {
        let PushSettings { prove_after, grace, .. } = self.settings;
        let endpoint = |endpoint: &EndpointTrust| {
            let opened_at = endpoint
                .up_since
                .filter(|_| endpoint.transport == Transport::Sse && endpoint.push == PushTrust::Unproven);
            let next_miss = endpoint
                .polled_items
                .values()
                .filter(|found| found.push_expected && !found.missed)
                .map(|found| found.at)
                .min();
            let proven_at = opened_at.map(|up| up + prove_after);
            let miss_due = next_miss.map(|at| at + grace + Duration::from_millis(1));
            proven_at.into_iter().chain(miss_due).min()
        };
        self.endpoints.iter().filter_map(endpoint).min()
    }
}

#[cfg(test)]
mod tests;
