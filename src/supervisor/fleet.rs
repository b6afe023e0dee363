//! All feeds at work: a unit each, started and stopped here, and told what operators ask for.

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

/// The feeds' counts, for metrics.
#[derive(Clone, Default)]
pub struct CounterRegistry(Arc<Mutex<BTreeMap<FeedName, Arc<FeedCounters>>>>);

/// What a feed has done since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedTotals {
    /// The feed.
    pub feed: FeedName,
    /// Pages committed.
    pub pages: u64,
    /// Bytes over the wire.
    pub bytes: u64,
    /// Records read.
    pub records: u64,
    /// Items written.
    pub written: u64,
    /// Records quarantined.
    pub quarantined: u64,
    /// Records, by transport and by what became of them.
    pub outcomes: Vec<(Transport, RecordOutcome, u64)>,
    /// Requests for pages, by what they got.
    pub polls: Vec<(RequestOutcome, u64)>,
}

impl CounterRegistry {
    /// What each configured feed has done since the start.
    pub fn totals(&self) -> Vec<FeedTotals> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |(feed, counts): (&FeedName, &Arc<FeedCounters>)| FeedTotals {
            feed: feed.clone(),
            pages: counts.pages.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            records: counts.records.load(Ordering::Relaxed),
            written: counts.written.load(Ordering::Relaxed),
            quarantined: counts.quarantined.load(Ordering::Relaxed),
            outcomes: counts.outcomes(),
            polls: counts.polls(),
        };
        counts.iter().map(done).collect()
    }

    fn set(&self, feeds: impl Iterator<Item = (FeedName, Arc<FeedCounters>)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = feeds.collect();
    }
}

/// What all units share.
#[derive(Clone)]
pub(super) struct SupervisorContext {
    pub(super) worker_context: WorkerContext,
    /// Where publishers post.
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

    /// The feed, or in words why not.
    pub(super) fn get(&self, name: &FeedName) -> Result<Arc<FeedRuntime>, String> {
        let found = self.lock().get(name).cloned();
        found.ok_or_else(|| format!("{name} does not run: it is paused or could not start; resume it first"))
    }
}

/// Orders that one feed may have waiting, and orders to records and to feeds that are not configured, all together.
const MAX_QUEUED_COMMANDS: usize = 32;
/// When to post again to a feed whose settings have changed.
const RELOAD_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Starts and stops a unit for each feed, and hands orders on to them. It waits for none of them, nor for the store.
pub struct Supervisor {
    context: SupervisorContext,
    fleet: FleetSettings,
    feed_handles: BTreeMap<FeedName, FeedHandle>,
    tasks: JoinSet<()>,
    names: BTreeMap<Id, FeedName>,
    /// What is done for orders to none of the units.
    background_tasks: JoinSet<()>,
    counter_registry: CounterRegistry,
    keep_settings: watch::Sender<RetentionSettings>,
    shutdown: CancellationToken,
}

/// A configured feed.
struct FeedHandle {
    configured: ConfiguredFeed,
    counts: Arc<FeedCounters>,
    /// Closed once the unit has ended.
    commands: mpsc::Sender<FeedCommand>,
    cancel: CancellationToken,
}

/// A configuration that is being taken over.
struct PendingReload {
    fleet: FleetSettings,
    same_hosts: bool,
    /// Feeds that did not change.
    unchanged: BTreeSet<FeedName>,
    /// Those that did, or are no longer configured.
    stopped: Vec<FeedName>,
}

/// A configuration that the store could not take over.
struct FailedReload {
    error: StoreError,
    /// The feeds that were stopped for it.
    stopped: Vec<(ConfiguredFeed, Arc<FeedCounters>)>,
}

