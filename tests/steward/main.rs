//! Stewardship with the real binary: many quarantined records at once, retention, erasure, renames and sizes, with a
//! running daemon and with a stopped mirror's file.

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
fn code_and_output(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
