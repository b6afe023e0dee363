//! One feed, whole: how it is and why, how much it changes, its endpoints and how far they are believed, what happened.

use askama::Template;
use jiff::Timestamp;

use super::chart::{Chart, hour};
use super::parts::{Part, Parts};
use super::seen::{Feed, WEEK};
use super::time::{Says, Time};
use super::{Frame, SCRIPT, STYLE, class};
use crate::feed::{Health, Push};
use crate::output::status::next_poll_at;
use crate::output::words::{head, number, plain};
use crate::store::read::{EndpointRow, EventRow, FeedRow, FindingRow};

/// How tall the chart is, in its own units.
const CHART_HEIGHT: i64 = 60;
/// Characters of a sample or a detail that are shown.
const SAMPLE: usize = 400;
const DAY: i64 = 24 * 3600;

#[derive(Template)]
#[template(path = "feed.html")]
struct Page<'a> {
    now: i64,
    nonce: &'a str,
    style: &'static str,
    script: &'static str,
    live: String,
    title: &'a str,
    single: &'a [Part],
}

#[derive(Template)]
#[template(path = "trouble.html")]
struct Trouble<'a> {
    trouble: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "feed_parts.html")]
struct Body<'a> {
    feed: &'a FeedRow,
    class: &'static str,
    since: Option<Time>,
    reason: Option<String>,
    resync: bool,
    lag: Option<Time>,
    next: Time,
    acked: Option<(Time, String)>,
    polled: Time,
    changed: Time,
    items: String,
    tombstones: String,
    failures: String,
    /// Why the mode is what it is, and since when.
    turned: Option<(String, Time)>,
    chart: Chart,
    highest: String,
    /// The day's last moment but the present, and its changes.
    days: Vec<(String, String)>,
    endpoints: Vec<Endpoint<'a>>,
    events: Vec<Event<'a>>,
    findings: Vec<Finding<'a>>,
    /// Reason and records.
    quarantine: Vec<(&'a str, String)>,
}

struct Endpoint<'a> {
    row: &'a EndpointRow,
    class: &'static str,
    since: Option<Time>,
    reason: String,
    belief: &'static str,
    is_push: bool,
    delivered: String,
    missed: String,
    proven: Time,
    last: Time,
}

struct Event<'a> {
    at: Time,
    what: &'a str,
    detail: String,
}

struct Finding<'a> {
    rule: &'a str,
    sample: String,
    count: String,
    first: Time,
    last: Time,
}

/// The page.
///
/// # Errors
/// When a template fails, which none does over memory.
pub fn feed(frame: &Frame<'_>, seen: &Feed) -> Result<String, askama::Error> {
    let parts = feed_parts(frame, seen)?;
    let name = seen.status.feeds.first().map_or("", |feed| &feed.name);
    let page = Page {
        now: frame.now.as_millisecond(),
        nonce: frame.nonce,
        style: STYLE,
        script: SCRIPT,
        live: format!("/live?feed={name}"),
        title: &parts.title,
        single: &parts.single,
    };
    page.render()
}

/// What of the page may change.
///
/// # Errors
/// As [`feed`].
pub fn feed_parts(frame: &Frame<'_>, seen: &Feed) -> Result<Parts, askama::Error> {
    let trouble = Trouble { trouble: frame.blocked }.render()?;
    let mut single = vec![Part { id: "trouble".into(), html: trouble }];
    let mut title = String::new();
    for feed in &seen.status.feeds {
        title = format!("{}: {}", feed.name, feed.health);
        single.push(Part { id: "feed".into(), html: body(frame.now, seen, feed).render()? });
    }
    Ok(Parts { title, single, rows: Vec::new() })
}

