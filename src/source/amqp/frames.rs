//! Checks the frames of a broker (AMQP 0-9-1 §2.3.5, §4.2) before the AMQP library sees them. Pure: fed with bytes,
//! however they are split.
//!
//! The library accepts anything: bodies without end, methods that only a client sends, tables nested so deep that its
//! stack overflows. Here only the frames that a consumer expects are admitted, as many as [`Window`] allows.

use super::table::{count_values, short_string};
use super::window::{Violation, Window};

/// The largest frame, which we request; RabbitMQ's default (`frame_max`), bytes.
pub(super) const FRAME_MAX: u32 = 131_072;

const FRAME_HEADER_BYTES: usize = 7;
/// A frame's bytes beside its payload.
const FRAME_OVERHEAD_BYTES: u32 = 8;
const FRAME_END: u8 = 0xCE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

const BASIC: u16 = 60;
const DELIVER: (u16, u16) = (BASIC, 60);
/// The other methods that a broker sends to a client that declares a queue and consumes from it: class and method.
const EXPECTED: &[(u16, u16)] = &[
    (10, 10), // connection: start
    (10, 20), // secure
    (10, 30), // tune
    (10, 41), // open-ok
    (10, 50), // close
    (10, 51), // close-ok
    (10, 60), // blocked
    (10, 61), // unblocked
    (20, 11), // channel: open-ok
    (20, 20), // flow
    (20, 40), // close
    (20, 41), // close-ok
    (50, 11), // queue: declare-ok
    (60, 11), // basic: qos-ok
    (60, 21), // consume-ok
    (60, 30), // cancel
    (60, 31), // cancel-ok
];
const START: (u16, u16) = (10, 10);
/// The most methods that are no delivery, one after another while nothing is sent: some require an answer, and the
/// answers to a broker that doesn't read would accumulate.
const MAX_CONSECUTIVE_METHODS: u32 = 64;

/// The state of reading one frame after the other.
#[derive(Debug)]
pub(super) struct FrameReader {
    part: FramePart,
    header: [u8; FRAME_HEADER_BYTES],
    /// The payload of methods and content headers, as far as it has arrived.
    payload: Vec<u8>,
    /// No frame has arrived yet.
    at_start: bool,
    consecutive_methods: u32,
}

/// The part of a frame that is being read.
#[derive(Clone, Copy, Debug)]
enum FramePart {
    /// So many of the header's bytes have arrived.
    Header(usize),
    /// So many of the payload's bytes are missing.
    Payload(usize),
    End,
    /// The last byte of the protocol header that answers ours where the broker speaks another version (§4.2.2).
    OtherVersion,
}

/// Only the first `admitted` bytes may be admitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) admitted: usize,
    pub(super) violation: Violation,
}

impl FrameReader {
    /// A reader for a new connection.
    pub(super) fn new() -> Self {
        let header = [0; FRAME_HEADER_BYTES];
        Self { part: FramePart::Header(0), header, payload: Vec::new(), at_start: true, consecutive_methods: 0 }
    }

