//! `explain`: where an item came from and why it is as it is, by the real binary over real sockets; its source asked
//! again, and whole feeds compared with theirs.

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

/// Posts are taken on a port of its own.
const WEBHOOKS: &str = "[webhooks]\nlisten = \"127.0.0.1:0\"\n";

/// What a verb came to.
struct VerbOutput {
    code: Option<i32>,
    out: String,
    err: String,
}

impl VerbOutput {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    fn says(&self, words: &str) {
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

/// A publisher of a shelf at `/f`.
fn publisher(shelf: &Arc<TestFeed>) -> ScriptedPublisher {
    let shelf = Arc::clone(shelf);
    ScriptedPublisher::start(move |request| shelf.page(request))
}

/// A mirror of `shelf`, level, its daemon stopped.
fn stopped_mirror(shelf: &Arc<TestFeed>) -> (ScriptedPublisher, MirrorProcess) {
    let publisher = publisher(shelf);
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert!(mirror.stop().success());
    (publisher, mirror)
}
