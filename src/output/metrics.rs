//! Metrics in the OpenMetrics text format: the file's contents, and counts since the start.
//!
//! Guarantees: each name has one HELP and one TYPE line and all its series in one block; label values are escaped,
//! since names and words come from publishers. All series are computed for each scrape, so a removed feed has none of
//! its own and is only counted. An unknown value has no series: a feed that was never level has no lag, and when the
//! file can't be read, the counts are still given.

pub mod classic;
mod names;
mod metric_writer;

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;
use url::Url;

use super::status::Status;
use crate::feed::{Health, Mode, PushTrust, RecordOutcome, RequestOutcome, Transport};
use crate::store::commits::CommitTimes;
use crate::store::read::{EndpointRow, FeedRow, FindingRow, QuarantineCount, Reader, StoreError};
use metric_writer::{MetricValue, MetricWriter};
pub use names::{METRICS, Metric, MetricType};

/// The media type.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counts of one feed's workers since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedCounts {
    pub feed: String,
    /// Pages committed.
    pub pages: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Records read.
    pub records: u64,
    /// Items written.
    pub written: u64,
    /// Records quarantined.
    pub quarantined: u64,
    /// Records, by transport and outcome.
    pub outcomes: Vec<(Transport, RecordOutcome, u64)>,
    /// Requests for pages, by outcome.
    pub polls: Vec<(RequestOutcome, u64)>,
}

/// State of the mirror's writer and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorStats {
    /// How long commits took since the start.
    pub commits: CommitTimes,
    /// Small work waiting for the writer.
    pub queued_small: usize,
    /// Large work waiting for the writer.
    pub queued_large: usize,
    /// Bytes of the WAL that a long reader keeps from being checkpointed.
    pub pinned_bytes: u64,
    /// Bytes that pages under way may hold together.
    pub budget_bytes: u64,
    /// Bytes that pages under way hold at the moment.
    pub budget_used_bytes: u64,
}

/// State read from the file and its disk.
#[derive(Clone, Debug)]
pub struct FileStats {
    pub(super) status: Status,
    quarantine: Vec<QuarantineCount>,
    endpoints: Vec<EndpointRow>,
    findings: Vec<FindingRow>,
    database_bytes: Option<u64>,
    wal_bytes: Option<u64>,
    disk: Option<DiskSpace>,
}

/// Space of the file system that holds the database.
#[derive(Clone, Copy, Debug)]
struct DiskSpace {
    bytes: u64,
    free_bytes: u64,
}

impl DiskSpace {
    fn of(path: &Path) -> Option<Self> {
        let volume = rustix::fs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(volume.f_frsize);
        Some(Self { bytes: bytes(volume.f_blocks), free_bytes: bytes(volume.f_bavail) })
    }
}

impl FileStats {
    /// Reads the file. Blocking.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(reader: &Reader) -> Result<Self, StoreError> {
        let mut wal = reader.path().as_os_str().to_owned();
        wal.push("-wal");
        let size = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len());
        Ok(Self {
            status: Status::read(reader, &[])?,
            quarantine: reader.quarantine_counts()?,
            endpoints: reader.endpoints(None)?,
            findings: reader.findings(None)?,
            database_bytes: size(reader.path()),
            wal_bytes: size(Path::new(&wal)),
            disk: DiskSpace::of(reader.path()),
        })
    }

    /// Records of this feed in quarantine.
    pub(super) fn quarantined(&self, feed: &str) -> i64 {
        self.quarantine_count(feed).map_or(0, |count| count.rows)
    }

    fn quarantine_count(&self, feed: &str) -> Option<&QuarantineCount> {
        self.quarantine.iter().find(|count| count.feed == feed)
    }

    /// The feeds that have series.
    fn feeds(&self) -> impl Iterator<Item = &FeedRow> + Clone {
        self.status.feeds.iter().filter(|feed| feed.health != Health::Removed.as_str())
    }

    fn names(&self) -> HashSet<&str> {
        self.feeds().map(|feed| feed.name.as_str()).collect()
    }
}

