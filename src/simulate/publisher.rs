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

use super::SimulatorSettings;
use super::fault::{FAULTS, Fault, FaultChannel};
use super::feed::{self, FeedModel, PageStart};
use super::poll_faults::PollFaults;
use super::push::PushStats;
use super::stream::StreamFaults;

/// What all requests share.
pub(super) struct PublisherState {
    pub(super) settings: SimulatorSettings,
    pub(super) address: SocketAddr,
    /// Cancelled when all is to end.
    pub(super) stop: CancellationToken,
    feeds: Vec<(String, SimulatedFeed)>,
    index: HashMap<String, usize>,
    faults: RwLock<Vec<(Fault, f64)>>,
    frozen: AtomicBool,
    fault_counts: Vec<AtomicU64>,
    push_stats: Mutex<PushStatsByReceiver>,
}

/// `webhook` or `amqp`, then the feed.
pub(super) type PushStatsByReceiver = BTreeMap<&'static str, BTreeMap<String, PushStats>>;

/// A feed and its moods, served one request at a time.
pub(super) struct SimulatedFeed {
    feed_with_faults: Mutex<FeedWithFaults>,
    news: watch::Sender<u64>,
    /// The end of the first population.
    initial_end: PageStart,
}

/// What a request finds at its desk.
pub(super) struct FeedWithFaults {
    pub(super) feed: FeedModel,
    pub(super) poll_faults: PollFaults,
    pub(super) stream_faults: StreamFaults,
}

/// The feed while it is served; whoever waits for news hears of what changed when it is given back.
pub(super) struct FeedGuard<'a> {
    served: MutexGuard<'a, FeedWithFaults>,
    news: &'a watch::Sender<u64>,
}

impl Deref for FeedGuard<'_> {
    type Target = FeedWithFaults;

    fn deref(&self) -> &FeedWithFaults {
        &self.served
    }
}

impl DerefMut for FeedGuard<'_> {
    fn deref_mut(&mut self) -> &mut FeedWithFaults {
        &mut self.served
    }
}

impl Drop for FeedGuard<'_> {
    fn drop(&mut self) {
        let changes = self.served.feed.changes();
        self.news.send_if_modified(|known| std::mem::replace(known, changes) != changes);
    }
}

impl SimulatedFeed {
    fn new(served: FeedWithFaults) -> Self {
        let born = served.feed.end().map_or(PageStart::Beginning, |end| PageStart::After(end.clone()));
        Self {
            news: watch::Sender::new(served.feed.changes()),
            feed_with_faults: Mutex::new(served),
            initial_end: born,
        }
    }

    pub(super) fn lock(&self) -> FeedGuard<'_> {
        FeedGuard { served: self.feed_with_faults.lock().unwrap_or_else(PoisonError::into_inner), news: &self.news }
    }

    /// Hears of changes from now on.
    pub(super) fn watch_changes(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Behind the first population, before the first change.
    pub(super) fn initial_end(&self) -> &PageStart {
        &self.initial_end
    }
}

impl PublisherState {
    pub(super) fn new(settings: SimulatorSettings, address: SocketAddr) -> Self {
        let feeds: Vec<(String, SimulatedFeed)> = (0..settings.feeds)
            .map(|index| {
                let served = FeedWithFaults {
                    feed: FeedModel::new(index, &settings),
                    poll_faults: PollFaults::new(index, settings.seed),
                    stream_faults: StreamFaults::new(index, settings.seed),
                };
                (feed::name(index), SimulatedFeed::new(served))
            })
            .collect();
        let index = feeds.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let faults = RwLock::new(settings.faults.clone());
        let fired = FAULTS.iter().map(|_| AtomicU64::new(0)).collect();
        let stop = CancellationToken::new();
        let pushed = Mutex::default();
        Self {
            settings,
            address,
            stop,
            feeds,
            index,
            faults,
            frozen: AtomicBool::new(false),
            fault_counts: fired,
            push_stats: pushed,
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.feeds.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn feed(&self, name: &str) -> Option<&SimulatedFeed> {
        self.index.get(name).map(|at| &self.feeds[*at].1)
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// The faults that may befall this carrier, each with its share.
    pub(super) fn faults(&self, on: FaultChannel) -> Vec<(Fault, f64)> {
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
            desk.lock().poll_faults.reset_faults();
        }
    }

    /// Counts a fault that has happened.
    pub(super) fn fire(&self, fault: Fault) {
        self.fault_counts[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.fault_counts.iter().map(|count| count.load(Ordering::Relaxed));
        FAULTS.iter().map(|row| row.name).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Writes down what became of what was pushed.
    pub(super) fn note(&self, receiver: &'static str, feed: &str, note: impl FnOnce(&mut PushStats)) {
        let mut ledger = self.push_stats.lock().unwrap_or_else(PoisonError::into_inner);
        note(ledger.entry(receiver).or_default().entry(feed.to_owned()).or_default());
    }

    pub(super) fn push_stats(&self) -> PushStatsByReceiver {
        self.push_stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
pub(super) async fn keep_changing(publisher: Arc<PublisherState>) {
    const CHANGE_INTERVAL: Duration = Duration::from_millis(20);
    if publisher.settings.rate <= 0.0 {
        return;
    }
    // Spread out, so that feeds don't all change in one beat.
    let count = publisher.feeds.len();
    let mut owed: Vec<f64> = (0..count).map(|index| index as f64 / count as f64).collect();
    let mut beat = interval(CHANGE_INTERVAL);
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
