//! The pages that publishers POST to us: a router over an inbox, which authenticates bodies and submits them to the
//! feed's loop. Never decodes them.
//!
//! Guarantees: only bodies that one of the feed's secrets authenticates are submitted; a 2xx is sent only once the
//! feed's loop says that the body is committed; waiting bodies are bounded in number and in bytes, and a publisher
//! whose body exceeds that bound gets `Retry-After`.

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

/// Bodies that may wait for a feed's loop: the capacity of the feed's channel.
pub const POST_QUEUE_CAPACITY: usize = 8;

/// The feeds that publishers may post to. Clones are the same inbox.
#[derive(Clone, Default)]
pub struct Inbox(Arc<InboxState>);

#[derive(Default)]
struct InboxState {
    routes: RwLock<HashMap<String, Arc<RouteEntry>>>,
    unknown_feed_log: Mutex<LogLimiter>,
}

/// What the inbox needs of a feed.
#[derive(Clone)]
pub struct WebhookRoute {
    /// Each of them authenticates a post.
    pub secrets: Vec<SecretString>,
    /// Whether bodies are accepted now.
    pub state: watch::Receiver<RouteState>,
    /// To the feed's loop; its capacity is [`POST_QUEUE_CAPACITY`].
    pub sender: mpsc::Sender<WebhookPost>,
    /// The feed's generation, as its loop last set it.
    pub generation: Arc<AtomicI64>,
    /// Counts bodies answered with 503 or 409: for reasons of ours, not because of their content.
    pub turned_away_count: Arc<AtomicU64>,
}

/// Whether a feed accepts bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteState {
    Open,
    /// Not yet: 503.
    Deferred {
        retry_after: Duration,
        /// Why, for the publisher.
        why: &'static str,
    },
    /// Not until the operator opens the feed again (paused, purged): 409, with the reason.
    Closed(&'static str),
}

/// A body on its way to the feed's loop, authenticated and decompressed.
pub struct WebhookPost {
    /// The feed's generation when the body began to arrive.
    pub generation: Generation,
    /// The body; with `quarantine_if_unreadable`, of one that is too large, its beginning alone (at most 1 KiB).
    pub bytes: Vec<u8>,
    /// The first 8 bytes of the SHA-256 of the body as sent; of one that is too large, of its beginning and its
    /// declared length.
    pub hash: u64,
    /// The body was refused four times within an hour: if it still can't be read, it is quarantined and acknowledged,
    /// and a look-back follows.
    pub quarantine_if_unreadable: bool,
    /// With `quarantine_if_unreadable`: what is wrong with the body that the loop can't see, such as its size.
    pub fault: Option<String>,
    /// The body's share of the memory budget, to be held for as long as the bytes are.
    pub reservation: Reservation,
    /// The publisher waits for the answer. If the publisher has gone, the body is applied all the same.
    pub answer: oneshot::Sender<PostAnswer>,
}

/// A feed's loop's answer to a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostAnswer {
    /// Committed and synced: 204.
    Committed,
    /// The body can't be read, for this reason: 400.
    Unreadable(String),
    /// 503, with `Retry-After`.
    Busy(Duration),
    /// The body began to arrive under an older generation, such as before a purge: 409.
    OutdatedGeneration,
}

/// A route, and the history that the route registered after it inherits.
struct RouteEntry {
    route: WebhookRoute,
    history: Arc<Mutex<RouteHistory>>,
}

#[derive(Default)]
struct RouteHistory {
    refused_bodies: RefusedBodies,
    refusal_logs: HashMap<u16, LogLimiter>,
}

impl Inbox {
    /// Lets publishers post to `feed`; replaces the feed's former route.
    pub fn register(&self, feed: &str, route: WebhookRoute) {
        let mut routes = self.0.routes.write().unwrap_or_else(PoisonError::into_inner);
        let history = routes.get(feed).map(|entry| Arc::clone(&entry.history)).unwrap_or_default();
        routes.insert(feed.to_owned(), Arc::new(RouteEntry { route, history }));
    }

    /// From now on a post to `feed` gets 404.
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
    /// Whether posts are deferred until the feed is level.
    pub defer: bool,
    /// The request that registers us with the publisher at start, if it wants one.
    pub register: Option<RegisterSettings>,
}

/// `webhook.register` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterSettings {
    pub url: String,
    /// `POST` by default.
    pub method: String,
    pub headers: Vec<(String, ConfiguredValue)>,
    /// The request's body, in which `{callback}` is replaced by our URL.
    pub body: String,
    /// How often the request is repeated; only at start unless set.
    pub renew: Option<Duration>,
    /// Our URL, as the publisher sees it.
    pub callback: String,
}

/// `[webhooks]`: the listener that faces publishers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookListenerSettings {
    pub listen: SocketAddr,
    /// The path before the feeds' names: empty, or with a leading slash and no trailing one.
    pub path: String,
    /// The listener's address as publishers see it, without the path; needed to register.
    pub public_url: Option<String>,
    /// The largest body accepted, bytes.
    pub max_body_bytes: u64,
    /// Certificate chain and key, PEM; plain HTTP, for use behind a proxy, unless set.
    pub tls: Option<TlsFiles>,
    /// The proxies whose `X-Forwarded-For` names the client; none unless set.
    pub trusted_proxies: TrustedProxies,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with its chain.
    pub certificate: PathBuf,
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
    /// The URL that publishers post the feed's pages to, if `public_url` is set.
    pub fn callback(&self, feed: &str) -> Option<String> {
        self.public_url.as_ref().map(|url| format!("{url}{}/{feed}", self.path))
    }
}
