//! Why an HTTP request failed. Decides nothing: what follows from a failure is the failure policy's.

use std::time::Duration;

use super::budget::Preemption;

/// Why a request returned no page. Each message begins with a fixed word.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpFailure {
    /// A status other than 200 and 304.
    #[error("http-{code}: the publisher answered {code}{}{}", beginning_suffix(.beginning), remark_suffix(.remark.as_deref()))]
    Status {
        code: u16,
        /// The wait in `Retry-After` (RFC 9110 §10.2.3).
        retry_after: Option<Duration>,
        /// The first bytes of the body.
        beginning: String,
        /// Remarks for the operator: a header that can't be read, a cookie that is not sent back.
        remark: Option<String>,
    },
    /// A 304 to a request that carried no validator (RFC 9110 §15.4.5).
    #[error("unasked-304: the publisher answered 304 to a request without a validator")]
    UnaskedNotModified,
    /// The connection was refused.
    #[error("refused-connection: {0}")]
    ConnectionRefused(String),
    /// No connection: DNS, routing, a proxy.
    #[error("connect: {0}")]
    Connect(String),
    /// Silence for too long, or a page that took too long.
    #[error("timeout: {0}")]
    Timeout(String),
    /// The connection broke, or the body was cut short of its length.
    #[error("broken-response: {0}")]
    Broken(String),
    /// The publisher's certificate or TLS was refused.
    #[error("tls: {0}")]
    Tls(String),
    /// Other pages waited for the memory that the page, or an event of a stream, held.
    #[error("no-memory: other feeds waited for the memory that this one held; it is asked for again ({0} bytes)")]
    Preempted(u64),
    /// Larger than `max_page_bytes` once decompressed, or an event larger than the limit for one.
    #[error("too-large: more than the {0} bytes that are taken (http.max_page_bytes, and 16 MiB for an event)")]
    TooLarge(u64),
    /// A content coding that can't be read.
    #[error("bad-coding: {0}")]
    Coding(String),
    /// `next` leads to another origin.
    #[error("foreign-next: `next` leads to another origin, {0}; allow it with http.allow_hosts")]
    ForeignNext(String),
    /// A redirect to another origin.
    #[error("foreign-redirect: the publisher redirects to another origin, {0}; allow it with http.allow_hosts")]
    ForeignRedirect(String),
    /// An address that is not public, where only public ones may be connected to.
    #[error("private-address: {0}; allow it with --allow-private")]
    PrivateAddress(String),
    /// Too many redirects, or a redirect to no usable URL.
    #[error("redirect: {0}")]
    Redirect(String),
    /// Not a URL that can be requested.
    #[error("bad-url: {0}")]
    Url(String),
    /// A secret or the client's own settings can't be used.
    #[error("settings: {0}")]
    Settings(String),
}

fn beginning_suffix(beginning: &str) -> String {
    if beginning.is_empty() { String::new() } else { format!(": {beginning:?}") }
}

fn remark_suffix(remark: Option<&str>) -> String {
    remark.map(|remark| format!("; {remark}")).unwrap_or_default()
}

impl From<Preemption> for HttpFailure {
    fn from(preemption: Preemption) -> Self {
        Self::Preempted(preemption.held)
    }
}
