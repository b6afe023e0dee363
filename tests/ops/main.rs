//! The operators' listener over a real socket and a real file, the supervisor played by the test; and the verbs that
//! steer a daemon, as the real binary.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod harness;
mod access;
mod journals;
mod openapi;
mod live;
mod orders;
mod running;
mod schema;
mod current_state;
mod stalled;
mod streams;
mod verbs;
