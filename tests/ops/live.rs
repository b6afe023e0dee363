//! The metrics of a running daemon, and `ack` on it: the real binary, with `simulate` as its publisher.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use feedmirror::output::metrics::{METRICS, Metric, MetricType};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{DEADLINE, command};
use crate::support::{MirrorProcess, until};

/// A simulated publisher, with its feeds' URLs.
struct LiveSimulator {
    child: Child,
    urls: Vec<String>,
}

impl Drop for LiveSimulator {
    fn drop(&mut self) {
        // The process may have ended by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl LiveSimulator {
    fn start(feeds: usize) -> Self {
        let count = feeds.to_string();
        let arguments = ["simulate", "--listen", "127.0.0.1:0", "--rate", "0", "--items", "30", "--feeds", &count];
        let mut child = command().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(feeds);
        let urls = lines.map(|line| line.unwrap().split_once('\t').unwrap().1.to_owned()).collect();
        Self { child, urls }
    }

    /// How many live items and how many tombstones a feed has, by the publisher's own account.
    fn truth(&self, feed: usize) -> (f64, f64) {
        let url = &self.urls[feed];
        let (base, name) = url.rsplit_once('/').unwrap();
        let text = get(base.strip_prefix("http://").unwrap(), &format!("/_truth/{name}"));
        let deleted = |line: &str| {
            let record: Value = serde_json::from_str(line).unwrap();
            record["state"].as_str().unwrap().eq_ignore_ascii_case("deleted")
        };
        let tombstones = text.lines().filter(|line| deleted(line)).count();
        ((text.lines().count() - tombstones) as f64, tombstones as f64)
    }
}

/// The body of an answer.
fn get(address: &str, path: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    // A response of HTTP/1.0 is complete at the connection's end.
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/openmetrics-text\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}\n{body}");
    body.to_owned()
}

/// One series' value at a time.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn of(&self, feed: &str) -> bool {
        self.labels.get("feed").is_some_and(|of| of == feed)
    }
}

/// `name{a="x"} 1`; no value here needs escaping.
fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
    let labels = pairs.map(|pair| pair.trim_end_matches('"').split_once("=\"").unwrap());
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).collect();
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

/// The daemon's metrics now.
struct MetricsText {
    text: String,
    samples: Vec<Sample>,
}

impl MetricsText {
    fn of(mirror: &MirrorProcess) -> Self {
        let address = mirror.column("SELECT ops_address FROM mirror").pop().unwrap();
        let text = get(&address, "/metrics");
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(sample).collect();
        Self { text, samples }
    }

    /// The one series with these labels, `a=x`, among others.
    fn value(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let has = |sample: &Sample| {
            let pairs = labels.iter().map(|pair| pair.split_once('=').unwrap());
            sample.name == name
                && pairs.into_iter().all(|(label, value)| sample.labels.get(label).is_some_and(|v| v == value))
        };
        let mut found = self.samples.iter().filter(|sample| has(sample));
        let value = found.next()?.value;
        assert!(found.next().is_none(), "several {name} with {labels:?}:\n{}", self.text);
        Some(value)
    }

    fn speaks_of(&self, feed: &str) -> bool {
        self.samples.iter().any(|sample| sample.of(feed))
    }
}

/// The metric that a sample belongs to, and the labels it must have.
fn metric(sample: &Sample) -> (&'static Metric, Vec<&'static str>) {
    let parts = ["_bucket", "_sum", "_count"];
    let belongs = |metric: &&&'static Metric| {
        let histogram = metric.kind == MetricType::Histogram;
        let part = sample.name.strip_prefix(metric.name);
        sample.name == metric.name && !histogram || histogram && part.is_some_and(|part| parts.contains(&part))
    };
    let metric = METRICS.iter().find(belongs).unwrap_or_else(|| panic!("{} is not in the list", sample.name));
    let bound = sample.name.ends_with("_bucket").then_some("le");
    (metric, metric.labels.iter().copied().chain(bound).collect())
}

