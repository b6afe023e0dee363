//! Random sequences of verbs and deliveries: whatever state they leave, `verify` finds it sound, and a snapshot of it is
//! made.

use std::time::Duration;

use feedmirror::feed::{ModifiedOrder, Transport};
use feedmirror::store::apply::Purpose;
use feedmirror::store::forget::ItemSelector;
use feedmirror::store::quarantine_batch::QuarantineSelection;
use feedmirror::store::read::Reader;
use feedmirror::store::resync::{ResyncStage, SourceTrust};
use feedmirror::store::retention::RetentionSettings;
use feedmirror::store::snapshot;
use proptest::prelude::*;

use crate::test_store::{AT, TestStore, deleted, end, name, registration, start_url, unreadable, updated};

const FEEDS: [&str; 3] = ["acme", "other", "third"];
const DAY: i64 = 86_400_000;

/// One thing that is done.
#[derive(Clone, Debug)]
enum VerbAction {
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

fn acts() -> impl Strategy<Value = (usize, VerbAction)> {
    let act = prop_oneof![
        6 => (1..Transport::ALL.len(), records()).prop_map(|(by, records)| VerbAction::Bring(by, records)),
        6 => records().prop_map(VerbAction::Poll),
        3 => Just(VerbAction::Level),
        2 => (0..4u8).prop_map(VerbAction::Quarantine),
        3 => any::<bool>().prop_map(VerbAction::BeginResync),
        5 => records().prop_map(VerbAction::Walk),
        3 => Just(VerbAction::EndResync),
        2 => Just(VerbAction::Accept),
        5 => (0..5u8, any::<bool>()).prop_map(|(id, any)| VerbAction::Forget(id, any)),
        2 => (0..5u8, any::<bool>()).prop_map(|(id, any)| VerbAction::Unforget(id, any)),
        2 => (0..FEEDS.len()).prop_map(VerbAction::Rename),
        2 => Just(VerbAction::Renumber),
        3 => Just(VerbAction::Keep),
        1 => Just(VerbAction::DropQuarantined),
        1 => Just(VerbAction::Seek),
        1 => Just(VerbAction::Pause),
        2 => Just(VerbAction::Resume),
        2 => Just(VerbAction::Purge),
        1 => Just(VerbAction::Ack),
        2 => records().prop_map(VerbAction::LookBack),
        1 => Just(VerbAction::Remove),
        1 => Just(VerbAction::Erase),
        1 => Just(VerbAction::Restart),
    ];
    (0..FEEDS.len(), act)
}

/// A mirror, and a clock by which everything done later is newer.
struct RandomRun {
    mirror: TestStore,
    now: i64,
}

impl RandomRun {
    fn new() -> Self {
        Self { mirror: TestStore::with(&FEEDS), now: AT }
    }

