//! The supervisor of all feeds: starts and stops a feed supervisor for each, and dispatches the operators' orders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::control::{ControlError, ControlRequest, Order, OrderAnswer, QuarantineBatchReport};
use super::endpoints;
use super::feed_supervisor::{FeedCommand, FeedSupervisor, OrderReply};
use super::housekeeping::{run_housekeeping, run_purge_removal};
use super::quarantine::QuarantineWorker;
use super::registration::configure;
use super::{ConfiguredFeed, FeedSettings, FleetSettings};
use crate::feed::{FeedName, RecordOutcome, RequestOutcome, Transport};
use crate::source::client::HttpClients;
use crate::source::host_limiter::HostLimiter;
use crate::source::http::HttpFailure;
use crate::source::webhook::{Inbox, RouteState};
use crate::store::StoreError;
use crate::store::retention::RetentionSettings;
use crate::worker::page_source::WaitReporter;
use crate::worker::push::PushState;
use crate::worker::{FeedCounters, FeedRuntime, WorkerContext};

/// The counters of the configured feeds, for metrics.
#[derive(Clone, Default)]
pub struct CounterRegistry(Arc<Mutex<BTreeMap<FeedName, Arc<FeedCounters>>>>);

/// The totals of a feed since the daemon's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedTotals {
    pub feed: FeedName,
    /// Pages committed.
    pub pages: u64,
    /// Bytes received, as compressed on the wire.
    pub bytes: u64,
    pub records: u64,
    pub written: u64,
    pub quarantined: u64,
    /// Records, by transport and outcome.
    pub outcomes: Vec<(Transport, RecordOutcome, u64)>,
    /// Requests for pages, by outcome.
    pub polls: Vec<(RequestOutcome, u64)>,
}

impl CounterRegistry {
    /// The totals of each configured feed since the daemon's start.
    pub fn totals(&self) -> Vec<FeedTotals> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = |(feed, counts): (&FeedName, &Arc<FeedCounters>)| FeedTotals {
            feed: feed.clone(),
            pages: counts.pages.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            records: counts.records.load(Ordering::Relaxed),
            written: counts.written.load(Ordering::Relaxed),
            quarantined: counts.quarantined.load(Ordering::Relaxed),
            outcomes: counts.outcomes(),
            polls: counts.polls(),
        };
        counts.iter().map(totals).collect()
    }

    fn set(&self, feeds: impl Iterator<Item = (FeedName, Arc<FeedCounters>)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = feeds.collect();
    }
}

/// What all feed supervisors share.
#[derive(Clone)]
pub(super) struct SupervisorContext {
    pub(super) worker_context: WorkerContext,
    /// The webhook routes of the feeds.
    pub(super) inbox: Inbox,
    pub(super) clients: HttpClients,
    pub(super) host_limiter: HostLimiter,
    pub(super) running_feeds: RunningFeeds,
}

/// The feeds whose loops run.
#[derive(Clone, Default)]
pub(super) struct RunningFeeds(Arc<Mutex<BTreeMap<FeedName, Arc<FeedRuntime>>>>);

impl RunningFeeds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<FeedName, Arc<FeedRuntime>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, feed: &Arc<FeedRuntime>) {
        self.lock().insert(feed.name.clone(), Arc::clone(feed));
    }

    pub(super) fn remove(&self, name: &FeedName) {
        self.lock().remove(name);
    }

    /// The feed, or a text that says why it does not run.
    pub(super) fn get(&self, name: &FeedName) -> Result<Arc<FeedRuntime>, String> {
        let found = self.lock().get(name).cloned();
        found.ok_or_else(|| format!("{name} does not run: it is paused or could not start; resume it first"))
    }
}

/// Orders that may wait for one feed; also, all together, orders to records and to feeds that are not configured.
const MAX_QUEUED_COMMANDS: usize = 32;
/// When publishers are asked to post again to a feed whose settings have changed.
const RELOAD_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Starts and stops a supervisor for each feed, and dispatches orders to them. It waits for none of them, nor for the
/// store.
pub struct Supervisor {
    context: SupervisorContext,
    fleet: FleetSettings,
    feed_handles: BTreeMap<FeedName, FeedHandle>,
    tasks: JoinSet<()>,
    names: BTreeMap<Id, FeedName>,
    /// Orders that go to no feed supervisor.
    background_tasks: JoinSet<()>,
    counter_registry: CounterRegistry,
    keep_settings: watch::Sender<RetentionSettings>,
    shutdown: CancellationToken,
}

/// A configured feed's supervisor, seen from outside.
struct FeedHandle {
    configured: ConfiguredFeed,
    counts: Arc<FeedCounters>,
    /// Closed once the feed supervisor has ended.
    commands: mpsc::Sender<FeedCommand>,
    cancel: CancellationToken,
}

