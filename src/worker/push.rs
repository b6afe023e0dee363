//! A feed's push endpoints as its loops see them: who is up, what came, what polls found, and what follows from it.
//!
//! The rules are [`crate::mode::push`]'s; here they get the clock, and what they say is written down: an endpoint's
//! standing, the feed's mode, the poll that begins at once where push is lost.

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

/// Items that are committed together at most.
pub(super) const BATCH_ITEMS: usize = 500;
/// Bytes of them at most, but for one item.
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// A batch of so many bytes counts towards the budget of bytes in flight, and waits for its place in it; a smaller one
/// never waits.
const MIN_RESERVED_BYTES: usize = 64 << 10;
/// While a batch is being committed, the next one is filled for this long.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(10);
/// Batches handed to the store and not yet committed.
pub(super) const BATCHES: usize = 4;

/// What a feed's loops know of its push.
pub struct PushState {
    created: Instant,
    ledger: Mutex<PushLedger>,
    /// The mode that was written down last; held while it is written, so that the last word is the newest.
    recorded_mode: tokio::sync::Mutex<Mode>,
    level: watch::Sender<bool>,
    changed: Notify,
    /// Wakes a stream that was found to miss items.
    pub(super) stream_demoted: Notify,
    /// Bodies that were turned away at the door because of ourselves.
    pub rejected_posts: Arc<AtomicU64>,
    rejected_posts_counted: AtomicU64,
}

impl PushState {
    /// For a feed that was in this mode before.
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

    /// Whether the feed's end has been seen, and when that changes.
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

/// What a stream or queue brought.
pub(super) struct PushBatch<'a> {
    pub(super) page: Page,
    pub(super) position: PushPosition,
    /// The stream's URL.
    pub(super) from: Option<&'a str>,
    /// What is charged for it already.
    pub(super) share: Option<Reservation>,
}

/// A batch on its way into the store.
pub(super) type PendingBatch = oneshot::Receiver<Result<Applied, StoreError>>;

impl FeedRuntime {
    /// Waits until the feed's end has been seen; `false` when cancelled before.
    pub async fn wait_until_level(&self, cancel: &CancellationToken) -> bool {
        let mut level = self.push_state.subscribe_level();
        tokio::select! {
            () = cancel.cancelled() => false,
            seen = level.wait_for(|level| *level) => seen.is_ok(),
        }
    }

    /// Reads what was pushed, off the async threads where it is large.
    pub(super) async fn decode_push(
        &self,
        bytes: usize,
        read: impl FnOnce() -> Page + Send + 'static,
    ) -> Result<Page, DecoderPanic> {
        if bytes < MIN_RESERVED_BYTES { Ok(read()) } else { self.context.decoders.run(move |_| read()).await }
    }

    /// Hands a batch that a stream or queue brought to the store, once there is room for it.
    pub(super) async fn submit_push_batch(
        &self,
        generation: Generation,
        transport: Transport,
        PushBatch { page, position, from, share }: PushBatch<'_>,
    ) -> PendingBatch {
        let bytes = page.text.len();
        let place = |place: String| self.source.requests.mask(&place);
        let position = PushPosition {
            cursor: position.cursor.map(place),
            event_id: position.event_id.map(place),
            from_cursor: position.from_cursor.map(place),
        };
        let origin =
            Provenance { url: from.map(str::to_owned), event_id: position.event_id.clone(), ..Provenance::default() };
        let mut delivery = self.build_delivery(generation, transport, page, Purpose::Push(position));
        delivery.provenance = origin;
        if bytes >= MIN_RESERVED_BYTES {
            delivery.release_on_commit =
                ReleaseOnCommit(Some(Box::new(Arc::new(self.room(bytes as u64, share).await))));
        }
        self.context.store.apply(delivery)
    }

