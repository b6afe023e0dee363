//! A stream that fails, omits items or lags: polling takes over at once and gives way again, and events record it.

use std::sync::Arc;

use crate::post::{self, SECRET};
use crate::stream::{StreamServer, event};
use crate::support::{MirrorProcess, ScriptedPublisher, TestFeed, item, until};
use crate::{PUSH, endpoint, mirror, until_has, until_mode};

/// A publisher of a feed and its stream, and a mirror of both.
struct StreamHarness {
    test_feed: Arc<TestFeed>,
    publisher: ScriptedPublisher,
    stream: StreamServer,
    mirror: MirrorProcess,
}

impl StreamHarness {
    /// Running, with a stream that has proven itself by staying open.
    fn new() -> Self {
        let harness = Self::unproven();
        until_mode(&harness.mirror, "sse");
        harness
    }

    fn unproven() -> Self {
        let (test_feed, stream) = (TestFeed::of(5, 2), StreamServer::start());
        let served_feed = Arc::clone(&test_feed);
        let publisher = ScriptedPublisher::start(move |request| served_feed.page(request));
        let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", stream.url())).start();
        Self { test_feed, publisher, stream, mirror }
    }

    /// A change that is polled and streamed, as it should be.
    fn publish(&self, id: &str) {
        let modified = self.test_feed.put(id);
        self.stream.item(&item(id, modified));
    }

    /// Waits until the stream has this health, for a reason that begins with this word.
    fn until_stream(&self, health: &str, word: &str) {
        self.mirror.until(&format!("the stream {health}, {word}"), |mirror| {
            endpoint(mirror, "sse", "health") == health && endpoint(mirror, "sse", "reason").starts_with(word)
        });
    }

    fn mode_events(&self) -> String {
        self.mirror.events("f", "mode").join("\n")
    }
}

#[test]
fn a_stream_that_is_lost_is_replaced_by_polling_and_comes_back() {
    // Given
    let harness = StreamHarness::new();
    harness.publish("streamed");
    until_has(&harness.mirror, "streamed");

    // When
    harness.stream.refuse("500 Broken", "", "");

    // Then
    until_mode(&harness.mirror, "poll");
    harness.mirror.until("why the stream is down", |mirror| endpoint(mirror, "sse", "reason").contains("500"));
    assert_eq!(endpoint(&harness.mirror, "sse", "health"), "retrying");
    harness.test_feed.put("polled");
    until_has(&harness.mirror, "polled");
    assert_eq!(harness.mirror.live("f"), harness.test_feed.live());
    assert_eq!(harness.mirror.row("f").health, "ok");

    // When
    harness.stream.accept_again();

    // Then
    until_mode(&harness.mirror, "sse");
    harness.until_stream("ok", "");
    harness.publish("streamed-again");
    until_has(&harness.mirror, "streamed-again");
    let events = harness.mode_events();
    assert!(events.contains("sse → poll: push-lost: sse: "), "{events}");
    assert!(events.matches("poll → sse").count() >= 2, "{events}");
    let health = harness.mirror.events("f", "health").join("\n");
    assert!(health.contains("sse: ok → retrying: stream-ended"), "{health}");
    assert!(health.contains("sse: retrying → ok"), "{health}");
}

#[test]
fn what_is_pushed_is_there_before_any_poll() {
    // Given
    let harness = StreamHarness::new();
    let polls = harness.publisher.count("/feed");

    // When: only the stream has the item
    harness.stream.item(&item("pushed", 99));

    // Then
    until_has(&harness.mirror, "pushed");
    let transport = harness.mirror.column("SELECT transport FROM items WHERE id = 'pushed'");
    assert_eq!(transport, ["sse"]);
    assert_eq!(endpoint(&harness.mirror, "sse", "delivered"), "1");
    // While the stream keeps it level an audit comes every 2 s, where polling asks every 50 to 200 ms.
    until("further audits", || harness.publisher.count("/feed") > polls + 2);
    let requests = harness.publisher.requests_to("/feed");
    let waits: Vec<_> = requests[polls.saturating_sub(1)..].windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(waits.iter().any(|wait| wait.as_millis() > 1500), "{waits:?}");
}

