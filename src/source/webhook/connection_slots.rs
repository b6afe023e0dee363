//! The connection slots of a listener that anybody can connect to: how many connections there may be at once, and which
//! one is evicted for a new one.
//!
//! Guarantees: silent connections keep no new client waiting. When all slots are in use, or a client has its share of
//! unauthenticated connections, the connection that has been silent longest is evicted, then the one whose body arrives
//! slowest. An authenticated connection is not evicted until it has been answered. A connection with bytes to read is
//! not silent: eviction is requested, and happens only where there is nothing to read. Knows nothing of HTTP but the
//! client that a proxy names.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::log_limit::LogLimiter;
use super::proxies::TrustedProxies;

/// Connections at once.
const MOST: usize = 256;
/// Unauthenticated connections at once of one client.
const MOST_UNAUTHENTICATED: usize = 64;
/// After a connection was not evicted within this time, the eviction of another is requested.
const EVICTION_TIMEOUT: Duration = Duration::from_millis(5);
/// The first bytes of a younger connection may still be on their way.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// An answered connection may be evicted after so long: event streams send something more often.
const LONG_IDLE: Duration = Duration::from_secs(20);
/// The time constant of a body's rate, seconds.
const RATE_SECONDS: f64 = 2.0;

/// A listener's slots. Clones share them.
#[derive(Clone, Debug)]
pub struct ConnectionSlots(Arc<SlotTable>);

#[derive(Debug)]
struct SlotTable {
    /// The most unauthenticated connections of one client; no limit on the operators' listener.
    max_unauthenticated: Option<usize>,
    proxies: TrustedProxies,
    connections: Mutex<Vec<Arc<TrackedConnection>>>,
    freed: Notify,
    evicted_count: AtomicU64,
    log_limiter: Mutex<LogLimiter>,
}

#[derive(Debug)]
struct TrackedConnection {
    waker: AtomicWaker,
    state: Mutex<ConnectionState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionPhase {
    /// Has sent no whole head of a request.
    Silent,
    /// Has sent a request's head, and no secret yet.
    Unauthenticated,
    /// Has sent a secret, and is not answered yet.
    Authenticated,
    /// Was authenticated, and has been answered.
    Idle,
}

#[derive(Debug)]
struct ConnectionState {
    /// None where a trusted proxy doesn't name the client.
    client: Option<IpAddr>,
    phase: ConnectionPhase,
    since: Instant,
    /// Bytes that arrived lately, decayed by [`RATE_SECONDS`], as of `read_at`.
    recent_bytes: f64,
    read_at: Instant,
    /// Eviction was requested.
    evicting: bool,
}

/// A connection's slot, released when dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    slots: ConnectionSlots,
    connection: Arc<TrackedConnection>,
}

