//! A simulated publisher of RPDE feeds: it behaves by the standard, or misbehaves on demand in every way that has been
//! seen in the wild ([`FAULTS`]). For tests of any consumer: it also says which items a correct consumer must hold.
//!
//! Its feeds can be polled and streamed; they are pushed to a webhook or a queue where one is named. It shares no code
//! with the mirror, so that it can't share its mistakes. All its output follows from its seed, the number of changes
//! made and the requests it gets; it uses no clock but for the rate of change. It keeps everything in memory, speaks
//! plain HTTP, and is not made to be safe on a network that isn't yours.

mod amqp;
mod bodies;
mod dialect;
mod random;
mod event;
mod fault;
mod feed;
mod value_forms;
mod connection;
mod poll_faults;
mod page;
mod next_faults;
mod publisher;
mod push;
mod record_faults;
mod serve;
mod stream;
mod webhook;
mod wire_response;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use amqp::AmqpTarget;
pub use dialect::Dialect;
pub use fault::{FAULTS, Fault, FaultChannel, FaultInfo};
pub use push::PushStats;
pub use webhook::WebhookTarget;

use connection::CuttableListener;
use publisher::PublisherState;
use push::Pusher;
use webhook::WebhookClient;

/// The number and contents of the feeds, and their faults.
#[derive(Clone, Debug)]
pub struct SimulatorSettings {
    pub feeds: usize,
    /// Items of each feed at the start, deleted ones included.
    pub items: usize,
    /// Items on a page.
    pub page: usize,
    /// Changes per second to each feed.
    pub rate: f64,
    /// The share of items that are deleted, 0 to 1.
    pub deleted: f64,
    /// The dialect of all feeds; when none, the feeds take the dialects in rotation.
    pub dialect: Option<Dialect>,
    /// Another seed gives other items and other chances.
    pub seed: u64,
    /// The faults, each with the share of requests that it affects, 0 to 1.
    pub faults: Vec<(Fault, f64)>,
    /// `Cache-Control: max-age` of a last page, in whole seconds, as CDNs set it (8 s is usual; a full page then gets
    /// an hour); when none, the header is not sent.
    pub max_age: Option<Duration>,
    /// The webhook that the feeds are pushed to.
    pub webhook: Option<WebhookTarget>,
    /// The queue that the feeds' changes are published to.
    pub amqp: Option<AmqpTarget>,
    /// Whether a stream's events carry an id, for `Last-Event-ID`; the draft has none.
    pub sse_ids: bool,
    /// The `retry` that a stream sends.
    pub sse_retry: Duration,
    /// How long a stream is quiet before it sends a comment.
    pub sse_idle: Duration,
    /// How long a silent or dripping connection is kept open before it is dropped.
    pub hold: Duration,
    /// The time between two bytes of a dripping response.
    pub drip: Duration,
    /// The size of a page that is too large, in bytes once decompressed.
    pub large: u64,
}

impl Default for SimulatorSettings {
    fn default() -> Self {
        Self {
            feeds: 3,
            items: 1_000,
            page: 100,
            rate: 0.0,
            deleted: 0.2,
            dialect: None,
            seed: 1,
            faults: Vec::new(),
            max_age: None,
            webhook: None,
            amqp: None,
            sse_ids: false,
            sse_retry: Duration::from_secs(1),
            sse_idle: Duration::from_secs(5),
            hold: Duration::from_secs(30),
            drip: Duration::from_millis(100),
            large: 72 << 20,
        }
    }
}

/// An item as the feed has it now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpectedItem {
    pub kind: String,
    /// The item's id; a numeric id is given by its digits.
    pub id: String,
    /// `modified` as on the page, without faults.
    pub modified: serde_json::Number,
    /// `updated` or `deleted`, however the feed spells it.
    pub state: &'static str,
    /// The JSON text of an updated item, byte for byte as published.
    #[serde(serialize_with = "as_json")]
    pub data: Option<String>,
}

/// Serializes JSON text as JSON, not as a string.
fn as_json<S: serde::Serializer>(data: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let raw = data.clone().and_then(|data| serde_json::value::RawValue::from_string(data).ok());
    raw.serialize(serializer)
}

/// A running publisher; it ends when dropped, or by [`stop`](Self::stop).
pub struct Simulator {
    publisher: Arc<PublisherState>,
    address: SocketAddr,
    cut: CancellationToken,
    tasks: JoinSet<()>,
}