    /// Reads the next bytes. A rejected frame is never admitted whole; nothing may be fed after it.
    pub(super) fn feed(&mut self, bytes: &[u8], window: &mut Window) -> Result<(), Rejection> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.step(&mut rest, window)
                .map_err(|violation| Rejection { admitted: bytes.len() - rest.len(), violation })?;
        }
        Ok(())
    }

    /// Records that bytes were sent to the broker, which therefore reads.
    pub(super) fn sent(&mut self) {
        self.consecutive_methods = 0;
    }

    fn step(&mut self, rest: &mut &[u8], window: &mut Window) -> Result<(), Violation> {
        match self.part {
            FramePart::Header(filled) => {
                let bytes = take_up_to(rest, FRAME_HEADER_BYTES - filled);
                let now_filled = filled + bytes.len();
                self.header[filled..now_filled].copy_from_slice(bytes);
                self.part =
                    if now_filled == FRAME_HEADER_BYTES { self.after_header()? } else { FramePart::Header(now_filled) };
            }
            FramePart::Payload(0) => self.part = FramePart::End,
            FramePart::Payload(left) => {
                let bytes = take_up_to(rest, left);
                if matches!(self.header[0], METHOD | HEADER) {
                    self.payload.extend_from_slice(bytes);
                }
                self.part = FramePart::Payload(left - bytes.len());
            }
            // The end is only admitted once the frame is accepted: the library reads no frame without its end.
            FramePart::End => {
                self.finish_frame(rest[0], window)?;
                take_up_to(rest, 1);
                self.part = FramePart::Header(0);
            }
            FramePart::OtherVersion => {
                take_up_to(rest, 1);
                self.part = FramePart::Header(0);
            }
        }
        Ok(())
    }

    fn after_header(&mut self) -> Result<FramePart, Violation> {
        if std::mem::take(&mut self.at_start) && self.header.starts_with(b"AMQP") {
            return Ok(FramePart::OtherVersion);
        }
        let kind = self.header[0];
        if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
            return Err(bad_frame(format!("a frame of type {kind}, which AMQP 0-9-1 doesn't know")));
        }
        let size = self.payload_bytes();
        if size > FRAME_MAX - FRAME_OVERHEAD_BYTES {
            let all = u64::from(size) + u64::from(FRAME_OVERHEAD_BYTES);
            return Err(bad_frame(format!("a frame of {all} bytes; at most {FRAME_MAX} are taken")));
        }
        Ok(FramePart::Payload(size as usize))
    }

    fn payload_bytes(&self) -> u32 {
        let [_, _, _, size @ ..] = self.header;
        u32::from_be_bytes(size)
    }

    /// Checks a complete frame; `end` is the byte that must be its end.
    fn finish_frame(&mut self, end: u8, window: &mut Window) -> Result<(), Violation> {
        if end != FRAME_END {
            return Err(bad_frame("a frame that doesn't end where it should"));
        }
        let payload = std::mem::take(&mut self.payload);
        match self.header[0] {
            METHOD => self.method(&payload, window)?,
            HEADER => content_header(&payload, window)?,
            BODY => window.body(self.payload_bytes() as usize)?,
            _ => {}
        }
        self.payload = payload;
        self.payload.clear();
        Ok(())
    }

    fn method(&mut self, payload: &[u8], window: &mut Window) -> Result<(), Violation> {
        let mut rest = payload;
        let ids = u16_of(&mut rest).zip(u16_of(&mut rest)).ok_or_else(|| bad_frame("a method without a number"))?;
        if ids == DELIVER {
            let tag = short_string(&mut rest).and_then(|_consumer| u64_of(&mut rest));
            return window.begin(tag.ok_or_else(|| bad_frame("a delivery without a tag"))?, payload.len());
        }
        if !EXPECTED.contains(&ids) {
            return Err(bad_frame(format!("a method that nobody asked for (class {}, method {})", ids.0, ids.1)));
        }
        self.consecutive_methods += 1;
        if self.consecutive_methods > MAX_CONSECUTIVE_METHODS {
            return Err(bad_frame(format!(
                "more than {MAX_CONSECUTIVE_METHODS} methods in a row that are no delivery"
            )));
        }
        // The server's properties; no other expected method holds a table.
        if ids == START && rest.get(2..).and_then(count_values).is_none() {
            return Err(bad_frame("properties that can't be read, or are nested too deep"));
        }
        Ok(())
    }
}

