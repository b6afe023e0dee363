//! Parses bytes to events, by WHATWG HTML §9.2.6: whatever the bytes are, nothing but size is an error. Pure.
//!
//! Of what has been read it holds the last chunk, the incomplete line and the incomplete event.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::SseEvent;
use crate::source::http::HttpFailure;

/// The longest id taken: it is stored, and sent back in a header.
const MAX_ID_BYTES: usize = 2 << 10;

/// A stream's state between events.
pub(super) struct Parser {
    /// What has arrived and is not read yet.
    chunk: Bytes,
    /// The beginning of a line that continues in the next chunk.
    line: Vec<u8>,
    /// The last line ended with CR: a LF that follows belongs to it.
    after_return: bool,
    /// Nothing but perhaps a byte order mark has been read.
    first_line: bool,
    fields: EventFields,
    id: Option<Arc<str>>,
    long_ids: u64,
    retry: Option<Duration>,
    max: u64,
}

/// The fields since the last blank line.
#[derive(Default)]
struct EventFields {
    name: String,
    data: Option<Vec<u8>>,
    retry: Option<Duration>,
}

impl Parser {
    /// A parser for events of at most `max` bytes, the incomplete line included.
    pub(super) fn new(max: u64) -> Self {
        Self {
            chunk: Bytes::new(),
            line: Vec::new(),
            after_return: false,
            first_line: true,
            fields: EventFields::default(),
            id: None,
            long_ids: 0,
            retry: None,
            max,
        }
    }

    /// Ids ignored since the last call.
    pub(super) fn long_ids(&mut self) -> u64 {
        std::mem::take(&mut self.long_ids)
    }

    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Adds the next chunk, once [`Self::next`] has returned all events of the one before.
    pub(super) fn push_chunk(&mut self, chunk: Bytes) {
        self.chunk = chunk;
    }

    /// The next complete event.
    pub(super) fn next(&mut self) -> Result<Option<SseEvent>, HttpFailure> {
        while let Some(line) = self.line()? {
            if let Some(event) = self.read(&line) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The next complete line, without its end: CR LF, LF or CR.
    fn line(&mut self) -> Result<Option<Bytes>, HttpFailure> {
        if self.after_return && !self.chunk.is_empty() {
            self.after_return = false;
            if self.chunk.starts_with(b"\n") {
                let _ = self.chunk.split_to(1);
            }
        }
        let end = self.chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let more = end.unwrap_or(self.chunk.len());
        if self.held() + more as u64 > self.max {
            return Err(HttpFailure::TooLarge(self.max));
        }
        let part = self.chunk.split_to(more);
        let Some(_) = end else {
            self.line.extend_from_slice(&part);
            self.chunk = Bytes::new();
            return Ok(None);
        };
        self.after_return = self.chunk.split_to(1)[0] == b'\r';
        let line = if self.line.is_empty() {
            part
        } else {
            self.line.extend_from_slice(&part);
            Bytes::from(std::mem::take(&mut self.line))
        };
        Ok(Some(self.without_mark(line)))
    }

    /// Bytes of the incomplete event, without those of the last chunk.
    pub(super) fn held(&self) -> u64 {
        let data = self.fields.data.as_ref().map_or(0, Vec::len);
        (self.line.len() + self.fields.name.len() + data) as u64
    }

    /// Discards the incomplete event: nothing follows.
    pub(super) fn discard(&mut self) {
        (self.chunk, self.line, self.fields) = (Bytes::new(), Vec::new(), EventFields::default());
    }

    /// Removes the byte order mark that the first line may begin with.
    fn without_mark(&mut self, line: Bytes) -> Bytes {
        let first = std::mem::take(&mut self.first_line);
        if first && line.starts_with(b"\xEF\xBB\xBF") { line.slice(3..) } else { line }
    }

    fn read(&mut self, line: &[u8]) -> Option<SseEvent> {
        if line.is_empty() {
            return self.dispatch();
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => self.fields.append(value),
            b"event" => self.fields.name = text(value.to_vec()),
            b"id" if value.len() > MAX_ID_BYTES => self.long_ids += 1,
            b"id" if !value.contains(&0) => self.id = Some(text(value.to_vec()).into()),
            b"retry" => self.set_retry(value),
            _ => {}
        }
        None
    }

    fn set_retry(&mut self, value: &[u8]) {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return;
        }
        let milliseconds = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX);
        self.fields.retry = Some(Duration::from_millis(milliseconds));
        self.retry = self.fields.retry;
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let fields = std::mem::take(&mut self.fields);
        let data = text(fields.data?);
        let name = if fields.name.is_empty() { "message".to_owned() } else { fields.name };
        Some(SseEvent { name, data, id: self.id.clone(), retry: fields.retry })
    }
}

