//! The command line as people and scripts use it: which output goes where, with which exit code, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod demo;
mod workspace;
mod log;
mod places;
mod ready;
mod shell;
mod streams;
mod sync;
mod terminal;
