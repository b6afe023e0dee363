//! Random sequences of actions on feeds, compared with the oracle: polls, push, resyncs with sweeps held and accepted,
//! purges, restarts. After every action, all rows of the file are compared.

use std::collections::BTreeMap;

use feedmirror::feed::{TiePolicy, Transport};
use feedmirror::store::apply::{Applied, Delivery, DeliveryVerdict, PageStep, Purpose};
use feedmirror::store::resync::{ResyncEnd, SourceTrust};
use proptest::prelude::*;
use rusqlite::types::Value;

use crate::oracle::{ApplyOutcome, DeliveryWay, Key, OracleFeed, OracleWalk, SentRecord, Swept, data, modified_values};
use crate::test_store::{AT, Record, TestStore, name, start_url, unreadable};

const FEEDS: [&str; 2] = ["acme", "other"];
const MAX_SWEEP: f64 = 0.2;

/// The content of a delivery.
#[derive(Clone, Debug)]
struct GeneratedDelivery {
    records: Vec<SentRecord>,
    /// Ids of records that can't be understood.
    bad: Vec<Option<u8>>,
    replace_ties: bool,
}

/// One action on a feed.
#[derive(Clone, Debug)]
enum FeedAction {
    /// Deliveries of any transport that move no cursor; all are submitted before any is awaited.
    Deliver(Vec<(usize, GeneratedDelivery)>),
    /// A page polled at the cursor, or with a cursor that is no longer the stored one.
    Poll {
        generated: GeneratedDelivery,
        late: bool,
    },
    /// A delivery that was read under the previous generation.
    Outdated(GeneratedDelivery),
    Begin {
        trust: bool,
    },
    WalkPage {
        generated: GeneratedDelivery,
        clean: bool,
    },
    EndWalk,
    Accept,
    Seek,
    Purge,
    Resume,
    Restart,
}

fn generated_deliveries() -> impl Strategy<Value = GeneratedDelivery> {
    let sent = ((0..2usize, 0..4u8), modified_values(), prop::option::weighted(0.7, 0..8u8)).prop_map(
        |((kind, id), modified, data)| {
            let key: Key = (["Session", "Slot"][kind].into(), id.to_string());
            SentRecord { key, modified, data }
        },
    );
    let bad = prop::collection::vec(prop::option::of(0..4u8), 0..2);
    (prop::collection::vec(sent, 0..8), bad, prop::bool::weighted(0.2))
        .prop_map(|(records, bad, replace_ties)| GeneratedDelivery { records, bad, replace_ties })
}

fn actions() -> impl Strategy<Value = (usize, FeedAction)> {
    let action = prop_oneof![
        6 => prop::collection::vec((0..Transport::ALL.len(), generated_deliveries()), 1..4).prop_map(FeedAction::Deliver),
        6 => (generated_deliveries(), prop::bool::weighted(0.1)).prop_map(|(generated, late)| FeedAction::Poll { generated, late }),
        1 => generated_deliveries().prop_map(FeedAction::Outdated),
        3 => any::<bool>().prop_map(|trust| FeedAction::Begin { trust }),
        6 => (generated_deliveries(), prop::bool::weighted(0.9)).prop_map(|(generated, clean)| FeedAction::WalkPage { generated, clean }),
        3 => Just(FeedAction::EndWalk),
        2 => Just(FeedAction::Accept),
        1 => Just(FeedAction::Seek),
        1 => Just(FeedAction::Purge),
        2 => Just(FeedAction::Resume),
        1 => Just(FeedAction::Restart),
    ];
    (0..FEEDS.len(), action)
}

/// The change of a change number: feed, kind, id and modified.
type Change = Vec<Value>;

/// The mirror and the oracle, which get the same actions.
struct MirrorAndOracle {
    mirror: TestStore,
    feeds: Vec<OracleFeed>,
    tick: u64,
    cursors: u64,
    /// Every change number ever read, and its change.
    changes_by_seq: BTreeMap<i64, Change>,
}

impl MirrorAndOracle {
    fn new() -> Self {
        let feeds = FEEDS.iter().map(|feed| OracleFeed::new(feed, start_url(feed))).collect();
        Self { mirror: TestStore::with(&FEEDS), feeds, tick: 0, cursors: 0, changes_by_seq: BTreeMap::new() }
    }

