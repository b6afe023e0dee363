//! The feeds together: who is asked for, how fast they change, what goes wrong and how often it has.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::fault::{FAULTS, Fault};
use super::feed::{self, Feed};
use super::misbehave::Mood;

/// What all requests share.
pub(super) struct Publisher {
    pub(super) settings: Settings,
    pub(super) address: SocketAddr,
    feeds: Vec<(String, Desk)>,
    index: HashMap<String, usize>,
    faults: RwLock<Arc<[(Fault, f64)]>>,
    frozen: AtomicBool,
    fired: Vec<AtomicU64>,
}

/// A feed and its mood, served one request at a time.
pub(super) struct Desk(Mutex<Served>);

/// What a request finds at its desk.
pub(super) struct Served {
    pub(super) feed: Feed,
    pub(super) mood: Mood,
}

impl Desk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Served> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    pub(super) fn new(settings: Settings, address: SocketAddr) -> Self {
        let feeds: Vec<(String, Desk)> = (0..settings.feeds)
            .map(|index| {
                let served = Served { feed: Feed::new(index, &settings), mood: Mood::new(index, settings.seed) };
                (feed::name(index), Desk(Mutex::new(served)))
            })
            .collect();
        let index = feeds.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let faults = RwLock::new(settings.faults.clone().into());
        let fired = FAULTS.iter().map(|_| AtomicU64::new(0)).collect();
        Self { settings, address, feeds, index, faults, frozen: AtomicBool::new(false), fired }
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

    pub(super) fn faults(&self) -> Arc<[(Fault, f64)]> {
        Arc::clone(&self.faults.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the faults; what an earlier set had begun is over, but for dead cursors.
    pub(super) fn set_faults(&self, faults: Vec<(Fault, f64)>) {
        *self.faults.write().unwrap_or_else(PoisonError::into_inner) = faults.into();
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
pub(super) async fn keep_changing(publisher: Arc<Publisher>, stop: CancellationToken) {
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
            () = stop.cancelled() => return,
            now = beat.tick() => now,
        };
        if !publisher.frozen.load(Ordering::Relaxed) {
            publisher.catch_up(&mut owed, now - before);
        }
        before = now;
    }
}