/// The peer that sent a request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The peer's address; for [`Peer::local`], the listener's own.
    pub address: SocketAddr,
    slot: Option<(ConnectionSlots, Arc<TrackedConnection>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client is one IPv4 address or one IPv6 /64: anybody has 2^64 addresses of it.
pub(super) fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

impl ConnectionSlots {
    /// The slots of the listener that publishers post to.
    pub fn of_publishers(proxies: TrustedProxies) -> Self {
        Self::new(Some(MOST_UNAUTHENTICATED), proxies)
    }

    /// The slots of the operators' listener.
    pub fn of_operators() -> Self {
        Self::new(None, TrustedProxies::default())
    }

    fn new(max_unauthenticated: Option<usize>, proxies: TrustedProxies) -> Self {
        let (connections, freed, evicted_count, log_limiter) = Default::default();
        Self(Arc::new(SlotTable { max_unauthenticated, proxies, connections, freed, evicted_count, log_limiter }))
    }

    /// Waits for a slot for a new connection.
    pub async fn acquire(&self, peer: SocketAddr) -> ConnectionSlot {
        let now = Instant::now();
        let address = peer.ip();
        let client = (!self.0.proxies.trusts(address)).then(|| client_network(address));
        let state = ConnectionState {
            client,
            phase: ConnectionPhase::Silent,
            since: now,
            recent_bytes: 0.0,
            read_at: now,
            evicting: false,
        };
        let connection = Arc::new(TrackedConnection { waker: AtomicWaker::new(), state: Mutex::new(state) });
        loop {
            let freed = self.0.freed.notified();
            match self.full(client) {
                None => {
                    lock(&self.0.connections).push(Arc::clone(&connection));
                    return ConnectionSlot { slots: self.clone(), connection };
                }
                Some(of) => {
                    self.request_eviction(of, &connection);
                    // A connection that is not evicted has bytes to read: the eviction of another is requested.
                    drop(timeout(EVICTION_TIMEOUT, freed).await);
                }
            }
        }
    }

    /// Where no slot is free: among which client's connections one is to be evicted, or, with `None`, among all.
    fn full(&self, client: Option<IpAddr>) -> Option<Option<IpAddr>> {
        if self.exceeds_client_share(client, 0) {
            return Some(client);
        }
        (lock(&self.0.connections).len() >= MOST).then_some(None)
    }

    /// Whether a client has its share of unauthenticated connections, and `besides` more.
    fn exceeds_client_share(&self, client: Option<IpAddr>, besides: usize) -> bool {
        let (Some(client), Some(most)) = (client, self.0.max_unauthenticated) else { return false };
        let unauthenticated = |connection: &&Arc<TrackedConnection>| {
            let state = lock(&connection.state);
            state.client == Some(client)
                && matches!(state.phase, ConnectionPhase::Silent | ConnectionPhase::Unauthenticated)
        };
        lock(&self.0.connections).iter().filter(unauthenticated).count() >= most + besides
    }

    fn request_eviction(&self, of: Option<IpAddr>, newest: &Arc<TrackedConnection>) {
        let now = Instant::now();
        let connections = lock(&self.0.connections);
        let others = connections.iter().filter(|connection| !Arc::ptr_eq(connection, newest));
        let candidates = others.filter_map(|connection| {
            let state = lock(&connection.state);
            let fits = !state.evicting && (of.is_none() || state.client == of);
            Some((state.eviction_rank(now).filter(|_| fits)?, connection))
        });
        // The least of (class, recent bytes), the oldest of those.
        let chosen = candidates.min_by(|(one, _), (other, _)| {
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)).then(one.2.cmp(&other.2))
        });
        let Some((_, connection)) = chosen else { return };
        lock(&connection.state).evicting = true;
        connection.waker.wake();
    }

    fn record_eviction(&self, client: Option<IpAddr>) {
        let dropped = self.0.evicted_count.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(untold) = lock(&self.0.log_limiter).allow(Instant::now()) {
            let from = client.map(|client| client.to_string());
            tracing::warn!(from, untold, dropped, "all places are taken: a connection that said nothing made room");
        }
    }

    /// Connections evicted since the start.
    pub fn evicted_count(&self) -> u64 {
        self.0.evicted_count.load(Ordering::Relaxed)
    }
}

impl ConnectionState {
    /// The order of eviction: class, recent bytes, age; none while the connection must not be evicted.
    fn eviction_rank(&self, now: Instant) -> Option<(u8, f64, Instant)> {
        let age = now.saturating_duration_since(self.since);
        match self.phase {
            ConnectionPhase::Silent | ConnectionPhase::Unauthenticated if age < UNDER_WAY => Some((2, 0.0, self.since)),
            ConnectionPhase::Silent => Some((0, 0.0, self.since)),
            ConnectionPhase::Unauthenticated => Some((1, self.recent_bytes_at(now), self.since)),
            ConnectionPhase::Idle if age >= LONG_IDLE => Some((3, 0.0, self.since)),
            ConnectionPhase::Idle | ConnectionPhase::Authenticated => None,
        }
    }

    fn recent_bytes_at(&self, now: Instant) -> f64 {
        self.recent_bytes * (-now.saturating_duration_since(self.read_at).as_secs_f64() / RATE_SECONDS).exp()
    }
}

impl ConnectionSlot {
    /// The peer that sends the connection's requests.
    pub fn peer(&self, address: SocketAddr) -> Peer {
        Peer { address, slot: Some((self.slots.clone(), Arc::clone(&self.connection))) }
    }

    /// So many bytes arrived; `begins_head` when they begin a request's head, `ends_head` when they end one.
    pub fn record_read(&self, bytes: usize, begins_head: bool, ends_head: bool) {
        let now = Instant::now();
        let mut state = lock(&self.connection.state);
        (state.recent_bytes, state.read_at) = (state.recent_bytes_at(now) + bytes as f64, now);
        if begins_head {
            (state.phase, state.since) = (ConnectionPhase::Silent, now);
        }
        if ends_head {
            (state.phase, state.since, state.evicting) = (ConnectionPhase::Unauthenticated, now, false);
        }
    }

    /// A response, or a part of one, was written to the peer.
    pub fn record_write(&self) {
        let mut state = lock(&self.connection.state);
        state.since = Instant::now();
        state.phase = match state.phase {
            ConnectionPhase::Authenticated | ConnectionPhase::Idle => ConnectionPhase::Idle,
            ConnectionPhase::Silent | ConnectionPhase::Unauthenticated => ConnectionPhase::Silent,
        };
    }

    /// Ready once the connection is evicted; to be polled when there is nothing to read.
    pub fn poll_evicted(&self, context: &mut Context<'_>) -> Poll<()> {
        self.connection.waker.register(context.waker());
        let state = lock(&self.connection.state);
        if !state.evicting || matches!(state.phase, ConnectionPhase::Authenticated) {
            return Poll::Pending;
        }
        let client = state.client;
        drop(state);
        self.slots.record_eviction(client);
        // The rest of the connection, such as a refusal that nobody reads, needs no slot.
        self.release();
        Poll::Ready(())
    }