    fn new_cursor(&mut self, feed: usize) -> String {
        self.cursors += 1;
        format!("https://{}.example/rpde?at={}", FEEDS[feed], self.cursors)
    }

    fn delivery(&self, feed: usize, transport: Transport, purpose: Purpose, generated: &GeneratedDelivery) -> Delivery {
        let record = |sent: &SentRecord| {
            let (kind, id) = sent.key.clone();
            Record { kind, id, modified: sent.modified.to_modified(), data: sent.data.map(data) }
        };
        let records: Vec<_> = generated.records.iter().map(record).collect();
        let mut delivery = self.mirror.delivery(FEEDS[feed], transport, purpose, &records);
        for id in &generated.bad {
            let id = id.map(|id| id.to_string());
            delivery.page.unreadable.push(unreadable("no-kind", &raw(id.as_deref()), id.as_deref()));
        }
        delivery.ties = if generated.replace_ties { TiePolicy::Replace } else { TiePolicy::Keep };
        delivery
    }

    /// The oracle's result of a delivery that is committed.
    fn expect(&mut self, feed: usize, generated: &GeneratedDelivery, transport: &'static str, resync: bool) -> Applied {
        let way = DeliveryWay { transport, resync, replace_ties: generated.replace_ties };
        let mut applied = Applied { quarantined: generated.bad.len() as u64, ..Applied::default() };
        for sent in &generated.records {
            let outcome = self.feeds[feed].apply(sent, way, &mut self.tick);
            match outcome {
                ApplyOutcome::New => applied.new += 1,
                ApplyOutcome::Changed => applied.changed += 1,
                ApplyOutcome::Same => applied.same += 1,
                ApplyOutcome::Older => applied.older += 1,
                ApplyOutcome::Tied => applied.tied += 1,
            }
            if sent.data.is_none() && matches!(outcome, ApplyOutcome::New | ApplyOutcome::Changed) {
                applied.deleted += 1;
                applied.new_deleted += u64::from(matches!(outcome, ApplyOutcome::New));
            }
        }
        for id in generated.bad.iter().map(|id| id.map(|id| id.to_string())) {
            *self.feeds[feed].quarantine.entry(raw(id.as_deref())).or_default() += 1;
            if let (Some(walk), Some(id)) = (&mut self.feeds[feed].walk, id) {
                walk.spared.push(id);
            }
        }
        applied
    }