impl Simulator {
    /// Creates the feeds, serves them at `listener` and pushes them. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the listener can't tell its address, and as [`push_to`](Self::push_to) and
    /// [`publish_to`](Self::publish_to).
    pub fn start(listener: TcpListener, settings: SimulatorSettings) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (webhook, amqp) = (settings.webhook.clone(), settings.amqp.clone());
        let publisher = Arc::new(PublisherState::new(settings, address));
        let cut = CancellationToken::new();
        let mut simulator =
            Self { publisher: Arc::clone(&publisher), address, cut: cut.clone(), tasks: JoinSet::new() };
        if let Some(webhook) = webhook {
            simulator.push_to(&webhook)?;
        }
        if let Some(amqp) = amqp {
            simulator.publish_to(&amqp)?;
        }
        simulator.tasks.spawn(serve::serve(CuttableListener { listener, cut }, Arc::clone(&publisher)));
        simulator.tasks.spawn(publisher::keep_changing(publisher));
        Ok(simulator)
    }

    /// Pushes all feeds to a webhook from now on; earlier changes are pushed too.
    ///
    /// # Errors
    /// When the URL is invalid or several feeds share it, or the token can't be sent.
    pub fn push_to(&mut self, webhook: &WebhookTarget) -> io::Result<()> {
        let names = self.names_for_receiver("webhook url", &webhook.url)?;
        names.iter().try_for_each(|name| self.push_feed_to(name, webhook))
    }

    /// Pushes one feed to a webhook from now on; earlier changes are pushed too.
    ///
    /// # Errors
    /// When the URL is invalid, or the token can't be sent.
    pub fn push_feed_to(&mut self, feed: &str, webhook: &WebhookTarget) -> io::Result<()> {
        let client = WebhookClient::new(webhook::client()?, webhook, feed)?;
        if let Some(pusher) = Pusher::new(&self.publisher, feed, "webhook", webhook.from_start) {
            self.tasks.spawn(webhook::push(pusher, client));
        }
        Ok(())
    }

    /// Publishes all feeds to queues from now on; earlier changes are published too.
    ///
    /// # Errors
    /// When several feeds share a queue. A broker that can't be reached is tried again until it can.
    pub fn publish_to(&mut self, amqp: &AmqpTarget) -> io::Result<()> {
        for name in self.names_for_receiver("amqp queue", &amqp.queue)? {
            if let Some(pusher) = Pusher::new(&self.publisher, &name, "amqp", amqp.from_start) {
                self.tasks.spawn(amqp::publish(pusher, amqp.clone()));
            }
        }
        Ok(())
    }

    /// The feeds' names; an error when the receiver couldn't tell several feeds apart.
    fn names_for_receiver(&self, what: &str, receiver: &str) -> io::Result<Vec<String>> {
        let names = self.names();
        if names.len() > 1 && !receiver.contains(webhook::FEED) {
            return Err(webhook::invalid(format!("{what}: {} feeds need a {{feed}} in it", names.len())));
        }
        Ok(names)
    }

    /// The address that it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn names(&self) -> Vec<String> {
        self.publisher.names().map(str::to_owned).collect()
    }

    /// The URL of a feed's first page.
    pub fn feed_url(&self, feed: &str) -> String {
        format!("http://{}/{feed}", self.address)
    }

    /// The URL of a feed's stream of events.
    pub fn stream_url(&self, feed: &str) -> String {
        format!("http://{}/{feed}/stream", self.address)
    }

    /// What the feed's webhook and its queue have accepted.
    pub fn push_stats(&self, feed: &str) -> (PushStats, PushStats) {
        let stats = self.publisher.push_stats();
        let of = |receiver: &str| stats.get(receiver).and_then(|feeds| feeds.get(feed)).cloned().unwrap_or_default();
        (of("webhook"), of("amqp"))
    }

    /// All items that the feed has now, in its order; empty for an unknown feed.
    pub fn expected_items(&self, feed: &str) -> Vec<ExpectedItem> {
        self.publisher.feed(feed).map(|feed| feed.lock().feed.expected_items()).unwrap_or_default()
    }

    /// Makes `count` changes to the feed now; returns whether there is such a feed.
    pub fn change(&self, feed: &str, count: u64) -> bool {
        self.publisher.feed(feed).map(|feed| feed.lock().feed.change(count)).is_some()
    }

    /// Restores the feed to an older state, as from a backup: half of its changes are undone, of the last 4,096.
    /// Returns whether there was anything to undo.
    pub fn restore(&self, feed: &str) -> bool {
        self.publisher.feed(feed).is_some_and(|feed| feed.lock().feed.restore())
    }

    /// Stops the rate of change, or lets it continue.
    pub fn freeze(&self, frozen: bool) {
        self.publisher.freeze(frozen);
    }

    /// Sets the faults from now on, each with its share of requests (0 to 1), in place of all others.
    pub fn set_faults(&self, faults: Vec<(Fault, f64)>) {
        self.publisher.set_faults(faults);
    }

    /// Ends all faults. A feed that was gone is back; a cursor that was dead remains so.
    pub fn clear_faults(&self) {
        self.set_faults(Vec::new());
    }

    /// How often each fault has happened, by its name; without those that never did.
    pub fn fault_counts(&self) -> BTreeMap<&'static str, u64> {
        self.publisher.fault_counts()
    }

    /// Ends streams and responses in good order, then every connection, and waits until all tasks have ended.
    pub async fn stop(mut self) {
        self.publisher.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.publisher.stop.cancel();
        self.cut.cancel();
    }
}
