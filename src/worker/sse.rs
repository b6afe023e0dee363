//! A stream's loop: connects from the mirror's last item, commits the events in small batches, and connects again when
//! the stream ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::push::{BATCH_BYTES, BATCH_ITEMS, BATCH_TIME, BATCHES, PendingBatch, PushBatch};
use super::walk::describe_failure;
use super::{FeedRuntime, jitter};
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
/// A connection that lasted this long counts as a success: the next wait is short.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// After this the feed's generation is read again, where it changed during the connection.
const GENERATION_PAUSE: Duration = Duration::from_millis(100);
/// During a resync that trusts its source, this often it is checked whether its walk has ended.
const RESYNC_PAUSE: Duration = Duration::from_secs(1);
const RESYNC_REASON: &str =
    "read-anew: the feed is read anew, trusting its source; then the stream is opened behind that";

/// A feed's stream endpoint.
pub struct SseEndpoint {
    pub settings: SseSettings,
    /// Sends the stream's requests. The operator names the origin, so that it gets the feed's secrets.
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
    /// Whether the publisher refused a secret.
    secret_refused: bool,
}

/// Why a connection ended.
enum StreamEnd {
    /// Cancelled, or the store has stopped.
    Stopped,
    /// The feed has a new generation, or its resume point is no longer valid.
    OldGeneration,
    /// A resync that trusts its source is in progress: until its walk has ended, no resume point is known.
    TrustedResync,
    /// The feed was purged because it was gone: its loops are started again when it is resumed.
    Purged,
    /// An error, or the stream's own end.
    Failed(FailureKind, String),
}

impl From<HttpFailure> for StreamEnd {
    fn from(failure: HttpFailure) -> Self {
        let (kind, reason) = describe_failure(&failure);
        Self::Failed(kind, reason)
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

/// An open connection.
struct StreamConnection<'a> {
    feed: &'a FeedRuntime,
    settings: &'a SseSettings,
    generation: Generation,
    stream: Stream,
    /// The URL at which the stream was opened.
    url: String,
    pending: VecDeque<PendingBatch>,
    records_received: u64,
    /// The cursor after the last batch that was handed to the store.
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
            // The events of a publisher that gives them no name are items too.
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

    /// Runs until cancelled.
    pub async fn run(mut self) {
        if !self.feed.wait_until_level(self.cancel).await {
            return;
        }
        loop {
            let began = Instant::now();
            let mut retry = None;
            (self.secret_changes, self.secret_refused) = (self.endpoint.requests.secret_changes(), false);
            let (records_received, end) = self.connect(&mut retry).await;
            let wait = match end {
                StreamEnd::Stopped => return,
                StreamEnd::OldGeneration => GENERATION_PAUSE,
                StreamEnd::TrustedResync => {
                    self.feed.mark_push_down(Transport::Sse, Health::Ok, RESYNC_REASON.to_owned()).await;
                    RESYNC_PAUSE
                }
                StreamEnd::Purged => return self.cancel.cancelled().await,
                StreamEnd::Failed(kind, reason) => {
                    self.handle_failure(kind, reason, records_received, began.elapsed(), retry).await
                }
            };
            self.feed.heartbeats.stream.expect_within(wait);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.endpoint.requests.secrets_changed(self.secret_changes), if self.secret_refused => {}
            }
        }
    }

    /// One connection. Returns how many records it delivered, and why it ended.
    async fn connect(&mut self, retry: &mut Option<Duration>) -> (u64, StreamEnd) {
        let mut connection = match self.open().await {
            Ok(connection) => connection,
            Err(end) => return (0, end),
        };
        self.history.ever_answered = true;
        self.feed.mark_push_up(Transport::Sse, None).await;
        self.feed.heartbeats.stream.suspend();
        let end = tokio::select! {
            () = self.cancel.cancelled() => StreamEnd::Stopped,
            () = self.feed.reopen_stream.notified() => StreamEnd::OldGeneration,
            () = self.feed.push_state.stream_demoted.notified() =>
                StreamEnd::Failed(FailureKind::Network, "missed: the stream left items out, and is opened anew".to_owned()),
            end = connection.read() => end,
        };
        *retry = connection.stream.retry();
        let mut records_received = connection.records_received;
        // The batches handed to the store are committed whatever ended the connection; only then is the resume point
        // known.
        while let Some(pending) = connection.pending.pop_front() {
            match connection.record_commit(pending.await).await {
                Ok(()) => records_received = connection.records_received,
                Err(end) => return (records_received, end),
            }
        }
        (records_received, end)
    }

