//! What publishers post, over real sockets: each answer of the router, with the feed's loop played by the test, and the
//! listener before it, plain and over TLS.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod harness;
mod listener;
mod poison;
mod strangers;
