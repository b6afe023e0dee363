//! Lists of events, findings and refusals, single items and records, and the HTTP behaviour around them.

use feedmirror::store::now;
use serde_json::{Value, json};

use crate::harness::{OpsHarness, lines, status_and_text};

/// One member of each line.
fn each(text: &str, member: &str) -> Vec<Value> {
    lines(text).iter().map(|line| line[member].clone()).collect()
}

#[tokio::test]
async fn items_are_found_by_id_over_feeds_and_kinds() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}")), ("a/b c", 1, Some("{\"n\": 1.50}")), ("2", 1, None)]).await;
    harness.file.write("other", &[("1", 1, None), ("3", 1, Some("{}"))]).await;
    let found = async |query: &str| each(&harness.get_text(&format!("/api/items?{query}")).await.1, "feed");

    assert_eq!(found("id=1").await, ["acme"]);
    assert_eq!(found("id=1&deleted=true").await, ["acme", "other"]);
    assert_eq!(found("id=1&state=deleted").await, ["other"]);
    assert_eq!(found("id=1&deleted=true&feed=other").await, ["other"]);
    assert_eq!(found("id=1&deleted=true&limit=1").await, ["acme"]);
    assert_eq!(found("id=1&kind=Slot").await, [""; 0]);
    assert_eq!(found("id=%27%20OR%201").await, [""; 0]);
    let seq: i64 = harness.file.value("SELECT seq FROM items WHERE feed = 'acme' AND id = '1'");
    assert_eq!(found(&format!("id=1&deleted=true&since={seq}")).await, ["other"]);
}

#[tokio::test]
async fn one_item_is_looked_up_by_its_name() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("a/b c", 7, Some("{\"n\": 1.50}")), ("2", 1, None)]).await;

    let (status, text) = harness.get_text("/api/items/acme/Session/a%2Fb%20c").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("\"data\":{\"n\": 1.50}"), "the publisher's own bytes: {text}");
    assert_eq!(lines(&text)[0]["modified"], 7);
    let (status, text) = harness.get_text("/api/items/acme/Session/2").await;
    assert_eq!((status, &lines(&text)[0]["state"], &lines(&text)[0]["data"]), (200, &json!("deleted"), &Value::Null));
    for missing in ["/api/items/acme/Session/nope", "/api/items/acme/Slot/2", "/api/items/nope/Session/2"] {
        assert_eq!(harness.get_text(missing).await.0, 404, "{missing}");
    }
}

#[tokio::test]
async fn items_page_by_change_number_and_are_refused_from_another_mirror_s() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}")), ("2", 1, None), ("3", 1, Some("{}"))]).await;
    let epoch: String = harness.file.value("SELECT epoch FROM mirror");

    // when a reader pages one by one, each time from the last item's own change number
    let (mut since, mut ids) = (format!("{epoch}:0"), Vec::new());
    loop {
        let page = lines(&harness.get_text(&format!("/api/items?deleted=true&limit=1&since={since}")).await.1);
        let Some(item) = page.first() else { break };
        ids.push(item["id"].as_str().unwrap().to_owned());
        since = format!("{epoch}:{}", item["seq"]);
    }

    assert_eq!(ids, ["1", "2", "3"]);
    let ahead = harness.file.value::<i64>("SELECT seq FROM mirror") + 1;
    for position in ["0000000000000000:1".to_owned(), ahead.to_string(), format!("{epoch}:{ahead}")] {
        for query in [format!("since={position}"), format!("id=1&since={position}")] {
            let (status, text) = harness.get_text(&format!("/api/items?{query}")).await;
            assert_eq!((status, text.contains("read everything again")), (410, true), "{query}: {text}");
        }
    }
    assert_eq!(harness.get_text("/api/items?since=-1").await.0, 400);
    assert_eq!(harness.get_text("/api/items?limit=0").await.0, 400, "an answer of nothing would say nothing");
}

