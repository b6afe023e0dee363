//! A feed's push endpoints, made from its settings: their loops run beside the poll loop.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use futures_util::future::OptionFuture;
use secrecy::SecretString;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::FeedSettings;
use crate::feed::{Mode, PushTrust, Transport};
use crate::mode::push::PushLedger;
use crate::source::amqp::AmqpSettings;
use crate::source::client::HttpClients;
use crate::source::http::{EndpointClient, HttpFailure};
use crate::source::secret::SecretSource;
use crate::source::webhook::{POST_QUEUE_CAPACITY, RouteState, WebhookPost, WebhookRoute, WebhookSettings};
use crate::store::endpoints::StoredEndpoint;
use crate::store::feeds::StoredFeed;
use crate::worker::FeedRuntime;
use crate::worker::amqp::AmqpLoop;
use crate::worker::push::PushState;
use crate::worker::sse::{SseEndpoint, SseLoop};
use crate::worker::webhook::{WebhookLoop, WebhookRegistration};

/// What a feed's push loops run with.
pub(super) struct PushEndpoints {
    sse: Option<SseEndpoint>,
    amqp: Option<AmqpSettings>,
    webhook: Option<WebhookEndpoint>,
}

/// The feed's end of its webhook route: the posts, and the route's state.
struct WebhookEndpoint {
    inbox: mpsc::Receiver<WebhookPost>,
    route_state: watch::Sender<RouteState>,
    generation: Arc<AtomicI64>,
    registration: Option<WebhookRegistration>,
}

/// When a feed that defers asks its publisher to post again, until the feed is level.
const DEFERRED_RETRY_AFTER: Duration = Duration::from_secs(30);

impl PushEndpoints {
    /// Also makes the route that the feed's publisher posts to, if there is one. Reads secrets: blocking, small local
    /// files.
    pub(super) fn new(
        clients: &HttpClients,
        settings: &FeedSettings,
        stored: &StoredFeed,
        push_state: &PushState,
    ) -> Result<(Self, Option<WebhookRoute>), HttpFailure> {
        let sse = match &settings.sse {
            Some(sse) => {
                let (headers, query) = (&settings.headers, &settings.query);
                let requests = EndpointClient::new(clients, &sse.url, &settings.http, headers, query)?;
                let requests = requests.hiding(settings.secrets());
                Some(SseEndpoint { settings: sse.clone(), requests })
            }
            None => None,
        };
        let Some(webhook) = &settings.webhook else {
            return Ok((Self { sse, amqp: settings.amqp.clone(), webhook: None }, None));
        };
        let defers = webhook.defer && stored.mode == Mode::Refresh;
        let deferring = RouteState::Deferred { retry_after: DEFERRED_RETRY_AFTER, why: "the feed is being read first" };
        let (route_state, state) = watch::channel(if defers { deferring } else { RouteState::Open });
        let (sender, inbox) = mpsc::channel(POST_QUEUE_CAPACITY);
        let registration = match &webhook.register {
            Some(register) => {
                let requests = EndpointClient::new(clients, &register.url, &settings.http, &register.headers, &[])?;
                let requests = requests.hiding(settings.secrets());
                Some(WebhookRegistration { settings: register.clone(), requests })
            }
            None => None,
        };
        let generation = Arc::new(AtomicI64::new(stored.generation));
        let route = WebhookRoute {
            secrets: read_webhook_secrets(webhook)?,
            state,
            sender,
            generation: Arc::clone(&generation),
            turned_away_count: Arc::clone(&push_state.rejected_posts),
        };
        Ok((
            Self {
                sse,
                amqp: settings.amqp.clone(),
                webhook: Some(WebhookEndpoint { inbox, route_state, generation, registration }),
            },
            Some(route),
        ))
    }

    /// Runs until cancelled.
    pub(super) async fn run(self, feed: &Arc<FeedRuntime>, cancel: &CancellationToken) {
        let Self { sse, amqp, webhook } = self;
        if sse.is_none() && amqp.is_none() && webhook.is_none() {
            return;
        }
        let sse = sse.as_ref().map(|endpoint| SseLoop::new(feed, endpoint, cancel).run());
        let amqp = amqp.as_ref().map(|settings| AmqpLoop::new(feed, settings, cancel).run());
        let webhook = webhook.map(|WebhookEndpoint { inbox, route_state, generation, registration }| async move {
            let open_route = async {
                if feed.wait_until_level(cancel).await {
                    route_state.send_replace(RouteState::Open);
                }
                cancel.cancelled().await;
            };
            let registration = registration.as_ref().map(|registration| registration.run(feed, cancel));
            let posts = WebhookLoop::new(feed, generation, inbox, cancel).run();
            tokio::join!(posts, open_route, OptionFuture::from(registration));
        });
        tokio::join!(
            feed.run_push_clock(cancel),
            OptionFuture::from(sse),
            OptionFuture::from(amqp),
            OptionFuture::from(webhook)
        );
    }
}

/// The secrets that a feed's publisher may send.
///
/// # Errors
/// When one can't be read.
pub(super) fn read_webhook_secrets(webhook: &WebhookSettings) -> Result<Vec<SecretString>, HttpFailure> {
    let read_secret = |source: &SecretSource| source.read().map_err(|error| HttpFailure::Settings(error.to_string()));
    webhook.secrets.iter().map(read_secret).collect()
}

/// A route that takes no posts, and answers with the reason.
pub(super) fn closed_route(webhook: &WebhookSettings, state: RouteState) -> Result<WebhookRoute, HttpFailure> {
    let (_, state) = watch::channel(state);
    let (sender, _) = mpsc::channel(1);
    Ok(WebhookRoute {
        secrets: read_webhook_secrets(webhook)?,
        state,
        sender,
        generation: Arc::default(),
        turned_away_count: Arc::default(),
    })
}

/// The push state of a feed that is only polled.
pub fn poll_only_state(settings: &FeedSettings, stored: &StoredFeed) -> PushState {
    PushState::new(PushLedger::new(settings.push.clone(), settings.modified, []), stored.mode)
}

/// The push state that a feed begins with, from what is stored. Push that kept the feed level has to connect again
/// first.
pub(super) fn restore_push_state(
    settings: &FeedSettings,
    stored: &StoredFeed,
    endpoints: &[StoredEndpoint],
) -> PushState {
    let stored_trust = settings.push_transports().into_iter().map(|transport: Transport| {
        let stored_trust = endpoints.iter().find(|endpoint| endpoint.transport == transport);
        (transport, stored_trust.map_or(PushTrust::Unproven, |stored_trust| stored_trust.push))
    });
    let mode = if stored.mode.is_push() { Mode::Poll } else { stored.mode };
    PushState::new(PushLedger::new(settings.push.clone(), settings.modified, stored_trust), mode)
}
