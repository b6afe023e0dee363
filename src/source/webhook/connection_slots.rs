//! The places of a listener that strangers reach: how many connections there may be, and who goes when another comes.
//!
//! Guarantees: nobody is kept waiting by connections that say nothing. When all places are taken, or an address has its
//! share of those that have shown no secret, the one that has been silent longest goes, then the body that drips most;
//! who was let in is left alone while it is being answered. A connection whose bytes are there is no silent one: it is
//! asked to go, and goes only if there is nothing to read.

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
/// Of them, from one address, that have shown no secret.
const MOST_UNKNOWN: usize = 64;
/// A connection that was asked to go has gone by then, or another is asked.
const EVICTION_TIMEOUT: Duration = Duration::from_millis(5);
/// What a younger one sends may be on its way still.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// One that was let in before is idle after so long: streams say something more often.
const LONG_IDLE: Duration = Duration::from_secs(20);
/// The time over which a body's pace is taken.
const PACE: f64 = 2.0;

/// A listener's places. Clones are the same.
#[derive(Clone, Debug)]
pub struct ConnectionSlots(Arc<SlotTable>);

#[derive(Debug)]
struct SlotTable {
    /// Connections of one address that have shown no secret; none where the listener is for operators.
    unknown: Option<usize>,
    proxies: TrustedProxies,
    slots: Mutex<Vec<Arc<TrackedConnection>>>,
    freed: Notify,
    evicted_count: AtomicU64,
    told: Mutex<LogLimiter>,
}

#[derive(Debug)]
struct TrackedConnection {
    waker: AtomicWaker,
    state: Mutex<ConnectionState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionPhase {
    /// Says nothing, or has not said all of a request's head.
    Silent,
    /// Has asked, and has shown no secret yet.
    Unauthenticated,
    /// Is let in.
    Authenticated,
    /// Was let in, and has been answered.
    Idle,
}

#[derive(Debug)]
struct ConnectionState {
    /// Who sends; nobody in particular where it is a proxy of ours that doesn't say.
    client: Option<IpAddr>,
    phase: ConnectionPhase,
    since: Instant,
    /// Bytes that came lately, and when the last ones did.
    pace: f64,
    read: Instant,
    /// Asked to go.
    evicting: bool,
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    places: ConnectionSlots,
    slot: Arc<TrackedConnection>,
}

/// Whom a request came from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The other end of the connection; a listener's own, where it stands for that.
    pub address: SocketAddr,
    place: Option<(ConnectionSlots, Arc<TrackedConnection>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client is one address, or one network of IPv6, of which anybody has 2^64.
pub(super) fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

impl ConnectionSlots {
    /// Of the listener that publishers post to.
    pub fn of_publishers(proxies: TrustedProxies) -> Self {
        Self::new(Some(MOST_UNKNOWN), proxies)
    }

    /// Of the operators' listener.
    pub fn of_operators() -> Self {
        Self::new(None, TrustedProxies::default())
    }

    fn new(unknown: Option<usize>, proxies: TrustedProxies) -> Self {
        let (slots, freed, dropped, told) = Default::default();
        Self(Arc::new(SlotTable { unknown, proxies, slots, freed, evicted_count: dropped, told }))
    }

    /// A place for who has just connected, as soon as there is one.
    pub async fn acquire(&self, peer: SocketAddr) -> ConnectionSlot {
        let now = Instant::now();
        let address = peer.ip();
        let client = (!self.0.proxies.trusts(address)).then(|| client_network(address));
        let state = ConnectionState {
            client,
            phase: ConnectionPhase::Silent,
            since: now,
            pace: 0.0,
            read: now,
            evicting: false,
        };
        let slot = Arc::new(TrackedConnection { waker: AtomicWaker::new(), state: Mutex::new(state) });
        loop {
            let freed = self.0.freed.notified();
            match self.full(client) {
                None => {
                    lock(&self.0.slots).push(Arc::clone(&slot));
                    return ConnectionSlot { places: self.clone(), slot };
                }
                Some(of) => {
                    self.request_eviction(of, &slot);
                    // Whoever doesn't go has something to say: another is asked.
                    drop(timeout(EVICTION_TIMEOUT, freed).await);
                }
            }
        }
    }

    /// Whether there is no place, and among whose connections one is to go: those of a client, or all.
    fn full(&self, client: Option<IpAddr>) -> Option<Option<IpAddr>> {
        if self.exceeds_client_share(client, 0) {
            return Some(client);
        }
        (lock(&self.0.slots).len() >= MOST).then_some(None)
    }

    /// Whether a client has its share of unknown connections, besides so many.
    fn exceeds_client_share(&self, client: Option<IpAddr>, besides: usize) -> bool {
        let (Some(client), Some(most)) = (client, self.0.unknown) else { return false };
        let unknown = |slot: &&Arc<TrackedConnection>| {
            let state = lock(&slot.state);
            state.client == Some(client)
                && matches!(state.phase, ConnectionPhase::Silent | ConnectionPhase::Unauthenticated)
        };
        lock(&self.0.slots).iter().filter(unknown).count() >= most + besides
    }

    fn request_eviction(&self, of: Option<IpAddr>, newest: &Arc<TrackedConnection>) {
        let now = Instant::now();
        let slots = lock(&self.0.slots);
        let candidates = slots.iter().filter(|slot| !Arc::ptr_eq(slot, newest)).filter_map(|slot| {
            let state = lock(&slot.state);
            let fits = !state.evicting && (of.is_none() || state.client == of);
            Some((state.eviction_rank(now).filter(|_| fits)?, slot))
        });
        // The least of (sort, pace), the oldest of those.
        let chosen = candidates.min_by(|(one, _), (other, _)| {
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)).then(one.2.cmp(&other.2))
        });
        let Some((_, slot)) = chosen else { return };
        lock(&slot.state).evicting = true;
        slot.waker.wake();
    }

