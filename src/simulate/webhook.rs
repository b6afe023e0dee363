//! Pages POSTed to a webhook (0.2.1 §3b): the next only after the one before was answered with 2xx, the same bytes again
//! until then. Any other answer counts as a failure alike, redirects too; a publisher in the wild does no better.

use std::io;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use super::page::DraftPage;
use super::push::{Backoff, PushBatch, Pusher};

/// Where a feed's pages are pushed to, and how that is proved to be us.
#[derive(Clone, Debug)]
pub struct WebhookTarget {
    /// `{feed}` stands for the feed's name; there must be one where there is more than one feed.
    pub url: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretString>,
    /// The key of `X-Hub-Signature-256` over the body.
    pub hmac: Option<SecretString>,
    /// Whether the first population is pushed too.
    pub from_start: bool,
}

impl WebhookTarget {
    /// A webhook that takes anything; for what changes from the start on.
    pub fn open(url: impl Into<String>) -> Self {
        Self { url: url.into(), token: None, hmac: None, from_start: false }
    }
}

/// A webhook ready to be called.
pub(super) struct WebhookClient {
    client: reqwest::Client,
    url: reqwest::Url,
    token: Option<HeaderValue>,
    hmac: Option<SecretString>,
}

/// An attempt's answer.
struct PostResponse {
    status: u16,
    retry_after: Option<Duration>,
}

/// What stands for the feed's name.
pub(super) const FEED: &str = "{feed}";

/// One client for all webhooks; without proxy, since they are usually on this machine.
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
    /// The webhook of this feed.
    ///
    /// # Errors
    /// When the URL is none, or the token can't stand in a header.
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
        let answer = PostResponse { status: response.status().as_u16(), retry_after: seconds.map(Duration::from_secs) };
        // Read to its end, so that the connection can be used again; what it says is nothing to a publisher.
        let _ = response.bytes().await;
        Ok(answer)
    }
}

pub(super) fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

/// An error's causes; its first line names the URL, with whatever is secret in it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The body's HMAC as WebSub's hubs give it.
fn signature(key: &[u8], body: &[u8]) -> Option<String> {
    // A key of any length will do (RFC 2104 §2).
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    hmac.update(body);
    let digits: String = hmac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256={digits}"))
}

/// Pushes until all is to end.
pub(super) async fn push(mut pusher: Pusher, hook: WebhookClient) {
    while let Some(parcel) = pusher.next().await {
        match deliver(&pusher, &hook, &parcel).await {
            PushOutcome::Accepted => pusher.mark_accepted(&parcel),
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

async fn deliver(pusher: &Pusher, hook: &WebhookClient, parcel: &PushBatch) -> PushOutcome {
    let mut seen = false;
    for body in bodies(parcel) {
        let mut backoff = Backoff::new();
        loop {
            let answer = tokio::select! {
                () = pusher.stopped() => return PushOutcome::Stopped,
                answer = hook.post(&body) => answer,
            };
            if answer.is_ok() && !seen {
                seen = true;
                pusher.count_batch_fault(parcel);
            }
            let (trouble, asked) = match answer {
                Ok(PostResponse { status: 200..=299, .. }) => break,
                Ok(answer) => (format!("http {}", answer.status), answer.retry_after),
                Err(trouble) => (trouble, None),
            };
            pusher.mark_failed(&trouble);
            if !pusher.wait(backoff.next(asked)).await {
                return PushOutcome::Stopped;
            }
            if !pusher.stands(parcel) {
                return PushOutcome::Dropped;
            }
        }
    }
    if !seen {
        // A page all of which was left out is nothing to send.
        pusher.count_batch_fault(parcel);
    }
    PushOutcome::Accepted
}

/// What is sent, each when the one before was taken.
fn bodies(parcel: &PushBatch) -> Vec<String> {
    let mut bodies: Vec<String> = parcel.before.map(str::to_owned).into_iter().collect();
    if !parcel.items.is_empty() {
        let page = DraftPage::webhook_body(&parcel.items);
        bodies.extend(std::iter::repeat_n(page, if parcel.twice { 2 } else { 1 }));
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
