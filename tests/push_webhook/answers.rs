//! The router's answer to each request, and when it is sent.

use std::io::Write;
use std::time::Duration;

use feedmirror::source::webhook::{PostAnswer, RouteState};
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{BUDGET, DEADLINE, MAX, NEW, OLD, WebhookHarness, bearer, post, reply};

const PAGE: &[u8] = br#"{"items":[]}"#;

/// GitHub's published example: the secret [`NEW`], this body, this signature.
pub(crate) const SIGNED: &[u8] = b"Hello, World!";
pub(crate) const SIGNATURE: &str =
    "X-Hub-Signature-256: sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17\r\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Waits for a condition under a deadline.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("never seen: {what}"));
}

#[tokio::test]
async fn a_post_without_a_secret_gets_401_and_nothing_is_submitted() {
    let harness = WebhookHarness::start().await;
    let wrong_signature = SIGNATURE.replace("757107", "757108");
    let unprefixed = SIGNATURE.replace("sha256=", "");
    for headers in ["", &bearer("wrong"), &bearer(""), "Authorization: Basic x\r\n", &wrong_signature, &unprefixed] {
        let reply = harness.post(headers, SIGNED).await;
        assert_eq!((reply.status, reply.header("WWW-Authenticate")), (401, Some("Bearer")), "{headers}");
    }
    assert_eq!(harness.ask(&post("/in/a?token=wrong", "", PAGE)).await.status, 401);
    assert_eq!(harness.waiting(), 0);
}

#[tokio::test]
async fn each_of_the_secrets_is_accepted_and_the_body_arrives_as_it_was_sent() {
    let mut harness = WebhookHarness::start().await;
    for secret in [NEW, OLD] {
        let (seen, reply) = harness.post_with_answer(&bearer(secret), PAGE, PostAnswer::Committed).await;
        assert_eq!((seen.bytes.as_slice(), seen.fifth, seen.fault, reply.status), (PAGE, false, None, 204));
    }
    let (seen, signed) = harness.post_with_answer(SIGNATURE, SIGNED, PostAnswer::Committed).await;
    assert_eq!((seen.bytes.as_slice(), signed.status), (SIGNED, 204));
    let both = format!("{}{SIGNATURE}", bearer("wrong"));
    assert_eq!(harness.post_with_answer(&both, SIGNED, PostAnswer::Committed).await.1.status, 204);
    let largest = vec![b'x'; MAX];
    let (seen, reply_to_it) = harness.post_with_answer(&bearer(NEW), &largest, PostAnswer::Committed).await;
    assert_eq!((seen.bytes == largest, reply_to_it.status), (true, 204));
    let chunked = b"POST /in/a?token=the%2Dold-one HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n6\r\n{\"item\r\n6\r\ns\":[]}\r\n0\r\n\r\n";
    let mut stream = TcpStream::connect(harness.address).await.unwrap();
    stream.write_all(chunked).await.unwrap();
    let posted = timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap();
    assert_eq!(posted.bytes, PAGE);
    posted.answer.send(PostAnswer::Committed).unwrap();
    assert_eq!(reply(&mut stream).await.status, 204);
}

#[tokio::test]
async fn compressed_bodies_are_decompressed_within_the_limit() {
    let mut harness = WebhookHarness::start().await;
    let headers = format!("{}Content-Encoding: gzip\r\n", bearer(NEW));
    let text = vec![b' '; MAX];
    let (seen, reply) = harness.post_with_answer(&headers, &gzip(&text), PostAnswer::Committed).await;
    assert_eq!((seen.bytes == text, reply.status), (true, 204));

    assert_eq!(harness.post(&headers, &gzip(&vec![b' '; MAX + 1])).await.status, 413);
    assert_eq!(harness.post(&headers, &gzip(PAGE)[..12]).await.status, 400);
    let reply = harness.post(&headers.replace("gzip", "compress"), PAGE).await;
    assert_eq!((reply.status, reply.header("Accept-Encoding")), (415, Some("gzip, br, zstd")));
    assert_eq!(harness.waiting(), 0);
}