/// The data of one scrape.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub now: Timestamp,
    /// Whether the database takes writes.
    pub ready: bool,
    /// State of the mirror's writer and memory.
    pub mirror_stats: MirrorStats,
    /// Counts of the feeds' workers.
    pub counts: Vec<FeedCounts>,
    /// State read from the file; none while it can't be read.
    pub file_stats: Option<FileStats>,
}

impl Scrape {
    /// All metrics as text.
    ///
    /// # Errors
    /// Never in practice: the text is written to memory.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = MetricWriter(encoder);
        writer.one(&names::READY, MetricValue::flag(self.ready))?;
        write_mirror_stats(&mut writer, &self.mirror_stats)?;
        if let Some(file_stats) = &self.file_stats {
            mirror(&mut writer, file_stats)?;
            feeds(&mut writer, file_stats, self.now)?;
            write_feed_records(&mut writer, file_stats)?;
            endpoints(&mut writer, file_stats)?;
        }
        counts(&mut writer, &self.counts, self.file_stats.as_ref())
    }
}

fn write_mirror_stats(writer: &mut MetricWriter<'_>, stats: &MirrorStats) -> fmt::Result {
    writer.times(&names::COMMIT, &stats.commits)?;
    let queued = [("small", stats.queued_small), ("large", stats.queued_large)];
    writer.write(&names::QUEUE, queued.map(|(size, queued)| ([size], MetricValue::size(queued as u64))))?;
    writer.one(&names::PINNED, MetricValue::size(stats.pinned_bytes))?;
    writer.one(&names::BUDGET, MetricValue::size(stats.budget_bytes))?;
    writer.one(&names::BUDGET_USED, MetricValue::size(stats.budget_used_bytes))
}

fn mirror(writer: &mut MetricWriter<'_>, file_stats: &FileStats) -> fmt::Result {
    let mirror = &file_stats.status.mirror;
    writer.write(&names::INFO, [([mirror.epoch.as_str(), &mirror.version], MetricValue::Info)])?;
    let started = mirror.started_at.as_deref().and_then(parse_time);
    writer.one(&names::START_TIME, started.map(|at| MetricValue::Float(at.as_millisecond() as f64 / 1000.0)))?;
    writer.one(&names::SEQ, MetricValue::Integer(mirror.seq))?;
    writer.one(&names::DATABASE, file_stats.database_bytes.map(MetricValue::size))?;
    writer.one(&names::WAL, file_stats.wal_bytes.map(MetricValue::size))?;
    writer.one(&names::FREE, file_stats.disk.map(|disk| MetricValue::size(disk.free_bytes)))?;
    writer.one(&names::DISK, file_stats.disk.map(|disk| MetricValue::size(disk.bytes)))?;
    let with = |health: &Health| file_stats.status.feeds.iter().filter(|feed| feed.health == health.as_str()).count();
    writer.write(
        &names::FEEDS,
        Health::ALL.iter().map(|health| ([health.as_str()], MetricValue::size(with(health) as u64))),
    )
}

