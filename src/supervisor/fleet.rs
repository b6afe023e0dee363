//! All feeds at work: one task a feed, started, watched and restarted here.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::control::{ControlError, Order, Request};
use super::endpoints::{self, Endpoints};
use super::housekeeping::keep_house;
use super::{Configured, FeedSettings, Fleet};
use crate::feed::{Asked, Attribution, FeedName, Health, Mode, Outcome, Transport};
use crate::source::client::Clients;
use crate::source::http::Failure;
use crate::source::turns::Turns;
use crate::source::webhook::{Door, DoorState, Inbox};
use crate::store::feeds::{Note, Registration, StoredFeed};
use crate::store::keep::KeepSettings;
use crate::store::{Store, StoreError, now};
use crate::worker::page_source::Waits;
use crate::worker::poll::PollLoop;
use crate::worker::push::Book;
use crate::worker::resync::ResyncLoop;
use crate::worker::{Counts, Feed, Shared};

/// How often the loops' signs of life are looked at.
const CHECKUP: Duration = Duration::from_secs(10);
/// The longest wait before a feed is started again after a panic.
const LONGEST_RESTART: Duration = Duration::from_secs(300);
/// A feed that ran this long before it panicked is started again as if for the first time.
const SOUND_RUN: Duration = Duration::from_secs(600);

pub(super) const PAUSED: &str = "the feed is paused";
pub(super) const PURGED: &str = "the feed is purged";

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

/// Starts, watches and stops every feed's loops.
pub struct Supervisor {
    pub(super) shared: Shared,
    /// Where publishers post.
    inbox: Inbox,
    clients: Clients,
    turns: Turns,
    fleet: Fleet,
    pub(super) members: BTreeMap<FeedName, Member>,
    tasks: JoinSet<()>,
    names: BTreeMap<Id, FeedName>,
    roster: Roster,
    keep: watch::Sender<KeepSettings>,
}

/// A configured feed.
pub(super) struct Member {
    pub(super) configured: Configured,
    pub(super) running: Option<Running>,
    counts: Arc<Counts>,
    panics: u32,
}

/// A feed's loops.
pub(super) struct Running {
    pub(super) feed: Arc<Feed>,
    door: Option<Door>,
    cancel: CancellationToken,
    task: Id,
    abort: AbortHandle,
    since: Instant,
}

impl Supervisor {
    /// With nothing to do yet; its feeds take what is posted to `inbox`.
    pub fn new(shared: Shared, inbox: Inbox) -> Self {
        Self {
            shared,
            inbox,
            clients: Clients::default(),
            turns: Turns::new(Default::default()),
            fleet: Fleet::default(),
            members: BTreeMap::new(),
            tasks: JoinSet::new(),
            names: BTreeMap::new(),
            roster: Roster::default(),
            keep: watch::Sender::default(),
        }
    }

