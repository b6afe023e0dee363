//! SIGKILL at any moment while a stream delivers 200 items a second: nothing is lost, and the stream is never resumed
//! from a position ahead of the data.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::stream::{StreamServer, event};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, holds_within, item, page, until};
use crate::{endpoint, mirror, until_mode};

/// The polled feed has the first item alone, so that only the stream can deliver the others.
fn first_item_alone() -> ScriptedPublisher {
    ScriptedPublisher::start(|request| {
        let items = if request.query().is_empty() { vec![item("i00000001", 1)] } else { Vec::new() };
        Reply::page(page(&items, "/feed?behind=1"))
    })
}

/// The stream's log: item `n` has `modified` n. A new connection gets the items after the position that it requests.
#[derive(Default)]
struct StreamLog {
    last: AtomicI64,
    is_over: AtomicBool,
    /// The positions that connections requested.
    resume_points: Mutex<Vec<i64>>,
}

impl StreamLog {
    fn behind(&self, target: &str) -> String {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let from = query.split('&').find_map(|pair| pair.strip_prefix("from=")).map_or(0, |from| from.parse().unwrap());
        self.resume_points.lock().unwrap().push(from);
        (from + 1..=self.last.load(Ordering::SeqCst)).map(entry).collect()
    }
}

fn id(n: i64) -> String {
    format!("i{n:08}")
}

fn entry(n: i64) -> String {
    event(&item(&id(n), n))
}

/// Stops the sending thread however the test ends.
struct StopSendingOnDrop<'a>(&'a StreamLog);

impl Drop for StopSendingOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

/// Sends an item every 5 ms until the log is over.
fn send_items(stream: &StreamServer, log: &StreamLog) {
    let began = Instant::now();
    let first = log.last.load(Ordering::SeqCst);
    while !log.is_over.load(Ordering::SeqCst) {
        let due = first + i64::try_from(began.elapsed().as_millis() / 5).unwrap();
        while log.last.load(Ordering::SeqCst) < due {
            let n = log.last.load(Ordering::SeqCst) + 1;
            // A client that connects in between gets the item twice, never not at all.
            log.last.store(n, Ordering::SeqCst);
            stream.send(&entry(n));
        }
        holds_within(Duration::from_millis(5), || log.is_over.load(Ordering::SeqCst));
    }
}

/// The items up to the stream's stored position that the mirror does not have.
fn missing(mirror: &MirrorProcess, last_streamed: i64) -> Vec<i64> {
    let stored = mirror.column("SELECT modified FROM items WHERE feed = 'f' ORDER BY modified");
    let stored: Vec<i64> = stored.iter().map(|n| n.parse().unwrap()).collect();
    (1..=last_streamed).filter(|n| stored.binary_search(n).is_err()).collect()
}

#[test]
fn killed_at_any_moment_the_stream_goes_on_without_a_gap() {
    // Given
    let publisher = first_item_alone();
    let log = Arc::new(StreamLog { last: AtomicI64::new(1), ..StreamLog::default() });
    let log_for_stream = Arc::clone(&log);
    let stream = StreamServer::greeting(move |target| log_for_stream.behind(target));
    let mut mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", stream.url())).start();
    until_mode(&mirror, "sse");

    std::thread::scope(|scope| {
        let _stop = StopSendingOnDrop(&log);
        scope.spawn(|| send_items(&stream, &log));
        let mut before = 0;
        for moment in [130, 470, 20, 310, 90, 640, 5, 220].map(Duration::from_millis) {
            // When: at a different moment each time, once a new item is there
            mirror.until("the stream brings more", |mirror| last_streamed(mirror) > before);
            let connections = log.resume_points.lock().unwrap().len();
            holds_within(moment, || false);
            mirror.kill();

            // Then: all items up to the stored position are there
            before = last_streamed(&mirror);
            assert_eq!(missing(&mirror, before), [] as [i64; 0], "ahead of the data: {before}");
            mirror.start_again();
            until("connected again", || log.resume_points.lock().unwrap().len() > connections);
            let resume_point = *log.resume_points.lock().unwrap().last().unwrap();
            assert!(resume_point <= before, "taken up from {resume_point}, where {before} was the last");
        }
    });

    // Then: all items, in the end
    let last = log.last.load(Ordering::SeqCst);
    mirror.until("the last item", |mirror| last_streamed(mirror) == last);
    assert!(last > 300, "{last} were sent");
    assert_eq!(missing(&mirror, last), [] as [i64; 0]);
    let count = mirror.number("SELECT count(*) FROM items WHERE feed = 'f'");
    assert_eq!(count, last, "and nothing twice");
    let by_stream = mirror.number("SELECT count(*) FROM items WHERE feed = 'f' AND transport = 'sse'");
    assert_eq!(by_stream, last - 1);
}

/// The `modified` of the stream's stored position.
fn last_streamed(mirror: &MirrorProcess) -> i64 {
    endpoint(mirror, "sse", "modified").parse().unwrap_or(0)
}