    /// A place in the budget for so many bytes, which begins with what is charged for them already.
    async fn room(&self, bytes: u64, share: Option<Reservation>) -> Reservation {
        let Some(mut share) = share else { return self.context.budget.reserve(bytes).await };
        share.shrink_to(bytes);
        // Where others need what it holds it goes on with that: soon it is committed, and gives back all of it.
        let _ = share.grow_to(bytes).await;
        share
    }

    /// Hands what was posted to the store; its room is held by whoever took the post in.
    pub(super) fn submit_push(
        &self,
        generation: Generation,
        transport: Transport,
        page: Page,
        position: PushPosition,
    ) -> PendingBatch {
        self.context.store.apply(self.build_delivery(generation, transport, page, Purpose::Push(position)))
    }

    /// Takes in what became of a batch; `false` when it was read under an older generation, and not written.
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

    /// An endpoint is connected, or listens. What happened before is found by a poll at once.
    pub(super) async fn mark_push_up(&self, transport: Transport, reason: Option<String>) {
        self.push_state.ledger().mark_up(transport, self.push_state.moment());
        self.record_endpoint_health(transport, Health::Ok, reason).await;
        self.record_trust(None, "push is up").await;
        self.push_state.changed.notify_one();
        self.poll_at_pace.notify_one();
    }

    /// An endpoint is lost: the feed is polled at once, until it is back.
    pub(super) async fn mark_push_down(&self, transport: Transport, health: Health, reason: String) {
        self.push_state.ledger().mark_down(transport);
        let reason = self.source.requests.redact(&reason);
        let why = format!("push-lost: {transport}: {reason}");
        self.record_endpoint_health(transport, health, Some(reason)).await;
        self.record_trust(None, &why).await;
    }

    /// The publisher was told where to post, or could not be, and why.
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

    /// A poll that began at `began` came to the feed's end; the mode that follows.
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

    /// What time decides, until cancelled; and what keeps us from taking anything in.
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
            // What was missed by one that is demoted already changes no standing.
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

    /// Writes down a change of standing and the mode that follows. A feed that push kept level and no longer does is
    /// polled at once.
    async fn record_trust(&self, change: Option<TrustChange>, why: &str) {
        let mut told = self.push_state.recorded_mode.lock().await;
        let (mode, of_feed, tallies) = {
            let mut ledger = self.push_state.ledger();
            (ledger.mode(), ledger.best_trust(), ledger.take_miss_counts())
        };
        for MissCounts { transport, missed, late } in tallies {
            self.log_store_error(self.context.store.count_missed(self.id, transport, missed, late).await);
        }
        let wanting = |change: &TrustChange| change.push == PushTrust::Demoted && change.transport == Transport::Sse;
        let stream_demoted = change.as_ref().is_some_and(wanting);
        let why = change.as_ref().map_or(why, |change| change.why.as_str()).to_owned();
        if let Some(TrustChange { transport, push, why }) = change {
            tracing::info!(feed = %self.name, %transport, %push, why, "push");
            let standing = PushTrustUpdate { push, feed_push: of_feed, why };
            self.log_store_error(self.context.store.set_push_trust(self.id, now(), transport, standing).await);
        }
        if stream_demoted {
            // One that is down already is opened anew anyway: it is not told later.
            self.push_state.stream_demoted.notify_waiters();
        }
        // Before the first poll of a run nothing new is known of a feed that was level before.
        if mode == Mode::Refresh || mode == *told {
            return;
        }
        tracing::info!(feed = %self.name, before = %*told, %mode, why, "mode");
        self.log_store_error(self.context.store.set_mode(self.id, now(), mode, &why).await);
        if told.is_push() && !mode.is_push() {
            self.poll_at_pace.notify_one();
        }
        *told = mode;
    }

    /// What could not be noted is no reason to stop; a store that has stopped is told elsewhere.
    pub(super) fn log_store_error(&self, result: Result<(), StoreError>) {
        match result {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(feed = %self.name, %error, "could not be noted"),
        }
    }
}

/// Timers take no endless waits.
const MAX_SLEEP: Duration = Duration::from_secs(24 * 3_600);
