//! Politeness: limits the requests to a host at once, and orders those that wait.
//!
//! Guarantees: a waiting poll of a level feed gets the next free permit before any page of a refresh; refreshes are
//! served in the order of their requests; with more than one permit they leave one free while the host has level feeds.
//! After a 429 or a refused connection a host gets one request at a time until one succeeds. Knows nothing of what is
//! fetched.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::http::{HostLimits, HostSettings};
use crate::feed::FeedName;

/// The priority of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A poll of a level feed.
    Level,
    /// A page of a refresh, resync or look-back.
    Refresh,
}

/// The queues of all hosts.
#[derive(Clone)]
pub struct HostLimiter {
    hosts: Arc<Mutex<HashMap<String, Arc<HostQueue>>>>,
    settings: Arc<HostSettings>,
}

/// The queue of one host, or of all hosts that share limits.
pub struct HostQueue {
    name: String,
    state: Mutex<QueueState>,
    rate: Option<DefaultDirectRateLimiter>,
    resync: Arc<Semaphore>,
}

struct QueueState {
    permits: usize,
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

/// The permission for one request to a host, released when dropped.
pub struct HostPermit {
    host: Arc<HostQueue>,
    number: u64,
}

/// Counts a feed of this host as level until dropped.
pub struct LevelGuard(Arc<HostQueue>);

impl HostLimiter {
    /// A limiter with these limits.
    pub fn new(settings: HostSettings) -> Self {
        Self { hosts: Arc::default(), settings: Arc::new(settings) }
    }

    /// The queue of the host of `url`, or of the pattern that the host matches.
    pub fn queue_for(&self, url: &url::Url) -> Arc<HostQueue> {
        let name = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let address = format!("{name}:{}", url.port_or_known_default().unwrap_or(0));
        let matched = self.settings.matching.iter().find(|(pattern, _)| matches(pattern, &name, &address));
        let (key, limits) = match matched {
            Some((pattern, limits)) => (pattern.clone(), limits),
            None => (address, &self.settings.each),
        };
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(key.clone()).or_insert_with(|| Arc::new(HostQueue::new(key, limits))))
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
    fn new(name: String, limits: &HostLimits) -> Self {
        let state = QueueState {
            permits: limits.per_host.max(1),
            one_at_a_time: false,
            holders: Vec::new(),
            level_waiters: VecDeque::new(),
            refresh_waiters: VecDeque::new(),
            level_feeds: 0,
            next: 0,
        };
        let rate = limits.rate.filter(|rate| *rate > 0.0).and_then(|rate| {
            let quota = Quota::with_period(Duration::from_secs_f64(1.0 / rate))?;
            Some(RateLimiter::direct(quota.allow_burst(NonZeroU32::MIN)))
        });
        Self { name, state: Mutex::new(state), rate, resync: Arc::new(Semaphore::new(1)) }
    }

    /// The host and port, or the pattern, that operators see.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit, and for the rate limit.
    pub async fn acquire(self: &Arc<Self>, feed: &FeedName, priority: Priority) -> HostPermit {
        let (granted, answer) = oneshot::channel();
        {
            let mut state = self.lock();
            let waiter = Waiter { feed: feed.clone(), granted };
            match priority {
                Priority::Level => state.level_waiters.push_back(waiter),
                Priority::Refresh => state.refresh_waiters.push_back(waiter),
            }
            state.grant();
        }
        let mut pending = PendingPermit { host: Arc::clone(self), answer, taken: false };
        // The queue keeps a waiter's sender until the permit is granted, so the answer always comes.
        let number = (&mut pending.answer).await.unwrap_or(u64::MAX);
        pending.taken = true;
        let permit = HostPermit { host: Arc::clone(self), number };
        if let Some(rate) = &self.rate {
            rate.until_ready().await;
        }
        permit
    }

    /// What a feed waits for that can't have a permit, in words.
    pub fn describe_wait(&self) -> String {
        let state = self.lock();
        let holders: Vec<&str> = state.holders.iter().map(|(_, feed, _)| feed.as_str()).collect();
        let waiting = state.level_waiters.len() + state.refresh_waiters.len();
        format!("waiting: for a place at {} (held by {}; {waiting} wait)", self.name, holders.join(", "))
    }

    /// Limits the host to one request at a time until one succeeds.
    pub fn throttle(&self) {
        self.lock().one_at_a_time = true;
    }

    /// Records that a request has succeeded.
    pub fn record_success(&self) {
        let mut state = self.lock();
        if state.one_at_a_time {
            state.one_at_a_time = false;
            state.grant();
        }
    }

    /// Counts a feed of this host as level.
    pub fn mark_level(self: &Arc<Self>) -> LevelGuard {
        self.lock().level_feeds += 1;
        LevelGuard(Arc::clone(self))
    }

    /// Waits for the host's only resync permit.
    pub async fn acquire_resync(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.resync).acquire_owned().await.ok()
    }
}

/// Releases a permit that was granted while its waiter was being dropped.
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
            let permits = if self.one_at_a_time { 1 } else { self.permits };
            if self.holders.len() >= permits {
                return;
            }
            let for_refresh = if permits > 1 && self.level_feeds > 0 { permits - 1 } else { permits };
            let refreshing = self.holders.iter().filter(|(_, _, priority)| *priority == Priority::Refresh).count();
            let (waiter, priority) = if let Some(waiter) = self.level_waiters.pop_front() {
                (waiter, Priority::Level)
            } else if refreshing < for_refresh {
                match self.refresh_waiters.pop_front() {
                    Some(waiter) => (waiter, Priority::Refresh),
                    None => return,
                }
            } else {
                return;
            };
            let number = self.next;
            self.next += 1;
            // A waiter that was dropped takes no permit.
            if waiter.granted.send(number).is_ok() {
                self.holders.push((number, waiter.feed, priority));
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
        let mut state = self.0.lock();
        state.level_feeds = state.level_feeds.saturating_sub(1);
        state.grant();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures_util::FutureExt;

    fn host(per_host: usize) -> Arc<HostQueue> {
        let each = HostLimits { per_host, rate: None };
        let limiter = HostLimiter::new(HostSettings { each, matching: Vec::new() });
        limiter.queue_for(&"http://h.example/feed".parse().unwrap())
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
    async fn refreshes_leave_a_permit_free_while_there_are_level_feeds() {
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
    async fn a_throttled_host_gets_one_request_at_a_time_until_one_succeeds() {
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
    async fn a_dropped_waiter_holds_no_permit() {
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
