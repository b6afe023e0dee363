//! The simulated publisher, read over real sockets by a reader of a few lines that shares no code with it or the
//! mirror: its output without faults, and what each fault looks like on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod process;
mod pushes;
mod reader;
mod streams;

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use feedmirror::simulate::{Dialect, ExpectedItem, Simulator, SimulatorSettings};
use serde_json::Value;

use reader::{get, get_with, walk};

pub(crate) async fn start(settings: SimulatorSettings) -> Simulator {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    Simulator::start(listener, settings).unwrap()
}

fn small() -> SimulatorSettings {
    SimulatorSettings { feeds: 21, items: 60, page: 7, ..SimulatorSettings::default() }
}

/// The publisher's expected items in the reader's form.
pub(crate) fn items_by_key(expected: &[ExpectedItem]) -> BTreeMap<(String, String), (i64, Option<Value>)> {
    let item = |expected: &ExpectedItem| {
        let data = expected.data.as_ref().map(|data| serde_json::from_str(data).unwrap());
        assert_eq!(data.is_some(), expected.state == "updated");
        ((expected.kind.clone(), expected.id.clone()), (expected.modified.as_i64().unwrap(), data))
    };
    expected.iter().map(item).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_feed_read_to_its_end_says_the_truth_each_item_once_in_order() {
    // given feeds of every dialect, form of id and unit of modified
    let simulator = start(small()).await;
    for name in simulator.names() {
        // when one is read to its end
        let read = walk(&simulator.feed_url(&name), async || {}).await;
        // then it has the expected items, none twice, none before an older one
        let expected = simulator.expected_items(&name);
        assert_eq!(read.items, items_by_key(&expected), "{name}");
        assert_eq!((read.records.len(), expected.len()), (60, 60), "{name}");
        let modified: Vec<i64> = read.records.iter().map(|record| record.modified).collect();
        assert!(modified.is_sorted(), "{name}: {modified:?}");
    }
    assert!(simulator.fault_counts().is_empty());
    simulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_dialect_is_spelt_as_its_standard_says() {
    for (dialect, parameters, states, absolute) in [
        (Dialect::Timestamp, vec!["afterTimestamp", "afterId"], ["deleted", "updated"], true),
        (Dialect::ChangeNumber, vec!["afterChangeNumber"], ["deleted", "updated"], true),
        (Dialect::Draft, vec!["from", "after"], ["Deleted", "Updated"], false),
    ] {
        let simulator = start(SimulatorSettings { dialect: Some(dialect), ..small() }).await;
        let url = simulator.feed_url(&simulator.names()[0]);
        let page = get(&url).await.page();
        let next = page["next"].as_str().unwrap();
        let query = next.split_once('?').unwrap().1;
        let names: Vec<&str> = query.split('&').map(|pair| pair.split_once('=').unwrap().0).collect();
        assert_eq!(names, parameters);
        assert_eq!(next.starts_with(&format!("{url}?")), absolute, "{next}");
        assert_eq!(page["license"].as_str().is_some(), absolute);
        let all = walk(&url, async || {}).await;
        let mut spelt: Vec<&str> = all.records.iter().map(|record| record.state.as_str()).collect();
        spelt.sort_unstable();
        spelt.dedup();
        assert_eq!(spelt, states);
        // The end is an empty page whose `next` is the requested URL.
        let end = get(&all.end).await.page();
        let expected = if absolute { all.end.clone() } else { all.end.split_off_origin() };
        assert_eq!((end["items"].as_array().unwrap().len(), end["next"].as_str().unwrap()), (0, expected.as_str()));
    }
}

trait SplitOrigin {
    fn split_off_origin(&self) -> String;
}

impl SplitOrigin for String {
    fn split_off_origin(&self) -> String {
        let path = self.match_indices('/').nth(2).unwrap().0;
        self[path..].to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_during_a_walk_lose_nothing() {
    let simulator = start(small()).await;
    for name in simulator.names() {
        // given a feed that changes after each of the first pages
        let mut left = 12;
        let read = walk(&simulator.feed_url(&name), async || {
            if left > 0 {
                left -= 1;
                assert!(simulator.change(&name, 5));
            }
        })
        .await;
        // then the reader holds the expected items, though they moved during the walk
        assert_eq!(left, 0);
        let expected = items_by_key(&simulator.expected_items(&name));
        assert_eq!(read.items, expected, "{name}");
        assert!(read.records.len() > expected.len(), "nothing was read twice");
    }
    assert!(!simulator.change("nobody", 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_gives_one_publisher_and_another_seed_another() {
    let say = async |seed| {
        let simulator = start(SimulatorSettings { seed, ..small() }).await;
        let names = simulator.names();
        names.iter().for_each(|name| assert!(simulator.change(name, 40)));
        names.iter().map(|name| simulator.expected_items(name)).collect::<Vec<_>>()
    };
    let (one, again, other) = (say(5).await, say(5).await, say(6).await);
    assert_eq!(one, again);
    assert!(one.iter().zip(&other).all(|(one, other)| one != other));
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_change_at_the_rate_until_frozen() {
    let simulator = start(SimulatorSettings { feeds: 2, rate: 500.0, ..small() }).await;
    let name = simulator.names()[1].clone();
    // when nothing is done, it changes
    let before = simulator.expected_items(&name);
    until(async || simulator.expected_items(&name) != before).await;
    // when frozen, it stays unchanged for the time of many changes
    simulator.freeze(true);
    let frozen = simulator.expected_items(&name);
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(200) {
        get(&simulator.feed_url(&name)).await;
    }
    assert_eq!(simulator.expected_items(&name), frozen);
    // when thawed, it changes again
    simulator.freeze(false);
    until(async || simulator.expected_items(&name) != frozen).await;
}

/// Waits for a condition under a deadline, yielding between checks.
pub(crate) async fn until(condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the condition never came true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_page_is_not_sent_again_until_it_changes() {
    let simulator = start(SimulatorSettings { feeds: 1, ..small() }).await;
    let end = walk(&simulator.feed_url("sessions-1"), async || {}).await.end;
    let tag = get(&end).await.header("etag").unwrap().to_owned();
    let known = get_with(&end, &[("If-None-Match", &tag)]).await;
    assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some(tag.as_str())));
    simulator.change("sessions-1", 1);
    assert_eq!(get_with(&end, &[("If-None-Match", &tag)]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_compressed_for_those_who_take_it() {
    let simulator = start(SimulatorSettings { feeds: 1, ..small() }).await;
    let url = simulator.feed_url("sessions-1");
    let plain = get(&url).await;
    let packed = get_with(&url, &[("Accept-Encoding", "br, gzip")]).await;
    assert_eq!((plain.header("content-encoding"), packed.header("content-encoding")), (None, Some("gzip")));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(packed.body.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, plain.body);
    assert_ne!(plain.header("etag"), packed.header("etag"));
    let refused = get_with(&url, &[("Accept-Encoding", "gzip;q=0")]).await;
    assert_eq!(refused.header("content-encoding"), None);
    assert_eq!(plain.header("content-type"), Some("application/vnd.openactive.rpde+json; version=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn caching_is_told_only_when_set() {
    let simulator = start(SimulatorSettings { feeds: 1, ..small() }).await;
    assert_eq!(get(&simulator.feed_url("sessions-1")).await.header("cache-control"), None);
    let simulator = start(SimulatorSettings { feeds: 1, max_age: Some(Duration::from_secs(8)), ..small() }).await;
    let url = simulator.feed_url("sessions-1");
    let end = walk(&url, async || {}).await.end;
    assert_eq!(get(&end).await.header("cache-control"), Some("public, max-age=8"));
    assert_eq!(get(&url).await.header("cache-control"), Some("public, max-age=3600"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_makes_pages_smaller_never_larger() {
    let simulator = start(SimulatorSettings { feeds: 1, ..small() }).await;
    let url = simulator.feed_url("sessions-1");
    for (limit, items) in [(3, 3), (7, 7), (500, 7)] {
        let page = get(&format!("{url}?limit={limit}")).await.page();
        assert_eq!(page["items"].as_array().unwrap().len(), items);
        assert!(page["next"].as_str().unwrap().contains(&format!("limit={limit}")));
    }
    assert_eq!(
        walk(&format!("{url}?limit=2"), async || {}).await.items,
        items_by_key(&simulator.expected_items("sessions-1"))
    );
    assert_eq!(get(&format!("{url}?afterTimestamp=soon")).await.status, 400);
    assert_eq!(get(&simulator.feed_url("nobody")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_without_items_is_at_its_end_at_once() {
    for dialect in Dialect::ALL {
        let settings =
            SimulatorSettings { feeds: 1, items: 0, dialect: Some(*dialect), ..SimulatorSettings::default() };
        let simulator = start(settings).await;
        let read = walk(&simulator.feed_url("sessions-1"), async || {}).await;
        assert_eq!((read.records.len(), read.end), (0, simulator.feed_url("sessions-1")));
        simulator.change("sessions-1", 3);
        let read = walk(&simulator.feed_url("sessions-1"), async || {}).await;
        assert_eq!(read.items, items_by_key(&simulator.expected_items("sessions-1")));
    }
}
