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
use self::push::Book;
use crate::decode::rpde::{self, Reading};
use crate::feed::{Asked, FeedName, Generation, Order as ModifiedOrder, Outcome, Page, Seq, Ties, Transport};
use crate::schedule::{PollSettings, RetrySettings};
use crate::source::budget::Budget;
use crate::source::decoders::Decoders;
use crate::store::apply::{Applied, Delivery, Held, Origin, Purpose, Redactor, Verdict};
use crate::store::{Store, now};

/// What all endpoints share.
#[derive(Clone)]
pub struct Shared {
    /// The mirror.
    pub store: Store,
    /// Bytes in flight.
    pub budget: Budget,
    /// Pages decoded at once: more than there are cores would only hold memory.
    pub decoders: Decoders,
}

/// One feed at work.
pub struct Feed {
    /// What it shares with the others.
    pub shared: Shared,
    /// Its number in the store.
    pub id: i64,
    /// Its name.
    pub name: FeedName,
    /// Its own URL, where it begins.
    pub url: String,
    /// Its publisher, as it is asked for pages.
    pub source: Arc<PageSource>,
    /// Its rule for ties.
    pub ties: Ties,
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
    pub poll_anew: Notify,
    /// Has it polled as soon as its pace allows: something may have come to pass.
    pub poll_soon: Notify,
    /// Wakes its resync loop.
    pub resync_now: Notify,
    /// What is known of its push endpoints.
    pub book: Book,
    /// Ends its stream, which is opened anew: what was known of its place no longer holds.
    pub begun_anew: Notify,
    /// Wakes its look-back loop.
    pub look_back_now: Notify,
    /// When its loops must have shown a sign of life.
    pub pulses: [Pulse; 7],
}

const POLL_PULSE: usize = 0;
const RESYNC_PULSE: usize = 1;
const STREAM_PULSE: usize = 2;
const QUEUE_PULSE: usize = 3;
const WEBHOOK_PULSE: usize = 4;
const REGISTER_PULSE: usize = 5;
const LOOK_BACK_PULSE: usize = 6;

/// How a feed's records are read: the kind of those that carry none, and the order of `modified`.
pub fn reading(kind: Option<&str>, order: ModifiedOrder) -> Reading {
    Reading { kind: kind.map(Arc::from), order }
}

impl Feed {
    /// Has it look back at once, restarts included, until it has.
    pub async fn look_back_soon(&self) {
        self.told(self.shared.store.look_back(self.id).await);
        self.look_back_now.notify_one();
    }

    /// Whatever is handed to the store passes here, and leaves the feed's secrets behind; `data` stays as published.
    fn delivery(&self, generation: Generation, transport: Transport, mut page: Page, purpose: Purpose) -> Delivery {
        self.redact(&mut page);
        Delivery {
            feed: self.id,
            generation,
            transport,
            at: now(),
            stood: Seq::MAX,
            origin: Origin::default(),
            page,
            purpose,
            order: self.source.reading.order,
            ties: self.ties,
            follows: false,
            held: Held::default(),
            redactor: Redactor(Some(Arc::<PageSource>::clone(&self.source))),
        }
    }

    fn redact(&self, page: &mut Page) {
        for finding in &mut page.findings {
            finding.detail = self.source.requests.redact(&finding.detail);
        }
        for record in &mut page.unreadable {
            record.detail = self.source.requests.redact(&record.detail);
            record.shown = Some(self.source.requests.redact(&record.raw)).filter(|shown| *shown != record.raw);
        }
        page.license = page.license.take().map(|license| self.source.requests.redact(&license));
    }

