//! Metrics in Prometheus' text format, version 0.0.4: what the file holds, and what was counted since the start.
//!
//! Guarantees: each name has one HELP and one TYPE line and its series in one block; label values are escaped, since
//! names and words come from others. What is not known has no series: a feed that was never level has no lag, and a
//! file that can't be read leaves the counts alone.

use std::fmt::{self, Write};
use std::path::Path;

use jiff::Timestamp;

use super::status::Status;
use crate::feed::Mode;
use crate::store::read::{FeedRow, QuarantineCount, Reader, StoreError};

/// The media type.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What one feed's workers have done since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedCounts {
    /// The feed's name.
    pub feed: String,
    /// Pages read.
    pub pages: u64,
    /// Bytes read, once decompressed.
    pub bytes: u64,
    /// Records looked at.
    pub records: u64,
    /// Items written.
    pub written: u64,
    /// Records quarantined.
    pub quarantined: u64,
}

/// What the file says.
#[derive(Clone, Debug)]
pub struct Stored {
    pub(super) status: Status,
    quarantine: Vec<QuarantineCount>,
    database_bytes: Option<u64>,
    wal_bytes: Option<u64>,
}

impl Stored {
    /// Reads the file. Blocking.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(reader: &Reader) -> Result<Self, StoreError> {
        let mut wal = reader.path().as_os_str().to_owned();
        wal.push("-wal");
        let size = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len());
        Ok(Self {
            status: Status::read(reader, &[])?,
            quarantine: reader.quarantine_counts()?,
            database_bytes: size(reader.path()),
            wal_bytes: size(Path::new(&wal)),
        })
    }

    /// Records that this feed has in quarantine.
    pub(super) fn quarantined(&self, feed: &str) -> i64 {
        self.quarantine.iter().find(|count| count.feed == feed).map_or(0, |count| count.rows)
    }
}

/// All metrics; `stored` is none while the file can't be read.
pub fn text(now: Timestamp, ready: bool, counts: &[FeedCounts], stored: Option<&Stored>) -> String {
    let mut text = Text(String::new());
    text.one("ready", "gauge", "Whether the database takes writes.", f64::from(u8::from(ready)));
    if let Some(stored) = stored {
        text.mirror(stored);
        text.feeds(now, &stored.status.feeds);
        text.block("feed_quarantine_rows", "gauge", "Records in quarantine.", |series| {
            for feed in &stored.status.feeds {
                series.of(&feed.name, stored.quarantined(&feed.name) as f64);
            }
        });
    }
    text.counts(counts);
    text.0
}

/// Every name, for the documents that must tell of them.
pub const NAMES: &[&str] = &[
    "feedmirror_ready",
    "feedmirror_info",
    "feedmirror_start_time_seconds",
    "feedmirror_mirror_seq",
    "feedmirror_database_bytes",
    "feedmirror_wal_bytes",
    "feedmirror_feed_items",
    "feedmirror_feed_tombstones",
    "feedmirror_feed_level",
    "feedmirror_feed_lag_seconds",
    "feedmirror_feed_health",
    "feedmirror_feed_failures",
    "feedmirror_feed_quarantine_rows",
    "feedmirror_feed_pages_total",
    "feedmirror_feed_bytes_total",
    "feedmirror_feed_records_total",
    "feedmirror_feed_written_total",
    "feedmirror_feed_quarantined_total",
];

struct Text(String);

/// The series of one name.
struct Series<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Series<'_> {
    fn with(&mut self, labels: &[(&str, &str)], value: f64) {
        let shown: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", Label(value))).collect();
        let labels = if shown.is_empty() { String::new() } else { format!("{{{}}}", shown.join(",")) };
        // Writing to memory can't fail.
        let _ = writeln!(self.text, "feedmirror_{}{labels} {value}", self.name);
    }

    fn of(&mut self, feed: &str, value: f64) {
        self.with(&[("feed", feed)], value);
    }
}

