//! The explanation as text, for the operator on call.

use std::io::{self, Write};

use jiff::Timestamp;

use super::{Explanation, FeedCondition, ItemExplanation};
use crate::output::format::{counted, head, plain, seconds_since, span};
use crate::store::read::{DeliveryRow, ItemRow, QuarantineRow, RefusalRow};

/// Characters of a reason or a URL that a line shows.
const MAX_SHOWN_CHARS: usize = 400;

/// Prints the explanation.
///
/// # Errors
/// When `out` can't be written.
pub fn print(out: &mut impl Write, explanation: &Explanation, now: Timestamp) -> io::Result<()> {
    for explained in &explanation.items {
        item(out, explained, now)?;
    }
    if explanation.items.is_empty() {
        unknown(out, explanation, now)?;
    }
    if explanation.cut_short {
        writeln!(out, "the search was given up after 30 s: name the feed, or the publisher's id, for a quick answer")?;
    }
    explanation.feeds.iter().try_for_each(|condition| feed(out, condition, now))
}

fn item(out: &mut impl Write, explained: &ItemExplanation, now: Timestamp) -> io::Result<()> {
    let item = &explained.item;
    let modified = plain(&item.modified.to_string());
    writeln!(out, "{}: {}, modified {modified}, change number {}", title(item), state(item), item.seq)?;
    let when = at(&item.changed_at, now);
    match &explained.delivery {
        Some(delivery) => write_delivery(out, delivery, &when)?,
        None if item.swept => writeln!(out, "  swept     {when}: a resync read the whole feed and did not find it")?,
        None => writeln!(out, "  written   too long ago to say more than: {}, {when}", item.transport)?,
    }
    refusals(out, &explained.refusals, now, |refusal| refusal.at >= item.changed_at)?;
    quarantine(out, &explained.quarantine, now)
}

fn title(item: &ItemRow) -> String {
    format!("{} {} {}", plain(&item.feed), plain(&item.kind), head(&plain(&item.id), MAX_SHOWN_CHARS))
}

fn state(item: &ItemRow) -> &'static str {
    match (item.state.as_str(), item.swept) {
        ("updated", _) => "updated",
        (_, false) => "deleted by its publisher",
        (_, true) => "deleted, since its publisher's feed no longer has it",
    }
}

fn write_delivery(out: &mut impl Write, delivery: &DeliveryRow, when: &str) -> io::Result<()> {
    writeln!(out, "  written   {when}, {}", delivery_text(delivery))?;
    if let Some(url) = &delivery.url {
        writeln!(out, "  from      {}", head(&plain(url), MAX_SHOWN_CHARS))?;
    }
    if let Some(id) = &delivery.event_id {
        writeln!(out, "  event     the last of its batch had the id {}", head(&plain(id), MAX_SHOWN_CHARS))?;
    }
    let mut response = Vec::new();
    response.extend(delivery.status.map(|status| status.to_string()));
    response.extend(delivery.age.map(|age| format!("{} in caches (age {age})", span(age))));
    response.extend(delivery.etag.as_ref().map(|etag| format!("ETag {}", head(&plain(etag), MAX_SHOWN_CHARS))));
    response.extend(delivery.date.as_ref().map(|date| format!("the publisher's clock said {date}")));
    response.extend(delivery.last_modified.as_ref().map(|at| format!("the page last changed {at}")));
    if !response.is_empty() {
        writeln!(out, "  answer    {}", response.join(", "))?;
    }
    let written = delivery.last_seq - delivery.seq + 1;
    writeln!(out, "  with it   {}: {} to {}", counted(written, "change"), delivery.seq, delivery.last_seq)
}

fn delivery_text(delivery: &DeliveryRow) -> &'static str {
    match (delivery.purpose.as_str(), delivery.transport.as_str()) {
        ("resync", _) => "by a resync, which read the feed from its beginning",
        ("look-back", _) => "by a look-back, which finds what came late",
        ("retry", _) => "out of quarantine, where it was read again",
        (_, "sse") => "pushed over the stream",
        (_, "webhook") => "posted to the webhook",
        (_, "amqp") => "by a message from the queue",
        _ => "by a poll at the feed's cursor",
    }
}

