//! Live push against the real binary: streams, posts and polls on real sockets, and the SQLite file that they lead to.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod anew;
mod behaviour;
mod beside;
mod broker;
mod fallback;
mod kill;
mod post;
mod proxy;
mod secrets;
mod stream;
mod webhook;

use support::MirrorProcess;

/// Push is judged within a test's deadline; posts are taken on a free port.
const PUSH: &str = r#"
[push]
audit = "2s"
grace = "300ms"
prove_after = "500ms"
[webhooks]
listen = "127.0.0.1:0"
"#;

/// A mirror of one feed, `f`, not started yet: its poll URL and further keys, such as `sse.url`.
fn mirror(url: &str, keys: &str) -> MirrorProcess {
    MirrorProcess::new().feed_with("f", url, keys).tables(PUSH)
}

/// One column of an endpoint's row.
fn endpoint(mirror: &MirrorProcess, transport: &str, column: &str) -> String {
    let sql = format!("SELECT {column} FROM endpoints WHERE feed = 'f' AND transport = '{transport}'");
    mirror.column(&sql).pop().unwrap_or_default()
}

/// Waits for this mode.
fn until_mode(mirror: &MirrorProcess, mode: &str) {
    mirror.until(&format!("mode {mode}"), |mirror| mirror.row("f").mode == mode);
}

/// Waits for a live item.
fn until_has(mirror: &MirrorProcess, id: &str) {
    mirror.until(&format!("item {id}"), |mirror| mirror.ids("f").iter().any(|known| known == id));
}
