//! A feed as a stream of server-sent events (0.2.1 §3c): what comes after a position, in the feed's order, then each
//! change as it happens. A reader that is behind gets many events at once.
//!
//! A late commit lies before every reader's position and is never streamed, as with real publishers: polling finds it;
//! and a feed that went back has nothing for a reader that is ahead of it. Faults affect a stream's beginning or single
//! events, by random numbers of the stream's own: they don't depend on any other reader.

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
/// How many of the last events are sent again.
const MAX_RECENT: usize = 3;
/// The wait that lets earlier bytes leave this machine first.
const FLUSH_WAIT: Duration = Duration::from_millis(5);

/// The state that a feed's streams share for their faults.
pub(super) struct StreamFaults {
    random: Random,
    streams: u64,
    refused_in_a_row: u32,
    /// Index of the next kind of junk event.
    next_junk: usize,
}

/// How a stream begins.
struct StreamStart {
    refusal: Option<Fault>,
    bom: bool,
    random: Random,
}

impl StreamFaults {
    pub(super) fn new(index: usize, seed: u64) -> Self {
        Self { random: Random::new(mix(seed), index as u64), streams: 0, refused_in_a_row: 0, next_junk: index }
    }

    fn begin(&mut self, faults: &[(Fault, f64)]) -> StreamStart {
        self.streams += 1;
        let matching =
            |wanted: &[Fault]| faults.iter().filter(|(fault, _)| wanted.contains(fault)).copied().collect::<Vec<_>>();
        let refusals = matching(&[Fault::SseUnavailable, Fault::SseWrongType]);
        let refusal = faults_for(&mut self.random, &refusals, self.refused_in_a_row < MOST_IN_A_ROW).first().copied();
        self.refused_in_a_row = if refusal.is_some() { self.refused_in_a_row + 1 } else { 0 };
        let bom = !faults_for(&mut self.random, &matching(&[Fault::SseJunk]), true).is_empty();
        let random = Random::new(self.random.below(u64::MAX), self.streams);
        StreamStart { refusal, bom, random }
    }
}

