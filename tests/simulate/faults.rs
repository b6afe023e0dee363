//! Every fault happens, looks as its name says, is counted, and is over once the faults are cleared.

use std::collections::HashMap;
use std::io::Read as _;
use std::time::Duration;

use feedmirror::simulate::{Dialect, FAULTS, Fault, FaultChannel, FaultInfo, Simulator, SimulatorSettings};
use serde_json::Value;

use crate::reader::{Reply, WalkResult, get, get_with, record, resolve, walk};
use crate::{items_by_key, start};

const FEED: &str = "sessions-1";
const PAGE: usize = 10;
const LARGE: u64 = 300_000;

fn settings(dialect: Dialect) -> SimulatorSettings {
    SimulatorSettings {
        feeds: 1,
        items: 45,
        page: PAGE,
        dialect: Some(dialect),
        hold: Duration::from_millis(300),
        drip: Duration::from_millis(20),
        large: LARGE,
        ..SimulatorSettings::default()
    }
}

/// One fault with a share of 1, and the URLs that a reader knew before it began.
struct FaultCase {
    simulator: Simulator,
    fault: Fault,
    first: String,
    second: String,
    end: String,
}

impl FaultCase {
    async fn new(name: &str, dialect: Dialect) -> Self {
        let fault = Fault::named(name).unwrap();
        let simulator = start(settings(dialect)).await;
        let first = simulator.feed_url(FEED);
        let second = resolve(&first, get(&first).await.page()["next"].as_str().unwrap());
        let end = walk(&first, async || {}).await.end;
        simulator.set_faults(vec![(fault, 1.0)]);
        Self { simulator, fault, first, second, end }
    }

    fn fired(&self) -> u64 {
        self.simulator.fault_counts().get(self.fault.name()).copied().unwrap_or(0)
    }

    fn expected_items(&self) -> HashMap<String, Value> {
        let expected_items = self.simulator.expected_items(FEED);
        expected_items.into_iter().map(|item| (item.id.clone(), serde_json::to_value(item).unwrap())).collect()
    }
}

fn items(page: &Value) -> &Vec<Value> {
    page["items"].as_array().unwrap()
}

/// The records of a page that can't be understood.
fn broken(page: &Value) -> Vec<&Value> {
    items(page).iter().filter(|item| record(item).is_none()).collect()
}