    /// The feeds' counts.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Until `shutdown`: carries out orders and reloads, and restarts what falls over. Returns once every loop has
    /// ended.
    pub async fn run(
        mut self,
        mut orders: super::control::Orders,
        mut reloads: mpsc::Receiver<Fleet>,
        shutdown: CancellationToken,
    ) {
        self.tasks.spawn(keep_house(self.shared.store.clone(), self.keep.subscribe(), shutdown.clone()));
        let mut checkup = tokio::time::interval(CHECKUP);
        checkup.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                Some(request) = orders.0.recv() => self.answer(request).await,
                Some(fleet) = reloads.recv() => self.load_or_tell(fleet).await,
                _ = checkup.tick() => self.check_up(),
            }
        }
        for member in self.members.values() {
            member.running.iter().for_each(|running| running.cancel.cancel());
        }
        while self.tasks.join_next().await.is_some() {}
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked may be gone; what was asked for is done all the same.
        match request {
            Request::Feed(name, order @ Order::Forget { undo: false, .. }, reply) => {
                let forgot = self.order(&name, order).await;
                self.erase_and_answer(forgot, reply);
            }
            Request::Feed(name, order, reply) => drop(reply.send(self.order(&name, order).await)),
            Request::Batch(batch, reply) => drop(reply.send(self.sort(batch).await)),
            Request::Quarantine(id, order, reply) => drop(reply.send(self.quarantine(id, order).await)),
            Request::Ping(reply) => drop(reply.send(())),
        }
    }

    /// Erasing may take a while: it is answered for from a task of its own.
    fn erase_and_answer(
        &mut self,
        forgot: Result<String, ControlError>,
        reply: oneshot::Sender<Result<String, ControlError>>,
    ) {
        let words = match forgot {
            Ok(words) => words,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let store = self.shared.store.clone();
        self.tasks.spawn(async move {
            let erased =
                store.erase().await.map_err(|error| ControlError::Refused(format!("{words}, but not erased: {error}")));
            let words = erased.map(|erased| format!("{words}; {}", crate::store::forget::erased_words(erased)));
            drop(reply.send(words));
        });
    }

    async fn load_or_tell(&mut self, fleet: Fleet) {
        match self.load(fleet).await {
            Ok(()) => tracing::info!(feeds = self.members.len(), "configuration reloaded"),
            Err(error) => tracing::error!(%error, "the reload failed; a further one may succeed"),
        }
    }

    /// Takes a configuration over: feeds that did not change are not disturbed.
    ///
    /// # Errors
    /// When the store can't register the feeds.
    pub async fn load(&mut self, fleet: Fleet) -> Result<(), StoreError> {
        let same_hosts = self.fleet.hosts == fleet.hosts;
        let mut kept = BTreeSet::new();
        for configured in &fleet.feeds {
            let name = configured.name();
            let same =
                same_hosts && self.members.get(name).is_some_and(|member| member.configured.works_as(configured));
            if same {
                kept.insert(name.clone());
            }
        }
        let leaving: Vec<FeedName> = self.members.keys().filter(|name| !kept.contains(*name)).cloned().collect();
        for name in leaving {
            self.stop(&name).await;
            self.members.remove(&name);
            self.inbox.remove(name.as_str());
        }
        if !same_hosts {
            self.turns = Turns::new(fleet.hosts.clone());
        }
        take_names_over(&self.shared.store, &fleet).await?;
        let stored = self.shared.store.register(now(), registrations(&fleet), true).await?;
        for (configured, stored) in fleet.feeds.iter().zip(&stored) {
            if kept.contains(configured.name()) {
                self.read_secrets(configured.name());
            } else {
                self.admit(configured.clone(), stored).await;
            }
        }
        self.keep.send_replace(fleet.keep.clone());
        self.fleet = fleet;
        self.roster.set(self.members.iter().map(|(name, member)| (name.clone(), Arc::clone(&member.counts))));
        Ok(())
    }

    fn read_secrets(&self, name: &FeedName) {
        let Some(running) = self.members.get(name).and_then(|member| member.running.as_ref()) else { return };
        self.read_door_secrets(name, running);
        match running.feed.source.requests.read_secrets() {
            Ok(true) => running.feed.poll_now.notify_one(),
            Ok(false) => {}
            Err(failure) => tracing::warn!(feed = %name, %failure, "secrets can't be read again: the old ones stay"),
        }
    }

    fn read_door_secrets(&self, name: &FeedName, running: &Running) {
        let Some(Configured::Ready(settings)) = self.members.get(name).map(|member| &member.configured) else { return };
        let (Some(webhook), Some(door)) = (&settings.webhook, &running.door) else { return };
        match endpoints::secrets(webhook) {
            Ok(secrets) => self.inbox.register(name.as_str(), Door { secrets, ..door.clone() }),
            Err(failure) => tracing::warn!(feed = %name, %failure, "secrets can't be read again: the old ones stay"),
        }
    }

    async fn admit(&mut self, configured: Configured, stored: &StoredFeed) {
        let name = configured.name().clone();
        let member = Member { configured, running: None, counts: Arc::default(), panics: 0 };
        self.members.insert(name.clone(), member);
        self.start(&name, stored, Duration::ZERO).await;
    }

    /// Starts a feed's loops after `delay`, unless it is paused, broken, or runs.
    pub(super) async fn start(&mut self, name: &FeedName, stored: &StoredFeed, delay: Duration) {
        let Some(member) = self.members.get_mut(name) else { return };
        let Configured::Ready(settings) = &member.configured else { return };
        let transports = settings.push_transports();
        let endpoints = match self.shared.store.set_push_endpoints(stored.id, now(), transports).await {
            Ok(endpoints) => endpoints,
            Err(error) => return tell(name, Err(error)),
        };
        if stored.paused {
            return self.shut(name, if stored.purged { PURGED } else { PAUSED });
        }
        if member.running.is_some() {
            return;
        }
        let counts = Arc::clone(&member.counts);
        let book = endpoints::book(settings, stored, &endpoints);
        let made = Endpoints::new(&self.clients, settings, stored, &book).and_then(|(endpoints, door)| {
            let feed = feed(&self.shared, &self.clients, &self.turns, settings, stored.id, counts, book)?;
            Ok((Arc::new(feed), endpoints, door))
        });
        let (feed, endpoints, door) = match made {
            Ok(made) => made,
            Err(failure) => {
                tracing::error!(feed = %name, %failure, "the feed can't run");
                let reason = Some(failure.to_string());
                let note = Note { health: Health::Failed, reason, failures: stored.failures, next_poll_at: None };
                tell(name, self.shared.store.note(stored.id, now(), note).await);
                return;
            }
        };
        let cancel = CancellationToken::new();
        if let Some(door) = &door {
            self.inbox.register(name.as_str(), door.clone());
        }
        let work = work(Arc::clone(&feed), endpoints, cancel.clone(), stored.clone(), delay);
        let abort = self.tasks.spawn(work);
        self.names.insert(abort.id(), name.clone());
        member.running = Some(Running { feed, door, cancel, task: abort.id(), abort, since: Instant::now() });
    }

    /// Turns away what is posted to a feed, and says why.
    pub(super) fn shut(&self, name: &FeedName, why: &'static str) {
        let Some(Configured::Ready(settings)) = self.members.get(name).map(|member| &member.configured) else { return };
        let Some(webhook) = &settings.webhook else { return };
        match endpoints::closed_door(webhook, DoorState::Refused(why)) {
            Ok(door) => self.inbox.register(name.as_str(), door),
            Err(failure) => {
                tracing::warn!(feed = %name, %failure, "its webhook knows no secret any more, and answers 404");
                self.inbox.remove(name.as_str());
            }
        }
    }

    /// Ends a feed's loops; what they have handed to the store is committed.
    pub(super) async fn stop(&mut self, name: &FeedName) {
        let Some(running) = self.members.get_mut(name).and_then(|member| member.running.take()) else { return };
        running.cancel.cancel();
        while let Some(ended) = self.tasks.join_next_with_id().await {
            let id = id_of(&ended);
            if id == running.task {
                self.names.remove(&id);
                return;
            }
            Box::pin(self.ended(ended)).await;
        }
    }

    /// A task has ended that nobody stopped: it panicked, or hung and was aborted.
    async fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let Some(name) = self.names.remove(&id_of(&ended)) else { return };
        let Some(member) = self.members.get_mut(&name) else { return };
        let Some(running) = member.running.take() else { return };
        let why = match ended {
            Ok(_) => "its loops ended unasked".to_owned(),
            Err(error) if error.is_panic() => format!("it panicked: {}", words(error.into_panic().as_ref())),
            Err(_) => "it hung: its loops showed no sign of life".to_owned(),
        };
        member.panics = if running.since.elapsed() > SOUND_RUN { 0 } else { member.panics + 1 };
        let delay = Duration::from_secs(1 << member.panics.min(9)).min(LONGEST_RESTART);
        tracing::error!(feed = %name, why, delay_s = delay.as_secs(), "a feed fell over and is started again");
        let reason = format!("restarted: {why}");
        let note = Note { health: Health::Retrying, reason: Some(reason.clone()), failures: 1, next_poll_at: None };
        let id = running.feed.id;
        tell(&name, self.shared.store.event(Some(id), now(), "restarted", &reason).await);
        tell(&name, self.shared.store.note(id, now(), note).await);
        match self.shared.store.feed(&name).await {
            Ok(stored) => self.start(&name, &stored, delay).await,
            Err(error) => tell(&name, Err(error)),
        }
    }

    fn check_up(&self) {
        for running in self.members.values().filter_map(|member| member.running.as_ref()) {
            if running.feed.pulses.iter().any(crate::worker::Pulse::is_overdue) {
                running.abort.abort();
            }
        }
    }
}

