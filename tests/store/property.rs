//! Random lives of feeds against the oracle: polls, push, resyncs with sweeps held and accepted, purges, restarts. After
//! every step all that the file shows is compared, row by row.

use std::collections::BTreeMap;

use feedmirror::feed::{TiePolicy, Transport};
use feedmirror::store::apply::{Applied, Delivery, DeliveryVerdict, PageStep, Purpose};
use feedmirror::store::resync::{ResyncEnd, SourceTrust};
use proptest::prelude::*;
use rusqlite::types::Value;

use crate::oracle::{ApplyOutcome, DeliveryWay, Key, OracleFeed, OracleWalk, SentRecord, Swept, data, stamps};
use crate::test_store::{AT, Record, TestStore, name, start_url, unreadable};

const FEEDS: [&str; 2] = ["acme", "other"];
const MAX_SWEEP: f64 = 0.2;

/// What is in a delivery.
#[derive(Clone, Debug)]
struct GeneratedDelivery {
    records: Vec<SentRecord>,
    /// Ids of records that can't be understood.
    bad: Vec<Option<u8>>,
    replace_ties: bool,
}

/// One thing that happens to a feed.
#[derive(Clone, Debug)]
enum FeedAction {
    /// Brought by a transport, no cursor moving; several at once are submitted before any is awaited.
    Bring(Vec<(usize, GeneratedDelivery)>),
    /// Polled at the cursor, or with a cursor that has moved since.
    Poll {
        load: GeneratedDelivery,
        late: bool,
    },
    /// Read before the generation was raised.
    Outdated(GeneratedDelivery),
    Begin {
        trust: bool,
    },
    WalkPage {
        load: GeneratedDelivery,
        clean: bool,
    },
    EndWalk,
    Accept,
    Seek,
    Purge,
    Resume,
    Restart,
}

fn loads() -> impl Strategy<Value = GeneratedDelivery> {
    let sent =
        ((0..2usize, 0..4u8), stamps(), prop::option::weighted(0.7, 0..8u8)).prop_map(|((kind, id), stamp, data)| {
            let key: Key = (["Session", "Slot"][kind].into(), id.to_string());
            SentRecord { key, stamp, data }
        });
    let bad = prop::collection::vec(prop::option::of(0..4u8), 0..2);
    (prop::collection::vec(sent, 0..8), bad, prop::bool::weighted(0.2))
        .prop_map(|(records, bad, replace_ties)| GeneratedDelivery { records, bad, replace_ties })
}

fn acts() -> impl Strategy<Value = (usize, FeedAction)> {
    let act = prop_oneof![
        6 => prop::collection::vec((0..Transport::ALL.len(), loads()), 1..4).prop_map(FeedAction::Bring),
        6 => (loads(), prop::bool::weighted(0.1)).prop_map(|(load, late)| FeedAction::Poll { load, late }),
        1 => loads().prop_map(FeedAction::Outdated),
        3 => any::<bool>().prop_map(|trust| FeedAction::Begin { trust }),
        6 => (loads(), prop::bool::weighted(0.9)).prop_map(|(load, clean)| FeedAction::WalkPage { load, clean }),
        3 => Just(FeedAction::EndWalk),
        2 => Just(FeedAction::Accept),
        1 => Just(FeedAction::Seek),
        1 => Just(FeedAction::Purge),
        2 => Just(FeedAction::Resume),
        1 => Just(FeedAction::Restart),
    ];
    (0..FEEDS.len(), act)
}

/// What a change number was given for: feed, kind, id and modified.
type Change = Vec<Value>;

/// The mirror and the oracle, side by side.
struct MirrorAndOracle {
    mirror: TestStore,
    feeds: Vec<OracleFeed>,
    turn: u64,
    places: u64,
    /// Every change number ever seen, and what it stood for.
    given: BTreeMap<i64, Change>,
}

impl MirrorAndOracle {
    fn new() -> Self {
        let feeds = FEEDS.iter().map(|feed| OracleFeed::new(feed, start_url(feed))).collect();
        Self { mirror: TestStore::with(&FEEDS), feeds, turn: 0, places: 0, given: BTreeMap::new() }
    }

    fn place(&mut self, feed: usize) -> String {
        self.places += 1;
        format!("https://{}.example/rpde?at={}", FEEDS[feed], self.places)
    }

