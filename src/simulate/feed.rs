//! One feed's items, their order, and their changes. Knows nothing of HTTP, JSON pages or faults.
//!
//! Each item occurs once, at its latest position. Changes that share a `modified` are made at once, so that no reader
//! can be sent past one of them (RPDE 1.0: an update's `modified` must be at least all before it).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::bodies::{BodyTemplate, THEMES, Theme};
use super::dialect::Dialect;
use super::random::{Random, mix};
use super::value_forms::{Id, IdForm, ModifiedUnit};
use super::{ExpectedItem, SimulatorSettings};

/// A position in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListPosition {
    pub(super) modified: i64,
    pub(super) id: Id,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageStart {
    Beginning,
    After(ListPosition),
    /// After all items with this `modified`.
    AfterModified(i64),
}

/// One record of the list.
#[derive(Clone, Debug)]
pub(super) struct ListedRecord {
    pub(super) number: u32,
    pub(super) at: ListPosition,
    pub(super) kind: &'static str,
    pub(super) deleted: bool,
    pub(super) version: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SimulatedItemState {
    Live,
    Deleted,
    /// A tombstone that is no longer listed.
    Forgotten,
}

#[derive(Clone, Copy, Debug)]
struct SimulatedItem {
    version: u32,
    state: SimulatedItemState,
    modified: i64,
}

/// A feed's items and their history.
pub(super) struct FeedModel {
    pub(super) dialect: Dialect,
    theme: &'static Theme,
    ids: IdForm,
    unit: ModifiedUnit,
    salt: u64,
    random: Random,
    target: f64,
    items: Vec<SimulatedItem>,
    live: usize,
    deleted: usize,
    order: BTreeMap<ListPosition, u32>,
    last: i64,
    /// How many changes share the next `modified`.
    group: u64,
    /// The state before each change: the item's number and the item, newest last.
    history: VecDeque<(u32, Option<SimulatedItem>)>,
    changes: u64,
}

/// How many changes a restored feed can undo.
const MAX_HISTORY: usize = 4_096;

/// The name of the feed with this number. Feeds with neighbouring numbers differ in theme and form.
pub(super) fn name(index: usize) -> String {
    format!("{}-{}", THEMES[index % THEMES.len()].word, index + 1)
}

impl FeedModel {
    /// Creates the feed with this number and its items.
    pub(super) fn new(index: usize, settings: &SimulatorSettings) -> Self {
        let dialect = settings.dialect.unwrap_or(Dialect::ALL[index % Dialect::ALL.len()]);
        let unit = ModifiedUnit::of(index, dialect);
        let ids = IdForm::of(index);
        let salt = mix(settings.seed ^ mix(index as u64));
        let mut feed = Self {
            dialect,
            theme: &THEMES[index % THEMES.len()],
            ids,
            unit,
            salt,
            random: Random::new(salt, 1),
            target: settings.deleted.clamp(0.0, 1.0),
            items: Vec::with_capacity(settings.items),
            live: 0,
            deleted: 0,
            order: BTreeMap::new(),
            last: unit.first(),
            group: 1,
            history: VecDeque::new(),
            changes: 0,
        };
        feed.populate(settings.items as u64);
        feed.changes = 0;
        feed
    }

    fn populate(&mut self, items: u64) {
        self.in_groups(items, |feed, modified, _| {
            let state =
                if feed.random.hits(feed.target) { SimulatedItemState::Deleted } else { SimulatedItemState::Live };
            let version = u32::try_from(feed.random.below(5)).unwrap_or(0);
            feed.add(SimulatedItem { version, state, modified })
        });
    }

    /// Makes `count` changes now: updates, deletions, re-creations and new items.
    pub(super) fn change(&mut self, count: u64) {
        self.in_groups(count, Self::change_one);
    }

    /// How many changes are made at once next, at the configured rate.
    pub(super) fn group(&self) -> u64 {
        self.group
    }

    /// How many changes were made since the feed was created.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    fn in_groups(&mut self, count: u64, mut change: impl FnMut(&mut Self, i64, Option<u32>) -> u32) {
        let mut remaining = count;
        while remaining > 0 {
            let size = self.group.min(remaining);
            self.last += self.unit.step(&mut self.random);
            let mut previous = None;
            for _ in 0..size {
                previous = Some(change(self, self.last, previous));
            }
            remaining -= size;
            let tie = self.dialect != Dialect::ChangeNumber && self.random.hits(0.15);
            self.group = if tie { 2 } else { 1 };
        }
    }

