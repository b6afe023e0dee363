//! The real daemon with a real publisher: its responses match the OpenAPI document, and its orders take effect.

use std::time::Duration;

use feedmirror::source::client::plain_client;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, MirrorFixture, lines, status_and_text};
use crate::openapi::checked;
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, deleted, item, page};

/// An item, a tombstone, a record without id, an older version on the second page, and a byte order mark on the first.
fn publisher() -> ScriptedPublisher {
    ScriptedPublisher::start(|request| match request.query() {
        "" => {
            let nameless = r#"{"state":"updated","kind":"thing","modified":7,"data":{}}"#.to_owned();
            let items = [item("a", 5), deleted("b", 6), nameless];
            Reply::page(format!("\u{feff}{}", page(&items, "/feed?from=7&after=b")))
        }
        "from=7&after=b" => Reply::page(page(&[item("a", 4)], "/feed?from=8&after=b")),
        _ => Reply::page(page(&[], "/feed?from=8&after=b")),
    })
}

/// A running daemon, and a client for it.
struct RunningDaemon {
    mirror: MirrorProcess,
    client: reqwest::Client,
    base: String,
    token: String,
    document: Value,
}

impl RunningDaemon {
    async fn polling(publisher: &ScriptedPublisher) -> Self {
        let mirror = MirrorProcess::running("acme", &publisher.url("/feed"));
        mirror.until_level("acme");
        let base = format!("http://{}", mirror.column("SELECT ops_address FROM mirror")[0]);
        let token = std::fs::read_to_string(mirror.path("mirror.db.token")).unwrap().trim().to_owned();
        let client = plain_client(DEADLINE).unwrap();
        let text = status_and_text(client.get(format!("{base}/api/openapi.json"))).await.1;
        Self { mirror, client, base, token, document: serde_json::from_str(&text).unwrap() }
    }

    /// A GET that the document has under `path`; checks that the document describes the response.
    async fn get(&self, url: &str, path: &str) -> (u16, String) {
        self.checked_response(self.client.get(format!("{}{url}", self.base)), path, "get").await
    }

    /// An order to a feed or a record.
    async fn order(&self, url: &str, options: Value) -> (u16, Value) {
        let request = self.client.post(format!("{}{url}", self.base)).bearer_auth(&self.token).json(&options);
        let path =
            if url.starts_with("/api/feeds") { "/api/feeds/{name}/{verb}" } else { "/api/quarantine/{id}/{verb}" };
        let (status, text) = self.checked_response(request, path, "post").await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn checked_response(&self, request: reqwest::RequestBuilder, path: &str, method: &str) -> (u16, String) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let media_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let text = response.text().await.unwrap();
        let operation = &self.document["paths"][path][method];
        checked(&self.document, operation, status, &media_type, &text)
            .unwrap_or_else(|why| panic!("{method} {path}: {status}: {why}\n{text}"));
        (status, text)
    }

