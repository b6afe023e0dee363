//! Webhook posts over real sockets: each answer of the router, with the test as the feed's loop, and the listener in
//! front of it, plain and over TLS.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod harness;
mod listener;
mod poison;
mod strangers;
