//! The real binary at a broker that sends more than was requested: memory stays bounded, the operator sees the reason,
//! and polling keeps the feed up to date.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fake_broker::{FakeBroker, Sender};
use crate::support::{MirrorProcess, ScriptedPublisher, TestFeed, item};

/// Bytes that a debug build may hold with one queue: about half of it is held without any.
const MEMORY: u64 = 128 << 20;

/// A feed of three items, polled and consumed from this broker.
fn consuming(broker: &FakeBroker, keys: &str) -> (MirrorProcess, ScriptedPublisher, Arc<TestFeed>) {
    let test_feed = TestFeed::of(3, 7);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let amqp = format!("amqp.url_file = \"broker\"\namqp.queue = \"acme\"\npoll.min = \"200ms\"\n{keys}");
    let mirror = MirrorProcess::new().feed_with("things", &publisher.url("/feed"), &amqp);
    mirror.write("broker", &broker.url);
    (mirror.start(), publisher, test_feed)
}

fn endpoint(mirror: &MirrorProcess, column: &str) -> String {
    mirror.column(&format!("SELECT coalesce({column}, '') FROM endpoints WHERE transport = 'amqp'")).concat()
}

/// Waits for the reason that begins with `word`; checks that polling goes on.
fn until_refused(mirror: &MirrorProcess, test_feed: &TestFeed, word: &str) -> String {
    mirror.until(word, |mirror| endpoint(mirror, "reason").starts_with(&format!("{word}: ")));
    assert_eq!(endpoint(mirror, "health"), "retrying");
    test_feed.put("by-poll");
    mirror.until("news by polling", |mirror| mirror.ids("things").contains(&"by-poll".to_owned()));
    endpoint(mirror, "reason")
}

#[test]
fn an_endless_message_is_not_read_and_the_messages_before_it_are_stored_and_acknowledged() {
    // Given a queue with a message of 2^62 bytes after good ones, a new one each time.
    let broker = FakeBroker::start(|sender: &mut Sender, connection| {
        let id = format!("queued-{connection}");
        sender.message(1, item(&id, 100 + i64::try_from(connection).unwrap()).as_bytes())?;
        sender.message(2, b"not json")?;
        sender.deliver(3)?;
        sender.header(1 << 62, b"\x00\x00")?;
        loop {
            sender.body(&[b' '; 100_000])?;
        }
    });
    // When it is consumed
    let (mirror, _publisher, test_feed) = consuming(&broker, "");
    // Then the reason names the queue, the size and the limit,
    let reason = until_refused(&mirror, &test_feed, "too-large");
    for part in ["\"acme\"", "4611686018427387904", "16777216"] {
        assert!(reason.contains(part), "{reason}");
    }
    // and what came before it is here for good
    mirror.until("both acknowledged", |_| broker.acknowledged(0) == 2);
    assert!(mirror.ids("things").contains(&"queued-0".to_owned()));
    // and the next attempt waits longer each time, whatever messages come before.
    mirror.until("a fourth failure", |mirror| mirror.log().contains("failures=4"));
    assert!(mirror.most_memory() < MEMORY, "{} MiB", mirror.most_memory() >> 20);
}

#[test]
fn a_broker_that_sends_more_than_the_prefetch_is_disconnected_and_the_messages_within_it_are_acknowledged() {
    // Given
    let broker = FakeBroker::start(|sender: &mut Sender, _| {
        (1..).try_for_each(|tag| sender.message(tag, item(&format!("id-{tag}"), 100).as_bytes()))
    });
    // When
    let (mirror, _publisher, test_feed) = consuming(&broker, "amqp.prefetch = 10");
    // Then
    let reason = until_refused(&mirror, &test_feed, "over-prefetch");
    assert!(reason.contains("more than 10 messages") && reason.contains("\"acme\""), "{reason}");
    mirror.until("what is allowed acknowledged", |_| broker.acknowledged(0) >= 10);
    assert!(mirror.most_memory() < MEMORY, "{} MiB", mirror.most_memory() >> 20);
}

#[test]
fn large_messages_within_the_prefetch_wait_at_the_broker_until_those_before_them_are_stored() {
    // Given more messages than the memory limit, and a lock on the database file.
    const MESSAGES: u64 = 160;
    let sent = Arc::new(AtomicU64::new(0));
    let sending = Arc::clone(&sent);
    let mut broker = FakeBroker::start(move |sender: &mut Sender, connection| {
        let blank = " ".repeat(1 << 20);
        let first = if connection == 0 { 1 } else { MESSAGES + 1 };
        (first..=MESSAGES).try_for_each(|tag| {
            let body = format!("{blank}{}", item(&format!("large-{tag}"), 100));
            sender.message(tag, body.as_bytes())?;
            sending.store(tag, Ordering::Relaxed);
            Ok(())
        })
    });
    broker.url.push_str("/?heartbeat=4");
    let (mirror, _publisher, _shelf) = consuming(&broker, "");
    mirror.until("consuming", |_| broker.connections() == 1);
    let lock = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    lock.busy_timeout(crate::support::DEADLINE).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (written, heartbeats) = (broker.acknowledged(0), broker.heartbeats());
    // When nothing can be written for a while
    mirror.until("two heartbeats", |_| broker.heartbeats() >= heartbeats + 2);
    // Then the broker has to wait once sockets and the mirror are full, and still gets heartbeats;
    assert!(sent.load(Ordering::Relaxed) < written + 60, "{written} were written, and all sent: {sent:?}");
    drop(lock);
    // and when the lock is released, every message arrives over the same connection.
    mirror.until("all of them", |_| broker.acknowledged(0) == MESSAGES);
    assert_eq!(mirror.number("SELECT count(*) FROM items WHERE id LIKE 'large-%'"), i64::try_from(MESSAGES).unwrap());
    assert_eq!(broker.connections(), 1);
    assert_eq!(endpoint(&mirror, "health"), "ok");
    assert!(mirror.most_memory() < MEMORY, "{} MiB", mirror.most_memory() >> 20);
}

#[test]
fn headers_nested_twenty_thousand_times_end_the_connection_and_not_the_daemon() {
    // Given
    let broker = FakeBroker::start(|sender: &mut Sender, _| {
        let nested = (0..20_000).fold(Vec::new(), |inner, _| {
            let length = u32::try_from(inner.len()).unwrap().to_be_bytes();
            [b"A".as_slice(), &length, &inner].concat()
        });
        let table = [b"\x01k", nested.as_slice()].concat();
        let length = u32::try_from(table.len()).unwrap().to_be_bytes();
        sender.deliver(1)?;
        sender.header(2, &[b"\x20\x00".as_slice(), &length, &table].concat())?;
        sender.body(b"{}")
    });
    // When
    let (mut mirror, _publisher, test_feed) = consuming(&broker, "");
    // Then
    until_refused(&mirror, &test_feed, "bad-frame");
    assert!(mirror.is_running());
}
