use std::time::Duration;

use feedmirror::source::budget::{MemoryBudget, Reservation};
use feedmirror::source::client::HttpClients;
use feedmirror::source::http::{EndpointClient, HttpFailure, HttpSettings};
use feedmirror::source::secret::ConfiguredValue;
use feedmirror::source::sse::{MAX_EVENT_BYTES, SseEvent, Stream};
use tokio::time::timeout;

use crate::raw_stream_server::RawStreamServer;
use crate::support::DEADLINE;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";
const OPEN: &str = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn client(url: &str, settings: &HttpSettings) -> EndpointClient {
    let headers = [("X-Api-Key".to_owned(), ConfiguredValue::Plain("key".into()))];
    EndpointClient::new(&HttpClients::default(), url, settings, &headers, &[]).unwrap()
}

async fn open(url: &str, settings: &HttpSettings) -> Result<Stream, HttpFailure> {
    open_with(url, settings, share()).await
}

async fn open_with(url: &str, settings: &HttpSettings, share: Reservation) -> Result<Stream, HttpFailure> {
    timeout(DEADLINE, Stream::open(&client(url, settings), url, None, share)).await.unwrap()
}

/// A reservation of a budget that nothing else uses.
fn share() -> Reservation {
    MemoryBudget::new(48 << 20).open_page("publisher", 0)
}

async fn next(stream: &mut Stream) -> Result<Option<SseEvent>, HttpFailure> {
    timeout(DEADLINE, stream.next()).await.unwrap()
}

/// The events of a body, up to its end or a failure.
async fn read(body: impl AsRef<[u8]>) -> (Vec<SseEvent>, Option<HttpFailure>) {
    let answer = [HEAD.as_bytes(), b"Connection: close\r\n\r\n", body.as_ref()].concat();
    let (url, answered) = RawStreamServer::start().answering(answer);
    let mut stream = open(&url, &HttpSettings::default()).await.unwrap();
    drop(answered.recv().unwrap());
    let mut events = Vec::new();
    loop {
        match next(&mut stream).await {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(failure) => return (events, Some(failure)),
        }
    }
}

#[tokio::test]
async fn a_request_has_the_last_event_id_and_the_feeds_secrets() {
    let server = RawStreamServer::start();
    let url = server.url("/stream?from=1&after=%7Bx%7D");
    let client = client(&server.url("/stream"), &HttpSettings::default());
    let opening = tokio::spawn(async move { Stream::open(&client, &url, Some("id-7"), share()).await.map(drop) });
    let mut connection = tokio::task::spawn_blocking(move || server.next()).await.unwrap();
    connection.send(OPEN);
    opening.await.unwrap().unwrap();
    assert!(connection.head.starts_with("GET /stream?from=1&after=%7Bx%7D HTTP/1.1\r\n"), "{}", connection.head);
    assert_eq!(connection.header("Accept"), Some("text/event-stream"));
    assert_eq!(connection.header("Last-Event-ID"), Some("id-7"));
    assert_eq!(connection.header("X-Api-Key"), Some("key"));
}

#[tokio::test]
async fn events_arrive_as_sent_however_the_bytes_are_split() {
    let server = RawStreamServer::start();
    let (url, answered) = server.answering(OPEN);
    let mut stream = open(&url, &HttpSettings::default()).await.unwrap();
    let mut connection = answered.recv().unwrap();
    let event = "\u{feff}event: itemupdate\r\nid: 1\r\ndata: {\"é\":\r\ndata: 1}\r\n\r\n";
    for byte in event.as_bytes() {
        connection.send_chunk(&[*byte]);
    }
    let first = next(&mut stream).await.unwrap().unwrap();
    let expected =
        SseEvent { name: "itemupdate".into(), data: "{\"é\":\n1}".into(), id: Some("1".into()), retry: None };
    assert_eq!(first, expected);
    connection.send_chunk(b": ping\n\nretry: 1500\n\nnonsense: 1\n\n\xff\n\ndata: \xff\n\n");
    assert_eq!(next(&mut stream).await.unwrap().unwrap().data, "\u{fffd}");
    assert_eq!(stream.retry(), Some(Duration::from_millis(1500)));
    connection.send("0\r\n\r\n");
    assert_eq!(next(&mut stream).await.unwrap(), None);
    assert_eq!(next(&mut stream).await.unwrap(), None);
}