    fn delivery(&self, feed: usize, transport: Transport, purpose: Purpose, load: &GeneratedDelivery) -> Delivery {
        let record = |sent: &SentRecord| {
            let (kind, id) = sent.key.clone();
            Record { kind, id, modified: sent.stamp.modified(), data: sent.data.map(data) }
        };
        let records: Vec<_> = load.records.iter().map(record).collect();
        let mut delivery = self.mirror.delivery(FEEDS[feed], transport, purpose, &records);
        for id in &load.bad {
            let id = id.map(|id| id.to_string());
            delivery.page.unreadable.push(unreadable("no-kind", &raw(id.as_deref()), id.as_deref()));
        }
        delivery.ties = if load.replace_ties { TiePolicy::Replace } else { TiePolicy::Keep };
        delivery
    }

    /// What the oracle makes of a delivery that is taken.
    fn expect(&mut self, feed: usize, load: &GeneratedDelivery, transport: &'static str, resync: bool) -> Applied {
        let way = DeliveryWay { transport, resync, replace_ties: load.replace_ties };
        let mut applied = Applied { quarantined: load.bad.len() as u64, ..Applied::default() };
        for sent in &load.records {
            let fate = self.feeds[feed].take(sent, way, &mut self.turn);
            match fate {
                ApplyOutcome::New => applied.new += 1,
                ApplyOutcome::Changed => applied.changed += 1,
                ApplyOutcome::Same => applied.same += 1,
                ApplyOutcome::Older => applied.older += 1,
                ApplyOutcome::Tied => applied.tied += 1,
            }
            if sent.data.is_none() && matches!(fate, ApplyOutcome::New | ApplyOutcome::Changed) {
                applied.deleted += 1;
                applied.new_deleted += u64::from(matches!(fate, ApplyOutcome::New));
            }
        }
        for id in load.bad.iter().map(|id| id.map(|id| id.to_string())) {
            *self.feeds[feed].quarantine.entry(raw(id.as_deref())).or_default() += 1;
            if let (Some(walk), Some(id)) = (&mut self.feeds[feed].walk, id) {
                walk.spared.push(id);
            }
        }
        applied
    }

    fn act(&mut self, feed: usize, act: &FeedAction) {
        let store = self.mirror.store().clone();
        let called = name(FEEDS[feed]);
        match act {
            FeedAction::Bring(loads) => self.bring(feed, loads),
            FeedAction::Poll { load, late } => self.poll(feed, load, *late),
            FeedAction::Outdated(load) => {
                let mut delivery = self.delivery(feed, Transport::Webhook, Purpose::Reread, load);
                delivery.generation -= 1;
                assert_eq!(self.mirror.apply(delivery), refused(DeliveryVerdict::OldGeneration));
            }
            FeedAction::Begin { trust } => self.begin(feed, *trust),
            FeedAction::WalkPage { load, clean } => self.walk_page(feed, load, *clean),
            FeedAction::EndWalk => self.end_walk(feed),
            FeedAction::Accept => self.accept(feed),
            FeedAction::Seek => {
                let place = self.place(feed);
                self.mirror.wait(store.seek(&called, AT, place.clone())).unwrap();
                self.feeds[feed].cursor = Some(place);
            }
            FeedAction::Purge => {
                self.mirror.wait(store.purge(&called, AT)).unwrap();
                self.turn += 1;
                let generation = self.feeds[feed].generation + 1;
                let purge = Some(self.turn);
                self.feeds[feed] = OracleFeed {
                    generation,
                    cursor: None,
                    purged: true,
                    purge,
                    ..OracleFeed::new(FEEDS[feed], String::new())
                };
            }
            FeedAction::Resume => {
                self.mirror.wait(store.set_paused(&called, AT, false)).unwrap();
                if self.feeds[feed].purged {
                    self.feeds[feed].purged = false;
                    self.feeds[feed].cursor = Some(start_url(FEEDS[feed]));
                }
            }
            FeedAction::Restart => {
                drop(store);
                self.mirror.reopen();
            }
        }
    }

    fn bring(&mut self, feed: usize, loads: &[(usize, GeneratedDelivery)]) {
        let deliveries: Vec<_> =
            loads.iter().map(|(by, load)| self.delivery(feed, Transport::ALL[*by], Purpose::Reread, load)).collect();
        let pending: Vec<_> = deliveries.into_iter().map(|delivery| self.mirror.submit(delivery)).collect();
        for ((by, load), pending) in loads.iter().zip(pending) {
            let expected = match self.feeds[feed].purged {
                true => refused(DeliveryVerdict::OldGeneration),
                false => self.expect(feed, load, Transport::ALL[*by].as_str(), false),
            };
            assert_eq!(self.mirror.answer(pending), expected);
        }
    }

