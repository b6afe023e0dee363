//! A stream of server-sent events (WHATWG HTML §9.2): one connection, event by event. Never decodes an event's data.
//!
//! A stream ends for good with its first failure or its end: the caller decides when to connect again, and from which
//! position. Lines that are no event (comments, unknown fields, other text) are skipped. Memory is bounded by one event
//! and one chunk of the connection; nothing is read ahead of the caller. The stream's memory is charged to the memory
//! budget, as a page's is: a stream whose publisher leaves an event half sent is preempted.

mod parse;

use std::sync::Arc;
use std::time::Duration;

use super::budget::{Preemption, Reservation};
use super::http::{EndpointClient, HttpFailure, percent_encode_query};
use super::request_kind::EventStreamBody;
use parse::Parser;

/// `sse` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseSettings {
    /// The stream's URL.
    pub url: String,
    /// The query parameter for the last item's `modified`.
    pub from: String,
    /// The query parameter for the last item's id.
    pub after: String,
}

/// The largest event accepted, bytes, unless `http.max_page_bytes` is smaller.
pub const MAX_EVENT_BYTES: u64 = 16 << 20;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// The event's type, `message` when it has none.
    pub name: String,
    /// The event's data, lines joined by line feeds; what is not UTF-8 is replaced by U+FFFD.
    pub data: String,
    /// The last event id: this event's, or else the newest before it on this stream; empty when the publisher reset it.
    /// An id of more than 2 KiB is ignored.
    pub id: Option<Arc<str>>,
    /// How long to wait before connecting again, where this event says so.
    pub retry: Option<Duration>,
}

/// A stream that holds fewer bytes is not charged, so that a single item never waits for the memory of pages.
const CHARGED_BYTES: u64 = 64 << 10;

/// One connection to an event stream.
pub struct Stream {
    connection: Option<EventStreamBody>,
    parser: Parser,
    /// Holds the incomplete event, and those returned since [`Stream::take_share`].
    share: Reservation,
    returned_bytes: u64,
}

impl Stream {
    /// Connects. `client` is the client of the stream's own URL, since secrets are sent to that origin only;
    /// `last_event_id` is the id of the last committed event; memory is charged to `share`, which holds nothing yet.
    ///
    /// # Errors
    /// Whatever kept the stream from opening; a status other than 200, among them 204 (the publisher wants no client to
    /// connect again), is [`HttpFailure::Status`].
    pub async fn open(
        client: &EndpointClient,
        url: &str,
        last_event_id: Option<&str>,
        share: Reservation,
    ) -> Result<Self, HttpFailure> {
        let connection = client.stream(url, last_event_id).await?;
        let max = MAX_EVENT_BYTES.min(connection.max_page_bytes());
        Ok(Self { connection: Some(connection), parser: Parser::new(max), share, returned_bytes: 0 })
    }

    /// The next event; `None` at the stream's end, and after a failure. Nothing is lost when a call is dropped before
    /// it is ready.
    ///
    /// # Errors
    /// [`HttpFailure::Broken`] and the like when the connection breaks, [`HttpFailure::TooLarge`] for an event beyond
    /// the limit, [`HttpFailure::Preempted`] where others waited for the memory of an event that didn't arrive.
    pub async fn next(&mut self) -> Result<Option<SseEvent>, HttpFailure> {
        let next = self.read().await;
        if !matches!(next, Ok(Some(_))) {
            self.connection = None;
            self.parser.discard();
            self.share.shrink_to(self.returned_bytes);
        }
        next
    }

    /// The reservation of the events returned since the last call, to be held as long as the events are.
    pub fn take_share(&mut self) -> Option<Reservation> {
        let returned_bytes = std::mem::take(&mut self.returned_bytes);
        (self.share.bytes() > 0).then(|| self.share.split(returned_bytes))
    }

    async fn read(&mut self) -> Result<Option<SseEvent>, HttpFailure> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        loop {
            if let Some(event) = self.parser.next()? {
                self.returned_bytes += (event.name.len() + event.data.len()) as u64;
                return Ok(Some(event));
            }
            charge(&mut self.share, self.returned_bytes + self.parser.held()).await?;
            match self.share.receive(connection.chunk()).await?? {
                Some(chunk) => {
                    self.parser.push_chunk(chunk);
                    // A stream that always has more data must not starve other tasks.
                    tokio::task::yield_now().await;
                }
                None => return Ok(None),
            }
        }
    }

    /// How many ids were ignored since the last call because they are too long to be stored and sent back.
    pub fn long_ids(&mut self) -> u64 {
        self.parser.long_ids()
    }

    /// The publisher's last `retry`, with an event or without one: how long to wait before connecting again.
    pub fn retry(&self) -> Option<Duration> {
        self.parser.retry()
    }
}

async fn charge(share: &mut Reservation, bytes: u64) -> Result<(), Preemption> {
    if bytes >= CHARGED_BYTES {
        return share.grow_to(bytes).await;
    }
    if share.bytes() > 0 {
        share.shrink_to(0);
    }
    Ok(())
}

/// The URL that continues after `position`, an item's `modified` and id: the configured URL with the two parameters in
/// place of those it has. Without a position it is the configured URL.
pub fn connect_url(settings: &SseSettings, position: Option<(&str, &str)>) -> String {
    let Some((modified, id)) = position else { return settings.url.clone() };
    let url = settings.url.split('#').next().unwrap_or_default();
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !names(pair, &[&settings.from, &settings.after]));
    let mut pairs: Vec<String> = kept.map(str::to_owned).collect();
    pairs.push(format!("{}={}", percent_encode_query(&settings.from), percent_encode_query(modified)));
    pairs.push(format!("{}={}", percent_encode_query(&settings.after), percent_encode_query(id)));
    format!("{base}?{}", pairs.join("&"))
}

/// Whether a query's pair is one of these parameters, however its name is percent-encoded.
fn names(pair: &str, parameters: &[&str]) -> bool {
    let name = url::form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned());
    name.is_some_and(|name| parameters.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> SseSettings {
        SseSettings { url: url.into(), from: "from".into(), after: "after".into() }
    }

    #[test]
    fn a_position_is_put_into_the_url_percent_encoded() {
        let url = connect_url(&settings("https://p.example/stream"), Some(("2026-01-01T00:00:00+01:00", "{a b&é/1}")));
        assert_eq!(
            url,
            "https://p.example/stream?from=2026-01-01T00%3A00%3A00%2B01%3A00&after=%7Ba%20b%26%C3%A9%2F1%7D"
        );
    }

    #[test]
    fn a_position_replaces_the_one_configured_and_nothing_else() {
        let configured = "https://p.example/stream?kind=a%2Fb&from=1&%61fter=x&fromage=brie&&flag#top";
        let url = connect_url(&settings(configured), Some(("2", "y")));
        assert_eq!(url, "https://p.example/stream?kind=a%2Fb&fromage=brie&flag&from=2&after=y");
        assert_eq!(connect_url(&settings(configured), None), configured);
    }

    #[test]
    fn parameters_have_the_names_that_are_configured() {
        let named = SseSettings { from: "afterTimestamp".into(), after: "afterId".into(), ..settings("http://h/?s=1") };
        assert_eq!(connect_url(&named, Some(("7", ""))), "http://h/?s=1&afterTimestamp=7&afterId=");
    }
}