#[tokio::test]
async fn an_event_without_its_blank_line_is_none() {
    let (events, failure) = read("data: 1\n\ndata: 2\n").await;
    assert_eq!(events.iter().map(|event| event.data.as_str()).collect::<Vec<_>>(), ["1"]);
    assert!(failure.is_none());
}

#[tokio::test]
async fn a_stream_may_be_silent_for_any_time_and_a_dropped_wait_loses_nothing() {
    let settings = HttpSettings { read_timeout: Duration::from_millis(50), ..HttpSettings::default() };
    let (url, answered) = RawStreamServer::start().answering(OPEN);
    let mut stream = open(&url, &settings).await.unwrap();
    let mut connection = answered.recv().unwrap();
    connection.send_chunk(b"data: a");
    for _ in 0..4 {
        assert!(timeout(settings.read_timeout, stream.next()).await.is_err());
    }
    connection.send_chunk(b"b\n\n");
    assert_eq!(next(&mut stream).await.unwrap().unwrap().data, "ab");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_a_timeout() {
    let settings = HttpSettings { read_timeout: Duration::from_millis(50), ..HttpSettings::default() };
    let (url, _answered) = RawStreamServer::start().answering("");
    assert!(matches!(open(&url, &settings).await, Err(HttpFailure::Timeout(_))));
}

#[tokio::test]
async fn a_connection_that_breaks_ends_the_stream_with_one_failure() {
    let (url, answered) = RawStreamServer::start().answering(OPEN);
    let mut stream = open(&url, &HttpSettings::default()).await.unwrap();
    let mut connection = answered.recv().unwrap();
    connection.send_chunk(b"data: 1\n\n");
    connection.send("ffff\r\ndata: 2\n\n");
    assert_eq!(next(&mut stream).await.unwrap().unwrap().data, "1");
    assert_eq!(next(&mut stream).await.unwrap().unwrap().data, "2");
    drop(connection);
    assert!(matches!(next(&mut stream).await, Err(HttpFailure::Broken(_))));
    assert_eq!(next(&mut stream).await.unwrap(), None);
}

#[tokio::test]
async fn an_event_without_end_is_refused_at_the_limit_and_the_connection_dropped() {
    for limit in [64 << 10, 1 << 40] {
        let settings = HttpSettings { max_page_bytes: limit, ..HttpSettings::default() };
        let expected = limit.min(MAX_EVENT_BYTES);
        let (url, answered) = RawStreamServer::start().answering([HEAD, "\r\n"].concat());
        let mut stream = open(&url, &settings).await.unwrap();
        let mut connection = answered.recv().unwrap();
        let sent = tokio::task::spawn_blocking(move || {
            let line = ["data: ", &"x".repeat(8 << 10), "\n"].concat();
            let mut sent = 0_u64;
            while connection.send(&line) {
                sent += line.len() as u64;
            }
            sent
        });
        assert!(matches!(next(&mut stream).await, Err(HttpFailure::TooLarge(limit)) if limit == expected));
        assert_eq!(next(&mut stream).await.unwrap(), None);
        // Beyond the limit only sockets and buffers hold bytes, which on a busy machine grow to tens of MiB.
        let sent = timeout(DEADLINE, sent).await.unwrap().unwrap();
        assert!(sent >= expected && sent < expected + (64 << 20), "{sent}");
    }
}

#[tokio::test]
async fn what_is_no_event_stream_is_refused() {
    let rows = [
        ("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "no event stream"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "no event stream"),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n", "bad-coding"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "http-204"),
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nwho?",
            "http-401: the publisher answered 401: \"who?\"",
        ),
        ("HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\n\r\n", "foreign-redirect"),
        ("SSH-2.0-nothing\r\n\r\n", "broken-response"),
    ];
    for (answer, expected) in rows {
        let (url, _answered) = RawStreamServer::start().answering(answer);
        let failure = open(&url, &HttpSettings::default()).await.map(drop).unwrap_err().to_string();
        assert!(failure.contains(expected), "{answer:?}: {failure}");
    }
}

