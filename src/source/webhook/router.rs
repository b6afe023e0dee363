//! `POST {path}/{feed}`: checks the credentials, whether the feed accepts bodies, and the body, then waits for the
//! answer of the feed's loop. Each step may end the request.
//!
//! A 2xx means committed. After every other answer the publisher sends the page again. Of a request, only the name of
//! an existing feed and the client's address are logged.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::authentication::{ShownCredential, SignatureCheck, check_credentials};
use super::body_reader::{
    BEGINNING, BodyError, CompleteBody, OversizedBody, discard_body, read, within_memory_timeout,
};
use super::connection_slots::Peer;
use super::failed_logins::FailedLogins;
use super::{Inbox, PostAnswer, RouteEntry, RouteState, WebhookListenerSettings, WebhookPost};
use crate::feed::Generation;
use crate::source::body::{self, ContentCoding};
use crate::source::budget::{MemoryBudget, Reservation};
use crate::source::decoder_pool::DecoderPool;
use crate::source::http::HttpFailure;

/// Bytes that all bodies whose signature is not compared yet may hold: apart from the mirror's own budget, since
/// anybody can send such bodies.
const UNVERIFIED: u64 = 8 << 20;
/// How long the feed's loop may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long decompressing a body, and waiting for its memory, may take.
const DECOMPRESS_TIMEOUT: Duration = Duration::from_secs(30);
/// `Retry-After` where nothing says when.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Serves the feeds of `inbox`; bodies are charged to `budget`.
pub fn router(inbox: Inbox, settings: &WebhookListenerSettings, budget: MemoryBudget) -> Router {
    let state = RouterState {
        inbox,
        budget,
        unverified: MemoryBudget::new(UNVERIFIED),
        decoders: DecoderPool::new(1),
        max: settings.max_body_bytes,
        failed_logins: FailedLogins::default(),
    };
    Router::new()
        .route(&format!("{}/{{feed}}", settings.path), post(receive))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .with_state(Arc::new(state))
}

/// The state that all requests share.
struct RouterState {
    inbox: Inbox,
    budget: MemoryBudget,
    unverified: MemoryBudget,
    /// Decompressing keeps a core busy: one body at a time leaves the other cores to the feeds.
    decoders: DecoderPool,
    max: u64,
    failed_logins: FailedLogins,
}

async fn receive(State(state): State<Arc<RouterState>>, Path(feed): Path<String>, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    let from = peer.as_ref().and_then(|peer| peer.client(request.headers()));
    let Some(entry) = state.inbox.entry(&feed) else {
        let allowed =
            state.inbox.0.unknown_feed_log.lock().unwrap_or_else(PoisonError::into_inner).allow(Instant::now());
        if let Some(untold) = allowed {
            let from = from.map(|from| from.to_string());
            tracing::warn!(from, untold, "a post to a feed that there is not, or that has no webhook, got 404");
        }
        discard_body(request.into_body(), state.max).await;
        return Refusal::new(StatusCode::NOT_FOUND, "there is nothing here").into_response();
    };
    // A body that begins to arrive before a purge belongs to the older generation.
    let generation = entry.route.generation.load(Ordering::Relaxed);
    match state.accept_post(&entry, generation, request, peer.as_ref()).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => {
            // Unauthenticated requests don't count.
            let is_our_reason = matches!(refusal.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT);
            if is_our_reason && !refusal.is_unauthenticated {
                entry.route.turned_away_count.fetch_add(1, Ordering::Relaxed);
            }
            refusal.log(&feed, &entry, from);
            if refusal.status == StatusCode::UNAUTHORIZED {
                sleep(state.failed_logins.record_failure(from, Instant::now()).0).await;
            }
            refusal.into_response()
        }
    }
}

impl RouterState {
    async fn accept_post(
        &self,
        entry: &RouteEntry,
        generation: Generation,
        request: Request,
        peer: Option<&Peer>,
    ) -> Result<(), Refusal> {
        let (head, body) = request.into_parts();
        let checked = match check_credentials(&head.headers, &head.uri, &entry.route.secrets) {
            ShownCredential::Nothing => Err(Refusal::unauthorized()),
            ShownCredential::Signature(signature) => Ok((Some(signature), &self.unverified)),
            ShownCredential::Secret => admit(entry, peer).map(|()| (None, &self.budget)),
        };
        let checked = checked.and_then(|(signature, budget)| Ok((signature, budget, coding(&head.headers)?)));
        let (signature, budget, coding) = match checked {
            Ok(checked) => checked,
            Err(refusal) => {
                discard_body(body, self.max).await;
                return Err(refusal);
            }
        };
        let is_authenticated = signature.is_none();
        match read(body, self.max, budget, signature, peer).await {
            Ok(complete) => self.accept_complete(entry, generation, complete, coding, peer).await,
            Err(BodyError::TooLarge(oversized)) => {
                self.accept_oversized(entry, generation, *oversized, is_authenticated, peer).await
            }
            Err(BodyError::Stalled) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
            Err(BodyError::Broken) => Err(Refusal::new(StatusCode::BAD_REQUEST, "the body was cut short")),
            Err(BodyError::NoMemory) => Err(Refusal { is_unauthenticated: !is_authenticated, ..Refusal::no_room() }),
        }
    }

