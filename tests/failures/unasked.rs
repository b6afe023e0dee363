//! A response is taken only as the answer to its own request.

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed};

#[test]
fn a_304_to_a_request_without_a_validator_is_never_the_end() {
    // Given: ten items on five pages, and a cache that answers 304 in place of the third, whatever the request.
    let test_feed = TestFeed::of(10, 2);
    let serving = std::sync::Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| match request.query().contains("from=4&") {
        true => Reply::status(304),
        false => serving.page(request),
    });

    let mirror = MirrorProcess::running("cached", &publisher.url("/feed"));

    // Then
    let row = mirror.until_health("cached", "retrying", "unasked-304");
    assert_eq!((row.items, row.level_at.as_str()), (4, ""));
    assert!(row.cursor.contains("from=4&"), "{}", row.cursor);
}
