//! A request's body, read within limits of size, time and memory.
//!
//! Memory is taken in steps, as bytes come: who declares much and sends little holds little.

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
/// For a whole body.
const WHOLE: Duration = Duration::from_secs(300);
/// For a body that nobody will read.
const MOMENT: Duration = Duration::from_secs(5);
/// For room in the budget.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(1);
/// What is kept of a body that is too large, bytes.
pub(super) const BEGINNING: usize = 1 << 10;
/// How many times the largest body is read past, for its signature or its sender's sake.
const MAX_DISCARD_FACTOR: u64 = 8;
/// What a body may hold at first: of one whose sender has shown no secret, no more than is sure to come.
const STEP: u64 = 64 << 10;
const UNKNOWN_STEP: u64 = 4 << 10;
/// For a whole body of somebody unknown.
const UNKNOWN_WHOLE: Duration = Duration::from_secs(60);
/// Slower than this, over all its time but the first, no body may come: bytes a second.
const SLOWEST: u64 = 1 << 10;
const SLOW_START: Duration = Duration::from_secs(10);

/// A body as it came.
pub(super) struct CompleteBody {
    pub(super) bytes: Vec<u8>,
    pub(super) held: Reservation,
    pub(super) signed: Option<SignatureCheck>,
}

/// A body larger than any may be.
pub(super) struct OversizedBody {
    /// Its first KiB at most.
    pub(super) beginning: Vec<u8>,
    /// As declared.
    pub(super) length: Option<u64>,
    pub(super) held: Reservation,
    /// Made of the whole body; none where there was none, or where the body was too large even for that.
    pub(super) signed: Option<SignatureCheck>,
    rest: BodyDataStream,
}

/// Why there is no body.
pub(super) enum BodyError {
    TooLarge(Box<OversizedBody>),
    /// Silent for too long, or too slow.
    Stalled,
    /// Cut short.
    Broken,
    /// There is no room for it.
    NoMemory,
}

/// Reads a body of at most `max` bytes; with a signature to be made, one that is larger is read to its end all the same.
pub(super) async fn read(
    body: Body,
    max: u64,
    budget: &MemoryBudget,
    signed: Option<SignatureCheck>,
    peer: Option<&Peer>,
) -> Result<CompleteBody, BodyError> {
    read_within(SILENCE, body, max, budget, signed, peer).await
}

async fn read_within(
    silence: Duration,
    body: Body,
    max: u64,
    budget: &MemoryBudget,
    mut signed: Option<SignatureCheck>,
    peer: Option<&Peer>,
) -> Result<CompleteBody, BodyError> {
    let length = body.size_hint().exact();
    let (step, whole) = if signed.is_some() { (UNKNOWN_STEP, UNKNOWN_WHOLE) } else { (STEP, WHOLE) };
    // Among bodies of the unknown, one that drips makes room for one that comes.
    let unauthenticated_peer = peer.filter(|_| signed.is_some());
    let mut held = match soon(budget.reserve(step)).await {
        Ok(held) => held,
        Err(busy) => {
            unauthenticated_peer.ok_or(busy)?.evict_for_memory();
            soon(budget.reserve(step)).await?
        }
    };
    let mut large = length.is_some_and(|length| length > max);
    let (mut stream, mut bytes, mut count) = (body.into_data_stream(), Vec::new(), 0);
    let began = Instant::now();
    while let Some(chunk) = next(&mut stream, silence, latest(began, whole, count)).await? {
        signed.iter_mut().for_each(|signed| signed.update(&chunk));
        count += chunk.len() as u64;
        large |= count > max;
        if large {
            bytes.extend_from_slice(&chunk);
            bytes.truncate(BEGINNING);
            bytes.shrink_to_fit();
            held.shrink_to(BEGINNING as u64);
            let pointless = count > max.saturating_mul(MAX_DISCARD_FACTOR);
            if pointless {
                signed = None;
            }
            if pointless || (signed.is_none() && bytes.len() == BEGINNING) {
                break;
            }
            continue;
        }
        if count > held.bytes() {
            let wanted = count.saturating_mul(2).min(max);
            if let Err(busy) = grown(&mut held, wanted).await {
                unauthenticated_peer.ok_or(busy)?.evict_for_memory();
                grown(&mut held, wanted).await?;
            }
        }
        bytes.extend_from_slice(&chunk);
    }
    if large {
        return Err(BodyError::TooLarge(Box::new(OversizedBody {
            beginning: bytes,
            length,
            held,
            signed,
            rest: stream,
        })));
    }
    Ok(CompleteBody { bytes, held, signed })
}

async fn grown(held: &mut Reservation, bytes: u64) -> Result<(), BodyError> {
    soon(held.grow_to(bytes)).await?.map_err(|_| BodyError::NoMemory)
}

/// When the next bytes must be there, of a body of which so many have come.
fn latest(began: Instant, whole: Duration, count: u64) -> Instant {
    began + whole.min(SLOW_START + Duration::from_secs(count / SLOWEST))
}

/// What is granted within the time that anyone waits for memory.
pub(super) async fn soon<T>(room: impl Future<Output = T>) -> Result<T, BodyError> {
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
    /// Reads the rest and lets it go: a sender that is cut off while it still sends may never see the answer.
    pub(super) async fn discard_rest(&mut self, max: u64) {
        pass_over(&mut self.rest, max.saturating_mul(MAX_DISCARD_FACTOR), WHOLE).await;
    }
}

/// Lets a body go that is refused unread, up to `max` bytes of it and for a moment: so that its sender sees the answer.
pub(super) async fn discard_body(body: Body, max: u64) {
    pass_over(&mut body.into_data_stream(), max, MOMENT).await;
}

async fn pass_over(rest: &mut BodyDataStream, mut left: u64, time: Duration) {
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
        let left = |whole: Duration, count: u64| latest(began, whole, count).duration_since(began).as_secs();
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
    async fn who_is_unknown_and_sends_little_holds_little() {
        let budget = MemoryBudget::new(1 << 20);
        let name = axum::http::HeaderName::from_static("x-hub-signature-256");
        let headers = axum::http::HeaderMap::from_iter([(name, axum::http::HeaderValue::from_static("sha256=00"))]);
        let ShownCredential::Signature(signed) =
            check_credentials(&headers, &axum::http::Uri::from_static("/"), &["secret".into()])
        else {
            panic!("no signature");
        };
        let mut reading = std::pin::pin!(read(body(&[b"{"]), 32 << 20, &budget, Some(signed), None));
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
            Err(BodyError::TooLarge(large)) => {
                assert_eq!((large.beginning.len(), large.length), (BEGINNING, None));
                assert_eq!(large.held.bytes(), 4 << 10);
            }
            _ => panic!("it was read"),
        }
    }
}
