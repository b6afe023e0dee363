//! One feed: its loops started, watched, restarted and stopped, and its orders carried out one after the other.
//!
//! Guarantees: only this feed waits when its publisher, its loops or the store keep it waiting; whatever it does ends within
//! [`STOP_GRACE`] of its cancellation; an order that was taken is carried out even if nobody waits for the answer any more.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::ConfiguredFeed;
use super::control::{ControlError, Order, OrderAnswer};
use super::endpoints::{self, PushEndpoints};
use super::fleet::{SupervisorContext, build_feed};
use crate::feed::{FeedName, Health, Mode};
use crate::source::webhook::{RouteState, WebhookRoute};
use crate::store::feeds::{HealthNote, StoredFeed};
use crate::store::{Intake, StoreError, now};
use crate::worker::look_back::LookBackLoop;
use crate::worker::poll::PollLoop;
use crate::worker::resync::ResyncLoop;
use crate::worker::{FeedCounters, FeedRuntime};

/// How often the loops' signs of life are looked at.
const HEARTBEAT_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The longest wait before a feed is started again after a panic.
const LONGEST_RESTART: Duration = Duration::from_secs(300);
/// A feed that ran this long before it panicked is started again as if for the first time.
const SOUND_RUN: Duration = Duration::from_secs(600);
/// What the loops get, once they are told to end, to hand over what they have; what they still wait for then is let go.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// Work that is longer under way with nothing committed blames the store, not the loops that wait for it.
const STORE_SLOW: Duration = Duration::from_secs(5);
/// What the loops get after the store has kept them waiting.
const RECOVERS: Duration = Duration::from_secs(120);

pub(super) const PAUSED: &str = "the feed is paused";
pub(super) const PURGED: &str = "the feed is purged";

/// Who waits for an order's answer.
pub(super) type OrderReply = oneshot::Sender<Result<OrderAnswer, ControlError>>;

/// What a unit is told.
pub(super) enum FeedCommand {
    /// An operator's order.
    Order(Order, OrderReply),
    /// Secret files may have changed.
    ReloadSecrets,
    /// The store has purged the feed, or resumed it after that.
    Reconcile,
}

/// A feed, configured or only stored.
pub(super) struct FeedSupervisor {
    pub(super) context: SupervisorContext,
    pub(super) name: FeedName,
    /// None of a feed that is only stored.
    pub(super) configured: Option<ConfiguredFeed>,
    pub(super) counts: Arc<FeedCounters>,
    pub(super) running: Option<RunningLoops>,
    loops: JoinSet<()>,
    /// What an order goes on with after it was answered for.
    pub(super) background_tasks: JoinSet<()>,
    panics: u32,
    store_slow: Option<Instant>,
    /// Dropped once the feed has been started for the first time, or could not be.
    pub(super) started_signal: Option<oneshot::Sender<()>>,
}

/// A feed's loops.
pub(super) struct RunningLoops {
    pub(super) feed: Arc<FeedRuntime>,
    webhook_route: Option<WebhookRoute>,
    cancel: CancellationToken,
    since: Instant,
}

impl FeedSupervisor {
    /// With nothing running yet.
    pub(super) fn new(
        common: SupervisorContext,
        name: FeedName,
        configured: Option<ConfiguredFeed>,
        counts: Arc<FeedCounters>,
    ) -> Self {
        let (loops, errands) = (JoinSet::new(), JoinSet::new());
        Self {
            context: common,
            name,
            configured,
            counts,
            running: None,
            loops,
            background_tasks: errands,
            panics: 0,
            store_slow: None,
            started_signal: None,
        }
    }

