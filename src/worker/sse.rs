//! A stream's loop: connects from where the mirror stands, commits what comes in small batches, and connects again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::push::{BATCH_BYTES, BATCH_ITEMS, BATCH_TIME, BATCHES, PendingBatch, PushBatch};
use super::walk::describe_failure;
use super::{FeedRuntime, STREAM_HEARTBEAT, jitter};
use crate::decode::rpde;
use crate::feed::{Finding, Generation, Health, Page, Transport};
use crate::mode::{self, FailureHistory, FailureKind};
use crate::schedule::{self, RetryWait};
use crate::source::http::{EndpointClient, HttpFailure};
use crate::source::sse::{SseEvent, SseSettings, Stream, connect_url};
use crate::store::StoreError;
use crate::store::apply::{Applied, PushPosition};
use crate::store::endpoints::StoredEndpoint;

/// The event that carries an item (RPDE 0.2.1 draft, 2c).
const ITEM_EVENT: &str = "itemupdate";
/// A connection that lasted this long was a good one: the next wait is short.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// A generation that changed under the stream is read again after this.
const GENERATION_PAUSE: Duration = Duration::from_millis(100);
/// While the feed is read anew it is looked this often whether that has ended.
const RESYNC_PAUSE: Duration = Duration::from_secs(1);
const RESYNC_REASON: &str =
    "read-anew: the feed is read anew, trusting its source; then the stream is opened behind that";

/// Where a feed's stream is.
pub struct SseEndpoint {
    /// As configured.
    pub settings: SseSettings,
    /// Its requests: the operator names its origin, so it gets the feed's secrets.
    pub requests: EndpointClient,
}

/// One feed's stream.
pub struct SseLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    endpoint: &'a SseEndpoint,
    cancel: &'a CancellationToken,
    history: FailureHistory,
    /// How often the secrets had changed when the stream was opened last.
    secret_changes: u64,
    /// Whether a secret was what the publisher refused.
    secret_refused: bool,
}

/// Why a connection ended.
enum StreamEnd {
    /// Cancelled, or the store has stopped.
    Stopped,
    /// The feed has begun anew meanwhile.
    OldGeneration,
    /// The feed is being read anew, trusting its source: until that has ended, nobody knows where to take it up.
    TrustedResync,
    /// The feed was purged by itself: it begins anew when it is resumed.
    Purged,
    /// An error, or the stream's own end.
    Failed(FailureKind, String),
}

impl From<HttpFailure> for StreamEnd {
    fn from(failure: HttpFailure) -> Self {
        let (trouble, reason) = describe_failure(&failure);
        Self::Failed(trouble, reason)
    }
}

impl From<StoreError> for StreamEnd {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Stopped,
            error => Self::Failed(FailureKind::Store, format!("store: {error}")),
        }
    }
}

/// A connection under way.
struct StreamConnection<'a> {
    feed: &'a FeedRuntime,
    settings: &'a SseSettings,
    generation: Generation,
    stream: Stream,
    /// Where it was opened.
    url: String,
    pending: VecDeque<PendingBatch>,
    records_received: u64,
    /// Where the last batch handed over leaves the cursor.
    submitted_cursor: Option<String>,
}

/// Events that are decoded together.
#[derive(Default)]
struct EventBatch {
    records: Vec<String>,
    bytes: usize,
    event_id: Option<Arc<str>>,
    other_events: Vec<String>,
}

impl EventBatch {
    fn add(&mut self, event: SseEvent) {
        if event.id.is_some() {
            self.event_id = event.id;
        }
        if event.name != ITEM_EVENT {
            self.other_events.push(event.name.chars().take(40).collect());
            // A publisher that forgets to name its events still sends items.
            if event.name != "message" {
                return;
            }
        }
        self.bytes += event.data.len();
        self.records.push(event.data);
    }

    fn is_full(&self) -> bool {
        self.records.len() >= BATCH_ITEMS || self.bytes >= BATCH_BYTES
    }
}

