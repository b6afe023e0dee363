//! `POST {path}/{feed}`: who posts, whether the feed takes anything, the body, the loop's answer; each of them may end it.
//!
//! A 2xx means committed. Every other answer leaves the page with the publisher, which sends it again. Nothing of a
//! request is logged but the feed's name, of feeds there are, and the address it came from.

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
use super::body_reader::{BEGINNING, BodyError, CompleteBody, OversizedBody, discard_body, read, soon};
use super::connection_slots::Peer;
use super::failed_logins::FailedLogins;
use super::{Inbox, PostAnswer, RouteEntry, RouteState, WebhookListenerSettings, WebhookPost};
use crate::feed::Generation;
use crate::source::body::{self, ContentCoding};
use crate::source::budget::{MemoryBudget, Reservation};
use crate::source::decoder_pool::DecoderPool;
use crate::source::http::HttpFailure;

/// What bodies may hold together whose signature is not compared yet: apart from the mirror's own budget, since anybody
/// can send them.
const UNVERIFIED: u64 = 8 << 20;
/// How long the feed's loop may take.
const ANSWERED: Duration = Duration::from_secs(60);
/// For a decompressed body to find room.
const OPENED: Duration = Duration::from_secs(30);
/// When to come again, where nothing says when.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What serves the feeds of `inbox`; bodies take their memory from `budget`.
pub fn router(inbox: Inbox, settings: &WebhookListenerSettings, budget: MemoryBudget) -> Router {
    let desk = RouterState {
        inbox,
        budget,
        unverified: MemoryBudget::new(UNVERIFIED),
        opening: DecoderPool::new(1),
        max: settings.max_body_bytes,
        strikes: FailedLogins::default(),
    };
    Router::new()
        .route(&format!("{}/{{feed}}", settings.path), post(receive))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .with_state(Arc::new(desk))
}

/// What all requests share.
struct RouterState {
    inbox: Inbox,
    budget: MemoryBudget,
    unverified: MemoryBudget,
    /// Decompressing keeps a core busy: one at a time leaves some to the feeds.
    opening: DecoderPool,
    max: u64,
    /// Wrong secrets, by address.
    strikes: FailedLogins,
}

