//! Tests of the store: newest wins, resyncs, bounds, crashes, a hostile environment, and files of released versions.
//!
//! Everything here writes through [`feedmirror::store`] and reads back with plain SQL over the public names.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has said so")]

mod activity;
mod bounds;
mod convergence;
mod crash;
mod data;
mod databases;
mod deliveries;
mod duties;
mod environment;
mod feeds;
mod keys;
mod test_store;
mod newest_wins;
mod oracle;
mod program;
mod property;
mod readers;
mod resync;
mod sound;
