//! The supervisor of one feed: starts, watches, restarts and stops its loops, and carries out its orders one after the
//! other.
//!
//! Guarantees: only this feed waits when its publisher, its loops or the store keep it waiting; all of its work ends
//! within [`STOP_GRACE`] of its cancellation; an order that was taken is carried out even if nobody waits for the
//! answer any more.

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
use crate::worker::{FeedCounters, FeedRuntime, Heartbeat};

/// How often the loops' heartbeats are checked.
const HEARTBEAT_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The longest wait before a feed's loops are started again after a panic.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(300);
/// After a run of this length a panic counts as the first one.
const STABLE_AFTER: Duration = Duration::from_secs(600);
/// The time that cancelled loops get to hand their items to the store; what they still wait for then is dropped.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// A store that commits nothing for longer than this, while work waits, is slow: its loops are not hung.
const STORE_SLOW: Duration = Duration::from_secs(5);
/// How long no loop is judged hung after the store was slow.
const STORE_RECOVERY: Duration = Duration::from_secs(120);

pub(super) const PAUSED: &str = "the feed is paused";
pub(super) const PURGED: &str = "the feed is purged";

/// Where an order's answer is sent.
pub(super) type OrderReply = oneshot::Sender<Result<OrderAnswer, ControlError>>;

/// A command to a feed supervisor.
pub(super) enum FeedCommand {
    /// An operator's order.
    Order(Order, OrderReply),
    /// Secret files may have changed.
    ReloadSecrets,
    /// The store has purged the feed, or resumed it after a purge: run what is stored.
    Reconcile,
}

/// Supervises one feed, which is configured or only stored.
pub(super) struct FeedSupervisor {
    pub(super) context: SupervisorContext,
    pub(super) name: FeedName,
    /// None for a feed that is only stored.
    pub(super) configured: Option<ConfiguredFeed>,
    pub(super) counts: Arc<FeedCounters>,
    pub(super) running: Option<RunningLoops>,
    loops: JoinSet<()>,
    /// Work of orders that goes on after their answer.
    pub(super) background_tasks: JoinSet<()>,
    panics: u32,
    store_slow: Option<Instant>,
    /// Dropped once the feed has been started for the first time, or starting it has failed.
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
    pub(super) fn new(
        context: SupervisorContext,
        name: FeedName,
        configured: Option<ConfiguredFeed>,
        counts: Arc<FeedCounters>,
    ) -> Self {
        let (loops, background_tasks) = (JoinSet::new(), JoinSet::new());
        Self {
            context,
            name,
            configured,
            counts,
            running: None,
            loops,
            background_tasks,
            panics: 0,
            store_slow: None,
            started_signal: None,
        }
    }

