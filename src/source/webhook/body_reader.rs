//! Reads a request's body within limits of size, time and memory. Never decompresses it.
//!
//! Memory is charged in steps, as bytes arrive: a client that declares much and sends little holds little.

use std::future::Future;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::authentication::SignatureCheck;
use super::connection_slots::Peer;
use crate::source::budget::{MemoryBudget, Reservation};

/// The longest silence.
const SILENCE: Duration = Duration::from_secs(30);
/// The longest time for a whole body.
const WHOLE: Duration = Duration::from_secs(300);
/// The longest time for discarding a body that was refused unread.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for memory of the budget.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(1);
/// What is kept of a body that is too large, bytes.
pub(super) const BEGINNING: usize = 1 << 10;
/// A body is read up to this many times `max`, for its signature, or so that its sender sees the answer.
const MAX_DISCARD_FACTOR: u64 = 8;
/// What a body may hold at first, bytes: of an unauthenticated sender, no more than is sure to arrive.
const STEP: u64 = 64 << 10;
const UNKNOWN_STEP: u64 = 4 << 10;
/// The longest time for a whole body of an unauthenticated sender.
const UNKNOWN_WHOLE: Duration = Duration::from_secs(60);
/// The slowest rate of a body over its whole time but the first `SLOW_START`: bytes a second.
const SLOWEST: u64 = 1 << 10;
const SLOW_START: Duration = Duration::from_secs(10);

/// A body as sent.
pub(super) struct CompleteBody {
    pub(super) bytes: Vec<u8>,
    pub(super) reservation: Reservation,
    pub(super) signature: Option<SignatureCheck>,
}

/// A body larger than `max`.
pub(super) struct OversizedBody {
    /// Its first KiB at most.
    pub(super) beginning: Vec<u8>,
    /// The declared length, bytes.
    pub(super) length: Option<u64>,
    pub(super) reservation: Reservation,
    /// Fed with the whole body; none where the request had no signature, or where the body was too large even for that.
    pub(super) signature: Option<SignatureCheck>,
    rest: BodyDataStream,
}

/// Why a body could not be read.
pub(super) enum BodyError {
    TooLarge(Box<OversizedBody>),
    /// Silent for too long, or too slow.
    Stalled,
    /// Cut short.
    Broken,
    /// The budget had no memory for it in time.
    NoMemory,
}

/// Reads a body of at most `max` bytes; with a signature to be checked, a larger one is read to its end all the same.
pub(super) async fn read(
    body: Body,
    max: u64,
    budget: &MemoryBudget,
    signature: Option<SignatureCheck>,
    peer: Option<&Peer>,
) -> Result<CompleteBody, BodyError> {
    read_within(SILENCE, body, max, budget, signature, peer).await
}

async fn read_within(
    silence: Duration,
    body: Body,
    max: u64,
    budget: &MemoryBudget,
    mut signature: Option<SignatureCheck>,
    peer: Option<&Peer>,
) -> Result<CompleteBody, BodyError> {
    let length = body.size_hint().exact();
    let (step, whole) = if signature.is_some() { (UNKNOWN_STEP, UNKNOWN_WHOLE) } else { (STEP, WHOLE) };
    // Among unauthenticated bodies, the slowest one is evicted for a new one.
    let unauthenticated_peer = peer.filter(|_| signature.is_some());
    let mut reservation = match within_memory_timeout(budget.reserve(step)).await {
        Ok(reservation) => reservation,
        Err(busy) => {
            unauthenticated_peer.ok_or(busy)?.evict_for_memory();
            within_memory_timeout(budget.reserve(step)).await?
        }
    };
    let mut is_oversized = length.is_some_and(|length| length > max);
    let (mut stream, mut bytes, mut count) = (body.into_data_stream(), Vec::new(), 0);
    let began = Instant::now();
    while let Some(chunk) = next(&mut stream, silence, chunk_deadline(began, whole, count)).await? {
        signature.iter_mut().for_each(|signature| signature.update(&chunk));
        count += chunk.len() as u64;
        is_oversized |= count > max;
        if is_oversized {
            bytes.extend_from_slice(&chunk);
            bytes.truncate(BEGINNING);
            bytes.shrink_to_fit();
            reservation.shrink_to(BEGINNING as u64);
            let pointless = count > max.saturating_mul(MAX_DISCARD_FACTOR);
            if pointless {
                signature = None;
            }
            if pointless || (signature.is_none() && bytes.len() == BEGINNING) {
                break;
            }
            continue;
        }
        if count > reservation.bytes() {
            let wanted = count.saturating_mul(2).min(max);
            if let Err(busy) = grow(&mut reservation, wanted).await {
                unauthenticated_peer.ok_or(busy)?.evict_for_memory();
                grow(&mut reservation, wanted).await?;
            }
        }
        bytes.extend_from_slice(&chunk);
    }
    if is_oversized {
        return Err(BodyError::TooLarge(Box::new(OversizedBody {
            beginning: bytes,
            length,
            reservation,
            signature,
            rest: stream,
        })));
    }
    Ok(CompleteBody { bytes, reservation, signature })
}