    /// Reads a quarantined record again, off the async threads, and applies it.
    ///
    /// # Errors
    /// In words, when it still can't be read or applied.
    pub async fn read_again(&self, raw: &str, transport: Transport) -> Result<(), String> {
        let (page, reading) = (format!("{{\"items\":[{raw}]}}").into_bytes(), self.source.reading.clone());
        let read = self.shared.decoders.run(move |_| rpde::page(page, &reading)).await;
        let page = read
            .map_err(|panicked| panicked.to_string())?
            .map_err(|refused| refused.words(|text| self.source.requests.redact(text)))?;
        if let Some(record) = page.unreadable.first() {
            let detail = self.source.requests.redact(&record.detail);
            return Err(format!("it still can't be read: {}: {detail}", record.reason));
        }
        let generation = self.shared.store.feed(&self.name).await.map_err(|error| error.to_string())?.generation;
        let applied = self.shared.store.apply(self.delivery(generation, transport, page, Purpose::Again)).await;
        match applied {
            Ok(Ok(applied)) if applied.verdict == Verdict::Taken => Ok(()),
            Ok(Ok(_)) => Err("the feed has begun anew meanwhile".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the writer has stopped".to_owned()),
        }
    }
}

/// What a feed has done since the start.
#[derive(Debug, Default)]
pub struct Counts {
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
    outcomes: [[AtomicU64; Outcome::ALL.len()]; Transport::ALL.len()],
    /// Requests for pages, by what they got.
    polls: [AtomicU64; Asked::ALL.len()],
    /// The likely size of its next page, bytes once decompressed.
    pub expected: AtomicU64,
    /// What it waits for after a failure, and until when.
    waits: Mutex<Option<(String, Instant)>>,
}

impl Counts {
    /// Why it waits, and for how long; nothing once it no longer does.
    pub fn waits(&self, why: Option<(String, Duration)>) {
        let waits = why.map(|(why, wait)| (why, Instant::now() + wait));
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = waits;
    }

    /// Why it waits, and for how much longer.
    pub fn waits_for(&self) -> Option<(String, Duration)> {
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        waits.map(|(why, until)| (why, until.saturating_duration_since(Instant::now())))
    }

    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts what became of a delivery's records.
    fn applied(&self, transport: Transport, applied: &Applied) {
        Self::add(&self.records, applied.records());
        Self::add(&self.written, applied.written());
        Self::add(&self.quarantined, applied.quarantined);
        for (outcome, n) in applied.outcomes() {
            Self::add(&self.outcomes[transport as usize][outcome as usize], n);
        }
    }

    fn asked(&self, got: Asked) {
        Self::add(&self.polls[got as usize], 1);
    }

    /// Records since the start, by transport and by what became of them.
    pub fn outcomes(&self) -> Vec<(Transport, Outcome, u64)> {
        let count = |transport: Transport, outcome: Outcome| {
            let counter = &self.outcomes[transport as usize][outcome as usize];
            (transport, outcome, counter.load(Ordering::Relaxed))
        };
        let of = |transport: Transport| Outcome::ALL.iter().map(move |outcome| count(transport, *outcome));
        Transport::ALL.iter().copied().flat_map(of).collect()
    }

    /// Requests for pages since the start, by what they got.
    pub fn polls(&self) -> Vec<(Asked, u64)> {
        Asked::ALL.iter().map(|got| (*got, self.polls[*got as usize].load(Ordering::Relaxed))).collect()
    }
}

/// A loop's promise to show a sign of life; what a watchdog watches.
#[derive(Debug)]
pub struct Pulse {
    origin: Instant,
    due_ms: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { origin: Instant::now(), due_ms: AtomicU64::new(u64::MAX) }
    }
}

impl Pulse {
    /// The loop will be back within `time`, or it hangs.
    pub fn within(&self, time: Duration) {
        const SLACK: Duration = Duration::from_secs(120);
        let due = self.origin.elapsed() + time + SLACK;
        self.due_ms.store(u64::try_from(due.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The loop waits for something that may take forever, by design.
    pub fn rest(&self) {
        self.due_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether the loop has missed its promise.
    pub fn is_overdue(&self) -> bool {
        u128::from(self.due_ms.load(Ordering::Relaxed)) < self.origin.elapsed().as_millis()
    }
}

/// A random number from 0 to 1, for jitter.
fn chance() -> f64 {
    rand::random()
}
