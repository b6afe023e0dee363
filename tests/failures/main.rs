//! What happens on bad input and failures, each case with the real binary, a scripted publisher on a real socket, and
//! the SQLite file that operators look into.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod duties;
mod full;
mod held;
mod hidden_end;
mod history;
mod large_pages;
mod lost;
mod memory;
mod not_before;
mod origins;
mod pages;
mod paging;
mod politeness;
mod recovery;
mod resync;
mod secrets;
mod signals;
mod statuses;
mod tolerant;
mod unasked;
