//! A feed as a stream of server-sent events (0.2.1 §3c): what comes after a position, in the feed's order, then each
//! change as it happens. Who is behind gets many events at once.
//!
//! A late commit lies behind every reader and is never streamed, as with real publishers: polling finds it; and a feed
//! that went back has nothing for who is ahead of it. Faults befall a stream's beginning or single events, by dice of its
//! own: what it meets depends on no other reader's pace.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use futures_util::stream;
use tokio::sync::watch;

use super::dialect::{Dialect, PageQuery};
use super::event::{self, JUNK};
use super::fault::{Fault, FaultChannel};
use super::feed::{FeedModel, ListedRecord, PageStart};
use super::poll_faults::{MOST_IN_A_ROW, faults_for};
use super::publisher::{FeedWithFaults, PublisherState};
use super::random::{Random, mix};
use super::{record_faults, wire_response};

/// Events written at once for a reader that is behind.
const BATCH: usize = 256;
/// As many of the last events as are sent again.
const RECENT: usize = 3;
/// So that what came before leaves this machine first.
const APART: Duration = Duration::from_millis(5);

/// What a feed's streams remember together.
pub(super) struct StreamFaults {
    dice: Random,
    streams: u64,
    refused_in_a_row: u32,
    /// Whose turn it is.
    junk: usize,
}

/// How a stream begins.
struct StreamStart {
    refusal: Option<Fault>,
    bom: bool,
    dice: Random,
}

impl StreamFaults {
    pub(super) fn new(index: usize, seed: u64) -> Self {
        Self { dice: Random::new(mix(seed), index as u64), streams: 0, refused_in_a_row: 0, junk: index }
    }

    fn begin(&mut self, faults: &[(Fault, f64)]) -> StreamStart {
        self.streams += 1;
        let chosen =
            |wanted: &[Fault]| faults.iter().filter(|(fault, _)| wanted.contains(fault)).copied().collect::<Vec<_>>();
        let refusals = chosen(&[Fault::SseUnavailable, Fault::SseWrongType]);
        let refusal = faults_for(&mut self.dice, &refusals, self.refused_in_a_row < MOST_IN_A_ROW).first().copied();
        self.refused_in_a_row = if refusal.is_some() { self.refused_in_a_row + 1 } else { 0 };
        let bom = !faults_for(&mut self.dice, &chosen(&[Fault::SseJunk]), true).is_empty();
        let dice = Random::new(self.dice.below(u64::MAX), self.streams);
        StreamStart { refusal, bom, dice }
    }
}

/// Answers `GET /{feed}/stream`; `place` is path and query, `last` the id of the last event that the reader knows.
pub(super) fn answer(
    publisher: Arc<PublisherState>,
    name: &str,
    place: &str,
    last: Option<&str>,
) -> Option<Response<Body>> {
    let desk = publisher.feed(name)?;
    // A stream is the draft's alone, and so are its parameters, whatever dialect the feed's pages speak.
    let asked = match PageQuery::read(Dialect::Draft, place) {
        Ok(asked) => asked,
        Err(problem) => return Some((StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response()),
    };
    let at = last.and_then(event::position).map_or(asked.start, PageStart::After);
    let StreamStart { refusal, bom, dice } = desk.lock().stream_faults.begin(&publisher.faults(FaultChannel::Stream));
    if let Some(fault) = refusal {
        publisher.fire(fault);
        return Some(refusal_response(fault));
    }
    let retry = format!("retry: {}\n\n", publisher.settings.sse_retry.as_millis());
    let first = StreamChunk {
        bytes: [if bom { event::BOM } else { "" }, &retry].concat().into_bytes(),
        faults: if bom { vec![Fault::SseJunk] } else { Vec::new() },
        apart: true,
    };
    let news = desk.watch_changes();
    let stream = EventStream {
        publisher: Arc::clone(&publisher),
        feed: name.to_owned(),
        at,
        news,
        dice,
        parts: VecDeque::from([first]),
        recent: VecDeque::new(),
        end: None,
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(Some(stream), EventStream::next)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(response)
}

fn refusal_response(fault: Fault) -> Response<Body> {
    if fault == Fault::SseWrongType {
        return ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], wire_response::CHALLENGE).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "503 Service Unavailable").into_response()
}

/// A stream on its way to one reader.
struct EventStream {
    publisher: Arc<PublisherState>,
    feed: String,
    at: PageStart,
    news: watch::Receiver<u64>,
    dice: Random,
    parts: VecDeque<StreamChunk>,
    recent: VecDeque<ListedRecord>,
    /// The fault that ends it once all parts are sent.
    end: Option<Fault>,
}

/// Bytes to send, and the faults that have happened once they are.
struct StreamChunk {
    bytes: Vec<u8>,
    faults: Vec<Fault>,
    /// Whether nothing may be sent along with it.
    apart: bool,
}

type Chunk = (io::Result<Bytes>, Option<EventStream>);

