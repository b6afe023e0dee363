//! The real binary at a stream whose fields are as large as an event may be: the mirror answers requests meanwhile, and
//! stores and sends back none of those fields.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use crate::raw_stream_server::{Connection, RawStreamServer};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page};

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const ID_BYTES: usize = 15_000_000;

/// Bytes that a debug build may hold: about half of it for itself, the rest for pages and streams in flight.
const MEMORY: u64 = 160 << 20;

/// An event of an item, with an id.
fn send(connection: &mut Connection, event_id: &str, item_id: &str) {
    let item = item(item_id, 1_000).replace('\n', " ");
    connection.send(format!("event: itemupdate\nid: {event_id}\ndata: {item}\n\n"));
}

#[test]
fn event_ids_of_megabytes_are_ignored_and_never_sent_back_and_delay_no_response() {
    // Given a stream with a short id, and then many long ones; then the stream ends.
    const EVENTS: i64 = 20;
    let streamer = RawStreamServer::start();
    let url = streamer.url("/stream");
    let (again, connected_again) = sync_channel(1);
    std::thread::spawn(move || {
        let mut first = streamer.next();
        first.send(HEAD);
        send(&mut first, "short", "first");
        let long = "x".repeat(ID_BYTES);
        (0..EVENTS).for_each(|n| send(&mut first, &long, &format!("long-{n}")));
        drop(first);
        let mut second = streamer.next();
        second.send(HEAD);
        let _ = again.send(second);
    });
    let test_feed = TestFeed::of(3, 7);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    // When it is read
    let keys = format!("sse.url = \"{url}\"");
    let mirror = MirrorProcess::new().feed_with("things", &publisher.url("/feed"), &keys).start();
    mirror.until("the first event", |mirror| mirror.ids("things").contains(&"first".to_owned()));
    // Then every request is answered within a second, all the time;
    mirror.until("all events", |mirror| {
        let requested_at = Instant::now();
        assert_eq!(mirror.get("/healthz").0, 200);
        assert!(requested_at.elapsed() < Duration::from_secs(1), "{:?}", requested_at.elapsed());
        mirror.number("SELECT count(*) FROM live_items WHERE id LIKE 'long-%'") == EVENTS
    });
    // the long ids are ignored with a finding, and the last id that was not too long is sent back;
    assert_eq!(mirror.finding("things", "long-event-id"), EVENTS);
    let second = connected_again.recv_timeout(crate::support::DEADLINE).unwrap();
    assert_eq!(second.header("Last-Event-ID"), Some("short"));
    // no file holds any of the long ids, and memory held one event.
    assert_eq!(mirror.holds_bytes(&"x".repeat(2_049), &[]), Vec::<String>::new());
    assert!(mirror.most_memory() < MEMORY, "{} MiB", mirror.most_memory() >> 20);
}

#[test]
fn streams_that_leave_large_events_half_sent_hold_no_more_memory_than_pages_and_delay_nobody() {
    // Given more streams than the memory limit allows.
    let publisher = ScriptedPublisher::start(|_| Reply::page(page(&[], "?after=1")));
    let mut mirror = MirrorProcess::new();
    for n in 0..16 {
        let streamer = RawStreamServer::start();
        let keys = format!("sse.url = \"{}\"", streamer.url("/stream"));
        mirror = mirror.feed_with(&format!("stranger-{n}"), &publisher.url(&format!("/{n}")), &keys);
        std::thread::spawn(move || {
            let mut open = Vec::new();
            while let Some(mut connection) = streamer.next_within(crate::support::DEADLINE) {
                connection.send(HEAD);
                connection.send(format!("event: itemupdate\ndata: {}", "x".repeat(ID_BYTES)));
                open.push(connection);
            }
        });
    }
    let test_feed = TestFeed::of(300, 100);
    let serving = Arc::clone(&test_feed);
    let healthy = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror = mirror.feed("healthy", &healthy.url("/healthy")).start();
    // When they hold the whole budget
    let gave_way = "SELECT count(*) FROM endpoints WHERE transport = 'sse' AND reason LIKE 'no-memory: %'";
    mirror.until("one that gives way", |mirror| mirror.number(gave_way) > 0);
    // Then a healthy feed gets its changes in time, again and again, and memory is bounded.
    for n in 0..10 {
        test_feed.put(&format!("news-{n}"));
        mirror.until_within(Duration::from_secs(5), "the news", |mirror| mirror.live("healthy") == test_feed.live());
    }
    assert!(mirror.most_memory() < MEMORY, "{} MiB", mirror.most_memory() >> 20);
}
