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
use crate::feed::{Brought, Mode, Modified, Order, Push, Transport};

/// A moment: the time since some fixed one.
pub type Moment = Duration;

/// Items that are remembered as found by poll, or as delivered, at most.
const REMEMBERED: usize = 4_096;
/// What a missed item is remembered for, to tell that it came late.
const LATE: Duration = Duration::from_secs(600);

/// What changed with an endpoint's standing, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The endpoint.
    pub transport: Transport,
    /// How far it is believed now.
    pub push: Push,
    /// Why, beginning with a fixed word.
    pub why: String,
}

/// What an endpoint has missed, and what of it came late, since it was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The endpoint.
    pub transport: Transport,
    /// Items that it should have brought and did not within the grace.
    pub missed: u64,
    /// Items that it brought after that.
    pub late: u64,
}

/// A poll of a feed that came to its end.
#[derive(Clone, Debug)]
pub struct Polled {
    /// When it began.
    pub began: Moment,
    /// What it found that the mirror did not have.
    pub found: Vec<Brought>,
}

/// All push endpoints of a feed.
#[derive(Debug)]
pub struct Ledger {
    settings: PushSettings,
    order: Order,
    level: bool,
    /// When the last poll that came to the end began.
    polled: Option<Moment>,
    /// When we last refused what was pushed.
    refused: Option<Moment>,
    accounts: Vec<Account>,
}

/// One push endpoint.
#[derive(Debug)]
struct Account {
    transport: Transport,
    push: Push,
    up: Option<Moment>,
    /// Whether a poll has come to the end since it is up: what happened before is here too.
    caught_up: bool,
    /// Both not told yet.
    missed: u64,
    late: u64,
    found: HashMap<Key, Found>,
    recent: HashMap<Key, Recent>,
    recent_order: VecDeque<Key>,
}

type Key = (Arc<str>, Box<str>);

/// What a poll found, and push may still bring.
#[derive(Clone, Debug)]
struct Found {
    modified: Modified,
    at: Moment,
    /// Whether the endpoint should have brought it.
    owed: bool,
    missed: bool,
}

/// The newest version of an item that an endpoint brought lately, and when it brought it last.
#[derive(Clone, Debug)]
struct Recent {
    modified: Modified,
    at: Moment,
}

impl Account {
    fn new(transport: Transport, push: Push) -> Self {
        Self {
            transport,
            push,
            up: None,
            caught_up: false,
            missed: 0,
            late: 0,
            found: HashMap::new(),
            recent: HashMap::new(),
            recent_order: VecDeque::new(),
        }
    }

    fn live(&self) -> bool {
        self.push == Push::Proven && self.up.is_some() && self.caught_up
    }

    fn stand(&mut self, push: Push, why: String) -> Option<Change> {
        self.push = push;
        Some(Change { transport: self.transport, push, why })
    }

    /// Believes it, by a version that was news or that a poll brought just before.
    fn prove(&mut self, id: &str) -> Option<Change> {
        match self.push {
            Push::Unproven => self.stand(Push::Proven, format!("proven: it delivered {id}")),
            Push::Demoted => self.stand(Push::Proven, format!("proven: it delivered {id} in time again")),
            Push::Proven | Push::None => None,
        }
    }

    fn remember(&mut self, version: &Brought, at: Moment, order: Order) {
        let key = (Arc::clone(&version.kind), version.id.clone());
        let recent = Recent { modified: version.modified.clone(), at };
        match self.recent.entry(key) {
            // What comes again in an older version takes nothing from what came before it.
            Entry::Occupied(entry) if entry.get().modified.compare(&recent.modified, order).is_gt() => {}
            Entry::Occupied(mut entry) => {
                entry.insert(recent);
            }
            Entry::Vacant(entry) => {
                self.recent_order.push_back(entry.key().clone());
                entry.insert(recent);
            }
        }
        if self.recent_order.len() > REMEMBERED
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
    }
}

impl Ledger {
    /// With nothing up; `known` is how far each endpoint was believed before a restart.
    pub fn new(settings: PushSettings, order: Order, known: impl IntoIterator<Item = (Transport, Push)>) -> Self {
        let accounts = known.into_iter().map(|(transport, push)| {
            let push = if push == Push::None { Push::Unproven } else { push };
            Account::new(transport, push)
        });
        Self { settings, order, level: false, polled: None, refused: None, accounts: accounts.collect() }
    }

    /// What keeps the feed current: the first endpoint that is believed, up, and has been polled behind.
    pub fn mode(&self) -> Mode {
        if !self.level {
            return Mode::Refresh;
        }
        match self.accounts.iter().find(|account| account.live()).map(|account| account.transport) {
            Some(Transport::Sse) => Mode::Sse,
            Some(Transport::Webhook) => Mode::Webhook,
            Some(Transport::Amqp) => Mode::Amqp,
            Some(Transport::Poll) | None => Mode::Poll,
        }
    }

    /// How far the feed's push is believed: as far as its best endpoint.
    pub fn push(&self) -> Push {
        let has = |push| self.accounts.iter().any(|account| account.push == push);
        [Push::Proven, Push::Unproven, Push::Demoted].into_iter().find(|push| has(*push)).unwrap_or(Push::None)
    }

    /// What was missed or came late since this was last asked.
    pub fn tally(&mut self) -> Vec<Tally> {
        let told = self.accounts.iter_mut().map(|account| Tally {
            transport: account.transport,
            missed: std::mem::take(&mut account.missed),
            late: std::mem::take(&mut account.late),
        });
        told.filter(|tally| tally.missed + tally.late > 0).collect()
    }

