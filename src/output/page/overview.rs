//! The overview page: a summary, a row for each feed, those that need attention first, and the mirror's own state.

use std::cmp::Reverse;

use askama::Template;
use jiff::Timestamp;

use super::chart::{Chart, hour};
use super::elements::{PageElement, PageElements};
use super::filter::FeedFilter;
use super::page_data::{DAY_HOURS, OverviewData};
use super::time::{TimeForm, TimeText};
use super::{PageContext, SCRIPT, STYLE, class};
use crate::feed::{Health, PushTrust};
use crate::output::format::{counted, number, plain};
use crate::output::status::{attention, next_poll_at};
use crate::output::storage_stats::{StorageStats, size};
use crate::store::read::{FeedRow, MirrorRow};

/// How tall a row's chart is, in its own units.
const CHART_HEIGHT: i64 = 24;

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage<'a> {
    now: i64,
    nonce: &'a str,
    style: &'static str,
    script: &'static str,
    live: &'static str,
    title: &'a str,
    search: &'a str,
    shown: String,
    single: &'a [PageElement],
    rows: &'a [PageElement],
}

#[derive(Template)]
#[template(path = "summary.html")]
struct SummaryBanner<'a> {
    trouble: Option<&'a str>,
    words: Option<String>,
    /// Health, class, feeds; in the order of the rows.
    counts: Vec<(&'static str, &'static str, String)>,
}

#[derive(Template)]
#[template(path = "row.html")]
struct OverviewRow<'a> {
    feed: &'a FeedRow,
    provider: &'a str,
    hidden: bool,
    class: &'static str,
    since: Option<TimeText>,
    reason: String,
    push: Option<&'a str>,
    items: String,
    tombstones: Option<String>,
    quarantined: Option<String>,
    chart: Chart,
    changes: String,
    lag: Option<TimeText>,
    next: TimeText,
}

#[derive(Template)]
#[template(path = "vitals.html")]
struct StoragePanel<'a> {
    mirror: Option<&'a MirrorRow>,
    seq: String,
    up: TimeText,
    /// Name and value.
    sizes: Vec<(&'static str, String)>,
}

/// Renders the page. `data` is what the file holds, or why it can't be read; `search` is the text that the feeds are
/// searched for.
///
/// # Errors
/// When a template fails, which none does when it writes to memory.
pub fn overview(
    context: &PageContext<'_>,
    data: Result<&OverviewData, &str>,
    storage: &StorageStats,
    search: &str,
) -> Result<String, askama::Error> {
    let (elements, shown) = elements(context, data, storage, &FeedFilter::new(search))?;
    let of = format!("{shown} of {}", counted(count(elements.rows.len()), "feed"));
    let page = OverviewPage {
        now: context.now.as_millisecond(),
        nonce: context.nonce,
        style: STYLE,
        script: SCRIPT,
        live: "/live",
        title: &elements.title,
        search,
        shown: if search.trim().is_empty() { String::new() } else { of },
        single: &elements.single,
        rows: &elements.rows,
    };
    page.render()
}

/// The elements of the page that may change; every row is shown.
///
/// # Errors
/// As [`overview`].
pub fn overview_elements(
    context: &PageContext<'_>,
    data: Result<&OverviewData, &str>,
    storage: &StorageStats,
) -> Result<PageElements, askama::Error> {
    Ok(elements(context, data, storage, &FeedFilter::default())?.0)
}

/// The elements, and the number of rows that the filter shows.
fn elements(
    context: &PageContext<'_>,
    data: Result<&OverviewData, &str>,
    storage: &StorageStats,
    filter: &FeedFilter,
) -> Result<(PageElements, usize), askama::Error> {
    let trouble = context.blocked.or(data.err());
    let data = data.ok();
    let mut rows = Vec::new();
    let mut shown = 0;
    for feed in data.map(|data| data.status.by_attention()).unwrap_or_default() {
        let row = row(context.now, data, feed, filter);
        shown += usize::from(!row.hidden);
        rows.push(PageElement { id: format!("feed-{}", feed.name), html: row.render()? });
    }
    let single = vec![
        PageElement { id: "summary".into(), html: summary(trouble, data).render()? },
        PageElement { id: "vitals".into(), html: storage_panel(context.now, data, storage).render()? },
    ];
    Ok((PageElements { title: title(trouble, data), single, rows }, shown))
}

