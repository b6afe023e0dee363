//! All feeds of the publisher: their lookup, their rate of change, their faults and fault counts.

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

/// State that all requests share.
pub(super) struct PublisherState {
    pub(super) settings: SimulatorSettings,
    pub(super) address: SocketAddr,
    /// Cancelled when the publisher stops.
    pub(super) stop: CancellationToken,
    feeds: Vec<(String, SimulatedFeed)>,
    index: HashMap<String, usize>,
    faults: RwLock<Vec<(Fault, f64)>>,
    frozen: AtomicBool,
    fault_counts: Vec<AtomicU64>,
    push_stats: Mutex<PushStatsByReceiver>,
}

/// Push stats by receiver (`webhook` or `amqp`), then by feed.
pub(super) type PushStatsByReceiver = BTreeMap<&'static str, BTreeMap<String, PushStats>>;

/// A feed and its faults, used by one request at a time.
pub(super) struct SimulatedFeed {
    feed_with_faults: Mutex<FeedWithFaults>,
    changes: watch::Sender<u64>,
    /// The end of the first population.
    initial_end: PageStart,
}

/// A feed and the state of its faults.
pub(super) struct FeedWithFaults {
    pub(super) feed: FeedModel,
    pub(super) poll_faults: PollFaults,
    pub(super) stream_faults: StreamFaults,
}

/// Exclusive use of a feed; when dropped, it notifies whoever watches the feed if it changed.
pub(super) struct FeedGuard<'a> {
    feed_with_faults: MutexGuard<'a, FeedWithFaults>,
    changes: &'a watch::Sender<u64>,
}

impl Deref for FeedGuard<'_> {
    type Target = FeedWithFaults;

    fn deref(&self) -> &FeedWithFaults {
        &self.feed_with_faults
    }
}

impl DerefMut for FeedGuard<'_> {
    fn deref_mut(&mut self) -> &mut FeedWithFaults {
        &mut self.feed_with_faults
    }
}

impl Drop for FeedGuard<'_> {
    fn drop(&mut self) {
        let count = self.feed_with_faults.feed.changes();
        self.changes.send_if_modified(|known| std::mem::replace(known, count) != count);
    }
}

impl SimulatedFeed {
    fn new(feed_with_faults: FeedWithFaults) -> Self {
        let initial_end = feed_with_faults.feed.end().map_or(PageStart::Beginning, |end| PageStart::After(end.clone()));
        Self {
            changes: watch::Sender::new(feed_with_faults.feed.changes()),
            feed_with_faults: Mutex::new(feed_with_faults),
            initial_end,
        }
    }

    pub(super) fn lock(&self) -> FeedGuard<'_> {
        FeedGuard {
            feed_with_faults: self.feed_with_faults.lock().unwrap_or_else(PoisonError::into_inner),
            changes: &self.changes,
        }
    }

    /// Watches for changes from now on.
    pub(super) fn watch_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The position after the first population, before the first change.
    pub(super) fn initial_end(&self) -> &PageStart {
        &self.initial_end
    }
}

impl PublisherState {
    pub(super) fn new(settings: SimulatorSettings, address: SocketAddr) -> Self {
        let feeds: Vec<(String, SimulatedFeed)> = (0..settings.feeds)
            .map(|index| {
                let feed_with_faults = FeedWithFaults {
                    feed: FeedModel::new(index, &settings),
                    poll_faults: PollFaults::new(index, settings.seed),
                    stream_faults: StreamFaults::new(index, settings.seed),
                };
                (feed::name(index), SimulatedFeed::new(feed_with_faults))
            })
            .collect();
        let index = feeds.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let faults = RwLock::new(settings.faults.clone());
        let fault_counts = FAULTS.iter().map(|_| AtomicU64::new(0)).collect();
        let stop = CancellationToken::new();
        let push_stats = Mutex::default();
        Self { settings, address, stop, feeds, index, faults, frozen: AtomicBool::new(false), fault_counts, push_stats }
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

    /// The faults of this channel, each with its share.
    pub(super) fn faults(&self, on: FaultChannel) -> Vec<(Fault, f64)> {
        let faults = self.faults.read().unwrap_or_else(PoisonError::into_inner);
        faults.iter().filter(|(fault, _)| fault.on() == on).copied().collect()
    }

    /// Whether the fault may happen now.
    pub(super) fn can_happen(&self, fault: Fault) -> bool {
        let faults = self.faults.read().unwrap_or_else(PoisonError::into_inner);
        faults.iter().any(|(configured, share)| *configured == fault && *share > 0.0)
    }

    /// Replaces the faults; what earlier faults had begun is over, but for dead cursors.
    pub(super) fn set_faults(&self, faults: Vec<(Fault, f64)>) {
        *self.faults.write().unwrap_or_else(PoisonError::into_inner) = faults;
        for (_, simulated) in &self.feeds {
            simulated.lock().poll_faults.reset_faults();
        }
    }

    /// Counts a fault that has happened.
    pub(super) fn count_fault(&self, fault: Fault) {
        self.fault_counts[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.fault_counts.iter().map(|count| count.load(Ordering::Relaxed));
        FAULTS.iter().map(|row| row.name).zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Updates the push stats of a receiver and a feed.
    pub(super) fn record_push(&self, receiver: &'static str, feed: &str, update: impl FnOnce(&mut PushStats)) {
        let mut stats = self.push_stats.lock().unwrap_or_else(PoisonError::into_inner);
        update(stats.entry(receiver).or_default().entry(feed.to_owned()).or_default());
    }

    pub(super) fn push_stats(&self) -> PushStatsByReceiver {
        self.push_stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the changes that are due by now; `owed` holds the changes that each feed is behind.
    fn catch_up(&self, owed: &mut [f64], elapsed: Duration) {
        let earned = self.settings.rate * elapsed.as_secs_f64();
        for (owed, (_, simulated)) in owed.iter_mut().zip(&self.feeds) {
            *owed += earned;
            while *owed >= 1.0 {
                let mut feed_with_faults = simulated.lock();
                let group = feed_with_faults.feed.group();
                if (group as f64) > *owed {
                    break;
                }
                feed_with_faults.feed.change(group);
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
    // Offsets the feeds, so that they don't all change in the same tick.
    let count = publisher.feeds.len();
    let mut owed: Vec<f64> = (0..count).map(|index| index as f64 / count as f64).collect();
    let mut ticks = interval(CHANGE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Instant::now();
    loop {
        let now = tokio::select! {
            () = publisher.stop.cancelled() => return,
            now = ticks.tick() => now,
        };
        if !publisher.frozen.load(Ordering::Relaxed) {
            publisher.catch_up(&mut owed, now - before);
        }
        before = now;
    }
}