fn two_feeds(publisher: &LiveSimulator) -> MirrorProcess {
    let sse = format!("sse.url = \"{}/stream\"\nprovider = \"acme\"", publisher.urls[0]);
    let mirror = MirrorProcess::new().tables("[providers.acme]\n").feed_with("a", &publisher.urls[0], &sse);
    let mirror = mirror.feed("b", &publisher.urls[1]).start();
    mirror.until("both level", |mirror| {
        mirror.number("SELECT count(*) FROM feeds WHERE level_at IS NOT NULL AND health = 'ok'") == 2
    });
    mirror
}

#[test]
fn a_daemon_exports_what_is_listed_and_what_its_publisher_says() {
    // Given
    let publisher = LiveSimulator::start(2);
    let mirror = two_feeds(&publisher);
    until("the stream is up", || {
        MetricsText::of(&mirror).value("feedmirror_endpoint_up", &["feed=a", "transport=sse"]) == Some(1.0)
    });

    // When
    let scrape = MetricsText::of(&mirror);

    // Then: names and labels are those of the list.
    for sample in &scrape.samples {
        let (metric, mut labels) = metric(sample);
        labels.sort_unstable();
        let real: Vec<&str> = sample.labels.keys().map(String::as_str).collect();
        assert_eq!(real, labels, "{}", metric.name);
    }
    for metric in METRICS {
        let family = metric.name.trim_end_matches("_total").trim_end_matches("_info");
        let line = format!("# TYPE {family} {}", metric.kind.as_str());
        assert!(scrape.text.lines().any(|found| found == line), "{line}\n{}", scrape.text);
    }
    // Each record is mirrored in the state that the publisher reports.
    for (at, feed) in ["a", "b"].iter().enumerate() {
        let (live, tombstones) = publisher.truth(at);
        let feed = format!("feed={feed}");
        assert!(tombstones > 0.0, "the publisher has some of both");
        assert_eq!(scrape.value("feedmirror_feed_items", &[&feed]), Some(live));
        assert_eq!(scrape.value("feedmirror_feed_tombstones", &[&feed]), Some(tombstones));
        let record_count =
            |outcome: &str| scrape.value("feedmirror_feed_records_total", &[&feed, "transport=poll", outcome]);
        assert_eq!((record_count("outcome=new"), record_count("outcome=deleted")), (Some(live), Some(tombstones)));
        assert_eq!((record_count("outcome=older"), record_count("outcome=quarantined")), (Some(0.0), Some(0.0)));
        assert!(scrape.value("feedmirror_feed_polls_total", &[&feed, "got=page"]) >= Some(2.0), "items, and the end");
        assert_eq!(scrape.value("feedmirror_feed_level", &[&feed]), Some(1.0));
        assert!(scrape.value("feedmirror_feed_lag_seconds", &[&feed]).is_some_and(|lag| lag < 60.0));
    }
    assert_eq!(scrape.value("feedmirror_feed_info", &["feed=a", "provider=acme"]), Some(1.0));
    assert_eq!(scrape.value("feedmirror_feed_info", &["feed=b", "provider=127.0.0.1"]), Some(1.0));
    assert_eq!(scrape.value("feedmirror_feeds", &["health=ok"]), Some(2.0));
    // The mirror's own state is that of its files.
    let size = std::fs::metadata(mirror.path("mirror.db")).unwrap().len();
    assert!(scrape.value("feedmirror_database_bytes", &[]).is_some_and(|bytes| bytes > 0.0 && bytes <= size as f64));
    let (free, disk) = (scrape.value("feedmirror_disk_free_bytes", &[]), scrape.value("feedmirror_disk_bytes", &[]));
    assert!(free > Some(0.0) && free < disk, "{free:?} of {disk:?}");
    assert_eq!(scrape.value("feedmirror_budget_bytes", &[]), Some(f64::from(48 << 20)));
    assert_eq!(scrape.value("feedmirror_wal_pinned_bytes", &[]), Some(0.0));
}

