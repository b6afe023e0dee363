//! One endpoint's loop: receive → decode → apply → outcome. The only module that uses source, decode and store
//! together.
//!
//! Guarantees: a page's items are handed to the store with the cursor that the page was requested with; a walk stops
//! at the first page that could not be fetched, and reports why; every wait also listens for cancellation. The rules
//! for items are the store's, those for failures [`crate::mode`]'s.

pub mod amqp;
pub mod look_back;
pub mod not_before;
pub mod page_source;
pub mod poll;
pub mod push;
mod read_ahead;
pub mod reader;
pub mod resync;
pub mod sse;
mod visited;
pub mod walk;
pub mod webhook;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use self::page_source::PageSource;
use self::push::PushState;
use crate::decode::rpde::{self, DecodeSettings};
use crate::feed::{
    FeedName, Generation, ModifiedOrder, Page, RecordOutcome, RequestOutcome, Seq, TiePolicy, Transport,
};
use crate::schedule::{PollSettings, RetrySettings};
use crate::source::budget::MemoryBudget;
use crate::source::decoder_pool::DecoderPool;
use crate::store::apply::{Applied, Delivery, DeliveryVerdict, Provenance, Purpose, Redactor, ReleaseOnCommit};
use crate::store::{Store, now};

/// What the loops of all feeds share.
#[derive(Clone)]
pub struct WorkerContext {
    pub store: Store,
    /// The budget of bytes in flight.
    pub budget: MemoryBudget,
    /// Bounds how many pages are decoded at once: more than there are cores would only hold memory.
    pub decoders: DecoderPool,
}

/// What the loops of one running feed share.
pub struct FeedRuntime {
    pub context: WorkerContext,
    /// The feed's number in the store.
    pub id: i64,
    pub name: FeedName,
    /// The feed's own URL, where it begins.
    pub url: String,
    /// Fetches and decodes the publisher's pages.
    pub source: Arc<PageSource>,
    pub ties: TiePolicy,
    /// How often the feed is polled.
    pub poll: PollSettings,
    /// How often the feed is polled while push keeps it level.
    pub audit: Duration,
    /// How polling backs off after failures.
    pub retry: RetrySettings,
    /// How long the publisher keeps tombstones.
    pub retention: Duration,
    /// How often a resync begins without an order.
    pub resync_every: Option<Duration>,
    /// The share (0 to 1) of the feed's live items that a sweep may remove without being accepted.
    pub max_sweep: f64,
    /// How long the rows of a gone feed are kept.
    pub purge_gone_after: Option<Duration>,
    /// The longest a single request may take.
    pub page_timeout: Duration,
    /// Whether the feed's end has been seen and polling hasn't failed since.
    pub level: watch::Sender<bool>,
    /// Wakes the poll loop for a poll now, whatever it waits for: only for the operator's order.
    pub poll_now: Notify,
    /// Wakes the poll loop for a poll as soon as "not before" allows: something was repaired.
    pub poll_when_allowed: Notify,
    /// Wakes the poll loop for a poll as soon as "not before" and the feed's pace allow: there may be changes.
    pub poll_at_pace: Notify,
    /// Wakes the resync loop.
    pub resync_now: Notify,
    /// What is known of the feed's push endpoints.
    pub push_state: PushState,
    /// Has the stream closed and opened again: its resume point is no longer valid.
    pub reopen_stream: Notify,
    /// Wakes the look-back loop.
    pub look_back_now: Notify,
    /// By when each of the feed's loops must have shown a sign of life.
    pub heartbeats: Heartbeats,
}

/// How a feed's records are decoded: the kind of records that carry none, and the order of `modified`.
pub fn decode_options(kind: Option<&str>, order: ModifiedOrder) -> DecodeSettings {
    DecodeSettings { kind: kind.map(Arc::from), order }
}

impl FeedRuntime {
    /// Requests a look-back at once. The request outlives restarts until the look-back is done.
    pub async fn request_look_back(&self) {
        self.log_store_error(self.context.store.request_look_back(self.id).await);
        self.look_back_now.notify_one();
    }

    /// Builds every delivery of the feed, and masks the feed's secrets in it; `data` stays as published.
    fn build_delivery(
        &self,
        generation: Generation,
        transport: Transport,
        mut page: Page,
        purpose: Purpose,
    ) -> Delivery {
        self.redact(&mut page);
        Delivery {
            feed: self.id,
            generation,
            transport,
            at: now(),
            start_seq: Seq::MAX,
            provenance: Provenance::default(),
            page,
            purpose,
            order: self.source.decode_options.order,
            ties: self.ties,
            keep_order: false,
            release_on_commit: ReleaseOnCommit::default(),
            redactor: Redactor(Some(Arc::<PageSource>::clone(&self.source))),
        }
    }

    fn redact(&self, page: &mut Page) {
        for finding in &mut page.findings {
            finding.detail = self.source.requests.redact(&finding.detail);
        }
        for record in &mut page.unreadable {
            record.detail = self.source.requests.redact(&record.detail);
            record.redacted = Some(self.source.requests.redact(&record.raw)).filter(|redacted| *redacted != record.raw);
        }
        page.license = page.license.take().map(|license| self.source.requests.redact(&license));
    }

