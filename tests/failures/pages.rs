//! Pages that are refused as a whole, pages that are read despite faults, and records that can't be understood.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, data, deleted, item, page, until};

fn gzipped(json: &str) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(json.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_page_that_cannot_be_read_is_refused_whole_and_the_cursor_stays() {
    // Given: each feed's second page holds a good item and has a fault of its own.
    let good = page(&[item("b", 2)], "/f?from=2");
    let truncated = &good[..good.len() - 3];
    let mut foreign = good.clone().into_bytes();
    let at = foreign.iter().position(|byte| *byte == b'@').unwrap();
    foreign[at] = 0xe9;
    let half_zipped = gzipped(&good);
    // Without the last chunk, which says that all has come (RFC 9112 §7.1).
    let chunked = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let faults: Vec<(&str, &str, &str, Reply)> = vec![
        ("words", "not-json", "No ride data found", Reply::page("No ride data found")),
        ("empty", "not-json", "", Reply::page("")),
        ("truncated", "not-json", r#"{\"items\":["#, Reply::page(truncated)),
        ("twice", "not-json", r#"{\"items\":["#, Reply::page(format!("{good}{good}"))),
        ("html", "html", "<!DOCTYPE html>", Reply::page("<!DOCTYPE html><h1>hello</h1>")),
        ("challenge", "html", "<html>", Reply::page("<html>wait</html>").header("Content-Type", "text/html")),
        ("no-items", "no-items", r#"{\"error\":\"busy\"}"#, Reply::page(r#"{"error":"busy"}"#)),
        ("list", "no-items", "[1,2]", Reply::page("[1,2]")),
        ("latin-1", "wrong-encoding", r#"{\"items\":["#, Reply::page("").body(foreign)),
        ("utf-16", "wrong-encoding", "", Reply::page("").body(b"\xff\xfe{\0}\0".to_vec())),
        ("cut", "broken-response", "", Reply::page(good.clone()).cut_to(good.len() - 20)),
        ("half-sent", "broken-response", "", Reply::raw(format!("{chunked}{:x}\r\n{good}\r\n", good.len()))),
        ("bad-zip", "bad-coding", "", Reply::page(good.clone()).header("Content-Encoding", "gzip")),
        ("half-zip", "bad-coding", "", Reply::page("").body(&half_zipped[..40]).header("Content-Encoding", "gzip")),
        ("coding", "bad-coding", "", Reply::page(good.clone()).header("Content-Encoding", "compress")),
    ];
    let replies: Vec<(String, Reply)> =
        faults.iter().map(|(name, _, _, reply)| (format!("/{name}"), reply.clone())).collect();
    let whole = Arc::new(AtomicBool::new(false));
    let healed = Arc::clone(&whole);
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&[item("a", 1)], &format!("{}?from=1", request.path()))),
        "from=1" if healed.load(Ordering::SeqCst) => {
            Reply::page(page(&[item("b", 2)], &format!("{}?from=2", request.path())))
        }
        "from=1" => replies.iter().find(|(path, _)| path == request.path()).unwrap().1.clone(),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for (name, ..) in &faults {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }

    // When
    let mirror = mirror.start();

    // Then: none of the page is written, it is asked for again, and the operator sees how it begins.
    for (name, word, beginning, _) in &faults {
        let row = mirror.until_health(name, "retrying", word);
        assert!(row.reason.contains(beginning), "{name}: {}", row.reason);
        assert_eq!(row.cursor, publisher.url(&format!("/{name}?from=1")), "{name}");
        assert_eq!(mirror.ids(name), ["a"], "{name}");
        until("asked again", || publisher.requests_to(&format!("/{name}")).iter().any(|request| request.count > 1));
    }
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 0);

    // When
    whole.store(true, Ordering::SeqCst);

    // Then
    for (name, ..) in &faults {
        mirror.until_level(name);
        assert_eq!(mirror.ids(name), ["a", "b"], "{name}");
    }
}

#[test]
fn a_page_that_is_odd_but_readable_is_read_and_the_oddity_found() {
    // Given
    let publisher = ScriptedPublisher::start(|request| {
        if !request.query().is_empty() {
            return Reply::page(page(&[], &request.target));
        }
        let json = page(&[item("a", 1)], "?from=1");
        match request.path() {
            "/bom" => Reply::page(format!("\u{feff}{json}")),
            "/html" => Reply::page(json).header("Content-Type", "text/html; charset=utf-8"),
            "/untyped" => Reply::status(200).body(json),
            "/rpde" => Reply::page(json).header("Content-Type", "application/vnd.openactive.rpde+json; version=1"),
            _ => Reply::page(json).gzip(),
        }
    });
    let names = ["bom", "html", "untyped", "rpde", "zipped"];
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for name in names {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();

    // Then
    for name in names {
        mirror.until_level(name);
        assert_eq!(mirror.ids(name), ["a"], "{name}");
    }
    assert_eq!(mirror.finding("bom", "bom"), 1);
    assert!(mirror.finding("html", "content-type") >= 1);
    assert!(mirror.finding("untyped", "content-type") >= 1);
    assert_eq!(mirror.column("SELECT DISTINCT feed FROM findings ORDER BY feed"), ["bom", "html", "untyped"]);
}

#[test]
fn a_page_over_the_limit_is_refused_without_being_held_in_memory() {
    // Given: a decompression bomb of half a gigabyte, a page that states its size, and one that doesn't.
    const BOMB: u64 = 512 << 20;
    let large = page(&[item(&"x".repeat(3 << 20), 1)], "?from=1");
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/bomb" => Reply::bomb(BOMB),
        "/said" => Reply::page(large.clone()),
        "/unsaid" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n";
            Reply::raw(format!("{head}{large}"))
        }
        _ => Reply::page(page(&[], &request.target)),
    });
    let slowly = r#"retry = { min = "2s", max = "4s" }"#;
    let mirror = MirrorProcess::new()
        .http("per_host = 8")
        .feed_with("bomb", &publisher.url("/bomb"), &format!("{slowly}\nhttp.max_page_bytes = \"16MiB\""))
        .feed_with("said", &publisher.url("/said"), &format!("{slowly}\nhttp.max_page_bytes = \"2MiB\""))
        .feed_with("unsaid", &publisher.url("/unsaid"), &format!("{slowly}\nhttp.max_page_bytes = \"2MiB\""))
        .feed("sound", &publisher.url("/sound"))
        .start();

    // Then
    for name in ["bomb", "said", "unsaid"] {
        let row = mirror.until_health(name, "retrying", "too-large");
        assert_eq!((row.items, row.cursor), (0, publisher.url(&format!("/{name}"))), "{name}");
        assert!(row.reason.contains("max_page_bytes"), "{}", row.reason);
    }
    mirror.until_level("sound");
    assert!(mirror.most_memory() < BOMB / 4, "{} bytes held", mirror.most_memory());
}

