//! Feeds as an operator has them: most of them well, some in trouble, with names, words and addresses of any length.

use feedmirror::feed::{Finding, Health};
use feedmirror::store::feeds::Note;
use feedmirror::store::now;
use rusqlite::Connection;

use crate::bench::{Bench, DEADLINE};

pub(crate) const LONG: &str = "http-503: https://a-provider-with-a-long-name.example/api/openactive/v1/feeds/\
    facility-uses-slots?afterTimestamp=638966025666647075&afterId=%7B3f2504e0-4f89-11d3-9a0c-0305e82c3301%7D said \
    <b>Service Unavailable</b> with a body that goes on-and-on-and-on-without-a-place-to-break-a-line-anywhere-at-all";

/// Three feeds that are well, and one each in trouble.
pub(crate) async fn small() -> Bench {
    let bench = Bench::with(&["acme-sessions", "acme-slots", "failed-feed", "late-feed", "odd-feed", "paused"]).await;
    for (feed, count) in [("acme-sessions", 7), ("acme-slots", 3), ("late-feed", 0)] {
        bench.file.level(feed).await;
        for n in 0..count {
            bench.file.write(feed, &[("live", n, Some("{}")), (&n.to_string(), n, None)]).await;
        }
    }
    bench.file.ails("late-feed", LONG).await;
    note(&bench, "failed-feed", Health::Failed, "access-refused: 401 Unauthorized").await;
    note(&bench, "odd-feed", Health::Suspect, "went-back: it says 3, the mirror holds 1700000000000").await;
    note(&bench, "paused", Health::Paused, "paused: by the operator").await;
    let late = bench.file.feed("late-feed").await.id;
    let finding = Finding { rule: "out-of-order", detail: format!("item {}", "9".repeat(300)), count: 12 };
    bench.file.store().finding(late, now(), finding).await.unwrap();
    remember(&bench, "acme-sessions");
    bench
}

/// A week behind it, as the page would have it: busy by day, quiet by night.
fn remember(bench: &Bench, feed: &str) {
    let db = Connection::open(bench.file.path()).unwrap();
    db.busy_timeout(DEADLINE).unwrap();
    db.execute(
        "WITH RECURSIVE ago (h) AS (SELECT 1 UNION ALL SELECT h + 1 FROM ago WHERE h < 167)
         INSERT INTO activity SELECT feed.id, ?2 - h, 1 + abs((?2 - h) % 24 - 12) * 7 + h % 5 FROM ago, feed
         WHERE name = ?1 AND h % 24 > 6",
        (feed, now() / 3_600_000),
    )
    .unwrap();
}

pub(crate) async fn note(bench: &Bench, feed: &str, health: Health, reason: &str) {
    let id = bench.file.feed(feed).await.id;
    let note = Note { health, reason: Some(reason.into()), failures: 1, next_poll_at: Some(now() + 3_600_000) };
    bench.file.store().note(id, now(), note).await.unwrap();
}

/// So many feeds, every 25th of them in trouble.
pub(crate) async fn large(feeds: usize) -> Bench {
    let names: Vec<String> = (0..feeds).map(|n| format!("provider-{:02}.feed-{n:03}", n % 40)).collect();
    let bench = Bench::with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for name in names.iter().step_by(25) {
        bench.file.ails(name, LONG).await;
    }
    bench
}