    /// Waits until the connection is evicted.
    pub async fn evicted(&self) {
        poll_fn(|context| self.poll_evicted(context)).await;
    }
}

impl ConnectionSlot {
    fn release(&self) {
        lock(&self.slots.0.connections).retain(|connection| !Arc::ptr_eq(connection, &self.connection));
        self.slots.0.freed.notify_waiters();
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.release();
    }
}

impl Peer {
    /// A peer without a slot, for a listener's own address.
    pub fn local(address: SocketAddr) -> Self {
        Self { address, slot: None }
    }

    /// The client that a request came from, as a trusted proxy names it; where the client exceeds its share of
    /// unauthenticated connections, another of them is evicted.
    pub fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let Some((slots, connection)) = &self.slot else { return Some(client_network(self.address.ip())) };
        let named = slots.0.proxies.client(self.address.ip(), headers).map(client_network);
        lock(&connection.state).client = named;
        if slots.exceeds_client_share(named, 1) {
            slots.request_eviction(named, connection);
        }
        named
    }

    /// The request had a secret: the connection is not evicted until it is answered.
    pub fn mark_authenticated(&self) {
        if let Some((_, connection)) = &self.slot {
            let mut state = lock(&connection.state);
            (state.phase, state.evicting) = (ConnectionPhase::Authenticated, false);
        }
    }

    /// The budget has no memory for another body: the connection whose body arrives slowest is evicted.
    pub fn evict_for_memory(&self) {
        if let Some((slots, connection)) = &self.slot {
            slots.request_eviction(None, connection);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    async fn acquired(slots: &ConnectionSlots, address: &str) -> ConnectionSlot {
        timeout(Duration::from_secs(5), slots.acquire(from(address))).await.unwrap()
    }

    /// The slots whose eviction was requested.
    fn evicting(held: &[ConnectionSlot]) -> Vec<usize> {
        let is_evicting = |slot: &ConnectionSlot| lock(&slot.connection.state).evicting;
        held.iter().enumerate().filter(|(_, slot)| is_evicting(slot)).map(|(at, _)| at).collect()
    }

    #[tokio::test]
    async fn when_all_slots_are_in_use_the_oldest_silent_connection_is_evicted_and_no_authenticated_one() {
        let slots = ConnectionSlots::of_operators();
        let mut held = Vec::new();
        for n in 0..MOST {
            held.push(acquired(&slots, &format!("10.0.0.{n}")).await);
        }
        for slot in &held[..10] {
            slot.record_read(100, true, true);
            slot.peer(from("10.0.0.1")).mark_authenticated();
        }
        held[10].record_read(1, true, false);
        let waiting = slots.clone();
        let newcomer = tokio::spawn(async move { waiting.acquire(from("10.0.1.1")).await });
        let first = poll_fn(|context| match held[11].poll_evicted(context) {
            Poll::Ready(()) => Poll::Ready(11),
            Poll::Pending => Poll::Pending,
        });
        assert_eq!(timeout(Duration::from_secs(5), first).await.unwrap(), 11, "10 has said something since");
        drop(held.remove(11));
        drop(timeout(Duration::from_secs(5), newcomer).await.unwrap().unwrap());
        assert!(evicting(&held).iter().all(|at| *at >= 10), "{:?}", evicting(&held));
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_a_trusted_proxy_has_none() {
        let proxies = TrustedProxies::new(vec!["10.9.0.0/16".parse().unwrap()]);
        let slots = ConnectionSlots::of_publishers(proxies);
        let mut held = Vec::new();
        for _ in 0..MOST_UNAUTHENTICATED {
            held.push(acquired(&slots, "10.0.0.1").await);
        }
        // All bodies arrive slowly but the third.
        for (n, slot) in held.iter().enumerate() {
            slot.record_read(if n == 2 { 100_000 } else { 1 + n }, true, true);
        }
        drop(acquired(&slots, "10.0.0.2").await);
        assert_eq!(evicting(&held), [0; 0], "another address is no business of theirs");
        for _ in 0..MOST_UNAUTHENTICATED + 10 {
            held.push(acquired(&slots, "10.9.1.1").await);
        }
        assert_eq!(evicting(&held), [0; 0]);
        let waiting = slots.clone();
        let newcomer = tokio::spawn(async move { waiting.acquire(from("10.0.0.1")).await });
        timeout(Duration::from_secs(5), held[0].evicted()).await.unwrap();
        assert!(!evicting(&held).contains(&2));
        drop(held.remove(0));
        drop(timeout(Duration::from_secs(5), newcomer).await.unwrap().unwrap());
    }
}