/// A configuration that is being applied.
struct PendingReload {
    fleet: FleetSettings,
    same_hosts: bool,
    /// Feeds that did not change.
    unchanged: BTreeSet<FeedName>,
    /// Feeds that changed, or are no longer configured.
    stopped: Vec<FeedName>,
}

/// A configuration that the store could not register.
struct FailedReload {
    error: StoreError,
    /// The feeds that were stopped for it.
    stopped: Vec<(ConfiguredFeed, Arc<FeedCounters>)>,
}

impl Supervisor {
    /// A supervisor without feeds yet; its feeds take the posts of `inbox`.
    pub fn new(worker_context: WorkerContext, inbox: Inbox) -> Self {
        let host_limiter = HostLimiter::new(Default::default());
        Self {
            context: SupervisorContext {
                worker_context,
                inbox,
                clients: HttpClients::default(),
                host_limiter,
                running_feeds: RunningFeeds::default(),
            },
            fleet: FleetSettings::default(),
            feed_handles: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: BTreeMap::new(),
            background_tasks: JoinSet::new(),
            counter_registry: CounterRegistry::default(),
            keep_settings: watch::Sender::default(),
            shutdown: CancellationToken::new(),
        }
    }

    pub fn counter_registry(&self) -> CounterRegistry {
        self.counter_registry.clone()
    }