impl<'a> SseLoop<'a> {
    /// A loop for `feed`'s stream, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, endpoint: &'a SseEndpoint, cancel: &'a CancellationToken) -> Self {
        let history = FailureHistory { first_page: true, ..FailureHistory::default() };
        Self { feed, endpoint, cancel, history, secret_changes: 0, secret_refused: false }
    }

    /// Until cancelled.
    pub async fn run(mut self) {
        if !self.feed.wait_until_level(self.cancel).await {
            return;
        }
        loop {
            let began = Instant::now();
            let mut retry = None;
            (self.secret_changes, self.secret_refused) = (self.endpoint.requests.secret_changes(), false);
            let (brought, end) = self.connect(&mut retry).await;
            let wait = match end {
                StreamEnd::Stopped => return,
                StreamEnd::OldGeneration => GENERATION_PAUSE,
                StreamEnd::TrustedResync => {
                    self.feed.mark_push_down(Transport::Sse, Health::Ok, RESYNC_REASON.to_owned()).await;
                    RESYNC_PAUSE
                }
                StreamEnd::Purged => return self.cancel.cancelled().await,
                StreamEnd::Failed(trouble, reason) => {
                    self.handle_failure(trouble, reason, brought, began.elapsed(), retry).await
                }
            };
            self.feed.heartbeats[STREAM_HEARTBEAT].expect_within(wait);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.endpoint.requests.secrets_changed(self.secret_changes), if self.secret_refused => {}
            }
        }
    }

    /// One connection, and how many items it brought.
    async fn connect(&mut self, retry: &mut Option<Duration>) -> (u64, StreamEnd) {
        let mut connection = match self.open().await {
            Ok(connection) => connection,
            Err(end) => return (0, end),
        };
        self.history.ever_answered = true;
        self.feed.mark_push_up(Transport::Sse, None).await;
        self.feed.heartbeats[STREAM_HEARTBEAT].suspend();
        let end = tokio::select! {
            () = self.cancel.cancelled() => StreamEnd::Stopped,
            () = self.feed.reopen_stream.notified() => StreamEnd::OldGeneration,
            () = self.feed.push_state.stream_demoted.notified() =>
                StreamEnd::Failed(FailureKind::Network, "missed: the stream left items out, and is opened anew".to_owned()),
            end = connection.read() => end,
        };
        *retry = connection.stream.retry();
        let mut brought = connection.records_received;
        // What was handed over is committed whatever ended the connection; only then is its place known.
        while let Some(pending) = connection.pending.pop_front() {
            match connection.record_commit(pending.await).await {
                Ok(()) => brought = connection.records_received,
                Err(end) => return (brought, end),
            }
        }
        (brought, end)
    }

    async fn open(&self) -> Result<StreamConnection<'a>, StreamEnd> {
        let (feed, endpoint): (&'a Arc<FeedRuntime>, &'a SseEndpoint) = (self.feed, self.endpoint);
        feed.heartbeats[STREAM_HEARTBEAT].expect_within(feed.page_timeout);
        let stored = feed.context.store.feed(&feed.name).await?;
        if stored.paused {
            return Err(StreamEnd::Purged);
        }
        if stored.resync.as_ref().is_some_and(|resync| resync.is_trusted_walk() && resync.not_before.is_none()) {
            return Err(StreamEnd::TrustedResync);
        }
        let endpoints = feed.context.store.endpoints(feed.id).await?;
        let (url, event_id) = resume_point(&endpoint.settings, &endpoints);
        let share = feed.context.budget.open_page(feed.source.host.name(), 0);
        let opening = Stream::open(&endpoint.requests, &url, event_id.as_deref(), share);
        let stream = tokio::select! {
            () = self.cancel.cancelled() => return Err(StreamEnd::Stopped),
            stream = opening => stream?,
        };
        Ok(StreamConnection {
            feed,
            settings: &endpoint.settings,
            generation: stored.generation,
            stream,
            url: endpoint.requests.mask(&url),
            pending: VecDeque::new(),
            records_received: 0,
            submitted_cursor: None,
        })
    }

    async fn handle_failure(
        &mut self,
        trouble: FailureKind,
        reason: String,
        brought: u64,
        lasted: Duration,
        retry: Option<Duration>,
    ) -> Duration {
        let good = brought > 0 || lasted >= STABLE_AFTER;
        self.history.failures = if good { 1 } else { self.history.failures.saturating_add(1) };
        self.secret_refused = matches!(trouble, FailureKind::Status { code: 401 | 403, .. });
        if self.secret_refused
            && let Err(failure) = self.endpoint.requests.read_secrets()
        {
            tracing::warn!(feed = %self.feed.name, %failure, "secrets can't be read again: the old ones stay");
        }
        let ruling = mode::classify_push(trouble, &self.history);
        let told = retry.filter(|_| ruling.wait == RetryWait::Backoff).map_or(ruling.wait, RetryWait::RetryAfter);
        let wait = schedule::wait_after_failure(&self.feed.retry, told, self.history.failures, jitter());
        if self.history.failures.is_power_of_two() {
            tracing::info!(feed = %self.feed.name, failures = self.history.failures, reason, "the stream has ended");
        }
        self.feed.mark_push_down(Transport::Sse, ruling.health, reason).await;
        wait
    }
}

/// Where to take the stream up: after its own last event, or after the poll side's last item where that was committed
/// later.
fn resume_point(settings: &SseSettings, endpoints: &[StoredEndpoint]) -> (String, Option<String>) {
    let find = |transport| endpoints.iter().find(|endpoint: &&StoredEndpoint| endpoint.transport == transport);
    let (own, poll) = (find(Transport::Sse), find(Transport::Poll));
    let own_at = own.filter(|own| own.last.is_some()).and_then(|own| own.item_at);
    let polled = poll.filter(|poll| poll.last.is_some() && poll.item_at > own_at);
    let from = polled.or(own).and_then(|endpoint| endpoint.last.as_ref());
    let event_id = own.filter(|_| polled.is_none()).and_then(|own| own.event_id.clone());
    (connect_url(settings, from.map(|last| (last.modified.as_str(), last.id.as_str()))), event_id)
}

