//! Streams of server-sent events: where they begin, what they send as it happens, how they end, and their faults.

use std::collections::BTreeMap;
use std::time::Duration;

use feedmirror::simulate::{Dialect, FAULTS, Fault, FaultChannel, Simulator, SimulatorSettings};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reader::{Record, WalkResult, ask, get, get_with, record, walk};
use crate::{items_by_key, start};

const FEED: &str = "sessions-1";
const DEADLINE: Duration = Duration::from_secs(20);

fn settings() -> SimulatorSettings {
    SimulatorSettings {
        feeds: 1,
        items: 120,
        page: 10,
        sse_idle: Duration::from_millis(100),
        ..SimulatorSettings::default()
    }
}

fn always(name: &str) -> Vec<(Fault, f64)> {
    vec![(Fault::named(name).unwrap(), 1.0)]
}

/// An event by the format (WHATWG HTML §9.2.6).
#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

/// A reader of one stream, which keeps the bytes of its body as received.
struct Listener {
    stream: TcpStream,
    raw: Vec<u8>,
    /// The bytes of each read, once unchunked.
    body: Vec<u8>,
    head: String,
    open: bool,
    /// Whether the body ended with its last chunk.
    whole: bool,
}

impl Listener {
    async fn open(url: &str, headers: &str) -> Self {
        let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut stream = TcpStream::connect(authority).await.unwrap();
        let request = format!("GET /{path} HTTP/1.1\r\nHost: {authority}\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut listener =
            Self { stream, raw: Vec::new(), body: Vec::new(), head: String::new(), open: true, whole: false };
        while listener.head.is_empty() && listener.open {
            listener.read().await;
        }
        listener
    }

    async fn read(&mut self) {
        let mut part = vec![0; 65_536];
        let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut part)).await.expect("nothing comes");
        match read {
            Ok(0) | Err(_) => self.open = false,
            Ok(size) => self.raw.extend_from_slice(&part[..size]),
        }
        if self.head.is_empty()
            && let Some(end) = self.raw.windows(4).position(|window| window == b"\r\n\r\n")
        {
            self.head = String::from_utf8(self.raw.drain(..end + 4).collect()).unwrap();
        }
        if !self.head.is_empty() {
            self.unchunk();
        }
    }

    fn unchunk(&mut self) {
        while let Some(end) = self.raw.windows(2).position(|window| window == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..end]).unwrap(), 16).unwrap();
            if self.raw.len() < end + 4 + size {
                return;
            }
            self.body.extend_from_slice(&self.raw[end + 2..end + 2 + size]);
            self.raw.drain(..end + 4 + size);
            if size == 0 {
                (self.open, self.whole) = (false, true);
                return;
            }
        }
    }

    /// All whole events so far.
    fn events(&self) -> Vec<Event> {
        let text = match std::str::from_utf8(&self.body) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&self.body[..error.valid_up_to()]).unwrap(),
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut event, mut lines) = (Vec::new(), Event::default(), Vec::new());
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if line.is_empty() {
                if !lines.is_empty() {
                    event.data = lines.join("\n");
                    events.push(std::mem::take(&mut event));
                }
                (event, lines) = (Event::default(), Vec::new());
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => event.name = value.to_owned(),
                "id" => event.id = Some(value.to_owned()),
                "data" => lines.push(value.to_owned()),
                _ => {}
            }
        }
        events
    }

    /// The items of the events that are items.
    fn records(&self) -> Vec<Record> {
        let items = self.events().into_iter().filter(|event| event.name == "itemupdate");
        items.filter_map(|event| record(&serde_json::from_str::<Value>(&event.data).ok()?)).collect()
    }

    async fn until(&mut self, enough: impl Fn(&Self) -> bool) {
        let all = async {
            while !enough(self) {
                assert!(self.open, "it ended early: {}", String::from_utf8_lossy(&self.body));
                self.read().await;
            }
        };
        tokio::time::timeout(DEADLINE, all).await.expect("it never came");
    }

    async fn finish(&mut self) {
        while self.open {
            self.read().await;
        }
    }
}

/// Kind, id, modified and state, to compare by.
fn record_fields(record: &Record) -> (String, String, i64, String) {
    (record.kind.clone(), record.id.clone(), record.modified, record.state.to_lowercase())
}

fn expected(simulator: &Simulator) -> Vec<(String, String, i64, String)> {
    let fields = |expected: feedmirror::simulate::ExpectedItem| {
        (expected.kind, expected.id, expected.modified.as_i64().unwrap(), expected.state.to_owned())
    };
    simulator.expected_items(FEED).into_iter().map(fields).collect()
}