    /// Changes an item other than `not`, which already has this `modified`.
    fn change_one(&mut self, modified: i64, not: Option<u32>) -> u32 {
        let wanted = match self.random.below(100) {
            0..10 => None,
            10..30 if self.too_few_deleted() => Some((SimulatedItemState::Live, SimulatedItemState::Deleted)),
            10..30 => Some((SimulatedItemState::Deleted, SimulatedItemState::Live)),
            _ => Some((SimulatedItemState::Live, SimulatedItemState::Live)),
        };
        let picked = wanted.and_then(|(from, to)| Some((self.pick(from, not)?, to)));
        match picked {
            Some((number, state)) => {
                let version = self.items[number as usize].version + 1;
                self.put(number, SimulatedItem { version, state, modified });
                number
            }
            None => self.add(SimulatedItem { version: 0, state: SimulatedItemState::Live, modified }),
        }
    }

    fn too_few_deleted(&self) -> bool {
        (self.deleted as f64) < self.target * (self.live + self.deleted) as f64
    }

    fn pick(&mut self, state: SimulatedItemState, not: Option<u32>) -> Option<u32> {
        const TRIES: usize = 32;
        for _ in 0..TRIES {
            let number = u32::try_from(self.random.below(self.items.len() as u64)).ok()?;
            if self.items.get(number as usize)?.state == state && Some(number) != not {
                return Some(number);
            }
        }
        None
    }

    fn add(&mut self, item: SimulatedItem) -> u32 {
        let number = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        self.record_history(number, None);
        self.items.push(item);
        self.list(number);
        number
    }

    fn put(&mut self, number: u32, item: SimulatedItem) {
        self.unlist(number);
        self.record_history(number, Some(self.items[number as usize]));
        self.items[number as usize] = item;
        self.list(number);
    }

    fn record_history(&mut self, number: u32, before: Option<SimulatedItem>) {
        self.changes += 1;
        if self.history.len() == MAX_HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((number, before));
    }

    fn list(&mut self, number: u32) {
        let item = self.items[number as usize];
        match item.state {
            SimulatedItemState::Live => self.live += 1,
            SimulatedItemState::Deleted => self.deleted += 1,
            SimulatedItemState::Forgotten => return,
        }
        self.order.insert(ListPosition { modified: item.modified, id: self.id(number) }, number);
    }

    fn unlist(&mut self, number: u32) {
        let item = self.items[number as usize];
        match item.state {
            SimulatedItemState::Live => self.live -= 1,
            SimulatedItemState::Deleted => self.deleted -= 1,
            SimulatedItemState::Forgotten => return,
        }
        self.order.remove(&ListPosition { modified: item.modified, id: self.id(number) });
    }

    /// Undoes the newer half of the changes in the history, as from a backup; returns whether there were any.
    pub(super) fn restore(&mut self) -> bool {
        let undone = self.history.len().div_ceil(2);
        for _ in 0..undone {
            let Some((number, before)) = self.history.pop_back() else { break };
            self.unlist(number);
            match before {
                Some(item) => {
                    self.items[number as usize] = item;
                    self.list(number);
                }
                None => drop(self.items.pop()),
            }
        }
        self.last = self.order.last_key_value().map_or(self.unit.first(), |(at, _)| at.modified);
        self.changes += 1;
        undone > 0
    }

    /// Adds an item shortly before the end, as a transaction does that commits late; returns whether a `modified` was
    /// free there.
    pub(super) fn commit_late(&mut self) -> bool {
        const LATEST: usize = 20;
        let newest: Vec<i64> = self.order.keys().rev().take(LATEST).map(|at| at.modified).collect();
        let gaps: Vec<i64> = newest.windows(2).filter(|pair| pair[1] + 1 < pair[0]).map(|pair| pair[1] + 1).collect();
        if gaps.is_empty() {
            return false;
        }
        let index = usize::try_from(self.random.below(gaps.len() as u64)).unwrap_or_default();
        self.add(SimulatedItem { version: 0, state: SimulatedItemState::Live, modified: gaps[index] });
        true
    }

    /// Stops listing the oldest tombstones up to `read`, a position that readers have passed; returns whether there was
    /// one.
    pub(super) fn forget(&mut self, read: &ListPosition) -> bool {
        const AT_ONCE: usize = 8;
        let old = self.order.range(..=read.clone()).map(|(_, number)| *number);
        let tombstones: Vec<u32> = old
            .filter(|number| self.items[*number as usize].state == SimulatedItemState::Deleted)
            .take(AT_ONCE)
            .collect();
        for number in &tombstones {
            let item = self.items[*number as usize];
            self.put(*number, SimulatedItem { state: SimulatedItemState::Forgotten, ..item });
        }
        !tombstones.is_empty()
    }

