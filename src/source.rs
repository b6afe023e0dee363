//! The transports: each delivers bytes, the URL or queue that they came from, and a way to acknowledge them. Never
//! decodes, never stores.

pub mod amqp;
mod request_kind;
pub mod body;
pub mod budget;
pub mod client;
mod credentials;
pub mod decoder_pool;
mod failure;
pub mod address_policy;
pub mod headers;
pub mod http;
mod mask;
mod origin;
pub mod web_page_fetcher;
mod redirect;
pub mod secret;
mod encodings;
pub mod sse;
pub mod host_limiter;
pub mod webhook;