fn next(page: &Value) -> &str {
    page["next"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_happens_as_named_is_counted_and_is_over_when_calm() {
    for row in FAULTS.iter().filter(|row| row.on == FaultChannel::Poll) {
        let scene = FaultCase::new(row.name, Dialect::Timestamp).await;
        look(&scene, row.name).await;
        // Counted, and nothing else was.
        assert!(scene.fired() > 0, "{} was not counted", row.name);
        assert_eq!(scene.simulator.fault_counts().len(), 1, "{}", row.name);
        // Once cleared, a reader that begins anew gets the expected items.
        scene.simulator.clear_faults();
        let read = walk(&scene.first, async || {}).await;
        assert_eq!(read.items, items_by_key(&scene.simulator.expected_items(FEED)), "{}", row.name);
        scene.simulator.stop().await;
    }
}

#[expect(clippy::too_many_lines, reason = "one arm a fault, to be read as a table")]
async fn look(scene: &FaultCase, name: &str) {
    let ask = async || get(&scene.first).await;
    let raw = async || String::from_utf8(get(&scene.first).await.body).unwrap();
    let honest = async || {
        scene.simulator.clear_faults();
        get(&scene.first).await
    };
    let status = async |code: u16| assert_eq!(ask().await.status, code, "{name}");
    match name {
        "http-408" => status(408).await,
        "http-425" => status(425).await,
        "http-500" => status(500).await,
        "http-502" => status(502).await,
        "http-503" => status(503).await,
        "http-401" => status(401).await,
        "http-403" => status(403).await,
        "http-404" => status(404).await,
        "http-410" => status(410).await,
        "http-429" => assert_eq!(retry(&ask().await), (429, None)),
        "retry-after" => assert_eq!(retry(&ask().await), (429, Some("1"))),
        "reset" => {
            let reply = ask().await;
            assert!(reply.reset && reply.status == 0, "{reply:?}");
        }
        "silence" => {
            let reply = ask().await;
            assert!(reply.status == 0 && reply.took >= Duration::from_millis(300), "{reply:?}");
        }
        "drip" => {
            let reply = ask().await;
            assert!(reply.status == 200 && !reply.complete && reply.took >= Duration::from_millis(300), "{reply:?}");
            assert!((2..=20).contains(&reply.body.len()), "{}", reply.body.len());
        }
        "cut-short" => {
            let reply = ask().await;
            assert!(reply.status == 200 && !reply.complete && reply.body.starts_with(b"{\"next\""), "{reply:?}");
        }
        "truncated" => {
            let reply = ask().await;
            assert!(reply.complete && reply.body.starts_with(b"{\"next\""));
            assert!(serde_json::from_slice::<Value>(&reply.body).unwrap_err().is_eof());
        }
        "not-json" => assert_eq!(raw().await, "No ride data found"),
        "html" => assert!(raw().await.starts_with("<!DOCTYPE html>") && ask().await.status == 200),
        "no-items" => assert!(ask().await.page().get("items").is_none()),
        "wrong-encoding" => assert!(String::from_utf8(ask().await.body).is_err()),
        "bom" => assert!(raw().await.starts_with("\u{feff}{\"next\"")),
        "content-type" => {
            let reply = ask().await;
            assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
            assert_eq!(items(&reply.page()).len(), PAGE);
        }
        "too-large" => {
            let reply = ask().await;
            assert!(reply.complete && reply.body.len() as u64 > LARGE && reply.header("content-length").is_none());
            assert_eq!(items(&reply.page()).len(), PAGE);
        }
        "zip-bomb" | "damaged-gzip" => packed(scene, name).await,
        "no-id" => only_lacks(&ask().await.page(), "id"),
        "no-modified" => only_lacks(&ask().await.page(), "modified"),
        "no-kind" => only_lacks(&ask().await.page(), "kind"),
        "no-data" => only_lacks(&ask().await.page(), "data"),
        "bad-id" => assert_eq!(broken(&ask().await.page())[0]["id"], true),
        "bad-modified" => assert!(broken(&ask().await.page())[0]["modified"].is_array()),
        "unknown-state" => assert_eq!(broken(&ask().await.page())[0]["state"], "archived"),
        "not-an-object" => assert!(broken(&ask().await.page())[0].is_string()),
        "at-id" => {
            let page = ask().await.page();
            let odd: Vec<&Value> = items(&page).iter().filter(|item| item.get("id").is_none()).collect();
            assert!(odd.len() == 1 && scene.expected_items().contains_key(odd[0]["@id"].as_str().unwrap()));
        }
        "deleted-with-data" => {
            let page = ask().await.page();
            let odd = items(&page).iter().find(|item| item["state"] == "deleted" && item["data"].is_object());
            assert_eq!(scene.expected_items()[odd.unwrap()["id"].as_str().unwrap()]["state"], "deleted");
        }
        "duplicate" => {
            let page = ask().await.page();
            let mut versions: HashMap<&str, Vec<&Value>> = HashMap::new();
            items(&page).iter().for_each(|item| versions.entry(item["id"].as_str().unwrap()).or_default().push(item));
            let twice: Vec<_> = versions.values().filter(|versions| versions.len() == 2).collect();
            assert!(twice.len() == 1 && twice[0][0]["modified"] != twice[0][1]["modified"], "{twice:?}");
        }
        "out-of-order" => {
            let page = ask().await.page();
            assert!(!items(&page).iter().map(|item| item["modified"].as_i64().unwrap()).is_sorted());
        }
        "modified-as-text" => assert!(ask().await.page()["items"][3]["modified"].is_string()),
        "float-modified" => assert!(ask().await.page()["items"][3]["modified"].is_f64()),
        "no-next" => assert!(ask().await.page().get("next").is_none()),
        "relative-next" => assert!(next(&ask().await.page()).starts_with("/sessions-1?afterTimestamp=")),
        "percent-encoded" => {
            let page = ask().await.page();
            assert!(next(&page).contains("afterTimestamp=%31"), "{page}");
            scene.simulator.clear_faults();
            assert_eq!(get(next(&page)).await.page()["items"], get(&scene.second).await.page()["items"]);
        }
        "upper-case-host" => assert!(next(&ask().await.page()).starts_with("HTTP://127.0.0.1:")),
        "empty-pages" => assert_eq!(empty_pages(scene, 1).await, 1),
        "many-empty-pages" => assert_eq!(empty_pages(scene, 12).await, 12),
        "self-next" => {
            let page = ask().await.page();
            assert_eq!((items(&page).len(), next(&page)), (PAGE, scene.first.as_str()));
            assert_eq!(next(&ask().await.page()), scene.second);
        }
        "loop" => {
            get(&scene.first).await;
            assert_eq!(next(&get(&scene.second).await.page()), scene.first);
        }
        "foreign-next" => assert!(next(&ask().await.page()).starts_with("http://foreign.invalid/")),
        "foreign-redirect" => {
            let reply = ask().await;
            assert!(reply.status == 302 && reply.header("location").unwrap().starts_with("http://foreign.invalid/"));
        }
        "redirect" => {
            // The end counts as the end though a redirect led to it: `next` is the URL first requested.
            let reply = get(&scene.end).await;
            let moved = resolve(&scene.end, reply.header("location").unwrap());
            assert_eq!((reply.status, next(&get(&moved).await.page())), (302, scene.end.as_str()));
        }
        "endless" => {
            let mut url = scene.end.clone();
            for _ in 0..5 {
                let page = get(&url).await.page();
                assert!(!items(&page).is_empty() && next(&page) != url);
                url = next(&page).to_owned();
            }
        }
        "short-pages" => assert_eq!(items(&ask().await.page()).len(), 1),
        "slow" => {
            let took = ask().await.took;
            assert!(took >= Duration::from_millis(200), "{took:?}");
        }
        "late-commit" => {
            let before = scene.expected_items();
            assert!(items(&get(&scene.end).await.page()).is_empty());
            assert_eq!(scene.expected_items().len(), before.len() + 1);
        }
        "went-back" => {
            let page = get(&scene.end).await.page();
            assert!(items(&page).is_empty() && scene.expected_items().len() < 45);
            get(&scene.end).await;
            assert_eq!(scene.fired(), 1, "it goes back once");
        }
        "dead-cursor" => {
            assert_eq!(get(&scene.second).await.status, 404);
            let again = next(&ask().await.page()).to_owned();
            assert_eq!((get(&again).await.status, get(&scene.second).await.status), (200, 404));
        }
        "gone" => assert_eq!((ask().await.status, get(&scene.end).await.status), (410, 410)),
        "forgets" => {
            get(&scene.end).await;
            let expected_items = scene.expected_items();
            assert!(
                expected_items.len() < 45
                    && expected_items.values().filter(|item| item["state"] == "updated").count() > 20
            );
        }
        "stale-cache" => {
            assert!(items(&get(&scene.end).await.page()).is_empty());
            scene.simulator.change(FEED, 2);
            assert!(items(&get(&scene.end).await.page()).is_empty());
            assert_eq!(items(&get_once_calm(scene).await).len(), 2);
        }
        other => panic!("no test looks at {other}; {:?}", honest().await.status),
    }
}

async fn get_once_calm(scene: &FaultCase) -> Value {
    scene.simulator.clear_faults();
    get(&scene.end).await.page()
}

fn retry(reply: &Reply) -> (u16, Option<&str>) {
    (reply.status, reply.header("retry-after"))
}

/// One record more than usual, which lacks this member and no other.
fn only_lacks(page: &Value, member: &str) {
    let broken = broken(page);
    assert_eq!((items(page).len(), broken.len()), (PAGE + 1, 1));
    let lacking: Vec<&str> = ["state", "kind", "id", "modified", "data"]
        .into_iter()
        .filter(|member| broken[0].get(member).is_none())
        .collect();
    assert_eq!(lacking, [member]);
}

async fn packed(scene: &FaultCase, name: &str) {
    // Nothing goes wrong for readers that don't accept gzip.
    assert_eq!(items(&get(&scene.first).await.page()).len(), PAGE);
    assert_eq!(scene.fired(), 0);
    let reply = get_with(&scene.first, &[("Accept-Encoding", "gzip")]).await;
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    let mut unpacked = Vec::new();
    let outcome = flate2::read::GzDecoder::new(reply.body.as_slice()).read_to_end(&mut unpacked);
    if name == "zip-bomb" {
        assert!(outcome.is_ok() && unpacked.len() as u64 > LARGE && (reply.body.len() as u64) < LARGE / 10);
        assert_eq!(items(&serde_json::from_slice(&unpacked).unwrap()).len(), PAGE);
    } else {
        assert!(outcome.is_err());
    }
}

/// How many empty pages come before the requested page.
async fn empty_pages(scene: &FaultCase, most: usize) -> usize {
    let mut url = scene.second.clone();
    for empty in 0..=most {
        let page = get(&url).await.page();
        scene.simulator.set_faults(Vec::new());
        if !items(&page).is_empty() {
            assert_eq!(page["items"], get(&scene.second).await.page()["items"]);
            return empty;
        }
        assert_ne!(next(&page), url, "that would be the end");
        url = next(&page).to_owned();
    }
    panic!("more than {most} empty pages")
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_by_chance_never_befall_a_feed_three_times_in_a_row() {
    let simulator = start(settings(Dialect::Timestamp)).await;
    simulator.set_faults(vec![(Fault::named("http-503").unwrap(), 0.9)]);
    let mut answers = String::new();
    for _ in 0..200 {
        answers.push(if get(&simulator.feed_url(FEED)).await.status == 503 { 'x' } else { '.' });
    }
    assert!(answers.contains("xx.xx") && !answers.contains("xxx"), "{answers}");
    assert_eq!(simulator.fault_counts()["http-503"], answers.matches('x').count() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_requests_meet_the_same_chances() {
    let meet = async || {
        let faults = ["http-500", "not-json", "short-pages"].map(|name| (Fault::named(name).unwrap(), 0.2));
        let simulator = start(SimulatorSettings { faults: faults.to_vec(), ..settings(Dialect::Timestamp) }).await;
        let mut happened = Vec::new();
        for _ in 0..60 {
            happened.push(get(&simulator.feed_url(FEED)).await.body.len());
        }
        (happened, simulator.fault_counts())
    };
    let (one, again) = (meet().await, meet().await);
    assert_eq!(one.1.len(), 3);
    assert_eq!(one, again.clone(), "the address aside: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_reader_ends_with_the_truth_whatever_heals_has_befallen_it() {
    for dialect in Dialect::ALL {
        // given a feed that changes while every healing fault happens by chance
        let takes_long = ["silence", "drip", "slow"];
        let polled = |row: &&FaultInfo| row.on == FaultChannel::Poll && row.heals;
        let faults = FAULTS.iter().filter(polled).filter(|row| !takes_long.contains(&row.name));
        let faults = faults.map(|row| (row.fault, 0.01)).collect();
        let simulator = start(SimulatorSettings { items: 200, ..settings(*dialect) }).await;
        simulator.set_faults(faults);
        let first = simulator.feed_url(FEED);
        let mut reader = PatientReader { url: first.clone(), read: WalkResult::default() };
        // when it is read, and read again
        for request in 0..1_500 {
            reader.step(&first).await;
            if request % 10 == 0 {
                simulator.change(FEED, 1);
            }
        }
        assert!(simulator.fault_counts().len() > 30, "{:?}", simulator.fault_counts());
        // then, once cleared, what the reader holds from the same position on is as expected
        simulator.clear_faults();
        reader.url = first.clone();
        for _ in 0..100 {
            reader.step(&first).await;
        }
        let live = |items: &crate::reader::Items| {
            let live = items.iter().filter(|(_, (_, data))| data.is_some());
            live.map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>()
        };
        assert_eq!(live(&reader.read.items), live(&items_by_key(&simulator.expected_items(FEED))), "{dialect:?}");
    }
}

/// A reader that takes the records it understands and requests the rest again.
struct PatientReader {
    url: String,
    read: WalkResult,
}

impl PatientReader {
    async fn step(&mut self, first: &str) {
        let mut reply = get_with(&self.url, &[("Accept-Encoding", "identity")]).await;
        if reply.status == 302 {
            reply = get(&resolve(&self.url, reply.header("location").unwrap())).await;
        }
        if reply.status == 404 {
            self.url = first.to_owned();
        }
        let body = reply.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&reply.body);
        let Ok(page) = serde_json::from_slice::<Value>(body) else { return };
        let Some(items) = page["items"].as_array() else { return };
        items.iter().filter_map(record).for_each(|record| self.read.take(record));
        if let Some(next) = page["next"].as_str() {
            self.url = resolve(&self.url, next);
        }
    }
}
