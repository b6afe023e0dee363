//! Who is let in: the Host, the token, and how a listener ends.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::bench::{Bench, DEADLINE, told};

#[tokio::test]
async fn a_site_whose_name_was_pointed_here_reads_nothing() {
    let bench = Bench::with(&["acme"]).await;
    for path in ["/", "/metrics", "/api/feeds", "/api/items", "/healthz", "/nothing"] {
        let (status, text) = told(bench.get(path).header("host", "evil.example")).await;
        assert_eq!(status, 403, "{path}");
        assert!(!text.contains("acme"), "{text}");
    }
    assert_eq!(told(bench.get("/api/feeds").header("host", "localhost:1")).await.0, 200);
}

#[tokio::test]
async fn an_order_without_the_token_is_refused_and_never_reaches_the_supervisor() {
    let bench = Bench::with(&["acme"]).await;
    let pause = || bench.post("/api/feeds/acme/pause");

    assert_eq!(told(pause()).await.0, 401);
    assert_eq!(told(pause().bearer_auth("0".repeat(64))).await.0, 401);
    // As a form of another site would send it: no header of its own.
    assert_eq!(told(pause().header("origin", "https://evil.example").body("a=b")).await.0, 401);
    let refused = pause().send().await.unwrap();
    assert!(refused.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    assert_eq!(bench.asked(), []);

    assert_eq!(told(pause().bearer_auth(&bench.token)).await.0, 200);
    assert_eq!(bench.asked().len(), 1);
}

#[tokio::test]
async fn wrong_tokens_are_answered_ever_more_slowly_and_the_right_one_at_once() {
    let bench = Bench::with(&["acme"]).await;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let begun = Instant::now();
        assert_eq!(told(bench.post("/api/feeds/acme/pause").bearer_auth("wrong")).await.0, 401);
        waits.push(begun.elapsed());
    }
    // 200, 400 and 800 ms after five that are free.
    assert!(waits[5] >= Duration::from_millis(200) && waits[7] >= Duration::from_millis(800), "{waits:?}");
    let begun = Instant::now();
    assert_eq!(told(bench.post("/api/feeds/acme/pause").bearer_auth(&bench.token)).await.0, 200);
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn off_loopback_reading_needs_the_token_too() {
    let bench = Bench::listening("0.0.0.0:0", &["acme"], |_| Ok(String::new())).await;
    for path in ["/", "/metrics", "/api/feeds", "/api/feeds/acme", "/api/items", "/api/changes"] {
        assert_eq!(bench.got(path).await.0, 401, "{path}");
        assert_eq!(told(bench.get(path).bearer_auth(&bench.token)).await.0, 200, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(bench.got(path).await.0, 200, "{path}");
        assert_eq!(told(bench.get(path).header("host", "evil.example")).await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn the_listener_ends_soon_though_a_client_follows() {
    let bench = Bench::with(&["acme"]).await;
    let mut following = bench.get("/api/changes").header("accept", "text/event-stream").send().await.unwrap();
    assert!(timeout(DEADLINE, following.chunk()).await.unwrap().unwrap().is_some());

    let begun = Instant::now();
    bench.shutdown.cancel();

    timeout(DEADLINE, bench.serving).await.unwrap().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let end = async { while following.chunk().await.unwrap().is_some() {} };
    timeout(DEADLINE, end).await.expect("the stream ends, and ends well");
}
