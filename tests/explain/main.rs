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
mod told;

use std::sync::Arc;

use serde_json::Value;
use support::{Mirror, Publisher, Shelf};

/// Posts are taken on a port of its own.
const WEBHOOKS: &str = "[webhooks]\nlisten = \"127.0.0.1:0\"\n";

/// What a verb came to.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    fn says(&self, words: &str) {
        assert!(self.out.contains(words), "no {words:?} in\n{}{}", self.out, self.err);
    }
}

fn explain(mirror: &Mirror, arguments: &[&str]) -> Said {
    said(mirror, &[&["explain"], arguments].concat())
}

fn said(mirror: &Mirror, arguments: &[&str]) -> Said {
    let output = mirror.verb(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A publisher of a shelf at `/f`.
fn publisher(shelf: &Arc<Shelf>) -> Publisher {
    let shelf = Arc::clone(shelf);
    Publisher::start(move |request| shelf.page(request))
}

/// A mirror of `shelf`, level, its daemon stopped.
fn at_rest(shelf: &Arc<Shelf>) -> (Publisher, Mirror) {
    let publisher = publisher(shelf);
    let mut mirror = Mirror::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert!(mirror.stop().success());
    (publisher, mirror)
}
