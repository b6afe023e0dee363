//! No publisher can hold the memory: whichever host drips, hangs or floods, a feed of another host gets its changes in
//! time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page};

/// The healthy feed's interval (200 ms), 2 s, and the extra time that a loaded machine needs.
const IN_TIME: Duration = Duration::from_secs(5);

/// A host that answers each request with the head of a page of `length` bytes, a part of it at once, and then a byte a
/// second.
fn dripper(length: usize, at_once: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/feed", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || drip(stream, length, at_once));
        }
    });
    url
}

fn drip(mut stream: TcpStream, length: usize, at_once: usize) -> Option<()> {
    let _ = stream.read(&mut [0; 4096]).ok()?;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n").ok()?;
    stream.write_all(&vec![b' '; at_once]).ok()?;
    let (_never, pause) = std::sync::mpsc::sync_channel::<()>(0);
    loop {
        let _ = pause.recv_timeout(Duration::from_secs(1));
        stream.write_all(b" ").ok()?;
    }
}

/// Changes of a healthy feed come in time, again and again.
fn stays_current(mirror: &MirrorProcess, test_feed: &TestFeed) {
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < Duration::from_secs(8) {
        changes += 1;
        test_feed.put(&format!("news-{changes}"));
        mirror.until_within(IN_TIME, "the news", |mirror| mirror.live("healthy") == test_feed.live());
    }
}

fn beside(bad_urls: impl IntoIterator<Item = String>) -> (MirrorProcess, std::sync::Arc<TestFeed>, ScriptedPublisher) {
    let test_feed = TestFeed::of(300, 100);
    let serving = std::sync::Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mut mirror = MirrorProcess::new();
    for (n, url) in bad_urls.into_iter().enumerate() {
        mirror = mirror.feed(&format!("stranger-{n}"), &url);
    }
    let mirror = mirror.feed("healthy", &publisher.url("/healthy")).start();
    (mirror, test_feed, publisher)
}

#[test]
fn answers_that_declare_all_the_memory_and_drip_delay_no_feed_of_another_host() {
    for at_once in [0, 30 << 20] {
        // Given
        let (mirror, test_feed, _publisher) = beside((0..3).map(|_| dripper(50_200_000, at_once)));
        // Then
        mirror.until_level("healthy");
        stays_current(&mirror, &test_feed);
    }
}

#[test]
fn hosts_that_never_answer_hold_no_memory() {
    // Given: connections that the kernel accepts, and nobody ever answers.
    let silent: Vec<TcpListener> = (0..220).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let urls: Vec<String> =
        silent.iter().map(|listener| format!("http://{}/feed", listener.local_addr().unwrap())).collect();
    let (mirror, test_feed, _publisher) = beside(urls);
    // Then
    mirror.until_level("healthy");
    stays_current(&mirror, &test_feed);
}

#[test]
fn a_feed_whose_last_page_was_large_and_which_then_hangs_holds_nothing_of_others() {
    // Given: a page of 40 MB, and silence behind it.
    let large = ScriptedPublisher::start(|request| match request.query() {
        "" => {
            let blank = " ".repeat(40_000_000);
            Reply::page(page(&[item("one", 1)], "?after=1").replacen('{', &format!("{{{blank}"), 1))
        }
        _ => Reply::silence(),
    });
    let (mirror, test_feed, _publisher) = beside([large.url("/large")]);
    mirror.until("the large page", |_| large.requests().iter().any(|request| !request.query().is_empty()));
    // Then
    mirror.until_level("healthy");
    stays_current(&mirror, &test_feed);
}

/// A host whose page of 24 MB comes steadily but slowly, until `go`.
fn steady(go: &Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/feed", listener.local_addr().unwrap());
    let go = Arc::clone(go);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let go = Arc::clone(&go);
            thread::spawn(move || answer_steadily(stream, &go));
        }
    });
    url
}

fn answer_steadily(mut stream: TcpStream, go: &AtomicBool) -> Option<()> {
    let mut head = [0; 4096];
    let length = stream.read(&mut head).ok()?;
    let first = !String::from_utf8_lossy(&head[..length]).contains("?after=1 ");
    let large = format!("{{{}", " ".repeat(if first { 24_000_000 } else { 0 }));
    let body = page(&[item("one", 1)][..usize::from(first)], "?after=1").replacen('{', &large, 1);
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n").ok()?;
    write!(stream, "Connection: close\r\n\r\n").ok()?;
    let (at_once, rest) = body.as_bytes().split_at(length * 3 / 4);
    stream.write_all(at_once).ok()?;
    let (_never, pause) = std::sync::mpsc::sync_channel::<()>(0);
    for some in rest.chunks(40_000) {
        if !go.load(Ordering::Relaxed) {
            let _ = pause.recv_timeout(Duration::from_millis(100));
        }
        stream.write_all(some).ok()?;
    }
    Some(())
}

#[test]
fn who_waits_for_memory_says_so_until_there_is_some() {
    // Given: two pages that fill the memory, one that goes beyond it, and one that waits, all of them steady and
    // equally large.
    let go = Arc::new(AtomicBool::new(false));
    let mut mirror = MirrorProcess::new();
    for n in 0..4 {
        mirror = mirror.feed_with(&format!("large-{n}"), &steady(&go), "http.page_timeout = \"60s\"");
    }
    let mirror = mirror.start();

    // Then
    let waiting = "SELECT name, health, reason FROM feeds WHERE reason LIKE 'waiting: for memory (%'";
    mirror.until("one says so", |mirror| !mirror.rows(waiting).is_empty());
    let [name, health, reason] = &mirror.rows(waiting)[0][..] else { panic!("three columns") };
    assert_eq!(health, "ok");
    assert!(reason.contains(" MiB are in use, ") && reason.contains(" MiB by 127.0.0.1"), "{reason}");
    for text in [mirror.get("/api/feeds").1, String::from_utf8(mirror.verb(&["status", name]).stdout).unwrap()] {
        assert!(text.contains("waiting: for memory ("), "{text}");
    }

    // When
    go.store(true, Ordering::Relaxed);

    // Then
    for n in 0..4 {
        mirror.until_level(&format!("large-{n}"));
    }
    mirror.until("no longer", |mirror| mirror.rows(waiting).is_empty());
}
