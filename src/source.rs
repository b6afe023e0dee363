//! What a transport gives: bytes, where they were asked for, and how to acknowledge them. Never decodes, never stores.

pub mod amqp;
mod asked;
pub mod body;
pub mod budget;
pub mod client;
pub mod guard;
pub mod headers;
pub mod http;
pub mod pages;
pub mod secret;
pub mod sse;
mod mask;
pub mod turns;
pub mod webhook;