/// A content header (§4.2.6.1): class, weight, size of the body, and properties, of which the third is a table.
fn content_header(payload: &[u8], window: &mut Window) -> Result<(), Violation> {
    let mut rest = payload;
    let cut = || bad_frame("a content header that can't be read");
    let class = u16_of(&mut rest).ok_or_else(cut)?;
    if class != BASIC {
        return Err(bad_frame(format!("a content of class {class}")));
    }
    let _weight = u16_of(&mut rest).ok_or_else(cut)?;
    let size = u64_of(&mut rest).ok_or_else(cut)?;
    let flags = u16_of(&mut rest).ok_or_else(cut)?;
    for flag in [1 << 15, 1 << 14] {
        if flags & flag != 0 {
            short_string(&mut rest).ok_or_else(cut)?;
        }
    }
    let values = if flags & (1 << 13) == 0 { Some(0) } else { count_values(rest) };
    let values = values.ok_or_else(|| bad_frame("headers that can't be read, or are nested too deep"))?;
    window.header(size, payload.len(), values)
}

fn bad_frame(what: impl Into<String>) -> Violation {
    Violation::BadFrame(what.into())
}

/// Removes at most `most` bytes from the front.
fn take_up_to<'a>(rest: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(most.min(rest.len()));
    *rest = left;
    taken
}

fn u16_of(bytes: &mut &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.split_off(..2)?.try_into().ok()?))
}

fn u64_of(bytes: &mut &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.split_off(..8)?.try_into().ok()?))
}

/// Frames of a broker, for tests.
#[cfg(test)]
pub(super) mod fixtures {
    #![allow(clippy::unwrap_used)]
    use super::{BODY, DELIVER, FRAME_END, HEADER, METHOD};

