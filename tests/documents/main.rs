//! Holds the documents to the code: what README, the pages under `docs/`, ARCHITECTURE and the others claim is compared with what there is, in
//! both directions where a list claims to be whole.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod architecture;
mod commands;
mod configuration;
mod document;
mod links;
mod metrics;
mod pages;
mod promises;
mod source;
mod sql;
mod standard;
mod words;