    async fn accept_complete(
        &self,
        entry: &RouteEntry,
        generation: Generation,
        complete: CompleteBody,
        coding: ContentCoding,
        peer: Option<&Peer>,
    ) -> Result<(), Refusal> {
        let CompleteBody { bytes, mut reservation, signature } = complete;
        if let Some(signature) = signature {
            verify_signature(entry, signature, peer)?;
            reservation = self.reserve(bytes.len() as u64).await?;
        }
        reservation.shrink_to(bytes.len() as u64);
        let hash = identity(&bytes, None);
        let quarantine_if_unreadable = entry.history().refused_bodies.is_refused_too_often(hash, Instant::now());
        if coding == ContentCoding::Identity {
            return submit_post(
                entry,
                PostBody { generation, bytes, hash, quarantine_if_unreadable, fault: None, reservation },
            )
            .await;
        }
        let raw = if quarantine_if_unreadable { bytes.clone() } else { Vec::new() };
        let encoded = body::EncodedBody { bytes, coding, reservation, max: self.max };
        let refusal = match timeout(DECOMPRESS_TIMEOUT, encoded.decompress(&self.decoders)).await {
            Err(_) => return Err(Refusal::no_room()),
            Ok(Ok(decompressed)) => {
                let (bytes, reservation) = (decompressed.bytes, decompressed.reservation);
                return submit_post(
                    entry,
                    PostBody { generation, bytes, hash, quarantine_if_unreadable, fault: None, reservation },
                )
                .await;
            }
            Ok(Err(HttpFailure::TooLarge(_))) => self.too_large(),
            Ok(Err(HttpFailure::Preempted(_))) => return Err(Refusal::no_room()),
            Ok(Err(failure)) => Refusal::new(StatusCode::BAD_REQUEST, failure.to_string()),
        };
        if !quarantine_if_unreadable {
            return Err(refusal.count_refusal(entry, hash));
        }
        let kept = if refusal.status == StatusCode::PAYLOAD_TOO_LARGE { raw.len().min(BEGINNING) } else { raw.len() };
        let (bytes, reservation) = (raw.get(..kept).unwrap_or_default().to_vec(), self.reserve(kept as u64).await?);
        submit_post(
            entry,
            PostBody { generation, bytes, hash, quarantine_if_unreadable, fault: Some(refusal.words), reservation },
        )
        .await
    }

    /// `is_authenticated` says that the request's head had the secret.
    async fn accept_oversized(
        &self,
        entry: &RouteEntry,
        generation: Generation,
        mut oversized: OversizedBody,
        is_authenticated: bool,
        peer: Option<&Peer>,
    ) -> Result<(), Refusal> {
        let refusal = self.too_large();
        match oversized.signature.take() {
            Some(signature) => verify_signature(entry, signature, peer)?,
            // Too large even for the signature to be checked: the sender stays unauthenticated, so nothing is counted.
            None if !is_authenticated => return Err(refusal),
            None => {}
        }
        let hash = identity(&oversized.beginning, Some(oversized.length));
        if !entry.history().refused_bodies.is_refused_too_often(hash, Instant::now()) {
            return Err(refusal.count_refusal(entry, hash));
        }
        oversized.discard_rest(self.max).await;
        let (bytes, reservation) = (oversized.beginning, oversized.reservation);
        submit_post(
            entry,
            PostBody {
                generation,
                bytes,
                hash,
                quarantine_if_unreadable: true,
                fault: Some(refusal.words),
                reservation,
            },
        )
        .await
    }

    /// Memory of the mirror's own budget, for an authenticated body.
    async fn reserve(&self, bytes: u64) -> Result<Reservation, Refusal> {
        let reserving = async {
            let mut reservation = self.budget.reserve(bytes).await;
            reservation.grow_to(bytes).await.map(|()| reservation)
        };
        within_memory_timeout(reserving).await.ok().and_then(Result::ok).ok_or_else(Refusal::no_room)
    }

    fn too_large(&self) -> Refusal {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("more than {} bytes are not taken", self.max))
    }
}

fn verify_signature(entry: &RouteEntry, signature: SignatureCheck, peer: Option<&Peer>) -> Result<(), Refusal> {
    if !signature.verify() {
        return Err(Refusal::unauthorized());
    }
    admit(entry, peer)
}