    fn perform(&mut self, feed: usize, action: &FeedAction) {
        let store = self.mirror.store().clone();
        let feed_name = name(FEEDS[feed]);
        match action {
            FeedAction::Deliver(generated_deliveries) => self.deliver(feed, generated_deliveries),
            FeedAction::Poll { generated, late } => self.poll(feed, generated, *late),
            FeedAction::Outdated(generated) => {
                let mut delivery = self.delivery(feed, Transport::Webhook, Purpose::Reread, generated);
                delivery.generation -= 1;
                assert_eq!(self.mirror.apply(delivery), refused(DeliveryVerdict::OldGeneration));
            }
            FeedAction::Begin { trust } => self.begin(feed, *trust),
            FeedAction::WalkPage { generated, clean } => self.walk_page(feed, generated, *clean),
            FeedAction::EndWalk => self.end_walk(feed),
            FeedAction::Accept => self.accept(feed),
            FeedAction::Seek => {
                let cursor = self.new_cursor(feed);
                self.mirror.wait(store.seek(&feed_name, AT, cursor.clone())).unwrap();
                self.feeds[feed].cursor = Some(cursor);
            }
            FeedAction::Purge => {
                self.mirror.wait(store.purge(&feed_name, AT)).unwrap();
                self.tick += 1;
                let generation = self.feeds[feed].generation + 1;
                let purge = Some(self.tick);
                self.feeds[feed] = OracleFeed {
                    generation,
                    cursor: None,
                    purged: true,
                    purge,
                    ..OracleFeed::new(FEEDS[feed], String::new())
                };
            }
            FeedAction::Resume => {
                self.mirror.wait(store.set_paused(&feed_name, AT, false)).unwrap();
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

    fn deliver(&mut self, feed: usize, generated_deliveries: &[(usize, GeneratedDelivery)]) {
        let deliveries: Vec<_> = generated_deliveries
            .iter()
            .map(|(by, generated)| self.delivery(feed, Transport::ALL[*by], Purpose::Reread, generated))
            .collect();
        let pending: Vec<_> = deliveries.into_iter().map(|delivery| self.mirror.submit(delivery)).collect();
        for ((by, generated), pending) in generated_deliveries.iter().zip(pending) {
            let expected = match self.feeds[feed].purged {
                true => refused(DeliveryVerdict::OldGeneration),
                false => self.expect(feed, generated, Transport::ALL[*by].as_str(), false),
            };
            assert_eq!(self.mirror.answer(pending), expected);
        }
    }

    fn poll(&mut self, feed: usize, generated: &GeneratedDelivery, late: bool) {
        let next_cursor = self.new_cursor(feed);
        let cursor = self.feeds[feed].cursor.clone();
        let from_cursor = cursor.filter(|_| !late).unwrap_or_else(|| "https://elsewhere.example/".to_owned());
        let step =
            PageStep { from_cursor: from_cursor.clone(), next_cursor: next_cursor.clone(), level: false, clean: true };
        let mut applied = self.mirror.apply(self.delivery(feed, Transport::Poll, Purpose::Poll(step), generated));
        // Other tests check whether a feed is suspect.
        applied.suspect = None;
        let expected = if self.feeds[feed].purged {
            refused(DeliveryVerdict::OldGeneration)
        } else if self.feeds[feed].cursor.as_ref() != Some(&from_cursor) {
            refused(DeliveryVerdict::CursorMoved)
        } else {
            self.feeds[feed].cursor = Some(next_cursor);
            self.expect(feed, generated, "poll", false)
        };
        assert_eq!(applied, expected);
    }

    fn begin(&mut self, feed: usize, trust: bool) {
        if self.feeds[feed].purged {
            return;
        }
        let source_trust = if trust { SourceTrust::Requested } else { SourceTrust::No };
        self.mirror.wait(self.mirror.store().begin_resync(&name(FEEDS[feed]), AT, source_trust, false)).unwrap();
        if !trust && self.feeds[feed].walk.as_ref().is_some_and(|walk| !walk.held) {
            return;
        }
        self.feeds[feed].generation += i64::from(trust);
        self.feeds[feed].walk = Some(OracleWalk {
            cursor: start_url(FEEDS[feed]),
            trust,
            clean: true,
            held: false,
            start_tick: self.tick,
            seen: BTreeMap::new(),
            spared: Vec::new(),
            newest: BTreeMap::new(),
        });
    }

    fn walk_page(&mut self, feed: usize, generated: &GeneratedDelivery, clean: bool) {
        let Some(walk) = self.feeds[feed].walk.clone() else { return };
        let next_cursor = self.new_cursor(feed);
        let step = PageStep { from_cursor: walk.cursor, next_cursor: next_cursor.clone(), level: false, clean };
        let applied = self.mirror.apply(self.delivery(feed, Transport::Poll, Purpose::Resync(step), generated));
        if walk.held {
            return assert_eq!(applied, refused(DeliveryVerdict::CursorMoved));
        }
        let expected = self.expect(feed, generated, "poll", true);
        assert_eq!(applied, expected);
        if let Some(walk) = &mut self.feeds[feed].walk {
            walk.cursor = next_cursor;
            walk.clean &= clean;
        }
    }

    fn end_walk(&mut self, feed: usize) {
        let Some(walk) = self.feeds[feed].walk.clone().filter(|walk| !walk.held) else { return };
        let stored = self.mirror.feed(FEEDS[feed]);
        let walk_id = stored.resync.unwrap().walk_id;
        let ended = self
            .mirror
            .wait(self.mirror.store().end_resync(stored.id, walk_id, AT, MAX_SWEEP, Default::default()))
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
        // So few items are never over a hundred: a sweep is held only when it is of all items, or after a short
        // listing.
        if unseen > 0 && (unseen == live || short) {
            if let Some(walk) = &mut self.feeds[feed].walk {
                walk.held = true;
            }
            return assert_eq!(ended, ResyncEnd::Held(unseen as i64, live as i64));
        }
        self.feeds[feed].sweep(&mut self.tick);
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
        let walk_id = stored.resync.unwrap().walk_id;
        let swept = self.mirror.wait(self.mirror.store().sweep(stored.id, walk_id, AT)).unwrap();
        assert_eq!(swept, ResyncEnd::Done(unseen));
        self.feeds[feed].sweep(&mut self.tick);
    }

    /// Compares all rows of the file, and checks the change numbers.
    fn compare(&mut self) {
        for feed in &self.feeds {
            let feed_name = feed.name;
            let rows = self.mirror.rows(&format!(
                "SELECT kind, id, modified, state, data, transport, swept FROM items WHERE feed = '{feed_name}' ORDER BY 1, 2"
            ));
            assert_eq!(rows, feed.rows.values().map(expected_row).collect::<Vec<_>>(), "items of {feed_name}");
            let counters =
                self.mirror.rows(&format!("SELECT items, tombstones, cursor FROM feeds WHERE name = '{feed_name}'"));
            let (live, all) = (feed.live() as i64, feed.rows.len() as i64);
            let cursor = feed.cursor.clone().map_or(Value::Null, Value::Text);
            assert_eq!(
                counters,
                [[Value::Integer(live), Value::Integer(all - live), cursor]],
                "counters of {feed_name}"
            );
            let quarantine =
                self.mirror.rows(&format!("SELECT raw, count FROM quarantine WHERE feed = '{feed_name}' ORDER BY raw"));
            let expected = feed.quarantine.iter().map(|(raw, n)| vec![Value::Text(raw.clone()), Value::Integer(*n)]);
            assert_eq!(quarantine, expected.collect::<Vec<_>>(), "quarantine of {feed_name}");
            let generation: i64 = self.mirror.value(&format!("SELECT generation FROM feed WHERE name = '{feed_name}'"));
            assert_eq!(generation, feed.generation, "generation of {feed_name}");
        }
        self.compare_changes();
    }

    /// Compares the newest change of each item in the order of writing; a new change must have a new number.
    fn compare_changes(&mut self) {
        let mut ticks = BTreeMap::new();
        for feed in &self.feeds {
            let key = |kind: &str, id: &str| [feed.name, kind, id].map(str::to_owned);
            ticks.extend(feed.rows.iter().map(|((kind, id), row)| (key(kind, id), row.tick)));
            ticks.extend(feed.purge.map(|tick| (key("", ""), tick)));
        }
        let sql = "SELECT seq, feed, coalesce(kind, ''), coalesce(id, ''), modified, state FROM changes ORDER BY seq";
        let changes = self.mirror.rows(sql);
        assert_eq!(changes.len(), ticks.len(), "one change for each item, and one for each purge");
        let highest = self.changes_by_seq.last_key_value().map_or(0, |(seq, _)| *seq);
        let mut last = 0;
        for mut change in changes {
            let [Value::Integer(seq), Value::Text(feed), Value::Text(kind), Value::Text(id), ..] = &change[..] else {
                panic!("not a change: {change:?}")
            };
            let seq = *seq;
            let tick = ticks[&[feed.clone(), kind.clone(), id.clone()]];
            assert!(tick >= last, "change {seq} stands before one that was written earlier");
            last = tick;
            change.remove(0);
            match self.changes_by_seq.get(&seq) {
                Some(before) => assert_eq!(before, &change, "change number {seq} was given twice"),
                None => {
                    assert!(seq > highest, "change number {seq} is new and not above {highest}");
                    self.changes_by_seq.insert(seq, change);
                }
            }
        }
    }
}

fn refused(verdict: DeliveryVerdict) -> Applied {
    Applied { verdict, ..Applied::default() }
}

fn expected_row(row: &crate::oracle::OracleRow) -> Vec<Value> {
    let text = |text: &str| Value::Text(text.into());
    let (kind, id) = &row.sent.key;
    let state = if row.sent.data.is_some() { "updated" } else { "deleted" };
    let content = row.sent.data.map_or(Value::Null, |number| Value::Text(data(number)));
    let swept = Value::Integer(i64::from(row.swept != Swept::No));
    vec![text(kind), text(id), row.sent.modified.in_sql(), text(state), content, text(row.transport), swept]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_mirror_is_what_the_oracle_says(actions in prop::collection::vec(actions(), 1..50)) {
        let mut pair = MirrorAndOracle::new();
        for (feed, action) in &actions {
            pair.perform(*feed, action);
            pair.compare();
        }
    }
}

/// A record without a kind, as published.
fn raw(id: Option<&str>) -> String {
    format!("{{\"id\":{id:?}}}")
}
