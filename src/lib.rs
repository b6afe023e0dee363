//! `feedmirror` keeps a local, always-current, queryable copy of other people's change feeds in one SQLite file.
//!
//! The modules stand in the order of the data's journey: [`source`] brings bytes, [`decode`] makes items of them,
//! [`store`] decides and writes, [`schedule`] and [`mode`] say what comes next, [`worker`] joins them for one endpoint,
//! [`supervisor`] for all. [`output`], [`server`] and [`cli`] show what is stored; [`daemon`] puts it all together.
//! [`json`] is the one reader of strangers' JSON, and their words pass [`terminal`] before people see them. [`simulate`] is
//! a publisher that stands alone, [`discover`] finds feeds in what publishers say of themselves.

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
