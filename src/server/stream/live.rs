//! What is new on a page that stays open, as Server-Sent Events for its script.
//!
//! Guarantees: told once a second at most, and only what differs; a comment at least every [`BEAT`], so that a listener
//! that has gone is noticed; a bounded number of listeners. The file is looked at closer only once somebody has written
//! to it, and every [`BEAT`] for what is not in it: sizes, the hour, whether it takes writes.

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
const LOOK_EVERY: Duration = Duration::from_secs(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How soon a page asks again that was cut off.
const RETRY: &str = "retry: 2000\n\n";

/// One page that stays open.
pub(super) struct LivePage {
    reader: Reader,
    /// The feed whose page it is; none for the overview.
    feed: Option<String>,
    ready: watch::Receiver<Option<String>>,
    own: Arc<dyn Fn() -> MirrorStats + Send + Sync>,
    sent_parts: SentElements,
    /// The file's version and what blocked it, when it was last looked at.
    last_read: Option<(i64, Option<String>, Instant)>,
    /// When anything was last said.
    last_sent_at: Option<Instant>,
    /// Given back when the listener has gone.
    _place: OwnedSemaphorePermit,
}

impl LivePage {
    pub(super) fn new(
        reader: Reader,
        feed: Option<String>,
        ready: watch::Receiver<Option<String>>,
        own: Arc<dyn Fn() -> MirrorStats + Send + Sync>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            reader,
            feed,
            ready,
            own,
            sent_parts: SentElements::default(),
            last_read: None,
            last_sent_at: None,
            _place: place,
        }
    }

    fn parts(&self, now: Timestamp, blocked: Option<&str>) -> Result<PageElements, OutputError> {
        let frame = PageContext { now, nonce: "", blocked };
        let parts = match &self.feed {
            Some(feed) => feed_elements(&frame, &FeedPageData::read(&self.reader, feed, now)?),
            None => {
                let seen = OverviewData::read(&self.reader, now)?;
                overview_elements(&frame, Ok(&seen), &StorageStats::of(self.reader.path(), &(self.own)().commits))
            }
        };
        parts.map_err(|error| OutputError::Write(std::io::Error::other(error)))
    }

    fn is_due(&self, version: i64, blocked: Option<&str>) -> bool {
        match &self.last_read {
            Some((then, why, at)) => {
                *then != version || why.as_deref() != blocked || at.elapsed() >= KEEPALIVE_INTERVAL
            }
            None => true,
        }
    }
}

impl PagedRows for LivePage {
    fn next_page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        // The page comes back and finds the file that took the place of this one.
        if self.reader.is_replaced() {
            return Ok((text, None));
        }
        if self.last_sent_at.is_none() {
            text.extend_from_slice(RETRY.as_bytes());
        }
        // Looked at first: what is committed while the file is read shows next time.
        let version = self.reader.data_version()?;
        let blocked = self.ready.borrow().clone();
        if self.is_due(version, blocked.as_deref()) {
            let now = Timestamp::now();
            let parts = self.parts(now, blocked.as_deref())?;
            if let Some(news) = self.sent_parts.update(now, &parts).map_err(std::io::Error::from)? {
                text.extend_from_slice(format!("data: {news}\n\n").as_bytes());
            }
            self.last_read = Some((version, blocked, Instant::now()));
        }
        if text.is_empty() && self.last_sent_at.is_some_and(|said| said.elapsed() >= KEEPALIVE_INTERVAL) {
            text.extend_from_slice(b":\n\n");
        }
        if !text.is_empty() {
            self.last_sent_at = Some(Instant::now());
        }
        Ok((text, Some(self)))
    }

    fn wait(&self) -> Duration {
        LOOK_EVERY
    }
}