    async fn open(&self) -> Result<StreamConnection<'a>, StreamEnd> {
        let (feed, endpoint): (&'a Arc<FeedRuntime>, &'a SseEndpoint) = (self.feed, self.endpoint);
        feed.heartbeats.stream.expect_within(feed.page_timeout);
        let stored = feed.context.store.feed(&feed.name).await?;
        if stored.paused {
            return Err(StreamEnd::Purged);
        }
        if stored.resync.as_ref().is_some_and(|resync| resync.is_trusted_walk() && resync.not_before.is_none()) {
            return Err(StreamEnd::TrustedResync);
        }
        let endpoints = feed.context.store.endpoints(feed.id).await?;
        let (url, event_id) = resume_point(&endpoint.settings, &endpoints);
        let reservation = feed.context.budget.open_page(feed.source.host.name(), 0);
        let opening = Stream::open(&endpoint.requests, &url, event_id.as_deref(), reservation);
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
        kind: FailureKind,
        reason: String,
        records_received: u64,
        connected_for: Duration,
        retry: Option<Duration>,
    ) -> Duration {
        let succeeded = records_received > 0 || connected_for >= STABLE_AFTER;
        self.history.failures = if succeeded { 1 } else { self.history.failures.saturating_add(1) };
        self.secret_refused = matches!(kind, FailureKind::Status { code: 401 | 403, .. });
        if self.secret_refused
            && let Err(failure) = self.endpoint.requests.read_secrets()
        {
            tracing::warn!(feed = %self.feed.name, %failure, "secrets can't be read again: the old ones stay");
        }
        let policy = mode::classify_push(kind, &self.history);
        let retry_wait = retry.filter(|_| policy.wait == RetryWait::Backoff).map_or(policy.wait, RetryWait::RetryAfter);
        let wait = schedule::wait_after_failure(&self.feed.retry, retry_wait, self.history.failures, jitter());
        if self.history.failures.is_power_of_two() {
            tracing::info!(feed = %self.feed.name, failures = self.history.failures, reason, "the stream has ended");
        }
        self.feed.mark_push_down(Transport::Sse, policy.health, reason).await;
        wait
    }
}

/// Where to resume the stream: after its own last event, or after the last polled item where that was committed later.
fn resume_point(settings: &SseSettings, endpoints: &[StoredEndpoint]) -> (String, Option<String>) {
    let find = |transport| endpoints.iter().find(|endpoint: &&StoredEndpoint| endpoint.transport == transport);
    let (own, poll) = (find(Transport::Sse), find(Transport::Poll));
    let own_at = own.filter(|own| own.last.is_some()).and_then(|own| own.item_at);
    let newer_poll = poll.filter(|poll| poll.last.is_some() && poll.item_at > own_at);
    let last_endpoint_item = newer_poll.or(own).and_then(|endpoint| endpoint.last.as_ref());
    let event_id = own.filter(|_| newer_poll.is_none()).and_then(|own| own.event_id.clone());
    (connect_url(settings, last_endpoint_item.map(|last| (last.modified.as_str(), last.id.as_str()))), event_id)
}

impl StreamConnection<'_> {
    /// Reads until the stream ends or fails.
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
            let end_of_stream = self.fill(&mut batch).await;
            if let Err(end) = self.submit_batch(batch).await {
                return end;
            }
            if let Some(end) = end_of_stream {
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
            result = pending => {
                self.pending.pop_front();
                self.record_commit(result).await?;
                Ok(None)
            }
            received = self.stream.next() => event(received).map(Some),
        }
    }

    async fn commit_oldest(&mut self) -> Result<(), StreamEnd> {
        match self.pending.front_mut() {
            Some(pending) => {
                let result = pending.await;
                self.pending.pop_front();
                self.record_commit(result).await
            }
            None => Ok(()),
        }
    }

    /// Adds the events that are received already, and those that are received while an earlier batch is being
    /// committed.
    async fn fill(&mut self, batch: &mut EventBatch) -> Option<StreamEnd> {
        let until = tokio::time::Instant::now() + BATCH_TIME;
        while !batch.is_full() {
            let received = if self.pending.is_empty() {
                self.stream.next().now_or_never()?
            } else {
                tokio::time::timeout_at(until, self.stream.next()).await.ok()?
            };
            match event(received) {
                Ok(event) => batch.add(event),
                Err(end) => return Some(end),
            }
        }
        None
    }

    async fn submit_batch(&mut self, batch: EventBatch) -> Result<(), StreamEnd> {
        let EventBatch { records, bytes, event_id, other_events } = batch;
        let reserved = self.stream.take_share();
        let decode_options = self.feed.source.decode_options.clone();
        let decode = move || rpde::records(records.iter().map(String::as_bytes), &decode_options);
        let mut page = match self.feed.decode_push(bytes, decode).await {
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
        let batch = PushBatch { page, position, url: Some(&self.url), reserved };
        self.pending.push_back(self.feed.submit_push_batch(self.generation, Transport::Sse, batch).await);
        Ok(())
    }

    fn cursor(&self, page: &Page) -> Option<String> {
        let last = page.items.last()?;
        Some(connect_url(self.settings, Some((&last.modified.to_string(), &last.id))))
    }

    async fn record_commit(
        &mut self,
        result: Result<Result<Applied, StoreError>, tokio::sync::oneshot::error::RecvError>,
    ) -> Result<(), StreamEnd> {
        let applied = result.map_err(|_| StreamEnd::Stopped)??;
        self.records_received += applied.record_count();
        if self.feed.record_push_commit(Transport::Sse, applied).await { Ok(()) } else { Err(StreamEnd::OldGeneration) }
    }
}

fn event(received: Result<Option<SseEvent>, HttpFailure>) -> Result<SseEvent, StreamEnd> {
    match received {
        Ok(Some(event)) => Ok(event),
        Ok(None) => {
            Err(StreamEnd::Failed(FailureKind::Network, "stream-ended: the publisher closed the stream".to_owned()))
        }
        Err(failure) => Err(failure.into()),
    }
}