#[tokio::test]
async fn a_state_filters_items_and_changes_but_never_a_purge_and_the_position_moves_on() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}")), ("2", 1, None)]).await;
    harness.file.write("other", &[("3", 1, Some("{}"))]).await;
    assert_eq!(each(&harness.get_text("/api/items?state=deleted").await.1, "id"), ["2"]);
    assert_eq!(each(&harness.get_text("/api/items?state=updated&deleted=true").await.1, "id"), ["1", "3"]);

    harness.file.store().purge(&crate::harness::name("other"), now()).await.unwrap();
    let deleted = harness.get_text("/api/changes?state=deleted").await.1;
    assert_eq!(each(&deleted, "state"), [json!("deleted"), json!("purged"), Value::Null]);
    let position = &lines(&deleted)[2]["last_seq"];
    assert_eq!(position, &json!(harness.file.value::<i64>("SELECT seq FROM mirror")));
    let (status, text) = harness.get_text("/api/changes?state=purged").await;
    assert_eq!((status, text.contains("state")), (400, true), "{text}");
}

#[tokio::test]
async fn quarantine_is_paged_and_shown_whole() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    let raw = format!("{{\"x\":\"{}\"}}", "y".repeat(100_000));
    harness.file.quarantine("acme", &[("no-id", "{\"a\":1}"), ("not-json", "{"), ("no-id", &raw)]).await;
    harness.file.quarantine("other", &[("no-id", "{\"a\":1}")]).await;
    let reasons = async |query: &str| each(&harness.get_text(&format!("/api/quarantine?{query}")).await.1, "id");
    let all = reasons("").await;
    assert_eq!(all.len(), 4);

    assert_eq!(reasons("feed=acme&reason=no-id").await, [all[0].clone(), all[2].clone()]);
    assert_eq!(reasons("reason=no-id&limit=2").await, [all[0].clone(), all[2].clone()]);
    assert_eq!(reasons(&format!("after={}&limit=1", all[0])).await, [all[1].clone()]);
    assert_eq!(reasons(&format!("after={}", all[3])).await, [Value::Null; 0]);
    assert_eq!(harness.get_text("/api/quarantine?feed=nope").await.0, 404);

    let (status, text) = harness.get_text(&format!("/api/quarantine/{}", all[2])).await;
    assert_eq!((status, &lines(&text)[0]["raw"]), (200, &json!(raw)), "whole");
    for missing in ["/api/quarantine/99", "/api/quarantine/x"] {
        assert_eq!(harness.get_text(missing).await.0, 404, "{missing}");
    }
}

#[tokio::test]
async fn a_quarantine_larger_than_a_page_comes_whole_and_in_order() {
    // Given: more than the bytes of two pages
    let harness = OpsHarness::with(&["acme"]).await;
    let raws: Vec<String> = (0..60).map(|n| format!("{n}{}", "x".repeat(200_000))).collect();
    let records: Vec<(&'static str, &str)> = raws.iter().map(|raw| ("not-json", raw.as_str())).collect();
    for some in records.chunks(20) {
        harness.file.quarantine("acme", some).await;
    }
    let text = harness.get_text("/api/quarantine").await.1;
    assert_eq!(each(&text, "raw"), raws);
}

#[tokio::test]
async fn journals_are_the_newest_rows_and_never_without_bound() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    harness.file.write("acme", &[("1", 5, Some("{}"))]).await;
    harness.file.write("acme", &[("1", 4, Some("{}")), ("1", 3, Some("{}"))]).await;
    for n in 0..5 {
        harness
            .file
            .store()
            .record_event(Some(harness.file.feed("other").await.id), now(), "seek", &n.to_string())
            .await
            .unwrap();
    }
    harness.file.record_finding("acme", "bom", "it begins with one").await;

    assert_eq!(each(&harness.get_text("/api/events?feed=other&limit=2").await.1, "detail"), ["3", "4"]);
    assert_eq!(each(&harness.get_text("/api/events?limit=1").await.1, "feed"), ["other"]);
    assert_eq!(each(&harness.get_text("/api/refusals?feed=acme").await.1, "modified"), [4, 3]);
    assert_eq!(each(&harness.get_text("/api/refusals?limit=1").await.1, "modified"), [3]);
    assert_eq!(each(&harness.get_text("/api/findings?feed=acme").await.1, "rule"), ["bom"]);
    assert_eq!(harness.get_text("/api/findings?feed=other").await, (200, String::new()));
    for (path, status) in [
        ("/api/events?limit=10001", 400),
        ("/api/events?limit=0", 400),
        ("/api/events?from=1", 400),
        ("/api/events?feed=nope", 404),
        ("/api/refusals?limit=x", 400),
    ] {
        assert_eq!(harness.get_text(path).await.0, status, "{path}");
    }
}

