//! Memory is never held for a stranger: whoever drips, hangs or floods, a feed of another host gets its news in time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Mirror, Publisher, Reply, Shelf, item, page};

/// The healthy feed's interval (200 ms), 2 s, and what a loaded machine needs.
const IN_TIME: Duration = Duration::from_secs(5);

/// A host that answers each request with the head of a page of `length` bytes, so much of it, and then a byte a second.
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

/// News of a healthy feed come in time, again and again.
fn stays_current(mirror: &Mirror, shelf: &Shelf) {
    let began = Instant::now();
    let mut news = 0;
    while began.elapsed() < Duration::from_secs(8) {
        news += 1;
        shelf.put(&format!("news-{news}"));
        mirror.until_within(IN_TIME, "the news", |mirror| mirror.live("healthy") == shelf.live());
    }
}

fn beside(strangers: impl IntoIterator<Item = String>) -> (Mirror, std::sync::Arc<Shelf>, Publisher) {
    let shelf = Shelf::of(300, 100);
    let serving = std::sync::Arc::clone(&shelf);
    let publisher = Publisher::start(move |request| serving.page(request));
    let mut mirror = Mirror::new();
    for (n, url) in strangers.into_iter().enumerate() {
        mirror = mirror.feed(&format!("stranger-{n}"), &url);
    }
    let mirror = mirror.feed("healthy", &publisher.url("/healthy")).start();
    (mirror, shelf, publisher)
}

#[test]
fn answers_that_declare_all_the_memory_and_drip_delay_no_feed_of_another_host() {
    for at_once in [0, 30 << 20] {
        // Given
        let (mirror, shelf, _publisher) = beside((0..3).map(|_| dripper(50_200_000, at_once)));
        // Then
        mirror.until_level("healthy");
        stays_current(&mirror, &shelf);
    }
}

#[test]
fn hosts_that_never_answer_hold_no_memory() {
    // Given: connections are taken by the kernel, and nobody ever answers.
    let silent: Vec<TcpListener> = (0..220).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let urls: Vec<String> =
        silent.iter().map(|listener| format!("http://{}/feed", listener.local_addr().unwrap())).collect();
    let (mirror, shelf, _publisher) = beside(urls);
    // Then
    mirror.until_level("healthy");
    stays_current(&mirror, &shelf);
}

#[test]
fn a_feed_whose_last_page_was_large_and_which_then_hangs_holds_nothing_of_others() {
    // Given: a page of 40 MB, and silence behind it.
    let large = Publisher::start(|request| match request.query() {
        "" => {
            let blank = " ".repeat(40_000_000);
            Reply::page(page(&[item("one", 1)], "?after=1").replacen('{', &format!("{{{blank}"), 1))
        }
        _ => Reply::silence(),
    });
    let (mirror, shelf, _publisher) = beside([large.url("/large")]);
    mirror.until("the large page", |_| large.requests().iter().any(|request| !request.query().is_empty()));
    // Then
    mirror.until_level("healthy");
    stays_current(&mirror, &shelf);
}