fn refusals(
    out: &mut impl Write,
    rows: &[RefusalRow],
    now: Timestamp,
    since: impl Fn(&RefusalRow) -> bool,
) -> io::Result<()> {
    for row in rows {
        let modified = row.modified.as_ref().map(|modified| plain(&modified.to_string())).unwrap_or_default();
        let word = if since(row) { "refused  " } else { "before   " };
        let reason = head(&plain(&row.reason), MAX_SHOWN_CHARS);
        writeln!(out, "  {word} {}, {}: modified {modified}, {reason}", at(&row.at, now), row.transport)?;
    }
    Ok(())
}

fn quarantine(out: &mut impl Write, rows: &[QuarantineRow], now: Timestamp) -> io::Result<()> {
    for row in rows {
        let detail = head(&plain(row.detail.as_deref().unwrap_or_default()), MAX_SHOWN_CHARS);
        let (when, reason) = (at(&row.last_at, now), &row.reason);
        writeln!(out, "  bad       {when}, {}: {reason}: {detail} (quarantine show {})", row.transport, row.id)?;
    }
    Ok(())
}

fn unknown(out: &mut impl Write, explanation: &Explanation, now: Timestamp) -> io::Result<()> {
    writeln!(out, "{}: the mirror has no such item", head(&plain(&explanation.id), MAX_SHOWN_CHARS))?;
    refusals(out, &explanation.refusals, now, |_| true)?;
    quarantine(out, &explanation.quarantine, now)?;
    for item in &explanation.elsewhere {
        writeln!(out, "  elsewhere {}: {}", title(item), state(item))?;
    }
    Ok(())
}

/// The feed's state, and what that means for the items that the mirror holds.
fn feed(out: &mut impl Write, condition: &FeedCondition, now: Timestamp) -> io::Result<()> {
    let feed = &condition.feed;
    let reason =
        feed.reason.as_ref().map(|reason| format!(": {}", head(&plain(reason), MAX_SHOWN_CHARS))).unwrap_or_default();
    writeln!(out, "{}: {}, mode {}{reason}", plain(&feed.name), feed.health, feed.mode)?;
    let behind = match seconds_since(feed.level_at.as_deref(), now) {
        None => "its end was never seen: what is not here may not have been read yet".to_owned(),
        Some(behind) => format!("its end was last seen {} ago: what changed since may not be here", span(behind)),
    };
    let next = seconds_since(feed.next_poll_at.as_deref(), now).filter(|_| feed.health != "paused").map(|since| {
        format!("; asked again {}", if since < 0 { format!("in {}", span(-since)) } else { "now".into() })
    });
    writeln!(out, "  behind    {behind}{}", next.unwrap_or_default())?;
    for endpoint in condition.endpoints.iter().filter(|endpoint| endpoint.transport != "poll") {
        let reason = endpoint.reason.as_ref().map(|reason| format!(", {}", head(&plain(reason), MAX_SHOWN_CHARS)));
        let (health, push) = (&endpoint.health, &endpoint.push);
        writeln!(out, "  {:<9} {health}, {push}{}", endpoint.transport, reason.unwrap_or_default())?;
    }
    if let Some(resync) = &condition.resync {
        writeln!(out, "  resync    {}, begun {}", resync.stage, at(&resync.started_at, now))?;
    }
    if let Some(purged) = &condition.purged_at {
        writeln!(out, "  purged    {}: what it held before was removed", at(purged, now))?;
    }
    Ok(())
}

fn at(at: &str, now: Timestamp) -> String {
    match seconds_since(Some(at), now) {
        Some(seconds) => format!("{at} ({} ago)", span(seconds)),
        None => at.to_owned(),
    }
}