    pub(in super::super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1], size.as_slice(), payload, &[FRAME_END]].concat()
    }

    pub(in super::super) fn method(ids: (u16, u16), arguments: &[u8]) -> Vec<u8> {
        frame(METHOD, &[ids.0.to_be_bytes().as_slice(), &ids.1.to_be_bytes(), arguments].concat())
    }

    pub(in super::super) fn deliver(tag: u64) -> Vec<u8> {
        let tag = tag.to_be_bytes();
        method(DELIVER, &[b"\x03tag".as_slice(), &tag, b"\x00\x00\x05queue"].concat())
    }

    pub(in super::super) fn header(size: u64, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[b"\x00\x3c\x00\x00".as_slice(), &size.to_be_bytes(), properties].concat())
    }

    pub(in super::super) fn message(tag: u64, body: &[u8]) -> Vec<u8> {
        let properties = b"\xe0\x00\x04json\x04utf8\x00\x00\x00\x04\x01kt\x01";
        let mut frames = [deliver(tag), header(body.len() as u64, properties)].concat();
        let part = (body.len() / 2).clamp(1, 100_000);
        body.chunks(part).for_each(|part| frames.extend(frame(BODY, part)));
        frames
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::fixtures::{deliver, frame, header, message, method};
    use super::*;

    fn opening() -> Vec<u8> {
        let start = b"\x00\x09\x00\x00\x00\x04\x01kt\x01\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US";
        let tune = b"\x00\x00\x00\x02\x00\x00\x00\x3c";
        [method(START, start), method((10, 30), tune), frame(HEARTBEAT, b"")].concat()
    }

    fn read(bytes: &[u8], prefetch: u16) -> Result<(), Rejection> {
        FrameReader::new().feed(bytes, &mut Window::new(prefetch))
    }

    fn violation(bytes: &[u8]) -> Violation {
        read(bytes, 9).unwrap_err().violation
    }

    #[test]
    fn valid_frames_are_admitted_however_they_are_split_and_an_acknowledgement_admits_more() {
        let all = [opening(), message(1, b"{\"id\": 1}"), frame(HEARTBEAT, b""), message(2, b"{}")].concat();
        for cut in 0..=all.len() {
            let (mut reader, mut window) = (FrameReader::new(), Window::new(2));
            reader.feed(&all[..cut], &mut window).unwrap();
            reader.feed(&all[cut..], &mut window).unwrap();
        }
        let (mut reader, mut window) = (FrameReader::new(), Window::new(2));
        all.iter().for_each(|byte| reader.feed(&[*byte], &mut window).unwrap());
        window.acknowledge(1);
        let third = [deliver(3), header(0, b"\x00\x00")].concat();
        reader.feed(&third, &mut window).unwrap();
        assert_eq!(reader.feed(&deliver(4), &mut window).unwrap_err().violation, Violation::OverPrefetch(2));
    }

    #[test]
    fn an_oversized_message_is_rejected_before_its_header_is_admitted_however_it_is_split() {
        let before = [opening(), message(1, b"{}"), deliver(2)].concat();
        let large = header(1 << 62, b"\x00\x00");
        let all = [before.clone(), large.clone(), frame(BODY, b"xxxx")].concat();
        let admitted = before.len() + large.len() - 1;
        assert_eq!(read(&all, 9), Err(Rejection { admitted, violation: Violation::TooLarge(1 << 62) }));
        for cut in 0..admitted {
            let (mut reader, mut window) = (FrameReader::new(), Window::new(9));
            reader.feed(&all[..cut], &mut window).unwrap();
            let rejection = reader.feed(&all[cut..], &mut window).unwrap_err();
            assert_eq!(rejection.admitted, admitted - cut);
            assert_eq!(rejection.violation, Violation::TooLarge(1 << 62));
        }
    }

    #[test]
    fn a_frame_is_at_most_as_large_as_requested() {
        let of = |size: u32| [&[BODY, 0, 1], size.to_be_bytes().as_slice()].concat();
        let announced = [deliver(1), header(1 << 20, b"\x00\x00")].concat();
        assert!(read(&[announced.clone(), of(FRAME_MAX - 8)].concat(), 9).is_ok());
        for size in [FRAME_MAX - 7, FRAME_MAX, u32::MAX] {
            assert!(matches!(violation(&[announced.clone(), of(size)].concat()), Violation::BadFrame(_)), "{size}");
        }
    }

    #[test]
    fn a_frame_that_no_consumer_expects_is_rejected() {
        let array = |depth: usize| {
            (0..depth).fold(b"V".to_vec(), |inner, _| {
                [b"A".as_slice(), &u32::try_from(inner.len()).unwrap().to_be_bytes(), &inner].concat()
            })
        };
        let nested = [b"\x01k".as_slice(), &array(5_000)].concat();
        let table = [u32::try_from(nested.len()).unwrap().to_be_bytes().as_slice(), &nested].concat();
        let headers = [b"\x20\x00".as_slice(), &table].concat();
        for (what, bytes) in [
            ("another protocol", b"HTTP/1.1 400 Bad Request".to_vec()),
            ("no end", [frame(HEARTBEAT, b"")[..7].to_vec(), vec![0]].concat()),
            ("a client's method with a table", method((50, 10), &[b"\x00\x00\x00\x00".as_slice(), &table].concat())),
            ("properties nested deep", method(START, &[b"\x00\x09".as_slice(), &table].concat())),
            ("headers nested deep", [deliver(1), header(2, &headers)].concat()),
            ("headers cut", [deliver(1), header(2, b"\x20\x00\x00\x00\x00\x09")].concat()),
            ("properties cut", [deliver(1), header(2, b"\x80\x00\x09json")].concat()),
            ("a returned message", method((60, 50), b"")),
            ("a delivery cut", method(DELIVER, b"\x03tag\x00")),
            ("a content nobody announced", header(2, b"\x00\x00")),
            ("questions without end", method((20, 20), b"\x01").repeat(65)),
            ("a greeting in mid-stream", [opening(), b"AMQP\x00\x00\x09\x01".to_vec()].concat()),
        ] {
            assert!(matches!(violation(&bytes), Violation::BadFrame(_)), "{what}");
        }
        assert!(read(b"AMQP\x00\x00\x09\x01", 9).is_ok(), "the library says what it means");
    }

    #[test]
    fn methods_are_unlimited_from_a_broker_that_reads_the_answers() {
        let (mut reader, mut window) = (FrameReader::new(), Window::new(9));
        for _ in 0..1_000 {
            reader.feed(&method((20, 20), b"\x01"), &mut window).unwrap();
            reader.sent();
        }
    }
}
