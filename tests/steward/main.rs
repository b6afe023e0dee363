//! Stewardship against the real binary: many quarantined records at once, retention, erasure, renames and sizes, on a live
//! daemon and on a file at rest.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod forget;
mod keep;
mod quarantine;
mod rename;
mod sizes;

use std::process::Output;

/// Exit code, standard output and standard error.
fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