#[test]
fn a_stream_that_skips_items_is_found_by_an_audit_and_has_to_prove_itself_again() {
    // Given
    let harness = StreamHarness::new();
    // An audit poll after the one that follows the connection: from then on each item is expected by push.
    let polls = harness.publisher.count("/feed");
    until("an audit", || harness.publisher.count("/feed") > polls + 1);

    // When
    harness.test_feed.put("skipped");

    // Then
    harness.mirror.until("demoted", |mirror| endpoint(mirror, "sse", "push") == "demoted");
    assert_eq!(harness.mirror.ids("f").iter().filter(|id| *id == "skipped").count(), 1);
    until_mode(&harness.mirror, "poll");
    assert_eq!(endpoint(&harness.mirror, "sse", "missed"), "1");
    assert_eq!(harness.mirror.column("SELECT push FROM feeds"), ["demoted"]);
    let events = harness.mode_events();
    assert!(events.contains("sse → poll: missed: a poll found an item that it did not bring"), "{events}");
    // The stream stays open, which proves nothing any more.
    until("the stream opened again", || harness.stream.heads().len() > 1);
    harness.until_stream("ok", "");

    // When
    harness.stream.item(&item("brought", 99));

    // Then
    harness.mirror.until("proven again", |mirror| endpoint(mirror, "sse", "push") == "proven");
    until_mode(&harness.mirror, "sse");
    let push = harness.mirror.events("f", "push").join("\n");
    assert!(push.contains("sse: proven: it delivered brought in time again"), "{push}");
}

#[test]
fn an_idle_stream_is_proven_by_staying_open_and_is_healthy() {
    // Given
    let harness = StreamHarness::unproven();

    // Then
    until_mode(&harness.mirror, "sse");
    assert_eq!(endpoint(&harness.mirror, "sse", "delivered"), "0");
    let push = harness.mirror.events("f", "push");
    assert_eq!(push, ["sse: proven: the connection has stayed open for 500ms"]);
    // Audit polls find nothing, which changes nothing.
    let polls = harness.publisher.count("/feed");
    until("two audits", || harness.publisher.count("/feed") >= polls + 2);
    assert_eq!(harness.stream.heads().len(), 1);
    assert_eq!((harness.mirror.row("f").mode.as_str(), harness.mirror.row("f").health.as_str()), ("sse", "ok"));
    assert_eq!(endpoint(&harness.mirror, "sse", "health"), "ok");
}

/// A stream with this response gets this health for this reason, while the feed is polled and healthy.
fn refused(status: &str, headers: &str, body: &str, health: &str, reason: &str) {
    let harness = StreamHarness::new();
    harness.stream.refuse(status, headers, body);
    harness.mirror.until(&format!("the stream {health}, {reason}"), |mirror| {
        endpoint(mirror, "sse", "health") == health && endpoint(mirror, "sse", "reason").contains(reason)
    });
    until_mode(&harness.mirror, "poll");
    harness.test_feed.put("polled");
    until_has(&harness.mirror, "polled");
    assert_eq!((harness.mirror.row("f").health.as_str(), harness.mirror.row("f").reason.as_str()), ("ok", ""));
}

#[test]
fn a_stream_of_another_content_type_is_none() {
    let body = "<html>sign in</html>";
    refused("200 OK", "Content-Type: text/html\r\n", body, "retrying", "text/html");
}

#[test]
fn a_stream_that_answers_404_is_gone_and_its_feed_is_not() {
    refused("404 Not Found", "", "", "gone", "404");
}

#[test]
fn a_stream_that_answers_401_waits_for_the_operator_and_its_feed_does_not() {
    refused("401 Unauthorized", "", "", "failed", "401");
}

#[test]
fn a_stream_that_asks_for_patience_gets_it() {
    // Given: retry.max is 200 ms, which clamps `Retry-After`
    let harness = StreamHarness::new();
    let heads = harness.stream.heads().len();

    // When
    harness.stream.refuse("503 Busy", "Retry-After: 3600\r\n", "");

    // Then
    harness.mirror.until("its reason", |mirror| endpoint(mirror, "sse", "reason").contains("503"));
    assert_eq!(endpoint(&harness.mirror, "sse", "health"), "retrying");
    until("asked again", || harness.stream.heads().len() > heads + 2);
    harness.stream.accept_again();
    until_mode(&harness.mirror, "sse");
}

