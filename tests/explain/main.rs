//! `explain`: where an item came from and why it is as it is, by the real binary over real sockets; asking its source
//! again, and comparing whole feeds with their sources.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../live/post.rs"]
#[allow(dead_code)]
mod post;
#[path = "../live/stream.rs"]
#[allow(dead_code)]
mod stream;
#[path = "../support/mod.rs"]
mod support;

mod live;
mod source;
mod stored;

use std::sync::Arc;

use serde_json::Value;
use support::{MirrorProcess, ScriptedPublisher, TestFeed};

/// Webhook posts are accepted on a free port.
const WEBHOOKS: &str = "[webhooks]\nlisten = \"127.0.0.1:0\"\n";

/// The result of a verb.
struct VerbOutput {
    code: Option<i32>,
    out: String,
    err: String,
}

impl VerbOutput {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    fn assert_contains(&self, words: &str) {
        assert!(self.out.contains(words), "no {words:?} in\n{}{}", self.out, self.err);
    }
}

fn explain(mirror: &MirrorProcess, arguments: &[&str]) -> VerbOutput {
    run_and_capture(mirror, &[&["explain"], arguments].concat())
}

fn run_and_capture(mirror: &MirrorProcess, arguments: &[&str]) -> VerbOutput {
    let output = mirror.verb(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    VerbOutput { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A publisher of a test feed at `/f`.
fn publisher(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let test_feed = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request| test_feed.page(request))
}

/// A mirror that is level with `test_feed`, its daemon stopped.
fn stopped_mirror(test_feed: &Arc<TestFeed>) -> (ScriptedPublisher, MirrorProcess) {
    let publisher = publisher(test_feed);
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert!(mirror.stop().success());
    (publisher, mirror)
}
