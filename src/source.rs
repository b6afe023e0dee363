//! What a transport gives: bytes, where they were asked for, and how to acknowledge them. Never decodes, never stores.

pub mod http;
