//! Feeds as an operator has them: most of them healthy, some failing, with names, texts and URLs of any length.

use feedmirror::feed::{Finding, Health};
use feedmirror::store::feeds::HealthNote;
use feedmirror::store::now;
use rusqlite::Connection;

use crate::harness::{DEADLINE, OpsHarness};

pub(crate) const LONG: &str = "http-503: https://a-provider-with-a-long-name.example/api/openactive/v1/feeds/\
    facility-uses-slots?afterTimestamp=638966025666647075&afterId=%7B3f2504e0-4f89-11d3-9a0c-0305e82c3301%7D said \
    <b>Service Unavailable</b> with a body that goes on-and-on-and-on-without-a-place-to-break-a-line-anywhere-at-all";

/// Healthy feeds, and one each of the other states.
pub(crate) async fn small() -> OpsHarness {
    let harness =
        OpsHarness::with(&["acme-sessions", "acme-slots", "failed-feed", "late-feed", "odd-feed", "paused"]).await;
    for (feed, count) in [("acme-sessions", 7), ("acme-slots", 3), ("late-feed", 0)] {
        harness.file.level(feed).await;
        for n in 0..count {
            harness.file.write(feed, &[("live", n, Some("{}")), (&n.to_string(), n, None)]).await;
        }
    }
    harness.file.set_retrying("late-feed", LONG).await;
    note(&harness, "failed-feed", Health::Failed, "access-refused: 401 Unauthorized").await;
    note(&harness, "odd-feed", Health::Suspect, "went-back: it says 3, the mirror holds 1700000000000").await;
    note(&harness, "paused", Health::Paused, "paused: by the operator").await;
    let late = harness.file.feed("late-feed").await.id;
    let finding = Finding { rule: "out-of-order", detail: format!("item {}", "9".repeat(300)), count: 12 };
    harness.file.store().record_finding(late, now(), finding).await.unwrap();
    add_activity(&harness, "acme-sessions");
    harness
}

/// A week of activity for the page: busy by day, quiet by night.
fn add_activity(harness: &OpsHarness, feed: &str) {
    let db = Connection::open(harness.file.path()).unwrap();
    db.busy_timeout(DEADLINE).unwrap();
    db.execute(
        "WITH RECURSIVE ago (h) AS (SELECT 1 UNION ALL SELECT h + 1 FROM ago WHERE h < 167)
         INSERT INTO activity SELECT feed.id, ?2 - h, 1 + abs((?2 - h) % 24 - 12) * 7 + h % 5 FROM ago, feed
         WHERE name = ?1 AND h % 24 > 6",
        (feed, now() / 3_600_000),
    )
    .unwrap();
}

pub(crate) async fn note(harness: &OpsHarness, feed: &str, health: Health, reason: &str) {
    let id = harness.file.feed(feed).await.id;
    let note = HealthNote { health, reason: Some(reason.into()), failures: 1, next_poll_at: Some(now() + 3_600_000) };
    harness.file.store().record_health(id, now(), note).await.unwrap();
}

/// So many feeds, every 25th of them failing.
pub(crate) async fn large(feeds: usize) -> OpsHarness {
    let names: Vec<String> = (0..feeds).map(|n| format!("provider-{:02}.feed-{n:03}", n % 40)).collect();
    let harness = OpsHarness::with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for name in names.iter().step_by(25) {
        harness.file.set_retrying(name, LONG).await;
    }
    harness
}
