//! A stream of server-sent events (WHATWG HTML §9.2): one connection, event by event. Never decodes what they say.

/// `sse` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseSettings {
    /// Where the stream is.
    pub url: String,
    /// The query parameter for the last item's `modified`.
    pub from: String,
    /// The query parameter for the last item's id.
    pub after: String,
}