fn body<'a>(now: Timestamp, seen: &'a Feed, feed: &'a FeedRow) -> Body<'a> {
    let activity = seen.activity.iter().map(|row| (row.hour, row.changes));
    let chart = Chart::new(activity, hour(now.as_millisecond()), WEEK, CHART_HEIGHT);
    let closer = seen.status.closer.first();
    let turned = closer.and_then(|closer| closer.turned.as_ref());
    Body {
        feed,
        class: class(&feed.health),
        since: since(&feed.health, feed.since.as_deref(), now),
        reason: seen.status.reason(feed).map(|reason| plain(&reason)),
        resync: !seen.status.resyncs.iter().all(|resync| resync.feed != feed.name),
        lag: feed.level_at.as_deref().map(|at| Time::new(Some(at), now, Says::Span)),
        next: Time::new(next_poll_at(feed), now, Says::Ahead),
        acked: feed
            .acked_until
            .as_deref()
            .map(|at| (Time::new(Some(at), now, Says::Ahead), plain(feed.ack_note.as_deref().unwrap_or_default()))),
        polled: Time::new(feed.polled_at.as_deref(), now, Says::Ago),
        changed: Time::new(feed.changed_at.as_deref(), now, Says::Ago),
        items: number(feed.items),
        tombstones: number(feed.tombstones),
        failures: number(feed.failures),
        turned: turned.map(|event| (detail(event.detail.as_deref()), Time::new(Some(&event.at), now, Says::Ago))),
        highest: number(chart.highest()),
        days: days(now, &chart),
        chart,
        endpoints: closer.map_or(&[][..], |closer| &closer.endpoints).iter().map(|row| endpoint(row, now)).collect(),
        events: seen.events.iter().rev().map(|row| event(row, now)).collect(),
        findings: seen.findings.iter().map(|row| finding(row, now)).collect(),
        quarantine: seen.quarantine.iter().map(|row| (row.reason.as_str(), number(row.records))).collect(),
    }
}

/// Each day of 24 hours, named by how far it reaches back.
fn days(now: Timestamp, chart: &Chart) -> Vec<(String, String)> {
    let from = |day: i64| {
        let begin = (now.as_second().div_euclid(3600) + 1) * 3600 - (day + 1) * DAY;
        Timestamp::from_second(begin).map_or_else(|_| String::new(), |begin| format!("{begin:.0}"))
    };
    chart.days().into_iter().zip(0..).map(|(changes, day)| (from(day), number(changes))).collect()
}

fn endpoint(row: &EndpointRow, now: Timestamp) -> Endpoint<'_> {
    let is_push = row.transport != "poll";
    let belief = match Push::from_word(&row.push) {
        Some(Push::Proven) => "proven",
        Some(Push::Demoted) => "demoted: it missed items, so the feed is polled until it delivers in time again",
        Some(Push::Unproven) => "unproven: the feed is polled until it has delivered",
        Some(Push::None) | None => "not tried yet",
    };
    Endpoint {
        row,
        class: class(&row.health),
        since: since(&row.health, row.since.as_deref(), now),
        reason: detail(row.reason.as_deref()),
        belief: if is_push { belief } else { "–" },
        is_push,
        delivered: number(row.delivered),
        missed: number(row.missed),
        proven: Time::new(row.proven_at.as_deref(), now, Says::Ago),
        last: Time::new(row.updated_at.as_deref(), now, Says::Ago),
    }
}

fn event(row: &EventRow, now: Timestamp) -> Event<'_> {
    Event { at: Time::new(Some(&row.at), now, Says::Ago), what: &row.what, detail: detail(row.detail.as_deref()) }
}

fn finding(row: &FindingRow, now: Timestamp) -> Finding<'_> {
    Finding {
        rule: &row.rule,
        sample: detail(row.detail.as_deref()),
        count: number(row.count),
        first: Time::new(Some(&row.first_at), now, Says::Ago),
        last: Time::new(Some(&row.last_at), now, Says::Ago),
    }
}

fn since(health: &str, at: Option<&str>, now: Timestamp) -> Option<Time> {
    let at = at.filter(|_| health != Health::Ok.as_str())?;
    Some(Time::new(Some(at), now, Says::Span))
}

fn detail(text: Option<&str>) -> String {
    head(&plain(text.unwrap_or_default()), SAMPLE)
}