    async fn feed(&self, member: &str) -> Value {
        let text = self.get("/api/feeds/acme", "/api/feeds/{name}").await.1;
        serde_json::from_str::<Value>(&text).unwrap()[member].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_answers_what_the_document_says() {
    let publisher = publisher();
    let daemon = RunningDaemon::polling(&publisher).await;
    for path in ["/", "/healthz", "/readyz", "/metrics", "/api/feeds", "/api/openapi.json"] {
        assert_eq!(daemon.get(path, path).await.0, 200, "{path}");
    }
    let each = async |path: &str, member: &str| -> Vec<Value> {
        let (status, text) = daemon.get(path, path.split('?').next().unwrap()).await;
        assert_eq!(status, 200, "{path}");
        lines(&text).iter().map(|line| line[member].clone()).collect()
    };

    assert_eq!(each("/api/items", "id").await, ["a"]);
    assert_eq!(each("/api/items?id=b&state=deleted", "id").await, ["b"]);
    let position = daemon.mirror.column("SELECT epoch FROM mirror")[0].clone();
    let changes = each("/api/changes?data=true", "id").await;
    assert_eq!(changes, [json!("a"), json!("b"), Value::Null], "two changes, and the position");
    assert_eq!(each("/api/changes", "epoch").await.last().unwrap(), &json!(position));
    assert_eq!(each("/api/refusals", "modified").await, [4]);
    assert_eq!(each("/api/quarantine", "reason").await, ["no-id"]);
    assert!(each("/api/findings", "rule").await.contains(&json!("bom")));
    assert!(each("/api/events?limit=10", "what").await.contains(&json!("started")));
    assert_eq!(daemon.get("/api/quarantine/1", "/api/quarantine/{id}").await.0, 200);
    assert_eq!(daemon.get("/api/items/acme/thing/a", "/api/items/{feed}/{kind}/{id}").await.0, 200);
    let report: Value = serde_json::from_str(&daemon.get("/api/report", "/api/report").await.1).unwrap();
    let rules = report["publishers"][0]["findings"].as_array().unwrap().iter().map(|one| one["rule"].as_str().unwrap());
    assert!(["bom", "no-id"].iter().all(|rule| rules.clone().any(|found| found == *rule)), "{report}");
    assert_eq!(daemon.feed("items").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_over_http_do_what_they_say_and_what_can_t_be_done_is_refused_in_words() {
    let publisher = publisher();
    let daemon = RunningDaemon::polling(&publisher).await;
    let feed = |verb: &str| format!("/api/feeds/acme/{verb}");
    let none = || json!({});

    // pause, and a paused feed's refusal
    assert_eq!(daemon.order(&feed("pause"), none()).await.0, 200);
    assert_eq!(daemon.feed("health").await, "paused");
    let (status, problem) = daemon.order(&feed("poll-now"), none()).await;
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("paused")), (409, true), "{problem}");
    assert_eq!(daemon.order(&feed("resume"), none()).await.0, 200);
    daemon.mirror.until_level("acme");

    // poll-now and resync reach the publisher
    let polled = publisher.requests().len();
    assert_eq!(daemon.order(&feed("poll-now"), none()).await.0, 200);
    daemon.mirror.until("asked", |_| publisher.requests().len() > polled);
    assert_eq!(daemon.order(&feed("resync"), json!({ "trust_source": true })).await.0, 200);
    daemon.mirror.until("resynced", |mirror| !mirror.events("acme", "resync-done").is_empty());
    assert_eq!(daemon.order(&feed("resync"), json!({ "accept": true })).await.0, 409, "nothing is held");

    // seek: to a page of the feed's own origin, to no other
    let (status, problem) = daemon.order(&feed("seek"), json!({ "url": "https://evil.example/feed" })).await;
    assert_eq!((status, problem["detail"].as_str().unwrap().contains("evil.example")), (409, true), "{problem}");
    let there = publisher.url("/feed?from=7&after=b");
    let count = || publisher.requests().iter().filter(|request| request.query() == "from=7&after=b").count();
    let counted = count();
    assert_eq!(daemon.order(&feed("seek"), json!({ "url": there })).await.0, 200);
    daemon.mirror.until("asked there", |_| count() > counted);

    // records
    let id = daemon.mirror.number("SELECT max(id) FROM quarantine");
    let record = |verb: &str| format!("/api/quarantine/{id}/{verb}");
    assert_eq!(daemon.order(&record("retry"), none()).await.0, 409, "it still has no id");
    assert_eq!(daemon.order(&record("drop"), none()).await.0, 200);
    assert_eq!(daemon.order(&record("drop"), none()).await.0, 404);
    assert_eq!(daemon.mirror.number("SELECT count(*) FROM quarantine"), 0);

    // purge, which is sent to a client that follows
    let since = daemon.mirror.column("SELECT epoch || ':' || seq FROM mirror")[0].clone();
    let following = daemon.client.get(format!("{}/api/changes?since={since}", daemon.base));
    let mut following = following.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(daemon.order(&feed("purge"), none()).await.0, 200);
    let mut text = String::new();
    let purged = async {
        while !text.contains("\"state\":\"purged\"") {
            text.push_str(std::str::from_utf8(&following.chunk().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, purged).await.expect("the purge is followed");
    assert_eq!(daemon.feed("items").await, 0);
    assert_eq!(daemon.order("/api/feeds/nope/purge", none()).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_a_followed_log_ends_and_a_stop_ends_those_who_follow() {
    let publisher = publisher();
    let mut daemon = RunningDaemon::polling(&publisher).await;
    let changes = format!("{}/api/changes", daemon.base);
    let head = daemon.client.head(&changes).header("accept", "text/event-stream");
    let head =
        tokio::time::timeout(Duration::from_secs(10), head.send()).await.expect("the head is soon answered").unwrap();
    assert_eq!(head.headers()["content-type"], "text/event-stream");

    let mut following = daemon.client.get(&changes).header("accept", "text/event-stream").send().await.unwrap();
    assert!(following.chunk().await.unwrap().is_some());
    assert!(daemon.mirror.stop().success());
    let end = async { while following.chunk().await.is_ok_and(|chunk| chunk.is_some()) {} };
    tokio::time::timeout(DEADLINE, end).await.expect("the stream ends with the daemon");
}

#[tokio::test(flavor = "multi_thread")]
async fn however_much_is_asked_for_memory_stays_constant() {
    // Given: a daemon over 120 MB of a feed that it no longer has
    const ITEMS: usize = 2_000;
    let mut file = MirrorFixture::with(&["old"]).await;
    let data = format!("\"{}\"", "x".repeat(60 << 10));
    let ids: Vec<String> = (0..ITEMS).map(|id| format!("{id}")).collect();
    let records: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, Some(data.as_str()))).collect();
    for some in records.chunks(200) {
        file.write("old", some).await;
    }
    file.close();
    let publisher = publisher();
    let mirror = MirrorProcess::new().feed("acme", &publisher.url("/feed"));
    std::fs::copy(file.path(), mirror.path("mirror.db")).unwrap();
    let mirror = mirror.start();
    mirror.until_level("acme");
    let url = format!("http://{}/api/changes?data=true", mirror.column("SELECT ops_address FROM mirror")[0]);
    let before = mirror.most_memory();

    // When: a client requests and reads all of it
    let mut response = plain_client(DEADLINE).unwrap().get(url).send().await.unwrap();
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.unwrap() {
        bytes += chunk.len();
    }

    // Then: no more than a few pages of 4 MiB were ever in memory
    assert!(bytes > ITEMS * (60 << 10), "{bytes}");
    let grown = mirror.most_memory() - before;
    assert!(grown < 32 << 20, "{grown} bytes more");
}
