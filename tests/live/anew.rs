//! Push while a feed is resynced or purged, and while its stream is unavailable for a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::post::{self, SECRET};
use crate::stream::{StreamServer, event};
use crate::support::{Reply, ScriptedPublisher, TestFeed, item, page_without_next, until};
use crate::{endpoint, mirror, until_has, until_mode};

#[test]
fn after_a_trusted_walk_a_stream_is_opened_anew_behind_what_was_polled_last() {
    // Given: a stream that has delivered an item which its publisher, restored from a backup, no longer has.
    let (test_feed, stream) = (TestFeed::of(5, 2), StreamServer::start());
    let served_feed = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| served_feed.page(request));
    let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", stream.url())).start();
    until_mode(&mirror, "sse");
    stream.item(&item("lost", 900));
    until_has(&mirror, "lost");
    let before = stream.heads().len();

    // When
    assert!(mirror.verb(&["resync", "--trust-source", "--accept", "f"]).status.success());

    // Then
    until("opened again", || stream.heads().len() > before);
    let head = stream.heads().pop().unwrap();
    assert!(head.contains("from=5&after=id-4"), "{head}");
    mirror.until("what it says now", |mirror| mirror.live("f") == test_feed.live());
    stream.item(&item("pushed", 901));
    until_has(&mirror, "pushed");
}

#[test]
fn a_body_that_began_to_come_before_a_trusted_walk_is_not_written_after_it() {
    // Given: half of a post.
    let test_feed = TestFeed::of(5, 2);
    let served_feed = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| served_feed.page(request));
    let mirror = mirror(&publisher.url("/feed"), r#"webhook = { secret_file = "secret" }"#);
    mirror.write("secret", SECRET);
    let mirror = mirror.start();
    mirror.until_level("f");
    let body = page_without_next(&[item("old", 900)]);
    let (first, rest) = body.split_at(body.len() / 2);
    let mut connection = TcpStream::connect(post::address(&mirror)).unwrap();
    let head = format!(
        "POST /webhooks/f HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{first}",
        body.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    // Another post, sent later, is answered: so the mirror is reading the first one.
    assert_eq!(post::page(&mirror, &[item("between", 800)]).status, 204);

    // When: the feed gets a new generation, which another post shows.
    assert!(mirror.verb(&["resync", "--trust-source", "f"]).status.success());
    until("taken under the new generation", || post::page(&mirror, &[item("new", 901)]).status == 204);
    connection.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();

    // Then: the publisher is asked to post again.
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(!mirror.ids("f").iter().any(|id| id == "old"), "{:?}", mirror.ids("f"));
    assert_eq!(post::page(&mirror, &[item("old", 900)]).status, 204);
}

#[test]
fn a_stream_that_is_unavailable_for_a_while_is_opened_again_within_the_longest_retry() {
    // Given
    let (test_feed, stream) = (TestFeed::of(5, 2), StreamServer::start());
    let served_feed = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| served_feed.page(request));
    let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", stream.url())).start();
    until_mode(&mirror, "sse");

    for status in ["503 Service Unavailable", "404 Not Found"] {
        // When: the publisher is deployed again behind a proxy.
        let before = stream.heads().len();
        stream.refuse(status, "", "");
        until("asked more than three times", || stream.heads().len() > before + 4);
        stream.accept_again();

        // Then
        mirror.until("up again", |mirror| endpoint(mirror, "sse", "health") == "ok");
        until_mode(&mirror, "sse");
    }
}

#[test]
fn a_stream_that_ends_after_each_event_makes_no_feed_polled_before_its_time() {
    // Given: a stream that ends at once each time, and a feed with a slow pace, or a publisher that limits requests.
    let ending = StreamServer::greeting(|_| event(&item("again", 7)));
    let is_limiting = Arc::new(AtomicBool::new(false));
    let limits_requests = Arc::clone(&is_limiting);
    let test_feed = TestFeed::of(5, 9);
    let publisher = ScriptedPublisher::start(move |request| match limits_requests.load(Ordering::SeqCst) {
        true => Reply::status(429).header("Retry-After", "300"),
        false => test_feed.page(request),
    });
    let keys = format!(
        "sse.url = {:?}\npoll = {{ min = \"1s\", max = \"1s\" }}\nretry = {{ min = \"20ms\", max = \"1h\" }}",
        ending.url()
    );
    let mirror = mirror(&publisher.url("/feed"), &keys).start();
    mirror.until_level("f");

    // When
    let opened = |n: usize| {
        let before = ending.heads().len();
        until("opened again and again", || {
            ending.cut();
            ending.heads().len() > before + n
        });
    };
    opened(8);
    until("polled on", || publisher.requests().len() > 4);

    // Then
    let requests = publisher.requests();
    let level = &requests[2..];
    let gaps: Vec<f64> = level.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    assert!(gaps.iter().all(|gap| *gap > 0.95), "{gaps:?}");

    // When
    is_limiting.store(true, Ordering::SeqCst);
    mirror.until_health("f", "retrying", "http-429");
    let request_count = publisher.requests().len();
    opened(6);

    // Then
    assert_eq!(publisher.requests().len(), request_count);
}

#[test]
fn the_stream_of_a_feed_that_purged_itself_is_not_opened_again_and_again() {
    // Given
    let (gone, stream) = (Arc::new(AtomicBool::new(false)), StreamServer::start());
    let (removed, test_feed) = (Arc::clone(&gone), TestFeed::of(5, 2));
    let publisher = ScriptedPublisher::start(move |request| match removed.load(Ordering::SeqCst) {
        true => Reply::status(410),
        false => test_feed.page(request),
    });
    let keys = format!("sse.url = {:?}\npurge_gone_after = \"1ms\"", stream.url());
    let mirror = mirror(&publisher.url("/feed"), &keys).start();
    until_mode(&mirror, "sse");
    gone.store(true, Ordering::SeqCst);
    mirror.until_health("f", "gone", "http-410");

    // When
    assert!(mirror.verb(&["poll-now", "f"]).status.success());
    mirror.until_health("f", "paused", "paused");
    let opened = stream.heads().len();
    stream.item(&item("late", 900));
    stream.cut();

    // Then: the stream is opened at most once more.
    until("a while", {
        let began = std::time::Instant::now();
        move || began.elapsed().as_millis() > 1_500
    });
    assert!(stream.heads().len() <= opened + 1, "{} times", stream.heads().len() - opened);
}
