//! A feed's endpoints and mode: starts their loops, restarts them after a panic or a hang, pauses and drains them.
//!
//! Guarantees: one feed's trouble, a panic in its loops included, never reaches another feed; an order is carried
//! out beside a feed's loops, which are stopped first where it must not meet them; nothing runs after the end of [`fleet::Supervisor::run`].
//! Reads no page and decides nothing about items itself.

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
    /// How often every feed is read anew; never unless set.
    pub every: Option<Duration>,
    /// The share of a feed's live items (0 to 1) that a sweep may remove unasked.
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
    /// Its unique name.
    pub name: FeedName,
    /// The name under which the mirror may know it from before: its rows and cursors are taken over.
    pub was: Option<FeedName>,
    /// The provider it belongs to.
    pub provider: Option<String>,
    /// The poll endpoint's URL, as written.
    pub url: String,
    /// Who publishes it, and on what terms.
    pub attribution: Attribution,
    /// The kind of items that carry none.
    pub kind: Option<String>,
    /// How to make a `next` where the publisher sends none.
    pub dialect: Option<Dialect>,
    /// How `modified` text is ordered.
    pub modified: ModifiedOrder,
    /// What becomes of ties.
    pub ties: TiePolicy,
    /// How long the publisher remembers deleted items.
    pub retention: Duration,
    /// How long a gone feed's rows are kept; for good unless set.
    pub purge_gone_after: Option<Duration>,
    /// Sent with each request to the feed's own origin.
    pub headers: Vec<(String, ConfiguredValue)>,
    /// Query parameters sent with each request to the feed's own origin.
    pub query: Vec<(String, ConfiguredValue)>,
    /// How often it is asked.
    pub poll: PollSettings,
    /// How errors back off.
    pub retry: RetrySettings,
    /// When it is read anew, and how much a sweep may remove.
    pub resync: ResyncSettings,
    /// Limits of its requests.
    pub http: HttpSettings,
    /// When push is believed.
    pub push: PushSettings,
    /// Its stream of server-sent events.
    pub sse: Option<SseSettings>,
    /// Its webhook.
    pub webhook: Option<WebhookSettings>,
    /// Its queue.
    pub amqp: Option<AmqpSettings>,
}

/// How long a publisher must remember what it deleted (RPDE 1.0).
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(7 * 86_400);

impl FeedSettings {
    /// The push endpoints it has.
    pub fn push_transports(&self) -> Vec<Transport> {
        let has = [
            (Transport::Sse, self.sse.is_some()),
            (Transport::Webhook, self.webhook.is_some()),
            (Transport::Amqp, self.amqp.is_some()),
        ];
        has.into_iter().filter(|(_, has)| *has).map(|(transport, _)| transport).collect()
    }

    /// Its publisher, as it is asked for pages. Reads its secrets: blocking, small local files.
    ///
    /// # Errors
    /// When its URL or a secret can't be used.
    pub fn page_source(
        &self,
        (clients, turns): (&HttpClients, &HostLimiter),
        (budget, decoders): (MemoryBudget, DecoderPool),
        counts: Arc<FeedCounters>,
        waits: Option<WaitReporter>,
    ) -> Result<PageSource, HttpFailure> {
        let requests = EndpointClient::new(clients, &self.url, &self.http, &self.headers, &self.query)?;
        let requests = requests.hiding(self.secrets());
        Ok(PageSource {
            name: self.name.clone(),
            host: turns.queue_for(requests.endpoint_url()),
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
            wait_reporter: waits,
        })
    }

    /// Every secret that it has, by the name that stands in its place where a publisher shows it.
    pub fn secrets(&self) -> Vec<(String, SecretSource)> {
        let register = self.webhook.iter().filter_map(|webhook| webhook.register.as_ref());
        let sent = self.headers.iter().chain(&self.query).chain(register.flat_map(|register| &register.headers));
        let sent = sent.filter_map(|(name, value)| match value {
            ConfiguredValue::Plain(_) => None,
            ConfiguredValue::Secret(source) => Some((name.clone(), source.clone())),
        });
        let shown = self.webhook.iter().flat_map(|webhook| &webhook.secrets);
        let shown = shown.map(|source| ("webhook.secret".to_owned(), source.clone()));
        let broker = self.amqp.iter().map(|amqp| ("amqp.url".to_owned(), amqp.url.clone()));
        sent.chain(shown).chain(broker).collect()
    }

    /// A feed at `url` with the defaults of everything else.
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
    /// It can run.
    Ready(Box<FeedSettings>),
    /// Its own settings are wrong: it fails, and the others run.
    Broken {
        /// Its name.
        name: FeedName,
        /// What is wrong, in words.
        reason: String,
    },
}

impl ConfiguredFeed {
    /// Whether it does the same as another: who publishes a feed changes nothing about how it is read.
    pub fn runs_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready(one), Self::Ready(other)) => {
                let other = FeedSettings { attribution: one.attribution.clone(), ..FeedSettings::clone(other) };
                **one == other
            }
            _ => self == other,
        }
    }

    /// The feed's name.
    pub fn name(&self) -> &FeedName {
        match self {
            Self::Ready(settings) => &settings.name,
            Self::Broken { name, .. } => name,
        }
    }
}

/// All that is configured about feeds.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct FleetSettings {
    /// Each feed.
    pub feeds: Vec<ConfiguredFeed>,
    /// Budgets of hosts.
    pub hosts: HostSettings,
    /// How long what happened is kept.
    pub keep_settings: RetentionSettings,
}