impl Text {
    fn block(&mut self, name: &'static str, kind: &str, help: &str, fill: impl FnOnce(&mut Series<'_>)) {
        // Writing to memory can't fail.
        let _ = writeln!(self.0, "# HELP feedmirror_{name} {help}\n# TYPE feedmirror_{name} {kind}");
        fill(&mut Series { text: &mut self.0, name });
    }

    fn one(&mut self, name: &'static str, kind: &str, help: &str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            self.block(name, kind, help, |series| series.with(&[], value));
        }
    }

    fn mirror(&mut self, stored: &Stored) {
        let mirror = &stored.status.mirror;
        self.block("info", "gauge", "The mirror's epoch and the version that writes it; always 1.", |series| {
            series.with(&[("epoch", &mirror.epoch), ("version", &mirror.version)], 1.0);
        });
        let started = mirror.started_at.as_deref().and_then(parsed).map(seconds);
        self.one("start_time_seconds", "gauge", "When the daemon started, in seconds since 1970.", started);
        self.one("mirror_seq", "gauge", "The last change number given.", mirror.seq as f64);
        let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
        self.one("database_bytes", "gauge", "Size of the database file.", bytes(stored.database_bytes));
        self.one("wal_bytes", "gauge", "Size of the write-ahead log beside it.", bytes(stored.wal_bytes));
    }

    fn feeds(&mut self, now: Timestamp, feeds: &[FeedRow]) {
        let mut gauge = |name, help, value: fn(&FeedRow, Timestamp) -> Option<f64>| {
            self.block(name, "gauge", help, |series| {
                for feed in feeds {
                    value(feed, now).into_iter().for_each(|value| series.of(&feed.name, value));
                }
            });
        };
        gauge("feed_items", "Live items.", |feed, _| Some(feed.items as f64));
        gauge("feed_tombstones", "Deleted items that are remembered.", |feed, _| Some(feed.tombstones as f64));
        gauge("feed_level", "Whether its end has been seen since it was begun.", |feed, _| {
            Some(f64::from(u8::from(feed.mode != Mode::Refresh.as_str())))
        });
        gauge("feed_lag_seconds", "Time since its end was last seen.", |feed, now| {
            let level_at = feed.level_at.as_deref().and_then(parsed)?;
            Some((now.as_millisecond() - level_at.as_millisecond()).max(0) as f64 / 1000.0)
        });
        gauge("feed_failures", "Errors in a row.", |feed, _| Some(feed.failures as f64));
        self.block("feed_health", "gauge", "Its health: 1 for the one it has.", |series| {
            for feed in feeds {
                series.with(&[("feed", &feed.name), ("health", &feed.health)], 1.0);
            }
        });
    }

    fn counts(&mut self, counts: &[FeedCounts]) {
        let mut counter = |name, help, value: fn(&FeedCounts) -> u64| {
            self.block(name, "counter", help, |series| {
                for feed in counts {
                    series.of(&feed.feed, value(feed) as f64);
                }
            });
        };
        counter("feed_pages_total", "Pages read since the start.", |feed| feed.pages);
        counter("feed_bytes_total", "Bytes of pages read since the start, decompressed.", |feed| feed.bytes);
        counter("feed_records_total", "Records looked at since the start.", |feed| feed.records);
        counter("feed_written_total", "Items written since the start.", |feed| feed.written);
        counter("feed_quarantined_total", "Records quarantined since the start.", |feed| feed.quarantined);
    }
}

fn parsed(time: &str) -> Option<Timestamp> {
    time.parse().ok()
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// A label's value: backslash, quote and line feed are escaped.
struct Label<'a>(&'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sign in self.0.chars() {
            match sign {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                sign => f.write_char(sign)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::read::MirrorRow;

    fn stored() -> Stored {
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
            bytes: 0,
        };
        let begun = FeedRow { name: "begun".into(), mode: "refresh".into(), level_at: None, ..feed.clone() };
        let mirror = MirrorRow {
            epoch: "e".into(),
            seq: 42,
            version: "0.1.0".into(),
            started_at: Some("1970-01-01T00:00:10.000Z".into()),
            ops_address: None,
            webhooks_address: None,
        };
        let quarantine = vec![QuarantineCount { feed: "acme".into(), rows: 4, bytes: 1, dropped: 0 }];
        let status = Status { mirror, feeds: vec![feed, begun], resyncs: Vec::new(), closer: Vec::new() };
        Stored { status, quarantine, database_bytes: Some(10), wal_bytes: None }
    }

    #[test]
    fn each_name_has_help_type_and_series_in_one_block() {
        let now = "2026-01-01T00:00:02Z".parse().unwrap();
        let counts = [FeedCounts { feed: "acme".into(), bytes: 5, ..FeedCounts::default() }];
        let text = text(now, true, &counts, Some(&stored()));

        let mut current = "";
        let mut seen = Vec::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                current = help.split(' ').next().unwrap();
                seen.push(current);
                continue;
            }
            let name = line.strip_prefix("# TYPE ").unwrap_or(line).split(['{', ' ']).next().unwrap();
            assert_eq!(name, current, "{line}");
        }
        let known: Vec<&str> = NAMES.iter().copied().filter(|name| *name != "feedmirror_wal_bytes").collect();
        let mut sorted = (seen.clone(), known);
        sorted.0.sort_unstable();
        sorted.1.sort_unstable();
        assert_eq!(sorted.0, sorted.1, "every name once, and all of them known");
        for line in [
            "feedmirror_ready 1",
            "feedmirror_start_time_seconds 10",
            "feedmirror_mirror_seq 42",
            "feedmirror_feed_lag_seconds{feed=\"acme\"} 1.5",
            "feedmirror_feed_level{feed=\"acme\"} 1",
            "feedmirror_feed_level{feed=\"begun\"} 0",
            "feedmirror_feed_quarantine_rows{feed=\"acme\"} 4",
            "feedmirror_feed_quarantine_rows{feed=\"begun\"} 0",
            "feedmirror_feed_bytes_total{feed=\"acme\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("lag_seconds{feed=\"begun\"}"), "what was never level has no lag");
    }

    #[test]
    fn labels_are_escaped() {
        let text = text(Timestamp::UNIX_EPOCH, true, &[], Some(&stored()));
        assert!(text.contains(r#"feedmirror_feed_health{feed="acme",health="re\"try\\ing\n"} 1"#), "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_counts() {
        let counts = [FeedCounts { feed: "acme".into(), pages: 9, ..FeedCounts::default() }];
        let text = text(Timestamp::UNIX_EPOCH, false, &counts, None);
        assert!(text.contains("feedmirror_ready 0\n"));
        assert!(text.contains("feedmirror_feed_pages_total{feed=\"acme\"} 9\n"));
        assert!(!text.contains("feedmirror_mirror_seq"));
    }
}