    /// Starts the feed's loops and carries out commands, until cancelled.
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
                Some(result) = self.loops.join_next() => self.handle_loops_end(result).await,
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
                let verb = order.verb();
                let answer = self.execute_order(order).await;
                if let (Err(error), true) = (&answer, reply.is_closed()) {
                    tracing::error!(feed = %self.name, order = verb, %error, "an order that was accepted can't be carried out");
                }
                // The caller may no longer wait; the order is carried out all the same.
                drop(reply.send(answer));
            }
            FeedCommand::ReloadSecrets => self.reload_secrets(),
            FeedCommand::Reconcile => self.reconcile().await,
        }
    }

    /// Starts or stops the loops as the stored state says.
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
        let push_state = endpoints::restore_push_state(settings, stored, &endpoints);
        let SupervisorContext { worker_context, clients, host_limiter, .. } = &self.context;
        let built = PushEndpoints::new(clients, settings, stored, &push_state).and_then(|(endpoints, route)| {
            let feed = build_feed(
                worker_context,
                clients,
                host_limiter,
                settings,
                stored.id,
                Arc::clone(&self.counts),
                push_state,
            )?;
            Ok((Arc::new(feed), endpoints, route))
        });
        let (feed, endpoints, route) = match built {
            Ok(built) => built,
            Err(failure) => {
                tracing::error!(feed = %self.name, %failure, "the feed can't run");
                let reason = Some(failure.to_string());
                let note = HealthNote { health: Health::Failed, reason, failures: stored.failures, next_poll_at: None };
                return log_store_error(&self.name, store.record_health(stored.id, now(), note).await);
            }
        };
        let cancel = CancellationToken::new();
        if let Some(route) = &route {
            self.context.inbox.register(self.name.as_str(), route.clone());
        }
        self.context.running_feeds.insert(&feed);
        self.loops.spawn(run_loops(Arc::clone(&feed), endpoints, cancel.clone(), stored.clone(), delay));
        self.running = Some(RunningLoops { feed, webhook_route: route, cancel, since: Instant::now() });
    }

    /// Stops the loops; what they have handed to the store is committed.
    pub(super) async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.context.running_feeds.remove(&self.name);
        running.cancel.cancel();
        if tokio::time::timeout(2 * STOP_GRACE, self.loops.join_next()).await.is_err() {
            self.loops.shutdown().await;
        }
    }

    /// Has the webhook route refuse posts, with the reason.
    pub(super) fn refuse_posts(&self, why: &'static str) {
        let Some(ConfiguredFeed::Ready(settings)) = &self.configured else { return };
        let Some(webhook) = &settings.webhook else { return };
        match endpoints::closed_route(webhook, RouteState::Closed(why)) {
            Ok(route) => self.context.inbox.register(self.name.as_str(), route),
            Err(failure) => {
                tracing::warn!(feed = %self.name, %failure, "its webhook knows no secret any more, and answers 404");
                self.context.inbox.remove(self.name.as_str());
            }
        }
    }

    fn reload_secrets(&self) {
        let (Some(running), Some(ConfiguredFeed::Ready(settings))) = (&self.running, &self.configured) else { return };
        let warn_and_keep = |failure| {
            tracing::warn!(feed = %self.name, %failure, "secrets can't be read again: the old ones stay");
        };
        if let (Some(webhook), Some(route)) = (&settings.webhook, &running.webhook_route) {
            match endpoints::read_webhook_secrets(webhook) {
                Ok(secrets) => {
                    self.context.inbox.register(self.name.as_str(), WebhookRoute { secrets, ..route.clone() })
                }
                Err(failure) => warn_and_keep(failure),
            }
        }
        let before = running.feed.source.requests.secret_changes();
        match running.feed.source.requests.read_secrets() {
            Ok(changes) if changes != before => running.feed.poll_when_allowed.notify_one(),
            Ok(_) => {}
            Err(failure) => warn_and_keep(failure),
        }
    }

    /// The loops have ended without being stopped: one panicked, or hung and was aborted.
    async fn handle_loops_end(&mut self, result: Result<(), JoinError>) {
        let Some(running) = self.running.take() else { return };
        self.context.running_feeds.remove(&self.name);
        let why = match result {
            Ok(()) => "its loops ended unasked".to_owned(),
            Err(error) if error.is_panic() => format!("it panicked: {}", panic_text(error.into_panic().as_ref())),
            Err(_) => "it hung: its loops showed no sign of life".to_owned(),
        };
        self.panics = if running.since.elapsed() > STABLE_AFTER { 0 } else { self.panics + 1 };
        let delay = Duration::from_secs(1 << self.panics.min(9)).min(MAX_RESTART_DELAY);
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

    /// Aborts the loops if one is hung. A loop that waits for the store is not hung: while the store is slow, and for
    /// [`STORE_RECOVERY`] after that, nothing is checked.
    fn check_heartbeats(&mut self) {
        let store = &self.context.worker_context.store;
        if *store.intake().borrow() != Intake::Open || store.busy_for() > STORE_SLOW {
            self.store_slow = Some(Instant::now());
        }
        if self.store_slow.is_some_and(|at| at.elapsed() < STORE_RECOVERY) {
            return;
        }
        let overdue = |running: &RunningLoops| running.feed.heartbeats.iter().any(Heartbeat::is_overdue);
        if self.running.as_ref().is_some_and(overdue) {
            self.loops.abort_all();
        }
    }
}

fn refusal_reason(stored: &StoredFeed) -> &'static str {
    if stored.purged { PURGED } else { PAUSED }
}

/// A failed write of health or events is no reason to stop; a stopped store is reported elsewhere.
pub(super) fn log_store_error(feed: &FeedName, result: Result<(), StoreError>) {
    match result {
        Ok(()) | Err(StoreError::Closed) => {}
        Err(error) => tracing::warn!(feed = %feed, %error, "could not be noted"),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
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
    let grace = async {
        cancel.cancelled().await;
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::select! {
        () = loops => {}
        () = grace => {}
    }
}
