//! `feedmirror` keeps a local, always-current, queryable copy of other people's change feeds in one SQLite file.
//!
//! The modules are in the order of the data's journey: [`source`] receives bytes, [`decode`] makes items of them,
//! [`store`] decides and writes, [`schedule`] and [`mode`] decide what to do next, [`worker`] joins them for one
//! endpoint, [`supervisor`] for all. [`output`], [`server`] and [`cli`] show what is stored; [`daemon`] puts all of it
//! together. [`json`] is the one reader of publishers' JSON, and [`terminal`] makes their texts safe to show.
//! [`simulate`] is a publisher that needs none of the rest, [`discover`] finds feeds in publishers' catalogues.

pub mod feed;
pub mod json;
pub mod terminal;
pub mod source;
pub mod decode;
pub mod store;
pub mod schedule;
pub mod mode;
pub mod worker;
pub mod supervisor;
pub mod output;
pub mod server;
pub mod daemon;
pub mod config;
pub mod simulate;
pub mod discover;
pub mod cli;