    /// At most `limit` records from `start` on.
    pub(super) fn records(&self, start: &PageStart, limit: usize) -> Vec<ListedRecord> {
        let from = match start {
            PageStart::Beginning => Bound::Unbounded,
            PageStart::After(position) => Bound::Excluded(position.clone()),
            PageStart::AfterModified(modified) => {
                Bound::Included(ListPosition { modified: modified.saturating_add(1), id: Id::Number(0) })
            }
        };
        let listed = self.order.range((from, Bound::Unbounded)).take(limit);
        listed.map(|(at, number)| self.record(at, *number)).collect()
    }

    /// The position of the last item.
    pub(super) fn end(&self) -> Option<&ListPosition> {
        self.order.last_key_value().map(|(at, _)| at)
    }

    fn record(&self, at: &ListPosition, number: u32) -> ListedRecord {
        let item = self.items[number as usize];
        let deleted = item.state == SimulatedItemState::Deleted;
        ListedRecord { number, at: at.clone(), kind: self.body(number).kind, deleted, version: item.version }
    }

    /// The item's data in this version, as JSON.
    pub(super) fn data(&self, number: u32, version: u32) -> String {
        let salt = mix(self.salt ^ u64::from(number));
        self.body(number).write(&self.id(number).to_string(), salt, version)
    }

    fn body(&self, number: u32) -> &'static BodyTemplate {
        &self.theme.bodies[number as usize % self.theme.bodies.len()]
    }

    fn id(&self, number: u32) -> Id {
        self.ids.id(self.salt, number)
    }

    /// All items that the feed has now, in order.
    pub(super) fn expected_items(&self) -> Vec<ExpectedItem> {
        let records = self.records(&PageStart::Beginning, usize::MAX);
        let items = records.into_iter().map(|record| ExpectedItem {
            kind: record.kind.to_owned(),
            id: record.at.id.to_string(),
            modified: record.at.modified.into(),
            state: Dialect::Timestamp.state(record.deleted),
            data: (!record.deleted).then(|| self.data(record.number, record.version)),
        });
        items.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn feed(index: usize) -> FeedModel {
        FeedModel::new(index, &SimulatorSettings { items: 60, ..SimulatorSettings::default() })
    }

    #[test]
    fn every_item_stands_once_in_order_and_moves_when_it_changes() {
        for index in 0..42 {
            let mut feed = feed(index);
            for _ in 0..50 {
                let before = feed.end().unwrap().modified;
                feed.change(3);
                assert!(feed.end().unwrap().modified > before);
            }
            let expected = feed.expected_items();
            let ids: std::collections::HashSet<&str> = expected.iter().map(|expected| expected.id.as_str()).collect();
            assert_eq!(ids.len(), expected.len());
            let all = feed.records(&PageStart::Beginning, usize::MAX);
            assert!(all.windows(2).all(|pair| pair[0].at < pair[1].at));
        }
    }

    #[test]
    fn all_sorts_of_changes_happen_and_some_share_a_tick() {
        let mut feed = feed(0);
        let before = feed.expected_items();
        feed.change(300);
        let after = feed.expected_items();
        let find = |expected: &[ExpectedItem], id: &str| {
            expected.iter().find(|expected| expected.id == id).map(|expected| expected.state)
        };
        let became =
            |from: Option<&str>, to: &str| after.iter().any(|now| now.state == to && find(&before, &now.id) == from);
        assert!(became(None, "updated") && became(Some("updated"), "deleted") && became(Some("deleted"), "updated"));
        assert!(after.windows(2).any(|pair| pair[0].modified == pair[1].modified), "no ties");
    }

    #[test]
    fn a_restored_feed_says_what_it_said_before() {
        // given a feed of 60 items that has changed ten times
        let mut feed = feed(1);
        let initial = feed.expected_items();
        feed.change(10);
        // when half of its 70 steps are undone, the ten changes among them
        assert!(feed.restore());
        // then it says what it said when it had 35 items, and goes on from there
        assert_eq!(feed.expected_items(), initial[..35]);
        feed.change(1);
        assert!(feed.end().unwrap().modified < initial[59].modified.as_i64().unwrap());
    }

    #[test]
    fn a_late_commit_lies_behind_the_end() {
        for index in 0..7 {
            let mut feed = feed(index);
            let (end, count) = (feed.end().unwrap().clone(), feed.expected_items().len());
            assert!(feed.commit_late());
            assert_eq!((feed.end().unwrap(), feed.expected_items().len()), (&end, count + 1));
        }
    }

    #[test]
    fn only_tombstones_that_were_read_are_forgotten() {
        let mut feed = feed(0);
        let all = feed.records(&PageStart::Beginning, usize::MAX);
        let first = all.iter().position(|record| record.deleted).unwrap();
        let before = ListPosition { modified: all[first].at.modified - 1, id: Id::Number(0) };
        assert!(!feed.forget(&before));
        assert!(feed.forget(&all[first].at));
        assert_eq!(feed.records(&PageStart::Beginning, usize::MAX).len(), all.len() - 1);
    }
}