    /// Starts the feed's loops and does what it is told, until cancelled.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<FeedCommand>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.handle_commands(&mut commands) => {}
        }
        self.stop().await;
    }

    async fn handle_commands(&mut self, commands: &mut mpsc::Receiver<FeedCommand>) {
        self.reconcile().await;
        self.started_signal = None;
        let mut checkup = tokio::time::interval(HEARTBEAT_CHECK_INTERVAL);
        checkup.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(ended) = self.loops.join_next() => self.handle_loops_end(ended).await,
                command = commands.recv() => match command {
                    Some(command) => self.execute_command(command).await,
                    None => return,
                },
                Some(_) = self.background_tasks.join_next() => {}
                _ = checkup.tick() => self.check_heartbeats(),
            }
        }
    }

    pub(super) async fn execute_command(&mut self, command: FeedCommand) {
        match command {
            FeedCommand::Order(Order::Forget { item, undo: false }, reply) => self.forget(item, reply).await,
            FeedCommand::Order(order, reply) => {
                let words = order.verb();
                let answer = self.execute_order(order).await;
                if let (Err(error), true) = (&answer, reply.is_closed()) {
                    tracing::error!(feed = %self.name, order = words, %error, "an order that was accepted can't be carried out");
                }
                // Whoever asked may be gone; what was asked for is done all the same.
                drop(reply.send(answer));
            }
            FeedCommand::ReloadSecrets => self.reload_secrets(),
            FeedCommand::Reconcile => self.reconcile().await,
        }
    }

    /// Starts or stops the loops by what is stored.
    async fn reconcile(&mut self) {
        match self.context.worker_context.store.feed(&self.name).await {
            Ok(stored) if stored.paused => {
                self.refuse_posts(refusal_reason(&stored));
                self.stop().await;
                self.start(&stored, Duration::ZERO).await;
            }
            Ok(stored) => self.start(&stored, Duration::ZERO).await,
            Err(error) => log_store_error(&self.name, Err(error)),
        }
    }

    /// Starts the loops after `delay`, unless the feed is paused, can't run as it is configured, or runs.
    pub(super) async fn start(&mut self, stored: &StoredFeed, delay: Duration) {
        let Some(ConfiguredFeed::Ready(settings)) = &self.configured else { return };
        let store = &self.context.worker_context.store;
        let transports = settings.push_transports();
        let endpoints = match store.set_push_endpoints(stored.id, now(), transports).await {
            Ok(endpoints) => endpoints,
            Err(error) => return log_store_error(&self.name, Err(error)),
        };
        if stored.paused {
            return self.refuse_posts(refusal_reason(stored));
        }
        if self.running.is_some() {
            return;
        }
        let book = endpoints::restore_push_state(settings, stored, &endpoints);
        let SupervisorContext { worker_context: shared, clients, host_limiter: turns, .. } = &self.context;
        let made = PushEndpoints::new(clients, settings, stored, &book).and_then(|(endpoints, door)| {
            let feed = build_feed(shared, clients, turns, settings, stored.id, Arc::clone(&self.counts), book)?;
            Ok((Arc::new(feed), endpoints, door))
        });
        let (feed, endpoints, door) = match made {
            Ok(made) => made,
            Err(failure) => {
                tracing::error!(feed = %self.name, %failure, "the feed can't run");
                let reason = Some(failure.to_string());
                let note = HealthNote { health: Health::Failed, reason, failures: stored.failures, next_poll_at: None };
                return log_store_error(&self.name, store.record_health(stored.id, now(), note).await);
            }
        };
        let cancel = CancellationToken::new();
        if let Some(door) = &door {
            self.context.inbox.register(self.name.as_str(), door.clone());
        }
        self.context.running_feeds.insert(&feed);
        self.loops.spawn(run_loops(Arc::clone(&feed), endpoints, cancel.clone(), stored.clone(), delay));
        self.running = Some(RunningLoops { feed, webhook_route: door, cancel, since: Instant::now() });
    }

    /// Ends the loops; what they have handed to the store is committed.
    pub(super) async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.context.running_feeds.remove(&self.name);
        running.cancel.cancel();
        if tokio::time::timeout(2 * STOP_GRACE, self.loops.join_next()).await.is_err() {
            self.loops.shutdown().await;
        }
    }

    /// Turns away what is posted to the feed, and says why.
    pub(super) fn refuse_posts(&self, why: &'static str) {
        let Some(ConfiguredFeed::Ready(settings)) = &self.configured else { return };
        let Some(webhook) = &settings.webhook else { return };
        match endpoints::closed_route(webhook, RouteState::Closed(why)) {
            Ok(door) => self.context.inbox.register(self.name.as_str(), door),
            Err(failure) => {
                tracing::warn!(feed = %self.name, %failure, "its webhook knows no secret any more, and answers 404");
                self.context.inbox.remove(self.name.as_str());
            }
        }
    }

    fn reload_secrets(&self) {
        let (Some(running), Some(ConfiguredFeed::Ready(settings))) = (&self.running, &self.configured) else { return };
        let stay = |failure| {
            tracing::warn!(feed = %self.name, %failure, "secrets can't be read again: the old ones stay");
        };
        if let (Some(webhook), Some(door)) = (&settings.webhook, &running.webhook_route) {
            match endpoints::read_webhook_secrets(webhook) {
                Ok(secrets) => {
                    self.context.inbox.register(self.name.as_str(), WebhookRoute { secrets, ..door.clone() })
                }
                Err(failure) => stay(failure),
            }
        }
        let before = running.feed.source.requests.secret_changes();
        match running.feed.source.requests.read_secrets() {
            Ok(changes) if changes != before => running.feed.poll_when_allowed.notify_one(),
            Ok(_) => {}
            Err(failure) => stay(failure),
        }
    }

    /// The loops have ended that nobody stopped: one panicked, or hung and was aborted.
    async fn handle_loops_end(&mut self, ended: Result<(), JoinError>) {
        let Some(running) = self.running.take() else { return };
        self.context.running_feeds.remove(&self.name);
        let why = match ended {
            Ok(()) => "its loops ended unasked".to_owned(),
            Err(error) if error.is_panic() => format!("it panicked: {}", words(error.into_panic().as_ref())),
            Err(_) => "it hung: its loops showed no sign of life".to_owned(),
        };
        self.panics = if running.since.elapsed() > SOUND_RUN { 0 } else { self.panics + 1 };
        let delay = Duration::from_secs(1 << self.panics.min(9)).min(LONGEST_RESTART);
        tracing::error!(feed = %self.name, why, delay_s = delay.as_secs(), "a feed fell over and is started again");
        let reason = format!("restarted: {why}");
        let note =
            HealthNote { health: Health::Retrying, reason: Some(reason.clone()), failures: 1, next_poll_at: None };
        let (store, id) = (&self.context.worker_context.store, running.feed.id);
        log_store_error(&self.name, store.record_event(Some(id), now(), "restarted", &reason).await);
        log_store_error(&self.name, store.record_health(id, now(), note).await);
        match store.feed(&self.name).await {
            Ok(stored) => self.start(&stored, delay).await,
            Err(error) => log_store_error(&self.name, Err(error)),
        }
    }

    /// A loop that waits for the store hangs as little as one whose publisher is slow: while the store keeps everybody
    /// waiting, and for a while after, none is judged.
    fn check_heartbeats(&mut self) {
        let store = &self.context.worker_context.store;
        if *store.intake().borrow() != Intake::Open || store.busy_for() > STORE_SLOW {
            self.store_slow = Some(Instant::now());
        }
        if self.store_slow.is_some_and(|at| at.elapsed() < RECOVERS) {
            return;
        }
        let overdue = |running: &RunningLoops| running.feed.heartbeats.iter().any(crate::worker::Heartbeat::is_overdue);
        if self.running.as_ref().is_some_and(overdue) {
            self.loops.abort_all();
        }
    }
}

