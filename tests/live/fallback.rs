//! A stream that fails, lies or lags: polling takes over at once and hands back, and it is all written down
//!.

use std::sync::Arc;

use crate::post::{self, SECRET};
use crate::stream::{StreamServer, event};
use crate::support::{MirrorProcess, ScriptedPublisher, TestFeed, item, until};
use crate::{PUSH, endpoint, mirror, until_has, until_mode};

/// A publisher of a shelf and of a stream, and a mirror of both.
struct StreamHarness {
    shelf: Arc<TestFeed>,
    publisher: ScriptedPublisher,
    stream: StreamServer,
    mirror: MirrorProcess,
}

impl StreamHarness {
    /// Running, with a stream that has proven itself by staying open.
    fn new() -> Self {
        let bench = Self::unproven();
        until_mode(&bench.mirror, "sse");
        bench
    }

    fn unproven() -> Self {
        let (shelf, stream) = (TestFeed::of(5, 2), StreamServer::start());
        let serving = Arc::clone(&shelf);
        let publisher = ScriptedPublisher::start(move |request| serving.page(request));
        let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", stream.url())).start();
        Self { shelf, publisher, stream, mirror }
    }

    /// A change that is polled and streamed, as it should be.
    fn publish(&self, id: &str) {
        let modified = self.shelf.put(id);
        self.stream.item(&item(id, modified));
    }

    /// A health event of the stream that leads there for this reason.
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
    let bench = StreamHarness::new();
    bench.publish("streamed");
    until_has(&bench.mirror, "streamed");

    // When
    bench.stream.refuse("500 Broken", "", "");

    // Then
    until_mode(&bench.mirror, "poll");
    bench.mirror.until("why the stream is down", |mirror| endpoint(mirror, "sse", "reason").contains("500"));
    assert_eq!(endpoint(&bench.mirror, "sse", "health"), "retrying");
    bench.shelf.put("polled");
    until_has(&bench.mirror, "polled");
    assert_eq!(bench.mirror.live("f"), bench.shelf.live());
    assert_eq!(bench.mirror.row("f").health, "ok");

    // When
    bench.stream.accept_again();

    // Then
    until_mode(&bench.mirror, "sse");
    bench.until_stream("ok", "");
    bench.publish("streamed-again");
    until_has(&bench.mirror, "streamed-again");
    let events = bench.mode_events();
    assert!(events.contains("sse → poll: push-lost: sse: "), "{events}");
    assert!(events.matches("poll → sse").count() >= 2, "{events}");
    let health = bench.mirror.events("f", "health").join("\n");
    assert!(health.contains("sse: ok → retrying: stream-ended"), "{health}");
    assert!(health.contains("sse: retrying → ok"), "{health}");
}

#[test]
fn what_is_pushed_is_there_before_any_poll() {
    // Given
    let bench = StreamHarness::new();
    let polls = bench.publisher.count("/feed");

    // When: only the stream knows of it
    bench.stream.item(&item("pushed", 99));

    // Then
    until_has(&bench.mirror, "pushed");
    let by = bench.mirror.column("SELECT transport FROM items WHERE id = 'pushed'");
    assert_eq!(by, ["sse"]);
    assert_eq!(endpoint(&bench.mirror, "sse", "delivered"), "1");
    // While the stream keeps it level an audit comes every 2 s, where polling asks every 50 to 200 ms.
    until("further audits", || bench.publisher.count("/feed") > polls + 2);
    let asked = bench.publisher.requests_to("/feed");
    let waits: Vec<_> = asked[polls.saturating_sub(1)..].windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    assert!(waits.iter().any(|wait| wait.as_millis() > 1500), "{waits:?}");
}