    /// Dispatches orders, applies reloads, and restarts feed supervisors that panic, until `shutdown`. Returns once all
    /// of them have ended.
    pub async fn run(
        mut self,
        mut orders: super::control::ControlReceiver,
        mut reloads: mpsc::Receiver<FleetSettings>,
        shutdown: CancellationToken,
    ) {
        let store = &self.context.worker_context.store;
        self.tasks.spawn(run_housekeeping(store.clone(), self.keep_settings.subscribe(), shutdown.clone()));
        let (sender, mut purged_feeds) = mpsc::channel(MAX_QUEUED_COMMANDS);
        self.tasks.spawn(run_purge_removal(store.clone(), sender, shutdown.clone()));
        let quarantine = self.quarantine_worker();
        self.background_tasks.spawn(async move { quarantine.resume_orders().await });
        let mut reload: Option<BoxFuture<'static, Result<PendingReload, FailedReload>>> = None;
        // Orders to feeds that the reload in progress has stopped, or is about to start.
        let mut deferred = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.handle_feed_end(ended),
                Some(_) = self.background_tasks.join_next() => {}
                Some(request) = orders.next() => match (&request, reload.is_some()) {
                    (ControlRequest::Feed(name, ..), true) if !self.has_feed(name) && deferred.len() < MAX_QUEUED_COMMANDS => {
                        deferred.push(request);
                    }
                    _ => self.dispatch(request),
                },
                Some(name) = purged_feeds.recv() => self.send_command(&name, FeedCommand::Reconcile),
                Some(fleet) = reloads.recv(), if reload.is_none() => {
                    reload = Some(Box::pin(self.begin_reload(fleet)));
                }
                result = async { reload.as_mut()?.await.into() }, if reload.is_some() => {
                    reload = None;
                    self.finish_reload(result);
                    deferred.drain(..).for_each(|request| self.dispatch(request));
                }
            }
        }
        self.shutdown.cancel();
        for handle in self.feed_handles.values() {
            handle.cancel.cancel();
        }
        self.background_tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    fn has_feed(&self, name: &str) -> bool {
        FeedName::new(name).is_some_and(|name| self.feed_handles.contains_key(&name))
    }

    fn dispatch(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::Feed(name, order, reply) => self.dispatch_order(&name, order, reply),
            ControlRequest::Ping(reply) => drop(reply.send(())),
            ControlRequest::Quarantine(id, order, reply) => {
                let worker = self.quarantine_worker();
                self.spawn_background(reply, String::clone, async move { worker.execute_order(id, order).await });
            }
            ControlRequest::QuarantineBatch(selection, order, reply) => {
                let worker = self.quarantine_worker();
                let batch = async move { worker.execute_many(selection, order).await.map(OrderAnswer::Done) };
                self.spawn_background(reply, move |report: &QuarantineBatchReport| report.words(order), batch);
            }
        }
    }

    fn quarantine_worker(&self) -> QuarantineWorker {
        QuarantineWorker {
            store: self.context.worker_context.store.clone(),
            running_feeds: self.context.running_feeds.clone(),
        }
    }

    /// Runs `work` beside the feed supervisors, and sends its answer; if the caller no longer waits, logs it.
    fn spawn_background<T: Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Result<OrderAnswer<T>, ControlError>>,
        describe: impl FnOnce(&T) -> String + Send + 'static,
        work: impl Future<Output = Result<OrderAnswer<T>, ControlError>> + Send + 'static,
    ) {
        if self.background_tasks.len() >= MAX_QUEUED_COMMANDS {
            return drop(reply.send(Err(too_many())));
        }
        self.background_tasks.spawn(async move {
            let Err(answer) = reply.send(work.await) else { return };
            match answer {
                Ok(OrderAnswer::Done(done)) => {
                    tracing::info!(done = describe(&done), "an order that was accepted is carried out")
                }
                Ok(OrderAnswer::Accepted(text)) => tracing::info!(words = text, "an order is accepted"),
                Err(error) => tracing::error!(%error, "an order that was accepted can't be carried out"),
            }
        });
    }

    fn dispatch_order(&mut self, name: &str, order: Order, reply: OrderReply) {
        let Some(name) = FeedName::new(name) else {
            return drop(reply.send(Err(ControlError::Unknown(format!("there is no feed {name}")))));
        };
        if let Some(handle) = self.feed_handles.get(&name) {
            return match handle.commands.try_send(FeedCommand::Order(order, reply)) {
                Ok(()) => {}
                Err(TrySendError::Full(FeedCommand::Order(_, reply))) => drop(reply.send(Err(too_many()))),
                // The feed supervisor is stopping with the mirror, or is started again.
                Err(_) => {}
            };
        }
        if self.background_tasks.len() >= MAX_QUEUED_COMMANDS {
            return drop(reply.send(Err(too_many())));
        }
        let mut feed_supervisor = FeedSupervisor::new(self.context.clone(), name, None, Arc::default());
        self.background_tasks.spawn(async move {
            feed_supervisor.execute_command(FeedCommand::Order(order, reply)).await;
            while feed_supervisor.background_tasks.join_next().await.is_some() {}
        });
    }

    fn send_command(&self, name: &FeedName, command: FeedCommand) {
        let Some(handle) = self.feed_handles.get(name) else { return };
        if handle.commands.try_send(command).is_err() {
            tracing::warn!(feed = %name, "too many orders wait: it looks at what is stored when it is started again");
        }
    }

    /// A feed supervisor has ended. One that was not stopped has panicked, and is started again.
    fn handle_feed_end(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, error) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some(name) = self.names.remove(&id) else { return };
        let was_stopped = self
            .feed_handles
            .get(&name)
            .is_none_or(|handle| handle.cancel.is_cancelled() || !handle.commands.is_closed());
        if was_stopped || self.shutdown.is_cancelled() {
            return;
        }
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        tracing::error!(feed = %name, error, "a feed's unit fell over and is started again");
        self.context.running_feeds.remove(&name);
        if let Some(FeedHandle { configured, counts, .. }) = self.feed_handles.remove(&name) {
            drop(self.start_feed(configured, counts));
        }
    }

    /// Applies a configuration: feeds that did not change go on undisturbed.
    ///
    /// # Errors
    /// When the store can't register the feeds.
    pub async fn load(&mut self, fleet: FleetSettings) -> Result<(), StoreError> {
        let reload = self.begin_reload(fleet).await.map_err(|failed_reload| failed_reload.error)?;
        for started in self.apply_reload(reload) {
            // The sender is dropped as the signal: there is no value.
            drop(started.await);
        }
        Ok(())
    }

    /// Stops the feeds that change. The returned future waits for them and for the store, and borrows nothing of the
    /// supervisor.
    fn begin_reload(
        &mut self,
        fleet: FleetSettings,
    ) -> impl Future<Output = Result<PendingReload, FailedReload>> + Send + use<> {
        let same_hosts = self.fleet.hosts == fleet.hosts;
        let is_same = |configured: &&ConfiguredFeed| {
            let handle = self.feed_handles.get(configured.name());
            same_hosts && handle.is_some_and(|handle| handle.configured.runs_same_as(configured))
        };
        let unchanged: BTreeSet<FeedName> =
            fleet.feeds.iter().filter(is_same).map(|same| same.name().clone()).collect();
        let stopped: Vec<FeedName> =
            self.feed_handles.keys().filter(|name| !unchanged.contains(*name)).cloned().collect();
        let stopped_handles: Vec<FeedHandle> = stopped.iter().filter_map(|name| self.stop_feed(name)).collect();
        let store = self.context.worker_context.store.clone();
        async move {
            for handle in &stopped_handles {
                handle.commands.closed().await;
            }
            match configure(&store, &fleet, true).await {
                Ok(_) => Ok(PendingReload { fleet, same_hosts, unchanged, stopped }),
                Err(error) => {
                    let stopped =
                        stopped_handles.into_iter().map(|handle| (handle.configured, handle.counts)).collect();
                    Err(FailedReload { error, stopped })
                }
            }
        }
    }

    fn stop_feed(&mut self, name: &FeedName) -> Option<FeedHandle> {
        let handle = self.feed_handles.remove(name)?;
        handle.cancel.cancel();
        let ConfiguredFeed::Ready(settings) = &handle.configured else { return Some(handle) };
        let reloading =
            RouteState::Deferred { retry_after: RELOAD_RETRY_AFTER, why: "the configuration is being reloaded" };
        match settings.webhook.as_ref().map(|webhook| endpoints::closed_route(webhook, reloading)) {
            Some(Ok(route)) => self.context.inbox.register(name.as_str(), route),
            _ => self.context.inbox.remove(name.as_str()),
        }
        Some(handle)
    }

    fn finish_reload(&mut self, result: Option<Result<PendingReload, FailedReload>>) {
        match result {
            Some(Ok(reload)) => {
                drop(self.apply_reload(reload));
                tracing::info!(feeds = self.feed_handles.len(), "configuration reloaded");
            }
            Some(Err(FailedReload { error, stopped })) => {
                tracing::error!(%error, "the reload failed, and changed nothing; a further one may succeed");
                for (configured, counts) in stopped {
                    drop(self.start_feed(configured, counts));
                }
            }
            None => {}
        }
    }

    /// Starts the feeds that are new or have changed; each returned receiver is closed once its feed has been started.
    fn apply_reload(&mut self, reload: PendingReload) -> Vec<oneshot::Receiver<()>> {
        let PendingReload { fleet, same_hosts, unchanged, stopped } = reload;
        let mut start_signals = Vec::new();
        if !same_hosts {
            self.context.host_limiter = HostLimiter::new(fleet.hosts.clone());
        }
        for configured in &fleet.feeds {
            if unchanged.contains(configured.name()) {
                self.send_command(configured.name(), FeedCommand::ReloadSecrets);
            } else {
                start_signals.push(self.start_feed(configured.clone(), Arc::default()));
            }
        }
        for name in stopped.iter().filter(|name| !self.feed_handles.contains_key(*name)) {
            self.context.inbox.remove(name.as_str());
        }
        self.keep_settings.send_replace(fleet.keep_settings.clone());
        self.fleet = fleet;
        self.counter_registry
            .set(self.feed_handles.iter().map(|(name, handle)| (name.clone(), Arc::clone(&handle.counts))));
        start_signals
    }

    fn start_feed(&mut self, configured: ConfiguredFeed, counts: Arc<FeedCounters>) -> oneshot::Receiver<()> {
        let name = configured.name().clone();
        let (commands, received) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let cancel = CancellationToken::new();
        let mut feed_supervisor =
            FeedSupervisor::new(self.context.clone(), name.clone(), Some(configured.clone()), Arc::clone(&counts));
        let (started_sender, started) = oneshot::channel();
        feed_supervisor.started_signal = Some(started_sender);
        let task = self.tasks.spawn(feed_supervisor.run(received, cancel.clone()));
        self.names.insert(task.id(), name.clone());
        self.feed_handles.insert(name, FeedHandle { configured, counts, commands, cancel });
        started
    }
}