#[tokio::test]
async fn the_report_stands_by_publisher() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    harness.file.record_finding("acme", "bom", "it begins with one").await;
    harness.file.quarantine("acme", &[("no-id", "{\"a\":1}")]).await;

    let report: Value = serde_json::from_str(&harness.get_text("/api/report").await.1).unwrap();

    let publishers = report["publishers"].as_array().unwrap();
    assert_eq!(publishers.iter().map(|one| &one["publisher"]).collect::<Vec<_>>(), ["acme.example", "other.example"]);
    let rules: Vec<_> = publishers[0]["findings"].as_array().unwrap().iter().map(|one| &one["rule"]).collect();
    assert_eq!(rules, ["no-id", "bom"], "what loses records comes first");
    assert_eq!(publishers[1]["findings"], json!([]));
    let one = harness.get_text("/api/report?provider=acme.example").await.1;
    assert_eq!(one, harness.get_text("/api/report?feed=acme").await.1);
    for route in ["/api/report", "/api/findings"] {
        assert_eq!(harness.get_text(&format!("{route}?provider=acme.example&feed=acme")).await.0, 400);
        assert_eq!(harness.get_text(&format!("{route}?provider=nope")).await.0, 404);
    }
    assert_eq!(each(&harness.get_text("/api/findings?provider=acme.example").await.1, "rule"), ["bom"]);
    assert_eq!(harness.get_text("/api/findings?provider=other.example").await, (200, String::new()));
}

#[tokio::test]
async fn a_problem_says_so_in_the_words_of_the_standard() {
    let harness = OpsHarness::with(&["acme"]).await;
    let response = harness.get("/api/feeds/nope").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    // RFC 9457 §3.1
    assert_eq!((&problem["status"], &problem["title"]), (&json!(404), &json!("Not Found")));
    assert!(problem["detail"].as_str().unwrap().contains("nope"), "{problem}");
    assert_eq!(problem["detail"], problem["error"]);
}

#[tokio::test]
async fn other_methods_are_named_and_other_sites_are_not_let_in() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}"))]).await;
    for path in ["/api/feeds", "/api/items", "/api/changes", "/api/events", "/api/openapi.json"] {
        let head = harness.client.head(harness.url(path)).send().await.unwrap();
        assert_eq!(head.status(), 200, "{path}");
        let media_type = head.headers()["content-type"].clone();
        assert_eq!(head.text().await.unwrap(), "", "{path}");
        let get = harness.get(path).header("origin", "https://evil.example").send().await.unwrap();
        assert_eq!(get.headers()["content-type"], media_type, "{path}");
        assert!(!get.headers().keys().any(|name| name.as_str().starts_with("access-control-")), "{path}");

        let deleted = harness.client.delete(harness.url(path)).bearer_auth(&harness.token).send().await.unwrap();
        assert_eq!(deleted.status(), 405, "{path}");
        let allowed = deleted.headers()["allow"].to_str().unwrap().to_owned();
        assert!(allowed.contains("GET") && allowed.contains("HEAD"), "{path}: {allowed}");
    }
    let preflight = harness.client.request("OPTIONS".parse().unwrap(), harness.url("/api/feeds/acme/pause"));
    assert_eq!(status_and_text(preflight.header("origin", "https://evil.example")).await.0, 401);
}
