//! Items and the change log over HTTP: once, followed, resumed, refused, and with a client that stalls.

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::harness::{DEADLINE, OpsHarness, lines, status_and_text};

/// The ids of all lines but the last, which is a position.
fn ids(lines: &[Value]) -> Vec<&str> {
    let (position, changes) = lines.split_last().unwrap();
    assert!(position["last_seq"].is_i64() && position["epoch"].is_string(), "{position}");
    changes.iter().map(|change| change["id"].as_str().unwrap_or("-")).collect()
}

#[tokio::test]
async fn a_reader_that_comes_back_with_its_position_gets_what_came_since() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("1", 1, Some("{\"n\": 1.50}")), ("2", 1, None)]).await;

    let (status, text) = harness.get_text("/api/changes?data=true").await;
    let first = lines(&text);
    assert_eq!((status, ids(&first)), (200, vec!["1", "2"]));
    assert!(text.contains("\"data\":{\"n\": 1.50}"), "the publisher's own bytes: {text}");
    assert_eq!(first[1]["data"], Value::Null);
    let position = format!("{}:{}", first[2]["epoch"].as_str().unwrap(), first[2]["last_seq"]);
    assert_eq!(position, harness.file.position());

    harness.file.write("acme", &[("1", 2, Some("{}")), ("3", 1, Some("{}"))]).await;
    let again = lines(&harness.get_text(&format!("/api/changes?since={position}")).await.1);
    assert_eq!(ids(&again), ["1", "3"]);
    assert_eq!(again[0].get("data"), None, "only when asked for");
    let limited = lines(&harness.get_text("/api/changes?limit=2").await.1);
    assert_eq!(ids(&limited), ["2", "1"]);
    let rest = lines(&harness.get_text(&format!("/api/changes?since={}", limited[2]["last_seq"])).await.1);
    assert_eq!(ids(&rest), ["3"], "a limit ends at a position to go on from");
}

#[tokio::test]
async fn a_filter_leaves_the_position_that_of_the_whole_log() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}"))]).await;
    harness.file.write("other", &[("2", 1, Some("{}"))]).await;
    let filtered = lines(&harness.get_text("/api/changes?feed=acme&kind=Session").await.1);
    assert_eq!(ids(&filtered), ["1"]);
    assert_eq!(filtered[1]["last_seq"], harness.file.value::<i64>("SELECT seq FROM mirror"));
    assert_eq!(ids(&lines(&harness.get_text("/api/changes?kind=Slot").await.1)), [""; 0]);
}

#[tokio::test]
async fn a_position_of_another_mirror_or_ahead_of_this_one_is_gone() {
    let harness = OpsHarness::with(&["acme"]).await;
    let seq: i64 = harness.file.value("SELECT seq FROM mirror");
    let epoch: String = harness.file.value("SELECT epoch FROM mirror");
    for position in [format!("0000000000000000:{seq}"), format!("{}", seq + 1), format!("{epoch}:{}", seq + 1)] {
        let (status, text) = harness.get_text(&format!("/api/changes?since={position}")).await;
        assert_eq!(status, 410, "{position}: {text}");
        assert!(text.contains("read everything again"), "{text}");
        let followed =
            harness.get("/api/changes").header("accept", "text/event-stream").header("last-event-id", position);
        assert_eq!(status_and_text(followed).await.0, 410);
    }
    for (query, word) in [("since=x", "since"), ("since=-1", "since"), ("limit=x", "limit"), ("sinse=1", "sinse")] {
        let (status, text) = harness.get_text(&format!("/api/changes?{query}")).await;
        assert_eq!((status, text.contains(word)), (400, true), "{query}: {text}");
    }
}

#[tokio::test]
async fn who_follows_sees_a_later_commit_and_resumes_where_the_stream_broke() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}"))]).await;
    let follow = || harness.get("/api/changes").header("accept", "text/event-stream");
    let mut stream = Events(follow().send().await.unwrap(), String::new());

    let first = stream.next_change().await;
    assert_eq!(first.data["id"], "1");
    harness.file.write("acme", &[("2", 1, Some("{}"))]).await;
    let second = stream.next_change().await;
    assert_eq!(second.data["id"], "2");
    let epoch: String = harness.file.value("SELECT epoch FROM mirror");
    assert_eq!(second.id, format!("{epoch}:{}", second.data["seq"]));
    drop(stream);

    // The header has precedence over the query.
    let resumed = harness.get("/api/changes?since=0").header("accept", "text/event-stream");
    let resumed = resumed.header("last-event-id", &first.id).send().await.unwrap();
    assert_eq!(resumed.headers()["content-type"], "text/event-stream");
    assert_eq!(Events(resumed, String::new()).next_change().await.data["id"], "2");
}

