//! Access to the listener: the Host, the token; and how the listener ends.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::harness::{DEADLINE, OpsHarness, status_and_text};

#[tokio::test]
async fn a_site_whose_name_was_pointed_here_reads_nothing() {
    let harness = OpsHarness::with(&["acme"]).await;
    for path in ["/", "/metrics", "/api/feeds", "/api/items", "/healthz", "/nothing"] {
        let (status, text) = status_and_text(harness.get(path).header("host", "evil.example")).await;
        assert_eq!(status, 403, "{path}");
        assert!(!text.contains("acme"), "{text}");
    }
    assert_eq!(status_and_text(harness.get("/api/feeds").header("host", "localhost:1")).await.0, 200);
}

#[tokio::test]
async fn an_order_without_the_token_is_refused_and_never_reaches_the_supervisor() {
    let harness = OpsHarness::with(&["acme"]).await;
    let pause = || harness.post("/api/feeds/acme/pause");

    assert_eq!(status_and_text(pause()).await.0, 401);
    assert_eq!(status_and_text(pause().bearer_auth("0".repeat(64))).await.0, 401);
    // As a form of another site would send it: no header of its own.
    assert_eq!(status_and_text(pause().header("origin", "https://evil.example").body("a=b")).await.0, 401);
    let response = pause().send().await.unwrap();
    assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    assert_eq!(harness.received_orders(), []);

    assert_eq!(status_and_text(pause().bearer_auth(&harness.token)).await.0, 200);
    assert_eq!(harness.received_orders().len(), 1);
}

#[tokio::test]
async fn wrong_tokens_are_answered_ever_more_slowly_and_the_right_one_at_once() {
    let harness = OpsHarness::with(&["acme"]).await;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let begun = Instant::now();
        assert_eq!(status_and_text(harness.post("/api/feeds/acme/pause").bearer_auth("wrong")).await.0, 401);
        waits.push(begun.elapsed());
    }
    // 200, 400 and 800 ms after five that are free.
    assert!(waits[5] >= Duration::from_millis(200) && waits[7] >= Duration::from_millis(800), "{waits:?}");
    let begun = Instant::now();
    assert_eq!(status_and_text(harness.post("/api/feeds/acme/pause").bearer_auth(&harness.token)).await.0, 200);
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn off_loopback_reading_needs_the_token_too() {
    let harness = OpsHarness::listening("0.0.0.0:0", &["acme"], |_| Ok(String::new())).await;
    for path in ["/", "/metrics", "/api/feeds", "/api/feeds/acme", "/api/items", "/api/changes"] {
        assert_eq!(harness.get_text(path).await.0, 401, "{path}");
        assert_eq!(status_and_text(harness.get(path).bearer_auth(&harness.token)).await.0, 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(harness.get_text(path).await.0, 200, "{path}");
        assert_eq!(status_and_text(harness.get(path).header("host", "evil.example")).await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn the_listener_ends_soon_though_a_client_follows() {
    let harness = OpsHarness::with(&["acme"]).await;
    let mut following = harness.get("/api/changes").header("accept", "text/event-stream").send().await.unwrap();
    assert!(timeout(DEADLINE, following.chunk()).await.unwrap().unwrap().is_some());

    let begun = Instant::now();
    harness.shutdown.cancel();

    timeout(DEADLINE, harness.serving).await.unwrap().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let end = async { while following.chunk().await.unwrap().is_some() {} };
    timeout(DEADLINE, end).await.expect("the stream ends, and ends well");
}
