//! A feed's push endpoints as its loops see them: who is up, what came, what polls found, and what follows from it.
//!
//! The rules are [`crate::mode::push`]'s; here they get the clock, and what they say is written down: an endpoint's
//! standing, the feed's mode, the poll that begins at once where push is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Feed;
use crate::feed::{Brought, Generation, Health, Mode, Page, Push, Transport};
use crate::mode::push::{Change, Ledger, Moment, Polled, Tally};
use crate::source::budget::Reservation;
use crate::source::decoders::Panicked;
use crate::store::apply::{Applied, Held, Origin, Position, Purpose, Verdict};
use crate::store::endpoints::Standing;
use crate::store::{Intake, StoreError, now};

/// Items that are committed together at most.
pub(super) const BATCH_ITEMS: usize = 500;
/// Bytes of them at most, but for one item.
pub(super) const BATCH_BYTES: usize = 4 << 20;
/// A batch of so many bytes counts towards the budget of bytes in flight, and waits for its place in it; a smaller one
/// never waits.
const COUNTED_BYTES: usize = 64 << 10;
/// While a batch is being committed, the next one is filled for this long.
pub(super) const BATCH_TIME: Duration = Duration::from_millis(10);
/// Batches handed to the store and not yet committed.
pub(super) const BATCHES: usize = 4;

/// What a feed's loops know of its push.
pub struct Book {
    origin: Instant,
    ledger: Mutex<Ledger>,
    /// The mode that was written down last; held while it is written, so that the last word is the newest.
    told: tokio::sync::Mutex<Mode>,
    level: watch::Sender<bool>,
    changed: Notify,
    /// Wakes a stream that was found to miss items.
    pub(super) found_wanting: Notify,
    /// Bodies that were turned away at the door because of ourselves.
    pub turned_away: Arc<AtomicU64>,
    turned_away_before: AtomicU64,
}

impl Book {
    /// For a feed that was in this mode before.
    pub fn new(ledger: Ledger, mode: Mode) -> Self {
        Self {
            origin: Instant::now(),
            ledger: Mutex::new(ledger),
            told: tokio::sync::Mutex::new(mode),
            level: watch::Sender::new(mode != Mode::Refresh),
            changed: Notify::new(),
            found_wanting: Notify::new(),
            turned_away: Arc::default(),
            turned_away_before: AtomicU64::new(0),
        }
    }

    /// Now, as the ledger counts time.
    pub fn moment(&self) -> Moment {
        self.origin.elapsed()
    }

    /// Whether the feed's end has been seen, and when that changes.
    pub fn level(&self) -> watch::Receiver<bool> {
        self.level.subscribe()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_turned_away(&self) {
        let count = self.turned_away.load(Ordering::Relaxed);
        if self.turned_away_before.swap(count, Ordering::Relaxed) != count {
            let moment = self.moment();
            self.ledger().refused(moment);
        }
    }
}

/// What a stream or queue brought.
pub(super) struct PushBatch<'a> {
    pub(super) page: Page,
    pub(super) position: Position,
    /// The stream's URL.
    pub(super) from: Option<&'a str>,
    /// What is charged for it already.
    pub(super) share: Option<Reservation>,
}

/// A batch on its way into the store.
pub(super) type Pending = oneshot::Receiver<Result<Applied, StoreError>>;

impl Feed {
    /// Waits until the feed's end has been seen; `false` when cancelled before.
    pub async fn wait_until_level(&self, cancel: &CancellationToken) -> bool {
        let mut level = self.book.level();
        tokio::select! {
            () = cancel.cancelled() => false,
            seen = level.wait_for(|level| *level) => seen.is_ok(),
        }
    }

    /// Reads what was pushed, off the async threads where it is large.
    pub(super) async fn read(
        &self,
        bytes: usize,
        read: impl FnOnce() -> Page + Send + 'static,
    ) -> Result<Page, Panicked> {
        if bytes < COUNTED_BYTES { Ok(read()) } else { self.shared.decoders.run(move |_| read()).await }
    }

    /// Hands a batch that a stream or queue brought to the store, once there is room for it.
    pub(super) async fn push_batch(
        &self,
        generation: Generation,
        transport: Transport,
        PushBatch { page, position, from, share }: PushBatch<'_>,
    ) -> Pending {
        let bytes = page.text.len();
        let place = |place: String| self.source.requests.mask(&place);
        let position = Position {
            cursor: position.cursor.map(place),
            event_id: position.event_id.map(place),
            after: position.after.map(place),
        };
        let origin = Origin { url: from.map(str::to_owned), event_id: position.event_id.clone(), ..Origin::default() };
        let mut delivery = self.delivery(generation, transport, page, Purpose::Push(position));
        delivery.origin = origin;
        if bytes >= COUNTED_BYTES {
            delivery.held = Held(Some(Box::new(Arc::new(self.room(bytes as u64, share).await))));
        }
        self.shared.store.apply(delivery)
    }

    /// A place in the budget for so many bytes, which begins with what is charged for them already.
    async fn room(&self, bytes: u64, share: Option<Reservation>) -> Reservation {
        let Some(mut share) = share else { return self.shared.budget.reserve(bytes).await };
        share.shrink_to(bytes);
        // Where others need what it holds it goes on with that: soon it is committed, and gives back all of it.
        let _ = share.grow_to(bytes).await;
        share
    }

