//! What a transport gives: bytes, where they were asked for, and how to acknowledge them. Never decodes, never stores.

pub mod body;
pub mod budget;
pub mod http;
mod mask;
pub mod turns;
