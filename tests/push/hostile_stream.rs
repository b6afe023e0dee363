//! The real binary at a stream whose fields are as large as an event may be: whoever asks the mirror meanwhile is
//! answered, and nothing of it is kept or sent back.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use crate::streamer::{Connection, Streamer};
use crate::support::{Mirror, Publisher, Shelf, item};

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const ID_BYTES: usize = 15_000_000;

/// An event of an item, with an id.
fn send(connection: &mut Connection, event_id: &str, item_id: &str) {
    let item = item(item_id, 1_000).replace('\n', " ");
    connection.send(format!("event: itemupdate\nid: {event_id}\ndata: {item}\n\n"));
}

#[test]
fn event_ids_of_megabytes_are_passed_over_and_never_sent_back_and_delay_no_answer() {
    // Given a stream with an id that is short, and then many that are not; then it ends.
    const EVENTS: i64 = 20;
    let streamer = Streamer::start();
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
    let shelf = Shelf::of(3, 7);
    let serving = Arc::clone(&shelf);
    let publisher = Publisher::start(move |request| serving.page(request));
    // When it is read
    let keys = format!("sse.url = \"{url}\"");
    let mirror = Mirror::new().feed_with("things", &publisher.url("/feed"), &keys).start();
    mirror.until("the first event", |mirror| mirror.ids("things").contains(&"first".to_owned()));
    // Then whoever asks is answered within a second, all the time;
    mirror.until("all events", |mirror| {
        let asked = Instant::now();
        assert_eq!(mirror.get("/healthz").0, 200);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        mirror.number("SELECT count(*) FROM live_items WHERE id LIKE 'long-%'") == EVENTS
    });
    // the ids are passed over with a finding, and what is sent back is the last one that was not too long;
    assert_eq!(mirror.finding("things", "long-event-id"), EVENTS);
    let second = connected_again.recv_timeout(crate::support::DEADLINE).unwrap();
    assert_eq!(second.header("Last-Event-ID"), Some("short"));
    // nothing of them is in any file, and memory held one event.
    assert_eq!(mirror.holds_bytes(&"x".repeat(2_049), &[]), Vec::<String>::new());
    assert!(mirror.most_memory() < 160 << 20, "{} MiB", mirror.most_memory() >> 20);
}