impl EventFields {
    fn append(&mut self, value: &[u8]) {
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAX: u64 = 1 << 20;

    fn events(chunks: &[&[u8]]) -> (Vec<SseEvent>, Parser) {
        let (mut parser, mut events) = (Parser::new(MAX), Vec::new());
        for chunk in chunks {
            parser.push_chunk(Bytes::copy_from_slice(chunk));
            while let Some(event) = parser.next().unwrap() {
                events.push(event);
            }
        }
        (events, parser)
    }

    /// Name and data of each event.
    fn names_and_data(text: &[u8]) -> Vec<(String, String)> {
        events(&[text]).0.into_iter().map(|event| (event.name, event.data)).collect()
    }

    fn message(data: &str) -> (String, String) {
        ("message".into(), data.into())
    }

    #[test]
    fn the_examples_of_the_standard_are_read_as_it_says() {
        // WHATWG HTML §9.2.6, the examples at its end.
        assert_eq!(names_and_data(b"data: YHOO\ndata: +2\ndata: 10\n\n"), [message("YHOO\n+2\n10")]);
        let (read, _) =
            events(&[b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"]);
        let read: Vec<_> = read.iter().map(|event| (event.data.as_str(), event.id.as_deref())).collect();
        assert_eq!(read, [("first event", Some("1")), ("second event", Some("")), (" third event", Some(""))]);
        // The last block has no blank line after it.
        assert_eq!(names_and_data(b"data\n\ndata\ndata\n\ndata:"), [message(""), message("\n")]);
        assert_eq!(names_and_data(b"data:test\n\ndata: test\n\n"), [message("test"), message("test")]);
    }

    #[test]
    fn lines_end_with_any_of_three_ends_mixed() {
        assert_eq!(
            names_and_data(b"event: a\rdata: 1\r\rdata: 2\r\n\r\ndata: 3\n\ndata: 4\r\n\n"),
            [("a".into(), "1".into()), message("2"), message("3"), message("4"),]
        );
    }

    #[test]
    fn the_same_is_read_however_it_is_cut() {
        let stream =
            "\u{feff}event: ü\r\ndata: é€😀\r\ndata:\r\n\r\nid: ñ\rdata: x\r\rretry: 9\n\ndata: y\n\n".as_bytes();
        let (whole, _) = events(&[stream]);
        assert_eq!(whole.len(), 3);
        assert_eq!((whole[0].name.as_str(), whole[0].data.as_str()), ("ü", "é€😀\n"));
        assert_eq!((whole[1].data.as_str(), whole[1].id.as_deref()), ("x", Some("ñ")));
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let parts = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(events(&parts).0, whole, "cut at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(events(&bytes).0, whole);
    }

    #[test]
    fn junk_is_skipped_and_what_follows_is_read() {
        let junk =
            b":\n: ping\n\nunknown: x\n\nevent\n\nevent: lost\n\n\n\nDATA: no\n data: no\n\xff\xfe: x\n\n{\"a\":1}\n\n";
        let stream = [&junk[..], b"data: after\n\n"].concat();
        assert_eq!(names_and_data(&stream), [message("after")]);
    }

    #[test]
    fn a_mark_counts_at_the_beginning_alone_and_bad_bytes_are_replaced() {
        assert_eq!(
            names_and_data(b"\xEF\xBB\xBFdata: 1\n\n\xEF\xBB\xBFdata: 2\n\ndata: a\xffb\n\n"),
            [message("1"), message("a\u{fffd}b")]
        );
    }

    #[test]
    fn an_id_applies_to_the_events_after_it_and_one_with_nul_to_none() {
        let (read, _) = events(&[b"id: 7\n\ndata: a\n\nid: 8\0\ndata: b\n\nid\ndata: c\n\n"]);
        let ids: Vec<_> = read.iter().map(|event| event.id.as_deref()).collect();
        assert_eq!(ids, [Some("7"), Some("7"), Some("")]);
    }

    #[test]
    fn an_id_that_is_too_long_is_ignored_and_one_is_shared_by_all_events_after_it() {
        let long = "x".repeat(MAX_ID_BYTES + 1);
        let stream = format!("id: 7\nid: {long}\ndata: a\n\ndata: b\n\nid: {}\ndata: c\n\n", &long[1..]);
        let (read, mut parser) = events(&[stream.as_bytes()]);
        let ids: Vec<_> = read.iter().map(|event| event.id.clone().unwrap()).collect();
        assert_eq!((&*ids[0], &*ids[2]), ("7", &long[1..]));
        assert!(Arc::ptr_eq(&ids[0], &ids[1]));
        assert_eq!((parser.long_ids(), parser.long_ids()), (1, 0));
    }

    #[test]
    fn a_wait_is_known_without_an_event_and_is_digits_alone() {
        let (read, parser) = events(&[b"retry: 2500\n\nretry: +1\nretry: 1.5\nretry:\ndata: a\n\n"]);
        assert_eq!((read[0].retry, parser.retry()), (None, Some(Duration::from_millis(2500))));
        let (read, parser) = events(&[b"retry: 99999999999999999999\ndata: a\n\n"]);
        assert_eq!((read[0].retry, parser.retry()), (parser.retry(), Some(Duration::from_millis(u64::MAX))));
    }

    #[test]
    fn an_event_beyond_the_limit_is_refused_as_soon_as_it_is_beyond() {
        for part in [&b"data: 0123456789\n"[..], b"0123456789", b": 0123456789"] {
            let mut parser = Parser::new(4096);
            let mut held = 0;
            let refused = loop {
                parser.push_chunk(Bytes::copy_from_slice(part));
                match parser.next() {
                    Ok(read) => assert_eq!(read, None),
                    Err(failure) => break failure,
                }
                held = parser.held();
            };
            assert!(matches!(refused, HttpFailure::TooLarge(4096)));
            assert!(held > 4096 - 2 * part.len() as u64 && held <= 4096, "{held}");
        }
    }

    #[test]
    fn events_within_the_limit_add_up_to_nothing() {
        let mut parser = Parser::new(64);
        for _ in 0..100 {
            parser.push_chunk(Bytes::from_static(b"data: 0123456789\n: a comment\n\n"));
            assert_eq!(parser.next().unwrap().unwrap().data, "0123456789");
            assert!(parser.next().unwrap().is_none());
        }
        assert_eq!(parser.held(), 0);
    }
}
