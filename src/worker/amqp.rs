//! A queue's loop: consumes messages, commits them in batches, and acknowledges a batch once it is on the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::push::{BATCH_BYTES, BATCH_ITEMS, BATCH_TIME, BATCHES, PendingBatch, PushBatch};
use super::{FeedRuntime, jitter};
use crate::decode::rpde;
use crate::feed::{Generation, Health, Transport};
use crate::schedule::{self, RetryWait};
use crate::source::amqp::{AmqpSettings, Consumer, Failure, Message};
use crate::store::StoreError;
use crate::store::apply::{Applied, PushPosition};

/// A connection that lasted this long counts as a success: the next wait is short.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// After this the feed's generation is read again, where it changed during the connection.
const GENERATION_PAUSE: Duration = Duration::from_millis(100);

/// One feed's queue.
pub struct AmqpLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    settings: &'a AmqpSettings,
    cancel: &'a CancellationToken,
    failures: u32,
    /// The broker's URL of the last connection.
    url: Option<SecretString>,
    /// Whether the operator has to change something at the broker or in the URL.
    needs_operator: bool,
}

/// Why a connection ended.
enum QueueEnd {
    /// Cancelled, or the store has stopped.
    Stopped,
    /// The feed has a new generation: the unacknowledged messages are delivered again.
    OldGeneration,
    /// The feed was purged because it was gone: its loops are started again when it is resumed.
    Purged,
    /// An error, with its text.
    Failed { kind: FailureOutlook, reason: String },
}

/// What is to be expected after a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FailureOutlook {
    /// The next connection may be a good one.
    Transient,
    /// The next connection will most likely fail in the same way, however many messages it delivers before that.
    Recurring,
    /// It lasts until the operator has changed something.
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

/// The store's answer to a batch, unless the store has stopped.
type CommitResult = Result<Result<Applied, StoreError>, tokio::sync::oneshot::error::RecvError>;

/// An open connection.
struct QueueConnection<'a> {
    feed: &'a FeedRuntime,
    generation: Generation,
    consumer: Consumer,
    /// Messages of a full batch: the broker sends no more than the prefetch before some are acknowledged, so a batch
    /// takes half of that, and the next one is received while it is committed.
    batch_items: usize,
    pending: std::collections::VecDeque<(u64, PendingBatch)>,
    records_received: u64,
}

