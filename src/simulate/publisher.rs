//! The feeds together: who is asked for, how fast they change, what goes wrong and how often it has.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::fault::{Carrier, FAULTS, Fault};
use super::feed::{self, Feed, Start};
use super::misbehave::Mood;
use super::push::Pushed;
use super::stream::Temper;

/// What all requests share.
pub(super) struct Publisher {
    pub(super) settings: Settings,
    pub(super) address: SocketAddr,
    /// Cancelled when all is to end.
    pub(super) stop: CancellationToken,
    feeds: Vec<(String, Desk)>,
    index: HashMap<String, usize>,
    faults: RwLock<Vec<(Fault, f64)>>,
    frozen: AtomicBool,
    fired: Vec<AtomicU64>,
    pushed: Mutex<Ledger>,
}

/// `webhook` or `amqp`, then the feed.
pub(super) type Ledger = BTreeMap<&'static str, BTreeMap<String, Pushed>>;

/// A feed and its moods, served one request at a time.
pub(super) struct Desk {
    served: Mutex<Served>,
    news: watch::Sender<u64>,
    /// The end of the first population.
    born: Start,
}

/// What a request finds at its desk.
pub(super) struct Served {
    pub(super) feed: Feed,
    pub(super) mood: Mood,
    pub(super) temper: Temper,
}

/// The feed while it is served; whoever waits for news hears of what changed when it is given back.
pub(super) struct Attended<'a> {
    served: MutexGuard<'a, Served>,
    news: &'a watch::Sender<u64>,
}

impl Deref for Attended<'_> {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl DerefMut for Attended<'_> {
    fn deref_mut(&mut self) -> &mut Served {
        &mut self.served
    }
}

impl Drop for Attended<'_> {
    fn drop(&mut self) {
        let changes = self.served.feed.changes();
        self.news.send_if_modified(|known| std::mem::replace(known, changes) != changes);
    }
}

impl Desk {
    fn new(served: Served) -> Self {
        let born = served.feed.end().map_or(Start::Beginning, |end| Start::After(end.clone()));
        Self { news: watch::Sender::new(served.feed.changes()), served: Mutex::new(served), born }
    }

    pub(super) fn lock(&self) -> Attended<'_> {
        Attended { served: self.served.lock().unwrap_or_else(PoisonError::into_inner), news: &self.news }
    }

    /// Hears of changes from now on.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Behind the first population, before the first change.
    pub(super) fn born(&self) -> &Start {
        &self.born
    }
}

impl Publisher {
    pub(super) fn new(settings: Settings, address: SocketAddr) -> Self {
        let feeds: Vec<(String, Desk)> = (0..settings.feeds)
            .map(|index| {
                let served = Served {
                    feed: Feed::new(index, &settings),
                    mood: Mood::new(index, settings.seed),
                    temper: Temper::new(index, settings.seed),
                };
                (feed::name(index), Desk::new(served))
            })
            .collect();
        let index = feeds.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let faults = RwLock::new(settings.faults.clone());
        let fired = FAULTS.iter().map(|_| AtomicU64::new(0)).collect();
        let stop = CancellationToken::new();
        let pushed = Mutex::default();
        Self { settings, address, stop, feeds, index, faults, frozen: AtomicBool::new(false), fired, pushed }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.feeds.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn feed(&self, name: &str) -> Option<&Desk> {
        self.index.get(name).map(|at| &self.feeds[*at].1)
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// The faults that may befall this carrier, each with its share.
    pub(super) fn faults(&self, on: Carrier) -> Vec<(Fault, f64)> {
        let faults = self.faults.read().unwrap_or_else(PoisonError::into_inner);
        faults.iter().filter(|(fault, _)| fault.on() == on).copied().collect()
    }

    /// Whether the fault may happen now.
    pub(super) fn risks(&self, fault: Fault) -> bool {
        let faults = self.faults.read().unwrap_or_else(PoisonError::into_inner);
        faults.iter().any(|(risked, share)| *risked == fault && *share > 0.0)
    }

    /// Replaces the faults; what an earlier set had begun is over, but for dead cursors.
    pub(super) fn set_faults(&self, faults: Vec<(Fault, f64)>) {
        *self.faults.write().unwrap_or_else(PoisonError::into_inner) = faults;
        for (_, desk) in &self.feeds {
            desk.lock().mood.calm();
        }
    }

    /// Counts a fault that has happened.
    pub(super) fn fire(&self, fault: Fault) {
        self.fired[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fired(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.fired.iter().map(|count| count.load(Ordering::Relaxed));
        FAULTS.iter().map(|row| row.name).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Writes down what became of what was pushed.
    pub(super) fn note(&self, receiver: &'static str, feed: &str, note: impl FnOnce(&mut Pushed)) {
        let mut ledger = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        note(ledger.entry(receiver).or_default().entry(feed.to_owned()).or_default());
    }

    pub(super) fn pushed(&self) -> Ledger {
        self.pushed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the changes that are due by now, `owed` being what each feed is behind.
    fn catch_up(&self, owed: &mut [f64], elapsed: Duration) {
        let earned = self.settings.rate * elapsed.as_secs_f64();
        for (owed, (_, desk)) in owed.iter_mut().zip(&self.feeds) {
            *owed += earned;
            while *owed >= 1.0 {
                let mut served = desk.lock();
                let group = served.feed.group();
                if (group as f64) > *owed {
                    break;
                }
                served.feed.change(group);
                *owed -= group as f64;
            }
        }
    }
}

/// Changes the feeds at the configured rate until stopped.
pub(super) async fn keep_changing(publisher: Arc<Publisher>) {
    const BEAT: Duration = Duration::from_millis(20);
    if publisher.settings.rate <= 0.0 {
        return;
    }
    // Spread out, so that feeds don't all change in one beat.
    let count = publisher.feeds.len();
    let mut owed: Vec<f64> = (0..count).map(|index| index as f64 / count as f64).collect();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Instant::now();
    loop {
        let now = tokio::select! {
            () = publisher.stop.cancelled() => return,
            now = beat.tick() => now,
        };
        if !publisher.frozen.load(Ordering::Relaxed) {
            publisher.catch_up(&mut owed, now - before);
        }
        before = now;
    }
}
