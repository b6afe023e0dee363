//! One feed: its loops started, watched, restarted and stopped, and its orders carried out one after the other.
//!
//! Guarantees: only this feed waits when its publisher, its loops or the store keep it waiting; whatever it does ends within
//! [`LET_GO`] of its cancellation; an order that was taken is carried out even if nobody waits for the answer any more.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::Configured;
use super::control::{Answer, ControlError, Order};
use super::endpoints::{self, Endpoints};
use super::fleet::{Common, feed};
use crate::feed::{FeedName, Health, Mode};
use crate::source::webhook::{Door, DoorState};
use crate::store::feeds::{Note, StoredFeed};
use crate::store::{Intake, StoreError, now};
use crate::worker::look_back::LookBackLoop;
use crate::worker::poll::PollLoop;
use crate::worker::resync::ResyncLoop;
use crate::worker::{Counts, Feed};

/// How often the loops' signs of life are looked at.
const CHECKUP: Duration = Duration::from_secs(10);
/// The longest wait before a feed is started again after a panic.
const LONGEST_RESTART: Duration = Duration::from_secs(300);
/// A feed that ran this long before it panicked is started again as if for the first time.
const SOUND_RUN: Duration = Duration::from_secs(600);
/// What the loops get, once they are told to end, to hand over what they have; what they still wait for then is let go.
const LET_GO: Duration = Duration::from_millis(500);
/// Work that is longer under way with nothing committed blames the store, not the loops that wait for it.
const STORE_SLOW: Duration = Duration::from_secs(5);
/// What the loops get after the store has kept them waiting.
const RECOVERS: Duration = Duration::from_secs(120);

pub(super) const PAUSED: &str = "the feed is paused";
pub(super) const PURGED: &str = "the feed is purged";

/// Who waits for an order's answer.
pub(super) type Reply = oneshot::Sender<Result<Answer, ControlError>>;

/// What a unit is told.
pub(super) enum Command {
    /// An operator's order.
    Order(Order, Reply),
    /// Secret files may have changed.
    ReadSecrets,
    /// The store has purged the feed, or resumed it after that.
    LookAgain,
}

/// A feed, configured or only stored.
pub(super) struct Unit {
    pub(super) common: Common,
    pub(super) name: FeedName,
    /// None of a feed that is only stored.
    pub(super) configured: Option<Configured>,
    pub(super) counts: Arc<Counts>,
    pub(super) running: Option<Running>,
    loops: JoinSet<()>,
    /// What an order goes on with after it was answered for.
    pub(super) errands: JoinSet<()>,
    panics: u32,
    store_slow: Option<Instant>,
    /// Dropped once the feed has been started for the first time, or could not be.
    pub(super) starting: Option<oneshot::Sender<()>>,
}

/// A feed's loops.
pub(super) struct Running {
    pub(super) feed: Arc<Feed>,
    door: Option<Door>,
    cancel: CancellationToken,
    since: Instant,
}

impl Unit {
    /// With nothing running yet.
    pub(super) fn new(common: Common, name: FeedName, configured: Option<Configured>, counts: Arc<Counts>) -> Self {
        let (loops, errands) = (JoinSet::new(), JoinSet::new());
        Self {
            common,
            name,
            configured,
            counts,
            running: None,
            loops,
            errands,
            panics: 0,
            store_slow: None,
            starting: None,
        }
    }