#[test]
fn a_stream_that_skips_items_is_found_by_an_audit_and_has_to_prove_itself_again() {
    // Given
    let bench = StreamHarness::new();
    // An audit after the one that follows the connection: from then on the stream owes everything.
    let polls = bench.publisher.count("/feed");
    until("an audit", || bench.publisher.count("/feed") > polls + 1);

    // When
    bench.shelf.put("skipped");

    // Then
    bench.mirror.until("demoted", |mirror| endpoint(mirror, "sse", "push") == "demoted");
    assert_eq!(bench.mirror.ids("f").iter().filter(|id| *id == "skipped").count(), 1);
    until_mode(&bench.mirror, "poll");
    assert_eq!(endpoint(&bench.mirror, "sse", "missed"), "1");
    assert_eq!(bench.mirror.column("SELECT push FROM feeds"), ["demoted"]);
    let events = bench.mode_events();
    assert!(events.contains("sse → poll: missed: a poll found an item that it did not bring"), "{events}");
    // It stays open, and that proves nothing any more.
    until("the stream opened anew", || bench.stream.heads().len() > 1);
    bench.until_stream("ok", "");

    // When
    bench.stream.item(&item("brought", 99));

    // Then
    bench.mirror.until("proven again", |mirror| endpoint(mirror, "sse", "push") == "proven");
    until_mode(&bench.mirror, "sse");
    let push = bench.mirror.events("f", "push").join("\n");
    assert!(push.contains("sse: proven: it delivered brought in time again"), "{push}");
}

#[test]
fn an_idle_stream_is_proven_by_staying_open_and_is_healthy() {
    // Given
    let bench = StreamHarness::unproven();

    // Then
    until_mode(&bench.mirror, "sse");
    assert_eq!(endpoint(&bench.mirror, "sse", "delivered"), "0");
    let push = bench.mirror.events("f", "push");
    assert_eq!(push, ["sse: proven: the connection has stayed open for 500ms"]);
    // Audits find nothing, and nothing is made of that.
    let polls = bench.publisher.count("/feed");
    until("two audits", || bench.publisher.count("/feed") >= polls + 2);
    assert_eq!(bench.stream.heads().len(), 1);
    assert_eq!((bench.mirror.row("f").mode.as_str(), bench.mirror.row("f").health.as_str()), ("sse", "ok"));
    assert_eq!(endpoint(&bench.mirror, "sse", "health"), "ok");
}

/// A stream that answers so gets this health for this reason, while the feed is polled and well.
fn refused(status: &str, headers: &str, body: &str, health: &str, reason: &str) {
    let bench = StreamHarness::new();
    bench.stream.refuse(status, headers, body);
    bench.mirror.until(&format!("the stream {health}, {reason}"), |mirror| {
        endpoint(mirror, "sse", "health") == health && endpoint(mirror, "sse", "reason").contains(reason)
    });
    until_mode(&bench.mirror, "poll");
    bench.shelf.put("polled");
    until_has(&bench.mirror, "polled");
    assert_eq!((bench.mirror.row("f").health.as_str(), bench.mirror.row("f").reason.as_str()), ("ok", ""));
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
    // Given: retry.max is 200 ms, which clamps what it asks for
    let bench = StreamHarness::new();
    let heads = bench.stream.heads().len();

    // When
    bench.stream.refuse("503 Busy", "Retry-After: 3600\r\n", "");

    // Then
    bench.mirror.until("its reason", |mirror| endpoint(mirror, "sse", "reason").contains("503"));
    assert_eq!(endpoint(&bench.mirror, "sse", "health"), "retrying");
    until("asked again", || bench.stream.heads().len() > heads + 2);
    bench.stream.accept_again();
    until_mode(&bench.mirror, "sse");
}

