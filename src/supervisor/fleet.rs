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

use super::control::{Answer, ControlError, Order, Request, Sorted};
use super::endpoints;
use super::housekeeping::{keep_house, keep_removing};
use super::quarantine::Sorter;
use super::registration::configure;
use super::unit::{Command, Reply, Unit};
use super::{Configured, FeedSettings, Fleet};
use crate::feed::{Asked, FeedName, Outcome, Transport};
use crate::source::client::Clients;
use crate::source::http::Failure;
use crate::source::turns::Turns;
use crate::source::webhook::{DoorState, Inbox};
use crate::store::StoreError;
use crate::store::keep::KeepSettings;
use crate::worker::page_source::Waits;
use crate::worker::push::Book;
use crate::worker::{Counts, Feed, Shared};

/// The feeds' counts, for metrics.
#[derive(Clone, Default)]
pub struct Roster(Arc<Mutex<BTreeMap<FeedName, Arc<Counts>>>>);

/// What a feed has done since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
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
    pub outcomes: Vec<(Transport, Outcome, u64)>,
    /// Requests for pages, by what they got.
    pub polls: Vec<(Asked, u64)>,
}

impl Roster {
    /// What each configured feed has done since the start.
    pub fn done(&self) -> Vec<Done> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |(feed, counts): (&FeedName, &Arc<Counts>)| Done {
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

    fn set(&self, feeds: impl Iterator<Item = (FeedName, Arc<Counts>)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = feeds.collect();
    }
}

/// What all units share.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) shared: Shared,
    /// Where publishers post.
    pub(super) inbox: Inbox,
    pub(super) clients: Clients,
    pub(super) turns: Turns,
    pub(super) at_work: AtWork,
}

/// The feeds whose loops run.
#[derive(Clone, Default)]
pub(super) struct AtWork(Arc<Mutex<BTreeMap<FeedName, Arc<Feed>>>>);

impl AtWork {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<FeedName, Arc<Feed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, feed: &Arc<Feed>) {
        self.lock().insert(feed.name.clone(), Arc::clone(feed));
    }

    pub(super) fn remove(&self, name: &FeedName) {
        self.lock().remove(name);
    }

    /// The feed, or in words why not.
    pub(super) fn get(&self, name: &FeedName) -> Result<Arc<Feed>, String> {
        let found = self.lock().get(name).cloned();
        found.ok_or_else(|| format!("{name} does not run: it is paused or could not start; resume it first"))
    }
}

/// Orders that one feed may have waiting, and orders to records and to feeds that are not configured, all together.
const WAITING: usize = 32;
/// When to post again to a feed whose settings have changed.
const RELOADED: Duration = Duration::from_secs(5);

/// Starts and stops a unit for each feed, and hands orders on to them. It waits for none of them, nor for the store.
pub struct Supervisor {
    common: Common,
    fleet: Fleet,
    members: BTreeMap<FeedName, Member>,
    tasks: JoinSet<()>,
    names: BTreeMap<Id, FeedName>,
    /// What is done for orders to none of the units.
    errands: JoinSet<()>,
    roster: Roster,
    keep: watch::Sender<KeepSettings>,
    shutdown: CancellationToken,
}

/// A configured feed.
struct Member {
    configured: Configured,
    counts: Arc<Counts>,
    /// Closed once the unit has ended.
    commands: mpsc::Sender<Command>,
    cancel: CancellationToken,
}

/// A configuration that is being taken over.
struct Loading {
    fleet: Fleet,
    same_hosts: bool,
    /// Feeds that did not change.
    kept: BTreeSet<FeedName>,
    /// Those that did, or are no longer configured.
    left: Vec<FeedName>,
}

/// A configuration that the store could not take over.
struct Refused {
    error: StoreError,
    /// The feeds that were stopped for it.
    stopped: Vec<(Configured, Arc<Counts>)>,
}

impl Supervisor {
    /// With nothing to do yet; its feeds take what is posted to `inbox`.
    pub fn new(shared: Shared, inbox: Inbox) -> Self {
        let turns = Turns::new(Default::default());
        Self {
            common: Common { shared, inbox, clients: Clients::default(), turns, at_work: AtWork::default() },
            fleet: Fleet::default(),
            members: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: BTreeMap::new(),
            errands: JoinSet::new(),
            roster: Roster::default(),
            keep: watch::Sender::default(),
            shutdown: CancellationToken::new(),
        }
    }

