//! A publisher that shows a feed's secrets wherever it can: nothing of them is stored or shown but in `data`.

use crate::support::secrets::{self, HEADER, KEYS, POSTED, all_encodings, base64, percent, quoted};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, item, page, until};

#[test]
fn secrets_that_a_publisher_shows_are_neither_stored_nor_told() {
    // Given: feeds that show their secrets in every part of a response.
    let publisher = ScriptedPublisher::start(|request| {
        let secrets = all_encodings();
        let header = percent(HEADER, true);
        let next = format!("{}?from=1&token={header}&b={}", request.path(), percent(&base64(HEADER), true));
        match (request.path(), request.query().contains("from=1")) {
            ("/denied", _) => Reply::status(403).body(secrets),
            ("/broken", _) => Reply::status(500).body(format!("{:70}{secrets}", "cut within")),
            ("/text", _) => Reply::page(format!("{:75}{secrets}", "no JSON, cut within")),
            ("/web", _) => Reply::page(format!("<html>{secrets}")).header("Set-Cookie", &format!("{POSTED}=1")),
            ("/coding", _) => Reply::page("\u{1}").header("Content-Encoding", POSTED),
            ("/soon", _) => Reply::status(503).header("Retry-After", POSTED),
            ("/away", _) => Reply::redirect(302, &format!("http://{POSTED}.example/{header}")),
            ("/foreign", _) => Reply::page(page(&[item("a", 1)], &format!("http://{POSTED}.example/{header}"))),
            (_, false) => {
                let bad = format!("{{\"id\":\"bad\",\"state\":{}}}", quoted(&secrets));
                let odd = format!("{{\"@id\":{},\"kind\":\"k\",\"modified\":2,\"state\":\"deleted\"}}", quoted("x"));
                Reply::page(page(&[item("a", 1), odd, bad], &next))
                    .header("ETag", &format!("\"{POSTED}\""))
                    .header("Content-Type", &format!("text/{POSTED}"))
                    .header("Last-Modified", POSTED)
            }
            (_, true) => Reply::page(page(&[], &next)).header("ETag", &format!("\"{POSTED}\"")),
        }
    });
    let mut mirror = MirrorProcess::new().http("per_host = 12");
    let failing = [
        ("denied", "failed", "http-403"),
        ("broken", "retrying", "http-500"),
        ("text", "retrying", "not-json"),
        ("web", "retrying", "html"),
        ("coding", "retrying", "bad-coding"),
        ("soon", "retrying", "http-503"),
        ("away", "failed", "foreign-redirect"),
        ("foreign", "failed", "foreign-next"),
    ];
    for (name, ..) in failing {
        mirror = mirror.feed_with(name, &publisher.url(&format!("/{name}")), KEYS);
    }
    mirror = mirror.feed_with("level", &publisher.url("/level"), KEYS).tables("[webhooks]\nlisten = \"127.0.0.1:0\"");
    secrets::write(&mirror);
    let mirror = mirror.start();

    // When
    for (name, health, word) in failing {
        let reason = mirror.until_health(name, health, word).reason;
        assert!(reason.contains('{'), "{name}: nothing was hidden, so nothing was shown: {reason}");
    }
    let row = mirror.until_level("level");

    // Then: the end was found, by the publisher's own URLs.
    assert!(row.cursor.contains("token={X-Api-Key}"), "{}", row.cursor);
    let sent = format!("token={}", percent(HEADER, true));
    until("asked as it was sent", || {
        publisher.requests_to("/level").iter().any(|request| request.target.contains(&sent))
    });
    assert!(mirror.finding("level", "content-type") > 0 && mirror.finding("level", "unreadable-header") > 0);

    // The record itself is kept as received, to be read again.
    assert_eq!(
        mirror.number("SELECT count(*) FROM quarantined WHERE raw LIKE '%hush%' AND shown NOT LIKE '%hush%'"),
        1
    );
    secrets::are_hidden(mirror, "level");
}

#[test]
fn data_is_never_touched() {
    // Given: an item whose data hold the secret.
    let publisher = ScriptedPublisher::start(|request| match request.query().contains("from=1") {
        false => {
            let item = format!(
                "{{\"state\":\"updated\",\"kind\":\"k\",\"id\":\"a\",\"modified\":1,\"data\":{{\"x\":\"{POSTED}\"}}}}"
            );
            Reply::page(page(&[item], "?from=1"))
        }
        true => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::new().feed_with(
        "own",
        &publisher.url("/feed"),
        "headers = { X-Key = { file = \"hook-secret\" } }",
    );
    mirror.write("hook-secret", POSTED);
    let mirror = mirror.start();

    // Then
    mirror.until_level("own");
    assert_eq!(mirror.column("SELECT data ->> '$.x' FROM items"), [POSTED]);
}

#[test]
fn a_new_secret_is_used_at_once_while_its_feed_waits_for_an_hour() {
    // Given: a feed that was refused for its secret, twice.
    let publisher = ScriptedPublisher::start(|request| match request.header("x-key") {
        Some("the-new-one") => Reply::page(page(&[], &request.target)),
        _ => Reply::status(401),
    });
    let mirror =
        MirrorProcess::new().feed_with("own", &publisher.url("/feed"), "headers = { X-Key = { file = \"key\" } }");
    mirror.write("key", "the-old-one");
    let mirror = mirror.start();
    let row = mirror.until_health("own", "failed", "http-401");
    assert!(row.next_poll_in_s > 3_000.0, "{}", row.next_poll_in_s);
    mirror.write("key", "a-wrong-one");
    until("asked with it", || {
        publisher.requests().iter().any(|request| request.header("x-key") == Some("a-wrong-one"))
    });

    // When
    mirror.write("key", "the-new-one");

    // Then
    mirror.until_level("own");
    assert!(publisher.requests().len() < 8, "{} requests", publisher.requests().len());
}

#[test]
fn query_secrets_go_along_with_a_redirect_within_the_origin() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match (request.path(), request.query().contains("from=1")) {
        ("/feed", false) => Reply::redirect(302, "/moved"),
        ("/feed", true) => Reply::redirect(302, "/moved?from=1"),
        (_, false) => Reply::page(page(&[item("a", 1)], "/feed?from=1")),
        (_, true) => Reply::page(page(&[], "/feed?from=1")),
    });
    let mirror =
        MirrorProcess::new().feed_with("own", &publisher.url("/feed"), "query = { api_key = { file = \"key\" } }");
    mirror.write("key", "open-sesame");
    let mirror = mirror.start();

    // Then
    mirror.until_level("own");
    for request in publisher.requests_to("/moved") {
        assert!(request.query().contains("api_key=open-sesame"), "{}", request.target);
    }
    assert_eq!(mirror.holds_bytes("open-sesame", &["key"]), [] as [&str; 0]);
}
