//! Unauthenticated connections at the listener: whatever they send or don't send, a publisher's page is accepted at
//! once.

use std::time::{Duration, Instant};

use feedmirror::source::webhook::PostAnswer;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::answers::{SIGNATURE, SIGNED};
use crate::harness::{DEADLINE, NEW, WebhookHarness, bearer, post};

/// A publisher waits no longer than this for slots and memory that unauthenticated connections hold.
const SOON: Duration = Duration::from_secs(5);

/// Opens so many unauthenticated connections, and sends these bytes on each.
async fn unauthenticated(harness: &WebhookHarness, count: usize, sent: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = timeout(DEADLINE, TcpStream::connect(harness.address)).await.unwrap().unwrap();
        // A connection that was evicted already accepts no bytes.
        drop(stream.write_all(sent).await);
        held.push(stream);
    }
    held
}

async fn assert_accepted_soon(harness: &mut WebhookHarness, headers: &str, body: &[u8]) {
    let began = Instant::now();
    let (seen, reply) = harness.post_with_answer(headers, body, PostAnswer::Committed).await;
    assert_eq!((seen.bytes.as_slice(), reply.status), (body, 204));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_with_any_signature_delay_no_publisher() {
    // Given: more bodies than the budget has memory for, each with its first byte sent
    let mut harness = WebhookHarness::start().await;
    let wrong = SIGNATURE.replace("757107", "757108");
    let head = format!("POST /in/a HTTP/1.1\r\nHost: m\r\nContent-Length: 100000\r\n{wrong}\r\n{{");
    let mut held = unauthenticated(&harness, 300, head.as_bytes()).await;

    // When, then
    for _ in 0..5 {
        assert_accepted_soon(&mut harness, SIGNATURE, SIGNED).await;
        assert_accepted_soon(&mut harness, &bearer(NEW), b"page").await;
        for connection in &mut held {
            drop(connection.write_all(b" ").await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_of_a_head_delays_no_post() {
    let mut harness = WebhookHarness::start().await;
    let held = unauthenticated(&harness, 300, b"P").await;
    assert_accepted_soon(&mut harness, &bearer(NEW), b"page").await;
    drop(held);
    let silent = unauthenticated(&harness, 300, b"").await;
    assert_accepted_soon(&mut harness, SIGNATURE, SIGNED).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_being_answered_keeps_its_slot() {
    // Given: a page that the loop has not answered yet
    let mut harness = WebhookHarness::start().await;
    let mut publisher = TcpStream::connect(harness.address).await.unwrap();
    publisher.write_all(&post("/in/a", &bearer(NEW), b"page")).await.unwrap();
    let posted = timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap();

    // When
    let held = unauthenticated(&harness, 400, b"P").await;
    assert_accepted_soon(&mut harness, &bearer(NEW), b"another").await;

    // Then
    posted.answer.send(PostAnswer::Committed).unwrap();
    assert_eq!(crate::harness::reply(&mut publisher).await.status, 204);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_are_answered_ever_more_slowly_and_right_ones_at_once() {
    let mut harness = WebhookHarness::start().await;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let began = Instant::now();
        assert_eq!(harness.post(&bearer("wrong"), b"page").await.status, 401);
        waits.push(began.elapsed());
    }
    // 200, 400 and 800 ms after five answers without delay.
    assert!(waits[5] >= Duration::from_millis(200) && waits[7] >= Duration::from_millis(800), "{waits:?}");
    assert_accepted_soon(&mut harness, &bearer(NEW), b"page").await;
}
