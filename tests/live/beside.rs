//! Settings and orders beside push: the parameter names of a stream's position, signed posts, and polls and resyncs on
//! order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::post::{self, SECRET};
use crate::stream::StreamServer;
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page_without_next, until};
use crate::{endpoint, mirror, until_has, until_mode};

fn publisher_of(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let served_feed = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request| served_feed.page(request))
}

#[test]
fn a_stream_is_taken_up_by_the_names_its_publisher_gives_to_a_position() {
    // Given
    let (test_feed, stream) = (TestFeed::of(3, 2), StreamServer::start());
    let publisher = publisher_of(&test_feed);
    let keys = format!(
        "sse.url = \"{}?kind=a\"\nsse.params = {{ from = \"afterTimestamp\", after = \"afterId\" }}",
        stream.url()
    );
    let mirror = mirror(&publisher.url("/feed"), &keys).start();
    until_mode(&mirror, "sse");
    stream.item(&item("a b", 77));
    until_has(&mirror, "a b");

    // When
    stream.cut();

    // Then
    until("a second connection", || stream.heads().len() > 1);
    let head = stream.heads().pop().unwrap();
    assert!(head.starts_with("GET /stream?kind=a&afterTimestamp=77&afterId=a%20b "), "{head}");
}

#[test]
fn a_signed_post_is_taken_and_one_signed_otherwise_is_not() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror(&publisher.url("/feed"), "webhook = { secret_file = \"secret\" }");
    mirror.write("secret", SECRET);
    let mirror = mirror.start();
    mirror.until_level("f");
    let body = page_without_next(&[item("signed", 900)]);
    // RFC 2104 with SHA-256 over the body as sent; WebSub §8 "authenticated content distribution".
    let signature = |key: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(body.as_bytes());
        let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("X-Hub-Signature-256: sha256={hex}")
    };

    // When
    let forged = post::with(&post::address(&mirror), "f", &signature("guessed"), &body).unwrap();
    let signed = post::with(&post::address(&mirror), "f", &signature(SECRET), &body).unwrap();

    // Then
    assert_eq!((forged.status, signed.status), (401, 204));
    assert_eq!(mirror.column("SELECT transport FROM items WHERE id = 'signed'"), ["webhook"]);
}

/// A feed that its stream keeps level, with audit polls an hour apart.
fn streamed(publisher: &ScriptedPublisher, stream: &StreamServer) -> MirrorProcess {
    let keys = format!("sse.url = {:?}\npush.audit = \"1h\"", stream.url());
    let mirror = mirror(&publisher.url("/feed"), &keys).start();
    until_mode(&mirror, "sse");
    mirror
}

#[test]
fn a_poll_that_is_asked_for_finds_what_push_left_out() {
    // Given: two polls, so that the time between them is covered
    let (test_feed, stream) = (TestFeed::of(3, 2), StreamServer::start());
    let publisher = publisher_of(&test_feed);
    let mirror = streamed(&publisher, &stream);
    let poll_now = || assert!(mirror.verb(&["poll-now", "f"]).status.success());
    let polls = publisher.count("/feed");
    poll_now();
    until("a poll", || publisher.count("/feed") > polls);
    mirror.until("taken in", |mirror| mirror.row("f").next_poll_in_s > 60.0);

    // When
    test_feed.put("left-out");
    poll_now();

    // Then
    until_has(&mirror, "left-out");
    mirror.until("the stream demoted", |mirror| endpoint(mirror, "sse", "push") == "demoted");
    until_mode(&mirror, "poll");
    assert_eq!(endpoint(&mirror, "sse", "missed"), "1");

    // When: the item is delivered after all, over the newly opened stream
    until("a second connection", || stream.heads().len() > 1);
    stream.item(&item("left-out", test_feed.newest()));

    // Then
    mirror.until("counted late", |mirror| endpoint(mirror, "sse", "late") == "1");
    assert_eq!(endpoint(&mirror, "sse", "push"), "demoted", "what is late is no proof");
}

#[test]
fn a_resync_beside_a_stream_sweeps_nothing_that_the_stream_brought() {
    // Given: a resync that hangs at its second page
    let (test_feed, stream) = (TestFeed::of(6, 2), StreamServer::start());
    let (served_feed, hang) = (Arc::clone(&test_feed), Arc::new(AtomicBool::new(false)));
    let hanging = Arc::clone(&hang);
    let publisher = ScriptedPublisher::start(move |request| {
        let hangs = request.query().contains("from=2&") && hanging.load(Ordering::SeqCst);
        if hangs { Reply::silence() } else { served_feed.page(request) }
    });
    let mirror = streamed(&publisher, &stream);
    hang.store(true, Ordering::SeqCst);
    test_feed.forget("id-4");
    assert!(mirror.verb(&["resync", "f"]).status.success());
    until("it hangs", || {
        publisher.requests().iter().any(|request| request.query().contains("from=2&") && request.count == 2)
    });

    // When
    stream.item(&item("streamed", 5_000));
    until_has(&mirror, "streamed");
    assert_eq!(mirror.row("f").mode, "sse", "a resync changes no mode");
    hang.store(false, Ordering::SeqCst);
    assert!(mirror.verb(&["resync", "f"]).status.success());

    // Then
    mirror.until("resynced", |mirror| !mirror.events("f", "resync-done").is_empty());
    let ids = mirror.ids("f");
    assert!(ids.contains(&"streamed".to_owned()) && !ids.contains(&"id-4".to_owned()), "{ids:?}");
    assert_eq!(mirror.row("f").mode, "sse");
}