fn feeds(writer: &mut MetricWriter<'_>, file_stats: &FileStats, now: Timestamp) -> fmt::Result {
    let one = MetricValue::Integer(1);
    let providers: Vec<String> = file_stats.feeds().map(provider).collect();
    let info =
        file_stats.feeds().zip(&providers).map(|(feed, provider)| ([feed.name.as_str(), provider], MetricValue::Info));
    writer.write(&names::FEED_INFO, info)?;
    writer.write(&names::MODE, file_stats.feeds().map(|feed| ([feed.name.as_str(), &feed.mode], one)))?;
    writer.write(&names::HEALTH, file_stats.feeds().map(|feed| ([feed.name.as_str(), &feed.health], one)))?;
    let mut gauge = |metric: &Metric, value: &dyn Fn(&FeedRow) -> Option<MetricValue>| {
        writer.write(metric, file_stats.feeds().filter_map(|feed| Some(([feed.name.as_str()], value(feed)?))))
    };
    let since = |at: Option<&str>| Some(MetricValue::Float(seconds_since(at?, now)?));
    gauge(&names::ACKED, &|feed| Some(MetricValue::flag(feed.acked_until.is_some())))?;
    gauge(&names::ITEMS, &|feed| Some(MetricValue::Integer(feed.items)))?;
    gauge(&names::TOMBSTONES, &|feed| Some(MetricValue::Integer(feed.tombstones)))?;
    gauge(&names::LEVEL, &|feed| Some(MetricValue::flag(feed.mode != Mode::Refresh.as_str())))?;
    gauge(&names::LAG, &|feed| since(feed.level_at.as_deref()))?;
    gauge(&names::STALENESS, &|feed| since(feed.polled_at.as_deref()))?;
    gauge(&names::FAILURES, &|feed| Some(MetricValue::Integer(feed.failures)))
}

/// Resyncs, quarantine and findings.
fn write_feed_records(writer: &mut MetricWriter<'_>, file_stats: &FileStats) -> fmt::Result {
    let names = file_stats.names();
    let resyncs = file_stats.status.resyncs.iter().filter(|resync| names.contains(resync.feed.as_str()));
    writer.write(
        &names::RESYNC,
        resyncs.map(|resync| ([resync.feed.as_str(), &resync.stage], MetricValue::Integer(1))),
    )?;
    let quarantined = |feed: &FeedRow| MetricValue::Integer(file_stats.quarantined(&feed.name));
    writer.write(&names::QUARANTINE, file_stats.feeds().map(|feed| ([feed.name.as_str()], quarantined(feed))))?;
    let dropped =
        |feed: &FeedRow| MetricValue::count(file_stats.quarantine_count(&feed.name).map_or(0, |count| count.dropped));
    writer.write(&names::DROPPED, file_stats.feeds().map(|feed| ([feed.name.as_str()], dropped(feed))))?;
    let findings = file_stats.findings.iter().filter(|finding| names.contains(finding.feed.as_str()));
    let series = findings.map(|finding| ([finding.feed.as_str(), &finding.rule], MetricValue::count(finding.count)));
    writer.write(&names::FINDINGS, series)
}

fn endpoints(writer: &mut MetricWriter<'_>, file_stats: &FileStats) -> fmt::Result {
    let names = file_stats.names();
    let pushes = |row: &&EndpointRow| row.transport != Transport::Poll.as_str() && names.contains(row.feed.as_str());
    let pushed: Vec<&EndpointRow> = file_stats.endpoints.iter().filter(pushes).collect();
    let mut series = |metric: &Metric, value: &dyn Fn(&EndpointRow) -> MetricValue| {
        writer.write(metric, pushed.iter().map(|row| ([row.feed.as_str(), &row.transport], value(row))))
    };
    series(&names::UP, &|row| MetricValue::flag(row.health == Health::Ok.as_str()))?;
    series(&names::PROVEN, &|row| MetricValue::flag(row.push == PushTrust::Proven.as_str()))?;
    series(&names::DELIVERED, &|row| MetricValue::count(row.delivered))?;
    series(&names::MISSED, &|row| MetricValue::count(row.missed))?;
    series(&names::LATE, &|row| MetricValue::count(row.late))
}

