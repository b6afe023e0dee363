//! A body that is refused again and again is accepted the fifth time, so that its publisher can send the next ones.

use std::time::Duration;

use feedmirror::source::webhook::PostAnswer;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::harness::{MAX, NEW, OLD, WebhookHarness, bearer};

const TORN: &[u8] = br#"{"items":["#;

fn refused() -> PostAnswer {
    PostAnswer::Unreadable("not-json: end of text".to_owned())
}

#[tokio::test]
async fn the_fifth_time_the_loop_is_to_quarantine_the_body() {
    let mut harness = WebhookHarness::start().await;
    for time in 1..=4 {
        let (seen, reply) = harness.post_with_answer(&bearer(NEW), TORN, refused()).await;
        assert_eq!((seen.fifth, reply.status), (false, 400), "time {time}");
    }
    // Another body is counted by itself, whichever secret it came with.
    assert!(!harness.post_with_answer(&bearer(NEW), b"[]", refused()).await.0.fifth);
    let (seen, reply) = harness.post_with_answer(&bearer(OLD), TORN, PostAnswer::Committed).await;
    assert_eq!((seen.bytes.as_slice(), seen.fifth, seen.fault, reply.status), (TORN, true, None, 204));
    // Once accepted, the body is forgotten.
    assert!(!harness.post_with_answer(&bearer(NEW), TORN, refused()).await.0.fifth);
}

#[tokio::test]
async fn being_busy_does_not_count() {
    let mut harness = WebhookHarness::start().await;
    for _ in 0..5 {
        let (seen, reply) =
            harness.post_with_answer(&bearer(NEW), TORN, PostAnswer::Busy(Duration::from_secs(1))).await;
        assert_eq!((seen.fifth, reply.status), (false, 503));
        assert!(!harness.post_with_answer(&bearer(NEW), TORN, PostAnswer::OutdatedGeneration).await.0.fifth);
        assert_eq!(harness.post(&bearer("wrong"), TORN).await.status, 401);
    }
    assert!(!harness.post_with_answer(&bearer(NEW), TORN, PostAnswer::Committed).await.0.fifth);
}

#[tokio::test]
async fn of_an_oversized_body_the_loop_gets_the_beginning() {
    let mut harness = WebhookHarness::start().await;
    let large = vec![b'x'; MAX + 1];
    let mut mac = Hmac::<Sha256>::new_from_slice(OLD.as_bytes()).unwrap();
    mac.update(&large);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let signature = format!("X-Hub-Signature-256: sha256={hex}\r\n");
    for headers in [bearer(NEW), signature.clone(), bearer(OLD), signature.clone()] {
        assert_eq!(harness.post(&headers, &large).await.status, 413);
        assert_eq!(harness.post(&signature.replace("sha256=", "sha256=00"), &large).await.status, 401);
    }
    let (seen, reply) = harness.post_with_answer(&signature, &large, PostAnswer::Committed).await;
    assert_eq!((seen.bytes.as_slice(), seen.fifth, reply.status), (&large[..1024], true, 204));
    assert_eq!(seen.fault.as_deref(), Some("more than 262144 bytes are not taken"));
}

#[tokio::test]
async fn a_body_that_can_t_be_decompressed_arrives_as_it_was_sent() {
    let mut harness = WebhookHarness::start().await;
    let headers = format!("{}Content-Encoding: gzip\r\n", bearer(NEW));
    for _ in 0..4 {
        assert_eq!(harness.post(&headers, TORN).await.status, 400);
    }
    let (seen, reply) = harness.post_with_answer(&headers, TORN, PostAnswer::Committed).await;
    assert_eq!((seen.bytes.as_slice(), seen.fifth, reply.status), (TORN, true, 204));
    assert!(seen.fault.is_some_and(|fault| fault.contains("damaged")));
}
