//! `feedmirror` keeps a local, always-current, queryable copy of other people's change feeds in one SQLite file.
//!
//! The modules stand in the order of the data's journey.

pub mod decode;
pub mod feed;
pub mod source;
pub mod store;
pub mod mode;
pub mod schedule;
pub mod supervisor;
pub mod config;