#[test]
fn junk_events_are_quarantined_and_the_rest_is_taken() {
    // Given
    let harness = StreamHarness::new();

    // When
    harness.stream.send(": a comment\n\nevent: itemupdate\ndata: {not json\n\n");
    harness.stream.item(r#"{"id":"stateless","modified":50,"kind":"thing"}"#);
    harness.stream.send("event: weather\ndata: rain\n\n");
    harness.stream.send("no field at all\n\nevent: itemupdate\ndata: [1]\n\n");
    let split = item("many-lines", 51).replace(",\"", ",\ndata: \"");
    harness.stream.send(&format!("event: itemupdate\ndata: {split}\n\n"));
    harness.stream.item(&item("good", 52));

    // Then
    until_has(&harness.mirror, "good");
    until_has(&harness.mirror, "many-lines");
    let raw = harness.mirror.column("SELECT raw FROM quarantine WHERE feed = 'f' AND transport = 'sse' ORDER BY id");
    assert_eq!(raw, ["{not json", r#"{"id":"stateless","modified":50,"kind":"thing"}"#, "[1]"]);
    assert_eq!(harness.mirror.finding("f", "sse-event"), 1);
    assert_eq!(endpoint(&harness.mirror, "sse", "health"), "ok");
    assert_eq!(harness.stream.heads().len(), 1, "the stream was not opened again");
}

#[test]
fn a_restart_takes_the_stream_up_behind_its_last_event() {
    // Given
    let mut harness = StreamHarness::new();
    harness.stream.item(&item("id with space&more", 77));
    until_has(&harness.mirror, "id with space&more");

    // When
    harness.mirror.kill();
    harness.mirror.start_again();

    // Then
    until("a second connection", || harness.stream.heads().len() > 1);
    let head = harness.stream.heads().pop().unwrap();
    let (_, query) = head.lines().next().unwrap().split_once('?').unwrap();
    let query = query.trim_end_matches(" HTTP/1.1");
    assert!(
        ["from=77&after=id%20with%20space%26more", "from=77&after=id+with+space%26more"].contains(&query),
        "{query}"
    );
    assert!(!head.to_ascii_lowercase().contains("last-event-id"), "none was sent: {head}");
    until_mode(&harness.mirror, "sse");
    let events = harness.mode_events();
    assert!(events.contains("sse → poll: restarted"), "{events}");
}

#[test]
fn a_stream_that_names_its_events_is_taken_up_by_name_and_at_its_own_pace() {
    // Given
    let harness = StreamHarness::new();
    harness.stream.send(&format!("retry: 150\nid: place-7\n{}", event(&item("named", 77))));
    until_has(&harness.mirror, "named");

    // When
    harness.stream.cut();

    // Then
    until("a second connection", || harness.stream.heads().len() > 1);
    let head = harness.stream.heads().pop().unwrap();
    assert!(head.lines().any(|line| line.eq_ignore_ascii_case("last-event-id: place-7")), "{head}");
    assert!(head.contains("?from=77&after=named "), "{head}");
    harness.mirror.until("the stream's end in the events", |mirror| {
        mirror.events("f", "health").iter().any(|event| event.contains("stream-ended"))
    });
}

#[test]
fn what_a_webhook_misses_does_not_demote_the_stream() {
    // Given: both proven, and from the next audit poll on each item is expected by both
    let (test_feed, stream) = (TestFeed::of(5, 2), StreamServer::start());
    let served_feed = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| served_feed.page(request));
    let keys = format!("sse.url = {:?}\nwebhook = {{ secret_file = \"secret\" }}", stream.url());
    let mirror =
        MirrorProcess::new().feed_with("f", &publisher.url("/feed"), &keys).tables(&PUSH.replace("300ms", "2s"));
    mirror.write("secret", SECRET);
    let mirror = mirror.start();
    until_mode(&mirror, "sse");
    assert_eq!(post::page(&mirror, &[item("posted", 90)]).status, 204);
    mirror.until("the webhook proven", |mirror| endpoint(mirror, "webhook", "push") == "proven");
    let polls = publisher.count("/feed");
    until("an audit", || publisher.count("/feed") > polls + 1);

    // When: a poll finds an item, the stream delivers it in time, and nobody posts it
    let modified = test_feed.put("streamed-only");
    until_has(&mirror, "streamed-only");
    stream.item(&item("streamed-only", modified));

    // Then
    mirror.until("the webhook demoted", |mirror| endpoint(mirror, "webhook", "push") == "demoted");
    assert_eq!(endpoint(&mirror, "webhook", "missed"), "1");
    assert_eq!([endpoint(&mirror, "sse", "push"), endpoint(&mirror, "sse", "missed")], ["proven", "0"]);
    // A further item comes over the same connection.
    stream.item(&item("after", 95));
    until_has(&mirror, "after");
    assert_eq!(stream.heads().len(), 1, "the stream was not opened again");
    assert_eq!(mirror.row("f").mode, "sse");
}