impl Supervisor {
    /// With nothing to do yet; its feeds take what is posted to `inbox`.
    pub fn new(shared: WorkerContext, inbox: Inbox) -> Self {
        let turns = HostLimiter::new(Default::default());
        Self {
            context: SupervisorContext {
                worker_context: shared,
                inbox,
                clients: HttpClients::default(),
                host_limiter: turns,
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

    /// The feeds' counts.
    pub fn counter_registry(&self) -> CounterRegistry {
        self.counter_registry.clone()
    }

    /// Until `shutdown`: hands on orders, takes over reloads, and restarts what falls over. Returns once every unit has
    /// ended.
    pub async fn run(
        mut self,
        mut orders: super::control::ControlReceiver,
        mut reloads: mpsc::Receiver<FleetSettings>,
        shutdown: CancellationToken,
    ) {
        let store = &self.context.worker_context.store;
        self.tasks.spawn(run_housekeeping(store.clone(), self.keep_settings.subscribe(), shutdown.clone()));
        let (sender, mut to_look_again) = mpsc::channel(MAX_QUEUED_COMMANDS);
        self.tasks.spawn(run_purge_removal(store.clone(), sender, shutdown.clone()));
        let mut loading: Option<BoxFuture<'static, Result<PendingReload, FailedReload>>> = None;
        // Orders to feeds that the configuration being taken over has stopped, or is about to start.
        let mut deferred = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.handle_feed_end(ended),
                Some(_) = self.background_tasks.join_next() => {}
                Some(request) = orders.next() => match (&request, loading.is_some()) {
                    (ControlRequest::Feed(name, ..), true) if !self.has_feed(name) && deferred.len() < MAX_QUEUED_COMMANDS => {
                        deferred.push(request);
                    }
                    _ => self.dispatch(request),
                },
                Some(name) = to_look_again.recv() => self.send_command(&name, FeedCommand::Reconcile),
                Some(fleet) = reloads.recv(), if loading.is_none() => {
                    loading = Some(Box::pin(self.begin_reload(fleet)));
                }
                loaded = async { loading.as_mut()?.await.into() }, if loading.is_some() => {
                    loading = None;
                    self.finish_reload(loaded);
                    deferred.drain(..).for_each(|request| self.dispatch(request));
                }
            }
        }
        self.shutdown.cancel();
        for member in self.feed_handles.values() {
            member.cancel.cancel();
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
                let sorter = self.quarantine_worker();
                self.spawn_background(reply, String::clone, async move { sorter.execute_order(id, order).await });
            }
            ControlRequest::QuarantineBatch(chosen, order, reply) => {
                let sorter = self.quarantine_worker();
                let sorting = async move { sorter.execute_many(chosen, order).await.map(OrderAnswer::Done) };
                self.spawn_background(reply, move |sorted: &QuarantineBatchReport| sorted.words(order), sorting);
            }
        }
    }

    fn quarantine_worker(&self) -> QuarantineWorker {
        QuarantineWorker {
            store: self.context.worker_context.store.clone(),
            running_feeds: self.context.running_feeds.clone(),
        }
    }

