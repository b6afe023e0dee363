//! Any order and any repetition of deliveries over any mix of transports ends in the same mirror.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use feedmirror::feed::Transport;
use feedmirror::store::apply::Purpose;
use proptest::prelude::*;
use rusqlite::types::Value;

use crate::oracle::{Key, OracleModified, SentRecord, data, stamps};
use crate::test_store::{Record, TestStore};

const FEEDS: [&str; 2] = ["acme", "other"];

/// A version of an item, and the deliveries that will bring it.
#[derive(Clone, Debug)]
struct Version {
    feed: usize,
    sent: SentRecord,
    /// For each time that it is delivered: where in the whole order, and how.
    deliveries: Vec<(u32, usize)>,
}

fn versions() -> impl Strategy<Value = Vec<Version>> {
    let version = (
        0..FEEDS.len(),
        (0..2usize, 0..3u8),
        stamps(),
        any::<bool>(),
        prop::collection::vec((any::<u32>(), 0..Transport::ALL.len()), 1..4),
    );
    let version = version.prop_map(|(feed, (kind, id), stamp, live, deliveries)| {
        let key: Key = (["Session", "Slot"][kind].into(), id.to_string());
        let sent = SentRecord { key, stamp, data: live.then_some(0) };
        Version { feed, sent, deliveries }
    });
    prop::collection::vec(version, 1..60).prop_map(|mut versions| {
        // Updates that tie say the same: only the next resync makes those agree that don't.
        for at in 0..versions.len() {
            let first = versions[..at].iter().position(|earlier| {
                earlier.sent.stamp.place.compare(&versions[at].sent.stamp.place) == Ordering::Equal
            });
            let number = first.unwrap_or(at) as u8 * 4;
            let spelling = (at % 3) as u8;
            versions[at].sent.data = versions[at].sent.data.map(|_| number + spelling);
        }
        versions
    })
}

fn record(sent: &SentRecord) -> Record {
    let (kind, id) = sent.key.clone();
    Record { kind, id, modified: sent.stamp.modified(), data: sent.data.map(data) }
}

/// The newest of all versions of an item; of equal ones a deletion, if there is one.
fn newest<'a>(all: &[&'a SentRecord]) -> Vec<&'a SentRecord> {
    let place = |sent: &SentRecord| sent.stamp.place.clone();
    let top = all.iter().map(|sent| place(sent)).max_by(|a, b| a.compare(b));
    let mut newest: Vec<&SentRecord> = all.to_vec();
    newest.retain(|sent| top.as_ref().is_some_and(|top| place(sent).compare(top) == Ordering::Equal));
    if newest.iter().any(|sent| sent.data.is_none()) {
        newest.retain(|sent| sent.data.is_none());
    }
    newest
}

fn shown(stamp: &OracleModified, state: &str, data: Option<String>) -> Vec<Value> {
    vec![stamp.in_sql(), Value::Text(state.into()), data.map_or(Value::Null, Value::Text)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_repetition_over_any_transports_ends_in_the_newest(
        versions in versions(),
        sizes in prop::collection::vec(1..9usize, 1..20),
        restarts in prop::collection::vec(any::<prop::sample::Index>(), 0..2),
    ) {
        let mut mirror = TestStore::with(&FEEDS);
        let mut line: Vec<(u32, usize, usize, &SentRecord)> = Vec::new();
        for version in &versions {
            line.extend(version.deliveries.iter().map(|&(at, by)| (at, by, version.feed, &version.sent)));
        }
        line.sort_by_key(|&(at, ..)| at);

        let mut sizes = sizes.iter().cycle();
        let mut number = 0;
        while !line.is_empty() {
            let chunk: Vec<_> = line.drain(..line.len().min(*sizes.next().unwrap())).collect();
            let mut pending = Vec::new();
            for (feed, name) in FEEDS.iter().enumerate() {
                for (by, transport) in Transport::ALL.iter().enumerate() {
                    let records: Vec<_> =
                        chunk.iter().filter(|part| (part.1, part.2) == (by, feed)).map(|part| record(part.3)).collect();
                    if !records.is_empty() {
                        pending.push(mirror.submit(mirror.delivery(name, *transport, Purpose::Reread, &records)));
                    }
                }
            }
            for pending in pending {
                mirror.answer(pending);
            }
            number += 1;
            if restarts.iter().any(|restart| restart.index(8) == number) {
                mirror.reopen();
            }
        }

        for (feed, name) in FEEDS.iter().enumerate() {
            let mut all: BTreeMap<&Key, Vec<&SentRecord>> = BTreeMap::new();
            for version in versions.iter().filter(|version| version.feed == feed) {
                all.entry(&version.sent.key).or_default().push(&version.sent);
            }
            let mut live = 0;
            let count: i64 = mirror.value(&format!("SELECT count(*) FROM items WHERE feed = '{name}'"));
            prop_assert_eq!(count, all.len() as i64);
            for ((kind, id), sent) in all {
                let newest = newest(&sent);
                live += i64::from(newest[0].data.is_some());
                let rows = mirror.rows(&format!(
                    "SELECT modified, state, data FROM items WHERE feed = '{name}' AND kind = '{kind}' AND id = '{id}'"
                ));
                // Which of several spellings of the newest stands depends on which came first.
                let allowed: Vec<_> = newest
                    .iter()
                    .map(|sent| {
                        let state = if sent.data.is_some() { "updated" } else { "deleted" };
                        shown(&sent.stamp, state, sent.data.map(data))
                    })
                    .collect();
                prop_assert!(rows.len() == 1 && allowed.contains(&rows[0]), "{rows:?} is none of {allowed:?}");
            }
            let counters = mirror.rows(&format!("SELECT items, tombstones FROM feeds WHERE name = '{name}'"));
            prop_assert_eq!(counters, vec![vec![Value::Integer(live), Value::Integer(count - live)]]);
        }
    }
}