    fn poll(&mut self, feed: usize, load: &GeneratedDelivery, late: bool) {
        let place = self.place(feed);
        let cursor = self.feeds[feed].cursor.clone();
        let asked = cursor.filter(|_| !late).unwrap_or_else(|| "https://elsewhere.example/".to_owned());
        let step = PageStep { from_cursor: asked.clone(), next_cursor: place.clone(), level: false, clean: true };
        let mut applied = self.mirror.apply(self.delivery(feed, Transport::Poll, Purpose::Poll(step), load));
        // Whether a feed is suspect is another test's matter.
        applied.suspect = None;
        let expected = if self.feeds[feed].purged {
            refused(DeliveryVerdict::OldGeneration)
        } else if self.feeds[feed].cursor.as_ref() != Some(&asked) {
            refused(DeliveryVerdict::CursorMoved)
        } else {
            self.feeds[feed].cursor = Some(place);
            self.expect(feed, load, "poll", false)
        };
        assert_eq!(applied, expected);
    }

    fn begin(&mut self, feed: usize, trust: bool) {
        if self.feeds[feed].purged {
            return;
        }
        let asked = if trust { SourceTrust::Requested } else { SourceTrust::No };
        self.mirror.wait(self.mirror.store().begin_resync(&name(FEEDS[feed]), AT, asked, false)).unwrap();
        if !trust && self.feeds[feed].walk.as_ref().is_some_and(|walk| !walk.held) {
            return;
        }
        self.feeds[feed].generation += i64::from(trust);
        self.feeds[feed].walk = Some(OracleWalk {
            cursor: start_url(FEEDS[feed]),
            trust,
            clean: true,
            held: false,
            began: self.turn,
            met: BTreeMap::new(),
            spared: Vec::new(),
            newest: BTreeMap::new(),
        });
    }

    fn walk_page(&mut self, feed: usize, load: &GeneratedDelivery, clean: bool) {
        let Some(walk) = self.feeds[feed].walk.clone() else { return };
        let place = self.place(feed);
        let step = PageStep { from_cursor: walk.cursor, next_cursor: place.clone(), level: false, clean };
        let applied = self.mirror.apply(self.delivery(feed, Transport::Poll, Purpose::Resync(step), load));
        if walk.held {
            return assert_eq!(applied, refused(DeliveryVerdict::CursorMoved));
        }
        let expected = self.expect(feed, load, "poll", true);
        assert_eq!(applied, expected);
        if let Some(walk) = &mut self.feeds[feed].walk {
            walk.cursor = place;
            walk.clean &= clean;
        }
    }

    fn end_walk(&mut self, feed: usize) {
        let Some(walk) = self.feeds[feed].walk.clone().filter(|walk| !walk.held) else { return };
        let stored = self.mirror.feed(FEEDS[feed]);
        let number = stored.resync.unwrap().walk_id;
        let ended = self
            .mirror
            .wait(self.mirror.store().end_resync(stored.id, number, AT, MAX_SWEEP, Default::default()))
            .unwrap();
        if !walk.clean {
            self.feeds[feed].walk = None;
            return assert_eq!(ended, ResyncEnd::Unclean);
        }
        let short = self.feeds[feed].short();
        if !short {
            self.feeds[feed].cursor = Some(walk.cursor);
        }
        let (unseen, live) = (self.feeds[feed].unseen().len(), self.feeds[feed].live());
        // So few items are never over a hundred: held is a sweep of everything, or after a short listing.
        if unseen > 0 && (unseen == live || short) {
            if let Some(walk) = &mut self.feeds[feed].walk {
                walk.held = true;
            }
            return assert_eq!(ended, ResyncEnd::Held(unseen as i64, live as i64));
        }
        self.feeds[feed].sweep(&mut self.turn);
        assert_eq!(ended, ResyncEnd::Done(unseen as i64));
    }

    fn accept(&mut self, feed: usize) {
        let stored = self.mirror.feed(FEEDS[feed]);
        let accepted = self.mirror.wait(self.mirror.store().accept_sweep(stored.id, AT));
        if !self.feeds[feed].walk.as_ref().is_some_and(|walk| walk.held) {
            return assert!(accepted.is_err());
        }
        accepted.unwrap();
        let unseen = self.feeds[feed].unseen().len() as i64;
        let number = stored.resync.unwrap().walk_id;
        let swept = self.mirror.wait(self.mirror.store().sweep(stored.id, number, AT)).unwrap();
        assert_eq!(swept, ResyncEnd::Done(unseen));
        self.feeds[feed].sweep(&mut self.turn);
    }

