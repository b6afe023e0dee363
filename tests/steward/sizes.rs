//! Sizes of feeds: counted as they change, and close to the space that the file really takes.

use std::sync::Arc;

use crate::code_and_output;
use crate::support::{MirrorProcess, Request, ScriptedPublisher, TestFeed};

#[test]
fn sizes_follow_every_change_and_are_summed_by_provider() {
    // given two feeds of one provider and one of none
    let test_feed = TestFeed::of(200, 50);
    let publisher = {
        let test_feed = Arc::clone(&test_feed);
        ScriptedPublisher::start(move |request: &Request| test_feed.page(request))
    };
    let mirror = MirrorProcess::new().tables("[providers.acme]\n").feed("c", &publisher.url("/c"));
    let mut mirror = ["a", "b"].into_iter().fold(mirror, |mirror, name| {
        mirror.feed_with(name, &publisher.url(&format!("/{name}")), "provider = \"acme\"")
    });
    mirror.start_again();
    for name in ["a", "b", "c"] {
        mirror.until_level(name);
    }
    // when items change, are deleted, and are swept
    test_feed.put("id-3");
    test_feed.delete("id-4");
    test_feed.forget("id-5");
    for name in ["a", "b", "c"] {
        mirror.until("the deletion", |mirror| mirror.row(name).tombstones == 1);
        assert_eq!(code_and_output(mirror.verb(&["resync", name])).0, 0);
        mirror.until("the sweep", |mirror| mirror.row(name).tombstones == 2);
    }
    mirror.stop();

    // then the count matches the rows: text as stored, and a fixed size for each row beside it
    let counted = mirror.column("SELECT bytes FROM feeds ORDER BY name");
    let real = mirror.column(
        "SELECT sum(octet_length(id) + coalesce(octet_length(data), 0)) + 230 * count(*) FROM items GROUP BY feed
         ORDER BY feed",
    );
    assert_eq!(counted, real);

    let (code, out, error) = code_and_output(mirror.verb(&["status", "--sizes"]));
    assert_eq!(code, 0, "{error}");
    let line = |first: &str| {
        let line = out.lines().find(|line| line.split_whitespace().next() == Some(first));
        line.unwrap_or_else(|| panic!("{out}")).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let number = |text: &str| text.replace(',', "").parse::<i64>().unwrap();
    assert_eq!(line("a")[1..3], ["198", "2"], "{out}");
    assert_eq!(number(&line("acme")[3]), 2 * number(&line("a")[3]), "{out}");
    let (_, out, _) = code_and_output(mirror.verb(&["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["feeds"][0]["bytes"].to_string(), counted[0]);
}
