//! What is new on a page that stays open, as Server-Sent Events for its script.
//!
//! Guarantees: told once a second at most, and only what differs; a comment at least every [`BEAT`], so that a listener
//! that has gone is noticed; a bounded number of listeners. The file is looked at closer only once somebody has written
//! to it, and every [`BEAT`] for what is not in it: sizes, the hour, whether it takes writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::rows::Rows;
use crate::output::OutputError;
use crate::output::metrics::Own;
use crate::output::page::{Feed, Frame, Overview, Parts, Told, feed_parts, overview_parts};
use crate::output::vitals::Vitals;
use crate::store::read::Reader;

/// How soon a page shows a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const BEAT: Duration = Duration::from_secs(15);
/// How soon a page asks again that was cut off.
const RETRY: &str = "retry: 2000\n\n";

/// One page that stays open.
pub(super) struct Live {
    reader: Reader,
    /// The feed whose page it is; none for the overview.
    feed: Option<String>,
    ready: watch::Receiver<Option<String>>,
    own: Arc<dyn Fn() -> Own + Send + Sync>,
    told: Told,
    /// The file's version and what blocked it, when it was last looked at.
    seen: Option<(i64, Option<String>, Instant)>,
    /// When anything was last said.
    said: Option<Instant>,
    /// Given back when the listener has gone.
    _place: OwnedSemaphorePermit,
}

impl Live {
    pub(super) fn new(
        reader: Reader,
        feed: Option<String>,
        ready: watch::Receiver<Option<String>>,
        own: Arc<dyn Fn() -> Own + Send + Sync>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { reader, feed, ready, own, told: Told::default(), seen: None, said: None, _place: place }
    }

    fn parts(&self, now: Timestamp, blocked: Option<&str>) -> Result<Parts, OutputError> {
        let frame = Frame { now, nonce: "", blocked };
        let parts = match &self.feed {
            Some(feed) => feed_parts(&frame, &Feed::read(&self.reader, feed, now)?),
            None => {
                let seen = Overview::read(&self.reader, now)?;
                overview_parts(&frame, Ok(&seen), &Vitals::of(self.reader.path(), &(self.own)().commits))
            }
        };
        parts.map_err(|error| OutputError::Write(std::io::Error::other(error)))
    }

    fn is_due(&self, version: i64, blocked: Option<&str>) -> bool {
        match &self.seen {
            Some((then, why, at)) => *then != version || why.as_deref() != blocked || at.elapsed() >= BEAT,
            None => true,
        }
    }
}

impl Rows for Live {
    fn page(mut self) -> Result<(Vec<u8>, Option<Self>), OutputError> {
        let mut text = Vec::new();
        // The page comes back and finds the file that took the place of this one.
        if self.reader.is_replaced() {
            return Ok((text, None));
        }
        if self.said.is_none() {
            text.extend_from_slice(RETRY.as_bytes());
        }
        // Looked at first: what is committed while the file is read shows next time.
        let version = self.reader.data_version()?;
        let blocked = self.ready.borrow().clone();
        if self.is_due(version, blocked.as_deref()) {
            let now = Timestamp::now();
            let parts = self.parts(now, blocked.as_deref())?;
            if let Some(news) = self.told.news(now, &parts).map_err(std::io::Error::from)? {
                text.extend_from_slice(format!("data: {news}\n\n").as_bytes());
            }
            self.seen = Some((version, blocked, Instant::now()));
        }
        if text.is_empty() && self.said.is_some_and(|said| said.elapsed() >= BEAT) {
            text.extend_from_slice(b":\n\n");
        }
        if !text.is_empty() {
            self.said = Some(Instant::now());
        }
        Ok((text, Some(self)))
    }

    fn wait(&self) -> Duration {
        LOOK_EVERY
    }
}
