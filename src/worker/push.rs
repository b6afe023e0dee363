//! A feed's push as its loops see it: which endpoints are up, what they delivered, what polls found, and what follows.
//!
//! The rules are [`crate::mode::push`]'s; here they get the clock, and their decisions are carried out: an endpoint's
//! trust and the feed's mode are stored, and a poll begins at once where push is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::FeedRuntime;
use crate::feed::{Generation, Health, ItemVersion, Mode, Page, PushTrust, Transport};
use crate::mode::push::{MissCounts, Moment, PollSummary, PushLedger, TrustChange};
use crate::source::budget::Reservation;
use crate::source::decoder_pool::DecoderPanic;
use crate::store::apply::{Applied, DeliveryVerdict, Provenance, Purpose, PushPosition, ReleaseOnCommit};
use crate::store::endpoints::PushTrustUpdate;
use crate::store::{Intake, StoreError, now};

/// The most items that are committed together.
pub(super) const BATCH_ITEMS: usize = 500;
/// The most bytes that are committed together; a single item may have more.
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// A batch of at least so many bytes is charged to the budget of bytes in flight, and waits for room in it; a smaller
/// one never waits.
const MIN_RESERVED_BYTES: usize = 64 << 10;
/// While a batch is being committed, the next one is filled for this long.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(10);
/// Batches handed to the store and not yet committed.
pub(super) const BATCHES: usize = 4;

/// What a feed's loops know of its push.
pub struct PushState {
    created: Instant,
    ledger: Mutex<PushLedger>,
    /// The mode that was stored last; locked while it is written, so that the newest mode is written last.
    recorded_mode: tokio::sync::Mutex<Mode>,
    level: watch::Sender<bool>,
    changed: Notify,
    /// Wakes the loop of a stream that was found to miss items.
    pub(super) stream_demoted: Notify,
    /// Posts that the webhook route rejected for a cause of the mirror's own, not the publisher's.
    pub rejected_posts: Arc<AtomicU64>,
    rejected_posts_counted: AtomicU64,
}

impl PushState {
    /// For a feed whose stored mode is `mode`.
    pub fn new(ledger: PushLedger, mode: Mode) -> Self {
        Self {
            created: Instant::now(),
            ledger: Mutex::new(ledger),
            recorded_mode: tokio::sync::Mutex::new(mode),
            level: watch::Sender::new(mode != Mode::Refresh),
            changed: Notify::new(),
            stream_demoted: Notify::new(),
            rejected_posts: Arc::default(),
            rejected_posts_counted: AtomicU64::new(0),
        }
    }

    /// Now, as the ledger counts time.
    pub fn moment(&self) -> Moment {
        self.created.elapsed()
    }

    /// Subscribes to whether the feed's end has been seen.
    pub fn subscribe_level(&self) -> watch::Receiver<bool> {
        self.level.subscribe()
    }

    fn ledger(&self) -> MutexGuard<'_, PushLedger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_rejected_posts(&self) {
        let count = self.rejected_posts.load(Ordering::Relaxed);
        if self.rejected_posts_counted.swap(count, Ordering::Relaxed) != count {
            let moment = self.moment();
            self.ledger().record_refusal(moment);
        }
    }
}

/// Items that a stream or queue delivered.
pub(super) struct PushBatch<'a> {
    pub(super) page: Page,
    pub(super) position: PushPosition,
    pub(super) url: Option<&'a str>,
    /// What the batch is charged already.
    pub(super) reserved: Option<Reservation>,
}

/// The store's answer to a batch that is not committed yet.
pub(super) type PendingBatch = oneshot::Receiver<Result<Applied, StoreError>>;

impl FeedRuntime {
    /// Waits until the feed's end has been seen; returns `false` when cancelled before.
    pub async fn wait_until_level(&self, cancel: &CancellationToken) -> bool {
        let mut level = self.push_state.subscribe_level();
        tokio::select! {
            () = cancel.cancelled() => false,
            seen = level.wait_for(|level| *level) => seen.is_ok(),
        }
    }