    fn records(&self, records: &[(u8, bool)]) -> Vec<crate::test_store::Record> {
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
    fn act(&mut self, feed: usize, act: &VerbAction) {
        self.now += DAY / 2;
        let (feed, now) = (FEEDS[feed], self.now);
        let Ok(stored) = self.mirror.wait(self.mirror.store().feed(&name(feed))) else { return };
        let store = self.mirror.store().clone();
        let called = name(feed);
        match act {
            VerbAction::Bring(by, records) => {
                self.bring(feed, Transport::ALL[*by], Purpose::Push(Default::default()), records)
            }
            VerbAction::LookBack(records) => self.bring(feed, Transport::Poll, Purpose::Reread, records),
            VerbAction::Poll(records) => {
                let Some(cursor) = stored.cursor else { return };
                let next = format!("{}?at={now}", start_url(feed));
                self.bring(feed, Transport::Poll, Purpose::Poll(crate::test_store::step(&cursor, &next)), records);
            }
            VerbAction::Level => {
                let Some(cursor) = stored.cursor else { return };
                self.bring(feed, Transport::Poll, Purpose::Poll(end(&cursor)), &[]);
            }
            VerbAction::Quarantine(id) => {
                let mut delivery = self.mirror.delivery(feed, Transport::Poll, Purpose::Reread, &[]);
                let raw = format!("{{\"id\":\"{id}\"}}");
                delivery.page.unreadable.push(unreadable("no-kind", &raw, Some(&id.to_string())));
                self.mirror.apply(delivery);
            }
            VerbAction::BeginResync(trust) => {
                let trust = if *trust { SourceTrust::Requested } else { SourceTrust::No };
                let _ = self.mirror.wait(store.begin_resync(&called, now, trust, false));
            }
            VerbAction::Walk(records) => {
                let Some(resync) = stored.resync.filter(|resync| resync.stage == ResyncStage::Walk) else { return };
                let next = format!("{}?walk={now}", start_url(feed));
                let step = crate::test_store::step(&resync.cursor, &next);
                self.bring(feed, Transport::Poll, Purpose::Resync(step), records);
            }
            VerbAction::EndResync => {
                let Some(resync) = stored.resync else { return };
                let _ =
                    self.mirror.wait(store.end_resync(stored.id, resync.walk_id, now, 0.2, ModifiedOrder::Standard));
            }
            VerbAction::Accept => {
                let Some(resync) = stored.resync else { return };
                if self.mirror.wait(store.accept_sweep(stored.id, now)).is_ok() {
                    let _ = self.mirror.wait(store.sweep(stored.id, resync.walk_id, now));
                }
            }
            VerbAction::Forget(id, any) => {
                self.mirror.wait(store.forget(&called, now, named(*id, *any))).unwrap();
            }
            VerbAction::Unforget(id, any) => {
                self.mirror.wait(store.unforget(&called, now, named(*id, *any))).unwrap();
            }
            VerbAction::Rename(to) => drop(self.mirror.wait(store.rename(now, &called, &name(FEEDS[*to])))),
            VerbAction::Renumber => drop(self.mirror.wait(store.renumber()).unwrap()),
            VerbAction::Keep => {
                let days = |days: u64| Some(Duration::from_secs(86_400 * days));
                let settings = RetentionSettings {
                    quarantine: days(2),
                    findings: days(2),
                    events: days(2),
                    refusals: days(2),
                    tombstones: days(2),
                    forgotten: days(2),
                };
                self.mirror.wait(store.remove_expired(&settings, now)).unwrap();
            }
            VerbAction::DropQuarantined => {
                let chosen = QuarantineSelection { feed: Some(called.to_string()), ..QuarantineSelection::default() };
                let newest = self.mirror.wait(store.newest_quarantine_id(chosen.clone())).unwrap();
                self.mirror.wait(store.drop_quarantine_batch(chosen, 0, newest, 100)).unwrap();
            }
            VerbAction::Seek => {
                drop(self.mirror.wait(store.seek(&called, now, format!("{}?seek={now}", start_url(feed)))))
            }
            VerbAction::Pause => drop(self.mirror.wait(store.set_paused(&called, now, true)).unwrap()),
            VerbAction::Resume => drop(self.mirror.wait(store.set_paused(&called, now, false)).unwrap()),
            VerbAction::Purge => drop(self.mirror.wait(store.purge(&called, now)).unwrap()),
            VerbAction::Ack => self.mirror.wait(store.ack(&called, now, Some(now + DAY), None)).unwrap(),
            VerbAction::Remove => {
                let left = FEEDS.iter().filter(|other| **other != feed).map(|other| registration(other)).collect();
                drop(self.mirror.wait(store.register(now, left, true)).unwrap());
            }
            VerbAction::Erase => drop(self.mirror.wait(store.erase()).unwrap()),
            VerbAction::Restart => {
                drop(store);
                self.mirror.reopen();
            }
        }
    }

    fn is_sound(&self, after: &VerbAction) {
        for quick in [false, true] {
            let report = Reader::open(&self.mirror.path).unwrap().verify(quick).unwrap();
            assert!(report.is_sound(), "after {after:?}, quick {quick}: {:?}", report.violations);
        }
    }
}

fn named(id: u8, any: bool) -> ItemSelector {
    ItemSelector { kind: (!any).then(|| "Session".to_owned()), id: id.to_string() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_state_that_verbs_leave_is_sound_and_can_be_a_snapshot(acts in prop::collection::vec(acts(), 1..60)) {
        let mut life = RandomRun::new();
        for (feed, act) in &acts {
            life.act(*feed, act);
            life.is_sound(act);
        }
        let directory = life.mirror.path.with_file_name("snapshots");
        snapshot::take(&life.mirror.path, &directory, Some(1)).unwrap();
    }
}