    /// Compares all that the file shows, and looks after the change numbers.
    fn compare(&mut self) {
        for feed in &self.feeds {
            let called = feed.name;
            let rows = self.mirror.rows(&format!(
                "SELECT kind, id, modified, state, data, transport, swept FROM items WHERE feed = '{called}' ORDER BY 1, 2"
            ));
            assert_eq!(rows, feed.rows.values().map(shown).collect::<Vec<_>>(), "items of {called}");
            let counters =
                self.mirror.rows(&format!("SELECT items, tombstones, cursor FROM feeds WHERE name = '{called}'"));
            let (live, all) = (feed.live() as i64, feed.rows.len() as i64);
            let cursor = feed.cursor.clone().map_or(Value::Null, Value::Text);
            assert_eq!(counters, [[Value::Integer(live), Value::Integer(all - live), cursor]], "counters of {called}");
            let held =
                self.mirror.rows(&format!("SELECT raw, count FROM quarantine WHERE feed = '{called}' ORDER BY raw"));
            let expected = feed.quarantine.iter().map(|(raw, n)| vec![Value::Text(raw.clone()), Value::Integer(*n)]);
            assert_eq!(held, expected.collect::<Vec<_>>(), "quarantine of {called}");
            let generation: i64 = self.mirror.value(&format!("SELECT generation FROM feed WHERE name = '{called}'"));
            assert_eq!(generation, feed.generation, "generation of {called}");
        }
        self.compare_changes();
    }

    /// The newest change of each item in the order of writing, with numbers that are new whenever the change is.
    fn compare_changes(&mut self) {
        let mut turns = BTreeMap::new();
        for feed in &self.feeds {
            let key = |kind: &str, id: &str| [feed.name, kind, id].map(str::to_owned);
            turns.extend(feed.rows.iter().map(|((kind, id), row)| (key(kind, id), row.turn)));
            turns.extend(feed.purge.map(|turn| (key("", ""), turn)));
        }
        let sql = "SELECT seq, feed, coalesce(kind, ''), coalesce(id, ''), modified, state FROM changes ORDER BY seq";
        let changes = self.mirror.rows(sql);
        assert_eq!(changes.len(), turns.len(), "one change for each item, and one for each purge");
        let highest = self.given.last_key_value().map_or(0, |(seq, _)| *seq);
        let mut last = 0;
        for mut change in changes {
            let [Value::Integer(seq), Value::Text(feed), Value::Text(kind), Value::Text(id), ..] = &change[..] else {
                panic!("not a change: {change:?}")
            };
            let seq = *seq;
            let turn = turns[&[feed.clone(), kind.clone(), id.clone()]];
            assert!(turn >= last, "change {seq} stands before one that was written earlier");
            last = turn;
            change.remove(0);
            match self.given.get(&seq) {
                Some(before) => assert_eq!(before, &change, "change number {seq} was given twice"),
                None => {
                    assert!(seq > highest, "change number {seq} is new and not above {highest}");
                    self.given.insert(seq, change);
                }
            }
        }
    }
}

fn refused(verdict: DeliveryVerdict) -> Applied {
    Applied { verdict, ..Applied::default() }
}

fn shown(row: &crate::oracle::OracleRow) -> Vec<Value> {
    let text = |text: &str| Value::Text(text.into());
    let (kind, id) = &row.sent.key;
    let state = if row.sent.data.is_some() { "updated" } else { "deleted" };
    let content = row.sent.data.map_or(Value::Null, |number| Value::Text(data(number)));
    let swept = Value::Integer(i64::from(row.swept != Swept::No));
    vec![text(kind), text(id), row.sent.stamp.in_sql(), text(state), content, text(row.transport), swept]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_mirror_is_what_the_oracle_says(acts in prop::collection::vec(acts(), 1..50)) {
        let mut pair = MirrorAndOracle::new();
        for (feed, act) in &acts {
            pair.act(*feed, act);
            pair.compare();
        }
    }
}

/// A record without a kind, as published.
fn raw(id: Option<&str>) -> String {
    format!("{{\"id\":{id:?}}}")
}
