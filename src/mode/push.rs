//! When push is believed: what each push endpoint of a feed brought and missed, and which mode follows from it.
//!
//! Pure: moments are passed in, as the time since some fixed one. An endpoint is believed (`proven`) once it has
//! delivered what the mirror did not have, or what a poll had brought within the grace, and until a poll finds an item
//! that it should have brought and doesn't bring within the grace. What the mirror has had for longer proves nothing:
//! anybody who once saw such a body can send it again. What came to pass while we refused intake, or while the endpoint
//! was not up all the time, is held against nobody.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::PushSettings;
use crate::feed::{ItemVersion, Mode, Modified, ModifiedOrder, PushTrust, Transport};

/// A moment: the time since some fixed one.
pub type Moment = Duration;

/// Items that are remembered as found by poll, or as delivered, at most.
const MAX_REMEMBERED_ITEMS: usize = 4_096;
/// What a missed item is remembered for, to tell that it came late.
const LATE_WINDOW: Duration = Duration::from_secs(600);

/// What changed with an endpoint's standing, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustChange {
    /// The endpoint.
    pub transport: Transport,
    /// How far it is believed now.
    pub push: PushTrust,
    /// Why, beginning with a fixed word.
    pub why: String,
}

/// What an endpoint has missed, and what of it came late, since it was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissCounts {
    /// The endpoint.
    pub transport: Transport,
    /// Items that it should have brought and did not within the grace.
    pub missed: u64,
    /// Items that it brought after that.
    pub late: u64,
}

/// A poll of a feed that came to its end.
#[derive(Clone, Debug)]
pub struct PollSummary {
    /// When it began.
    pub began: Moment,
    /// What it found that the mirror did not have.
    pub found: Vec<ItemVersion>,
}

/// All push endpoints of a feed.
#[derive(Debug)]
pub struct PushLedger {
    settings: PushSettings,
    order: ModifiedOrder,
    level: bool,
    /// When the last poll that came to the end began.
    last_poll_began: Option<Moment>,
    /// When we last refused what was pushed.
    last_refusal: Option<Moment>,
    endpoints: Vec<EndpointTrust>,
}

/// One push endpoint.
#[derive(Debug)]
struct EndpointTrust {
    transport: Transport,
    push: PushTrust,
    up_since: Option<Moment>,
    /// Whether a poll has come to the end since it is up: what happened before is here too.
    caught_up: bool,
    /// Both not told yet.
    missed: u64,
    late: u64,
    polled_items: HashMap<ItemKey, PolledItem>,
    pushed_items: HashMap<ItemKey, PushedItem>,
    pushed_order: VecDeque<ItemKey>,
}

type ItemKey = (Arc<str>, Box<str>);

/// What a poll found, and push may still bring.
#[derive(Clone, Debug)]
struct PolledItem {
    modified: Modified,
    at: Moment,
    /// Whether the endpoint should have brought it.
    push_expected: bool,
    missed: bool,
}