    /// Decodes pushed records, off the async threads where they are large.
    pub(super) async fn decode_push(
        &self,
        bytes: usize,
        decode: impl FnOnce() -> Page + Send + 'static,
    ) -> Result<Page, DecoderPanic> {
        if bytes < MIN_RESERVED_BYTES { Ok(decode()) } else { self.context.decoders.run(move |_| decode()).await }
    }

    /// Hands a batch of a stream or queue to the store, once the budget has room for it.
    pub(super) async fn submit_push_batch(
        &self,
        generation: Generation,
        transport: Transport,
        PushBatch { page, position, url, reserved }: PushBatch<'_>,
    ) -> PendingBatch {
        let bytes = page.text.len();
        let mask = |mask: String| self.source.requests.mask(&mask);
        let position = PushPosition {
            cursor: position.cursor.map(mask),
            event_id: position.event_id.map(mask),
            from_cursor: position.from_cursor.map(mask),
        };
        let provenance =
            Provenance { url: url.map(str::to_owned), event_id: position.event_id.clone(), ..Provenance::default() };
        let mut delivery = self.build_delivery(generation, transport, page, Purpose::Push(position));
        delivery.provenance = provenance;
        if bytes >= MIN_RESERVED_BYTES {
            delivery.release_on_commit =
                ReleaseOnCommit(Some(Box::new(Arc::new(self.room(bytes as u64, reserved).await))));
        }
        self.context.store.apply(delivery)
    }

    /// Reserves so many bytes in the budget, beginning with what is charged for them already.
    async fn room(&self, bytes: u64, reserved: Option<Reservation>) -> Reservation {
        let Some(mut reserved) = reserved else { return self.context.budget.reserve(bytes).await };
        reserved.shrink_to(bytes);
        // Where others need the budget, the batch goes on with what it has: it is committed soon, and gives back all of
        // it.
        let _ = reserved.grow_to(bytes).await;
        reserved
    }

    /// Hands a part of a posted body to the store; the webhook's router keeps the post's reservation.
    pub(super) fn submit_push(
        &self,
        generation: Generation,
        transport: Transport,
        page: Page,
        position: PushPosition,
    ) -> PendingBatch {
        self.context.store.apply(self.build_delivery(generation, transport, page, Purpose::Push(position)))
    }

    /// Records the commit of a batch; returns `false` when its generation is an old one, so that it was not written.
    pub(super) async fn record_push_commit(&self, transport: Transport, applied: Applied) -> bool {
        if applied.verdict != DeliveryVerdict::Committed {
            return false;
        }
        self.source.counts.count_applied(transport, &applied);
        let change =
            self.push_state.ledger().record_pushed_items(transport, self.push_state.moment(), &applied.item_versions);
        self.record_trust(change, "push delivers").await;
        true
    }

    /// An endpoint is connected, or listens. A poll at once finds the changes from before.
    pub(super) async fn mark_push_up(&self, transport: Transport, reason: Option<String>) {
        self.push_state.ledger().mark_up(transport, self.push_state.moment());
        self.record_endpoint_health(transport, Health::Ok, reason).await;
        self.record_trust(None, "push is up").await;
        self.push_state.changed.notify_one();
        self.poll_at_pace.notify_one();
    }

    /// An endpoint is lost: the feed is polled, beginning at once, until the endpoint is back.
    pub(super) async fn mark_push_down(&self, transport: Transport, health: Health, reason: String) {
        self.push_state.ledger().mark_down(transport);
        let reason = self.source.requests.redact(&reason);
        let why = format!("push-lost: {transport}: {reason}");
        self.record_endpoint_health(transport, health, Some(reason)).await;
        self.record_trust(None, &why).await;
    }

    /// Records that the webhook is registered with the publisher, or why that failed.
    pub(super) async fn record_registration(&self, failure: Option<String>) {
        let health = if failure.is_some() { Health::Retrying } else { Health::Ok };
        let failure = failure.map(|failure| self.source.requests.redact(&failure));
        self.record_endpoint_health(Transport::Webhook, health, failure).await;
    }