/// Answers `GET /{feed}/stream`; `path_and_query` is the request's, `last` the id of the last event that the reader
/// has.
pub(super) fn answer(
    publisher: Arc<PublisherState>,
    name: &str,
    path_and_query: &str,
    last: Option<&str>,
) -> Option<Response<Body>> {
    let simulated = publisher.feed(name)?;
    // Streams exist in the draft only, and so do their parameters, whatever the dialect of the feed's pages.
    let query = match PageQuery::read(Dialect::Draft, path_and_query) {
        Ok(query) => query,
        Err(problem) => return Some((StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response()),
    };
    let at = last.and_then(event::position).map_or(query.start, PageStart::After);
    let StreamStart { refusal, bom, random } =
        simulated.lock().stream_faults.begin(&publisher.faults(FaultChannel::Stream));
    if let Some(fault) = refusal {
        publisher.count_fault(fault);
        return Some(refusal_response(fault));
    }
    let retry = format!("retry: {}\n\n", publisher.settings.sse_retry.as_millis());
    let first = StreamChunk {
        bytes: [if bom { event::BOM } else { "" }, &retry].concat().into_bytes(),
        faults: if bom { vec![Fault::SseJunk] } else { Vec::new() },
        send_alone: true,
    };
    let change_watch = simulated.watch_changes();
    let stream = EventStream {
        publisher: Arc::clone(&publisher),
        feed: name.to_owned(),
        at,
        change_watch,
        random,
        chunks: VecDeque::from([first]),
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

/// A stream to one reader.
struct EventStream {
    publisher: Arc<PublisherState>,
    feed: String,
    at: PageStart,
    change_watch: watch::Receiver<u64>,
    random: Random,
    chunks: VecDeque<StreamChunk>,
    recent: VecDeque<ListedRecord>,
    /// The fault that ends the stream once all chunks are sent.
    end: Option<Fault>,
}

/// Bytes to send, and the faults to count once they are sent.
struct StreamChunk {
    bytes: Vec<u8>,
    faults: Vec<Fault>,
    /// Whether nothing may be sent together with this chunk.
    send_alone: bool,
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
            if let Some(chunk) = stream.chunks.pop_front() {
                return Some(stream.send(chunk).await);
            }
            if let Some(fault) = stream.end {
                return stream.end_with_fault(fault).await;
            }
            // Marked as seen before the feed is read, so that a change in between is looked at again.
            stream.change_watch.borrow_and_update();
            stream = tokio::task::spawn_blocking(move || stream.write()).await.ok()?;
            if !stream.chunks.is_empty() || stream.end.is_some() {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = stream.change_watch.changed() => {}
                () = tokio::time::sleep(stream.publisher.settings.sse_idle) => {
                    return Some((Ok(Bytes::from_static(b": idle\n\n")), Some(stream)));
                }
            }
        }
    }

    async fn send(self, chunk: StreamChunk) -> Chunk {
        chunk.faults.iter().for_each(|fault| self.publisher.count_fault(*fault));
        if chunk.send_alone {
            tokio::time::sleep(FLUSH_WAIT).await;
        }
        (Ok(chunk.bytes.into()), Some(self))
    }

    /// Ends a stream that is cut, or that is silent until no reader should be waiting any more.
    async fn end_with_fault(self, fault: Fault) -> Option<Chunk> {
        let silent = if fault == Fault::SseSilence { self.publisher.settings.hold } else { FLUSH_WAIT };
        self.publisher.count_fault(fault);
        tokio::select! {
            () = self.publisher.stop.cancelled() => None,
            () = tokio::time::sleep(silent) => Some((Err(io::ErrorKind::BrokenPipe.into()), None)),
        }
    }

    /// Writes the next events, as many as there are and fit; takes long enough to be off the async threads.
    fn write(mut self) -> Self {
        let publisher = Arc::clone(&self.publisher);
        let faults = publisher.faults(FaultChannel::Stream);
        let Some(simulated) = publisher.feed(&self.feed) else { return self };
        let mut feed_with_faults = simulated.lock();
        let FeedWithFaults { feed, stream_faults, .. } = &mut *feed_with_faults;
        for record in feed.records(&self.at, BATCH) {
            self.put(feed, stream_faults, &record, &faults);
            if self.end.is_some() {
                break;
            }
            self.at = PageStart::After(record.at.clone());
            if self.recent.len() == MAX_RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(record);
        }
        self
    }

    fn put(
        &mut self,
        feed: &FeedModel,
        stream_faults: &mut StreamFaults,
        record: &ListedRecord,
        faults: &[(Fault, f64)],
    ) {
        if !faults.is_empty() {
            for fault in faults_for(&mut self.random, faults, true) {
                if self.apply_fault(fault, feed, stream_faults, record).is_some() {
                    return;
                }
            }
        }
        self.event(feed, record);
    }

    /// Applies the fault, where it can happen. A stream is ended only after it has sent something, or its reader would
    /// never advance.
    fn apply_fault(
        &mut self,
        fault: Fault,
        feed: &FeedModel,
        stream_faults: &mut StreamFaults,
        record: &ListedRecord,
    ) -> Option<()> {
        match fault {
            Fault::SseDrop | Fault::SseSilence if !self.recent.is_empty() => {
                if fault == Fault::SseDrop {
                    let mut whole = Vec::new();
                    event::write(&mut whole, feed, record, self.publisher.settings.sse_ids);
                    whole.truncate(record_faults::index(&mut self.random, whole.len()));
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
                let older = record_faults::older(&sent, &mut self.random)?;
                self.event(feed, record);
                self.event(feed, &older);
            }
            Fault::SseJunk => self.junk(feed, stream_faults, record),
            _ => return None,
        }
        self.bytes();
        self.chunks.back_mut()?.faults.push(fault);
        Some(())
    }

    fn junk(&mut self, feed: &FeedModel, stream_faults: &mut StreamFaults, record: &ListedRecord) {
        let junk = JUNK[stream_faults.next_junk % JUNK.len()];
        stream_faults.next_junk += 1;
        let chunks = junk.write(feed, record, self.publisher.settings.sse_ids);
        let send_alone = chunks.len() > 1;
        for bytes in chunks {
            if send_alone {
                self.chunks.push_back(StreamChunk { bytes, faults: Vec::new(), send_alone });
            } else {
                self.bytes().extend_from_slice(&bytes);
            }
        }
    }

    fn event(&mut self, feed: &FeedModel, record: &ListedRecord) {
        let ids = self.publisher.settings.sse_ids;
        event::write(self.bytes(), feed, record, ids);
    }

    /// The chunk to which more may be added.
    fn bytes(&mut self) -> &mut Vec<u8> {
        if self.chunks.back().is_none_or(|chunk| chunk.send_alone) {
            self.chunks.push_back(StreamChunk { bytes: Vec::new(), faults: Vec::new(), send_alone: false });
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last].bytes
    }
}
