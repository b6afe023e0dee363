//! Random sequences of verbs and deliveries: whatever state they leave, `verify` finds it sound, and a snapshot of it is
//! made.

use std::time::Duration;

use feedmirror::feed::{Order, Transport};
use feedmirror::store::apply::Purpose;
use feedmirror::store::forget::Named;
use feedmirror::store::keep::KeepSettings;
use feedmirror::store::read::Reader;
use feedmirror::store::resync::{Stage, Trust};
use feedmirror::store::sift::Chosen;
use feedmirror::store::snapshot;
use proptest::prelude::*;

use crate::mirror::{AT, Mirror, deleted, end, name, registration, start_url, unreadable, updated};

const FEEDS: [&str; 3] = ["acme", "other", "third"];
const DAY: i64 = 86_400_000;

/// One thing that is done.
#[derive(Clone, Debug)]
enum Act {
    Bring(usize, Vec<(u8, bool)>),
    Poll(Vec<(u8, bool)>),
    Level,
    Quarantine(u8),
    BeginResync(bool),
    Walk(Vec<(u8, bool)>),
    EndResync,
    Accept,
    Forget(u8, bool),
    Unforget(u8, bool),
    Rename(usize),
    Renumber,
    Keep,
    DropQuarantined,
    Seek,
    Pause,
    Resume,
    Purge,
    Ack,
    LookBack(Vec<(u8, bool)>),
    Remove,
    Erase,
    Restart,
}

fn records() -> impl Strategy<Value = Vec<(u8, bool)>> {
    prop::collection::vec((0..5u8, prop::bool::weighted(0.3)), 0..5)
}

fn acts() -> impl Strategy<Value = (usize, Act)> {
    let act = prop_oneof![
        6 => (1..Transport::ALL.len(), records()).prop_map(|(by, records)| Act::Bring(by, records)),
        6 => records().prop_map(Act::Poll),
        3 => Just(Act::Level),
        2 => (0..4u8).prop_map(Act::Quarantine),
        3 => any::<bool>().prop_map(Act::BeginResync),
        5 => records().prop_map(Act::Walk),
        3 => Just(Act::EndResync),
        2 => Just(Act::Accept),
        5 => (0..5u8, any::<bool>()).prop_map(|(id, any)| Act::Forget(id, any)),
        2 => (0..5u8, any::<bool>()).prop_map(|(id, any)| Act::Unforget(id, any)),
        2 => (0..FEEDS.len()).prop_map(Act::Rename),
        2 => Just(Act::Renumber),
        3 => Just(Act::Keep),
        1 => Just(Act::DropQuarantined),
        1 => Just(Act::Seek),
        1 => Just(Act::Pause),
        2 => Just(Act::Resume),
        2 => Just(Act::Purge),
        1 => Just(Act::Ack),
        2 => records().prop_map(Act::LookBack),
        1 => Just(Act::Remove),
        1 => Just(Act::Erase),
        1 => Just(Act::Restart),
    ];
    (0..FEEDS.len(), act)
}

/// A mirror, and a clock by which everything done later is newer.
struct Life {
    mirror: Mirror,
    now: i64,
}

impl Life {
    fn new() -> Self {
        Self { mirror: Mirror::with(&FEEDS), now: AT }
    }

    fn records(&self, records: &[(u8, bool)]) -> Vec<crate::mirror::Record> {
        let one = |(id, gone): &(u8, bool)| match gone {
            true => deleted(&id.to_string(), self.now),
            false => updated(&id.to_string(), self.now, "{\"name\":\"x\"}"),
        };
        records.iter().map(one).collect()
    }

    fn bring(&self, feed: &str, transport: Transport, purpose: Purpose, records: &[(u8, bool)]) {
        let mut delivery = self.mirror.delivery(feed, transport, purpose, &self.records(records));
        delivery.at = self.now;
        // It may be refused, by a purged feed: that is a state too.
        let _ = self.mirror.wait(self.mirror.submit(delivery)).unwrap();
    }

