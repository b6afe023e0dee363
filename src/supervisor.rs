//! A feed's endpoints and mode: starts their loops, restarts them after a panic or a hang, pauses and drains them.
//!
//! Guarantees: one feed's failure, a panic in its loops included, never affects another feed; an order is carried out
//! beside the feed's loops, which are stopped first where they would conflict with it; no task outlives
//! [`fleet::Supervisor::run`].
//! It reads no page and decides nothing about items itself.

pub mod ack;
pub mod control;
pub mod endpoints;
pub mod fleet;
pub mod housekeeping;
pub mod sync;
mod orders;
mod quarantine;
pub mod registration;
#[cfg(test)]
mod tests;
mod feed_supervisor;

use std::sync::Arc;
use std::time::Duration;

use crate::feed::{Attribution, Dialect, FeedName, ModifiedOrder, TiePolicy, Transport};
use crate::mode::PushSettings;
use crate::schedule::{PollSettings, RetrySettings};
use crate::source::amqp::AmqpSettings;
use crate::source::budget::MemoryBudget;
use crate::source::client::HttpClients;
use crate::source::decoder_pool::DecoderPool;
use crate::source::host_limiter::HostLimiter;
use crate::source::http::{EndpointClient, HostSettings, HttpFailure, HttpSettings};
use crate::source::secret::{ConfiguredValue, SecretSource};
use crate::source::sse::SseSettings;
use crate::source::webhook::WebhookSettings;
use crate::store::retention::RetentionSettings;
use crate::worker::FeedCounters;
use crate::worker::page_source::{PageSource, WaitReporter};

/// `[resync]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ResyncSettings {
    /// How often each feed is resynced; never unless set.
    pub every: Option<Duration>,
    /// The share of a feed's live items (0 to 1) that a sweep may remove without being accepted.
    pub max_sweep: f64,
}

impl Default for ResyncSettings {
    fn default() -> Self {
        Self { every: None, max_sweep: 0.2 }
    }
}

/// One feed, all defaults applied.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedSettings {
    /// The feed's unique name.
    pub name: FeedName,
    /// The feed's name in an earlier configuration: its rows and cursors are taken over.
    pub was: Option<FeedName>,
    pub provider: Option<String>,
    /// The poll endpoint's URL, as written.
    pub url: String,
    /// Who publishes the feed, and on what terms.
    pub attribution: Attribution,
    /// The kind of items that have none.
    pub kind: Option<String>,
    /// How to generate a `next` where the publisher sends none.
    pub dialect: Option<Dialect>,
    /// How `modified` text is ordered.
    pub modified: ModifiedOrder,
    /// How an item with an equal `modified` is decided.
    pub ties: TiePolicy,
    /// How long the publisher keeps tombstones.
    pub retention: Duration,
    /// How long a gone feed's rows are kept; for good unless set.
    pub purge_gone_after: Option<Duration>,
    /// Sent with each request to the feed's own origin.
    pub headers: Vec<(String, ConfiguredValue)>,
    /// Query parameters sent with each request to the feed's own origin.
    pub query: Vec<(String, ConfiguredValue)>,
    /// How often the feed is polled.
    pub poll: PollSettings,
    /// How polling backs off after failures.
    pub retry: RetrySettings,
    /// When the feed is resynced, and how much a sweep may remove.
    pub resync: ResyncSettings,
    /// Limits of the feed's requests.
    pub http: HttpSettings,
    /// When push is trusted.
    pub push: PushSettings,
    pub sse: Option<SseSettings>,
    pub webhook: Option<WebhookSettings>,
    pub amqp: Option<AmqpSettings>,
}

/// How long a publisher must keep tombstones (RPDE 1.0).
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(7 * 86_400);

impl FeedSettings {
    /// The transports of the feed's push endpoints.
    pub fn push_transports(&self) -> Vec<Transport> {
        let configured = [
            (Transport::Sse, self.sse.is_some()),
            (Transport::Webhook, self.webhook.is_some()),
            (Transport::Amqp, self.amqp.is_some()),
        ];
        configured.into_iter().filter(|(_, configured)| *configured).map(|(transport, _)| transport).collect()
    }