    /// Starts the feed's loops and does what it is told, until cancelled.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, cancel: CancellationToken) {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.serve(&mut commands) => {}
        }
        self.stop().await;
    }

    async fn serve(&mut self, commands: &mut mpsc::Receiver<Command>) {
        self.look_again().await;
        self.starting = None;
        let mut checkup = tokio::time::interval(CHECKUP);
        checkup.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(ended) = self.loops.join_next() => self.ended(ended).await,
                command = commands.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => return,
                },
                Some(_) = self.errands.join_next() => {}
                _ = checkup.tick() => self.check_up(),
            }
        }
    }

    pub(super) async fn carry_out(&mut self, command: Command) {
        match command {
            Command::Order(Order::Forget { item, undo: false }, reply) => self.forget(item, reply).await,
            Command::Order(order, reply) => {
                let words = order.verb();
                let answer = self.order(order).await;
                if let (Err(error), true) = (&answer, reply.is_closed()) {
                    tracing::error!(feed = %self.name, order = words, %error, "an order that was accepted can't be carried out");
                }
                // Whoever asked may be gone; what was asked for is done all the same.
                drop(reply.send(answer));
            }
            Command::ReadSecrets => self.read_secrets(),
            Command::LookAgain => self.look_again().await,
        }
    }

    /// Starts or stops the loops by what is stored.
    async fn look_again(&mut self) {
        match self.common.shared.store.feed(&self.name).await {
            Ok(stored) if stored.paused => {
                self.shut(why_shut(&stored));
                self.stop().await;
                self.start(&stored, Duration::ZERO).await;
            }
            Ok(stored) => self.start(&stored, Duration::ZERO).await,
            Err(error) => tell(&self.name, Err(error)),
        }
    }

    /// Starts the loops after `delay`, unless the feed is paused, can't run as it is configured, or runs.
    pub(super) async fn start(&mut self, stored: &StoredFeed, delay: Duration) {
        let Some(Configured::Ready(settings)) = &self.configured else { return };
        let store = &self.common.shared.store;
        let transports = settings.push_transports();
        let endpoints = match store.set_push_endpoints(stored.id, now(), transports).await {
            Ok(endpoints) => endpoints,
            Err(error) => return tell(&self.name, Err(error)),
        };
        if stored.paused {
            return self.shut(why_shut(stored));
        }
        if self.running.is_some() {
            return;
        }
        let book = endpoints::book(settings, stored, &endpoints);
        let Common { shared, clients, turns, .. } = &self.common;
        let made = Endpoints::new(clients, settings, stored, &book).and_then(|(endpoints, door)| {
            let feed = feed(shared, clients, turns, settings, stored.id, Arc::clone(&self.counts), book)?;
            Ok((Arc::new(feed), endpoints, door))
        });
        let (feed, endpoints, door) = match made {
            Ok(made) => made,
            Err(failure) => {
                tracing::error!(feed = %self.name, %failure, "the feed can't run");
                let reason = Some(failure.to_string());
                let note = Note { health: Health::Failed, reason, failures: stored.failures, next_poll_at: None };
                return tell(&self.name, store.note(stored.id, now(), note).await);
            }
        };
        let cancel = CancellationToken::new();
        if let Some(door) = &door {
            self.common.inbox.register(self.name.as_str(), door.clone());
        }
        self.common.at_work.insert(&feed);
        self.loops.spawn(work(Arc::clone(&feed), endpoints, cancel.clone(), stored.clone(), delay));
        self.running = Some(Running { feed, door, cancel, since: Instant::now() });
    }

    /// Ends the loops; what they have handed to the store is committed.
    pub(super) async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.common.at_work.remove(&self.name);
        running.cancel.cancel();
        if tokio::time::timeout(2 * LET_GO, self.loops.join_next()).await.is_err() {
            self.loops.shutdown().await;
        }
    }

    /// Turns away what is posted to the feed, and says why.
    pub(super) fn shut(&self, why: &'static str) {
        let Some(Configured::Ready(settings)) = &self.configured else { return };
        let Some(webhook) = &settings.webhook else { return };
        match endpoints::closed_door(webhook, DoorState::Refused(why)) {
            Ok(door) => self.common.inbox.register(self.name.as_str(), door),
            Err(failure) => {
                tracing::warn!(feed = %self.name, %failure, "its webhook knows no secret any more, and answers 404");
                self.common.inbox.remove(self.name.as_str());
            }
        }
    }

    fn read_secrets(&self) {
        let (Some(running), Some(Configured::Ready(settings))) = (&self.running, &self.configured) else { return };
        let stay = |failure| {
            tracing::warn!(feed = %self.name, %failure, "secrets can't be read again: the old ones stay");
        };
        if let (Some(webhook), Some(door)) = (&settings.webhook, &running.door) {
            match endpoints::secrets(webhook) {
                Ok(secrets) => self.common.inbox.register(self.name.as_str(), Door { secrets, ..door.clone() }),
                Err(failure) => stay(failure),
            }
        }
        let before = running.feed.source.requests.secret_changes();
        match running.feed.source.requests.read_secrets() {
            Ok(changes) if changes != before => running.feed.poll_anew.notify_one(),
            Ok(_) => {}
            Err(failure) => stay(failure),
        }
    }

    /// The loops have ended that nobody stopped: one panicked, or hung and was aborted.
    async fn ended(&mut self, ended: Result<(), JoinError>) {
        let Some(running) = self.running.take() else { return };
        self.common.at_work.remove(&self.name);
        let why = match ended {
            Ok(()) => "its loops ended unasked".to_owned(),
            Err(error) if error.is_panic() => format!("it panicked: {}", words(error.into_panic().as_ref())),
            Err(_) => "it hung: its loops showed no sign of life".to_owned(),
        };
        self.panics = if running.since.elapsed() > SOUND_RUN { 0 } else { self.panics + 1 };
        let delay = Duration::from_secs(1 << self.panics.min(9)).min(LONGEST_RESTART);
        tracing::error!(feed = %self.name, why, delay_s = delay.as_secs(), "a feed fell over and is started again");
        let reason = format!("restarted: {why}");
        let note = Note { health: Health::Retrying, reason: Some(reason.clone()), failures: 1, next_poll_at: None };
        let (store, id) = (&self.common.shared.store, running.feed.id);
        tell(&self.name, store.event(Some(id), now(), "restarted", &reason).await);
        tell(&self.name, store.note(id, now(), note).await);
        match store.feed(&self.name).await {
            Ok(stored) => self.start(&stored, delay).await,
            Err(error) => tell(&self.name, Err(error)),
        }
    }

    /// A loop that waits for the store hangs as little as one whose publisher is slow: while the store keeps everybody
    /// waiting, and for a while after, none is judged.
    fn check_up(&mut self) {
        let store = &self.common.shared.store;
        if *store.intake().borrow() != Intake::Open || store.overdue() > STORE_SLOW {
            self.store_slow = Some(Instant::now());
        }
        if self.store_slow.is_some_and(|at| at.elapsed() < RECOVERS) {
            return;
        }
        let overdue = |running: &Running| running.feed.pulses.iter().any(crate::worker::Pulse::is_overdue);
        if self.running.as_ref().is_some_and(overdue) {
            self.loops.abort_all();
        }
    }
}

fn why_shut(stored: &StoredFeed) -> &'static str {
    if stored.purged { PURGED } else { PAUSED }
}

/// What could not be written is no reason to fall over; a store that has stopped is told elsewhere.
pub(super) fn tell(feed: &FeedName, result: Result<(), StoreError>) {
    match result {
        Ok(()) | Err(StoreError::Closed) => {}
        Err(error) => tracing::warn!(feed = %feed, %error, "could not be noted"),
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
    let loops = async {
        if stored.mode.is_push() {
            let why = "restarted: push has to be reached again";
            tell(&feed.name, feed.shared.store.set_mode(feed.id, now(), Mode::Poll, why).await);
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
        tokio::time::sleep(LET_GO).await;
    };
    tokio::select! {
        () = loops => {}
        () = let_go => {}
    }
}