/// Writes the workers' counts. A transport that the feed doesn't have has no series.
fn counts(writer: &mut MetricWriter<'_>, counts: &[FeedCounts], file_stats: Option<&FileStats>) -> fmt::Result {
    writer.write(&names::PAGES, counts.iter().map(|feed| ([feed.feed.as_str()], MetricValue::Count(feed.pages))))?;
    writer.write(&names::BYTES, counts.iter().map(|feed| ([feed.feed.as_str()], MetricValue::Count(feed.bytes))))?;
    let polls = counts.iter().flat_map(|feed| {
        feed.polls.iter().map(|(got, count)| ([feed.feed.as_str(), got.as_str()], MetricValue::Count(*count)))
    });
    writer.write(&names::POLLS, polls)?;
    let configured: HashSet<(&str, &str)> = file_stats
        .map_or(&[][..], |file_stats| &file_stats.endpoints)
        .iter()
        .map(|row| (row.feed.as_str(), row.transport.as_str()))
        .collect();
    let has = |feed: &FeedCounts, transport: Transport| {
        transport == Transport::Poll
            || configured.contains(&(feed.feed.as_str(), transport.as_str()))
            || feed.outcomes.iter().any(|(by, _, count)| *by == transport && *count > 0)
    };
    let records = counts.iter().flat_map(|feed| {
        let counted = feed.outcomes.iter().filter(|(transport, ..)| has(feed, *transport));
        counted.map(|(transport, outcome, count)| {
            ([feed.feed.as_str(), transport.as_str(), outcome.as_str()], MetricValue::Count(*count))
        })
    });
    writer.write(&names::RECORDS, records)
}

/// The feed's provider, or the URL's host where none is configured; unknown for a feed whose settings can't be used.
fn provider(feed: &FeedRow) -> String {
    let host = || Url::parse(&feed.url).ok()?.host_str().map(str::to_owned);
    feed.provider.clone().or_else(host).unwrap_or_else(|| "unknown".to_owned())
}

fn parse_time(time: &str) -> Option<Timestamp> {
    time.parse().ok()
}