    /// The feeds' counts.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Until `shutdown`: hands on orders, takes over reloads, and restarts what falls over. Returns once every unit has
    /// ended.
    pub async fn run(
        mut self,
        mut orders: super::control::Orders,
        mut reloads: mpsc::Receiver<Fleet>,
        shutdown: CancellationToken,
    ) {
        let store = &self.common.shared.store;
        self.tasks.spawn(keep_house(store.clone(), self.keep.subscribe(), shutdown.clone()));
        let (sender, mut to_look_again) = mpsc::channel(WAITING);
        self.tasks.spawn(keep_removing(store.clone(), sender, shutdown.clone()));
        let mut loading: Option<BoxFuture<'static, Result<Loading, Refused>>> = None;
        // Orders to feeds that the configuration being taken over has stopped, or is about to start.
        let mut deferred = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                Some(_) = self.errands.join_next() => {}
                Some(request) = orders.next() => match (&request, loading.is_some()) {
                    (Request::Feed(name, ..), true) if !self.is_member(name) && deferred.len() < WAITING => {
                        deferred.push(request);
                    }
                    _ => self.hand_on(request),
                },
                Some(name) = to_look_again.recv() => self.command(&name, Command::LookAgain),
                Some(fleet) = reloads.recv(), if loading.is_none() => {
                    loading = Some(Box::pin(self.begin_load(fleet)));
                }
                loaded = async { loading.as_mut()?.await.into() }, if loading.is_some() => {
                    loading = None;
                    self.take_over_or_tell(loaded);
                    deferred.drain(..).for_each(|request| self.hand_on(request));
                }
            }
        }
        self.shutdown.cancel();
        for member in self.members.values() {
            member.cancel.cancel();
        }
        self.errands.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    fn is_member(&self, name: &str) -> bool {
        FeedName::new(name).is_some_and(|name| self.members.contains_key(&name))
    }

    fn hand_on(&mut self, request: Request) {
        match request {
            Request::Feed(name, order, reply) => self.order(&name, order, reply),
            Request::Ping(reply) => drop(reply.send(())),
            Request::Quarantine(id, order, reply) => {
                let sorter = self.sorter();
                self.errand(reply, String::clone, async move { sorter.one(id, order).await });
            }
            Request::Sort(chosen, order, reply) => {
                let sorter = self.sorter();
                let sorting = async move { sorter.sort(chosen, order).await.map(Answer::Done) };
                self.errand(reply, move |sorted: &Sorted| sorted.words(order), sorting);
            }
        }
    }

    fn sorter(&self) -> Sorter {
        Sorter { store: self.common.shared.store.clone(), at_work: self.common.at_work.clone() }
    }

    /// Does something beside the units, and answers for it; where nobody waits any more, the log has the words.
    fn errand<T: Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Result<Answer<T>, ControlError>>,
        words: impl FnOnce(&T) -> String + Send + 'static,
        work: impl Future<Output = Result<Answer<T>, ControlError>> + Send + 'static,
    ) {
        if self.errands.len() >= WAITING {
            return drop(reply.send(Err(too_many())));
        }
        self.errands.spawn(async move {
            let Err(answer) = reply.send(work.await) else { return };
            match answer {
                Ok(Answer::Done(done)) => {
                    tracing::info!(done = words(&done), "an order that was accepted is carried out")
                }
                Ok(Answer::Accepted(words)) => tracing::info!(words, "an order is accepted"),
                Err(error) => tracing::error!(%error, "an order that was accepted can't be carried out"),
            }
        });
    }

    fn order(&mut self, name: &str, order: Order, reply: Reply) {
        let Some(name) = FeedName::new(name) else {
            return drop(reply.send(Err(ControlError::Unknown(format!("there is no feed {name}")))));
        };
        if let Some(member) = self.members.get(&name) {
            return match member.commands.try_send(Command::Order(order, reply)) {
                Ok(()) => {}
                Err(TrySendError::Full(Command::Order(_, reply))) => drop(reply.send(Err(too_many()))),
                // The unit is ending, and with it the mirror, or is started again.
                Err(_) => {}
            };
        }
        if self.errands.len() >= WAITING {
            return drop(reply.send(Err(too_many())));
        }
        let mut unit = Unit::new(self.common.clone(), name, None, Arc::default());
        self.errands.spawn(async move {
            unit.carry_out(Command::Order(order, reply)).await;
            while unit.errands.join_next().await.is_some() {}
        });
    }

    fn command(&self, name: &FeedName, command: Command) {
        let Some(member) = self.members.get(name) else { return };
        if member.commands.try_send(command).is_err() {
            tracing::warn!(feed = %name, "too many orders wait: it looks at what is stored when it is started again");
        }
    }

    /// A unit has ended that nobody stopped: it panicked itself.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, error) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let Some(name) = self.names.remove(&id) else { return };
        let left =
            self.members.get(&name).is_none_or(|member| member.cancel.is_cancelled() || !member.commands.is_closed());
        if left || self.shutdown.is_cancelled() {
            return;
        }
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        tracing::error!(feed = %name, error, "a feed's unit fell over and is started again");
        self.common.at_work.remove(&name);
        if let Some(Member { configured, counts, .. }) = self.members.remove(&name) {
            drop(self.admit(configured, counts));
        }
    }

    /// Takes a configuration over: feeds that did not change are not disturbed.
    ///
    /// # Errors
    /// When the store can't register the feeds.
    pub async fn load(&mut self, fleet: Fleet) -> Result<(), StoreError> {
        let loading = self.begin_load(fleet).await.map_err(|refused| refused.error)?;
        for started in self.take_over(loading) {
            // Its end tells as much as a word would.
            drop(started.await);
        }
        Ok(())
    }

    /// Stops the feeds that change. What is returned waits for them and for the store, and needs nothing of the supervisor.
    fn begin_load(&mut self, fleet: Fleet) -> impl Future<Output = Result<Loading, Refused>> + Send + use<> {
        let same_hosts = self.fleet.hosts == fleet.hosts;
        let is_same = |configured: &&Configured| {
            let member = self.members.get(configured.name());
            same_hosts && member.is_some_and(|member| member.configured.works_as(configured))
        };
        let kept: BTreeSet<FeedName> = fleet.feeds.iter().filter(is_same).map(|same| same.name().clone()).collect();
        let left: Vec<FeedName> = self.members.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        let leaving: Vec<Member> = left.iter().filter_map(|name| self.leave(name)).collect();
        let store = self.common.shared.store.clone();
        async move {
            for member in &leaving {
                member.commands.closed().await;
            }
            match configure(&store, &fleet, true).await {
                Ok(_) => Ok(Loading { fleet, same_hosts, kept, left }),
                Err(error) => {
                    let stopped = leaving.into_iter().map(|member| (member.configured, member.counts)).collect();
                    Err(Refused { error, stopped })
                }
            }
        }
    }

    fn leave(&mut self, name: &FeedName) -> Option<Member> {
        let member = self.members.remove(name)?;
        member.cancel.cancel();
        let Configured::Ready(settings) = &member.configured else { return Some(member) };
        let reloading = DoorState::Defer { retry_after: RELOADED, why: "the configuration is being reloaded" };
        match settings.webhook.as_ref().map(|webhook| endpoints::closed_door(webhook, reloading)) {
            Some(Ok(door)) => self.common.inbox.register(name.as_str(), door),
            _ => self.common.inbox.remove(name.as_str()),
        }
        Some(member)
    }

    fn take_over_or_tell(&mut self, loaded: Option<Result<Loading, Refused>>) {
        match loaded {
            Some(Ok(loading)) => {
                drop(self.take_over(loading));
                tracing::info!(feeds = self.members.len(), "configuration reloaded");
            }
            Some(Err(Refused { error, stopped })) => {
                tracing::error!(%error, "the reload failed, and changed nothing; a further one may succeed");
                for (configured, counts) in stopped {
                    drop(self.admit(configured, counts));
                }
            }
            None => {}
        }
    }

    /// Starts the feeds that are new or have changed; what is returned ends as each has been.
    fn take_over(&mut self, loading: Loading) -> Vec<oneshot::Receiver<()>> {
        let Loading { fleet, same_hosts, kept, left } = loading;
        let mut starting = Vec::new();
        if !same_hosts {
            self.common.turns = Turns::new(fleet.hosts.clone());
        }
        for configured in &fleet.feeds {
            if kept.contains(configured.name()) {
                self.command(configured.name(), Command::ReadSecrets);
            } else {
                starting.push(self.admit(configured.clone(), Arc::default()));
            }
        }
        for name in left.iter().filter(|name| !self.members.contains_key(*name)) {
            self.common.inbox.remove(name.as_str());
        }
        self.keep.send_replace(fleet.keep.clone());
        self.fleet = fleet;
        self.roster.set(self.members.iter().map(|(name, member)| (name.clone(), Arc::clone(&member.counts))));
        starting
    }

    fn admit(&mut self, configured: Configured, counts: Arc<Counts>) -> oneshot::Receiver<()> {
        let name = configured.name().clone();
        let (commands, received) = mpsc::channel(WAITING);
        let cancel = CancellationToken::new();
        let mut unit = Unit::new(self.common.clone(), name.clone(), Some(configured.clone()), Arc::clone(&counts));
        let (starting, started) = oneshot::channel();
        unit.starting = Some(starting);
        let task = self.tasks.spawn(unit.run(received, cancel.clone()));
        self.names.insert(task.id(), name.clone());
        self.members.insert(name, Member { configured, counts, commands, cancel });
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
pub fn feed(
    shared: &Shared,
    clients: &Clients,
    turns: &Turns,
    settings: &FeedSettings,
    id: i64,
    counts: Arc<Counts>,
    book: Book,
) -> Result<Feed, Failure> {
    let waits = Some(Waits { store: shared.store.clone(), feed: id });
    let limits = (shared.budget.clone(), shared.decoders.clone());
    let source = settings.page_source((clients, turns), limits, counts, waits)?;
    Ok(Feed {
        shared: shared.clone(),
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
        poll_anew: Notify::new(),
        poll_soon: Notify::new(),
        resync_now: Notify::new(),
        book,
        begun_anew: Notify::new(),
        look_back_now: Notify::new(),
        pulses: Default::default(),
    })
}
