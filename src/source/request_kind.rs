//! What a request asks for, a page or a stream, and a stream's body as it comes. Never decides where it may go.

use std::sync::Arc;

use reqwest::header::{self, HeaderValue};

use super::credentials::Credentials;
use super::failure::HttpFailure;

const ACCEPT: &str = "application/vnd.openactive.rpde+json, application/json;q=0.9, */*;q=0.1";
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// What a request asks for.
#[derive(Clone, Copy)]
pub(super) enum RequestKind<'a> {
    Page { etag: Option<&'a str> },
    Stream { last_event_id: Option<&'a str> },
}

impl RequestKind<'_> {
    /// The request with the headers that say so.
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
                // An id that no header can hold is not sent: the URL says where to go on, too.
                let id = last_event_id.filter(|id| !id.is_empty());
                match id.and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok()) {
                    Some(id) => request.header("Last-Event-ID", id),
                    None => request,
                }
            }
        }
    }
}

/// The body of an event stream, as it comes.
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

    /// What came next; `None` at its end.
    ///
    /// # Errors
    /// [`Failure::Broken`] and the like when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, HttpFailure> {
        self.response.chunk().await.map_err(|error| self.credentials.to_failure(&error))
    }
}
