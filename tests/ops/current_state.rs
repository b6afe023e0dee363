//! What the listener shows of the present state: page, health, metrics, feeds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmirror::supervisor::control::Control;

use crate::harness::{MirrorFixture, OpsHarness};

const HOSTILE: &str = "timeout: <script>alert(\"1\")</script> & 'more'";

#[tokio::test]
async fn the_page_takes_hostile_words_as_text_and_stands_alone() {
    let harness = OpsHarness::with(&["acme", "well"]).await;
    harness.file.set_retrying("acme", HOSTILE).await;
    harness.file.level("well").await;
    harness.file.write("well", &[("1", 1, Some("{}")), ("2", 1, None)]).await;

    let response = harness.get("/").send().await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let page = response.text().await.unwrap();

    assert!(
        page.contains("timeout: &#60;script&#62;alert(&#34;1&#34;)&#60;/script&#62; &#38; &#39;more&#39;"),
        "{page}"
    );
    assert!(page.contains("https://acme.example/&#34;&#62;&#60;img src=x onerror=alert(1)&#62;"), "{page}");
    assert_eq!(page.matches("<script").count(), 1, "its own alone");
    assert!(!page.contains("<img"), "{page}");
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let nonce = page.split("<script nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(nonce.len() >= 22 && policy.contains(nonce), "{policy}");
    for elsewhere in ["src=\"", "<link", "@import", "url("] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }

    let position = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not in {page}"));
    assert!(position(">acme<") < position(">well<"), "what needs attention comes first");
    position("<caption");
    position("<th scope=\"row\"><a href=\"/feeds/acme\">acme</a>");
    position("2 feeds, 1 live item");
    position("href=\"/?q=health:retrying\">1 retrying</a>");
    position(&harness.file.position());
    position("<small>timeout");
    position(">in ");
    position("data-head=\"Behind\"><time datetime=\"20");
    position("aria-label=\"2 changes in the last 24 hours, at most 2 an hour, 2 in this one\"");
    position("<dt>Database</dt>");
    position("<dt>Free on its disk</dt>");
}

#[tokio::test]
async fn the_page_says_when_nothing_can_be_written() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.ready.send_replace(Some("the disk is <full>".into()));
    assert!(harness.get_text("/").await.1.contains("the disk is &#60;full&#62;"));
}

#[tokio::test]
async fn ready_is_while_the_database_takes_writes() {
    let harness = OpsHarness::with(&["acme"]).await;
    let metric = async || {
        harness
            .get_text("/metrics")
            .await
            .1
            .lines()
            .find(|line| line.starts_with("feedmirror_ready"))
            .map(str::to_owned)
    };
    assert_eq!(harness.get_text("/readyz").await.0, 200);
    assert_eq!(metric().await.as_deref(), Some("feedmirror_ready 1"));

    harness.ready.send_replace(Some("the disk is full".into()));
    let (status, text) = harness.get_text("/readyz").await;
    assert_eq!((status, text.contains("the disk is full")), (503, true), "{text}");
    assert_eq!(metric().await.as_deref(), Some("feedmirror_ready 0"));

    harness.ready.send_replace(None);
    assert_eq!(harness.get_text("/readyz").await.0, 200, "it goes on by itself");
}

#[tokio::test]
async fn a_supervisor_that_is_stuck_is_not_healthy() {
    let harness = OpsHarness::with(&["acme"]).await;
    assert_eq!(harness.get_text("/healthz").await.0, 200);

    let stuck = Control::with_stub(|_| std::future::pending());
    let harness = OpsHarness::serving("127.0.0.1:0", MirrorFixture::with(&["acme"]).await, stuck, Arc::default()).await;
    let begun = Instant::now();
    assert_eq!(harness.get_text("/healthz").await.0, 503);
    assert!(begun.elapsed() >= Duration::from_secs(5), "a slow one has its time: {:?}", begun.elapsed());
    assert_eq!(harness.get_text("/").await.0, 200, "what is stored is shown all the same");
}

#[tokio::test]
async fn metrics_tell_of_the_file_and_of_the_work() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}")), ("2", 1, Some("{}")), ("3", 1, None)]).await;
    harness.file.set_retrying("acme", HOSTILE).await;

    let older = harness.get("/metrics").send().await.unwrap();
    assert_eq!(older.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let older = older.text().await.unwrap();
    assert!(older.contains("\n# TYPE feedmirror_feed_pages_total counter\n") && !older.contains("# EOF"), "{older}");
    let accepted = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let response = harness.get("/metrics").header("accept", accepted).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = response.text().await.unwrap();

    let seq: i64 = harness.file.value("SELECT seq FROM mirror");
    for line in [
        "feedmirror_feed_items{feed=\"acme\"} 2".to_owned(),
        "feedmirror_feed_tombstones{feed=\"acme\"} 1".to_owned(),
        "feedmirror_feed_health{feed=\"acme\",health=\"retrying\"} 1".to_owned(),
        "feedmirror_feed_failures{feed=\"acme\"} 3".to_owned(),
        "feedmirror_feed_quarantine_rows{feed=\"acme\"} 0".to_owned(),
        "feedmirror_feed_pages_total{feed=\"acme\"} 17".to_owned(),
        format!("feedmirror_mirror_seq {seq}"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let bytes = text.lines().find_map(|line| line.strip_prefix("feedmirror_database_bytes ")).unwrap();
    assert!(bytes.parse::<u64>().unwrap() > 0);
}

#[tokio::test]
async fn feeds_are_shown_under_their_sql_names() {
    let harness = OpsHarness::with(&["acme", "well"]).await;
    harness.file.set_retrying("acme", HOSTILE).await;

    let all: serde_json::Value = serde_json::from_str(&harness.get_text("/api/feeds").await.1).unwrap();
    let names: Vec<&str> = all["feeds"].as_array().unwrap().iter().map(|feed| feed["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["acme", "well"]);
    assert_eq!(all["mirror"]["epoch"], harness.file.value::<String>("SELECT epoch FROM mirror"));

    let one: serde_json::Value = serde_json::from_str(&harness.get_text("/api/feeds/acme").await.1).unwrap();
    assert_eq!(one["reason"], HOSTILE);
    assert_eq!(one["endpoints"][0]["transport"], "poll");
    assert_eq!(one["endpoints"].as_array().unwrap().len(), 1);

    let (status, text) = harness.get_text("/api/feeds/nope").await;
    assert_eq!(status, 404);
    assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["error"].as_str().unwrap().contains("nope"));
}