fn refusal_reason(stored: &StoredFeed) -> &'static str {
    if stored.purged { PURGED } else { PAUSED }
}

/// What could not be written is no reason to fall over; a store that has stopped is told elsewhere.
pub(super) fn log_store_error(feed: &FeedName, result: Result<(), StoreError>) {
    match result {
        Ok(()) | Err(StoreError::Closed) => {}
        Err(error) => tracing::warn!(feed = %feed, %error, "could not be noted"),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

async fn run_loops(
    feed: Arc<FeedRuntime>,
    endpoints: PushEndpoints,
    cancel: CancellationToken,
    stored: StoredFeed,
    delay: Duration,
) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = tokio::time::sleep(delay) => {}
    }
    #[cfg(test)]
    assert!(feed.name.as_str() != "panics", "as the test wants it");
    let loops = async {
        if stored.mode.is_push() {
            let why = "restarted: push has to be reached again";
            log_store_error(&feed.name, feed.context.store.set_mode(feed.id, now(), Mode::Poll, why).await);
        }
        tokio::join!(
            PollLoop::new(&feed, &cancel).run(&stored),
            LookBackLoop::new(&feed, &cancel).run(&stored),
            ResyncLoop::new(&feed, &cancel).run(),
            endpoints.run(&feed, &cancel)
        );
    };
    let let_go = async {
        cancel.cancelled().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        () = loops => {}
        () = let_go => {}
    }
}
