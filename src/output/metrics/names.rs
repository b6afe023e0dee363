//! Every metric: its name, type, labels and help. Tests hold the exported metrics, the documents' table, the dashboard and
//! the alerts to this list.
//!
//! Base units (seconds, bytes); counters end in `_total`. A label's values are configured names, or words of a fixed
//! list: none of them grows with what publishers send.

pub use prometheus_client::metrics::MetricType;

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// The name as in queries; a histogram's series add `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    pub kind: MetricType,
    /// The labels of each of its series, in this order.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    /// The name without the suffix that the format adds for the type.
    pub(super) fn family(&self) -> &'static str {
        let suffix = match self.kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            _ => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(pub(super) static $id: Metric =
            Metric { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help };)+

        /// All metrics.
        pub static METRICS: &[&Metric] = &[$(&$id),+];
    };
}

metrics! {
    READY: Gauge "feedmirror_ready" [] "Whether the database takes writes";
    INFO: Info "feedmirror_info" ["epoch", "version"] "The mirror's epoch and the version that writes it";
    START_TIME: Gauge "feedmirror_start_time_seconds" [] "When the daemon started, in seconds since 1970";
    SEQ: Gauge "feedmirror_mirror_seq" [] "The last change number given";
    DATABASE: Gauge "feedmirror_database_bytes" [] "Size of the database file";
    WAL: Gauge "feedmirror_wal_bytes" [] "Size of the write-ahead log beside it";
    PINNED: Gauge "feedmirror_wal_pinned_bytes" []
        "What a long reader keeps of it from being written back; 0 when nothing is kept";
    FREE: Gauge "feedmirror_disk_free_bytes" [] "What is free where the database lies";
    DISK: Gauge "feedmirror_disk_bytes" [] "Size of the file system where the database lies";
    COMMIT: Histogram "feedmirror_commit_seconds" [] "How long commits took, from a group's beginning to its end";
    QUEUE: Gauge "feedmirror_writer_queue" ["size"] "Work waiting for the writer: small and large deliveries";
    BUDGET: Gauge "feedmirror_budget_bytes" [] "What pages under way may hold together";
    BUDGET_USED: Gauge "feedmirror_budget_used_bytes" [] "What pages under way hold at the moment";
    FEEDS: Gauge "feedmirror_feeds" ["health"] "Feeds by health, those no longer configured among them";
    FEED_INFO: Info "feedmirror_feed_info" ["feed", "provider"] "The provider it belongs to, or else its host";
    MODE: Gauge "feedmirror_feed_mode" ["feed", "mode"] "What keeps it current: 1 for that";
    HEALTH: Gauge "feedmirror_feed_health" ["feed", "health"] "Its health: 1 for the one it has";
    ACKED: Gauge "feedmirror_feed_acked" ["feed"] "Whether its alerts are silenced";
    ITEMS: Gauge "feedmirror_feed_items" ["feed"] "Live items that it has";
    TOMBSTONES: Gauge "feedmirror_feed_tombstones" ["feed"] "Deleted items that are remembered";
    LEVEL: Gauge "feedmirror_feed_level" ["feed"] "Whether its end has been seen since it was begun";
    LAG: Gauge "feedmirror_feed_lag_seconds" ["feed"] "Time since its end was last seen";
    STALENESS: Gauge "feedmirror_feed_staleness_seconds" ["feed"] "Time since a page of it was last read";
    FAILURES: Gauge "feedmirror_feed_failures" ["feed"] "Errors that it had in a row";
    RESYNC: Gauge "feedmirror_feed_resync" ["feed", "stage"] "A resync under way: 1 for its stage, walk, held or sweep";
    QUARANTINE: Gauge "feedmirror_feed_quarantine_rows" ["feed"] "Records in quarantine";
    DROPPED: Counter "feedmirror_feed_quarantine_dropped_total" ["feed"] "Records dropped because quarantine was full";
    FINDINGS: Counter "feedmirror_feed_findings_total" ["feed", "rule"] "Departures from the standard";
    UP: Gauge "feedmirror_endpoint_up" ["feed", "transport"] "Whether a push endpoint is well";
    PROVEN: Gauge "feedmirror_endpoint_proven" ["feed", "transport"] "Whether a push endpoint is believed";
    DELIVERED: Counter "feedmirror_endpoint_delivered_total" ["feed", "transport"] "Items that it brought";
    MISSED: Counter "feedmirror_endpoint_missed_total" ["feed", "transport"] "Items that it should have brought";
    LATE: Counter "feedmirror_endpoint_late_total" ["feed", "transport"] "Missed items that it brought later";
    PAGES: Counter "feedmirror_feed_pages_total" ["feed"] "Pages committed since the start";
    BYTES: Counter "feedmirror_feed_bytes_total" ["feed"] "Bytes of pages received since the start";
    POLLS: Counter "feedmirror_feed_polls_total" ["feed", "got"]
        "Requests for pages since the start, by what they got: page, not-modified or failed";
    RECORDS: Counter "feedmirror_feed_records_total" ["feed", "transport", "outcome"]
        "Records since the start, by what brought them and what became of them";
}
