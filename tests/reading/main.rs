//! The verbs that read the file, as the real binary over a file made through the library.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

mod changes;
mod explain;
mod export;
mod mirror_file;
mod opening;
mod report;
mod rows;