#[test]
fn each_commit_is_counted_in_a_histogram_that_adds_up() {
    let publisher = LiveSimulator::start(2);
    let mirror = two_feeds(&publisher);
    let count = |scrape: &MetricsText| scrape.value("feedmirror_commit_seconds_count", &[]).unwrap();
    let before = count(&MetricsText::of(&mirror));
    assert!(before >= 3.0, "two feeds were registered and read: {before}");

    until("polls commit too", || count(&MetricsText::of(&mirror)) > before);

    let scrape = MetricsText::of(&mirror);
    let bucket = |sample: &&Sample| sample.name == "feedmirror_commit_seconds_bucket";
    let buckets: Vec<f64> = scrape.samples.iter().filter(bucket).map(|sample| sample.value).collect();
    assert!(buckets.len() > 10 && buckets.is_sorted(), "{buckets:?}");
    assert_eq!(buckets.last().copied(), Some(count(&scrape)), "each is in the last one");
    let sum = scrape.value("feedmirror_commit_seconds_sum", &[]).unwrap();
    assert!(sum > 0.0 && sum < DEADLINE.as_secs_f64() * count(&scrape), "in seconds: {sum}");
}

#[test]
fn a_feed_s_series_vanish_when_it_leaves_the_configuration_and_its_rows_count_until_it_is_purged() {
    // Given
    let publisher = LiveSimulator::start(2);
    let mut mirror = two_feeds(&publisher);
    assert!(MetricsText::of(&mirror).speaks_of("b"));

    // When
    mirror.drop_feed("b");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then
    until("its series are gone", || !MetricsText::of(&mirror).speaks_of("b"));
    let scrape = MetricsText::of(&mirror);
    assert!(scrape.speaks_of("a"));
    assert_eq!(scrape.value("feedmirror_feeds", &["health=removed"]), Some(1.0));

    let purged = mirror.verb(&["purge", "b", "--yes"]);
    assert!(purged.status.success(), "{purged:?}");
    let scrape = MetricsText::of(&mirror);
    assert!(!scrape.speaks_of("b"));
    assert_eq!(scrape.value("feedmirror_feeds", &["health=removed"]), Some(0.0));
}

#[test]
fn an_ack_silences_one_feed_of_a_daemon_without_pausing_it_and_ends() {
    // Given
    let publisher = LiveSimulator::start(2);
    let mut mirror = two_feeds(&publisher);
    let acked = |mirror: &MirrorProcess, feed: &str| {
        MetricsText::of(mirror).value("feedmirror_feed_acked", &[&format!("feed={feed}")])
    };
    assert_eq!((acked(&mirror, "a"), acked(&mirror, "b")), (Some(0.0), Some(0.0)));

    // When
    let output = mirror.verb(&["ack", "b", "--until", "2100-01-02T03:04:05Z", "--note", "ticket 4711"]);

    // Then
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "alerts of b are silenced until 2100-01-02T03:04:05Z\n");
    assert_eq!((acked(&mirror, "a"), acked(&mirror, "b")), (Some(0.0), Some(1.0)));
    let status = |mirror: &MirrorProcess| -> Value {
        serde_json::from_slice(&mirror.verb(&["status", "b", "--json"]).stdout).unwrap()
    };
    let row = status(&mirror)["feeds"][0].clone();
    assert_eq!((&row["acked_until"], &row["ack_note"]), (&"2100-01-02T03:04:05.000Z".into(), &"ticket 4711".into()));
    assert_eq!(row["health"], "ok");
    let text = String::from_utf8(mirror.verb(&["status"]).stdout).unwrap();
    assert!(text.contains("b: alerts silenced for ") && text.contains(" more: ticket 4711\n"), "{text}");
    assert_eq!(mirror.events("b", "ack"), ["until 2100-01-02T03:04:05.000Z: ticket 4711"]);
    let level_at = mirror.row("b").level_at;
    mirror.until("it is polled on", |mirror| mirror.row("b").level_at > level_at);

    // The ack outlives a restart.
    mirror.stop();
    mirror.start_again();
    assert_eq!(acked(&mirror, "b"), Some(1.0));

    // The ack is cleared, or ends by itself.
    assert!(mirror.verb(&["ack", "b", "--clear"]).status.success());
    assert_eq!(acked(&mirror, "b"), Some(0.0));
    assert!(mirror.verb(&["ack", "b", "--until", "2s"]).status.success());
    until("its time is over", || acked(&mirror, "b") == Some(0.0));
    assert_eq!(status(&mirror)["feeds"][0]["acked_until"], Value::Null);
    assert_eq!(mirror.events("b", "ack").len(), 3, "begun, cleared, begun; its end is no event");
}
