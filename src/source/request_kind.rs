//! The two kinds of requests, for a page or for an event stream, and the body of an event stream. Never decides which
//! URL may be requested.

use std::sync::Arc;

use reqwest::header::{self, HeaderValue};

use super::credentials::Credentials;
use super::failure::HttpFailure;

const ACCEPT: &str = "application/vnd.openactive.rpde+json, application/json;q=0.9, */*;q=0.1";
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// What a request is for.
#[derive(Clone, Copy)]
pub(super) enum RequestKind<'a> {
    Page { etag: Option<&'a str> },
    Stream { last_event_id: Option<&'a str> },
}

impl RequestKind<'_> {
    /// Adds the headers of this kind of request.
    pub(super) fn headers(self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self {
            Self::Page { etag } => {
                let request = request.header(header::ACCEPT, ACCEPT).header(header::ACCEPT_ENCODING, "gzip, br, zstd");
                match etag {
                    Some(etag) => request.header(header::IF_NONE_MATCH, etag),
                    None => request,
                }
            }
            Self::Stream { last_event_id } => {
                let request = request
                    .header(header::ACCEPT, EVENT_STREAM)
                    .header(header::ACCEPT_ENCODING, "identity")
                    .header(header::CACHE_CONTROL, "no-store");
                // An id that no header can hold is not sent: the URL holds the position, too.
                let id = last_event_id.filter(|id| !id.is_empty());
                match id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
                    Some(id) => request.header("Last-Event-ID", id),
                    None => request,
                }
            }
        }
    }
}

/// The body of an event stream, chunk by chunk.
pub struct EventStreamBody {
    response: reqwest::Response,
    credentials: Arc<Credentials>,
    max_page_bytes: u64,
}

impl EventStreamBody {
    pub(super) fn new(response: reqwest::Response, credentials: Arc<Credentials>, max_page_bytes: u64) -> Self {
        Self { response, credentials, max_page_bytes }
    }

    /// `http.max_page_bytes` of the feed.
    pub fn max_page_bytes(&self) -> u64 {
        self.max_page_bytes
    }

    /// The next chunk; `None` at the stream's end.
    ///
    /// # Errors
    /// [`HttpFailure::Broken`] and the like when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, HttpFailure> {
        self.response.chunk().await.map_err(|error| self.credentials.to_failure(&error))
    }
}
