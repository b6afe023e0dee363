//! What tests with the real binary share: a scripted publisher on a real socket, a mirror as a real process over a real
//! file, and waiting for a condition under a deadline.
//!
//! Nothing here shares code with the mirror: what a test expects comes from the standard and from this side's own
//! records.

#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

pub(crate) mod mirror;
pub(crate) mod publisher;
pub(crate) mod rabbit;
pub(crate) mod secrets;
pub(crate) mod test_feed;

pub(crate) use mirror::MirrorProcess;
pub(crate) use publisher::{Reply, Request, ScriptedPublisher};
pub(crate) use test_feed::TestFeed;

use std::time::{Duration, Instant};

/// How long a condition may take on a busy machine; a test that needs it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; `false` when the deadline came first.
#[expect(clippy::disallowed_methods, reason = "the one loop that waits for a condition under a deadline")]
pub(crate) fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds, or fails with `what`.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(DEADLINE, condition), "within {DEADLINE:?} not seen: {what}");
}

/// One updated item of kind `thing`, as JSON; its data say which version it is.
pub(crate) fn item(id: &str, modified: i64) -> String {
    let data = data(id, modified);
    format!(r#"{{"state":"updated","kind":"thing","id":"{id}","modified":{modified},"data":{data}}}"#)
}

/// The data of [`item`].
pub(crate) fn data(id: &str, modified: i64) -> String {
    format!(r#"{{"name":"{id}@{modified}"}}"#)
}

/// One deleted item of kind `thing`, as JSON.
pub(crate) fn deleted(id: &str, modified: i64) -> String {
    format!(r#"{{"state":"deleted","kind":"thing","id":"{id}","modified":{modified}}}"#)
}

/// A page of these items that sends to `next`.
pub(crate) fn page(items: &[String], next: &str) -> String {
    format!(r#"{{"items":[{}],"next":{},"license":"x"}}"#, items.join(","), serde_json::json!(next))
}

/// A page without `next`.
pub(crate) fn page_without_next(items: &[String]) -> String {
    format!(r#"{{"items":[{}]}}"#, items.join(","))
}
