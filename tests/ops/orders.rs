//! From a request to the order that the supervisor gets, and from its answer to the response.

use feedmirror::supervisor::ack::Ack;
use feedmirror::supervisor::control::{ControlError, Order, QuarantineOrder, StubRequest};

use crate::harness::OpsHarness;

#[tokio::test]
async fn each_route_is_one_order() {
    let harness = OpsHarness::with(&["acme"]).await;
    let seek = r#"{"url": "https://acme.example/rpde?afterId=%7B1%7D&afterTimestamp=2"}"#;
    let cases = [
        ("/api/feeds/acme/pause", "", Order::Pause),
        ("/api/feeds/acme/resume", "{}", Order::Resume),
        ("/api/feeds/acme/poll-now", "", Order::PollNow),
        ("/api/feeds/acme/purge", "", Order::Purge),
        ("/api/feeds/acme/resync", "", Order::Resync { trust_source: false, accept: false }),
        ("/api/feeds/acme/resync", r#"{"trust_source": true}"#, Order::Resync { trust_source: true, accept: false }),
        (
            "/api/feeds/acme/resync",
            r#"{"trust_source": true, "accept": true}"#,
            Order::Resync { trust_source: true, accept: true },
        ),
        ("/api/feeds/acme/resync", r#"{"accept": true}"#, Order::AcceptSweep),
        (
            "/api/feeds/acme/seek",
            seek,
            Order::Seek("https://acme.example/rpde?afterId=%7B1%7D&afterTimestamp=2".into()),
        ),
        ("/api/feeds/acme/ack", r#"{"clear": true}"#, Order::Ack(None)),
        (
            "/api/feeds/acme/ack",
            r#"{"until": "2100-01-01T00:00:00Z", "note": "they know"}"#,
            Order::Ack(Some(Ack { until: 4_102_444_800_000, note: Some("they know".into()) })),
        ),
    ];
    for (path, body, order) in cases {
        let (status, text) = harness.post_order(path, body).await;
        assert_eq!(status, 200, "{path} {body}: {text}");
        assert_eq!(harness.received_orders().pop(), Some(StubRequest::Feed("acme".into(), order)), "{path} {body}");
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(answer["done"].as_str().unwrap().starts_with("did "), "{text}");
    }
    for (verb, order) in [("retry", QuarantineOrder::Retry), ("drop", QuarantineOrder::Drop)] {
        assert_eq!(harness.post_order(&format!("/api/quarantine/7/{verb}"), "").await.0, 200);
        assert_eq!(harness.received_orders().pop(), Some(StubRequest::Quarantine(7, order)));
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_named_and_asks_for_nothing() {
    let harness = OpsHarness::with(&["acme"]).await;
    let long = format!("{{\"x\": \"{}\"}}", "x".repeat(70_000));
    let cases = [
        ("/api/feeds/acme/resync", r#"{"trust": true}"#, 400, "trust"),
        ("/api/feeds/acme/resync", r#"{"trust_source": "yes"}"#, 400, "trust_source"),
        ("/api/feeds/acme/pause", r#"{"accept": true}"#, 400, "accept"),
        ("/api/feeds/acme/pause", "not JSON", 400, "JSON"),
        ("/api/feeds/acme/pause", "[]", 400, "object"),
        ("/api/feeds/acme/pause", &long, 413, "65536"),
        ("/api/feeds/acme/seek", "", 400, "url"),
        ("/api/feeds/acme/seek", r#"{"url": 3}"#, 400, "url"),
        ("/api/feeds/acme/seek", r#"{"url": "/relative"}"#, 400, "url"),
        ("/api/feeds/acme/seek", r#"{"url": "file:///etc/passwd"}"#, 400, "http"),
        ("/api/feeds/acme/ack", r#"{"until": "tomorrow"}"#, 400, "until"),
        ("/api/feeds/acme/ack", r#"{"until": "2020-01-01T00:00:00Z"}"#, 400, "ahead"),
        ("/api/feeds/acme/ack", r#"{"note": 3}"#, 400, "note"),
        ("/api/feeds/acme/ack", r#"{"clear": true, "note": "x"}"#, 400, "clear"),
        ("/api/feeds/acme/explode", "", 404, "pause"),
        ("/api/quarantine/7/explode", "", 404, "retry"),
        ("/api/quarantine/x/drop", "", 404, "x"),
        ("/api/nothing", "", 404, "nothing"),
        ("/api/feeds", "", 405, "method"),
    ];
    for (path, body, status, word) in cases {
        let (answered_status, text) = harness.post_order(path, body).await;
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
        assert_eq!(answered_status, status, "{path}: {text}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{path}: {text}");
    }
    assert_eq!(harness.received_orders(), []);
}

#[tokio::test]
async fn the_supervisor_s_refusal_is_the_answer() {
    let answer = |request: &StubRequest| match request {
        StubRequest::Feed(name, _) if name == "acme" => Err(ControlError::Refused("acme is \"busy\"".into())),
        StubRequest::Feed(name, _) => Err(ControlError::Unknown(format!("there is no feed {name}"))),
        _ => Err(ControlError::Stopping),
    };
    let harness = OpsHarness::listening("127.0.0.1:0", &["acme"], answer).await;
    for (feed, status, words) in [("acme", 409, "acme is \"busy\""), ("nope", 404, "there is no feed nope")] {
        let (answered_status, text) = harness.post_order(&format!("/api/feeds/{feed}/pause"), "").await;
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((answered_status, &answer["error"]), (status, &words.into()), "{text}");
    }
    assert_eq!(harness.post_order("/api/quarantine/1/drop", "").await.0, 503);
}