impl EventStream {
    async fn next(stream: Option<Self>) -> Option<Chunk> {
        let mut stream = stream?;
        let stop = stream.publisher.stop.clone();
        loop {
            if stop.is_cancelled() {
                return None;
            }
            if let Some(part) = stream.parts.pop_front() {
                return Some(stream.send(part).await);
            }
            if let Some(fault) = stream.end {
                return stream.end_with_fault(fault).await;
            }
            // Seen before looking, so that what changes in between is looked at again.
            stream.news.borrow_and_update();
            stream = tokio::task::spawn_blocking(move || stream.write()).await.ok()?;
            if !stream.parts.is_empty() || stream.end.is_some() {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = stream.news.changed() => {}
                () = tokio::time::sleep(stream.publisher.settings.sse_idle) => {
                    return Some((Ok(Bytes::from_static(b": idle\n\n")), Some(stream)));
                }
            }
        }
    }

    async fn send(self, part: StreamChunk) -> Chunk {
        part.faults.iter().for_each(|fault| self.publisher.fire(*fault));
        if part.apart {
            tokio::time::sleep(APART).await;
        }
        (Ok(part.bytes.into()), Some(self))
    }

    /// The end of a stream that is cut, or silent until nobody should be waiting any more.
    async fn end_with_fault(self, fault: Fault) -> Option<Chunk> {
        let silent = if fault == Fault::SseSilence { self.publisher.settings.hold } else { APART };
        self.publisher.fire(fault);
        tokio::select! {
            () = self.publisher.stop.cancelled() => None,
            () = tokio::time::sleep(silent) => Some((Err(io::ErrorKind::BrokenPipe.into()), None)),
        }
    }

    /// Writes what comes next, as much as there is and fits; takes long enough to be off the async threads.
    fn write(mut self) -> Self {
        let publisher = Arc::clone(&self.publisher);
        let faults = publisher.faults(FaultChannel::Stream);
        let Some(desk) = publisher.feed(&self.feed) else { return self };
        let mut served = desk.lock();
        let FeedWithFaults { feed, stream_faults: temper, .. } = &mut *served;
        for record in feed.records(&self.at, BATCH) {
            self.put(feed, temper, &record, &faults);
            if self.end.is_some() {
                break;
            }
            self.at = PageStart::After(record.at.clone());
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(record);
        }
        self
    }

    fn put(&mut self, feed: &FeedModel, temper: &mut StreamFaults, record: &ListedRecord, faults: &[(Fault, f64)]) {
        if !faults.is_empty() {
            for fault in faults_for(&mut self.dice, faults, true) {
                if self.misbehave(fault, feed, temper, record).is_some() {
                    return;
                }
            }
        }
        self.event(feed, record);
    }

    /// Lets the fault happen, where it can. A stream is ended only when it has brought something, or its reader would
    /// never get on.
    fn misbehave(
        &mut self,
        fault: Fault,
        feed: &FeedModel,
        temper: &mut StreamFaults,
        record: &ListedRecord,
    ) -> Option<()> {
        match fault {
            Fault::SseDrop | Fault::SseSilence if !self.recent.is_empty() => {
                if fault == Fault::SseDrop {
                    let mut whole = Vec::new();
                    event::write(&mut whole, feed, record, self.publisher.settings.sse_ids);
                    whole.truncate(record_faults::index(&mut self.dice, whole.len()));
                    self.bytes().extend_from_slice(&whole);
                }
                self.end = Some(fault);
                return Some(());
            }
            Fault::SseSkip => {}
            Fault::SseRepeat => {
                let again: Vec<ListedRecord> = self.recent.iter().chain([record]).cloned().collect();
                self.event(feed, record);
                again.iter().for_each(|record| self.event(feed, record));
            }
            Fault::SseStale => {
                let sent: Vec<ListedRecord> = self.recent.iter().chain([record]).cloned().collect();
                let older = record_faults::older(&sent, &mut self.dice)?;
                self.event(feed, record);
                self.event(feed, &older);
            }
            Fault::SseJunk => self.junk(feed, temper, record),
            _ => return None,
        }
        self.bytes();
        self.parts.back_mut()?.faults.push(fault);
        Some(())
    }

    fn junk(&mut self, feed: &FeedModel, temper: &mut StreamFaults, record: &ListedRecord) {
        let junk = JUNK[temper.junk % JUNK.len()];
        temper.junk += 1;
        let parts = junk.write(feed, record, self.publisher.settings.sse_ids);
        let apart = parts.len() > 1;
        for bytes in parts {
            if apart {
                self.parts.push_back(StreamChunk { bytes, faults: Vec::new(), apart });
            } else {
                self.bytes().extend_from_slice(&bytes);
            }
        }
    }

    fn event(&mut self, feed: &FeedModel, record: &ListedRecord) {
        let ids = self.publisher.settings.sse_ids;
        event::write(self.bytes(), feed, record, ids);
    }

    /// Where more is written that may be sent with what came before.
    fn bytes(&mut self) -> &mut Vec<u8> {
        if self.parts.back().is_none_or(|part| part.apart) {
            self.parts.push_back(StreamChunk { bytes: Vec::new(), faults: Vec::new(), apart: false });
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last].bytes
    }
}
