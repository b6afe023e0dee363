//! A publisher that shows a feed's secrets wherever it can: nothing of it is stored or shown but `data`.

use crate::support::{Mirror, Publisher, Reply, item, page, until};

const HEADER: &str = "hush-header/vwxq+\"x\"";
const QUERY: &str = "hush&query/zkjq+ab";
const POSTED: &str = "hush-posted-wqkz";
const KEYS: &str = r#"headers = { X-Api-Key = { file = "header-secret" } }
query = { api_key = { file = "query-secret" } }
webhook = { secret_file = "hook-secret" }"#;
const FILES: [&str; 3] = ["header-secret", "query-secret", "hook-secret"];
/// Parts of the secrets, in the spellings that the publisher uses: none may be seen anywhere.
const PARTS: [&str; 6] = ["hush", "HUSH", "vwxq", "zkjq", "wqkz", "aHVzaC"];

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = text.bytes().map(|byte| format!("{byte:08b}")).collect();
    let digits = bits.as_bytes().chunks(6).map(|six| {
        let six = format!("{:0<6}", std::str::from_utf8(six).unwrap());
        char::from(DIGITS[usize::from_str_radix(&six, 2).unwrap()])
    });
    digits.collect()
}

fn percent(text: &str, upper: bool) -> String {
    let byte = |byte: u8| match (byte.is_ascii_alphanumeric() || byte == b'-', upper) {
        (true, _) => char::from(byte).to_string(),
        (false, true) => format!("%{byte:02X}"),
        (false, false) => format!("%{byte:02x}"),
    };
    text.bytes().map(byte).collect()
}

/// All secrets in all spellings.
fn shown() -> String {
    let spelt = |secret: &str| {
        let json: String = secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
        [secret.to_owned(), percent(secret, true), percent(secret, false), json, base64(secret)].join(" ")
    };
    [HEADER, QUERY, POSTED].map(spelt).join(" ")
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[test]
fn secrets_that_a_publisher_shows_are_neither_stored_nor_told() {
    // Given: feeds that show their secrets in every place.
    let publisher = Publisher::start(|request| {
        let secrets = shown();
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
    let mut mirror = Mirror::new().http("per_host = 12");
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
    for (file, secret) in FILES.into_iter().zip([HEADER, QUERY, POSTED]) {
        mirror.write(file, secret);
    }
    let mirror = mirror.start();

    // When
    for (name, health, word) in failing {
        let reason = mirror.until_health(name, health, word).reason;
        assert!(reason.contains('{'), "{name}: nothing was hidden, so nothing was shown: {reason}");
    }
    let row = mirror.until_level("level");

    // Then: the end was found, with the publisher's own places.
    assert!(row.cursor.contains("token={X-Api-Key}"), "{}", row.cursor);
    let sent = format!("token={}", percent(HEADER, true));
    until("asked as it was sent", || publisher.requests_to("/level").iter().any(|asked| asked.target.contains(&sent)));
    assert!(mirror.finding("level", "content-type") > 0 && mirror.finding("level", "unreadable-header") > 0);

    // and what people see shows nothing, quarantined records included.
    let mut seen = vec![
        ("log", mirror.log()),
        ("database", format!("{:?}", mirror.rows("SELECT * FROM feeds"))),
        ("quarantine", format!("{:?}", mirror.rows("SELECT * FROM quarantine"))),
        ("findings", format!("{:?}", mirror.rows("SELECT * FROM findings"))),
        ("events", format!("{:?}", mirror.rows("SELECT * FROM events"))),
        ("endpoints", format!("{:?}", mirror.rows("SELECT * FROM endpoints"))),
        ("deliveries", format!("{:?}", mirror.rows("SELECT * FROM deliveries"))),
    ];
    let id = mirror.column("SELECT id FROM quarantine")[0].clone();
    for verb in [
        &["status", "--json"][..],
        &["events", "--json"],
        &["findings", "--json"],
        &["findings", "level", "--report"],
        &["quarantine", "list", "--json"],
        &["quarantine", "show", &id],
    ] {
        let ran = mirror.verb(verb);
        let text = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        assert!(ran.status.success(), "{verb:?}: {text}");
        seen.push(("verb", text));
    }
    for (place, text) in seen {
        for part in PARTS {
            assert!(!text.contains(part), "{place} shows {part}: {text}");
        }
    }
    // The record itself is kept as it came, to be read again.
    assert_eq!(
        mirror.number("SELECT count(*) FROM quarantined WHERE raw LIKE '%hush%' AND shown NOT LIKE '%hush%'"),
        1
    );
}

#[test]
fn data_is_never_touched() {
    // Given: an item whose data hold the secret.
    let publisher = Publisher::start(|request| match request.query().contains("from=1") {
        false => {
            let item = format!(
                "{{\"state\":\"updated\",\"kind\":\"k\",\"id\":\"a\",\"modified\":1,\"data\":{{\"x\":\"{POSTED}\"}}}}"
            );
            Reply::page(page(&[item], "?from=1"))
        }
        true => Reply::page(page(&[], &request.target)),
    });
    let mirror =
        Mirror::new().feed_with("own", &publisher.url("/feed"), "headers = { X-Key = { file = \"hook-secret\" } }");
    mirror.write("hook-secret", POSTED);
    let mirror = mirror.start();

    // Then
    mirror.until_level("own");
    assert_eq!(mirror.column("SELECT data ->> '$.x' FROM items"), [POSTED]);
}

#[test]
fn a_new_secret_is_used_at_once_while_its_feed_waits_for_an_hour() {
    // Given: a feed that was refused for its secret, twice.
    let publisher = Publisher::start(|request| match request.header("x-key") {
        Some("the-new-one") => Reply::page(page(&[], &request.target)),
        _ => Reply::status(401),
    });
    let mirror = Mirror::new().feed_with("own", &publisher.url("/feed"), "headers = { X-Key = { file = \"key\" } }");
    mirror.write("key", "the-old-one");
    let mirror = mirror.start();
    let row = mirror.until_health("own", "failed", "http-401");
    assert!(row.next_poll_in_s > 3_000.0, "{}", row.next_poll_in_s);
    mirror.write("key", "a-wrong-one");
    until("asked with it", || publisher.requests().iter().any(|asked| asked.header("x-key") == Some("a-wrong-one")));

    // When
    mirror.write("key", "the-new-one");

    // Then
    mirror.until_level("own");
    assert!(publisher.requests().len() < 8, "{} requests", publisher.requests().len());
}

#[test]
fn query_secrets_go_along_with_a_redirect_within_the_origin() {
    // Given
    let publisher = Publisher::start(|request| match (request.path(), request.query().contains("from=1")) {
        ("/feed", false) => Reply::redirect(302, "/moved"),
        ("/feed", true) => Reply::redirect(302, "/moved?from=1"),
        (_, false) => Reply::page(page(&[item("a", 1)], "/feed?from=1")),
        (_, true) => Reply::page(page(&[], "/feed?from=1")),
    });
    let mirror = Mirror::new().feed_with("own", &publisher.url("/feed"), "query = { api_key = { file = \"key\" } }");
    mirror.write("key", "open-sesame");
    let mirror = mirror.start();

    // Then
    mirror.until_level("own");
    for asked in publisher.requests_to("/moved") {
        assert!(asked.query().contains("api_key=open-sesame"), "{}", asked.target);
    }
    assert_eq!(mirror.holds_bytes("open-sesame", &["key"]), [] as [&str; 0]);
}
