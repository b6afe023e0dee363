//! The status page in a real Chromium, from a real listener and a real file. Pictures of it, for people to look at, are
//! saved in `target/tmp/page`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../ops/harness.rs"]
#[allow(dead_code, reason = "shared with the tests of the listener, which need all of it")]
mod harness;
mod browser;
mod browser_login;
mod fleet;
mod live;
mod looks;
