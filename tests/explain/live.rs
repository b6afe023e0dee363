//! `--live`: the item's source is asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed};
use crate::{explain, stopped_mirror};

fn verdict(mirror: &MirrorProcess, id: &str, more: &[&str]) -> (String, serde_json::Value) {
    let mut arguments = vec!["f", id, "--live", "--json"];
    arguments.extend(more);
    let output = explain(mirror, &arguments).json();
    let answer = output["live"][0].clone();
    (answer["verdict"].as_str().unwrap_or_else(|| panic!("{output}")).to_owned(), answer)
}

#[test]
fn a_publisher_that_went_on_is_told_apart_from_one_that_did_not() {
    // given a stopped mirror, and a publisher that changes one item, deletes one, forgets one and goes back on one
    let test_feed = TestFeed::of(9, 3);
    let (publisher, mirror) = stopped_mirror(&test_feed);
    let before = mirror.rows("SELECT seq, id, modified, state FROM items ORDER BY seq");
    let newest = test_feed.put("id-1");
    test_feed.delete("id-2");
    test_feed.forget("id-3");
    test_feed.put_at("id-8", 7);
    test_feed.put("new");

    // when each is asked for
    let requests = publisher.count("/f");
    let (same, answer) = verdict(&mirror, "id-4", &[]);
    let pages = publisher.count("/f") - requests;

    // then only the page on which the item came is read
    assert_eq!((same.as_str(), pages), ("same", 1));
    assert_eq!(answer["from"], publisher.url("/f?from=3&after=id-2"));
    let (newer, answer) = verdict(&mirror, "id-1", &[]);
    assert_eq!((newer.as_str(), answer["modified"].as_str()), ("newer", Some(newest.to_string().as_str())));
    assert_eq!(verdict(&mirror, "id-2", &[]).0, "deleted");
    assert_eq!(verdict(&mirror, "id-3", &[]).0, "not-there");
    assert_eq!(verdict(&mirror, "id-8", &[]).0, "older");
    let (new, answer) = verdict(&mirror, "new", &[]);
    assert_eq!(
        (new.as_str(), answer["detail"].as_str()),
        ("newer", Some("the source has it, and the mirror does not"))
    );
    assert_eq!(verdict(&mirror, "id-1", &["--pages", "1"]).0, "not-found-yet");
    // and nothing was written
    assert_eq!(mirror.rows("SELECT seq, id, modified, state FROM items ORDER BY seq"), before);
    let words = explain(&mirror, &["f", "id-1", "--live"]);
    words.assert_contains("f id-1: asked its source again: newer\n");
    words.assert_contains(&format!("  source    modified {newest}, updated\n"));
}

#[test]
fn the_feed_s_secrets_go_along_and_with_only_the_file_their_lack_is_said() {
    // given a publisher that requires a key
    let test_feed = TestFeed::of(2, 10);
    let publisher = ScriptedPublisher::start(move |request| match request.header("x-api-key") {
        Some("hunter2") => test_feed.page(request),
        _ => Reply::status(401),
    });
    let keys = "headers = { X-Api-Key = { file = \"key\" } }";
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/f"), keys);
    mirror.write("key", "hunter2");
    let mut mirror = mirror.start();
    mirror.until_level("f");
    assert!(mirror.stop().success());
    let mut without_config = std::process::Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    without_config.args(["explain", "f", "id-0", "--live", "--db"]).arg(mirror.path("mirror.db"));

    // when
    let (same, answer) = verdict(&mirror, "id-0", &[]);
    let output = without_config.env_remove("FEEDMIRROR_CONFIG").output().unwrap();

    // then
    assert_eq!((same.as_str(), &answer["without_secrets"]), ("same", &false.into()), "{answer}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("f id-0: asked its source again: failed\n") && text.contains("http-401"), "{text}");
    assert!(text.contains("no secrets or settings of the feed were used"), "{text}");
}

#[test]
fn a_source_that_does_not_answer_is_told_and_the_rest_stands() {
    let (publisher, mirror) = stopped_mirror(&TestFeed::of(2, 10));
    drop(publisher);

    let (failed, answer) = verdict(&mirror, "id-0", &[]);

    assert_eq!(failed, "failed");
    assert!(answer["detail"].as_str().unwrap().contains("refused-connection"), "{answer}");
}

#[test]
fn where_the_page_is_gone_the_feed_is_read_from_its_beginning() {
    // given an item of the second page, which its publisher no longer answers
    let test_feed = TestFeed::of(6, 3);
    let gone = Arc::new(AtomicBool::new(false));
    let (pages, is_gone) = (Arc::clone(&test_feed), Arc::clone(&gone));
    let publisher = ScriptedPublisher::start(move |request| match request.query() {
        "from=3&after=id-2" if is_gone.load(Ordering::SeqCst) => Reply::status(404),
        _ => pages.page(request),
    });
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert!(mirror.stop().success());
    gone.store(true, Ordering::SeqCst);
    test_feed.put("id-4");
    test_feed.put("id-0");
    test_feed.forget("id-2");

    let (newer, answer) = verdict(&mirror, "id-4", &[]);

    assert_eq!((newer.as_str(), &answer["from"]), ("newer", &publisher.url("/f").into()), "{answer}");
}

#[test]
fn a_publisher_that_asks_for_patience_is_told_at_once() {
    let (publisher, mut mirror) = stopped_mirror(&TestFeed::of(2, 10));
    let busy = ScriptedPublisher::start(|_| Reply::status(429).header("Retry-After", "90"));
    drop(publisher);
    mirror.set_feed("f", &busy.url("/f"), "retry.max = \"5m\"");

    let (failed, answer) = verdict(&mirror, "unknown", &[]);

    assert_eq!((failed.as_str(), busy.count("/f")), ("failed", 1));
    assert!(answer["detail"].as_str().unwrap().contains("429; it is to be asked again in "), "{answer}");
}
