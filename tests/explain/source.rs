//! Whole feeds compared with a fresh read of their source.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page};
use crate::{VerbOutput, publisher, run_and_capture, stopped_mirror};

fn compare(mirror: &MirrorProcess, json: bool) -> VerbOutput {
    let arguments = ["verify", "--against-source", "f", "--json"];
    run_and_capture(mirror, if json { &arguments } else { &arguments[..3] })
}

#[test]
fn a_level_mirror_is_the_same_as_its_source() {
    let test_feed = TestFeed::of(25, 4);
    test_feed.delete("id-3");
    let (_publisher, mirror) = stopped_mirror(&test_feed);

    let output = compare(&mirror, true);

    assert_eq!(output.code, Some(0), "{}{}", output.out, output.err);
    let found = output.json();
    assert_eq!((&found["read"], &found["same"], &found["pages"]), (&25.into(), &25.into(), &8.into()));
}

#[test]
fn each_sort_of_difference_is_counted_with_samples_and_nothing_is_written() {
    // given a stopped mirror whose source went on, lost one item and went back on one
    let test_feed = TestFeed::of(9, 4);
    let (_publisher, mirror) = stopped_mirror(&test_feed);
    test_feed.put("id-1");
    test_feed.put("new");
    test_feed.forget("id-3");
    test_feed.put_at("id-8", 7);
    test_feed.delete_at("id-5", 6);
    let before = mirror.rows("SELECT seq, id, modified, state FROM items ORDER BY seq");

    let (output, words) = (compare(&mirror, true), compare(&mirror, false));

    assert_eq!(output.code, Some(1));
    let found = output.json();
    for (sort, id) in
        [("older", "id-1"), ("missing", "new"), ("extra", "id-3"), ("newer", "id-8"), ("differing", "id-5")]
    {
        assert_eq!(found[sort]["count"], 1, "{sort}: {found}");
        assert_eq!(found[sort]["samples"][0]["id"], id, "{found}");
    }
    assert_eq!(found["same"], 5);
    words.assert_contains("  1 older in the mirror\n    thing id-1: mirror 2 updated, source 10 updated\n");
    words.assert_contains("    thing id-3: mirror 4 updated, source nothing\n");
    assert_eq!(mirror.rows("SELECT seq, id, modified, state FROM items ORDER BY seq"), before);
}

#[test]
fn what_changes_during_the_walk_is_no_difference() {
    // given a daemon that keeps up with a source, which changes with each page that the comparison requests
    let test_feed = TestFeed::of(40, 4);
    let (changing, left) = (Arc::clone(&test_feed), Arc::new(AtomicUsize::new(0)));
    let changes = Arc::clone(&left);
    let publisher = ScriptedPublisher::start(move |request| {
        let reply = changing.page(request);
        if let Ok(n) = changes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            changing.put(&format!("id-{}", n % 40));
        }
        reply
    });
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");

    // when
    left.store(30, Ordering::SeqCst);
    let output = compare(&mirror, true);

    // then
    assert_eq!(left.load(Ordering::SeqCst), 0, "it went on changing");
    assert_eq!(output.code, Some(0), "{}{}", output.out, output.err);
    assert!(output.json()["read"].as_i64() >= Some(40), "{}", output.out);
}

#[test]
fn without_a_clean_end_nothing_is_called_extra() {
    let test_feed = TestFeed::of(5, 10);
    let (publisher, mut mirror) = stopped_mirror(&test_feed);
    let cut = ScriptedPublisher::start(|request| Reply::page(page(&[item("id-0", 1)], &request.target)));
    mirror.set_feed("f", &cut.url("/f"), "");

    let output = compare(&mirror, true);

    drop(publisher);
    assert_eq!(output.code, Some(1));
    let found = output.json();
    assert_eq!((&found["extra"]["count"], &found["unclean"]), (&0.into(), &"self-next".into()));
}

#[test]
fn an_unknown_feed_is_refused() {
    let publisher = publisher(&TestFeed::of(1, 4));
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");

    let output = run_and_capture(&mirror, &["verify", "--against-source", "g"]);

    assert_eq!(output.code, Some(1));
    assert!(output.err.contains("there is no feed g in the mirror"), "{}", output.err);
}