fn too_many() -> ControlError {
    ControlError::Refused("too many orders wait already: wait for them, or look at what keeps the mirror".to_owned())
}

/// What a feed's loops share, from its settings. Reads the feed's secrets: blocking, small local files.
///
/// # Errors
/// When the feed's URL or a secret can't be used.
pub fn build_feed(
    worker_context: &WorkerContext,
    clients: &HttpClients,
    host_limiter: &HostLimiter,
    settings: &FeedSettings,
    id: i64,
    counts: Arc<FeedCounters>,
    push_state: PushState,
) -> Result<FeedRuntime, HttpFailure> {
    let wait_reporter = Some(WaitReporter { store: worker_context.store.clone(), feed: id });
    let limits = (worker_context.budget.clone(), worker_context.decoders.clone());
    let source = settings.page_source((clients, host_limiter), limits, counts, wait_reporter)?;
    Ok(FeedRuntime {
        context: worker_context.clone(),
        id,
        name: settings.name.clone(),
        url: settings.url.clone(),
        source: Arc::new(source),
        ties: settings.ties,
        poll: settings.poll.clone(),
        retry: settings.retry.clone(),
        retention: settings.retention,
        resync_every: settings.resync.every,
        max_sweep: settings.resync.max_sweep,
        purge_gone_after: settings.purge_gone_after,
        page_timeout: settings.http.page_timeout,
        audit: settings.push.audit,
        level: Default::default(),
        poll_now: Notify::new(),
        poll_when_allowed: Notify::new(),
        poll_at_pace: Notify::new(),
        resync_now: Notify::new(),
        push_state,
        reopen_stream: Notify::new(),
        look_back_now: Notify::new(),
        heartbeats: Default::default(),
    })
}
