//! Pages made from rows that the test constructs.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::*;
use crate::output::status::Status;
use crate::output::storage_stats::StorageStats;
use crate::store::read::{FeedRow, MirrorRow, ResyncRow};

const HOSTILE: &str = "timeout: <script>alert(\"1\")</script> & 'more' \u{202e}";
const ESCAPED: &str = "timeout: &#60;script&#62;alert(&#34;1&#34;)&#60;/script&#62; &#38; &#39;more&#39; \u{fffd}";

fn row(name: &str, health: &str, reason: Option<&str>) -> FeedRow {
    FeedRow {
        name: name.into(),
        provider: Some("Acme \"<b>\"".into()),
        url: "https://acme.example/\"><img src=x>".into(),
        mode: "poll".into(),
        health: health.into(),
        reason: reason.map(str::to_owned),
        since: Some("2026-01-01T00:00:00.000Z".into()),
        cursor: Some("https://acme.example/?a=1&b=<2>".into()),
        items: 1234,
        tombstones: 1,
        level_at: Some("2026-01-01T00:00:00.000Z".into()),
        polled_at: None,
        changed_at: None,
        next_poll_at: Some("2026-01-01T01:00:08.000Z".into()),
        failures: 3,
        push: "none".into(),
        license: Some("<cc>".into()),
        publisher: None,
        dataset_url: None,
        total_items: None,
        acked_until: None,
        ack_note: None,
        bytes: 0,
    }
}

fn status(feeds: Vec<FeedRow>) -> Status {
    let mirror = MirrorRow {
        epoch: "e1".into(),
        seq: 42,
        version: "0.1.0".into(),
        started_at: None,
        ops_address: None,
        webhooks_address: None,
    };
    Status { mirror, feeds, loads: Vec::new(), resyncs: Vec::new(), orders: Vec::new(), details: Vec::new() }
}

fn glance(feeds: Vec<FeedRow>) -> OverviewData {
    OverviewData { status: status(feeds), activity: HashMap::new(), quarantined: HashMap::new() }
}

fn context() -> PageContext<'static> {
    PageContext { now: "2026-01-01T01:00:00Z".parse().unwrap(), nonce: "a-word", blocked: None }
}

fn page(data: &OverviewData, search: &str) -> String {
    overview(&context(), Ok(data), &StorageStats::default(), search).unwrap()
}

#[test]
fn a_health_of_a_later_version_looks_bad() {
    assert_eq!(class("ok"), "good");
    assert_eq!(class("a-health-of-a-later-version"), "bad");
}

#[test]
fn a_file_that_cannot_be_read_is_said() {
    let page = overview(&context(), Err("the file is <gone>"), &StorageStats::default(), "").unwrap();
    assert!(page.contains("not ready</strong> the file is &#60;gone&#62;"), "{page}");
    assert!(page.contains("<title>not ready"));
}

#[test]
fn what_needs_attention_most_stands_first() {
    let feeds = [("a", "ok"), ("b", "paused"), ("c", "retrying"), ("d", "failed"), ("e", "suspect"), ("f", "later")];
    let page = page(&glance(feeds.into_iter().map(|(name, health)| row(name, health, None)).collect()), "");
    let position = |name: &str| page.find(&format!("id=\"feed-{name}\"")).unwrap();
    let mut order = ["a", "b", "c", "d", "e", "f"];
    order.sort_by_key(|name| position(name));
    assert_eq!(order, ["d", "f", "e", "c", "b", "a"]);
}

#[test]
fn hostile_words_are_text_on_every_page() {
    let data = glance(vec![row("a", "retrying", Some(HOSTILE))]);
    let mut status = data.status.clone();
    status.feeds[0].acked_until = Some("2026-01-02T00:00:00.000Z".into());
    status.feeds[0].ack_note = Some(HOSTILE.into());
    status.feeds[0].publisher = Some("<img src=x>".into());
    let whole =
        FeedPageData { status, activity: Vec::new(), events: Vec::new(), findings: Vec::new(), quarantine: Vec::new() };
    let pages = [page(&data, "\"><script>"), page(&data, ""), feed(&context(), &whole).unwrap()];
    for page in &pages {
        assert!(!page.contains("<img") && !page.contains("<b>") && !page.contains("<cc>"), "{page}");
        assert_eq!(page.matches("<script").count(), 1, "its own alone: {page}");
    }
    assert!(pages[1].contains(ESCAPED), "{}", pages[1]);
    assert_eq!(pages[2].matches(ESCAPED).count(), 2, "as its reason and as what was said of its ack: {}", pages[2]);
    assert!(pages[2].contains("<dt>Alerts</dt><dd>silenced, to end "), "{}", pages[2]);
    let login = login("n", "\"><script>", true).unwrap();
    assert!(!login.contains("<script") && login.contains("role=\"alert\""), "{login}");
}

#[test]
fn a_search_hides_what_it_does_not_find_without_any_script() {
    let feeds = vec![row("acme", "ok", None), row("bad", "failed", Some("tls: expired")), row("c", "retrying", None)];
    let data = glance(feeds);
    let found = |search: &str| {
        let page = page(&data, search);
        let rows = page.split("<tr id=\"feed-").skip(1);
        let shown = rows.filter(|row| !row.split('>').next().unwrap().contains(" hidden"));
        shown.map(|row| row.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found(""), ["bad", "c", "acme"]);
    assert_eq!(found("health:failed"), ["bad"]);
    assert_eq!(found("EXPIRED"), ["bad"]);
    assert_eq!(found("mode:poll tls"), ["bad"]);
    assert_eq!(found("health:fail"), [""; 0]);
    assert!(page(&data, "health:failed").contains("1 of 3 feeds"));
}

#[test]
fn a_feed_s_page_tells_of_a_resync_and_why_it_is_as_it_is() {
    let mut status = status(vec![row("a", "ok", None)]);
    status.resyncs.push(ResyncRow {
        feed: "a".into(),
        stage: "walk".into(),
        cursor: String::new(),
        trust_source: false,
        started_at: "2026-01-01T00:30:00.000Z".into(),
        unseen: None,
        live: None,
    });
    let rest = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let data = FeedPageData { status, activity: rest.0, events: rest.1, findings: rest.2, quarantine: rest.3 };
    let page = feed(&context(), &data).unwrap();
    assert!(page.contains("resync: reading the feed anew, since 2026-01-01T00:30:00.000Z"), "{page}");
    assert!(page.contains("<dt>Resync</dt><dd>under way</dd>"));
    assert!(page.contains("data-live=\"/live?feed=a\""));
    assert!(page.contains("There were none."));
}