impl StreamConnection<'_> {
    /// Until the stream ends or fails.
    async fn read(&mut self) -> StreamEnd {
        loop {
            let event = if self.pending.len() < BATCHES {
                match self.next_or_commit().await {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(end) => return end,
                }
            } else {
                if let Err(end) = self.commit_oldest().await {
                    return end;
                }
                continue;
            };
            let mut batch = EventBatch::default();
            batch.add(event);
            let ended = self.fill(&mut batch).await;
            if let Err(end) = self.submit_batch(batch).await {
                return end;
            }
            if let Some(end) = ended {
                return end;
            }
        }
    }

    /// The next event, or `None` once the oldest batch is committed.
    async fn next_or_commit(&mut self) -> Result<Option<SseEvent>, StreamEnd> {
        let Some(pending) = self.pending.front_mut() else {
            return event(self.stream.next().await).map(Some);
        };
        tokio::select! {
            answer = pending => {
                self.pending.pop_front();
                self.record_commit(answer).await?;
                Ok(None)
            }
            came = self.stream.next() => event(came).map(Some),
        }
    }

    async fn commit_oldest(&mut self) -> Result<(), StreamEnd> {
        match self.pending.front_mut() {
            Some(pending) => {
                let answer = pending.await;
                self.pending.pop_front();
                self.record_commit(answer).await
            }
            None => Ok(()),
        }
    }

    /// Adds what is there already, and what comes while an earlier batch is being committed.
    async fn fill(&mut self, batch: &mut EventBatch) -> Option<StreamEnd> {
        let until = tokio::time::Instant::now() + BATCH_TIME;
        while !batch.is_full() {
            let came = if self.pending.is_empty() {
                self.stream.next().now_or_never()?
            } else {
                tokio::time::timeout_at(until, self.stream.next()).await.ok()?
            };
            match event(came) {
                Ok(event) => batch.add(event),
                Err(end) => return Some(end),
            }
        }
        None
    }

    async fn submit_batch(&mut self, batch: EventBatch) -> Result<(), StreamEnd> {
        let EventBatch { records, bytes, event_id, other_events } = batch;
        let share = self.stream.take_share();
        let reading = self.feed.source.decode_options.clone();
        let read = move || rpde::records(records.iter().map(String::as_bytes), &reading);
        let mut page = match self.feed.decode_push(bytes, read).await {
            Ok(page) => page,
            Err(panic) => return Err(StreamEnd::Failed(FailureKind::Page, panic.to_string())),
        };
        let long_ids = self.stream.long_ids();
        if long_ids > 0 {
            let detail = "an event id of more than 2 KiB was passed over".to_owned();
            page.findings.push(Finding { rule: "long-event-id", detail, count: long_ids });
        }
        if let Some(first) = other_events.first() {
            let detail = format!("an event named {first:?}, where items are named {ITEM_EVENT:?}");
            page.findings.push(Finding { rule: "sse-event", detail, count: other_events.len() as u64 });
        }
        let cursor = self.cursor(&page);
        let position = PushPosition {
            cursor: cursor.clone(),
            event_id: event_id.map(|id| id.to_string()),
            from_cursor: self.submitted_cursor.clone(),
        };
        self.submitted_cursor = cursor.or(self.submitted_cursor.take());
        let batch = PushBatch { page, position, from: Some(&self.url), share };
        self.pending.push_back(self.feed.submit_push_batch(self.generation, Transport::Sse, batch).await);
        Ok(())
    }

    fn cursor(&self, page: &Page) -> Option<String> {
        let last = page.items.last()?;
        Some(connect_url(self.settings, Some((&last.modified.to_string(), &last.id))))
    }

    async fn record_commit(
        &mut self,
        answer: Result<Result<Applied, StoreError>, tokio::sync::oneshot::error::RecvError>,
    ) -> Result<(), StreamEnd> {
        let applied = answer.map_err(|_| StreamEnd::Stopped)??;
        self.records_received += applied.record_count();
        if self.feed.record_push_commit(Transport::Sse, applied).await { Ok(()) } else { Err(StreamEnd::OldGeneration) }
    }
}

fn event(came: Result<Option<SseEvent>, HttpFailure>) -> Result<SseEvent, StreamEnd> {
    match came {
        Ok(Some(event)) => Ok(event),
        Ok(None) => {
            Err(StreamEnd::Failed(FailureKind::Network, "stream-ended: the publisher closed the stream".to_owned()))
        }
        Err(failure) => Err(failure.into()),
    }
}
