//! A response's body: read within limits, then decompressed within them too.

use std::io::Read;

use tokio::sync::Semaphore;

use super::budget::Reservation;
use super::http::Failure;

/// How a body is compressed (RFC 9110 §8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    pub(super) fn from_header(value: Option<&str>) -> Result<Self, Failure> {
        match value.map(|value| value.trim().to_ascii_lowercase()).as_deref() {
            None | Some("" | "identity") => Ok(Self::Identity),
            Some("gzip" | "x-gzip") => Ok(Self::Gzip),
            Some("br") => Ok(Self::Brotli),
            Some("zstd") => Ok(Self::Zstd),
            Some(other) => Err(Failure::Coding(format!("content coding {other:?} was not asked for"))),
        }
    }
}

/// A body as it came over the wire, with its share of the budget.
pub struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) coding: Coding,
    pub(super) reservation: Reservation,
    pub(super) max: u64,
    pub(super) expected: u64,
}

/// A decompressed body and its share of the budget, to be held as long as the bytes are.
pub struct Opened {
    /// The decompressed bytes.
    pub bytes: Vec<u8>,
    /// Drop it with them.
    pub reservation: Reservation,
}

impl Body {
    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Decompresses off the async threads, growing the share of the budget only where it has to. A permit of `at_once`
    /// is held while it decompresses, and never while it waits for the budget: whoever holds that may need a permit.
    ///
    /// # Errors
    /// [`Failure::TooLarge`] beyond the page limit, [`Failure::Coding`] when the compressed bytes are damaged.
    pub async fn open(mut self, at_once: &Semaphore) -> Result<Opened, Failure> {
        if self.coding == Coding::Identity {
            return Ok(Opened { bytes: self.bytes, reservation: self.reservation });
        }
        let room = self.expected.max(self.bytes.len() as u64 * 12).min(self.max);
        self.reservation.grow_to(self.bytes.len() as u64 + room).await;
        let (coding, expected) = (self.coding, self.expected);
        let (compressed, first) = off_thread(at_once, move || {
            let first = inflate(&self.bytes, coding, room, expected);
            (self.bytes, first)
        })
        .await?;
        let bytes = match first {
            Err(Failure::TooLarge(_)) if room < self.max => {
                self.reservation.grow_to(compressed.len() as u64 + self.max).await;
                off_thread(at_once, move || inflate(&compressed, coding, self.max, expected)).await??
            }
            first => first?,
        };
        Ok(Opened { bytes, reservation: self.reservation })
    }
}

async fn off_thread<T: Send + 'static>(
    at_once: &Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    // The semaphore is never closed; without a permit the work would only go on unbounded.
    let _permit = at_once.acquire().await.ok();
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::Coding(error.to_string()))
}

fn inflate(compressed: &[u8], coding: Coding, limit: u64, expected: u64) -> Result<Vec<u8>, Failure> {
    let damaged = |error: std::io::Error| Failure::Coding(format!("the compressed page is damaged: {error}"));
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(limit)).unwrap_or(0));
    let read = match coding {
        Coding::Identity => {
            bytes.extend_from_slice(compressed);
            Ok(0)
        }
        Coding::Gzip => flate2::bufread::MultiGzDecoder::new(compressed).take(limit + 1).read_to_end(&mut bytes),
        Coding::Brotli => brotli::Decompressor::new(compressed, 4096).take(limit + 1).read_to_end(&mut bytes),
        Coding::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(damaged)?;
            decoder.take(limit + 1).read_to_end(&mut bytes)
        }
    };
    read.map_err(damaged)?;
    if bytes.len() as u64 > limit {
        return Err(Failure::TooLarge(limit));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;
    use crate::source::budget::Budget;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn open(bytes: Vec<u8>, coding: Coding, max: u64) -> Result<Vec<u8>, Failure> {
        let reservation = Budget::new(1 << 20).reserve(4096).await;
        Body { bytes, coding, reservation, max, expected: 0 }.open(&Semaphore::new(1)).await.map(|opened| opened.bytes)
    }

    #[tokio::test]
    async fn each_coding_is_read() {
        let text = b"{\"items\":[]}".repeat(1000);
        assert_eq!(open(gzip(&text), Coding::Gzip, 1 << 20).await.unwrap(), text);
        assert_eq!(open(zstd::encode_all(&text[..], 1).unwrap(), Coding::Zstd, 1 << 20).await.unwrap(), text);
        let mut compressed = Vec::new();
        brotli::BrotliCompress(&mut &text[..], &mut compressed, &brotli::enc::BrotliEncoderParams::default()).unwrap();
        assert_eq!(open(compressed, Coding::Brotli, 1 << 20).await.unwrap(), text);
    }

    #[tokio::test]
    async fn a_bomb_is_refused_and_a_torso_is_damaged() {
        let bomb = gzip(&vec![b' '; 8 << 20]);
        assert!(matches!(open(bomb.clone(), Coding::Gzip, 1 << 20).await, Err(Failure::TooLarge(_))));
        assert_eq!(open(bomb.clone(), Coding::Gzip, 8 << 20).await.unwrap().len(), 8 << 20);
        let torso = bomb[..bomb.len() / 2].to_vec();
        assert!(matches!(open(torso, Coding::Gzip, 16 << 20).await, Err(Failure::Coding(_))));
    }

    #[tokio::test]
    async fn pages_that_wait_for_the_budget_keep_no_permit_from_the_one_that_holds_it() {
        let (budget, at_once) = (Budget::new(64 << 10), Semaphore::new(1));
        let body = |bytes: &[u8], reservation| Body {
            bytes: gzip(bytes),
            coding: Coding::Gzip,
            reservation,
            max: 8 << 20,
            expected: 1 << 20,
        };
        let (text, mut first) = (vec![b' '; 1 << 20], budget.reserve(16 << 10).await);
        // Given: one page is beyond the budget, and another waits to be.
        first.grow_to(1 << 20).await;
        let second = body(&text, budget.reserve(16 << 10).await);
        let mut waiting = Box::pin(second.open(&at_once));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), &mut waiting).await.is_err());
        // Then the first is opened all the same, and the second after it.
        let opened = tokio::time::timeout(std::time::Duration::from_secs(5), body(&text, first).open(&at_once));
        drop(opened.await.unwrap().unwrap());
        assert_eq!(waiting.await.unwrap().bytes.len(), text.len());
    }
}
