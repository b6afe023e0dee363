//! Random sequences of commands and deliveries: `verify` finds every resulting state sound, and a snapshot can be made
//! of it.

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

/// One command or delivery.
#[derive(Clone, Debug)]
enum VerbAction {
    Deliver(usize, Vec<(u8, bool)>),
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
    RemoveExpired,
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

fn actions() -> impl Strategy<Value = (usize, VerbAction)> {
    let action = prop_oneof![
        6 => (1..Transport::ALL.len(), records()).prop_map(|(by, records)| VerbAction::Deliver(by, records)),
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
        3 => Just(VerbAction::RemoveExpired),
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
    (0..FEEDS.len(), action)
}

/// A mirror, and a clock that advances with each action.
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

    fn deliver(&self, feed: &str, transport: Transport, purpose: Purpose, records: &[(u8, bool)]) {
        let mut delivery = self.mirror.delivery(feed, transport, purpose, &self.records(records));
        delivery.at = self.now;
        // A purged feed refuses the delivery: the resulting state is checked too.
        let _ = self.mirror.wait(self.mirror.submit(delivery)).unwrap();
    }

    /// Performs an action; after a refused one, the state is checked too.
    fn perform(&mut self, feed: usize, action: &VerbAction) {
        self.now += DAY / 2;
        let (feed, now) = (FEEDS[feed], self.now);
        let Ok(stored) = self.mirror.wait(self.mirror.store().feed(&name(feed))) else { return };
        let store = self.mirror.store().clone();
        let feed_name = name(feed);
        match action {
            VerbAction::Deliver(by, records) => {
                self.deliver(feed, Transport::ALL[*by], Purpose::Push(Default::default()), records)
            }
            VerbAction::LookBack(records) => self.deliver(feed, Transport::Poll, Purpose::Reread, records),
            VerbAction::Poll(records) => {
                let Some(cursor) = stored.cursor else { return };
                let next = format!("{}?at={now}", start_url(feed));
                self.deliver(feed, Transport::Poll, Purpose::Poll(crate::test_store::step(&cursor, &next)), records);
            }
            VerbAction::Level => {
                let Some(cursor) = stored.cursor else { return };
                self.deliver(feed, Transport::Poll, Purpose::Poll(end(&cursor)), &[]);
            }
            VerbAction::Quarantine(id) => {
                let mut delivery = self.mirror.delivery(feed, Transport::Poll, Purpose::Reread, &[]);
                let raw = format!("{{\"id\":\"{id}\"}}");
                delivery.page.unreadable.push(unreadable("no-kind", &raw, Some(&id.to_string())));
                self.mirror.apply(delivery);
            }
            VerbAction::BeginResync(trust) => {
                let trust = if *trust { SourceTrust::Requested } else { SourceTrust::No };
                let _ = self.mirror.wait(store.begin_resync(&feed_name, now, trust, false));
            }
            VerbAction::Walk(records) => {
                let Some(resync) = stored.resync.filter(|resync| resync.stage == ResyncStage::Walk) else { return };
                let next = format!("{}?walk={now}", start_url(feed));
                let step = crate::test_store::step(&resync.cursor, &next);
                self.deliver(feed, Transport::Poll, Purpose::Resync(step), records);
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
                self.mirror.wait(store.forget(&feed_name, now, selector(*id, *any))).unwrap();
            }
            VerbAction::Unforget(id, any) => {
                self.mirror.wait(store.unforget(&feed_name, now, selector(*id, *any))).unwrap();
            }
            VerbAction::Rename(to) => drop(self.mirror.wait(store.rename(now, &feed_name, &name(FEEDS[*to])))),
            VerbAction::Renumber => drop(self.mirror.wait(store.renumber()).unwrap()),
            VerbAction::RemoveExpired => {
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
                let selection =
                    QuarantineSelection { feed: Some(feed_name.to_string()), ..QuarantineSelection::default() };
                let newest = self.mirror.wait(store.newest_quarantine_id(selection.clone())).unwrap();
                self.mirror.wait(store.drop_quarantine_batch(selection, 0, newest, 100)).unwrap();
            }
            VerbAction::Seek => {
                drop(self.mirror.wait(store.seek(&feed_name, now, format!("{}?seek={now}", start_url(feed)))))
            }
            VerbAction::Pause => drop(self.mirror.wait(store.set_paused(&feed_name, now, true)).unwrap()),
            VerbAction::Resume => drop(self.mirror.wait(store.set_paused(&feed_name, now, false)).unwrap()),
            VerbAction::Purge => drop(self.mirror.wait(store.purge(&feed_name, now)).unwrap()),
            VerbAction::Ack => self.mirror.wait(store.ack(&feed_name, now, Some(now + DAY), None)).unwrap(),
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

fn selector(id: u8, any: bool) -> ItemSelector {
    ItemSelector { kind: (!any).then(|| "Session".to_owned()), id: id.to_string() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_state_that_verbs_leave_is_sound_and_can_be_a_snapshot(actions in prop::collection::vec(actions(), 1..60)) {
        let mut run = RandomRun::new();
        for (feed, action) in &actions {
            run.perform(*feed, action);
            run.is_sound(action);
        }
        let directory = run.mirror.path.with_file_name("snapshots");
        snapshot::take(&run.mirror.path, &directory, Some(1)).unwrap();
    }
}