    /// Makes what fetches the feed's pages. Reads the feed's secrets: blocking, small local files.
    ///
    /// # Errors
    /// When the feed's URL or a secret can't be used.
    pub fn page_source(
        &self,
        (clients, host_limiter): (&HttpClients, &HostLimiter),
        (budget, decoders): (MemoryBudget, DecoderPool),
        counts: Arc<FeedCounters>,
        wait_reporter: Option<WaitReporter>,
    ) -> Result<PageSource, HttpFailure> {
        let requests = EndpointClient::new(clients, &self.url, &self.http, &self.headers, &self.query)?;
        let requests = requests.hiding(self.secrets());
        Ok(PageSource {
            name: self.name.clone(),
            host: host_limiter.queue_for(requests.endpoint_url()),
            requests,
            decode_options: crate::worker::decode_options(self.kind.as_deref(), self.modified),
            dialect: self.dialect,
            interval: self.poll.min,
            page_timeout: self.http.page_timeout,
            budget,
            decoders,
            counts,
            skip_validators: Default::default(),
            not_before: Default::default(),
            wait_reporter,
        })
    }

    /// All secrets of the feed, each with the name that replaces it in texts of the publisher.
    pub fn secrets(&self) -> Vec<(String, SecretSource)> {
        let register = self.webhook.iter().filter_map(|webhook| webhook.register.as_ref());
        let header_values =
            self.headers.iter().chain(&self.query).chain(register.flat_map(|register| &register.headers));
        let header_values = header_values.filter_map(|(name, value)| match value {
            ConfiguredValue::Plain(_) => None,
            ConfiguredValue::Secret(source) => Some((name.clone(), source.clone())),
        });
        let webhook_secrets = self.webhook.iter().flat_map(|webhook| &webhook.secrets);
        let webhook_secrets = webhook_secrets.map(|source| ("webhook.secret".to_owned(), source.clone()));
        let broker_urls = self.amqp.iter().map(|amqp| ("amqp.url".to_owned(), amqp.url.clone()));
        header_values.chain(webhook_secrets).chain(broker_urls).collect()
    }

    /// A feed at `url` with default settings.
    pub fn with_defaults(name: FeedName, url: String) -> Self {
        Self {
            name,
            was: None,
            provider: None,
            url,
            attribution: Attribution::default(),
            kind: None,
            dialect: None,
            modified: ModifiedOrder::default(),
            ties: TiePolicy::Keep,
            retention: DEFAULT_RETENTION,
            purge_gone_after: None,
            headers: Vec::new(),
            query: Vec::new(),
            poll: PollSettings::default(),
            retry: RetrySettings::default(),
            resync: ResyncSettings::default(),
            http: HttpSettings::default(),
            push: PushSettings::default(),
            sse: None,
            webhook: None,
            amqp: None,
        }
    }
}

/// A feed as configured.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfiguredFeed {
    /// The feed can run.
    Ready(Box<FeedSettings>),
    /// The feed's own settings are wrong: it fails, and the others run.
    Broken {
        name: FeedName,
        /// What is wrong: a text for the operator.
        reason: String,
    },
}

impl ConfiguredFeed {
    /// Whether a feed is read in the same way as another: its attribution makes no difference.
    pub fn runs_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready(one), Self::Ready(other)) => {
                let other = FeedSettings { attribution: one.attribution.clone(), ..FeedSettings::clone(other) };
                **one == other
            }
            _ => self == other,
        }
    }

    pub fn name(&self) -> &FeedName {
        match self {
            Self::Ready(settings) => &settings.name,
            Self::Broken { name, .. } => name,
        }
    }
}

/// The configuration of all feeds.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct FleetSettings {
    pub feeds: Vec<ConfiguredFeed>,
    /// Limits of requests per host.
    pub hosts: HostSettings,
    /// How long events, findings and the like are kept.
    pub keep_settings: RetentionSettings,
}