fn after(url: &str, record: &Record) -> String {
    let id: String = record.id.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("{url}?from={}&after={id}", record.modified)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_brings_all_that_a_poll_does_in_order_and_then_each_change() {
    for dialect in Dialect::ALL {
        // given a feed of each dialect
        let simulator = start(SimulatorSettings { dialect: Some(*dialect), ..settings() }).await;
        let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
        assert!(stream.head.contains("200 OK") && stream.head.contains("content-type: text/event-stream"));
        // when it is streamed from the beginning
        stream.until(|stream| stream.records().len() == 120).await;
        // then it has what the pages have, byte for byte
        let page = get(&simulator.feed_url(FEED)).await.body;
        let page = String::from_utf8(page).unwrap();
        assert!(stream.events()[..10].iter().all(|event| page.contains(&event.data)));
        assert_eq!(stream.records().iter().map(record_fields).collect::<Vec<_>>(), expected(&simulator));
        // and what changes, while the stream is open
        simulator.change(FEED, 3);
        stream.until(|stream| stream.records().len() == 123).await;
        let last: Vec<_> = stream.records()[120..].iter().map(record_fields).collect();
        assert_eq!(last, expected(&simulator)[expected(&simulator).len() - 3..]);
        assert!(String::from_utf8_lossy(&stream.body).starts_with("retry: 1000\n\n"));
        simulator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_sends_comments_and_ends_in_good_order_when_all_stops() {
    let simulator = start(settings()).await;
    let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
    stream.until(|stream| String::from_utf8_lossy(&stream.body).matches("\n: idle\n\n").count() > 2).await;
    let stopping = tokio::spawn(simulator.stop());
    stream.finish().await;
    assert!(stream.whole, "the last chunk is missing");
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_after_any_item_by_position_or_by_last_event_id() {
    for index in 0..7 {
        // given feeds with every form of id
        let simulator = start(SimulatorSettings { feeds: 7, items: 30, sse_ids: true, ..settings() }).await;
        let feed = simulator.names()[index].clone();
        let url = simulator.stream_url(&feed);
        let mut all = Listener::open(&url, "").await;
        all.until(|stream| stream.records().len() == 30).await;
        let (events, records) = (all.events(), all.records());
        for at in [0, 11, 28] {
            // when it is requested from one of their positions, in either way
            let known = format!("Last-Event-ID: {}\r\n", events[at].id.as_deref().unwrap());
            for (url_from, headers) in [(after(&url, &records[at]), String::new()), (url.clone(), known)] {
                let mut rest = Listener::open(&url_from, &headers).await;
                rest.until(|stream| stream.records().len() == 29 - at).await;
                // then the rest comes, and nothing else
                let rest = rest.events().into_iter().map(|event| event.data).collect::<Vec<_>>();
                assert!(rest.iter().eq(events[at + 1..].iter().map(|event| &event.data)), "{feed} after {at}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_for_who_goes_on_after_the_last_whole_event_of_cut_streams() {
    // given streams that are cut after one event in eight, within an event or between two
    let simulator = start(settings()).await;
    simulator.set_faults(vec![(Fault::named("sse-drop").unwrap(), 0.125)]);
    let mut read: Vec<Record> = Vec::new();
    let (mut within, mut streams) = (0, 0);
    // when a reader reconnects each time with the last whole event it has
    while read.len() < 120 {
        let url = simulator.stream_url(FEED);
        let url = read.last().map_or(url.clone(), |last| after(&url, last));
        let mut stream = Listener::open(&url, "").await;
        let missing = 120 - read.len();
        while stream.open && stream.records().len() < missing {
            stream.read().await;
        }
        within += usize::from(!stream.open && !stream.body.ends_with(b"\n\n"));
        assert!(!stream.whole, "a cut stream has no good end");
        assert!(!stream.records().is_empty(), "none brings nothing");
        read.extend(stream.records());
        streams += 1;
    }
    // then it has everything once, in order
    assert_eq!(read.iter().map(record_fields).collect::<Vec<_>>(), expected(&simulator));
    assert!(streams > 5 && within > 2, "{streams} streams, {within} cut within an event");
    assert!(simulator.fault_counts()["sse-drop"] >= streams - 1, "{:?}", simulator.fault_counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_stays_open_and_brings_nothing_more() {
    let hold = Duration::from_millis(400);
    let simulator = start(SimulatorSettings { hold, ..settings() }).await;
    simulator.set_faults(always("sse-silence"));
    let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
    let since = std::time::Instant::now();
    stream.finish().await;
    assert!(since.elapsed() >= hold && !stream.whole);
    assert_eq!(stream.records().len(), 1);
    assert_eq!(simulator.fault_counts(), BTreeMap::from([("sse-silence", 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_skips_repeats_or_brings_old_versions_does_so_about_as_often_as_it_counts() {
    for name in ["sse-skip", "sse-repeat", "sse-stale"] {
        // given a feed of which one event in five goes wrong
        let simulator = start(settings()).await;
        simulator.set_faults(vec![(Fault::named(name).unwrap(), 0.2)]);
        let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
        // when all of it was streamed
        stream.until(|stream| String::from_utf8_lossy(&stream.body).ends_with(": idle\n\n")).await;
        // then as many events are missing, doubled or older as were counted
        let records = stream.records();
        let fired = usize::try_from(simulator.fault_counts()[name]).unwrap();
        let expected = expected(&simulator);
        let known = |record: &&Record| expected.contains(&record_fields(record));
        let right = records.iter().filter(known).count();
        match name {
            "sse-skip" => assert_eq!((right, records.len()), (120 - fired, 120 - fired)),
            "sse-repeat" => assert!(right == records.len() && right > 120 + fired, "{right} with {fired}"),
            _ => assert_eq!((right, records.len()), (120, 120 + fired)),
        }
        assert!((10..40).contains(&fired), "{name}: {fired}");
        // and the newest version wins: all items but those left out are as expected
        let mut read = WalkResult::default();
        records.into_iter().for_each(|record| read.take(record));
        let mut expected_items = items_by_key(&simulator.expected_items(FEED));
        expected_items.retain(|key, _| name != "sse-skip" || read.items.contains_key(key));
        assert_eq!(read.items, expected_items, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn junk_is_of_every_sort_and_loses_nothing() {
    let simulator = start(settings()).await;
    simulator.set_faults(always("sse-junk"));
    let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
    stream.until(|stream| String::from_utf8_lossy(&stream.body).ends_with(": idle\n\n")).await;
    let text = String::from_utf8_lossy(&stream.body).into_owned();
    for (odd, what) in [
        ("\u{feff}retry", "a byte order mark"),
        ("data: No ride", "no JSON"),
        ("event: heartbeat", "another event"),
        ("event: itemupdate\r\ndata", "CR LF"),
        ("event: itemupdate\rdata", "CR alone"),
        ("\n: still here", "a comment"),
        ("data: {\"state\":\"updated\",\ndata: \"kind\"", "several lines"),
        ("event:itemupdate\ndata:{", "no blank"),
        ("retry: soon", "no number"),
    ] {
        assert!(text.contains(odd), "{what} is missing");
    }
    let broken = |event: &Event| {
        let item = serde_json::from_str::<Value>(&event.data).ok();
        item.is_some_and(|item| item.get("modified").is_some() && item.get("id").is_none())
    };
    assert!(stream.events().iter().any(broken), "no record without id");
    assert_eq!(stream.records().iter().map(record_fields).collect::<Vec<_>>(), expected(&simulator));
    assert_eq!(simulator.fault_counts(), BTreeMap::from([("sse-junk", 121)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_streams_meet_the_same_chances() {
    let meet = async |seed: u64| {
        let faults = ["sse-skip", "sse-repeat", "sse-stale", "sse-junk"].map(|name| (Fault::named(name).unwrap(), 0.1));
        let simulator = start(SimulatorSettings { seed, faults: faults.to_vec(), ..settings() }).await;
        let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
        stream.until(|stream| String::from_utf8_lossy(&stream.body).ends_with(": idle\n\n")).await;
        (stream.events(), simulator.fault_counts())
    };
    let (one, again, other) = (meet(1).await, meet(1).await, meet(2).await);
    assert_eq!(one.1.len(), 4, "{:?}", one.1);
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_can_be_refused_or_be_none() {
    let simulator = start(settings()).await;
    let url = simulator.stream_url(FEED);
    simulator.set_faults(always("sse-unavailable"));
    let refused = get(&url).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    simulator.set_faults(always("sse-wrong-type"));
    let page = get(&url).await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.body.starts_with(b"<!DOCTYPE html>"));
    assert_eq!(simulator.fault_counts(), BTreeMap::from([("sse-unavailable", 1), ("sse-wrong-type", 1)]));
    // once cleared, a stream is complete again; and invalid requests are refused with a reason
    simulator.clear_faults();
    assert!(Listener::open(&url, "").await.head.contains("text/event-stream"));
    assert_eq!(get(&format!("{url}?from=yesterday")).await.status, 400);
    assert_eq!(get(&simulator.stream_url("nobody")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_streams_and_pushes_never_befall_pages_nor_the_other_way_round() {
    let of = |carriers: &[FaultChannel]| {
        let rows = FAULTS.iter().filter(|row| carriers.contains(&row.on));
        rows.map(|row| (row.fault, 1.0)).collect::<Vec<_>>()
    };
    let simulator = start(settings()).await;
    simulator.set_faults(of(&[FaultChannel::Stream, FaultChannel::Push]));
    let read = walk(&simulator.feed_url(FEED), async || {}).await;
    assert_eq!(read.items, items_by_key(&simulator.expected_items(FEED)));
    simulator.set_faults(of(&[FaultChannel::Poll, FaultChannel::Push]));
    let mut stream = Listener::open(&simulator.stream_url(FEED), "").await;
    stream.until(|stream| stream.records().len() == 120).await;
    assert!(simulator.fault_counts().is_empty(), "{:?}", simulator.fault_counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_says_where_the_streams_are() {
    let simulator = start(settings()).await;
    let index = get_with(&format!("http://{}/", simulator.address()), &[]).await.page();
    assert_eq!(index[0]["stream"], simulator.stream_url(FEED));
    assert_eq!(ask("POST", &simulator.stream_url(FEED), &[]).await.status, 405);
}