impl<'a> AmqpLoop<'a> {
    /// A loop for `feed`'s queue, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, settings: &'a AmqpSettings, cancel: &'a CancellationToken) -> Self {
        Self { feed, settings, cancel, failures: 0, url: None, needs_operator: false }
    }

    /// Runs until cancelled.
    pub async fn run(mut self) {
        if !self.feed.wait_until_level(self.cancel).await {
            return;
        }
        loop {
            let began = Instant::now();
            let (records_received, end) = self.connect().await;
            let wait = match end {
                QueueEnd::Stopped => return,
                QueueEnd::OldGeneration => GENERATION_PAUSE,
                QueueEnd::Purged => return self.cancel.cancelled().await,
                QueueEnd::Failed { kind, reason } => {
                    self.handle_failure(kind, reason, records_received, began.elapsed()).await
                }
            };
            self.feed.heartbeats.queue.expect_within(wait);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = self.settings.url.changed(self.url.as_ref()), if self.needs_operator => {}
            }
        }
    }

    /// One connection. Returns how many records it delivered, and why it ended.
    async fn connect(&mut self) -> (u64, QueueEnd) {
        let mut connection = match self.open().await {
            Ok(connection) => connection,
            Err(end) => return (0, end),
        };
        self.feed.mark_push_up(Transport::Amqp, None).await;
        self.feed.heartbeats.queue.suspend();
        let mut end = tokio::select! {
            () = self.cancel.cancelled() => QueueEnd::Stopped,
            end = connection.read() => end,
        };
        // What is committed is acknowledged, so that it is not delivered again.
        while !connection.pending.is_empty() {
            if let Err(commit_end) = connection.commit_oldest().await {
                end = if matches!(end, QueueEnd::Stopped) { end } else { commit_end };
                break;
            }
        }
        let records_received = connection.records_received;
        connection.consumer.close().await;
        (records_received, end)
    }

    async fn open(&mut self) -> Result<QueueConnection<'a>, QueueEnd> {
        let feed: &'a Arc<FeedRuntime> = self.feed;
        feed.heartbeats.queue.expect_within(feed.page_timeout);
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
        records_received: u64,
        connected_for: Duration,
    ) -> Duration {
        let permanent = kind == FailureOutlook::Permanent;
        self.needs_operator = permanent;
        let reason = self.feed.source.requests.redact(&reason);
        let was_good = connected_for >= STABLE_AFTER || (records_received > 0 && kind != FailureOutlook::Recurring);
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
    /// Reads until the broker ends the queue or something fails.
    async fn read(&mut self) -> QueueEnd {
        loop {
            let first = match self.next_or_commit().await {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(end) => return end,
            };
            let (mut tag, mut bytes) = (first.tag, first.bytes.len());
            let mut batch = vec![first.bytes];
            let mut end_of_queue = None;
            let until = tokio::time::Instant::now() + BATCH_TIME;
            while batch.len() < self.batch_items && bytes < BATCH_BYTES {
                let delivery = match self.consumer.next().now_or_never() {
                    None if !self.pending.is_empty() => tokio::time::timeout_at(until, self.consumer.next()).await.ok(),
                    delivery => delivery,
                };
                match delivery.map(message) {
                    None => break,
                    Some(Ok(message)) => {
                        tag = message.tag;
                        bytes += message.bytes.len();
                        batch.push(message.bytes);
                    }
                    Some(Err(end)) => {
                        end_of_queue = Some(end);
                        break;
                    }
                }
            }
            let decode_options = self.feed.source.decode_options.clone();
            let decode = move || rpde::records(batch.iter().map(Vec::as_slice), &decode_options);
            let page = match self.feed.decode_push(bytes, decode).await {
                Ok(page) => page,
                Err(panic) => return QueueEnd::Failed { kind: FailureOutlook::Transient, reason: panic.to_string() },
            };
            let batch = PushBatch { page, position: PushPosition::default(), url: None, reserved: None };
            let pending = self.feed.submit_push_batch(self.generation, Transport::Amqp, batch).await;
            self.pending.push_back((tag, pending));
            if let Some(end) = end_of_queue {
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
            result = pending => {
                self.pending.pop_front();
                self.record_commit(tag, result).await.map(|()| None)
            }
            delivery = self.consumer.next() => message(delivery).map(Some),
        }
    }

    async fn commit_oldest(&mut self) -> Result<(), QueueEnd> {
        let Some((tag, pending)) = self.pending.front_mut() else { return Ok(()) };
        let tag = *tag;
        let result = pending.await;
        self.pending.pop_front();
        self.record_commit(tag, result).await
    }

    /// Acknowledges a batch that is committed and on the disk. An acknowledgement covers all messages before it too:
    /// after a batch that was not written none may be acknowledged, written or not, and all of them are delivered
    /// again.
    async fn record_commit(&mut self, tag: u64, result: CommitResult) -> Result<(), QueueEnd> {
        let result = self.check_commit(result).await;
        if result.is_err() {
            self.pending.clear();
        }
        result?;
        Ok(self.consumer.ack_up_to(tag).await?)
    }

    async fn check_commit(&mut self, result: CommitResult) -> Result<(), QueueEnd> {
        let applied = result.map_err(|_| QueueEnd::Stopped)??;
        self.records_received += applied.record_count();
        let written = self.feed.record_push_commit(Transport::Amqp, applied).await;
        if written { Ok(()) } else { Err(QueueEnd::OldGeneration) }
    }
}

fn message(delivery: Result<Option<Message>, Failure>) -> Result<Message, QueueEnd> {
    match delivery {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(QueueEnd::Failed {
            kind: FailureOutlook::Transient,
            reason: "queue-ended: the broker ended it".to_owned(),
        }),
        Err(failure) => Err(failure.into()),
    }
}
