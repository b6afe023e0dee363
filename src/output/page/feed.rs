//! One feed's page: its health and why, how much it changes, its endpoints and their push trust, its events and
//! findings.

use askama::Template;
use jiff::Timestamp;

use super::chart::{Chart, hour};
use super::elements::{PageElement, PageElements};
use super::page_data::{FeedPageData, WEEK_HOURS};
use super::time::{TimeForm, TimeText};
use super::{PageContext, SCRIPT, STYLE, class};
use crate::feed::{Health, PushTrust};
use crate::output::format::{head, number, plain};
use crate::output::status::next_poll_at;
use crate::store::read::{EndpointRow, EventRow, FeedRow, FindingRow};

/// How tall the chart is, in its own units.
const CHART_HEIGHT: i64 = 60;
/// Characters of a sample or a detail that are shown.
const MAX_SAMPLE_CHARS: usize = 400;
const DAY_SECONDS: i64 = 24 * 3600;

#[derive(Template)]
#[template(path = "feed.html")]
struct FeedPage<'a> {
    now: i64,
    nonce: &'a str,
    style: &'static str,
    script: &'static str,
    live: String,
    title: &'a str,
    single: &'a [PageElement],
}

#[derive(Template)]
#[template(path = "trouble.html")]
struct TroubleBanner<'a> {
    trouble: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "feed_parts.html")]
struct FeedBody<'a> {
    feed: &'a FeedRow,
    class: &'static str,
    since: Option<TimeText>,
    reason: Option<String>,
    resync: bool,
    lag: Option<TimeText>,
    next: TimeText,
    acked: Option<(TimeText, String)>,
    polled: TimeText,
    changed: TimeText,
    items: String,
    tombstones: String,
    failures: String,
    /// Why the mode is what it is, and since when.
    turned: Option<(String, TimeText)>,
    chart: Chart,
    highest: String,
    /// For each day, the time at which it begins, and its changes.
    days: Vec<(String, String)>,
    endpoints: Vec<EndpointView<'a>>,
    events: Vec<EventView<'a>>,
    findings: Vec<FindingView<'a>>,
    /// Reason and records.
    quarantine: Vec<(&'a str, String)>,
}

struct EndpointView<'a> {
    row: &'a EndpointRow,
    class: &'static str,
    since: Option<TimeText>,
    reason: String,
    belief: &'static str,
    is_push: bool,
    delivered: String,
    missed: String,
    proven: TimeText,
    last: TimeText,
}

struct EventView<'a> {
    at: TimeText,
    what: &'a str,
    detail: String,
}

struct FindingView<'a> {
    rule: &'a str,
    sample: String,
    count: String,
    first: TimeText,
    last: TimeText,
}

/// Renders the feed's page.
///
/// # Errors
/// When a template fails, which none does when it writes to memory.
pub fn feed(context: &PageContext<'_>, data: &FeedPageData) -> Result<String, askama::Error> {
    let elements = feed_elements(context, data)?;
    let name = data.status.feeds.first().map_or("", |feed| &feed.name);
    let page = FeedPage {
        now: context.now.as_millisecond(),
        nonce: context.nonce,
        style: STYLE,
        script: SCRIPT,
        live: format!("/live?feed={name}"),
        title: &elements.title,
        single: &elements.single,
    };
    page.render()
}

/// The elements of the page that may change.
///
/// # Errors
/// As [`feed`].
pub fn feed_elements(context: &PageContext<'_>, data: &FeedPageData) -> Result<PageElements, askama::Error> {
    let trouble = TroubleBanner { trouble: context.blocked }.render()?;
    let mut single = vec![PageElement { id: "trouble".into(), html: trouble }];
    let mut title = String::new();
    for feed in &data.status.feeds {
        title = format!("{}: {}", feed.name, feed.health);
        single.push(PageElement { id: "feed".into(), html: body(context.now, data, feed).render()? });
    }
    Ok(PageElements { title, single, rows: Vec::new() })
}

