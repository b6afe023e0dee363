//! One endpoint's loop: receive → decode → apply → outcome. The only place where source, decode and store meet.
//!
//! Guarantees: what a page says is handed to the store with the cursor it was asked with; a walk stops at the first
//! page that could not be had, and says why; every wait also listens for cancellation.

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

/// What all endpoints share.
#[derive(Clone)]
pub struct WorkerContext {
    /// The mirror.
    pub store: Store,
    /// Bytes in flight.
    pub budget: MemoryBudget,
    /// Pages decoded at once: more than there are cores would only hold memory.
    pub decoders: DecoderPool,
}

/// One feed at work.
pub struct FeedRuntime {
    /// What it shares with the others.
    pub context: WorkerContext,
    /// Its number in the store.
    pub id: i64,
    /// Its name.
    pub name: FeedName,
    /// Its own URL, where it begins.
    pub url: String,
    /// Its publisher, as it is asked for pages.
    pub source: Arc<PageSource>,
    /// Its rule for ties.
    pub ties: TiePolicy,
    /// How often it is asked.
    pub poll: PollSettings,
    /// How often it is asked while push keeps it level.
    pub audit: Duration,
    /// How its errors back off.
    pub retry: RetrySettings,
    /// How long its publisher remembers deletions.
    pub retention: Duration,
    /// How often it is read anew unasked.
    pub resync_every: Option<Duration>,
    /// The share of its live items that a sweep may remove unasked.
    pub max_sweep: f64,
    /// How long its rows are kept once it is gone.
    pub purge_gone_after: Option<Duration>,
    /// The longest a single request may take.
    pub page_timeout: Duration,
    /// Whether its end has been seen and polling hasn't failed since.
    pub level: watch::Sender<bool>,
    /// Has it polled now, whatever the wait: the operator's order alone.
    pub poll_now: Notify,
    /// Has it polled as soon as its publisher may be asked: something was put in order.
    pub poll_when_allowed: Notify,
    /// Has it polled as soon as its pace allows: something may have come to pass.
    pub poll_at_pace: Notify,
    /// Wakes its resync loop.
    pub resync_now: Notify,
    /// What is known of its push endpoints.
    pub push_state: PushState,
    /// Ends its stream, which is opened anew: what was known of its place no longer holds.
    pub reopen_stream: Notify,
    /// Wakes its look-back loop.
    pub look_back_now: Notify,
    /// When its loops must have shown a sign of life.
    pub heartbeats: [Heartbeat; 7],
}

const POLL_HEARTBEAT: usize = 0;
const RESYNC_HEARTBEAT: usize = 1;
const STREAM_HEARTBEAT: usize = 2;
const QUEUE_HEARTBEAT: usize = 3;
const WEBHOOK_HEARTBEAT: usize = 4;
const REGISTER_HEARTBEAT: usize = 5;
const LOOK_BACK_HEARTBEAT: usize = 6;

/// How a feed's records are read: the kind of those that carry none, and the order of `modified`.
pub fn decode_options(kind: Option<&str>, order: ModifiedOrder) -> DecodeSettings {
    DecodeSettings { kind: kind.map(Arc::from), order }
}

impl FeedRuntime {
    /// Has it look back at once, restarts included, until it has.
    pub async fn request_look_back(&self) {
        self.log_store_error(self.context.store.request_look_back(self.id).await);
        self.look_back_now.notify_one();
    }