    /// Does something beside the units, and answers for it; where nobody waits any more, the log has the words.
    fn spawn_background<T: Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Result<OrderAnswer<T>, ControlError>>,
        words: impl FnOnce(&T) -> String + Send + 'static,
        work: impl Future<Output = Result<OrderAnswer<T>, ControlError>> + Send + 'static,
    ) {
        if self.background_tasks.len() >= MAX_QUEUED_COMMANDS {
            return drop(reply.send(Err(too_many())));
        }
        self.background_tasks.spawn(async move {
            let Err(answer) = reply.send(work.await) else { return };
            match answer {
                Ok(OrderAnswer::Done(done)) => {
                    tracing::info!(done = words(&done), "an order that was accepted is carried out")
                }
                Ok(OrderAnswer::Accepted(words)) => tracing::info!(words, "an order is accepted"),
                Err(error) => tracing::error!(%error, "an order that was accepted can't be carried out"),
            }
        });
    }

    fn dispatch_order(&mut self, name: &str, order: Order, reply: OrderReply) {
        let Some(name) = FeedName::new(name) else {
            return drop(reply.send(Err(ControlError::Unknown(format!("there is no feed {name}")))));
        };
        if let Some(member) = self.feed_handles.get(&name) {
            return match member.commands.try_send(FeedCommand::Order(order, reply)) {
                Ok(()) => {}
                Err(TrySendError::Full(FeedCommand::Order(_, reply))) => drop(reply.send(Err(too_many()))),
                // The unit is ending, and with it the mirror, or is started again.
                Err(_) => {}
            };
        }
        if self.background_tasks.len() >= MAX_QUEUED_COMMANDS {
            return drop(reply.send(Err(too_many())));
        }
        let mut unit = FeedSupervisor::new(self.context.clone(), name, None, Arc::default());
        self.background_tasks.spawn(async move {
            unit.execute_command(FeedCommand::Order(order, reply)).await;
            while unit.background_tasks.join_next().await.is_some() {}
        });
    }

    fn send_command(&self, name: &FeedName, command: FeedCommand) {
        let Some(member) = self.feed_handles.get(name) else { return };
        if member.commands.try_send(command).is_err() {
            tracing::warn!(feed = %name, "too many orders wait: it looks at what is stored when it is started again");
        }
    }

    /// A unit has ended that nobody stopped: it panicked itself.
    fn handle_feed_end(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, error) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some(name) = self.names.remove(&id) else { return };
        let left = self
            .feed_handles
            .get(&name)
            .is_none_or(|member| member.cancel.is_cancelled() || !member.commands.is_closed());
        if left || self.shutdown.is_cancelled() {
            return;
        }
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        tracing::error!(feed = %name, error, "a feed's unit fell over and is started again");
        self.context.running_feeds.remove(&name);
        if let Some(FeedHandle { configured, counts, .. }) = self.feed_handles.remove(&name) {
            drop(self.start_feed(configured, counts));
        }
    }

    /// Takes a configuration over: feeds that did not change are not disturbed.
    ///
    /// # Errors
    /// When the store can't register the feeds.
    pub async fn load(&mut self, fleet: FleetSettings) -> Result<(), StoreError> {
        let loading = self.begin_reload(fleet).await.map_err(|refused| refused.error)?;
        for started in self.apply_reload(loading) {
            // Its end tells as much as a word would.
            drop(started.await);
        }
        Ok(())
    }

    /// Stops the feeds that change. What is returned waits for them and for the store, and needs nothing of the supervisor.
    fn begin_reload(
        &mut self,
        fleet: FleetSettings,
    ) -> impl Future<Output = Result<PendingReload, FailedReload>> + Send + use<> {
        let same_hosts = self.fleet.hosts == fleet.hosts;
        let is_same = |configured: &&ConfiguredFeed| {
            let member = self.feed_handles.get(configured.name());
            same_hosts && member.is_some_and(|member| member.configured.runs_same_as(configured))
        };
        let kept: BTreeSet<FeedName> = fleet.feeds.iter().filter(is_same).map(|same| same.name().clone()).collect();
        let left: Vec<FeedName> = self.feed_handles.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        let leaving: Vec<FeedHandle> = left.iter().filter_map(|name| self.stop_feed(name)).collect();
        let store = self.context.worker_context.store.clone();
        async move {
            for member in &leaving {
                member.commands.closed().await;
            }
            match configure(&store, &fleet, true).await {
                Ok(_) => Ok(PendingReload { fleet, same_hosts, unchanged: kept, stopped: left }),
                Err(error) => {
                    let stopped = leaving.into_iter().map(|member| (member.configured, member.counts)).collect();
                    Err(FailedReload { error, stopped })
                }
            }
        }
    }

    fn stop_feed(&mut self, name: &FeedName) -> Option<FeedHandle> {
        let member = self.feed_handles.remove(name)?;
        member.cancel.cancel();
        let ConfiguredFeed::Ready(settings) = &member.configured else { return Some(member) };
        let reloading =
            RouteState::Deferred { retry_after: RELOAD_RETRY_AFTER, why: "the configuration is being reloaded" };
        match settings.webhook.as_ref().map(|webhook| endpoints::closed_route(webhook, reloading)) {
            Some(Ok(door)) => self.context.inbox.register(name.as_str(), door),
            _ => self.context.inbox.remove(name.as_str()),
        }
        Some(member)
    }

    fn finish_reload(&mut self, loaded: Option<Result<PendingReload, FailedReload>>) {
        match loaded {
            Some(Ok(loading)) => {
                drop(self.apply_reload(loading));
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

    /// Starts the feeds that are new or have changed; what is returned ends as each has been.
    fn apply_reload(&mut self, loading: PendingReload) -> Vec<oneshot::Receiver<()>> {
        let PendingReload { fleet, same_hosts, unchanged: kept, stopped: left } = loading;
        let mut starting = Vec::new();
        if !same_hosts {
            self.context.host_limiter = HostLimiter::new(fleet.hosts.clone());
        }
        for configured in &fleet.feeds {
            if kept.contains(configured.name()) {
                self.send_command(configured.name(), FeedCommand::ReloadSecrets);
            } else {
                starting.push(self.start_feed(configured.clone(), Arc::default()));
            }
        }
        for name in left.iter().filter(|name| !self.feed_handles.contains_key(*name)) {
            self.context.inbox.remove(name.as_str());
        }
        self.keep_settings.send_replace(fleet.keep_settings.clone());
        self.fleet = fleet;
        self.counter_registry
            .set(self.feed_handles.iter().map(|(name, member)| (name.clone(), Arc::clone(&member.counts))));
        starting
    }

    fn start_feed(&mut self, configured: ConfiguredFeed, counts: Arc<FeedCounters>) -> oneshot::Receiver<()> {
        let name = configured.name().clone();
        let (commands, received) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let cancel = CancellationToken::new();
        let mut unit =
            FeedSupervisor::new(self.context.clone(), name.clone(), Some(configured.clone()), Arc::clone(&counts));
        let (starting, started) = oneshot::channel();
        unit.started_signal = Some(starting);
        let task = self.tasks.spawn(unit.run(received, cancel.clone()));
        self.names.insert(task.id(), name.clone());
        self.feed_handles.insert(name, FeedHandle { configured, counts, commands, cancel });
        started
    }
}

fn too_many() -> ControlError {
    ControlError::Refused("too many orders wait already: wait for them, or look at what keeps the mirror".to_owned())
}

/// A feed at work, from its settings. Reads its secrets: blocking, small local files.
///
/// # Errors
/// When its URL or a secret can't be used.
pub fn build_feed(
    shared: &WorkerContext,
    clients: &HttpClients,
    turns: &HostLimiter,
    settings: &FeedSettings,
    id: i64,
    counts: Arc<FeedCounters>,
    book: PushState,
) -> Result<FeedRuntime, HttpFailure> {
    let waits = Some(WaitReporter { store: shared.store.clone(), feed: id });
    let limits = (shared.budget.clone(), shared.decoders.clone());
    let source = settings.page_source((clients, turns), limits, counts, waits)?;
    Ok(FeedRuntime {
        context: shared.clone(),
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
        push_state: book,
        reopen_stream: Notify::new(),
        look_back_now: Notify::new(),
        heartbeats: Default::default(),
    })
}
