//! What publishers POST to us: a router over an inbox, which authenticates and hands bodies on. Never decodes them.
//!
//! Guarantees: nothing is handed on that one of the feed's secrets did not vouch for; a 2xx is given only once the
//! feed's loop says that the body is committed; what waits is bounded, in bodies and in bytes, and whoever comes beyond
//! that is told when to come again.

mod authentication;
pub mod connection_slots;
pub mod refused_bodies;
pub mod proxies;
mod body_reader;
mod router;
pub mod failed_logins;
pub mod tls;
pub mod log_limit;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{mpsc, oneshot, watch};

use super::budget::Reservation;
use super::secret::{ConfiguredValue, SecretSource};
use crate::feed::Generation;
use log_limit::LogLimiter;
use proxies::TrustedProxies;
use refused_bodies::RefusedBodies;
pub use router::router;

/// Bodies that wait for a feed's loop: the capacity its channel should have.
pub const POST_QUEUE_CAPACITY: usize = 8;

/// The feeds that publishers may post to. Clones are the same inbox.
#[derive(Clone, Default)]
pub struct Inbox(Arc<InboxState>);

#[derive(Default)]
struct InboxState {
    routes: RwLock<HashMap<String, Arc<RouteEntry>>>,
    unknown_feed_log: Mutex<LogLimiter>,
}

/// A feed's side of the inbox.
#[derive(Clone)]
pub struct WebhookRoute {
    /// Any of them will do.
    pub secrets: Vec<SecretString>,
    /// Whether bodies are taken just now.
    pub state: watch::Receiver<RouteState>,
    /// To the feed's loop, with room for [`WAITING`].
    pub sender: mpsc::Sender<WebhookPost>,
    /// The feed's generation, as far as its loop knows it.
    pub generation: Arc<AtomicI64>,
    /// Counts bodies that were turned away because of ourselves: nobody is blamed for what was in them.
    pub turned_away_count: Arc<AtomicU64>,
}

/// Whether a feed takes bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteState {
    /// It does.
    Open,
    /// Later: 503.
    Deferred {
        /// When to come again.
        retry_after: Duration,
        /// Why, for the publisher.
        why: &'static str,
    },
    /// Not until the operator says so (paused, purged): 409, with the reason.
    Closed(&'static str),
}

/// A body on its way to the feed's loop, authenticated and decompressed.
pub struct WebhookPost {
    /// The feed's generation when it began to come.
    pub generation: Generation,
    /// The body; when it is the fifth time and it is too large, its beginning alone (at most 1 KiB).
    pub bytes: Vec<u8>,
    /// The first 8 bytes of the SHA-256 of the body as it came; of one that is too large, of its beginning and its
    /// declared length.
    pub hash: u64,
    /// It was refused four times within an hour: to be quarantined if it still can't be read, then taken, and the feed
    /// walked again from a while ago.
    pub quarantine_if_unreadable: bool,
    /// Of `fifth`: what is wrong with it that the loop can't see, such as its size.
    pub fault: Option<String>,
    /// Its share of the memory budget, to be kept for as long as the bytes are.
    pub reservation: Reservation,
    /// The publisher waits for it. It may be gone: what it posted is applied all the same.
    pub answer: oneshot::Sender<PostAnswer>,
}

/// What a feed's loop says to a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostAnswer {
    /// Committed and synced: 204.
    Committed,
    /// It can't be read, for this reason: 400.
    Unreadable(String),
    /// Not now: 503, and when to come again.
    Busy(Duration),
    /// Not any more, such as after a purge: 409.
    OutdatedGeneration,
}

/// A door, and what is remembered of it when another takes its place.
struct RouteEntry {
    door: WebhookRoute,
    history: Arc<Mutex<RouteHistory>>,
}

#[derive(Default)]
struct RouteHistory {
    refused_bodies: RefusedBodies,
    refusal_logs: HashMap<u16, LogLimiter>,
}

impl Inbox {
    /// Lets publishers post to `feed`, in place of a door it had.
    pub fn register(&self, feed: &str, door: WebhookRoute) {
        let mut doors = self.0.routes.write().unwrap_or_else(PoisonError::into_inner);
        let memory = doors.get(feed).map(|entry| Arc::clone(&entry.history)).unwrap_or_default();
        doors.insert(feed.to_owned(), Arc::new(RouteEntry { door, history: memory }));
    }

    /// From now on nobody knows of `feed`: 404.
    pub fn remove(&self, feed: &str) {
        self.0.routes.write().unwrap_or_else(PoisonError::into_inner).remove(feed);
    }

    fn entry(&self, feed: &str) -> Option<Arc<RouteEntry>> {
        self.0.routes.read().unwrap_or_else(PoisonError::into_inner).get(feed).cloned()
    }
}

impl RouteEntry {
    fn history(&self) -> MutexGuard<'_, RouteHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `webhook` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSettings {
    /// Secrets that are valid, the new one first during a rotation; at least one.
    pub secrets: Vec<SecretSource>,
    /// Whether pages are refused until the feed is level.
    pub defer: bool,
    /// The request that registers us with the publisher at start, if it wants one.
    pub register: Option<RegisterSettings>,
}

/// `webhook.register` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterSettings {
    /// Where the request goes.
    pub url: String,
    /// Its method, `POST` by default.
    pub method: String,
    /// Its headers.
    pub headers: Vec<(String, ConfiguredValue)>,
    /// Its body, in which `{callback}` stands for our URL.
    pub body: String,
    /// How often it is repeated; only at start unless set.
    pub renew: Option<Duration>,
    /// Our URL, as the publisher sees it.
    pub callback: String,
}

/// `[webhooks]`: the listener that faces publishers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookListenerSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The path in front of the feeds' names: empty, or with a slash before it and none behind.
    pub path: String,
    /// Its address as publishers see it, without the path; needed to register.
    pub public_url: Option<String>,
    /// The largest body taken, bytes.
    pub max_body_bytes: u64,
    /// Certificate chain and key, PEM; behind a proxy unless set.
    pub tls: Option<TlsFiles>,
    /// Whose `X-Forwarded-For` says who posts; nobody's unless set.
    pub trusted_proxies: TrustedProxies,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for WebhookListenerSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8471)),
            path: "/webhooks".to_owned(),
            public_url: None,
            max_body_bytes: 32 << 20,
            tls: None,
            trusted_proxies: TrustedProxies::default(),
        }
    }
}

impl WebhookListenerSettings {
    /// Where publishers post the feed's pages, if they know our address.
    pub fn callback(&self, feed: &str) -> Option<String> {
        self.public_url.as_ref().map(|url| format!("{url}{}/{feed}", self.path))
    }
}
