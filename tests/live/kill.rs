//! SIGKILL at any moment while a stream brings 200 items a second: after it nothing is lost, and the stream was never
//! taken up from a place ahead of the data.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::stream::{StreamServer, event};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, holds_within, item, page, until};
use crate::{endpoint, mirror, until_mode};

/// What the poll side knows: the first item alone, so that only the stream can bring the others.
fn first_item_alone() -> ScriptedPublisher {
    ScriptedPublisher::start(|request| {
        let items = if request.query().is_empty() { vec![item("i00000001", 1)] } else { Vec::new() };
        Reply::page(page(&items, "/feed?behind=1"))
    })
}

/// The stream's own log: item `n` has `modified` n. Whoever connects gets what is behind the place asked for.
#[derive(Default)]
struct StreamLog {
    last: AtomicI64,
    over: AtomicBool,
    /// Where connections were taken up.
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

/// Ends the speaker however the test ends.
struct StopSendingOnDrop<'a>(&'a StreamLog);

impl Drop for StopSendingOnDrop<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// Sends an item every 5 ms, each one 5 ms after the last, until it is told to stop.
fn send_items(stream: &StreamServer, log: &StreamLog) {
    let began = Instant::now();
    let first = log.last.load(Ordering::SeqCst);
    while !log.over.load(Ordering::SeqCst) {
        let due = first + i64::try_from(began.elapsed().as_millis() / 5).unwrap();
        while log.last.load(Ordering::SeqCst) < due {
            let n = log.last.load(Ordering::SeqCst) + 1;
            // The one that connects in between gets it twice, never not at all.
            log.last.store(n, Ordering::SeqCst);
            stream.send(&entry(n));
        }
        holds_within(Duration::from_millis(5), || log.over.load(Ordering::SeqCst));
    }
}

/// Items between the first and the place where the stream is stored to stand that are not there.
fn missing(mirror: &MirrorProcess, place: i64) -> Vec<i64> {
    let held = mirror.column("SELECT modified FROM items WHERE feed = 'f' ORDER BY modified");
    let held: Vec<i64> = held.iter().map(|n| n.parse().unwrap()).collect();
    (1..=place).filter(|n| held.binary_search(n).is_err()).collect()
}

#[test]
fn killed_at_any_moment_the_stream_goes_on_without_a_gap() {
    // Given
    let publisher = first_item_alone();
    let log = Arc::new(StreamLog { last: AtomicI64::new(1), ..StreamLog::default() });
    let greeting = Arc::clone(&log);
    let stream = StreamServer::greeting(move |target| greeting.behind(target));
    let mut mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", stream.url())).start();
    until_mode(&mirror, "sse");

    std::thread::scope(|scope| {
        let _hush = StopSendingOnDrop(&log);
        scope.spawn(|| send_items(&stream, &log));
        let mut before = 0;
        for moment in [130, 470, 20, 310, 90, 640, 5, 220].map(Duration::from_millis) {
            // When: at a moment of its own, once something new has come
            mirror.until("the stream brings more", |mirror| place(mirror) > before);
            let asked = log.resume_points.lock().unwrap().len();
            holds_within(moment, || false);
            mirror.kill();

            // Then: what is stored as read is there
            before = place(&mirror);
            assert_eq!(missing(&mirror, before), [] as [i64; 0], "ahead of the data: {before}");
            mirror.start_again();
            until("connected again", || log.resume_points.lock().unwrap().len() > asked);
            let taken_up = *log.resume_points.lock().unwrap().last().unwrap();
            assert!(taken_up <= before, "taken up from {taken_up}, where {before} was the last");
        }
    });

    // Then: all of it, in the end
    let last = log.last.load(Ordering::SeqCst);
    mirror.until("the last item", |mirror| place(mirror) == last);
    assert!(last > 300, "{last} were sent");
    assert_eq!(missing(&mirror, last), [] as [i64; 0]);
    let count = mirror.number("SELECT count(*) FROM items WHERE feed = 'f'");
    assert_eq!(count, last, "and nothing twice");
    let by_stream = mirror.number("SELECT count(*) FROM items WHERE feed = 'f' AND transport = 'sse'");
    assert_eq!(by_stream, last - 1);
}

/// The `modified` where the stream is stored to stand.
fn place(mirror: &MirrorProcess) -> i64 {
    endpoint(mirror, "sse", "modified").parse().unwrap_or(0)
}
