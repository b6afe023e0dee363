//! A page's cost once decoded: it is checked whole, and written in parts of a bounded size.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page, until};

const MIB: u64 = 1 << 20;
const BRISK: &str = r#"poll = { min = "200ms", max = "200ms" }"#;

fn level(test_feed: &std::sync::Arc<TestFeed>) -> ScriptedPublisher {
    let test_feed = std::sync::Arc::clone(test_feed);
    ScriptedPublisher::start(move |request| test_feed.page(request))
}

#[test]
fn a_page_of_nothing_but_bad_records_costs_little_memory_and_keeps_nobody_waiting() {
    // Given: four million records in a few kilobytes, and a healthy feed of another host.
    let zeros = format!("{{\"items\":[0{}],\"next\":\"/feed?end\"}}", ",0".repeat(4 << 20));
    let hostile = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(zeros.clone()).gzip(),
        _ => Reply::page(page(&[], &request.target)),
    });
    let test_feed = TestFeed::of(10, 10);
    let healthy = level(&test_feed);
    let mirror = MirrorProcess::new()
        .http(r#"max_page_bytes = "16MiB""#)
        .feed_with("healthy", &healthy.url("/feed"), BRISK)
        .feed_with("zeros", &hostile.url("/feed"), BRISK)
        .start();

    // When: the healthy feed goes on changing while the page is read.
    let (mut slowest, began) = (Duration::ZERO, Instant::now());
    while mirror.row("zeros").level_at.is_empty() && began.elapsed() < Duration::from_secs(60) {
        let put = Instant::now();
        test_feed.put("news");
        let newest = test_feed.newest();
        let sql = format!("SELECT count(*) FROM items WHERE feed = 'healthy' AND modified = {newest}");
        until("the healthy feed's news", || mirror.number(&sql) == 1);
        slowest = slowest.max(put.elapsed());
    }

    // Then
    mirror.until_level("zeros");
    assert_eq!(mirror.number("SELECT sum(count) FROM quarantine WHERE feed = 'zeros'"), (4 << 20) + 1);
    assert!(slowest < Duration::from_secs(2), "news took {slowest:?}");
    let most = mirror.most_memory();
    assert!(most < 3 * 16 * MIB + 64 * MIB, "{} MiB", most / MIB);
}

#[test]
fn a_posted_body_of_nothing_but_bad_records_costs_little_memory() {
    // Given: a feed with a webhook, and four million records in a body of a few kilobytes.
    let test_feed = TestFeed::of(10, 10);
    let publisher = level(&test_feed);
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), "webhook.secret_file = \"hook\"");
    let mut mirror = mirror.tables("[webhooks]\nlisten = \"127.0.0.1:0\"\nmax_body_bytes = \"16MiB\"\n");
    mirror.write("hook", "a-secret-of-a-webhook");
    mirror.start_again();
    mirror.until_level("f");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    write!(packed, "{{\"items\":[0{}]}}", ",0".repeat(4 << 20)).unwrap();
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 10_000, "{}", packed.len());

    // When
    let url = format!("http://{}/webhooks/f", mirror.column("SELECT webhooks_address FROM mirror").remove(0));
    let client = feedmirror::source::client::plain_client(Duration::from_secs(120)).unwrap();
    let post = || {
        client.post(&url).bearer_auth("a-secret-of-a-webhook").header("Content-Encoding", "gzip").body(packed.clone())
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = runtime.block_on(async { post().send().await.unwrap().status().as_u16() });

    // Then: each record is counted, few are kept, and the body took no more memory than a page may take.
    assert_eq!(status, 204);
    assert_eq!(mirror.number("SELECT sum(count) FROM quarantine WHERE feed = 'f'"), (4 << 20) + 1);
    assert!(mirror.number("SELECT quarantine_bytes FROM feed") < 1 << 20);
    let most = mirror.most_memory();
    assert!(most < 3 * 16 * MIB + 64 * MIB, "{} MiB", most / MIB);
}

#[test]
fn a_tie_of_two_large_records_is_told_without_trees() {
    // Given: an item of 14 MiB, and later the same item with other white space under the same `modified`.
    let data = |blank: &str| format!("{{\"list\":[{blank}{}]}}", vec!["[1,2]"; 14 << 17].join(","));
    let record = |blank: &str| {
        let data = data(blank);
        format!(r#"{{"items":[{{"state":"updated","kind":"k","id":"a","modified":1,"data":{data}}}],"next":"?again"}}"#)
    };
    let (first, again) = (record(""), record(" "));
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "" => Reply::page(first.clone()).gzip(),
        "again" => Reply::page(again.replace("?again", "?end")).gzip(),
        _ => Reply::page(page(&[], &request.target)),
    });

    let mirror = MirrorProcess::new().feed_with("large", &publisher.url("/feed"), BRISK).start();

    // Then: neither written again nor counted as tied, within the memory that a page may take.
    mirror.until_within(Duration::from_secs(120), "level", |mirror| !mirror.row("large").level_at.is_empty());
    let stored = mirror.rows("SELECT seq - (SELECT min(seq) FROM items), swept FROM items");
    assert_eq!(stored, [["0", "0"]]);
    assert_eq!(mirror.number("SELECT count(*) FROM refusals"), 0);
    let most = mirror.most_memory();
    assert!(most < 3 * 64 * MIB + 64 * MIB, "{} MiB", most / MIB);
}

#[test]
fn a_kill_within_a_page_reads_the_page_again_and_nothing_is_doubled() {
    // Given: pages of 30,000 items, each written in fifteen parts.
    const ITEMS: i64 = 30_000;
    let body = |from: i64| {
        let items: Vec<String> = (from + 1..=from + ITEMS).map(|n| item(&format!("i{n}"), n)).collect();
        page(&items, &format!("?from={}", from + ITEMS))
    };
    let publisher = ScriptedPublisher::start(move |request| {
        let from: i64 = request.query().strip_prefix("from=").map_or(0, |from| from.parse().unwrap());
        if from >= 2 * ITEMS { Reply::page(page(&[], &request.target)) } else { Reply::page(body(from)) }
    });
    let mut mirror = MirrorProcess::new().feed_with("large", &publisher.url("/feed"), BRISK).start();

    // When: it is killed as soon as some of the page is there.
    mirror.until("a part of the page", |mirror| mirror.number("SELECT count(*) FROM items") > 0);
    mirror.kill();

    // Then: whole parts are written, and the cursor is still the URL of the page.
    let (items, cursor) = (mirror.number("SELECT count(*) FROM items"), mirror.row("large").cursor);
    assert_eq!(items % 2_000, 0, "{items}");
    let page_of = |items: i64| if items < ITEMS { publisher.url("/feed") } else { publisher.url("/feed?from=30000") };
    assert_eq!(cursor, page_of(items), "with {items} items");

    // And the page is read again, to the end.
    mirror.start_again();
    mirror.until_level("large");
    let counts = mirror.rows("SELECT count(*), count(DISTINCT id), max(modified) FROM items");
    assert_eq!(counts, [[(2 * ITEMS).to_string(), (2 * ITEMS).to_string(), (2 * ITEMS).to_string()]]);
    assert_eq!(mirror.number("SELECT count(*) FROM changes"), 2 * ITEMS);

    // And a page counts once, however many parts it was written in.
    let (metrics, requests) = (mirror.get("/metrics").1, publisher.requests().len());
    let counted = metrics.lines().find_map(|line| line.strip_prefix("feedmirror_feed_pages_total{feed=\"large\"} "));
    let counted: usize = counted.unwrap().parse().unwrap();
    assert!((2..=requests).contains(&counted), "{counted} pages in {requests} requests");
}