fn body<'a>(now: Timestamp, data: &'a FeedPageData, feed: &'a FeedRow) -> FeedBody<'a> {
    let activity = data.activity.iter().map(|row| (row.hour, row.changes));
    let chart = Chart::new(activity, hour(now.as_millisecond()), WEEK_HOURS, CHART_HEIGHT);
    let detail_row = data.status.details.first();
    let mode_change = detail_row.and_then(|detail_row| detail_row.mode_change.as_ref());
    FeedBody {
        feed,
        class: class(&feed.health),
        since: since(&feed.health, feed.since.as_deref(), now),
        reason: data.status.reason(feed).map(|reason| plain(&reason)),
        resync: !data.status.resyncs.iter().all(|resync| resync.feed != feed.name),
        lag: feed.level_at.as_deref().map(|at| TimeText::new(Some(at), now, TimeForm::Span)),
        next: TimeText::new(next_poll_at(feed), now, TimeForm::Ahead),
        acked: feed.acked_until.as_deref().map(|at| {
            (TimeText::new(Some(at), now, TimeForm::Ahead), plain(feed.ack_note.as_deref().unwrap_or_default()))
        }),
        polled: TimeText::new(feed.polled_at.as_deref(), now, TimeForm::Ago),
        changed: TimeText::new(feed.changed_at.as_deref(), now, TimeForm::Ago),
        items: number(feed.items),
        tombstones: number(feed.tombstones),
        failures: number(feed.failures),
        turned: mode_change
            .map(|event| (detail(event.detail.as_deref()), TimeText::new(Some(&event.at), now, TimeForm::Ago))),
        highest: number(chart.highest()),
        days: days(now, &chart),
        chart,
        endpoints: detail_row
            .map_or(&[][..], |detail_row| &detail_row.endpoints)
            .iter()
            .map(|row| endpoint(row, now))
            .collect(),
        events: data.events.iter().rev().map(|row| event(row, now)).collect(),
        findings: data.findings.iter().map(|row| finding(row, now)).collect(),
        quarantine: data.quarantine.iter().map(|row| (row.reason.as_str(), number(row.records))).collect(),
    }
}

/// Each day of 24 hours, named by the time at which it begins.
fn days(now: Timestamp, chart: &Chart) -> Vec<(String, String)> {
    let from = |day: i64| {
        let begin = (now.as_second().div_euclid(3600) + 1) * 3600 - (day + 1) * DAY_SECONDS;
        Timestamp::from_second(begin).map_or_else(|_| String::new(), |begin| format!("{begin:.0}"))
    };
    chart.days().into_iter().zip(0..).map(|(changes, day)| (from(day), number(changes))).collect()
}

fn endpoint(row: &EndpointRow, now: Timestamp) -> EndpointView<'_> {
    let is_push = row.transport != "poll";
    let belief = match PushTrust::from_word(&row.push) {
        Some(PushTrust::Proven) => "proven",
        Some(PushTrust::Demoted) => "demoted: it missed items, so the feed is polled until it delivers in time again",
        Some(PushTrust::Unproven) => "unproven: the feed is polled until it has delivered",
        Some(PushTrust::None) | None => "not tried yet",
    };
    EndpointView {
        row,
        class: class(&row.health),
        since: since(&row.health, row.since.as_deref(), now),
        reason: detail(row.reason.as_deref()),
        belief: if is_push { belief } else { "–" },
        is_push,
        delivered: number(row.delivered),
        missed: number(row.missed),
        proven: TimeText::new(row.proven_at.as_deref(), now, TimeForm::Ago),
        last: TimeText::new(row.updated_at.as_deref(), now, TimeForm::Ago),
    }
}

fn event(row: &EventRow, now: Timestamp) -> EventView<'_> {
    EventView {
        at: TimeText::new(Some(&row.at), now, TimeForm::Ago),
        what: &row.what,
        detail: detail(row.detail.as_deref()),
    }
}

fn finding(row: &FindingRow, now: Timestamp) -> FindingView<'_> {
    FindingView {
        rule: &row.rule,
        sample: detail(row.detail.as_deref()),
        count: number(row.count),
        first: TimeText::new(Some(&row.first_at), now, TimeForm::Ago),
        last: TimeText::new(Some(&row.last_at), now, TimeForm::Ago),
    }
}

fn since(health: &str, at: Option<&str>, now: Timestamp) -> Option<TimeText> {
    let at = at.filter(|_| health != Health::Ok.as_str())?;
    Some(TimeText::new(Some(at), now, TimeForm::Span))
}

fn detail(text: Option<&str>) -> String {
    head(&plain(text.unwrap_or_default()), MAX_SAMPLE_CHARS)
}