/// The newest version of an item that an endpoint brought lately, and when it brought it last.
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

    /// Believes it, by a version that was news or that a poll brought just before.
    fn mark_proven(&mut self, id: &str) -> Option<TrustChange> {
        match self.push {
            PushTrust::Unproven => self.set_trust(PushTrust::Proven, format!("proven: it delivered {id}")),
            PushTrust::Demoted => self.set_trust(PushTrust::Proven, format!("proven: it delivered {id} in time again")),
            PushTrust::Proven | PushTrust::None => None,
        }
    }

    fn record_pushed(&mut self, version: &ItemVersion, at: Moment, order: ModifiedOrder) {
        let key = (Arc::clone(&version.kind), version.id.clone());
        let recent = PushedItem { modified: version.modified.clone(), at };
        match self.pushed_items.entry(key) {
            // What comes again in an older version takes nothing from what came before it.
            Entry::Occupied(entry) if entry.get().modified.compare(&recent.modified, order).is_gt() => {}
            Entry::Occupied(mut entry) => {
                entry.insert(recent);
            }
            Entry::Vacant(entry) => {
                self.pushed_order.push_back(entry.key().clone());
                entry.insert(recent);
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
    /// With nothing up; `known` is how far each endpoint was believed before a restart.
    pub fn new(
        settings: PushSettings,
        order: ModifiedOrder,
        known: impl IntoIterator<Item = (Transport, PushTrust)>,
    ) -> Self {
        let accounts = known.into_iter().map(|(transport, push)| {
            let push = if push == PushTrust::None { PushTrust::Unproven } else { push };
            EndpointTrust::new(transport, push)
        });
        Self { settings, order, level: false, last_poll_began: None, last_refusal: None, endpoints: accounts.collect() }
    }

    /// What keeps the feed current: the first endpoint that is believed, up, and has been polled behind.
    pub fn mode(&self) -> Mode {
        if !self.level {
            return Mode::Refresh;
        }
        match self.endpoints.iter().find(|account| account.is_live()).map(|account| account.transport) {
            Some(Transport::Sse) => Mode::Sse,
            Some(Transport::Webhook) => Mode::Webhook,
            Some(Transport::Amqp) => Mode::Amqp,
            Some(Transport::Poll) | None => Mode::Poll,
        }
    }

    /// How far the feed's push is believed: as far as its best endpoint.
    pub fn best_trust(&self) -> PushTrust {
        let has = |push| self.endpoints.iter().any(|account| account.push == push);
        [PushTrust::Proven, PushTrust::Unproven, PushTrust::Demoted]
            .into_iter()
            .find(|push| has(*push))
            .unwrap_or(PushTrust::None)
    }

    /// What was missed or came late since this was last asked.
    pub fn take_miss_counts(&mut self) -> Vec<MissCounts> {
        let told = self.endpoints.iter_mut().map(|account| MissCounts {
            transport: account.transport,
            missed: std::mem::take(&mut account.missed),
            late: std::mem::take(&mut account.late),
        });
        told.filter(|tally| tally.missed + tally.late > 0).collect()
    }

    fn endpoint_mut(&mut self, transport: Transport) -> Option<&mut EndpointTrust> {
        self.endpoints.iter_mut().find(|account| account.transport == transport)
    }

    /// An endpoint is connected, or listens.
    pub fn mark_up(&mut self, transport: Transport, now: Moment) {
        if let Some(account) = self.endpoint_mut(transport)
            && account.up_since.is_none()
        {
            account.up_since = Some(now);
            account.caught_up = false;
        }
    }

    /// An endpoint is lost.
    pub fn mark_down(&mut self, transport: Transport) {
        if let Some(account) = self.endpoint_mut(transport) {
            account.up_since = None;
            account.caught_up = false;
            // What it missed before is remembered: it may still bring it.
            account.polled_items.retain(|_, found| !found.push_expected || found.missed);
        }
    }

    /// We refused what was pushed, so nobody can be blamed for what is missing.
    pub fn record_refusal(&mut self, now: Moment) {
        self.last_refusal = Some(now);
        self.endpoints
            .iter_mut()
            .for_each(|account| account.polled_items.values_mut().for_each(|found| found.push_expected = false));
    }

    /// An endpoint's items are committed, `brought` in their order.
    pub fn record_pushed_items(
        &mut self,
        transport: Transport,
        now: Moment,
        brought: &[ItemVersion],
    ) -> Option<TrustChange> {
        let (order, grace) = (self.order, self.settings.grace);
        let account = self.endpoint_mut(transport)?;
        let mut proof = None;
        for version in brought {
            account.record_pushed(version, now, order);
            let key = (Arc::clone(&version.kind), version.id.clone());
            let met =
                account.polled_items.get(&key).filter(|found| version.modified.compare(&found.modified, order).is_ge());
            let in_time = met.is_some_and(|found| now.saturating_sub(found.at) <= grace);
            account.late += u64::from(met.is_some_and(|found| found.missed));
            if met.is_some() {
                account.polled_items.remove(&key);
            }
            if proof.is_none() && (version.written || in_time) {
                proof = Some(version.id.clone());
            }
        }
        account.mark_proven(&proof?)
    }

    /// A poll came to the feed's end. It proves who brought, while it ran, what it found too.
    pub fn record_poll(&mut self, now: Moment, polled: PollSummary) -> Vec<TrustChange> {
        let (before, refused, order) = (self.last_poll_began, self.last_refusal, self.order);
        let raced = polled.began..=polled.began + self.settings.grace;
        let mut changes = Vec::new();
        for account in &mut self.endpoints {
            // Up for the whole span since the last poll began, and not refused by us within it.
            let whole = before.is_some_and(|before| {
                account.up_since.is_some_and(|up| up <= before) && refused.is_none_or(|refused| refused < before)
            });
            let owed = whole && account.is_live();
            for version in &polled.found {
                let key = (Arc::clone(&version.kind), version.id.clone());
                let has = |brought: &&PushedItem| brought.modified.compare(&version.modified, order).is_ge();
                match account.pushed_items.get(&key).filter(has).map(|brought| brought.at) {
                    Some(at) if raced.contains(&at) => changes.extend(account.mark_proven(&version.id)),
                    Some(_) => {}
                    None if account.polled_items.len() < MAX_REMEMBERED_ITEMS => {
                        let found = PolledItem {
                            modified: version.modified.clone(),
                            at: now,
                            push_expected: owed,
                            missed: false,
                        };
                        account.polled_items.insert(key, found);
                    }
                    None => {}
                }
            }
            account.caught_up |= account.up_since.is_some_and(|up| up <= polled.began);
        }
        self.last_poll_began = Some(polled.began);
        self.level = true;
        changes
    }

    /// What the passing of time decides: missed items, and streams that have stayed open.
    pub fn tick(&mut self, now: Moment) -> Vec<TrustChange> {
        let PushSettings { prove_after, grace, .. } = self.settings;
        let mut changes = Vec::new();
        for account in &mut self.endpoints {
            let mut missed = Vec::new();
            account.polled_items.retain(|key, found| {
                let since = now.saturating_sub(found.at);
                if found.push_expected && !found.missed && since > grace {
                    found.missed = true;
                    missed.push(key.1.clone());
                }
                since <= if found.missed { LATE_WINDOW } else { grace }
            });
            account.missed += missed.len() as u64;
            missed.sort_unstable();
            if let Some(first) = missed.first().filter(|_| account.push == PushTrust::Proven) {
                let why = format!(
                    "missed: a poll found {} that it did not bring within {grace:?} ({first})",
                    if missed.len() == 1 { "an item".to_owned() } else { format!("{} items", missed.len()) },
                );
                changes.extend(account.set_trust(PushTrust::Demoted, why));
            }
            let open = account.up_since.is_some_and(|up| now.saturating_sub(up) >= prove_after);
            if open && account.transport == Transport::Sse && account.push == PushTrust::Unproven {
                let why = format!("proven: the connection has stayed open for {prove_after:?}");
                changes.extend(account.set_trust(PushTrust::Proven, why));
            }
        }
        changes
    }

    /// When [`Self::tick`] has something to decide next.
    pub fn next_tick(&self) -> Option<Moment> {
        let PushSettings { prove_after, grace, .. } = self.settings;
        let account = |account: &EndpointTrust| {
            let opening =
                account.up_since.filter(|_| account.transport == Transport::Sse && account.push == PushTrust::Unproven);
            let owed = account
                .polled_items
                .values()
                .filter(|found| found.push_expected && !found.missed)
                .map(|found| found.at)
                .min();
            let open = opening.map(|up| up + prove_after);
            let due = owed.map(|at| at + grace + Duration::from_millis(1));
            open.into_iter().chain(due).min()
        };
        self.endpoints.iter().filter_map(account).min()
    }
}

#[cfg(test)]
mod tests;