/// Only an authenticated client learns the route's state.
fn admit(entry: &RouteEntry, peer: Option<&Peer>) -> Result<(), Refusal> {
    if let Some(peer) = peer {
        peer.mark_authenticated();
    }
    match *entry.route.state.borrow() {
        RouteState::Open => Ok(()),
        RouteState::Deferred { retry_after, why } => Err(Refusal::busy(retry_after, why)),
        RouteState::Closed(why) => Err(Refusal::new(StatusCode::CONFLICT, why)),
    }
}

fn coding(headers: &HeaderMap) -> Result<ContentCoding, Refusal> {
    let mut all = headers.get_all(header::CONTENT_ENCODING).iter();
    let (first, more) = (all.next(), all.next());
    let known = first.map_or(Some(""), |value| value.to_str().ok());
    let coding = known.filter(|_| more.is_none()).and_then(|value| ContentCoding::from_header(Some(value)).ok());
    coding
        .ok_or_else(|| Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body may come as it is, gzip, br or zstd"))
}

/// Identifies a body: the first 8 bytes of its SHA-256; of one that is too large, which is never read whole, of its
/// beginning and its declared length.
fn identity(bytes: &[u8], too_large: Option<Option<u64>>) -> u64 {
    let mut hash = Sha256::new_with_prefix(bytes);
    if let Some(length) = too_large {
        hash.update(length.unwrap_or(u64::MAX).to_le_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// A [`WebhookPost`] without its answer channel.
struct PostBody {
    generation: Generation,
    bytes: Vec<u8>,
    hash: u64,
    quarantine_if_unreadable: bool,
    fault: Option<String>,
    reservation: Reservation,
}

/// Queues the body and waits for the loop's answer. The body is applied even if the publisher has gone.
async fn submit_post(entry: &RouteEntry, post: PostBody) -> Result<(), Refusal> {
    let PostBody { generation, bytes, hash, quarantine_if_unreadable, fault, reservation } = post;
    let (answer, response) = oneshot::channel();
    match entry.route.sender.try_send(WebhookPost {
        generation,
        bytes,
        hash,
        quarantine_if_unreadable,
        fault,
        reservation,
        answer,
    }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return Err(Refusal::busy(DEFAULT_RETRY_AFTER, "earlier pages still wait")),
        Err(TrySendError::Closed(_)) => return Err(Refusal::busy(DEFAULT_RETRY_AFTER, "the feed is being started")),
    }
    match timeout(ANSWER_TIMEOUT, response).await {
        Ok(Ok(PostAnswer::Committed)) => {
            entry.history().refused_bodies.forget(hash);
            Ok(())
        }
        Ok(Ok(PostAnswer::Unreadable(why))) => {
            Err(Refusal::new(StatusCode::BAD_REQUEST, why).count_refusal(entry, hash))
        }
        Ok(Ok(PostAnswer::Busy(again))) => Err(Refusal::busy(again, "not now")),
        Ok(Ok(PostAnswer::OutdatedGeneration)) => {
            Err(Refusal::new(StatusCode::CONFLICT, "the feed takes nothing any more"))
        }
        Ok(Err(_)) => Err(Refusal::busy(DEFAULT_RETRY_AFTER, "the feed is being started")),
        Err(_) => Err(Refusal::busy(DEFAULT_RETRY_AFTER, "it takes longer than expected")),
    }
}

/// Any answer but a 2xx.
struct Refusal {
    status: StatusCode,
    words: String,
    retry_after: Option<Duration>,
    /// Whether the client has not shown the secret yet.
    is_unauthenticated: bool,
}

impl Refusal {
    fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self { status, words: words.into(), retry_after: None, is_unauthenticated: false }
    }

    fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "the feed's secret is needed")
    }

    fn busy(retry_after: Duration, why: &str) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    fn no_room() -> Self {
        Self::busy(DEFAULT_RETRY_AFTER, "there is no memory left for it")
    }

    /// Counts the refusal against the body.
    fn count_refusal(self, entry: &RouteEntry, hash: u64) -> Self {
        entry.history().refused_bodies.record_refusal(hash, Instant::now());
        self
    }

    fn log(&self, feed: &str, entry: &RouteEntry, from: Option<IpAddr>) {
        let allowed = entry.history().refusal_logs.entry(self.status.as_u16()).or_default().allow(Instant::now());
        if let Some(untold) = allowed {
            let (status, why) = (self.status.as_u16(), self.words.as_str());
            let from = from.map(|from| from.to_string());
            tracing::warn!(feed, status, why, from, untold, "a post to the webhook was refused");
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.words)).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            // Whole seconds, at least 1: after 0 a publisher would send again at once, again and again.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.max(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br, zstd"));
        }
        response
    }
}