    fn account_mut(&mut self, transport: Transport) -> Option<&mut Account> {
        self.accounts.iter_mut().find(|account| account.transport == transport)
    }

    /// An endpoint is connected, or listens.
    pub fn up(&mut self, transport: Transport, now: Moment) {
        if let Some(account) = self.account_mut(transport)
            && account.up.is_none()
        {
            account.up = Some(now);
            account.caught_up = false;
        }
    }

    /// An endpoint is lost.
    pub fn down(&mut self, transport: Transport) {
        if let Some(account) = self.account_mut(transport) {
            account.up = None;
            account.caught_up = false;
            // What it missed before is remembered: it may still bring it.
            account.found.retain(|_, found| !found.owed || found.missed);
        }
    }

    /// We refused what was pushed, so nobody can be blamed for what is missing.
    pub fn refused(&mut self, now: Moment) {
        self.refused = Some(now);
        self.accounts.iter_mut().for_each(|account| account.found.values_mut().for_each(|found| found.owed = false));
    }

    /// An endpoint's items are committed, `brought` in their order.
    pub fn delivered(&mut self, transport: Transport, now: Moment, brought: &[Brought]) -> Option<Change> {
        let (order, grace) = (self.order, self.settings.grace);
        let account = self.account_mut(transport)?;
        let mut proof = None;
        for version in brought {
            account.remember(version, now, order);
            let key = (Arc::clone(&version.kind), version.id.clone());
            let met = account.found.get(&key).filter(|found| version.modified.compare(&found.modified, order).is_ge());
            let in_time = met.is_some_and(|found| now.saturating_sub(found.at) <= grace);
            account.late += u64::from(met.is_some_and(|found| found.missed));
            if met.is_some() {
                account.found.remove(&key);
            }
            if proof.is_none() && (version.written || in_time) {
                proof = Some(version.id.clone());
            }
        }
        account.prove(&proof?)
    }

    /// A poll came to the feed's end. It proves who brought, while it ran, what it found too.
    pub fn polled(&mut self, now: Moment, polled: Polled) -> Vec<Change> {
        let (before, refused, order) = (self.polled, self.refused, self.order);
        let raced = polled.began..=polled.began + self.settings.grace;
        let mut changes = Vec::new();
        for account in &mut self.accounts {
            // Up for the whole span since the last poll began, and not refused by us within it.
            let whole = before.is_some_and(|before| {
                account.up.is_some_and(|up| up <= before) && refused.is_none_or(|refused| refused < before)
            });
            let owed = whole && account.live();
            for version in &polled.found {
                let key = (Arc::clone(&version.kind), version.id.clone());
                let has = |brought: &&Recent| brought.modified.compare(&version.modified, order).is_ge();
                match account.recent.get(&key).filter(has).map(|brought| brought.at) {
                    Some(at) if raced.contains(&at) => changes.extend(account.prove(&version.id)),
                    Some(_) => {}
                    None if account.found.len() < REMEMBERED => {
                        let found = Found { modified: version.modified.clone(), at: now, owed, missed: false };
                        account.found.insert(key, found);
                    }
                    None => {}
                }
            }
            account.caught_up |= account.up.is_some_and(|up| up <= polled.began);
        }
        self.polled = Some(polled.began);
        self.level = true;
        changes
    }

    /// What the passing of time decides: missed items, and streams that have stayed open.
    pub fn tick(&mut self, now: Moment) -> Vec<Change> {
        let PushSettings { prove_after, grace, .. } = self.settings;
        let mut changes = Vec::new();
        for account in &mut self.accounts {
            let mut missed = Vec::new();
            account.found.retain(|key, found| {
                let since = now.saturating_sub(found.at);
                if found.owed && !found.missed && since > grace {
                    found.missed = true;
                    missed.push(key.1.clone());
                }
                since <= if found.missed { LATE } else { grace }
            });
            account.missed += missed.len() as u64;
            missed.sort_unstable();
            if let Some(first) = missed.first().filter(|_| account.push == Push::Proven) {
                let why = format!(
                    "missed: a poll found {} that it did not bring within {grace:?} ({first})",
                    if missed.len() == 1 { "an item".to_owned() } else { format!("{} items", missed.len()) },
                );
                changes.extend(account.stand(Push::Demoted, why));
            }
            let open = account.up.is_some_and(|up| now.saturating_sub(up) >= prove_after);
            if open && account.transport == Transport::Sse && account.push == Push::Unproven {
                let why = format!("proven: the connection has stayed open for {prove_after:?}");
                changes.extend(account.stand(Push::Proven, why));
            }
        }
        changes
    }

    /// When [`Self::tick`] has something to decide next.
    pub fn next_tick(&self) -> Option<Moment> {
        let PushSettings { prove_after, grace, .. } = self.settings;
        let account = |account: &Account| {
            let opening = account.up.filter(|_| account.transport == Transport::Sse && account.push == Push::Unproven);
            let owed = account.found.values().filter(|found| found.owed && !found.missed).map(|found| found.at).min();
            let open = opening.map(|up| up + prove_after);
            let due = owed.map(|at| at + grace + Duration::from_millis(1));
            open.into_iter().chain(due).min()
        };
        self.accounts.iter().filter_map(account).min()
    }
}

#[cfg(test)]
mod tests;
