//! A feed's push endpoints, made ready from its settings: their loops run beside the poll loop.

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

/// What comes through a feed's door, and the sign on it.
struct WebhookEndpoint {
    inbox: mpsc::Receiver<WebhookPost>,
    route_state: watch::Sender<RouteState>,
    generation: Arc<AtomicI64>,
    registration: Option<WebhookRegistration>,
}

/// Until it is level, a feed that defers asks its publisher to come again after this.
const DEFERRED: Duration = Duration::from_secs(30);

impl PushEndpoints {
    /// With the door that the feed's publisher posts to, if it has one. Reads secrets: blocking, small local files.
    pub(super) fn new(
        clients: &HttpClients,
        settings: &FeedSettings,
        stored: &StoredFeed,
        book: &PushState,
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
        let deferring = RouteState::Deferred { retry_after: DEFERRED, why: "the feed is being read first" };
        let (sign, state) = watch::channel(if defers { deferring } else { RouteState::Open });
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
        let door = WebhookRoute {
            secrets: read_webhook_secrets(webhook)?,
            state,
            sender,
            generation: Arc::clone(&generation),
            turned_away_count: Arc::clone(&book.rejected_posts),
        };
        Ok((
            Self {
                sse,
                amqp: settings.amqp.clone(),
                webhook: Some(WebhookEndpoint { inbox, route_state: sign, generation, registration }),
            },
            Some(door),
        ))
    }

    /// Until cancelled.
    pub(super) async fn run(self, feed: &Arc<FeedRuntime>, cancel: &CancellationToken) {
        let Self { sse, amqp, webhook } = self;
        if sse.is_none() && amqp.is_none() && webhook.is_none() {
            return;
        }
        let sse = sse.as_ref().map(|endpoint| SseLoop::new(feed, endpoint, cancel).run());
        let amqp = amqp.as_ref().map(|settings| AmqpLoop::new(feed, settings, cancel).run());
        let webhook =
            webhook.map(|WebhookEndpoint { inbox, route_state: sign, generation, registration }| async move {
                let open = async {
                    if feed.wait_until_level(cancel).await {
                        sign.send_replace(RouteState::Open);
                    }
                    cancel.cancelled().await;
                };
                let registration = registration.as_ref().map(|registration| registration.run(feed, cancel));
                let posts = WebhookLoop::new(feed, generation, inbox, cancel).run();
                tokio::join!(posts, open, OptionFuture::from(registration));
            });
        tokio::join!(
            feed.run_push_clock(cancel),
            OptionFuture::from(sse),
            OptionFuture::from(amqp),
            OptionFuture::from(webhook)
        );
    }
}

/// The secrets that a feed's publisher may show.
///
/// # Errors
/// When one can't be read.
pub(super) fn read_webhook_secrets(webhook: &WebhookSettings) -> Result<Vec<SecretString>, HttpFailure> {
    let read = |source: &SecretSource| source.read().map_err(|error| HttpFailure::Settings(error.to_string()));
    webhook.secrets.iter().map(read).collect()
}

/// A door that nobody gets through, with the reason on it.
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

/// The book of a feed that is only polled.
pub fn poll_only_state(settings: &FeedSettings, stored: &StoredFeed) -> PushState {
    PushState::new(PushLedger::new(settings.push.clone(), settings.modified, []), stored.mode)
}

/// What was known of a feed's push before, as a book to go on with. Whatever kept it level has to be reached again.
pub(super) fn restore_push_state(
    settings: &FeedSettings,
    stored: &StoredFeed,
    endpoints: &[StoredEndpoint],
) -> PushState {
    let known = settings.push_transports().into_iter().map(|transport: Transport| {
        let known = endpoints.iter().find(|endpoint| endpoint.transport == transport);
        (transport, known.map_or(PushTrust::Unproven, |known| known.push))
    });
    let mode = if stored.mode.is_push() { Mode::Poll } else { stored.mode };
    PushState::new(PushLedger::new(settings.push.clone(), settings.modified, known), mode)
}