#[tokio::test]
async fn a_busy_stream_s_retry_after_is_read() {
    let answer = "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    let (url, _answered) = RawStreamServer::start().answering(answer);
    let failure = open(&url, &HttpSettings::default()).await.map(drop).unwrap_err();
    let wait = Some(Duration::from_secs(7));
    assert!(matches!(failure, HttpFailure::Status { code: 503, retry_after, .. } if retry_after == wait));
}

#[tokio::test]
async fn events_are_charged_until_their_reservation_is_dropped_and_a_single_item_never_is() {
    let budget = MemoryBudget::new(1 << 20);
    let server = RawStreamServer::start();
    let (url, answered) = server.answering(OPEN);
    let mut stream = open_with(&url, &HttpSettings::default(), budget.open_page("publisher", 0)).await.unwrap();
    let mut connection = answered.recv().unwrap();
    // A single item.
    connection.send_chunk(b"data: 1\n\n");
    next(&mut stream).await.unwrap().unwrap();
    assert!(stream.take_share().is_none());
    // A large event whose end is missing, after one that is complete.
    connection.send_chunk(format!("data: {}\n\n", "x".repeat(300_000)).as_bytes());
    let first = next(&mut stream).await.unwrap().unwrap();
    connection.send_chunk(format!("data: {}", "x".repeat(200_000)).as_bytes());
    assert!(timeout(Duration::from_secs(1), stream.next()).await.is_err());
    assert!(budget.usage().1 >= 500_000);
    let share = stream.take_share().unwrap();
    assert!(share.bytes() >= first.data.len() as u64);
    connection.send_chunk(b"\n\n");
    next(&mut stream).await.unwrap().unwrap();
    drop((share, stream.take_share()));
    connection.send_chunk(b"data: 1\n\n");
    next(&mut stream).await.unwrap().unwrap();
    assert!(timeout(Duration::from_millis(200), stream.next()).await.is_err());
    assert_eq!(budget.usage().1, 0);
}

#[tokio::test]
async fn an_event_that_is_left_half_sent_is_preempted_by_waiting_pages() {
    // Given a budget that half an event uses up.
    let budget = MemoryBudget::new(1 << 20);
    let server = RawStreamServer::start();
    let (url, answered) = server.answering(OPEN);
    let mut stream = open_with(&url, &HttpSettings::default(), budget.open_page("publisher", 0)).await.unwrap();
    let mut connection = answered.recv().unwrap();
    connection.send_chunk(format!("data: good\n\ndata: {}", "x".repeat(900_000)).as_bytes());
    assert_eq!(next(&mut stream).await.unwrap().unwrap().data, "good");
    // When pages of other hosts need the memory, one of which may exceed the budget
    let mut over_budget = budget.open_page("a third", 0);
    let (_, _) = tokio::join!(timeout(Duration::from_millis(100), stream.next()), over_budget.grow_to(400_000));
    let mut page = budget.open_page("another", 0);
    let (end, grown) = tokio::join!(next(&mut stream), timeout(DEADLINE, page.grow_to(800_000)));
    // Then
    assert!(end.unwrap_err().to_string().starts_with("no-memory: "));
    grown.unwrap().unwrap();
    assert_eq!(next(&mut stream).await.unwrap(), None);
}