    fn note_dropped(&self, client: Option<IpAddr>) {
        let dropped = self.0.evicted_count.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(untold) = lock(&self.0.told).allow(Instant::now()) {
            let from = client.map(|client| client.to_string());
            tracing::warn!(from, untold, dropped, "all places are taken: a connection that said nothing made room");
        }
    }

    /// Connections that had to make room since the start.
    pub fn evicted_count(&self) -> u64 {
        self.0.evicted_count.load(Ordering::Relaxed)
    }
}

impl ConnectionState {
    /// In which order it goes; nothing while it is let in.
    fn eviction_rank(&self, now: Instant) -> Option<(u8, f64, Instant)> {
        let age = now.saturating_duration_since(self.since);
        match self.phase {
            ConnectionPhase::Silent | ConnectionPhase::Unauthenticated if age < UNDER_WAY => Some((2, 0.0, self.since)),
            ConnectionPhase::Silent => Some((0, 0.0, self.since)),
            ConnectionPhase::Unauthenticated => Some((1, self.pace(now), self.since)),
            ConnectionPhase::Idle if age >= LONG_IDLE => Some((3, 0.0, self.since)),
            ConnectionPhase::Idle | ConnectionPhase::Authenticated => None,
        }
    }

    fn pace(&self, now: Instant) -> f64 {
        self.pace * (-now.saturating_duration_since(self.read).as_secs_f64() / PACE).exp()
    }
}

impl ConnectionSlot {
    /// Whom the connection's requests come from.
    pub fn peer(&self, address: SocketAddr) -> Peer {
        Peer { address, place: Some((self.places.clone(), Arc::clone(&self.slot))) }
    }

    /// So many bytes came; `asks` when they end a request's head, `begins` when they begin one.
    pub fn record_read(&self, bytes: usize, begins: bool, asks: bool) {
        let now = Instant::now();
        let mut state = lock(&self.slot.state);
        (state.pace, state.read) = (state.pace(now) + bytes as f64, now);
        if begins {
            (state.phase, state.since) = (ConnectionPhase::Silent, now);
        }
        if asks {
            (state.phase, state.since, state.evicting) = (ConnectionPhase::Unauthenticated, now, false);
        }
    }

    /// An answer, or a part of one, was taken.
    pub fn record_write(&self) {
        let mut state = lock(&self.slot.state);
        state.since = Instant::now();
        state.phase = match state.phase {
            ConnectionPhase::Authenticated | ConnectionPhase::Idle => ConnectionPhase::Idle,
            ConnectionPhase::Silent | ConnectionPhase::Unauthenticated => ConnectionPhase::Silent,
        };
    }

    /// Ready once it has to make room; to be asked when there is nothing to read.
    pub fn poll_evicted(&self, context: &mut Context<'_>) -> Poll<()> {
        self.slot.waker.register(context.waker());
        let state = lock(&self.slot.state);
        if !state.evicting || matches!(state.phase, ConnectionPhase::Authenticated) {
            return Poll::Pending;
        }
        let client = state.client;
        drop(state);
        self.places.note_dropped(client);
        // What is left of it, a refusal that nobody reads, keeps nobody waiting.
        self.give_back();
        Poll::Ready(())
    }