#[test]
fn each_bad_record_is_quarantined_whole_and_the_rest_of_its_page_applied() {
    // Given
    let bad = [
        ("no-id", r#"{"state":"updated","kind":"thing","modified":2,"data":{}}"#),
        ("no-id", r#"{"state":"updated","kind":"thing","id":null,"modified":2,"data":{}}"#),
        ("bad-id", r#"{"state":"updated","kind":"thing","id":true,"modified":2,"data":{}}"#),
        ("no-modified", r#"{"state":"updated","kind":"thing","id":"m","data":{}}"#),
        ("bad-modified", r#"{"state":"updated","kind":"thing","id":"m","modified":false,"data":{}}"#),
        ("no-kind", r#"{"state":"updated","id":"k","modified":2,"data":{}}"#),
        ("unknown-state", r#"{"state":"Vanished","kind":"thing","id":"s","modified":2,"data":{}}"#),
        ("no-data", r#"{"state":"updated","kind":"thing","id":"d","modified":2}"#),
        ("not-an-object", r#""No ride data found""#),
        ("not-an-object", "null"),
        ("not-an-object", "[{}]"),
    ];
    let mut records = vec![item("a", 1)];
    records.extend(bad.iter().map(|(_, raw)| (*raw).to_owned()));
    records.push(item("z", 3));
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&records, "?from=3")),
        _ => Reply::page(page(&[], &request.target)),
    });

    let mirror = MirrorProcess::running("mixed", &publisher.url("/feed"));

    // Then
    let row = mirror.until_level("mixed");
    assert_eq!((mirror.ids("mixed"), row.items), (vec!["a".to_owned(), "z".to_owned()], 2));
    let kept =
        mirror.rows("SELECT reason, raw FROM quarantine WHERE feed = 'mixed' AND transport = 'poll' ORDER BY id");
    let expected: Vec<Vec<String>> =
        bad.iter().map(|(reason, raw)| vec![(*reason).to_owned(), (*raw).to_owned()]).collect();
    assert_eq!(kept, expected);
}

#[test]
fn records_out_of_the_ordinary_are_read_as_what_they_mean() {
    // Given
    let records = [
        r#"{"state":"updated","@id":"at","modified":1,"data":{"n":1}}"#.to_owned(),
        r#"{"state":"Updated","kind":"Own","id":2,"modified":"2","data":{ "n" : 1.50, "é":"\u00e9" }}"#.to_owned(),
        r#"{"state":"DELETED","kind":"Own","id":"gone","modified":3,"data":{"was":"here"}}"#.to_owned(),
        r#"{"state":"updated","kind":"Own","id":"late","modified":9223372036854775807,"data":[]}"#.to_owned(),
    ];
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&records, "?from=3")),
        _ => Reply::page(page(&[], &request.target)),
    });

    let mirror = MirrorProcess::new().feed_with("odd", &publisher.url("/feed"), r#"kind = "Session""#).start();

    // Then: data are kept byte for byte; a tombstone has none.
    mirror.until_level("odd");
    let rows =
        mirror.rows("SELECT kind, id, modified, state, data FROM items ORDER BY kind DESC, CAST(modified AS INTEGER)");
    assert_eq!(
        rows,
        [
            ["Session", "at", "1", "updated", r#"{"n":1}"#],
            ["Own", "2", "2", "updated", r#"{ "n" : 1.50, "é":"\u00e9" }"#],
            ["Own", "gone", "3", "deleted", ""],
            ["Own", "late", "9223372036854775807", "updated", "[]"],
        ]
    );
    for rule in ["at-id", "no-kind", "deleted-with-data"] {
        assert_eq!(mirror.finding("odd", rule), 1, "{rule}");
    }
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 0);
}

#[test]
fn of_duplicates_the_newest_stands_and_disorder_does_no_harm() {
    // Given: one page with duplicates, one in descending order.
    let twice = [item("a", 5), item("a", 9), item("a", 7), deleted("b", 10), item("b", 6)];
    let descending = [item("c", 9), item("b", 5), item("a", 1)];
    let publisher = ScriptedPublisher::start(move |request| match (request.path(), request.query()) {
        ("/twice", "") => Reply::page(page(&twice, "?from=10")),
        ("/descending", "") => Reply::page(page(&descending, "?from=9")),
        _ => Reply::page(page(&[], &request.target)),
    });

    let mirror = MirrorProcess::new()
        .feed("twice", &publisher.url("/twice"))
        .feed("descending", &publisher.url("/descending"))
        .start();

    // Then
    mirror.until_level("twice");
    mirror.until_level("descending");
    assert_eq!(mirror.live("twice"), [("a".to_owned(), (9, data("a", 9)))].into());
    assert_eq!(mirror.row("twice").tombstones, 1);
    assert_eq!(mirror.finding("twice", "duplicate"), 3);
    assert!(mirror.finding("twice", "out-of-order") > 0);
    assert_eq!(mirror.ids("descending"), ["a", "b", "c"]);
    assert_eq!(mirror.finding("descending", "out-of-order"), 2);
    assert_eq!(mirror.finding("descending", "duplicate"), 0);
}

#[test]
fn a_late_update_neither_revives_a_tombstone_nor_overwrites_a_newer_item() {
    // Given
    let first = [item("kept", 10), deleted("gone", 11), item("tied", 12)];
    let second = [item("kept", 4), item("gone", 5), deleted("tied", 12)];
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(page(&first, "?from=12")),
        "from=12" => Reply::page(page(&second, "?from=12&again")),
        _ => Reply::page(page(&[], &request.target)),
    });

    let mirror = MirrorProcess::running("late", &publisher.url("/feed"));

    // Then: older versions are refused and recorded, and a deletion wins a tie.
    let row = mirror.until_level("late");
    assert_eq!(mirror.live("late"), [("kept".to_owned(), (10, data("kept", 10)))].into());
    assert_eq!(row.tombstones, 2);
    assert_eq!(mirror.column("SELECT id FROM refusals WHERE reason LIKE 'older:%' ORDER BY id"), ["gone", "kept"]);
}

#[test]
fn a_bad_page_in_the_middle_costs_only_its_own_feed() {
    // Given: one feed whose third page is permanently faulty, another on the same host.
    let test_feed = TestFeed::of(40, 4);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/spoilt" if request.query().contains("from=8&") => Reply::page("{").after(Duration::from_millis(20)),
        _ => serving.page(request),
    });

    let mirror =
        MirrorProcess::new().feed("spoilt", &publisher.url("/spoilt")).feed("sound", &publisher.url("/sound")).start();

    // Then
    mirror.until_level("sound");
    let row = mirror.until_health("spoilt", "retrying", "not-json");
    assert_eq!((mirror.live("sound"), row.items), (test_feed.live(), 8));
}
