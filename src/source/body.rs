//! A body's content coding, and decompressing the body within the page limit, in steps that the memory budget allows.
//! Never decodes the content.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::GzDecoder;

use super::budget::{Reservation, ReservationWatch};
use super::decoder_pool::{DecoderPool, StopFlag};
use super::http::HttpFailure;
use crate::feed::Finding;

/// How a body is compressed (RFC 9110 §8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentCoding {
    Identity,
    Gzip,
    Brotli,
    Zstd,
}

/// The usual compression ratio of JSON, and one that is rarely exceeded.
const LIKELY_RATIO: u64 = 8;
const RARE_RATIO: u64 = 32;

/// Registered codings (IANA, HTTP Content Coding Registry) that requests don't accept.
const UNSUPPORTED: &[&str] = &["compress", "x-compress", "deflate", "exi", "pack200-gzip", "aes128gcm", "dcb", "dcz"];

/// A body of more bytes, on the wire or decompressed, is not blank.
const BLANK_BYTES: usize = 64;

impl ContentCoding {
    /// The one coding that a request may name.
    pub(super) fn from_header(value: Option<&str>) -> Result<Self, HttpFailure> {
        match value.map(|value| value.trim().to_ascii_lowercase()).as_deref() {
            None | Some("" | "identity") => Ok(Self::Identity),
            Some(name) => Self::named(name)
                .ok_or_else(|| HttpFailure::Coding(format!("content coding {name:?} was not asked for"))),
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "br" => Some(Self::Brotli),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The coding that a response's `Content-Encoding` names, perhaps among words that name no coding.
    pub(super) fn declared(header: Option<&str>) -> Self {
        let header = header.unwrap_or_default().to_ascii_lowercase();
        let named = header.split(',').filter_map(|name| Self::named(name.trim())).next_back();
        named.unwrap_or(Self::Identity)
    }

    /// The coding of a response's body, and a finding where the header is wrong. A named coding is believed; where none
    /// is named, gzip and zstd are recognised by their first bytes (RFC 1952 §2.3.1, RFC 8878 §3.1.1), as browsers do.
    pub(super) fn of_body(header: Option<&str>, body: &[u8]) -> Result<(Self, Option<Finding>), HttpFailure> {
        let header_text =
            header.map_or("no Content-Encoding".to_owned(), |header| format!("Content-Encoding {header:?}"));
        let departs = |detail: String| Some(Finding { rule: "content-encoding", detail, count: 1 });
        let lower = header.unwrap_or_default().to_ascii_lowercase();
        let names = || lower.split(',').map(str::trim).filter(|name| !["", "identity"].contains(name));
        if names().any(|name| UNSUPPORTED.contains(&name)) {
            return Err(HttpFailure::Coding(format!("it was sent with {header_text}, which was not asked for")));
        }
        let odd = names().any(|name| Self::named(name).is_none());
        let declared = Self::declared(header);
        let seen = match body {
            _ if declared != Self::Identity => declared,
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [first, ..] if odd && !is_text(*first) => {
                return Err(HttpFailure::Coding(format!("it was sent with {header_text}, which was not asked for")));
            }
            _ => Self::Identity,
        };
        Ok(match (seen == declared, odd, seen) {
            (true, false, _) => (seen, None),
            (_, _, Self::Identity) => (seen, departs(format!("a plain page was sent with {header_text}"))),
            _ => (seen, departs(format!("a page compressed with {seen:?} was sent with {header_text}"))),
        })
    }

    /// The memory, in bytes, that a body of `length` bytes on the wire is likely to need together with its decompressed
    /// form; `expected` is the decompressed size, within the ratios above.
    pub(super) fn estimate_bytes(self, length: u64, expected: u64, max: u64) -> u64 {
        if self == Self::Identity {
            return length;
        }
        let ratio = |ratio: u64| length.saturating_mul(ratio);
        length + expected.clamp(ratio(LIKELY_RATIO), ratio(RARE_RATIO)).min(max)
    }

    /// `padded` is set once zeros were found after the last member of a gzip stream.
    fn reader(self, bytes: Vec<u8>, padded: &Arc<AtomicBool>) -> std::io::Result<Box<dyn Read + Send>> {
        let bytes = std::io::Cursor::new(bytes);
        Ok(match self {
            Self::Identity => Box::new(bytes),
            Self::Gzip => Box::new(GzipMembers { member: Some(GzDecoder::new(bytes)), padded: Arc::clone(padded) }),
            Self::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(bytes)?),
        })
    }
}

/// Whether JSON, or a web page sent instead, may begin with this byte (RFC 8259 §2; a byte order mark, too).
fn is_text(first: u8) -> bool {
    matches!(first, b'\t' | b'\n' | b'\r' | b' ' | b'{' | b'[' | b'<' | 0xef)
}

/// The members of a gzip stream, one after the other (RFC 1952 §2.2). Tape and block devices leave zeros after the last
/// member, and gzip itself skips them.
struct GzipMembers {
    member: Option<GzDecoder<std::io::Cursor<Vec<u8>>>>,
    padded: Arc<AtomicBool>,
}

impl Read for GzipMembers {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            match member.read(buffer)? {
                0 if !buffer.is_empty() => {}
                read => return Ok(read),
            }
            let Some(member) = self.member.take() else { return Ok(0) };
            let rest = member.into_inner();
            let trailing =
                rest.get_ref().get(usize::try_from(rest.position()).unwrap_or(usize::MAX)..).unwrap_or_default();
            if trailing.iter().any(|byte| *byte != 0) {
                self.member = Some(GzDecoder::new(rest));
            } else if !trailing.is_empty() {
                self.padded.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// A body as received, with its memory reservation.
pub struct EncodedBody {
    pub(super) bytes: Vec<u8>,
    pub(super) coding: ContentCoding,
    pub(super) reservation: Reservation,
    pub(super) max: u64,
}

/// A decompressed body and its memory reservation.
pub struct DecompressedBody {
    pub bytes: Vec<u8>,
    /// To be held as long as the bytes are.
    pub reservation: Reservation,
    /// How the body departs from its coding's standard.
    pub findings: Vec<Finding>,
}

impl EncodedBody {
    /// Observes the body's reservation.
    pub fn watch(&self) -> ReservationWatch {
        self.reservation.watch()
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether the body holds nothing but white space. Servers that compress everything make 20 bytes of an empty body.
    pub(super) fn is_blank(&self) -> bool {
        if self.bytes.len() > BLANK_BYTES {
            return false;
        }
        let mut text = Vec::new();
        let read = self
            .coding
            .reader(self.bytes.clone(), &Arc::default())
            .map(|reader| reader.take(BLANK_BYTES as u64).read_to_end(&mut text));
        matches!(read, Ok(Ok(_))) && text.len() < BLANK_BYTES && text.trim_ascii().is_empty()
    }

    /// Decompresses off the async threads, growing the reservation only where needed. A permit of `decoders` is held
    /// while decompressing, and never while waiting for memory: the page that holds the memory may need the permit.
    ///
    /// # Errors
    /// [`HttpFailure::TooLarge`] beyond the page limit, [`HttpFailure::Coding`] when the compressed bytes are damaged.
    pub async fn decompress(self, decoders: &DecoderPool) -> Result<DecompressedBody, HttpFailure> {
        let Self { bytes, coding, mut reservation, max } = self;
        let compressed = bytes.len() as u64;
        if coding == ContentCoding::Identity {
            reservation.shrink_to(compressed);
            return Ok(DecompressedBody { bytes, reservation, findings: Vec::new() });
        }
        let expected = reservation.expected_bytes().saturating_sub(compressed);
        reservation.grow_to(coding.estimate_bytes(compressed, expected, max)).await?;
        let mut room = reservation.bytes().saturating_sub(compressed).clamp(1, max);
        let padded = Arc::default();
        let mut reader = coding.reader(bytes, &padded).map_err(|error| damaged(&error))?;
        // A small body gets a smaller buffer than is reserved, since a new buffer must be zeroed.
        let mut decompressed = reservation.buffer(length(room.min(compressed.saturating_mul(LIKELY_RATIO))) + 1);
        let mut filled = 0;
        loop {
            let step = decoders.run(move |stop| {
                let filled = fill(&mut reader, &mut decompressed, filled, length(room) + 1, stop);
                filled.map(|filled| (reader, decompressed, filled)).map_err(|error| damaged(&error))
            });
            (reader, decompressed, filled) = step.await.map_err(|panic| HttpFailure::Coding(panic.to_string()))??;
            if filled as u64 <= room {
                break;
            }
            if room == max {
                return Err(HttpFailure::TooLarge(max));
            }
            room = room.saturating_mul(2).min(max);
            reservation.grow_to(compressed + room).await?;
        }
        decompressed.truncate(filled);
        reservation.shrink_to(filled as u64);
        let padding = padded.load(Ordering::Relaxed).then(|| "zeros stand behind the page's gzip stream".to_owned());
        let findings =
            padding.map(|detail| Finding { rule: "content-encoding", detail, count: 1 }).into_iter().collect();
        Ok(DecompressedBody { bytes: decompressed, reservation, findings })
    }
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX - 1)
}

/// Reads on after the first `filled` bytes, until the body ends or `most` bytes are read; returns how many there are
/// then. Unlike `read_to_end` into a vector, this never zeroes what the buffer holds.
fn fill(
    reader: &mut impl Read,
    buffer: &mut Vec<u8>,
    mut filled: usize,
    most: usize,
    stop: &StopFlag,
) -> std::io::Result<usize> {
    while filled < most && !stop.is_set() {
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

fn damaged(error: &std::io::Error) -> HttpFailure {
    HttpFailure::Coding(format!("the compressed page is damaged: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;
    use crate::source::budget::MemoryBudget;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn decompress(bytes: Vec<u8>, coding: ContentCoding, max: u64) -> Result<Vec<u8>, HttpFailure> {
        let reservation = MemoryBudget::new(1 << 20).reserve(4096).await;
        EncodedBody { bytes, coding, reservation, max }
            .decompress(&DecoderPool::new(1))
            .await
            .map(|decompressed| decompressed.bytes)
    }

    #[tokio::test]
    async fn each_coding_is_read() {
        let text = b"{\"items\":[]}".repeat(1000);
        assert_eq!(decompress(gzip(&text), ContentCoding::Gzip, 1 << 20).await.unwrap(), text);
        assert_eq!(
            decompress(zstd::encode_all(&text[..], 1).unwrap(), ContentCoding::Zstd, 1 << 20).await.unwrap(),
            text
        );
        let mut compressed = Vec::new();
        brotli::BrotliCompress(&mut &text[..], &mut compressed, &brotli::enc::BrotliEncoderParams::default()).unwrap();
        assert_eq!(decompress(compressed, ContentCoding::Brotli, 1 << 20).await.unwrap(), text);
    }

    #[tokio::test]
    async fn a_bomb_is_refused_and_a_torso_is_damaged() {
        let bomb = gzip(&vec![b' '; 8 << 20]);
        assert!(matches!(decompress(bomb.clone(), ContentCoding::Gzip, 1 << 20).await, Err(HttpFailure::TooLarge(_))));
        assert_eq!(decompress(bomb.clone(), ContentCoding::Gzip, 8 << 20).await.unwrap().len(), 8 << 20);
        let torso = bomb[..bomb.len() / 2].to_vec();
        assert!(matches!(decompress(torso, ContentCoding::Gzip, 16 << 20).await, Err(HttpFailure::Coding(_))));
    }

    #[tokio::test]
    async fn zeros_after_a_gzip_stream_are_skipped_and_nothing_else_is() {
        let (text, mut padded) = (b"{\"items\":[]}".repeat(100), [gzip(b""), gzip(b"{}")].concat());
        padded.extend([0; 512]);
        let body = |bytes, reservation| EncodedBody { bytes, coding: ContentCoding::Gzip, reservation, max: 1 << 20 };
        let decompressed = body(padded, MemoryBudget::new(1 << 20).reserve(4096).await)
            .decompress(&DecoderPool::new(1))
            .await
            .unwrap();
        assert_eq!((&decompressed.bytes[..], decompressed.findings.len()), (&b"{}"[..], 1));
        let members = [gzip(&text), gzip(&text)].concat();
        assert_eq!(decompress(members, ContentCoding::Gzip, 1 << 20).await.unwrap(), [&text[..], &text[..]].concat());
        let mut torn = gzip(&text);
        torn.extend(*b"\0\0x");
        assert!(matches!(decompress(torn, ContentCoding::Gzip, 1 << 20).await, Err(HttpFailure::Coding(_))));
    }

    #[test]
    fn a_coding_is_recognised_by_the_header_or_the_first_bytes() {
        let json = b"{\"items\":[]}";
        for (header, body, coding, found) in [
            (None, &json[..], ContentCoding::Identity, false),
            (Some("identity"), json, ContentCoding::Identity, false),
            (Some("utf-8"), json, ContentCoding::Identity, true),
            (Some("none"), json, ContentCoding::Identity, true),
            (Some("aws-chunked"), json, ContentCoding::Identity, true),
            (Some("UTF-8"), b"\xef\xbb\xbf{}", ContentCoding::Identity, true),
            (None, &gzip(json), ContentCoding::Gzip, true),
            (Some("gzip"), &gzip(json), ContentCoding::Gzip, false),
            (Some("GZIP"), &gzip(json), ContentCoding::Gzip, false),
            (Some("aws-chunked, gzip"), &gzip(json), ContentCoding::Gzip, true),
            (Some("br"), b"\x0b\x05\x80{}", ContentCoding::Brotli, false),
            (Some("zstd"), &zstd::encode_all(&json[..], 1).unwrap(), ContentCoding::Zstd, false),
        ] {
            let (seen, finding) = ContentCoding::of_body(header, body).unwrap();
            assert_eq!((seen, finding.is_some()), (coding, found), "{header:?}");
        }
        // A named coding is believed.
        assert_eq!(ContentCoding::of_body(Some("gzip"), json).unwrap(), (ContentCoding::Gzip, None));
        for (header, body) in [("deflate", &b"\x78\x9c"[..]), ("compress", json), ("none", b"\x78\x9c")] {
            assert!(matches!(ContentCoding::of_body(Some(header), body), Err(HttpFailure::Coding(_))), "{header}");
        }
    }

    #[tokio::test]
    async fn pages_that_wait_for_the_budget_keep_no_decoder_from_the_page_that_holds_it() {
        let (budget, decoders) = (MemoryBudget::new(64 << 10), DecoderPool::new(1));
        let body = |bytes: &[u8], reservation| EncodedBody {
            bytes: gzip(bytes),
            coding: ContentCoding::Gzip,
            reservation,
            max: 8 << 20,
        };
        let (text, mut first) = (vec![b' '; 1 << 20], budget.reserve(16 << 10).await);
        // Given: one page exceeds the budget, and another waits to do so.
        first.grow_to(1 << 20).await.unwrap();
        let second = body(&text, budget.reserve(16 << 10).await);
        let mut waiting = Box::pin(second.decompress(&decoders));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), &mut waiting).await.is_err());
        // Then: the first is decompressed all the same, and the second after it.
        let decompressed =
            tokio::time::timeout(std::time::Duration::from_secs(5), body(&text, first).decompress(&decoders));
        drop(decompressed.await.unwrap().unwrap());
        assert_eq!(waiting.await.unwrap().bytes.len(), text.len());
    }
}
