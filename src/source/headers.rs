//! Reads a response's headers: validators, freshness, `Retry-After`, content type. Never reads the body.

use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName};

use crate::feed::Finding;

/// The metadata in a page's headers.
#[derive(Clone, Debug, Default)]
pub struct ResponseMeta {
    /// The entity tag, for the next request's `If-None-Match`.
    pub etag: Option<String>,
    /// How long the response is fresh, less its age.
    pub fresh_for: Option<Duration>,
    pub content_type: Option<String>,
    /// The publisher's clock, milliseconds since 1970 UTC.
    pub date: Option<i64>,
    /// Seconds that the response spent in caches (RFC 9111 §5.1).
    pub age: Option<u64>,
    /// When the page last changed, as the publisher says, milliseconds since 1970 UTC.
    pub last_modified: Option<i64>,
    /// Set if redirects dropped the request's cursor: the URL that they led to, secrets masked. Such a response never
    /// counts as the feed's end.
    pub cursor_lost_at: Option<String>,
    /// The cookies that the response sets, in words: a publisher that sends a web page may want one sent back.
    pub cookie_remark: Option<String>,
    /// How the response departs from HTTP and RPDE; it is read all the same.
    pub findings: Vec<Finding>,
}

impl ResponseMeta {
    pub(super) fn add_finding(&mut self, rule: &'static str, detail: String) {
        self.findings.push(Finding { rule, detail, count: 1 });
    }
}

/// Reads the headers; `hide` masks secrets in all that is shown. The entity tag is sent back unchanged.
pub(super) fn meta(headers: &HeaderMap, hide: &dyn Fn(&str) -> String) -> ResponseMeta {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut meta = ResponseMeta {
        etag: text(header::ETAG),
        fresh_for: fresh_for(headers),
        content_type: header_text(headers, &header::CONTENT_TYPE).map(|media| hide(&media)),
        date: text(header::DATE).as_deref().and_then(http_date),
        age: text(header::AGE).and_then(|age| age.trim().parse().ok()),
        last_modified: text(header::LAST_MODIFIED).as_deref().and_then(http_date),
        cursor_lost_at: None,
        cookie_remark: cookie_remark(headers, hide),
        findings: Vec::new(),
    };
    let read = [
        (header::ETAG, meta.etag.is_some()),
        (header::DATE, meta.date.is_some()),
        (header::AGE, meta.age.is_some()),
        (header::LAST_MODIFIED, meta.last_modified.is_some()),
    ];
    for (name, _) in read.into_iter().filter(|(_, read)| !read) {
        if let Some(value) = header_text(headers, &name) {
            let detail = format!("the header {name} can't be read, {:?}", shortened(&hide(&value)));
            meta.add_finding("unreadable-header", detail);
        }
    }
    meta
}

/// A header's value, whatever its bytes.
pub(super) fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The names of the cookies that a response sets, in words: we send none back, and some publishers want one.
pub(super) fn cookie_remark(headers: &HeaderMap, hide: &dyn Fn(&str) -> String) -> Option<String> {
    let named = headers.get_all(header::SET_COOKIE).iter().filter_map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes());
        text.split_once('=').map(|(name, _)| format!("{:?}", shortened(&hide(name.trim()))))
    });
    let names: Vec<String> = named.take(3).collect();
    let cookies = if names.len() == 1 { "the cookie" } else { "the cookies" };
    (!names.is_empty()).then(|| format!("it sets {cookies} {}, and none is sent back", names.join(", ")))
}

/// Whether a partial response has the whole content (RFC 9110 §14.4).
pub(super) fn is_whole(headers: &HeaderMap) -> bool {
    let range = header_text(headers, &header::CONTENT_RANGE);
    let whole = |range: &str| {
        let (positions, total) = range.trim().strip_prefix("bytes")?.trim().split_once('/')?;
        let (first, last) = positions.split_once('-')?;
        let (last, total): (u64, u64) = (last.trim().parse().ok()?, total.trim().parse().ok()?);
        Some(first.trim() == "0" && last.checked_add(1) == Some(total))
    };
    range.as_deref().and_then(whole).unwrap_or(false)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
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

/// RFC 9110 §10.2.3: seconds or a date; an error is the value, where it can't be read.
pub(super) fn retry_after(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(text) = header_text(headers, &header::RETRY_AFTER) else { return Ok(None) };
    let value = text.trim();
    if let Ok(seconds) = value.parse() {
        return Ok(Some(Duration::from_secs(seconds)));
    }
    let Some(until) = http_date(value) else { return Err(shortened(value)) };
    let now = headers.get(header::DATE).and_then(|date| http_date(date.to_str().ok()?));
    let now = now.unwrap_or_else(|| jiff::Timestamp::now().as_millisecond());
    Ok(Some(Duration::from_millis(u64::try_from(until.saturating_sub(now)).unwrap_or(0))))
}

/// RFC 9110 §5.6.7, in milliseconds since 1970 UTC.
fn http_date(text: &str) -> Option<i64> {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(parsed.as_millisecond())
}
