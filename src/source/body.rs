//! A response's body: read within limits, then decompressed within them too, in steps that the budget allows.

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

/// How much smaller compressed JSON is, mostly.
const LIKELY_RATIO: u64 = 8;

/// A body of more bytes, on the wire or once opened, is not blank.
const BLANK_BYTES: usize = 64;

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

    /// The room that a body of `length` bytes on the wire is likely to need, with what it is decompressed to.
    pub(super) fn likely(self, length: u64, max: u64) -> u64 {
        if self == Self::Identity { length } else { length + length.saturating_mul(LIKELY_RATIO).min(max) }
    }

    fn reader(self, bytes: Vec<u8>) -> std::io::Result<Box<dyn Read + Send>> {
        let bytes = std::io::Cursor::new(bytes);
        Ok(match self {
            Self::Identity => Box::new(bytes),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(bytes)),
            Self::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(bytes)?),
        })
    }
}

/// A body as it came over the wire, with its share of the budget.
pub struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) coding: Coding,
    pub(super) reservation: Reservation,
    pub(super) max: u64,
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

    /// Whether there is nothing in it but white space. Servers that compress whatever they send make 20 bytes of nothing.
    pub(super) fn is_blank(&self) -> bool {
        if self.bytes.len() > BLANK_BYTES {
            return false;
        }
        let mut text = Vec::new();
        let read =
            self.coding.reader(self.bytes.clone()).map(|reader| reader.take(BLANK_BYTES as u64).read_to_end(&mut text));
        matches!(read, Ok(Ok(_))) && text.len() < BLANK_BYTES && text.trim_ascii().is_empty()
    }

    /// Decompresses off the async threads, growing the share of the budget only where it has to. A permit of `at_once`
    /// is held while it decompresses, and never while it waits for the budget: whoever holds that may need a permit.
    ///
    /// # Errors
    /// [`Failure::TooLarge`] beyond the page limit, [`Failure::Coding`] when the compressed bytes are damaged.
    pub async fn open(self, at_once: &Semaphore) -> Result<Opened, Failure> {
        let Self { bytes, coding, mut reservation, max } = self;
        let compressed = bytes.len() as u64;
        if coding == Coding::Identity {
            reservation.shrink_to(compressed);
            return Ok(Opened { bytes, reservation });
        }
        reservation.grow_to(coding.likely(compressed, max)).await;
        let mut room = reservation.bytes().saturating_sub(compressed).clamp(1, max);
        let mut reader = coding.reader(bytes).map_err(|error| damaged(&error))?;
        // What is small is not given a buffer of the size that is reserved: it would cost the clearing of it.
        let mut opened = reservation.buffer(length(room.min(compressed.saturating_mul(LIKELY_RATIO))) + 1);
        let mut filled = 0;
        loop {
            (reader, opened, filled) = off_thread(at_once, move || {
                let filled = fill(&mut reader, &mut opened, filled, length(room) + 1);
                Ok((reader, opened, filled.map_err(|error| damaged(&error))?))
            })
            .await??;
            if filled as u64 <= room {
                break;
            }
            if room == max {
                return Err(Failure::TooLarge(max));
            }
            room = room.saturating_mul(2).min(max);
            reservation.grow_to(compressed + room).await;
        }
        opened.truncate(filled);
        reservation.shrink_to(filled as u64);
        Ok(Opened { bytes: opened, reservation })
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX - 1)
}

/// Reads on, `filled` bytes being there, until the body ends or there are `most`; how many there are then. What the
/// buffer held before is never cleared first, as reading to the end of a vector does.
fn fill(reader: &mut impl Read, buffer: &mut Vec<u8>, mut filled: usize, most: usize) -> std::io::Result<usize> {
    while filled < most {
        if filled == buffer.len() {
            buffer.resize(most.min(2 * filled), 0);
        }
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn damaged(error: &std::io::Error) -> Failure {
    Failure::Coding(format!("the compressed page is damaged: {error}"))
}

async fn off_thread<T: Send + 'static>(
    at_once: &Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    // The semaphore is never closed; without a permit the work would only go on unbounded.
    let _permit = at_once.acquire().await.ok();
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::Coding(error.to_string()))
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
        Body { bytes, coding, reservation, max }.open(&Semaphore::new(1)).await.map(|opened| opened.bytes)
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
        let body =
            |bytes: &[u8], reservation| Body { bytes: gzip(bytes), coding: Coding::Gzip, reservation, max: 8 << 20 };
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
