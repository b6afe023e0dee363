//! What a transport gives: bytes, where they were asked for, and how to acknowledge them. Never decodes, never stores.

pub mod amqp;
mod asked;
pub mod body;
pub mod budget;
pub mod client;
mod credentials;
pub mod decoders;
mod failure;
pub mod guard;
pub mod headers;
pub mod http;
mod mask;
mod origin;
pub mod pages;
mod redirect;
pub mod secret;
mod spelling;
pub mod sse;
pub mod turns;
pub mod webhook;