async fn grow(reservation: &mut Reservation, bytes: u64) -> Result<(), BodyError> {
    within_memory_timeout(reservation.grow_to(bytes)).await?.map_err(|_| BodyError::NoMemory)
}

/// The deadline of the next bytes of a body of which `count` have arrived.
fn chunk_deadline(began: Instant, whole: Duration, count: u64) -> Instant {
    began + whole.min(SLOW_START + Duration::from_secs(count / SLOWEST))
}

/// Waits for memory, for [`MEMORY_TIMEOUT`] at most.
pub(super) async fn within_memory_timeout<T>(room: impl Future<Output = T>) -> Result<T, BodyError> {
    timeout(MEMORY_TIMEOUT, room).await.map_err(|_| BodyError::NoMemory)
}

async fn next(stream: &mut BodyDataStream, silence: Duration, end: Instant) -> Result<Option<bytes::Bytes>, BodyError> {
    match timeout_at(end.min(Instant::now() + silence), stream.next()).await {
        Err(_) => Err(BodyError::Stalled),
        Ok(None) => Ok(None),
        Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
        Ok(Some(Err(_))) => Err(BodyError::Broken),
    }
}

impl OversizedBody {
    /// Reads and discards the rest: a sender that is cut off while it still sends may never see the answer.
    pub(super) async fn discard_rest(&mut self, max: u64) {
        discard(&mut self.rest, max.saturating_mul(MAX_DISCARD_FACTOR), WHOLE).await;
    }
}

/// Discards a body that is refused unread, up to `max` bytes and for [`DISCARD_TIMEOUT`], so that its sender sees the
/// answer.
pub(super) async fn discard_body(body: Body, max: u64) {
    discard(&mut body.into_data_stream(), max, DISCARD_TIMEOUT).await;
}

async fn discard(rest: &mut BodyDataStream, mut left: u64, time: Duration) {
    let end = Instant::now() + time;
    while let Ok(Some(chunk)) = next(rest, SILENCE, end).await {
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::stream;

    use super::super::authentication::{ShownCredential, check_credentials};

    use super::*;

    fn body(chunks: &[&'static [u8]]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, std::io::Error>(bytes::Bytes::from_static(chunk))).collect();
        Body::from_stream(stream::iter(chunks).chain(stream::pending()))
    }

    #[tokio::test]
    async fn silence_ends_a_body_and_gives_its_memory_back() {
        let budget = MemoryBudget::new(1 << 20);
        let read = read_within(Duration::from_millis(1), body(&[b"{"]), 100, &budget, None, None);
        assert!(matches!(timeout(SILENCE, read).await.unwrap(), Err(BodyError::Stalled)));
        assert_eq!(timeout(MEMORY_TIMEOUT, budget.reserve(1 << 20)).await.unwrap().bytes(), 1 << 20);
    }

    #[test]
    fn a_body_that_drips_ends_soon_and_a_slow_one_has_its_time() {
        let began = Instant::now();
        let left = |whole: Duration, count: u64| chunk_deadline(began, whole, count).duration_since(began).as_secs();
        for (whole, count, seconds) in [
            (WHOLE, 0, 10),
            (WHOLE, 5, 10),
            (WHOLE, 20 << 10, 30),
            (WHOLE, 32 << 20, 300),
            (UNKNOWN_WHOLE, 32 << 20, 60),
        ] {
            assert_eq!(left(whole, count), seconds, "{count}");
        }
    }

    #[tokio::test]
    async fn an_unauthenticated_body_of_few_bytes_holds_little() {
        let budget = MemoryBudget::new(1 << 20);
        let name = axum::http::HeaderName::from_static("x-hub-signature-256");
        let headers = axum::http::HeaderMap::from_iter([(name, axum::http::HeaderValue::from_static("sha256=00"))]);
        let ShownCredential::Signature(signature) =
            check_credentials(&headers, &axum::http::Uri::from_static("/"), &["secret".into()])
        else {
            panic!("no signature");
        };
        let mut reading = std::pin::pin!(read(body(&[b"{"]), 32 << 20, &budget, Some(signature), None));
        assert!(timeout(Duration::from_millis(50), &mut reading).await.is_err());
        assert_eq!(budget.usage().1, 4 << 10);
    }

    #[tokio::test]
    async fn of_a_body_that_is_too_large_the_beginning_alone_is_kept() {
        let budget = MemoryBudget::new(1 << 20);
        static CHUNK: [u8; 5000] = [b'x'; 5000];
        // The stream never ends: what is too large must not be awaited.
        let read = read_within(SILENCE, body(&[&CHUNK, &CHUNK]), 7000, &budget, None, None);
        match timeout(SILENCE, read).await.unwrap() {
            Err(BodyError::TooLarge(is_oversized)) => {
                assert_eq!((is_oversized.beginning.len(), is_oversized.length), (BEGINNING, None));
                assert_eq!(is_oversized.reservation.bytes(), 4 << 10);
            }
            _ => panic!("it was read"),
        }
    }
}