    async fn record_endpoint_health(&self, transport: Transport, health: Health, reason: Option<String>) {
        self.log_store_error(
            self.context.store.record_endpoint_health(self.id, now(), transport, health, reason).await,
        );
    }

    /// A poll that began at `began` came to the feed's end. Returns the mode that follows.
    pub(super) async fn record_level_poll(&self, began: Moment, found: Vec<ItemVersion>, why: &str) -> Mode {
        self.push_state.count_rejected_posts();
        let moment = self.push_state.moment();
        let changes = self.push_state.ledger().record_poll(moment, PollSummary { began, found });
        for change in changes {
            self.record_trust(Some(change), why).await;
        }
        let mode = self.push_state.ledger().mode();
        self.record_trust(None, if mode.is_push() { "push is proven, and was polled behind to the end" } else { why })
            .await;
        self.push_state.changed.notify_one();
        self.push_state.level.send_if_modified(|level| !std::mem::replace(level, true));
        self.push_state.ledger().mode()
    }

    /// Applies, until cancelled, what the passing of time decides, and records while the store takes nothing in.
    pub async fn run_push_clock(&self, cancel: &CancellationToken) {
        let mut intake = self.context.store.intake();
        loop {
            if *intake.borrow_and_update() != Intake::Open {
                let moment = self.push_state.moment();
                self.push_state.ledger().record_refusal(moment);
            }
            let changes = self.push_state.ledger().tick(self.push_state.moment());
            for change in changes {
                self.record_trust(Some(change), "push is proven").await;
            }
            // What an endpoint misses that is demoted already changes no trust, and is counted here.
            self.record_trust(None, "push is proven").await;
            let next = self.push_state.ledger().next_tick();
            let wait = next.map_or(Duration::MAX, |at| at.saturating_sub(self.push_state.moment()));
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait.min(MAX_SLEEP)) => {}
                () = self.push_state.changed.notified() => {}
                changed = intake.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Stores a change of trust and the mode that follows. A feed that push no longer keeps level is polled at once.
    async fn record_trust(&self, change: Option<TrustChange>, why: &str) {
        let mut recorded_mode = self.push_state.recorded_mode.lock().await;
        let (mode, best_trust, miss_counts) = {
            let mut ledger = self.push_state.ledger();
            (ledger.mode(), ledger.best_trust(), ledger.take_miss_counts())
        };
        for MissCounts { transport, missed, late } in miss_counts {
            self.log_store_error(self.context.store.count_missed(self.id, transport, missed, late).await);
        }
        let is_stream_demoted =
            |change: &TrustChange| change.push == PushTrust::Demoted && change.transport == Transport::Sse;
        let stream_demoted = change.as_ref().is_some_and(is_stream_demoted);
        let why = change.as_ref().map_or(why, |change| change.why.as_str()).to_owned();
        if let Some(TrustChange { transport, push, why }) = change {
            tracing::info!(feed = %self.name, %transport, %push, why, "push");
            let update = PushTrustUpdate { push, feed_push: best_trust, why };
            self.log_store_error(self.context.store.set_push_trust(self.id, now(), transport, update).await);
        }
        if stream_demoted {
            // A stream that is down is opened again anyway: only a waiting loop is woken.
            self.push_state.stream_demoted.notify_waiters();
        }
        // Before the run's first poll nothing new is known of a feed that was level before.
        if mode == Mode::Refresh || mode == *recorded_mode {
            return;
        }
        tracing::info!(feed = %self.name, before = %*recorded_mode, %mode, why, "mode");
        self.log_store_error(self.context.store.set_mode(self.id, now(), mode, &why).await);
        if recorded_mode.is_push() && !mode.is_push() {
            self.poll_at_pace.notify_one();
        }
        *recorded_mode = mode;
    }

    /// A failed write of health or events is no reason to stop; a stopped store is reported elsewhere.
    pub(super) fn log_store_error(&self, result: Result<(), StoreError>) {
        match result {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(feed = %self.name, %error, "could not be noted"),
        }
    }
}

/// Timers take no unlimited waits.
const MAX_SLEEP: Duration = Duration::from_secs(24 * 3_600);
