//! One feed's items and their order: who is where, and how that changes. Knows nothing of HTTP, JSON pages or faults.
//!
//! Each item stands once, at its latest position. Changes that share a `modified` are made at once, so that no reader
//! can be sent past one of them (RPDE 1.0: an update's `modified` must be at least all before it).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::bodies::{Body, THEMES, Theme};
use super::dialect::Dialect;
use super::dice::{Dice, mix};
use super::form::{Id, Ids, Unit};
use super::{Settings, Truth};

/// A place in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) modified: i64,
    pub(super) id: Id,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Beginning,
    After(Position),
    /// After all that share this `modified`.
    Beyond(i64),
}

/// One record of the list.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) number: u32,
    pub(super) at: Position,
    pub(super) kind: &'static str,
    pub(super) deleted: bool,
    pub(super) version: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Deleted,
    /// A tombstone that is no longer listed.
    Forgotten,
}

#[derive(Clone, Copy, Debug)]
struct Thing {
    version: u32,
    state: State,
    modified: i64,
}

/// A feed's population and its history.
pub(super) struct Feed {
    pub(super) dialect: Dialect,
    theme: &'static Theme,
    ids: Ids,
    unit: Unit,
    salt: u64,
    dice: Dice,
    target: f64,
    things: Vec<Thing>,
    live: usize,
    deleted: usize,
    order: BTreeMap<Position, u32>,
    last: i64,
    /// How many changes the next `modified` is shared by.
    group: u64,
    /// What was before each change: the item and how it was, newest last.
    past: VecDeque<(u32, Option<Thing>)>,
    changes: u64,
}

/// As far as a restored feed can go back, in changes.
const PAST: usize = 4_096;

/// The name and traits of the feed with this number: neighbours differ in what they are about and how they spell it.
pub(super) fn name(index: usize) -> String {
    format!("{}-{}", THEMES[index % THEMES.len()].word, index + 1)
}

impl Feed {
    /// The feed with this number, populated.
    pub(super) fn new(index: usize, settings: &Settings) -> Self {
        let dialect = settings.dialect.unwrap_or(Dialect::ALL[index % Dialect::ALL.len()]);
        let unit = Unit::of(index, dialect);
        let ids = Ids::of(index);
        let salt = mix(settings.seed ^ mix(index as u64));
        let mut feed = Self {
            dialect,
            theme: &THEMES[index % THEMES.len()],
            ids,
            unit,
            salt,
            dice: Dice::new(salt, 1),
            target: settings.deleted.clamp(0.0, 1.0),
            things: Vec::with_capacity(settings.items),
            live: 0,
            deleted: 0,
            order: BTreeMap::new(),
            last: unit.first(),
            group: 1,
            past: VecDeque::new(),
            changes: 0,
        };
        feed.populate(settings.items as u64);
        feed.changes = 0;
        feed
    }

    fn populate(&mut self, items: u64) {
        self.in_groups(items, |feed, modified, _| {
            let state = if feed.dice.hits(feed.target) { State::Deleted } else { State::Live };
            let version = u32::try_from(feed.dice.below(5)).unwrap_or(0);
            feed.add(Thing { version, state, modified })
        });
    }

    /// Makes so many changes now: updates, deletions, re-creations and new items.
    pub(super) fn change(&mut self, count: u64) {
        self.in_groups(count, Self::change_one);
    }

    /// How many changes are made at once next, at the configured rate.
    pub(super) fn group(&self) -> u64 {
        self.group
    }