#[test]
fn junk_events_are_quarantined_and_the_rest_is_taken() {
    // Given
    let bench = StreamHarness::new();

    // When
    bench.stream.send(": a comment\n\nevent: itemupdate\ndata: {not json\n\n");
    bench.stream.item(r#"{"id":"stateless","modified":50,"kind":"thing"}"#);
    bench.stream.send("event: weather\ndata: rain\n\n");
    bench.stream.send("no field at all\n\nevent: itemupdate\ndata: [1]\n\n");
    let split = item("many-lines", 51).replace(",\"", ",\ndata: \"");
    bench.stream.send(&format!("event: itemupdate\ndata: {split}\n\n"));
    bench.stream.item(&item("good", 52));

    // Then
    until_has(&bench.mirror, "good");
    until_has(&bench.mirror, "many-lines");
    let raw = bench.mirror.column("SELECT raw FROM quarantine WHERE feed = 'f' AND transport = 'sse' ORDER BY id");
    assert_eq!(raw, ["{not json", r#"{"id":"stateless","modified":50,"kind":"thing"}"#, "[1]"]);
    assert_eq!(bench.mirror.finding("f", "sse-event"), 1);
    assert_eq!(endpoint(&bench.mirror, "sse", "health"), "ok");
    assert_eq!(bench.stream.heads().len(), 1, "the stream was not opened anew");
}

#[test]
fn a_restart_takes_the_stream_up_behind_its_last_event() {
    // Given
    let mut bench = StreamHarness::new();
    bench.stream.item(&item("id with space&more", 77));
    until_has(&bench.mirror, "id with space&more");

    // When
    bench.mirror.kill();
    bench.mirror.start_again();

    // Then
    until("a second connection", || bench.stream.heads().len() > 1);
    let head = bench.stream.heads().pop().unwrap();
    let (_, query) = head.lines().next().unwrap().split_once('?').unwrap();
    let query = query.trim_end_matches(" HTTP/1.1");
    assert!(
        ["from=77&after=id%20with%20space%26more", "from=77&after=id+with+space%26more"].contains(&query),
        "{query}"
    );
    assert!(!head.to_ascii_lowercase().contains("last-event-id"), "none was sent: {head}");
    until_mode(&bench.mirror, "sse");
    let events = bench.mode_events();
    assert!(events.contains("sse → poll: restarted"), "{events}");
}

#[test]
fn a_stream_that_names_its_events_is_taken_up_by_name_and_at_its_own_pace() {
    // Given
    let bench = StreamHarness::new();
    bench.stream.send(&format!("retry: 150\nid: place-7\n{}", event(&item("named", 77))));
    until_has(&bench.mirror, "named");

    // When
    bench.stream.cut();

    // Then
    until("a second connection", || bench.stream.heads().len() > 1);
    let head = bench.stream.heads().pop().unwrap();
    assert!(head.lines().any(|line| line.eq_ignore_ascii_case("last-event-id: place-7")), "{head}");
    assert!(head.contains("?from=77&after=named "), "{head}");
    bench.mirror.until("the stream's end in the events", |mirror| {
        mirror.events("f", "health").iter().any(|event| event.contains("stream-ended"))
    });
}

#[test]
fn what_a_webhook_misses_is_not_held_against_the_stream() {
    // Given: both proven, and both owe everything from the next audit on
    let (shelf, stream) = (TestFeed::of(5, 2), StreamServer::start());
    let serving = Arc::clone(&shelf);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
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

    // When: a poll finds it, the stream brings it in time, and nobody posts it
    let modified = shelf.put("streamed-only");
    until_has(&mirror, "streamed-only");
    stream.item(&item("streamed-only", modified));

    // Then
    mirror.until("the webhook demoted", |mirror| endpoint(mirror, "webhook", "push") == "demoted");
    assert_eq!(endpoint(&mirror, "webhook", "missed"), "1");
    assert_eq!([endpoint(&mirror, "sse", "push"), endpoint(&mirror, "sse", "missed")], ["proven", "0"]);
    // A further item comes over the same connection.
    stream.item(&item("after", 95));
    until_has(&mirror, "after");
    assert_eq!(stream.heads().len(), 1, "the stream was not opened anew");
    assert_eq!(mirror.row("f").mode, "sse");
}
