//! The operators' listener over a real socket and a real file, with a stub for the supervisor; and the verbs that
//! control a daemon, run as the real binary.

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
