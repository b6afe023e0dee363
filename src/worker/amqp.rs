//! A queue's loop: consumes, commits what comes in batches, and acknowledges a batch once it is on the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::push::{BATCH_BYTES, BATCH_ITEMS, BATCH_TIME, BATCHES, PendingBatch, PushBatch};
use super::{FeedRuntime, QUEUE_HEARTBEAT, jitter};
use crate::decode::rpde;
use crate::feed::{Generation, Health, Transport};
use crate::schedule::{self, RetryWait};
use crate::source::amqp::{AmqpSettings, Consumer, Failure, Message};
use crate::store::StoreError;
use crate::store::apply::{Applied, PushPosition};

/// A connection that lasted this long was a good one: the next wait is short.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// A generation that changed under the consumer is read again after this.
const GENERATION_PAUSE: Duration = Duration::from_millis(100);

/// One feed's queue.
pub struct AmqpLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    settings: &'a AmqpSettings,
    cancel: &'a CancellationToken,
    failures: u32,
    /// The broker's URL as it was used last.
    url: Option<SecretString>,
    /// Whether the broker, or what the URL says, is for the operator.
    needs_operator: bool,
}

/// Why a connection ended.
enum QueueEnd {
    /// Cancelled, or the store has stopped.
    Stopped,
    /// The feed has begun anew meanwhile: what was not acknowledged comes again.
    OldGeneration,
    /// The feed was purged by itself: it begins anew when it is resumed.
    Purged,
    /// An error, in words.
    Failed { kind: FailureOutlook, reason: String },
}

/// What is to be expected after a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureOutlook {
    /// The next connection may be a good one.
    Transient,
    /// The next connection will most likely meet it again, however much it brings before that.
    Recurring,
    /// It stays until the operator has done something.
    Permanent,
}

impl From<Failure> for QueueEnd {
    fn from(failure: Failure) -> Self {
        let kind = if failure.needs_operator() {
            FailureOutlook::Permanent
        } else if failure.recurs() {
            FailureOutlook::Recurring
        } else {
            FailureOutlook::Transient
        };
        Self::Failed { kind, reason: failure.to_string() }
    }
}

impl From<StoreError> for QueueEnd {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Stopped,
            error => Self::Failed { kind: FailureOutlook::Transient, reason: format!("store: {error}") },
        }
    }
}

/// What the store says of a batch, unless it has stopped.
type CommitResult = Result<Result<Applied, StoreError>, tokio::sync::oneshot::error::RecvError>;

/// A connection under way.
struct QueueConnection<'a> {
    feed: &'a FeedRuntime,
    generation: Generation,
    consumer: Consumer,
    /// Messages that close a batch: the broker sends no more than the prefetch before some are acknowledged, so a batch
    /// takes half of that, and the next one comes while it is committed.
    batch_items: usize,
    pending: std::collections::VecDeque<(u64, PendingBatch)>,
    records_received: u64,
}

impl<'a> AmqpLoop<'a> {
    /// A loop for `feed`'s queue, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, settings: &'a AmqpSettings, cancel: &'a CancellationToken) -> Self {
        Self { feed, settings, cancel, failures: 0, url: None, needs_operator: false }
    }

    /// Until cancelled.
    pub async fn run(mut self) {
        if !self.feed.wait_until_level(self.cancel).await {
            return;
        }
        loop {
            let began = Instant::now();
            let (brought, end) = self.connect().await;
            let wait = match end {
                QueueEnd::Stopped => return,
                QueueEnd::OldGeneration => GENERATION_PAUSE,
                QueueEnd::Purged => return self.cancel.cancelled().await,
                QueueEnd::Failed { kind, reason } => self.handle_failure(kind, reason, brought, began.elapsed()).await,
            };
            self.feed.heartbeats[QUEUE_HEARTBEAT].expect_within(wait);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.settings.url.changed(self.url.as_ref()), if self.needs_operator => {}
            }
        }
    }

    /// One connection, and how many records it brought.
    async fn connect(&mut self) -> (u64, QueueEnd) {
        let mut connection = match self.open().await {
            Ok(connection) => connection,
            Err(end) => return (0, end),
        };
        self.feed.mark_push_up(Transport::Amqp, None).await;
        self.feed.heartbeats[QUEUE_HEARTBEAT].suspend();
        let mut end = tokio::select! {
            () = self.cancel.cancelled() => QueueEnd::Stopped,
            end = connection.read() => end,
        };
        // What is committed is acknowledged, so that it need not come again.
        while !connection.pending.is_empty() {
            if let Err(earlier) = connection.commit_oldest().await {
                end = if matches!(end, QueueEnd::Stopped) { end } else { earlier };
                break;
            }
        }
        let brought = connection.records_received;
        connection.consumer.close().await;
        (brought, end)
    }

    async fn open(&mut self) -> Result<QueueConnection<'a>, QueueEnd> {
        let feed: &'a Arc<FeedRuntime> = self.feed;
        feed.heartbeats[QUEUE_HEARTBEAT].expect_within(feed.page_timeout);
        let stored = feed.context.store.feed(&feed.name).await?;
        if stored.paused {
            return Err(QueueEnd::Purged);
        }
        let url = match self.settings.url.read() {
            Ok(url) => self.url.insert(url),
            Err(error) => {
                return Err(QueueEnd::Failed { kind: FailureOutlook::Permanent, reason: format!("settings: {error}") });
            }
        };
        let tag = format!("feedmirror-{}", feed.name);
        let consumer = tokio::select! {
            () = self.cancel.cancelled() => return Err(QueueEnd::Stopped),
            consumer = Consumer::open(self.settings, url, &tag) => consumer?,
        };
        let batch_items = usize::from(self.settings.prefetch / 2).clamp(1, BATCH_ITEMS);
        let (generation, pending) = (stored.generation, std::collections::VecDeque::new());
        Ok(QueueConnection { feed, generation, consumer, batch_items, pending, records_received: 0 })
    }

    async fn handle_failure(
        &mut self,
        kind: FailureOutlook,
        reason: String,
        brought: u64,
        lasted: Duration,
    ) -> Duration {
        let permanent = kind == FailureOutlook::Permanent;
        self.needs_operator = permanent;
        let reason = self.feed.source.requests.redact(&reason);
        let was_good = lasted >= STABLE_AFTER || (brought > 0 && kind != FailureOutlook::Recurring);
        self.failures = if was_good { 1 } else { self.failures.saturating_add(1) };
        let (health, wait) =
            if permanent { (Health::Failed, RetryWait::Hourly) } else { (Health::Retrying, RetryWait::Backoff) };
        let wait = schedule::wait_after_failure(&self.feed.retry, wait, self.failures, jitter());
        if self.failures.is_power_of_two() {
            tracing::info!(feed = %self.feed.name, failures = self.failures, reason, "the queue is lost");
        }
        self.feed.mark_push_down(Transport::Amqp, health, reason).await;
        wait
    }
}

