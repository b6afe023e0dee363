//! Politeness: how many requests go to a host at once, and whose turn it is.
//!
//! A waiting level poll takes the next free place before any page of a refresh; refreshes take turns; with more than
//! one place they leave one free while the host has level feeds. After a 429 or a refused connection a host gets one
//! request at a time until one succeeds. Knows nothing of what is fetched.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::http::{HostLimits, HostSettings};
use crate::feed::FeedName;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A look at a level feed's end.
    Level,
    /// A page of a refresh, resync or look-back.
    Refresh,
}

/// All hosts.
#[derive(Clone)]
pub struct HostLimiter {
    hosts: Arc<Mutex<HashMap<String, Arc<HostQueue>>>>,
    settings: Arc<HostSettings>,
}

/// One host, or all that share a budget.
pub struct HostQueue {
    name: String,
    state: Mutex<QueueState>,
    rate: Option<DefaultDirectRateLimiter>,
    resync: Arc<Semaphore>,
}

struct QueueState {
    places: usize,
    one_at_a_time: bool,
    holders: Vec<(u64, FeedName, Priority)>,
    level_waiters: VecDeque<Waiter>,
    refresh_waiters: VecDeque<Waiter>,
    level_feeds: usize,
    next: u64,
}

struct Waiter {
    feed: FeedName,
    granted: oneshot::Sender<u64>,
}

/// A place at a host, free again when dropped.
pub struct HostPermit {
    host: Arc<HostQueue>,
    number: u64,
}

/// Says that a feed of this host is level, until dropped.
pub struct LevelGuard(Arc<HostQueue>);

impl HostLimiter {
    /// With these budgets.
    pub fn new(settings: HostSettings) -> Self {
        Self { hosts: Arc::default(), settings: Arc::new(settings) }
    }

    /// The host that `url` is served by, or the budget it shares with others.
    pub fn queue_for(&self, url: &url::Url) -> Arc<HostQueue> {
        let name = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let address = format!("{name}:{}", url.port_or_known_default().unwrap_or(0));
        let shared = self.settings.matching.iter().find(|(pattern, _)| matches(pattern, &name, &address));
        let (key, budget) = match shared {
            Some((pattern, budget)) => (pattern.clone(), budget),
            None => (address, &self.settings.each),
        };
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(key.clone()).or_insert_with(|| Arc::new(HostQueue::new(key, budget))))
    }
}

/// `example.org` matches the host, `example.org:8443` that port alone, `*.example.org` all hosts below it.
fn matches(pattern: &str, name: &str, address: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    match pattern.strip_prefix("*.") {
        Some(domain) => name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => pattern == name || pattern == address,
    }
}

impl HostQueue {
    fn new(name: String, budget: &HostLimits) -> Self {
        let line = QueueState {
            places: budget.per_host.max(1),
            one_at_a_time: false,
            holders: Vec::new(),
            level_waiters: VecDeque::new(),
            refresh_waiters: VecDeque::new(),
            level_feeds: 0,
            next: 0,
        };
        let rate = budget.rate.filter(|rate| *rate > 0.0).and_then(|rate| {
            let quota = Quota::with_period(Duration::from_secs_f64(1.0 / rate))?;
            Some(RateLimiter::direct(quota.allow_burst(NonZeroU32::MIN)))
        });
        Self { name, state: Mutex::new(line), rate, resync: Arc::new(Semaphore::new(1)) }
    }

    /// How it is known to operators.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place, and for the rate.
    pub async fn acquire(self: &Arc<Self>, feed: &FeedName, priority: Priority) -> HostPermit {
        let (granted, answer) = oneshot::channel();
        {
            let mut line = self.lock();
            let waiting = Waiter { feed: feed.clone(), granted };
            match priority {
                Priority::Level => line.level_waiters.push_back(waiting),
                Priority::Refresh => line.refresh_waiters.push_back(waiting),
            }
            line.grant();
        }
        let mut claim = PendingPermit { host: Arc::clone(self), answer, taken: false };
        // The line keeps a waiting request's sender until it is granted, so the answer always comes.
        let number = (&mut claim.answer).await.unwrap_or(u64::MAX);
        claim.taken = true;
        let turn = HostPermit { host: Arc::clone(self), number };
        if let Some(rate) = &self.rate {
            rate.until_ready().await;
        }
        turn
    }

    /// In words, what a feed that can't have a place waits for.
    pub fn describe_wait(&self) -> String {
        let line = self.lock();
        let holders: Vec<&str> = line.holders.iter().map(|(_, feed, _)| feed.as_str()).collect();
        let waiting = line.level_waiters.len() + line.refresh_waiters.len();
        format!("waiting: for a place at {} (held by {}; {waiting} wait)", self.name, holders.join(", "))
    }

    /// One request at a time until one succeeds.
    pub fn throttle(&self) {
        self.lock().one_at_a_time = true;
    }