    /// Decodes a quarantined record again, off the async threads, and applies it.
    ///
    /// # Errors
    /// A text for the operator, when the record still can't be decoded or applied.
    pub async fn retry_quarantined(&self, raw: &str, transport: Transport) -> Result<(), String> {
        let (page, decode_options) =
            (format!("{{\"items\":[{raw}]}}").into_bytes(), self.source.decode_options.clone());
        let decoded = self.context.decoders.run(move |_| rpde::page(page, &decode_options)).await;
        let page = decoded
            .map_err(|panic| panic.to_string())?
            .map_err(|error| error.reason(|text| self.source.requests.redact(text)))?;
        if let Some(record) = page.unreadable.first() {
            let detail = self.source.requests.redact(&record.detail);
            return Err(format!("it still can't be read: {}: {detail}", record.reason));
        }
        let generation = self.context.store.feed(&self.name).await.map_err(|error| error.to_string())?.generation;
        let applied = self.context.store.apply(self.build_delivery(generation, transport, page, Purpose::Reread)).await;
        match applied {
            Ok(Ok(applied)) if applied.verdict == DeliveryVerdict::Committed => Ok(()),
            Ok(Ok(_)) => Err("the feed has begun anew meanwhile".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the writer has stopped".to_owned()),
        }
    }
}

/// Counters of one feed since the daemon's start.
#[derive(Debug, Default)]
pub struct FeedCounters {
    /// Pages committed.
    pub pages: AtomicU64,
    /// Bytes received, as compressed on the wire.
    pub bytes: AtomicU64,
    pub records: AtomicU64,
    pub written: AtomicU64,
    pub quarantined: AtomicU64,
    /// Records, by transport and outcome.
    outcomes: [[AtomicU64; RecordOutcome::ALL.len()]; Transport::ALL.len()],
    /// Requests for pages, by outcome.
    polls: [AtomicU64; RequestOutcome::ALL.len()],
    /// The expected size of the feed's next page, in bytes once decompressed.
    pub expected_page_bytes: AtomicU64,
    /// Why the feed waits after a failure, and until when.
    failure_wait: Mutex<Option<(String, Instant)>>,
}

impl FeedCounters {
    /// Sets why the feed waits after a failure, and for how long; none ends the wait.
    pub fn set_failure_wait(&self, reason: Option<(String, Duration)>) {
        let failure_wait = reason.map(|(reason, wait)| (reason, Instant::now() + wait));
        *self.failure_wait.lock().unwrap_or_else(PoisonError::into_inner) = failure_wait;
    }

    /// Why the feed waits after a failure, and for how much longer.
    pub fn failure_wait(&self) -> Option<(String, Duration)> {
        let failure_wait = self.failure_wait.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failure_wait.map(|(reason, until)| (reason, until.saturating_duration_since(Instant::now())))
    }

    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts a delivery's records by outcome.
    fn count_applied(&self, transport: Transport, applied: &Applied) {
        Self::add(&self.records, applied.record_count());
        Self::add(&self.written, applied.written());
        Self::add(&self.quarantined, applied.quarantined);
        for (outcome, n) in applied.outcomes() {
            Self::add(&self.outcomes[transport as usize][outcome as usize], n);
        }
    }

    fn count_request(&self, outcome: RequestOutcome) {
        Self::add(&self.polls[outcome as usize], 1);
    }

    /// Records since the daemon's start, by transport and outcome.
    pub fn outcomes(&self) -> Vec<(Transport, RecordOutcome, u64)> {
        let count = |transport: Transport, outcome: RecordOutcome| {
            let counter = &self.outcomes[transport as usize][outcome as usize];
            (transport, outcome, counter.load(Ordering::Relaxed))
        };
        let of_transport =
            |transport: Transport| RecordOutcome::ALL.iter().map(move |outcome| count(transport, *outcome));
        Transport::ALL.iter().copied().flat_map(of_transport).collect()
    }

    /// Requests for pages since the daemon's start, by outcome.
    pub fn polls(&self) -> Vec<(RequestOutcome, u64)> {
        RequestOutcome::ALL
            .iter()
            .map(|outcome| (*outcome, self.polls[*outcome as usize].load(Ordering::Relaxed)))
            .collect()
    }
}

/// The heartbeats of one feed's loops.
#[derive(Debug, Default)]
pub struct Heartbeats {
    poll: Heartbeat,
    resync: Heartbeat,
    stream: Heartbeat,
    queue: Heartbeat,
    webhook: Heartbeat,
    register: Heartbeat,
    look_back: Heartbeat,
}

impl Heartbeats {
    /// All of them, for the supervisor's check for hung loops.
    pub fn iter(&self) -> impl Iterator<Item = &Heartbeat> {
        let Self { poll, resync, stream, queue, webhook, register, look_back } = self;
        [poll, resync, stream, queue, webhook, register, look_back].into_iter()
    }
}

/// By when a loop must show a sign of life, or it hangs. The supervisor checks it.
#[derive(Debug)]
pub struct Heartbeat {
    created: Instant,
    due_ms: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { created: Instant::now(), due_ms: AtomicU64::new(u64::MAX) }
    }
}

impl Heartbeat {
    /// Sets that the loop shows its next sign of life within `time`; two minutes later it counts as hung.
    pub fn expect_within(&self, time: Duration) {
        const SLACK: Duration = Duration::from_secs(120);
        let due = self.created.elapsed() + time + SLACK;
        self.due_ms.store(u64::try_from(due.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The loop waits for something that may take forever by design: nothing is expected of it.
    pub fn suspend(&self) {
        self.due_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether the sign of life is overdue.
    pub fn is_overdue(&self) -> bool {
        u128::from(self.due_ms.load(Ordering::Relaxed)) < self.created.elapsed().as_millis()
    }
}

/// A random number from 0 to 1, for jitter.
fn jitter() -> f64 {
    rand::random()
}