fn seconds_since(time: &str, now: Timestamp) -> Option<f64> {
    Some((now.as_millisecond() - parse_time(time)?.as_millisecond()).max(0) as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::read::MirrorRow;

    fn stored() -> FileStats {
        let feed = FeedRow {
            name: "acme".into(),
            provider: None,
            url: "https://acme.example/".into(),
            mode: "poll".into(),
            health: "re\"try\\ing\n".into(),
            reason: None,
            since: None,
            cursor: None,
            items: 7,
            tombstones: 3,
            level_at: Some("2026-01-01T00:00:00.500Z".into()),
            polled_at: None,
            changed_at: None,
            next_poll_at: None,
            failures: 2,
            push: "none".into(),
            license: None,
            publisher: None,
            dataset_url: None,
            total_items: None,
            acked_until: None,
            ack_note: None,
            bytes: 0,
        };
        let begun = FeedRow { name: "begun".into(), mode: "refresh".into(), level_at: None, ..feed.clone() };
        let gone = FeedRow { name: "gone".into(), health: "removed".into(), ..feed.clone() };
        let mirror = MirrorRow {
            epoch: "e".into(),
            seq: 42,
            version: "0.1.0".into(),
            started_at: Some("1970-01-01T00:00:10.000Z".into()),
            ops_address: None,
            webhooks_address: None,
        };
        let quarantine = vec![QuarantineCount { feed: "acme".into(), rows: 4, bytes: 1, dropped: 0 }];
        let status = Status {
            mirror,
            feeds: vec![feed, begun, gone],
            loads: Vec::new(),
            resyncs: Vec::new(),
            orders: Vec::new(),
            details: Vec::new(),
        };
        let disk = Some(DiskSpace { bytes: 100, free_bytes: 9 });
        let (endpoints, findings) = (Vec::new(), Vec::new());
        FileStats { status, quarantine, endpoints, findings, database_bytes: Some(10), wal_bytes: None, disk }
    }

    fn scrape(counts: Vec<FeedCounts>, stored: Option<FileStats>) -> String {
        let now = "2026-01-01T00:00:02Z".parse().unwrap();
        let own = MirrorStats { queued_large: 3, ..MirrorStats::default() };
        Scrape { now, ready: stored.is_some(), mirror_stats: own, counts, file_stats: stored }.text().unwrap()
    }

    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }

    #[test]
    fn each_name_has_help_and_type_once_and_its_series_below() {
        let counts = vec![FeedCounts { feed: "acme".into(), bytes: 5, ..FeedCounts::default() }];
        let text = scrape(counts, Some(stored()));

        let (mut current, mut seen) = ("", Vec::new());
        for line in text.lines().take_while(|line| *line != "# EOF") {
            let named = line.strip_prefix("# HELP ");
            let name = named.or(line.strip_prefix("# TYPE ")).unwrap_or(line).split(['{', ' ']).next().unwrap();
            if named.is_some() {
                current = name;
                seen.push(current);
            }
            assert!(name.starts_with(current), "{line} stands under {current}");
        }
        let mut known: Vec<&str> = METRICS.iter().map(|metric| metric.family()).collect();
        seen.sort_unstable();
        known.sort_unstable();
        assert_eq!(seen, known, "every name once, and all of them known");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        for line in [
            "feedmirror_ready 1",
            "feedmirror_info{epoch=\"e\",version=\"0.1.0\"} 1",
            "feedmirror_start_time_seconds 10.0",
            "feedmirror_mirror_seq 42",
            "feedmirror_disk_free_bytes 9",
            "feedmirror_writer_queue{size=\"large\"} 3",
            "feedmirror_feeds{health=\"removed\"} 1",
            "feedmirror_feed_info{feed=\"acme\",provider=\"acme.example\"} 1",
            "feedmirror_feed_lag_seconds{feed=\"acme\"} 1.5",
            "feedmirror_feed_level{feed=\"acme\"} 1",
            "feedmirror_feed_level{feed=\"begun\"} 0",
            "feedmirror_feed_acked{feed=\"begun\"} 0",
            "feedmirror_feed_quarantine_rows{feed=\"acme\"} 4",
            "feedmirror_feed_quarantine_rows{feed=\"begun\"} 0",
            "feedmirror_feed_bytes_total{feed=\"acme\"} 5",
        ] {
            has(&text, line);
        }
        assert!(!text.contains("lag_seconds{feed=\"begun\"}"), "what was never level has no lag");
        assert!(!text.contains("feed=\"gone\""), "a removed feed has no series");
        assert!(!text.contains("\nfeedmirror_wal_bytes"), "what is not known has no value");
    }

    #[test]
    fn commits_are_a_histogram_whose_buckets_add_up() {
        let text = scrape(Vec::new(), None);
        has(&text, "# TYPE feedmirror_commit_seconds histogram");
        has(&text, "feedmirror_commit_seconds_bucket{le=\"0.001\"} 0");
        has(&text, "feedmirror_commit_seconds_bucket{le=\"10.0\"} 0");
        has(&text, "feedmirror_commit_seconds_bucket{le=\"+Inf\"} 0");
    }

    #[test]
    fn a_transport_that_a_feed_does_not_have_has_no_series() {
        let outcomes = vec![
            (Transport::Poll, RecordOutcome::Same, 0),
            (Transport::Sse, RecordOutcome::Same, 0),
            (Transport::Amqp, RecordOutcome::New, 2),
        ];
        let text = scrape(vec![FeedCounts { feed: "acme".into(), outcomes, ..FeedCounts::default() }], None);
        has(&text, "feedmirror_feed_records_total{feed=\"acme\",transport=\"poll\",outcome=\"same\"} 0");
        has(&text, "feedmirror_feed_records_total{feed=\"acme\",transport=\"amqp\",outcome=\"new\"} 2");
        assert!(!text.contains("transport=\"sse\""), "{text}");
    }

    #[test]
    fn labels_are_escaped() {
        has(&scrape(Vec::new(), Some(stored())), r#"feedmirror_feed_health{feed="acme",health="re\"try\\ing\n"} 1"#);
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_counts() {
        let text = scrape(vec![FeedCounts { feed: "acme".into(), pages: 9, ..FeedCounts::default() }], None);
        has(&text, "feedmirror_ready 0");
        has(&text, "feedmirror_feed_pages_total{feed=\"acme\"} 9");
        assert!(!text.contains("feedmirror_mirror_seq"));
    }
}