    /// Hands what was posted to the store; its room is held by whoever took the post in.
    pub(super) fn push(&self, generation: Generation, transport: Transport, page: Page, position: Position) -> Pending {
        self.shared.store.apply(self.delivery(generation, transport, page, Purpose::Push(position)))
    }

    /// Takes in what became of a batch; `false` when it was read under an older generation, and not written.
    pub(super) async fn committed(&self, transport: Transport, applied: Applied) -> bool {
        if applied.verdict != Verdict::Taken {
            return false;
        }
        self.source.counts.applied(transport, &applied);
        let change = self.book.ledger().delivered(transport, self.book.moment(), &applied.brought);
        self.settle(change, "push delivers").await;
        true
    }

    /// An endpoint is connected, or listens. What happened before is found by a poll at once.
    pub(super) async fn push_up(&self, transport: Transport, reason: Option<String>) {
        self.book.ledger().up(transport, self.book.moment());
        self.note_endpoint(transport, Health::Ok, reason).await;
        self.settle(None, "push is up").await;
        self.book.changed.notify_one();
        self.poll_soon.notify_one();
    }

    /// An endpoint is lost: the feed is polled at once, until it is back.
    pub(super) async fn push_down(&self, transport: Transport, health: Health, reason: String) {
        self.book.ledger().down(transport);
        let reason = self.source.requests.redact(&reason);
        let why = format!("push-lost: {transport}: {reason}");
        self.note_endpoint(transport, health, Some(reason)).await;
        self.settle(None, &why).await;
    }

    /// The publisher was told where to post, or could not be, and why.
    pub(super) async fn registered(&self, failure: Option<String>) {
        let health = if failure.is_some() { Health::Retrying } else { Health::Ok };
        let failure = failure.map(|failure| self.source.requests.redact(&failure));
        self.note_endpoint(Transport::Webhook, health, failure).await;
    }

    async fn note_endpoint(&self, transport: Transport, health: Health, reason: Option<String>) {
        self.told(self.shared.store.note_endpoint(self.id, now(), transport, health, reason).await);
    }

    /// A poll that began at `began` came to the feed's end; the mode that follows.
    pub(super) async fn polled_level(&self, began: Moment, found: Vec<Brought>, why: &str) -> Mode {
        self.book.count_turned_away();
        let moment = self.book.moment();
        let changes = self.book.ledger().polled(moment, Polled { began, found });
        for change in changes {
            self.settle(Some(change), why).await;
        }
        let mode = self.book.ledger().mode();
        self.settle(None, if mode.is_push() { "push is proven, and was polled behind to the end" } else { why }).await;
        self.book.changed.notify_one();
        self.book.level.send_if_modified(|level| !std::mem::replace(level, true));
        self.book.ledger().mode()
    }

    /// What time decides, until cancelled; and what keeps us from taking anything in.
    pub async fn keep_book(&self, cancel: &CancellationToken) {
        let mut intake = self.shared.store.intake();
        loop {
            if *intake.borrow_and_update() != Intake::Open {
                let moment = self.book.moment();
                self.book.ledger().refused(moment);
            }
            let changes = self.book.ledger().tick(self.book.moment());
            for change in changes {
                self.settle(Some(change), "push is proven").await;
            }
            // What was missed by one that is demoted already changes no standing.
            self.settle(None, "push is proven").await;
            let next = self.book.ledger().next_tick();
            let wait = next.map_or(Duration::MAX, |at| at.saturating_sub(self.book.moment()));
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(wait.min(LONGEST_NAP)) => {}
                () = self.book.changed.notified() => {}
                changed = intake.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Writes down a change of standing and the mode that follows. A feed that push kept level and no longer does is
    /// polled at once.
    async fn settle(&self, change: Option<Change>, why: &str) {
        let mut told = self.book.told.lock().await;
        let (mode, of_feed, tallies) = {
            let mut ledger = self.book.ledger();
            (ledger.mode(), ledger.push(), ledger.tally())
        };
        for Tally { transport, missed, late } in tallies {
            self.told(self.shared.store.count_missed(self.id, transport, missed, late).await);
        }
        let wanting = |change: &Change| change.push == Push::Demoted && change.transport == Transport::Sse;
        let stream_demoted = change.as_ref().is_some_and(wanting);
        let why = change.as_ref().map_or(why, |change| change.why.as_str()).to_owned();
        if let Some(Change { transport, push, why }) = change {
            tracing::info!(feed = %self.name, %transport, %push, why, "push");
            let standing = Standing { push, of_feed, why };
            self.told(self.shared.store.set_standing(self.id, now(), transport, standing).await);
        }
        if stream_demoted {
            // One that is down already is opened anew anyway: it is not told later.
            self.book.found_wanting.notify_waiters();
        }
        // Before the first poll of a run nothing new is known of a feed that was level before.
        if mode == Mode::Refresh || mode == *told {
            return;
        }
        tracing::info!(feed = %self.name, before = %*told, %mode, why, "mode");
        self.told(self.shared.store.set_mode(self.id, now(), mode, &why).await);
        if told.is_push() && !mode.is_push() {
            self.poll_soon.notify_one();
        }
        *told = mode;
    }

    /// What could not be noted is no reason to stop; a store that has stopped is told elsewhere.
    pub(super) fn told(&self, result: Result<(), StoreError>) {
        match result {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(feed = %self.name, %error, "could not be noted"),
        }
    }
}

/// Timers take no endless waits.
const LONGEST_NAP: Duration = Duration::from_secs(24 * 3_600);
