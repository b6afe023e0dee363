//! `discover`: the real binary against a web of catalogues and dataset sites on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../cli/workspace.rs"]
#[allow(dead_code)]
mod workspace;
mod files;
mod guard;
mod recorded;
#[path = "../support/mod.rs"]
mod support;
mod walk;
mod web;