#[tokio::test]
async fn unknown_feeds_get_404_and_other_methods_405() {
    let harness = WebhookHarness::start().await;
    for path in ["/in/b", "/in", "/", "/in/a/", "/a"] {
        assert_eq!(harness.ask(&post(path, &bearer(NEW), PAGE)).await.status, 404, "{path}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        let reply =
            harness.ask(format!("{method} /in/a HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert_eq!((reply.status, reply.header("Allow")), (405, Some("POST")), "{method}");
    }
    harness.inbox.remove("a");
    assert_eq!(harness.post(&bearer(NEW), PAGE).await.status, 404);
}

#[tokio::test]
async fn a_body_refused_unread_is_read_to_its_end_so_that_its_sender_sees_the_answer() {
    let harness = WebhookHarness::start().await;
    harness.state.send_replace(RouteState::Closed("the feed is purged"));
    let body = vec![b' '; MAX / 2];
    for (path, headers, status) in
        [("/in/b", bearer(NEW), 404), ("/in/a", bearer("no"), 401), ("/in/a", bearer(NEW), 409)]
    {
        let mut stream = TcpStream::connect(harness.address).await.unwrap();
        let request = post(path, &headers, &body);
        let (first, rest) = request.split_at(request.len() / 2);
        stream.write_all(first).await.unwrap();
        let mut byte = [0];
        assert!(timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err(), "{status}");
        stream.write_all(rest).await.unwrap();
        assert_eq!(reply(&mut stream).await.status, status);
    }
}

#[tokio::test]
async fn a_2xx_comes_only_once_the_loop_has_answered() {
    let mut harness = WebhookHarness::start().await;
    let mut stream = TcpStream::connect(harness.address).await.unwrap();
    stream.write_all(&post("/in/a", &bearer(NEW), PAGE)).await.unwrap();
    let posted = timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap();
    // Given: the loop has the body and has not answered. Then no byte of a response is sent.
    let mut byte = [0];
    assert!(timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err());
    posted.answer.send(PostAnswer::Committed).unwrap();
    assert_eq!(reply(&mut stream).await.status, 204);
}

#[tokio::test]
async fn each_answer_of_the_loop_has_its_status() {
    let mut harness = WebhookHarness::start().await;
    let table = [
        (PostAnswer::Committed, 204, None, ""),
        (PostAnswer::Unreadable("not-json: expected value".into()), 400, None, "not-json: expected value\n"),
        (PostAnswer::Busy(Duration::from_millis(1500)), 503, Some("2"), "not now\n"),
        (PostAnswer::Busy(Duration::ZERO), 503, Some("1"), "not now\n"),
        (PostAnswer::OutdatedGeneration, 409, None, "the feed takes nothing any more\n"),
    ];
    for (answer, status, again, words) in table {
        let (_, reply) = harness.post_with_answer(&bearer(NEW), PAGE, answer).await;
        assert_eq!((reply.status, reply.header("Retry-After"), reply.body.as_str()), (status, again, words));
    }
    // A loop that ends without an answer.
    let mut stream = TcpStream::connect(harness.address).await.unwrap();
    stream.write_all(&post("/in/a", &bearer(NEW), PAGE)).await.unwrap();
    drop(timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap());
    assert_eq!(reply(&mut stream).await.status, 503);
}

#[tokio::test]
async fn a_deferred_or_closed_route_says_so_to_an_authenticated_publisher_only() {
    let harness = WebhookHarness::start().await;
    harness.state.send_replace(RouteState::Deferred { retry_after: Duration::from_secs(90), why: "not level yet" });
    for (headers, body) in [(bearer(NEW), PAGE), (SIGNATURE.to_owned(), SIGNED)] {
        let reply = harness.post(&headers, body).await;
        assert_eq!(
            (reply.status, reply.header("Retry-After"), reply.body.as_str()),
            (503, Some("90"), "not level yet\n")
        );
    }
    harness.state.send_replace(RouteState::Closed("purged"));
    for (headers, body) in [(bearer(NEW), PAGE), (SIGNATURE.to_owned(), SIGNED)] {
        assert_eq!(harness.post(&headers, body).await.status, 409);
    }
    assert_eq!(harness.post("", PAGE).await.status, 401);
    assert_eq!(harness.post(SIGNATURE, PAGE).await.status, 401);
    assert_eq!(harness.waiting(), 0);
}

#[tokio::test]
async fn a_full_queue_is_busy_and_keeps_what_it_holds() {
    let mut harness = WebhookHarness::with_capacity(1, None).await;
    let mut first = TcpStream::connect(harness.address).await.unwrap();
    first.write_all(&post("/in/a", &bearer(NEW), PAGE)).await.unwrap();
    until("the first waits", || harness.waiting() == 1).await;

    let reply_to_second = harness.post(&bearer(NEW), b"second").await;
    assert_eq!((reply_to_second.status, reply_to_second.header("Retry-After")), (503, Some("5")));

    let posted = harness.posted.recv().await.unwrap();
    assert_eq!(posted.bytes, PAGE);
    posted.answer.send(PostAnswer::Committed).unwrap();
    assert_eq!(reply(&mut first).await.status, 204);
}

#[tokio::test]
async fn a_queued_body_is_applied_though_its_publisher_has_gone() {
    let mut harness = WebhookHarness::start().await;
    let mut stream = TcpStream::connect(harness.address).await.unwrap();
    stream.write_all(&post("/in/a", &bearer(NEW), PAGE)).await.unwrap();
    until("it waits", || harness.waiting() == 1).await;
    drop(stream);
    let posted = timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap();
    assert_eq!(posted.bytes, PAGE);
    until("nobody waits for the answer", || posted.answer.is_closed()).await;
}

#[tokio::test]
async fn without_memory_publishers_wait_and_unauthenticated_bodies_hold_none() {
    let harness = WebhookHarness::start().await;
    let all = harness.budget.reserve(BUDGET).await;
    let reply = harness.post(&bearer(NEW), PAGE).await;
    assert_eq!((reply.status, reply.header("Retry-After")), (503, Some("5")));
    assert_eq!(harness.post(SIGNATURE, SIGNED).await.status, 503);
    assert_eq!(harness.post(SIGNATURE, PAGE).await.status, 401, "judged without the mirror's memory");
    drop(all);
    // The refused bodies have released all memory.
    assert_eq!(timeout(DEADLINE, harness.budget.reserve(BUDGET)).await.unwrap().bytes(), BUDGET);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let harness = WebhookHarness::start().await;
    let head = format!(
        "POST /in/a HTTP/1.1\r\nHost: m\r\nContent-Length: 1000000000\r\n{}\r\n{}",
        bearer(NEW),
        "x".repeat(1024)
    );
    assert_eq!(harness.ask(head.as_bytes()).await.status, 413);
    let chunk = format!("{MAX:x}\r\n{}\r\n1\r\nx\r\n", "x".repeat(MAX));
    let head = format!("POST /in/a HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n{}\r\n{chunk}", bearer(NEW));
    assert_eq!(harness.ask(head.as_bytes()).await.status, 413);
    assert_eq!(harness.waiting(), 0);
}