/// What could not be written is no reason to fall over; a store that has stopped is told elsewhere.
pub(super) fn tell(feed: &FeedName, result: Result<(), StoreError>) {
    match result {
        Ok(()) | Err(StoreError::Closed) => {}
        Err(error) => tracing::warn!(feed = %feed, %error, "could not be noted"),
    }
}

fn id_of(ended: &Result<(Id, ()), JoinError>) -> Id {
    match ended {
        Ok((id, ())) => *id,
        Err(error) => error.id(),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

async fn work(feed: Arc<Feed>, endpoints: Endpoints, cancel: CancellationToken, stored: StoredFeed, delay: Duration) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = tokio::time::sleep(delay) => {}
    }
    #[cfg(test)]
    assert!(feed.name.as_str() != "panics", "as the test wants it");
    if stored.mode.is_push() {
        let why = "restarted: push has to be reached again";
        tell(&feed.name, feed.shared.store.set_mode(feed.id, now(), Mode::Poll, why).await);
    }
    tokio::join!(
        PollLoop::new(&feed, &cancel).run(&stored),
        ResyncLoop::new(&feed, &cancel).run(),
        endpoints.run(&feed, &stored, &cancel)
    );
}

/// Renames in the store what is configured under another name than before.
///
/// # Errors
/// When the store can't do it.
pub async fn take_names_over(store: &Store, fleet: &Fleet) -> Result<(), StoreError> {
    for configured in &fleet.feeds {
        let Configured::Ready(settings) = configured else { continue };
        let Some(was) = &settings.was else { continue };
        if store.take_over(now(), was, &settings.name).await? {
            tracing::info!(feed = %settings.name, was = %was, "renamed");
        }
    }
    Ok(())
}

/// How the store knows the configured feeds.
pub fn registrations(fleet: &Fleet) -> Vec<Registration> {
    let registration = |configured: &Configured| match configured {
        Configured::Ready(settings) => Registration {
            name: settings.name.clone(),
            provider: settings.provider.clone(),
            url: settings.url.clone(),
            attribution: settings.attribution.clone(),
            broken: None,
        },
        Configured::Broken { name, reason } => Registration {
            name: name.clone(),
            provider: None,
            url: String::new(),
            attribution: Attribution::default(),
            broken: Some(format!("settings: {reason}")),
        },
    };
    fleet.feeds.iter().map(registration).collect()
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
    let limits = (shared.budget.clone(), Arc::clone(&shared.decoders));
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
        poll_now: Notify::new(),
        resync_now: Notify::new(),
        book,
        look_back: Default::default(),
        pulses: Default::default(),
    })
}