fn summary<'a>(trouble: Option<&'a str>, data: Option<&OverviewData>) -> SummaryBanner<'a> {
    let of = |health: &Health| {
        let feeds = &data?.status.feeds;
        let feeds = feeds.iter().filter(|feed| feed.health == health.as_str()).count();
        (feeds > 0).then(|| (health.as_str(), class(health.as_str()), number(count(feeds))))
    };
    let words = |data: &OverviewData| {
        let feeds = counted(count(data.status.feeds.len()), "feed");
        format!("{feeds}, {}", counted(data.status.live_items(), "live item"))
    };
    let mut healths = Health::ALL.to_vec();
    healths.sort_by_key(|health| Reverse(attention(health.as_str(), false)));
    SummaryBanner { trouble, words: data.map(words), counts: healths.iter().filter_map(of).collect() }
}

fn row<'a>(now: Timestamp, data: Option<&'a OverviewData>, feed: &'a FeedRow, filter: &FeedFilter) -> OverviewRow<'a> {
    let reason = data.and_then(|data| data.status.reason(feed)).map(|reason| plain(&reason)).unwrap_or_default();
    let quarantined = data.and_then(|data| data.quarantined.get(&feed.name)).copied().unwrap_or(0);
    let activity = data.and_then(|data| data.activity.get(&feed.name)).map_or(&[][..], Vec::as_slice);
    let chart = Chart::new(activity.iter().copied(), hour(now.as_millisecond()), DAY_HOURS, CHART_HEIGHT);
    let is_ok = feed.health == Health::Ok.as_str();
    OverviewRow {
        feed,
        provider: feed.provider.as_deref().unwrap_or_default(),
        hidden: !filter.shows(feed, &reason),
        class: class(&feed.health),
        since: feed.since.as_deref().filter(|_| !is_ok).map(|since| TimeText::new(Some(since), now, TimeForm::Span)),
        reason,
        push: Some(feed.push.as_str()).filter(|push| *push != PushTrust::None.as_str()),
        items: number(feed.items),
        tombstones: (feed.tombstones > 0).then(|| counted(feed.tombstones, "tombstone")),
        quarantined: (quarantined > 0).then(|| number(quarantined)),
        changes: number(chart.sum()),
        chart,
        lag: feed.level_at.as_deref().map(|level_at| TimeText::new(Some(level_at), now, TimeForm::Span)),
        next: TimeText::new(next_poll_at(feed), now, TimeForm::Ahead),
    }
}

fn storage_panel<'a>(now: Timestamp, data: Option<&'a OverviewData>, storage: &StorageStats) -> StoragePanel<'a> {
    let mirror = data.map(|data| &data.status.mirror);
    let bytes = [
        ("Database", storage.database_bytes),
        ("Write-ahead log", storage.wal_bytes),
        ("Free on its disk", storage.free_bytes),
    ];
    let mut sizes: Vec<(&str, String)> = bytes.into_iter().filter_map(|(what, b)| Some((what, size(b?)))).collect();
    if let Some(commits) = storage.commits {
        sizes.push(("Commits", number(i64::try_from(commits).unwrap_or(i64::MAX))));
    }
    for (what, time) in [("Half of them within", storage.commit_p50), ("99 of 100 within", storage.commit_p99)] {
        if let Some(time) = time {
            sizes.push((what, format!("{:.1} ms", time.as_secs_f64() * 1000.0)));
        }
    }
    StoragePanel {
        mirror,
        seq: number(mirror.map_or(0, |mirror| mirror.seq)),
        up: TimeText::new(mirror.and_then(|mirror| mirror.started_at.as_deref()), now, TimeForm::Span),
        sizes,
    }
}

fn title(trouble: Option<&str>, data: Option<&OverviewData>) -> String {
    let feeds = data.map_or(&[][..], |data| &data.status.feeds);
    let wrong = feeds.iter().filter(|feed| feed.health != Health::Ok.as_str()).count();
    match (trouble, wrong) {
        (Some(_), _) => "not ready".to_owned(),
        (None, 0) => "all well".to_owned(),
        (None, wrong) => format!("{wrong} of {} not ok", counted(count(feeds.len()), "feed")),
    }
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