    /// What it is refused in is a state too.
    fn act(&mut self, feed: usize, act: &Act) {
        self.now += DAY / 2;
        let (feed, now) = (FEEDS[feed], self.now);
        let Ok(stored) = self.mirror.wait(self.mirror.store().feed(&name(feed))) else { return };
        let store = self.mirror.store().clone();
        let called = name(feed);
        match act {
            Act::Bring(by, records) => {
                self.bring(feed, Transport::ALL[*by], Purpose::Push(Default::default()), records)
            }
            Act::LookBack(records) => self.bring(feed, Transport::Poll, Purpose::Again, records),
            Act::Poll(records) => {
                let Some(cursor) = stored.cursor else { return };
                let next = format!("{}?at={now}", start_url(feed));
                self.bring(feed, Transport::Poll, Purpose::Poll(crate::mirror::step(&cursor, &next)), records);
            }
            Act::Level => {
                let Some(cursor) = stored.cursor else { return };
                self.bring(feed, Transport::Poll, Purpose::Poll(end(&cursor)), &[]);
            }
            Act::Quarantine(id) => {
                let mut delivery = self.mirror.delivery(feed, Transport::Poll, Purpose::Again, &[]);
                let raw = format!("{{\"id\":\"{id}\"}}");
                delivery.page.unreadable.push(unreadable("no-kind", &raw, Some(&id.to_string())));
                self.mirror.apply(delivery);
            }
            Act::BeginResync(trust) => {
                let trust = if *trust { Trust::Asked } else { Trust::No };
                let _ = self.mirror.wait(store.begin_resync(&called, now, trust, false));
            }
            Act::Walk(records) => {
                let Some(resync) = stored.resync.filter(|resync| resync.stage == Stage::Walk) else { return };
                let next = format!("{}?walk={now}", start_url(feed));
                let step = crate::mirror::step(&resync.cursor, &next);
                self.bring(feed, Transport::Poll, Purpose::Resync(step), records);
            }
            Act::EndResync => {
                let Some(resync) = stored.resync else { return };
                let _ = self.mirror.wait(store.end_resync(stored.id, resync.walk, now, 0.2, Order::Standard));
            }
            Act::Accept => {
                let Some(resync) = stored.resync else { return };
                if self.mirror.wait(store.accept_sweep(stored.id, now)).is_ok() {
                    let _ = self.mirror.wait(store.sweep(stored.id, resync.walk, now));
                }
            }
            Act::Forget(id, any) => drop(self.mirror.wait(store.forget(&called, now, named(*id, *any))).unwrap()),
            Act::Unforget(id, any) => drop(self.mirror.wait(store.unforget(&called, now, named(*id, *any))).unwrap()),
            Act::Rename(to) => drop(self.mirror.wait(store.rename(now, &called, &name(FEEDS[*to])))),
            Act::Renumber => drop(self.mirror.wait(store.renumber()).unwrap()),
            Act::Keep => {
                let days = |days: u64| Some(Duration::from_secs(86_400 * days));
                let settings = KeepSettings {
                    quarantine: days(2),
                    findings: days(2),
                    events: days(2),
                    refusals: days(2),
                    tombstones: days(2),
                    forgotten: days(2),
                };
                self.mirror.wait(store.keep(&settings, now)).unwrap();
            }
            Act::DropQuarantined => {
                let chosen = Chosen { feed: Some(called.to_string()), ..Chosen::default() };
                let newest = self.mirror.wait(store.newest_quarantined(chosen.clone())).unwrap();
                self.mirror.wait(store.sift_out(chosen, 0, newest, 100)).unwrap();
            }
            Act::Seek => drop(self.mirror.wait(store.seek(&called, now, format!("{}?seek={now}", start_url(feed))))),
            Act::Pause => drop(self.mirror.wait(store.pause(&called, now, true)).unwrap()),
            Act::Resume => drop(self.mirror.wait(store.pause(&called, now, false)).unwrap()),
            Act::Purge => drop(self.mirror.wait(store.purge(&called, now)).unwrap()),
            Act::Ack => self.mirror.wait(store.ack(&called, now, Some(now + DAY), None)).unwrap(),
            Act::Remove => {
                let left = FEEDS.iter().filter(|other| **other != feed).map(|other| registration(other)).collect();
                drop(self.mirror.wait(store.register(now, left, true)).unwrap());
            }
            Act::Erase => drop(self.mirror.wait(store.erase()).unwrap()),
            Act::Restart => {
                drop(store);
                self.mirror.reopen();
            }
        }
    }

    fn is_sound(&self, after: &Act) {
        for quick in [false, true] {
            let report = Reader::open(&self.mirror.path).unwrap().verify(quick).unwrap();
            assert!(report.is_sound(), "after {after:?}, quick {quick}: {:?}", report.violations);
        }
    }
}

fn named(id: u8, any: bool) -> Named {
    Named { kind: (!any).then(|| "Session".to_owned()), id: id.to_string() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_state_that_verbs_leave_is_sound_and_can_be_a_snapshot(acts in prop::collection::vec(acts(), 1..60)) {
        let mut life = Life::new();
        for (feed, act) in &acts {
            life.act(*feed, act);
            life.is_sound(act);
        }
        let directory = life.mirror.path.with_file_name("snapshots");
        snapshot::take(&life.mirror.path, &directory, Some(1)).unwrap();
    }
}
