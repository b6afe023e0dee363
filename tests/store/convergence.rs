//! Any order and any repetition of deliveries over any mix of transports end in the same mirror.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use feedmirror::feed::Transport;
use feedmirror::store::apply::Purpose;
use proptest::prelude::*;
use rusqlite::types::Value;

use crate::oracle::{Key, OracleModified, SentRecord, data, modified_values};
use crate::test_store::{Record, TestStore};

const FEEDS: [&str; 2] = ["acme", "other"];

/// A version of an item, and its deliveries.
#[derive(Clone, Debug)]
struct Version {
    feed: usize,
    sent: SentRecord,
    /// For each delivery of the version: its rank in the order of all deliveries, and the transport.
    deliveries: Vec<(u32, usize)>,
}

fn versions() -> impl Strategy<Value = Vec<Version>> {
    let version = (
        0..FEEDS.len(),
        (0..2usize, 0..3u8),
        modified_values(),
        any::<bool>(),
        prop::collection::vec((any::<u32>(), 0..Transport::ALL.len()), 1..4),
    );
    let version = version.prop_map(|(feed, (kind, id), modified, live, deliveries)| {
        let key: Key = (["Session", "Slot"][kind].into(), id.to_string());
        let sent = SentRecord { key, modified, data: live.then_some(0) };
        Version { feed, sent, deliveries }
    });
    prop::collection::vec(version, 1..60).prop_map(|mut versions| {
        // Tied updates get equal content: with different content, mirrors would agree only after the next resync.
        for at in 0..versions.len() {
            let first = versions[..at].iter().position(|earlier| {
                earlier.sent.modified.class.compare(&versions[at].sent.modified.class) == Ordering::Equal
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
    Record { kind, id, modified: sent.modified.to_modified(), data: sent.data.map(data) }
}

/// The newest of all versions of an item; of equal ones a deletion, if there is one.
fn newest<'a>(all: &[&'a SentRecord]) -> Vec<&'a SentRecord> {
    let class = |sent: &SentRecord| sent.modified.class.clone();
    let top = all.iter().map(|sent| class(sent)).max_by(|a, b| a.compare(b));
    let mut newest: Vec<&SentRecord> = all.to_vec();
    newest.retain(|sent| top.as_ref().is_some_and(|top| class(sent).compare(top) == Ordering::Equal));
    if newest.iter().any(|sent| sent.data.is_none()) {
        newest.retain(|sent| sent.data.is_none());
    }
    newest
}

fn expected_row(modified: &OracleModified, state: &str, data: Option<String>) -> Vec<Value> {
    vec![modified.in_sql(), Value::Text(state.into()), data.map_or(Value::Null, Value::Text)]
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
        let mut queue: Vec<(u32, usize, usize, &SentRecord)> = Vec::new();
        for version in &versions {
            queue.extend(version.deliveries.iter().map(|&(at, by)| (at, by, version.feed, &version.sent)));
        }
        queue.sort_by_key(|&(at, ..)| at);

        let mut sizes = sizes.iter().cycle();
        let mut number = 0;
        while !queue.is_empty() {
            let chunk: Vec<_> = queue.drain(..queue.len().min(*sizes.next().unwrap())).collect();
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
                // Which spelling of the newest version is stored depends on which was delivered first.
                let allowed: Vec<_> = newest
                    .iter()
                    .map(|sent| {
                        let state = if sent.data.is_some() { "updated" } else { "deleted" };
                        expected_row(&sent.modified, state, sent.data.map(data))
                    })
                    .collect();
                prop_assert!(rows.len() == 1 && allowed.contains(&rows[0]), "{rows:?} is none of {allowed:?}");
            }
            let counters = mirror.rows(&format!("SELECT items, tombstones FROM feeds WHERE name = '{name}'"));
            prop_assert_eq!(counters, vec![vec![Value::Integer(live), Value::Integer(count - live)]]);
        }
    }
}
