//! What a response's headers say: how long it is fresh, when to come again, what it is.

use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName};

use crate::feed::Finding;

/// What a page's headers say.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// The entity tag, to ask with next time.
    pub etag: Option<String>,
    /// How long the answer is fresh, its age taken off.
    pub fresh_for: Option<Duration>,
    /// The media type.
    pub content_type: Option<String>,
    /// The publisher's clock, milliseconds since 1970 UTC.
    pub date: Option<i64>,
    /// Seconds that the answer had spent in caches (RFC 9111 §5.1).
    pub age: Option<u64>,
    /// When the page itself last changed, as the publisher says, milliseconds since 1970 UTC.
    pub last_modified: Option<i64>,
    /// Where redirects led, secrets masked, if what the URL asked for was lost on the way: the answer is to another
    /// question, so it is never the feed's end.
    pub lost_cursor: Option<String>,
    /// How the answer departs from what HTTP and RPDE say; what came is read all the same.
    pub findings: Vec<Finding>,
}

/// What they say.
pub(super) fn meta(headers: &HeaderMap) -> Meta {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Meta {
        etag: text(header::ETAG),
        fresh_for: fresh_for(headers),
        content_type: text(header::CONTENT_TYPE),
        date: text(header::DATE).as_deref().and_then(http_date),
        age: text(header::AGE).and_then(|age| age.trim().parse().ok()),
        last_modified: text(header::LAST_MODIFIED).as_deref().and_then(http_date),
        lost_cursor: None,
        findings: Vec::new(),
    }
}

/// RFC 9111 §4.2.1: `max-age`, or `Expires` against `Date`; less `Age`.
fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let control = text(header::CACHE_CONTROL).unwrap_or_default().to_ascii_lowercase();
    let directives: Vec<&str> = control.split(',').map(str::trim).collect();
    if directives.iter().any(|directive| ["no-store", "no-cache"].contains(directive)) {
        return None;
    }
    let max_age =
        directives.iter().find_map(|directive| directive.strip_prefix("max-age=")?.trim_matches('"').parse().ok());
    let lifetime: u64 = match max_age {
        Some(seconds) => seconds,
        None => {
            let until = http_date(text(header::EXPIRES)?)? - http_date(text(header::DATE)?)?;
            u64::try_from(until / 1000).ok()?
        }
    };
    let age = text(header::AGE).and_then(|age| age.trim().parse().ok()).unwrap_or(0);
    lifetime.checked_sub(age).filter(|left| *left > 0).map(Duration::from_secs)
}

/// RFC 9110 §10.2.3: seconds or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = headers.get(header::DATE).and_then(|date| http_date(date.to_str().ok()?));
    let now = now.unwrap_or_else(|| jiff::Timestamp::now().as_millisecond());
    Some(Duration::from_millis(u64::try_from(http_date(value)? - now).unwrap_or(0)))
}

/// RFC 9110 §5.6.7, in milliseconds since 1970 UTC.
fn http_date(text: &str) -> Option<i64> {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(parsed.as_millisecond())
}