    /// Until it has to make room.
    pub async fn evicted(&self) {
        poll_fn(|context| self.poll_evicted(context)).await;
    }
}

impl ConnectionSlot {
    fn give_back(&self) {
        lock(&self.places.0.slots).retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        self.places.0.freed.notify_waiters();
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Peer {
    /// A listener's own address.
    pub fn local(address: SocketAddr) -> Self {
        Self { address, place: None }
    }

    /// The client that a request came from, by what a proxy of ours says of it; one with more than its share of unknown
    /// connections loses another.
    pub fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let Some((places, slot)) = &self.place else { return Some(client_network(self.address.ip())) };
        let named = places.0.proxies.client(self.address.ip(), headers).map(client_network);
        lock(&slot.state).client = named;
        if places.exceeds_client_share(named, 1) {
            places.request_eviction(named, slot);
        }
        named
    }

    /// It has shown what lets it in: nobody takes its place until it is answered.
    pub fn mark_authenticated(&self) {
        if let Some((_, slot)) = &self.place {
            let mut state = lock(&slot.state);
            (state.phase, state.evicting) = (ConnectionPhase::Authenticated, false);
        }
    }

    /// There is no memory for another body: the one that drips most goes.
    pub fn evict_for_memory(&self) {
        if let Some((places, slot)) = &self.place {
            places.request_eviction(None, slot);
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

    async fn taken(places: &ConnectionSlots, address: &str) -> ConnectionSlot {
        timeout(Duration::from_secs(5), places.acquire(from(address))).await.unwrap()
    }

    /// The places that were asked to go.
    fn going(held: &[ConnectionSlot]) -> Vec<usize> {
        let goes = |place: &ConnectionSlot| lock(&place.slot.state).evicting;
        held.iter().enumerate().filter(|(_, place)| goes(place)).map(|(at, _)| at).collect()
    }

    #[tokio::test]
    async fn when_all_places_are_taken_the_oldest_silent_connection_goes_and_nobody_who_is_let_in() {
        let places = ConnectionSlots::of_operators();
        let mut held = Vec::new();
        for n in 0..MOST {
            held.push(taken(&places, &format!("10.0.0.{n}")).await);
        }
        for place in &held[..10] {
            place.record_read(100, true, true);
            place.peer(from("10.0.0.1")).mark_authenticated();
        }
        held[10].record_read(1, true, false);
        let waiting = places.clone();
        let newcomer = tokio::spawn(async move { waiting.acquire(from("10.0.1.1")).await });
        let first = poll_fn(|context| match held[11].poll_evicted(context) {
            Poll::Ready(()) => Poll::Ready(11),
            Poll::Pending => Poll::Pending,
        });
        assert_eq!(timeout(Duration::from_secs(5), first).await.unwrap(), 11, "10 has said something since");
        drop(held.remove(11));
        drop(timeout(Duration::from_secs(5), newcomer).await.unwrap().unwrap());
        assert!(going(&held).iter().all(|at| *at >= 10), "{:?}", going(&held));
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_a_proxy_of_ours_has_none() {
        let proxies = TrustedProxies::new(vec!["10.9.0.0/16".parse().unwrap()]);
        let places = ConnectionSlots::of_publishers(proxies);
        let mut held = Vec::new();
        for _ in 0..MOST_UNKNOWN {
            held.push(taken(&places, "10.0.0.1").await);
        }
        // Dripping bodies, the third of them in earnest.
        for (n, place) in held.iter().enumerate() {
            place.record_read(if n == 2 { 100_000 } else { 1 + n }, true, true);
        }
        drop(taken(&places, "10.0.0.2").await);
        assert_eq!(going(&held), [0; 0], "another address is no business of theirs");
        for _ in 0..MOST_UNKNOWN + 10 {
            held.push(taken(&places, "10.9.1.1").await);
        }
        assert_eq!(going(&held), [0; 0]);
        let waiting = places.clone();
        let newcomer = tokio::spawn(async move { waiting.acquire(from("10.0.0.1")).await });
        timeout(Duration::from_secs(5), held[0].evicted()).await.unwrap();
        assert!(!going(&held).contains(&2));
        drop(held.remove(0));
        drop(timeout(Duration::from_secs(5), newcomer).await.unwrap().unwrap());
    }
}
