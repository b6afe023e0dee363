//! POSTs pages to a webhook (0.2.1 §3b): the next page only after the one before was answered with 2xx, and the same
//! bytes again until then. Any other response counts as a failure, redirects too, as with real publishers.

use std::io;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::page::DraftPage;
use super::push::{Backoff, PushBatch, Pusher};

/// A feed's webhook, and how the publisher authenticates to it.
#[derive(Clone, Debug)]
pub struct WebhookTarget {
    /// The URL; `{feed}` in it stands for the feed's name, and is required where there is more than one feed.
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretString>,
    /// The key of `X-Hub-Signature-256` over the body.
    pub hmac: Option<SecretString>,
    /// Whether the items at the start are pushed too.
    pub from_start: bool,
}

impl WebhookTarget {
    /// A webhook that accepts any post; only changes after the start are pushed.
    pub fn open(url: impl Into<String>) -> Self {
        Self { url: url.into(), token: None, hmac: None, from_start: false }
    }
}

/// A client for one feed's webhook.
pub(super) struct WebhookClient {
    client: reqwest::Client,
    url: reqwest::Url,
    token: Option<HeaderValue>,
    hmac: Option<SecretString>,
}

/// The response to a post.
struct PostResponse {
    status: u16,
    retry_after: Option<Duration>,
}

/// The placeholder for the feed's name.
pub(super) const FEED: &str = "{feed}";

/// One HTTP client for all webhooks; without proxy, since they are usually on this machine.
///
/// # Errors
/// When the TLS library can't be set up.
#[expect(clippy::disallowed_methods, reason = "this publisher shares no code with the mirror, and installs a provider")]
pub(super) fn client() -> io::Result<reqwest::Client> {
    const TIMEOUT: Duration = Duration::from_secs(30);
    // A second installation is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let none = reqwest::redirect::Policy::none();
    reqwest::Client::builder().redirect(none).no_proxy().timeout(TIMEOUT).build().map_err(io::Error::other)
}

impl WebhookClient {
    /// The client of this feed's webhook.
    ///
    /// # Errors
    /// When the URL is invalid, or the token can't be a header's value.
    pub(super) fn new(client: reqwest::Client, webhook: &WebhookTarget, feed: &str) -> io::Result<Self> {
        let url = webhook.url.replace(FEED, feed).parse().map_err(|error| invalid(format!("webhook url: {error}")))?;
        let bearer = |token: &SecretString| {
            let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
                .map_err(|_| invalid("webhook token: it can't stand in a header".to_owned()))?;
            bearer.set_sensitive(true);
            Ok::<_, io::Error>(bearer)
        };
        let token = webhook.token.as_ref().map(bearer).transpose()?;
        Ok(Self { client, url, token, hmac: webhook.hmac.clone() })
    }

    fn headers(&self, body: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        let signature = self.hmac.as_ref().and_then(|key| signature(key.expose_secret().as_bytes(), body));
        if let Some(signature) = signature.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert("x-hub-signature-256", signature);
        }
        headers
    }

    async fn post(&self, body: &str) -> Result<PostResponse, String> {
        let request = self.client.post(self.url.clone()).headers(self.headers(body.as_bytes())).body(body.to_owned());
        let response = request.send().await.map_err(|error| chain(&error))?;
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let reply = PostResponse { status: response.status().as_u16(), retry_after: seconds.map(Duration::from_secs) };
        // The body is read to its end, so that the connection can be used again; a publisher ignores its text.
        let _ = response.bytes().await;
        Ok(reply)
    }
}

pub(super) fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// An error's causes; its first line names the URL, which may contain a secret.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The body's HMAC in the form of WebSub's hubs.
fn signature(key: &[u8], body: &[u8]) -> Option<String> {
    // HMAC takes a key of any length (RFC 2104 §2).
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    hmac.update(body);
    let digits: String = hmac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256={digits}"))
}

/// Pushes until the publisher stops.
pub(super) async fn push(mut pusher: Pusher, client: WebhookClient) {
    while let Some(batch) = pusher.next().await {
        match deliver(&pusher, &client, &batch).await {
            PushOutcome::Accepted => pusher.mark_accepted(&batch),
            PushOutcome::Dropped => {}
            PushOutcome::Stopped => return,
        }
    }
}

enum PushOutcome {
    Accepted,
    Dropped,
    Stopped,
}

async fn deliver(pusher: &Pusher, client: &WebhookClient, batch: &PushBatch) -> PushOutcome {
    let mut was_received = false;
    for body in bodies(batch) {
        let mut backoff = Backoff::new();
        loop {
            let result = tokio::select! {
                () = pusher.stopped() => return PushOutcome::Stopped,
                result = client.post(&body) => result,
            };
            if result.is_ok() && !was_received {
                was_received = true;
                pusher.count_batch_fault(batch);
            }
            let (problem, retry_after) = match result {
                Ok(PostResponse { status: 200..=299, .. }) => break,
                Ok(response) => (format!("http {}", response.status), response.retry_after),
                Err(problem) => (problem, None),
            };
            pusher.mark_failed(&problem);
            if !pusher.wait(backoff.next(retry_after)).await {
                return PushOutcome::Stopped;
            }
            if !pusher.is_current(batch) {
                return PushOutcome::Dropped;
            }
        }
    }
    if !was_received {
        // With every item of the page left out there is nothing to send.
        pusher.count_batch_fault(batch);
    }
    PushOutcome::Accepted
}

/// The bodies to send, each after the one before was accepted.
fn bodies(batch: &PushBatch) -> Vec<String> {
    let mut bodies: Vec<String> = batch.before.map(str::to_owned).into_iter().collect();
    if !batch.items.is_empty() {
        let page = DraftPage::webhook_body(&batch.items);
        bodies.extend(std::iter::repeat_n(page, if batch.twice { 2 } else { 1 }));
    }
    bodies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_rfc() {
        // RFC 4231 §4.3.
        assert_eq!(
            signature(b"Jefe", b"what do ya want for nothing?").as_deref(),
            Some("sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843")
        );
    }
}