    /// A request has succeeded.
    pub fn record_success(&self) {
        let mut line = self.lock();
        if line.one_at_a_time {
            line.one_at_a_time = false;
            line.grant();
        }
    }

    /// Says that a feed of this host is level.
    pub fn mark_level(self: &Arc<Self>) -> LevelGuard {
        self.lock().level_feeds += 1;
        LevelGuard(Arc::clone(self))
    }

    /// Resyncs go one a host at a time.
    pub async fn acquire_resync(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.resync).acquire_owned().await.ok()
    }
}

/// Gives a place back that was granted to a wait that was dropped just then.
struct PendingPermit {
    host: Arc<HostQueue>,
    answer: oneshot::Receiver<u64>,
    taken: bool,
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        self.answer.close();
        if let Ok(number) = self.answer.try_recv() {
            self.host.lock().release(number);
        }
    }
}

impl QueueState {
    fn grant(&mut self) {
        loop {
            let places = if self.one_at_a_time { 1 } else { self.places };
            if self.holders.len() >= places {
                return;
            }
            let for_refresh = if places > 1 && self.level_feeds > 0 { places - 1 } else { places };
            let refreshing = self.holders.iter().filter(|(_, _, priority)| *priority == Priority::Refresh).count();
            let (waiting, priority) = if let Some(waiting) = self.level_waiters.pop_front() {
                (waiting, Priority::Level)
            } else if refreshing < for_refresh {
                match self.refresh_waiters.pop_front() {
                    Some(waiting) => (waiting, Priority::Refresh),
                    None => return,
                }
            } else {
                return;
            };
            let number = self.next;
            self.next += 1;
            // A wait that was dropped takes no place.
            if waiting.granted.send(number).is_ok() {
                self.holders.push((number, waiting.feed, priority));
            }
        }
    }

    fn release(&mut self, number: u64) {
        self.holders.retain(|(holder, _, _)| *holder != number);
        self.grant();
    }
}

impl Drop for HostPermit {
    fn drop(&mut self) {
        self.host.lock().release(self.number);
    }
}

impl Drop for LevelGuard {
    fn drop(&mut self) {
        let mut line = self.0.lock();
        line.level_feeds = line.level_feeds.saturating_sub(1);
        line.grant();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt;

    fn host(per_host: usize) -> Arc<HostQueue> {
        let each = HostLimits { per_host, rate: None };
        let turns = HostLimiter::new(HostSettings { each, matching: Vec::new() });
        turns.queue_for(&"http://h.example/feed".parse().unwrap())
    }
    fn name(name: &str) -> FeedName {
        FeedName::new(name).unwrap()
    }

    #[tokio::test]
    async fn a_level_poll_goes_before_pages_that_waited_longer() {
        let host = host(1);
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let held = host.acquire(&a, Priority::Refresh).await;
        let mut page = Box::pin(host.acquire(&b, Priority::Refresh));
        assert!((&mut page).now_or_never().is_none());
        let mut poll = Box::pin(host.acquire(&c, Priority::Level));
        assert!((&mut poll).now_or_never().is_none());
        drop(held);
        assert!((&mut page).now_or_never().is_none());
        let poll = (&mut poll).now_or_never().unwrap();
        drop(poll);
        assert!(page.now_or_never().is_some());
    }

    #[tokio::test]
    async fn refreshes_leave_a_place_free_while_there_are_level_feeds() {
        let host = host(2);
        let (a, b) = (name("a"), name("b"));
        let mark = host.mark_level();
        let _first = host.acquire(&a, Priority::Refresh).await;
        let mut second = Box::pin(host.acquire(&b, Priority::Refresh));
        assert!((&mut second).now_or_never().is_none());
        drop(host.acquire(&b, Priority::Level).now_or_never().unwrap());
        drop(mark);
        assert!(second.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_host_that_says_too_many_gets_one_request_at_a_time_until_one_succeeds() {
        let host = host(3);
        let a = name("a");
        host.throttle();
        let _held = host.acquire(&a, Priority::Refresh).await;
        let mut second = Box::pin(host.acquire(&a, Priority::Level));
        assert!((&mut second).now_or_never().is_none());
        host.record_success();
        assert!(second.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_dropped_wait_holds_no_place() {
        let host = host(1);
        let a = name("a");
        let held = host.acquire(&a, Priority::Refresh).await;
        let mut dropped = Box::pin(host.acquire(&a, Priority::Refresh));
        assert!((&mut dropped).now_or_never().is_none());
        drop(held);
        drop(dropped);
        assert!(host.acquire(&a, Priority::Refresh).now_or_never().is_some());
    }

    #[test]
    fn patterns_match_hosts_ports_and_domains() {
        for (pattern, matched) in [
            ("h.example", true),
            ("H.example", true),
            ("h.example:80", true),
            ("h.example:81", false),
            ("*.example", true),
            ("*.h.example", false),
        ] {
            assert_eq!(matches(pattern, "h.example", "h.example:80"), matched, "{pattern}");
        }
    }
}