async fn receive(State(desk): State<Arc<RouterState>>, Path(feed): Path<String>, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    let from = peer.as_ref().and_then(|peer| peer.client(request.headers()));
    let Some(entry) = desk.inbox.entry(&feed) else {
        let told = desk.inbox.0.unknown_feed_log.lock().unwrap_or_else(PoisonError::into_inner).allow(Instant::now());
        if let Some(untold) = told {
            let from = from.map(|from| from.to_string());
            tracing::warn!(from, untold, "a post to a feed that there is not, or that has no webhook, got 404");
        }
        discard_body(request.into_body(), desk.max).await;
        return Refusal::new(StatusCode::NOT_FOUND, "there is nothing here").into_response();
    };
    // What comes is of the time before a feed begins anew while it comes.
    let generation = entry.door.generation.load(Ordering::Relaxed);
    match desk.accept_post(&entry, generation, request, peer.as_ref()).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => {
            // Strangers turn nobody's pages away.
            let ours = matches!(refusal.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT);
            if ours && !refusal.is_unauthenticated {
                entry.door.turned_away_count.fetch_add(1, Ordering::Relaxed);
            }
            refusal.tell(&feed, &entry, from);
            if refusal.status == StatusCode::UNAUTHORIZED {
                sleep(desk.strikes.record_failure(from, Instant::now()).0).await;
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
        let looked_at = match check_credentials(&head.headers, &head.uri, &entry.door.secrets) {
            ShownCredential::Nothing => Err(Refusal::stranger()),
            ShownCredential::Signature(signed) => Ok((Some(signed), &self.unverified)),
            ShownCredential::Secret => admitted(entry, peer).map(|()| (None, &self.budget)),
        };
        let looked_at = looked_at.and_then(|(signed, budget)| Ok((signed, budget, coding(&head.headers)?)));
        let (signed, budget, coding) = match looked_at {
            Ok(looked_at) => looked_at,
            Err(refusal) => {
                discard_body(body, self.max).await;
                return Err(refusal);
            }
        };
        let known = signed.is_none();
        match read(body, self.max, budget, signed, peer).await {
            Ok(whole) => self.accept_complete(entry, generation, whole, coding, peer).await,
            Err(BodyError::TooLarge(large)) => self.accept_oversized(entry, generation, *large, known, peer).await,
            Err(BodyError::Stalled) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
            Err(BodyError::Broken) => Err(Refusal::new(StatusCode::BAD_REQUEST, "the body was cut short")),
            Err(BodyError::NoMemory) => Err(Refusal { is_unauthenticated: !known, ..Refusal::no_room() }),
        }
    }

    async fn accept_complete(
        &self,
        entry: &RouteEntry,
        generation: Generation,
        whole: CompleteBody,
        coding: ContentCoding,
        peer: Option<&Peer>,
    ) -> Result<(), Refusal> {
        let CompleteBody { bytes, mut held, signed } = whole;
        if let Some(signed) = signed {
            verified(entry, signed, peer)?;
            held = self.room(bytes.len() as u64).await?;
        }
        held.shrink_to(bytes.len() as u64);
        let hash = identity(&bytes, None);
        let fifth = entry.history().refused_bodies.is_refused_too_often(hash, Instant::now());
        if coding == ContentCoding::Identity {
            return submit_post(
                entry,
                PostBody { generation, bytes, hash, quarantine_if_unreadable: fifth, fault: None, reservation: held },
            )
            .await;
        }
        let raw = if fifth { bytes.clone() } else { Vec::new() };
        let packed = body::EncodedBody { bytes, coding, reservation: held, max: self.max };
        let refusal = match timeout(OPENED, packed.decompress(&self.opening)).await {
            Err(_) => return Err(Refusal::no_room()),
            Ok(Ok(opened)) => {
                let (bytes, held) = (opened.bytes, opened.reservation);
                return submit_post(
                    entry,
                    PostBody {
                        generation,
                        bytes,
                        hash,
                        quarantine_if_unreadable: fifth,
                        fault: None,
                        reservation: held,
                    },
                )
                .await;
            }
            Ok(Err(HttpFailure::TooLarge(_))) => self.too_large(),
            Ok(Err(HttpFailure::Preempted(_))) => return Err(Refusal::no_room()),
            Ok(Err(failure)) => Refusal::new(StatusCode::BAD_REQUEST, failure.to_string()),
        };
        if !fifth {
            return Err(refusal.counted(entry, hash));
        }
        let kept = if refusal.status == StatusCode::PAYLOAD_TOO_LARGE { raw.len().min(BEGINNING) } else { raw.len() };
        let (bytes, held) = (raw.get(..kept).unwrap_or_default().to_vec(), self.room(kept as u64).await?);
        submit_post(
            entry,
            PostBody {
                generation,
                bytes,
                hash,
                quarantine_if_unreadable: fifth,
                fault: Some(refusal.words),
                reservation: held,
            },
        )
        .await
    }

    /// `known` says that its sender has shown the secret already.
    async fn accept_oversized(
        &self,
        entry: &RouteEntry,
        generation: Generation,
        mut large: OversizedBody,
        known: bool,
        peer: Option<&Peer>,
    ) -> Result<(), Refusal> {
        let refusal = self.too_large();
        match large.signed.take() {
            Some(signed) => verified(entry, signed, peer)?,
            // Too large even to be signed for: whose it is stays unknown, and so it can't count.
            None if !known => return Err(refusal),
            None => {}
        }
        let hash = identity(&large.beginning, Some(large.length));
        if !entry.history().refused_bodies.is_refused_too_often(hash, Instant::now()) {
            return Err(refusal.counted(entry, hash));
        }
        large.discard_rest(self.max).await;
        let (bytes, held) = (large.beginning, large.held);
        submit_post(
            entry,
            PostBody {
                generation,
                bytes,
                hash,
                quarantine_if_unreadable: true,
                fault: Some(refusal.words),
                reservation: held,
            },
        )
        .await
    }

    /// Room in the mirror's own budget, for what is known to be a publisher's.
    async fn room(&self, bytes: u64) -> Result<Reservation, Refusal> {
        let room = async {
            let mut held = self.budget.reserve(bytes).await;
            held.grow_to(bytes).await.map(|()| held)
        };
        soon(room).await.ok().and_then(Result::ok).ok_or_else(Refusal::no_room)
    }

    fn too_large(&self) -> Refusal {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("more than {} bytes are not taken", self.max))
    }
}