    /// Whatever is handed to the store passes here, and leaves the feed's secrets behind; `data` stays as published.
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
            record.redacted = Some(self.source.requests.redact(&record.raw)).filter(|shown| *shown != record.raw);
        }
        page.license = page.license.take().map(|license| self.source.requests.redact(&license));
    }

    /// Reads a quarantined record again, off the async threads, and applies it.
    ///
    /// # Errors
    /// In words, when it still can't be read or applied.
    pub async fn retry_quarantined(&self, raw: &str, transport: Transport) -> Result<(), String> {
        let (page, decode_options) =
            (format!("{{\"items\":[{raw}]}}").into_bytes(), self.source.decode_options.clone());
        let read = self.context.decoders.run(move |_| rpde::page(page, &decode_options)).await;
        let page = read
            .map_err(|panicked| panicked.to_string())?
            .map_err(|refused| refused.reason(|text| self.source.requests.redact(text)))?;
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

/// What a feed has done since the start.
#[derive(Debug, Default)]
pub struct FeedCounters {
    /// Pages committed.
    pub pages: AtomicU64,
    /// Bytes over the wire.
    pub bytes: AtomicU64,
    /// Records read.
    pub records: AtomicU64,
    /// Items written.
    pub written: AtomicU64,
    /// Records quarantined.
    pub quarantined: AtomicU64,
    /// Records, by transport and by what became of them.
    outcomes: [[AtomicU64; RecordOutcome::ALL.len()]; Transport::ALL.len()],
    /// Requests for pages, by what they got.
    polls: [AtomicU64; RequestOutcome::ALL.len()],
    /// The likely size of its next page, bytes once decompressed.
    pub expected_page_bytes: AtomicU64,
    /// What it waits for after a failure, and until when.
    failure_wait: Mutex<Option<(String, Instant)>>,
}

impl FeedCounters {
    /// Why it waits, and for how long; nothing once it no longer does.
    pub fn set_failure_wait(&self, why: Option<(String, Duration)>) {
        let waits = why.map(|(why, wait)| (why, Instant::now() + wait));
        *self.failure_wait.lock().unwrap_or_else(PoisonError::into_inner) = waits;
    }

    /// Why it waits, and for how much longer.
    pub fn failure_wait(&self) -> Option<(String, Duration)> {
        let waits = self.failure_wait.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.map(|(why, until)| (why, until.saturating_duration_since(Instant::now())))
    }

    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts what became of a delivery's records.
    fn count_applied(&self, transport: Transport, applied: &Applied) {
        Self::add(&self.records, applied.record_count());
        Self::add(&self.written, applied.written());
        Self::add(&self.quarantined, applied.quarantined);
        for (outcome, n) in applied.outcomes() {
            Self::add(&self.outcomes[transport as usize][outcome as usize], n);
        }
    }

    fn count_request(&self, got: RequestOutcome) {
        Self::add(&self.polls[got as usize], 1);
    }

    /// Records since the start, by transport and by what became of them.
    pub fn outcomes(&self) -> Vec<(Transport, RecordOutcome, u64)> {
        let count = |transport: Transport, outcome: RecordOutcome| {
            let counter = &self.outcomes[transport as usize][outcome as usize];
            (transport, outcome, counter.load(Ordering::Relaxed))
        };
        let of = |transport: Transport| RecordOutcome::ALL.iter().map(move |outcome| count(transport, *outcome));
        Transport::ALL.iter().copied().flat_map(of).collect()
    }

    /// Requests for pages since the start, by what they got.
    pub fn polls(&self) -> Vec<(RequestOutcome, u64)> {
        RequestOutcome::ALL.iter().map(|got| (*got, self.polls[*got as usize].load(Ordering::Relaxed))).collect()
    }
}

/// A loop's promise to show a sign of life; what a watchdog watches.
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
    /// The loop will be back within `time`, or it hangs.
    pub fn expect_within(&self, time: Duration) {
        const SLACK: Duration = Duration::from_secs(120);
        let due = self.created.elapsed() + time + SLACK;
        self.due_ms.store(u64::try_from(due.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The loop waits for something that may take forever, by design.
    pub fn suspend(&self) {
        self.due_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether the loop has missed its promise.
    pub fn is_overdue(&self) -> bool {
        u128::from(self.due_ms.load(Ordering::Relaxed)) < self.created.elapsed().as_millis()
    }
}

/// A random number from 0 to 1, for jitter.
fn jitter() -> f64 {
    rand::random()
}