    /// How many changes were made since the beginning.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    fn in_groups(&mut self, count: u64, mut one: impl FnMut(&mut Self, i64, Option<u32>) -> u32) {
        let mut left = count;
        while left > 0 {
            let size = self.group.min(left);
            self.last += self.unit.step(&mut self.dice);
            let mut before = None;
            for _ in 0..size {
                before = Some(one(self, self.last, before));
            }
            left -= size;
            let tie = self.dialect != Dialect::ChangeNumber && self.dice.hits(0.15);
            self.group = if tie { 2 } else { 1 };
        }
    }

    /// Changes an item other than `not`, which already has this `modified`.
    fn change_one(&mut self, modified: i64, not: Option<u32>) -> u32 {
        let wanted = match self.dice.below(100) {
            0..10 => None,
            10..30 if self.too_few_deleted() => Some((State::Live, State::Deleted)),
            10..30 => Some((State::Deleted, State::Live)),
            _ => Some((State::Live, State::Live)),
        };
        let picked = wanted.and_then(|(from, to)| Some((self.pick(from, not)?, to)));
        match picked {
            Some((number, state)) => {
                let version = self.things[number as usize].version + 1;
                self.put(number, Thing { version, state, modified });
                number
            }
            None => self.add(Thing { version: 0, state: State::Live, modified }),
        }
    }

    fn too_few_deleted(&self) -> bool {
        (self.deleted as f64) < self.target * (self.live + self.deleted) as f64
    }

    fn pick(&mut self, state: State, not: Option<u32>) -> Option<u32> {
        const TRIES: usize = 32;
        for _ in 0..TRIES {
            let number = u32::try_from(self.dice.below(self.things.len() as u64)).ok()?;
            if self.things.get(number as usize)?.state == state && Some(number) != not {
                return Some(number);
            }
        }
        None
    }

    fn add(&mut self, thing: Thing) -> u32 {
        let number = u32::try_from(self.things.len()).unwrap_or(u32::MAX);
        self.remember(number, None);
        self.things.push(thing);
        self.list(number);
        number
    }

    fn put(&mut self, number: u32, thing: Thing) {
        self.unlist(number);
        self.remember(number, Some(self.things[number as usize]));
        self.things[number as usize] = thing;
        self.list(number);
    }

    fn remember(&mut self, number: u32, before: Option<Thing>) {
        self.changes += 1;
        if self.past.len() == PAST {
            self.past.pop_front();
        }
        self.past.push_back((number, before));
    }

    fn list(&mut self, number: u32) {
        let thing = self.things[number as usize];
        match thing.state {
            State::Live => self.live += 1,
            State::Deleted => self.deleted += 1,
            State::Forgotten => return,
        }
        self.order.insert(Position { modified: thing.modified, id: self.id(number) }, number);
    }

    fn unlist(&mut self, number: u32) {
        let thing = self.things[number as usize];
        match thing.state {
            State::Live => self.live -= 1,
            State::Deleted => self.deleted -= 1,
            State::Forgotten => return,
        }
        self.order.remove(&Position { modified: thing.modified, id: self.id(number) });
    }

    /// Goes back to how the feed was before the newer half of the changes remembered, as from a backup; whether it did.
    pub(super) fn restore(&mut self) -> bool {
        let undone = self.past.len().div_ceil(2);
        for _ in 0..undone {
            let Some((number, before)) = self.past.pop_back() else { break };
            self.unlist(number);
            match before {
                Some(thing) => {
                    self.things[number as usize] = thing;
                    self.list(number);
                }
                None => drop(self.things.pop()),
            }
        }
        self.last = self.order.last_key_value().map_or(self.unit.first(), |(at, _)| at.modified);
        self.changes += 1;
        undone > 0
    }

    /// Adds an item shortly before the end, as a transaction does that commits late; whether there was room for it.
    pub(super) fn commit_late(&mut self) -> bool {
        const LATEST: usize = 20;
        let newest: Vec<i64> = self.order.keys().rev().take(LATEST).map(|at| at.modified).collect();
        let gaps: Vec<i64> = newest.windows(2).filter(|pair| pair[1] + 1 < pair[0]).map(|pair| pair[1] + 1).collect();
        if gaps.is_empty() {
            return false;
        }
        let chosen = usize::try_from(self.dice.below(gaps.len() as u64)).unwrap_or_default();
        self.add(Thing { version: 0, state: State::Live, modified: gaps[chosen] });
        true
    }

    /// Stops listing the oldest tombstones up to `read`, which readers have seen; whether there was one.
    pub(super) fn forget(&mut self, read: &Position) -> bool {
        const AT_ONCE: usize = 8;
        let old = self.order.range(..=read.clone()).map(|(_, number)| *number);
        let tombstones: Vec<u32> =
            old.filter(|number| self.things[*number as usize].state == State::Deleted).take(AT_ONCE).collect();
        for number in &tombstones {
            let thing = self.things[*number as usize];
            self.put(*number, Thing { state: State::Forgotten, ..thing });
        }
        !tombstones.is_empty()
    }

    /// At most `limit` records from `start` on.
    pub(super) fn records(&self, start: &Start, limit: usize) -> Vec<Record> {
        let from = match start {
            Start::Beginning => Bound::Unbounded,
            Start::After(position) => Bound::Excluded(position.clone()),
            Start::Beyond(modified) => {
                Bound::Included(Position { modified: modified.saturating_add(1), id: Id::Number(0) })
            }
        };
        let listed = self.order.range((from, Bound::Unbounded)).take(limit);
        listed.map(|(at, number)| self.record(at, *number)).collect()
    }

    /// The end of the list.
    pub(super) fn end(&self) -> Option<&Position> {
        self.order.last_key_value().map(|(at, _)| at)
    }

    fn record(&self, at: &Position, number: u32) -> Record {
        let thing = self.things[number as usize];
        let deleted = thing.state == State::Deleted;
        Record { number, at: at.clone(), kind: self.body(number).kind, deleted, version: thing.version }
    }

    /// What the item said in this version: JSON.
    pub(super) fn data(&self, number: u32, version: u32) -> String {
        let salt = mix(self.salt ^ u64::from(number));
        self.body(number).write(&self.id(number).to_string(), salt, version)
    }

    fn body(&self, number: u32) -> &'static Body {
        &self.theme.bodies[number as usize % self.theme.bodies.len()]
    }

    fn id(&self, number: u32) -> Id {
        self.ids.id(self.salt, number)
    }

    /// Everything the feed says now, in order.
    pub(super) fn truth(&self) -> Vec<Truth> {
        let records = self.records(&Start::Beginning, usize::MAX);
        let told = records.into_iter().map(|record| Truth {
            kind: record.kind.to_owned(),
            id: record.at.id.to_string(),
            modified: record.at.modified.into(),
            state: Dialect::Timestamp.state(record.deleted),
            data: (!record.deleted).then(|| self.data(record.number, record.version)),
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn feed(index: usize) -> Feed {
        Feed::new(index, &Settings { items: 60, ..Settings::default() })
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
            let truth = feed.truth();
            let ids: std::collections::HashSet<&str> = truth.iter().map(|truth| truth.id.as_str()).collect();
            assert_eq!(ids.len(), truth.len());
            let all = feed.records(&Start::Beginning, usize::MAX);
            assert!(all.windows(2).all(|pair| pair[0].at < pair[1].at));
        }
    }

    #[test]
    fn all_sorts_of_changes_happen_and_some_share_a_tick() {
        let mut feed = feed(0);
        let before = feed.truth();
        feed.change(300);
        let after = feed.truth();
        let find = |truth: &[Truth], id: &str| truth.iter().find(|truth| truth.id == id).map(|truth| truth.state);
        let became =
            |from: Option<&str>, to: &str| after.iter().any(|now| now.state == to && find(&before, &now.id) == from);
        assert!(became(None, "updated") && became(Some("updated"), "deleted") && became(Some("deleted"), "updated"));
        assert!(after.windows(2).any(|pair| pair[0].modified == pair[1].modified), "no ties");
    }

    #[test]
    fn a_restored_feed_says_what_it_said_before() {
        // given a feed of 60 items that has changed ten times
        let mut feed = feed(1);
        let born = feed.truth();
        feed.change(10);
        // when half of its 70 steps are undone, the ten changes among them
        assert!(feed.restore());
        // then it says what it said when it had 35 items, and goes on from there
        assert_eq!(feed.truth(), born[..35]);
        feed.change(1);
        assert!(feed.end().unwrap().modified < born[59].modified.as_i64().unwrap());
    }

    #[test]
    fn a_late_commit_lies_behind_the_end() {
        for index in 0..7 {
            let mut feed = feed(index);
            let (end, count) = (feed.end().unwrap().clone(), feed.truth().len());
            assert!(feed.commit_late());
            assert_eq!((feed.end().unwrap(), feed.truth().len()), (&end, count + 1));
        }
    }

    #[test]
    fn only_tombstones_that_were_read_are_forgotten() {
        let mut feed = feed(0);
        let all = feed.records(&Start::Beginning, usize::MAX);
        let first = all.iter().position(|record| record.deleted).unwrap();
        let before = Position { modified: all[first].at.modified - 1, id: Id::Number(0) };
        assert!(!feed.forget(&before));
        assert!(feed.forget(&all[first].at));
        assert_eq!(feed.records(&Start::Beginning, usize::MAX).len(), all.len() - 1);
    }
}
