//! One feed's endpoints as text: the reason for the feed's mode, and each endpoint's health and push trust.

use std::io::{self, Write};

use jiff::Timestamp;

use super::super::format::{counted, number, plain, seconds_since, span};
use super::FeedDetail;
use crate::feed::{PushTrust, Transport};
use crate::store::read::EndpointRow;

/// Writes a line for the mode, a line for each endpoint, and an empty line.
///
/// # Errors
/// When `out` can't be written.
pub(super) fn write_endpoints(out: &mut impl Write, detail: &FeedDetail, now: Timestamp) -> io::Result<()> {
    let feed = plain(&detail.feed);
    if let Some(event) = &detail.mode_change {
        let ago = seconds_since(Some(&event.at), now).map(|ago| format!(" {} ago", span(ago))).unwrap_or_default();
        writeln!(out, "{feed}: its mode changed{ago}: {}", plain(event.detail.as_deref().unwrap_or_default()))?;
    }
    for endpoint in &detail.endpoints {
        writeln!(out, "{feed}: {}", endpoint_line(endpoint, now))?;
    }
    writeln!(out)
}

/// `sse: retrying for 3 s: push-lost: …; proven 2 h ago; 12 items brought, the last one 5 s ago, 1 missed`.
fn endpoint_line(endpoint: &EndpointRow, now: Timestamp) -> String {
    let since = seconds_since(endpoint.since.as_deref(), now).filter(|_| endpoint.health != "ok");
    let since = since.map(|seconds| format!(" for {}", span(seconds))).unwrap_or_default();
    let why = endpoint.reason.as_deref().map(|reason| format!(": {}", plain(reason))).unwrap_or_default();
    let mut parts = vec![format!("{}: {}{since}{why}", endpoint.transport, endpoint.health)];
    let last = seconds_since(endpoint.updated_at.as_deref(), now).map(|ago| format!("{} ago", span(ago)));
    if endpoint.transport == Transport::Poll.as_str() {
        parts.extend(last.map(|ago| format!("last page {ago}")));
        return parts.join("; ");
    }
    parts.push(trust_text(endpoint, now));
    let delivered = counted(endpoint.delivered, "item");
    let last = last.map(|ago| format!(", the last {ago}")).unwrap_or_default();
    let late =
        if endpoint.late > 0 { format!(" ({} of them came late)", number(endpoint.late)) } else { String::new() };
    parts.push(format!("{delivered} brought{last}, {} missed{late}", number(endpoint.missed)));
    parts.join("; ")
}

/// The endpoint's push trust as text.
fn trust_text(endpoint: &EndpointRow, now: Timestamp) -> String {
    let proven = seconds_since(endpoint.proven_at.as_deref(), now).map(|ago| format!(" {} ago", span(ago)));
    match PushTrust::from_word(&endpoint.push) {
        Some(PushTrust::Proven) => format!("proven{}", proven.unwrap_or_default()),
        Some(PushTrust::Demoted) => "demoted, since it missed items: polled until it delivers in time again".to_owned(),
        Some(PushTrust::Unproven) => "unproven: polled until it has delivered".to_owned(),
        Some(PushTrust::None) | None => endpoint.push.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::read::EventRow;

    fn endpoint(transport: &str, push: &str) -> EndpointRow {
        EndpointRow {
            feed: "a".into(),
            transport: transport.into(),
            cursor: None,
            modified: None,
            id: None,
            updated_at: Some("2026-01-01T02:00:00.000Z".into()),
            health: "ok".into(),
            reason: None,
            since: Some("2026-01-01T01:00:00.000Z".into()),
            push: push.into(),
            delivered: 1_234,
            missed: 1,
            proven_at: Some("2026-01-01T01:30:00.000Z".into()),
            late: 0,
        }
    }

    fn written(mode_change: Option<EventRow>, endpoints: Vec<EndpointRow>) -> String {
        let mut out = Vec::new();
        let detail = FeedDetail { feed: "a".into(), endpoints, mode_change };
        write_endpoints(&mut out, &detail, "2026-01-01T02:00:05Z".parse().unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_endpoint_says_how_it_is_and_how_far_it_is_believed() {
        let lost = EndpointRow {
            health: "retrying".into(),
            reason: Some("push-lost: sse: stream-ended: \u{1b}[2J".into()),
            ..endpoint("sse", "proven")
        };
        let demoted = EndpointRow { missed: 3, late: 2, ..endpoint("webhook", "demoted") };
        assert_eq!(
            written(None, vec![endpoint("poll", "none"), lost, demoted]),
            "a: poll: ok; last page 5 s ago\n\
             a: sse: retrying for 60 min: push-lost: sse: stream-ended: \u{fffd}[2J; proven 30 min ago; 1,234 items brought, \
             the last 5 s ago, 1 missed\n\
             a: webhook: ok; demoted, since it missed items: polled until it delivers in time again; 1,234 items brought, \
             the last 5 s ago, 3 missed (2 of them came late)\n\n"
        );
    }

    #[test]
    fn the_mode_says_why_it_is_what_it_is() {
        let mode_change = EventRow {
            at: "2026-01-01T01:58:05.000Z".into(),
            feed: Some("a".into()),
            what: "mode".into(),
            detail: Some("poll → sse: push delivers".into()),
        };
        assert_eq!(
            written(Some(mode_change), Vec::new()),
            "a: its mode changed 2 min ago: poll → sse: push delivers\n\n"
        );
    }
}