impl QueueConnection<'_> {
    /// Until the broker ends it or something fails.
    async fn read(&mut self) -> QueueEnd {
        loop {
            let first = match self.next_or_commit().await {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(end) => return end,
            };
            let (mut tag, mut bytes) = (first.tag, first.bytes.len());
            let mut batch = vec![first.bytes];
            let mut ended = None;
            let until = tokio::time::Instant::now() + BATCH_TIME;
            while batch.len() < self.batch_items && bytes < BATCH_BYTES {
                let came = match self.consumer.next().now_or_never() {
                    None if !self.pending.is_empty() => tokio::time::timeout_at(until, self.consumer.next()).await.ok(),
                    came => came,
                };
                match came.map(message) {
                    None => break,
                    Some(Ok(message)) => {
                        tag = message.tag;
                        bytes += message.bytes.len();
                        batch.push(message.bytes);
                    }
                    Some(Err(end)) => {
                        ended = Some(end);
                        break;
                    }
                }
            }
            let reading = self.feed.source.decode_options.clone();
            let read = move || rpde::records(batch.iter().map(Vec::as_slice), &reading);
            let page = match self.feed.decode_push(bytes, read).await {
                Ok(page) => page,
                Err(panic) => return QueueEnd::Failed { kind: FailureOutlook::Transient, reason: panic.to_string() },
            };
            let batch = PushBatch { page, position: PushPosition::default(), from: None, share: None };
            let pending = self.feed.submit_push_batch(self.generation, Transport::Amqp, batch).await;
            self.pending.push_back((tag, pending));
            if let Some(end) = ended {
                return end;
            }
        }
    }

    /// The next message, or `None` once the oldest batch is committed and acknowledged.
    async fn next_or_commit(&mut self) -> Result<Option<Message>, QueueEnd> {
        if self.pending.len() >= BATCHES {
            return self.commit_oldest().await.map(|()| None);
        }
        let Some((tag, pending)) = self.pending.front_mut() else {
            return message(self.consumer.next().await).map(Some);
        };
        let tag = *tag;
        tokio::select! {
            answer = pending => {
                self.pending.pop_front();
                self.record_commit(tag, answer).await.map(|()| None)
            }
            came = self.consumer.next() => message(came).map(Some),
        }
    }

    async fn commit_oldest(&mut self) -> Result<(), QueueEnd> {
        let Some((tag, pending)) = self.pending.front_mut() else { return Ok(()) };
        let tag = *tag;
        let answer = pending.await;
        self.pending.pop_front();
        self.record_commit(tag, answer).await
    }

    /// Committed and on the disk: only now is the batch acknowledged. An acknowledgement covers whatever came before it:
    /// behind a batch that was not written none may be acknowledged, written or not, and all of it comes again.
    async fn record_commit(&mut self, tag: u64, answer: CommitResult) -> Result<(), QueueEnd> {
        let taken = self.check_commit(answer).await;
        if taken.is_err() {
            self.pending.clear();
        }
        taken?;
        Ok(self.consumer.ack_up_to(tag).await?)
    }

    async fn check_commit(&mut self, answer: CommitResult) -> Result<(), QueueEnd> {
        let applied = answer.map_err(|_| QueueEnd::Stopped)??;
        self.records_received += applied.record_count();
        let written = self.feed.record_push_commit(Transport::Amqp, applied).await;
        if written { Ok(()) } else { Err(QueueEnd::OldGeneration) }
    }
}

fn message(came: Result<Option<Message>, Failure>) -> Result<Message, QueueEnd> {
    match came {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(QueueEnd::Failed {
            kind: FailureOutlook::Transient,
            reason: "queue-ended: the broker ended it".to_owned(),
        }),
        Err(failure) => Err(failure.into()),
    }
}
