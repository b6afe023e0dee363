//! The changes of a status page that stays open, as Server-Sent Events for its script.
//!
//! Guarantees: sends at most once a second, and only what differs; a comment at least every [`KEEPALIVE_INTERVAL`], so
//! that a closed connection is noticed; a bounded number of pages. The rows are read only once the file has changed,
//! and every [`KEEPALIVE_INTERVAL`] for what is not in the file: sizes, the hour, whether it can be written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::rows::PagedRows;
use crate::output::OutputError;
use crate::output::metrics::MirrorStats;
use crate::output::page::{
    FeedPageData, OverviewData, PageContext, PageElements, SentElements, feed_elements, overview_elements,
};
use crate::output::storage_stats::StorageStats;
use crate::store::read::Reader;

/// How soon a page shows a change.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How soon a page connects again after its connection broke.
const RETRY: &str = "retry: 2000\n\n";

/// One page that stays open.
pub(super) struct LivePage {
    reader: Reader,
    /// The feed of the page; none for the overview.
    feed: Option<String>,
    unready_reason: watch::Receiver<Option<String>>,
    own_metrics: Arc<dyn Fn() -> MirrorStats + Send + Sync>,
    sent_elements: SentElements,
    /// The file's version and why it could not be written, when the rows were last read.
    last_read: Option<(i64, Option<String>, Instant)>,
    /// When anything was last sent.
    last_sent_at: Option<Instant>,
    /// Released when the connection is closed.
    _permit: OwnedSemaphorePermit,
}

impl LivePage {
    pub(super) fn new(
        reader: Reader,
        feed: Option<String>,
        unready_reason: watch::Receiver<Option<String>>,
        own_metrics: Arc<dyn Fn() -> MirrorStats + Send + Sync>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            reader,
            feed,
            unready_reason,
            own_metrics,
            sent_elements: SentElements::default(),
            last_read: None,
            last_sent_at: None,
            _permit: permit,
        }
    }

    fn elements(&self, now: Timestamp, blocked: Option<&str>) -> Result<PageElements, OutputError> {
        let context = PageContext { now, nonce: "", blocked };
        let elements = match &self.feed {
            Some(feed) => feed_elements(&context, &FeedPageData::read(&self.reader, feed, now)?),
            None => {
                let data = OverviewData::read(&self.reader, now)?;
                overview_elements(
                    &context,
                    Ok(&data),
                    &StorageStats::of(self.reader.path(), &(self.own_metrics)().commits),
                )
            }
        };
        elements.map_err(|error| OutputError::Write(std::io::Error::other(error)))
    }

    fn is_due(&self, version: i64, blocked: Option<&str>) -> bool {
        match &self.last_read {
            Some((version_then, blocked_then, at)) => {
                *version_then != version || blocked_then.as_deref() != blocked || at.elapsed() >= KEEPALIVE_INTERVAL
            }
            None => true,
        }
    }
}

impl PagedRows for LivePage {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        // The page connects again, and gets the file that replaced this one.
        if self.reader.is_replaced() {
            return Ok((text, None));
        }
        if self.last_sent_at.is_none() {
            text.extend_from_slice(RETRY.as_bytes());
        }
        // Read before the rows: a commit during the read is found the next time.
        let version = self.reader.data_version()?;
        let blocked = self.unready_reason.borrow().clone();
        if self.is_due(version, blocked.as_deref()) {
            let now = Timestamp::now();
            let elements = self.elements(now, blocked.as_deref())?;
            if let Some(update) = self.sent_elements.update(now, &elements).map_err(std::io::Error::from)? {
                text.extend_from_slice(format!("data: {update}\n\n").as_bytes());
            }
            self.last_read = Some((version, blocked, Instant::now()));
        }
        if text.is_empty() && self.last_sent_at.is_some_and(|sent_at| sent_at.elapsed() >= KEEPALIVE_INTERVAL) {
            text.extend_from_slice(b":\n\n");
        }
        if !text.is_empty() {
            self.last_sent_at = Some(Instant::now());
        }
        Ok((text, Some(self)))
    }

    fn wait(&self) -> Duration {
        POLL_INTERVAL
    }
}