fn verified(entry: &RouteEntry, signed: SignatureCheck, peer: Option<&Peer>) -> Result<(), Refusal> {
    if !signed.vouches() {
        return Err(Refusal::stranger());
    }
    admitted(entry, peer)
}

/// Only those who have shown a secret are told.
fn admitted(entry: &RouteEntry, peer: Option<&Peer>) -> Result<(), Refusal> {
    if let Some(peer) = peer {
        peer.mark_authenticated();
    }
    match *entry.door.state.borrow() {
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

/// What a body is known by: the first 8 bytes of its SHA-256. One that is too large is never read whole: its beginning,
/// and the length that it claims.
fn identity(bytes: &[u8], too_large: Option<Option<u64>>) -> u64 {
    let mut hash = Sha256::new_with_prefix(bytes);
    if let Some(length) = too_large {
        hash.update(length.unwrap_or(u64::MAX).to_le_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// What the loop gets, without the way to answer.
struct PostBody {
    generation: Generation,
    bytes: Vec<u8>,
    hash: u64,
    quarantine_if_unreadable: bool,
    fault: Option<String>,
    reservation: Reservation,
}

/// Queues the body and waits for the loop's word. It is applied even if nobody waits any more.
async fn submit_post(entry: &RouteEntry, parcel: PostBody) -> Result<(), Refusal> {
    let PostBody { generation, bytes, hash, quarantine_if_unreadable: fifth, fault, reservation: held } = parcel;
    let (answer, answered) = oneshot::channel();
    match entry.door.sender.try_send(WebhookPost {
        generation,
        bytes,
        hash,
        quarantine_if_unreadable: fifth,
        fault,
        reservation: held,
        answer,
    }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return Err(Refusal::busy(DEFAULT_RETRY_AFTER, "earlier pages still wait")),
        Err(TrySendError::Closed(_)) => return Err(Refusal::busy(DEFAULT_RETRY_AFTER, "the feed is being started")),
    }
    match timeout(ANSWERED, answered).await {
        Ok(Ok(PostAnswer::Committed)) => {
            entry.history().refused_bodies.forget(hash);
            Ok(())
        }
        Ok(Ok(PostAnswer::Unreadable(why))) => Err(Refusal::new(StatusCode::BAD_REQUEST, why).counted(entry, hash)),
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
    /// Whether its sender has not shown the secret yet.
    is_unauthenticated: bool,
}

impl Refusal {
    fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self { status, words: words.into(), retry_after: None, is_unauthenticated: false }
    }

    fn stranger() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "the feed's secret is needed")
    }

    fn busy(retry_after: Duration, why: &str) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    fn no_room() -> Self {
        Self::busy(DEFAULT_RETRY_AFTER, "there is no memory left for it")
    }

    /// Counts against the body, which is what this is about.
    fn counted(self, entry: &RouteEntry, hash: u64) -> Self {
        entry.history().refused_bodies.record_refusal(hash, Instant::now());
        self
    }

    fn tell(&self, feed: &str, entry: &RouteEntry, from: Option<IpAddr>) {
        let told = entry.history().refusal_logs.entry(self.status.as_u16()).or_default().allow(Instant::now());
        if let Some(untold) = told {
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
            // Whole seconds, and never none: that would be asked at once, again and again.
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