#[tokio::test]
async fn a_purge_is_a_change_that_followers_see() {
    let harness = OpsHarness::with(&["acme"]).await;
    harness.file.write("acme", &[("1", 1, Some("{}"))]).await;
    let position = harness.file.position();
    harness.file.store().purge(&crate::harness::name("acme"), 1).await.unwrap();
    let changes = lines(&harness.get_text(&format!("/api/changes?since={position}&data=1")).await.1);
    assert_eq!((&changes[0]["state"], &changes[0]["feed"]), (&json!("purged"), &json!("acme")));
    assert_eq!((&changes[0]["kind"], &changes[0]["id"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn items_are_the_live_ones_unless_tombstones_are_asked_for() {
    let harness = OpsHarness::with(&["acme", "other"]).await;
    harness.file.write("acme", &[("1", 1, Some("{\"a\":\n1}")), ("2", 1, None), ("3", 1, Some("{}"))]).await;
    harness.file.write("other", &[("4", 1, Some("{}"))]).await;
    let ids_of = async |query: &str| {
        let text = harness.get_text(&format!("/api/items?{query}")).await.1;
        lines(&text).iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids_of("").await, ["1", "3", "4"]);
    assert_eq!(ids_of("feed=acme&deleted=true").await, ["1", "2", "3"]);
    assert_eq!(ids_of("limit=2").await, ["1", "3"]);
    let third: i64 = harness.file.value("SELECT seq FROM items WHERE id = '3'");
    assert_eq!(ids_of(&format!("since={third}")).await, ["4"]);
    assert_eq!(ids_of("kind=Slot").await, [""; 0]);
    assert_eq!(lines(&harness.get_text("/api/items?limit=1").await.1)[0]["data"], json!({"a": 1}));
    assert_eq!(harness.get_text("/api/items?feed=nope").await.0, 404);
    assert_eq!(harness.get_text("/api/items?deleted=perhaps").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stalls_keeps_no_transaction_open_and_gets_the_rest_when_it_goes_on() {
    // More than a socket's buffers take.
    const ITEMS: usize = 3_000;
    let harness = OpsHarness::with(&["acme"]).await;
    let data = format!("\"{}\"", "x".repeat(16 << 10));
    let ids: Vec<String> = (0..ITEMS).map(|id| format!("{id}")).collect();
    let records: Vec<_> = ids.iter().map(|id| (id.as_str(), 1, Some(data.as_str()))).collect();
    harness.file.write("acme", &records).await;
    let mut client = TcpStream::connect(harness.address).await.unwrap();
    client.write_all(b"GET /api/items HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = vec![0; 1024];
    client.read_exact(&mut text).await.unwrap();

    // Commits while the client stalls; then resets the WAL, which an open reader would prevent.
    harness.file.write("acme", &[("later", 1, Some("{}"))]).await;
    let path = harness.file.path();
    let restarted = tokio::task::spawn_blocking(move || {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(DEADLINE / 2).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0)).unwrap()
    });
    assert_eq!(restarted.await.unwrap(), 0, "1 means that a reader was in the way");

    timeout(DEADLINE, client.read_to_end(&mut text)).await.expect("the stream goes on").unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("\"seq\":").count(), ITEMS + 1, "page by page, the later one too");
    assert!(text.ends_with("0\r\n\r\n"), "and ends well");
}

/// An event, its data read as JSON.
struct Event {
    name: Option<String>,
    id: String,
    data: Value,
}

/// A stream of Server-Sent Events, and the text read so far.
struct Events(reqwest::Response, String);

impl Events {
    async fn next_change(&mut self) -> Event {
        let end = Instant::now() + DEADLINE;
        loop {
            let event = self.next(end).await;
            if event.name.is_none() {
                return event;
            }
            assert_eq!(event.name.as_deref(), Some("position"));
            assert_eq!(event.id, format!("{}:{}", event.data["epoch"].as_str().unwrap(), event.data["last_seq"]));
        }
    }

    async fn next(&mut self, end: Instant) -> Event {
        while !self.1.contains("\n\n") {
            let remaining = end.saturating_duration_since(Instant::now());
            let chunk = timeout(remaining, self.0.chunk())
                .await
                .expect("an event in time")
                .unwrap()
                .expect("the stream goes on");
            self.1.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let (event, rest) = self.1.split_once("\n\n").unwrap();
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let data = serde_json::from_str(field("data").unwrap()).unwrap();
        let event = Event { name: field("event").map(str::to_owned), id: field("id").unwrap().to_owned(), data };
        self.1 = rest.to_owned();
        event
    }
}
