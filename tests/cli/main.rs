//! The command line as a person or a script meets it: what goes where, with which exit code, and what is refused.

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
