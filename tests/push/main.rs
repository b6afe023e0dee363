//! Push endpoints over real sockets: event streams of a server that sends exactly what a test specifies, and queues of
//! a real RabbitMQ, or of a fake broker.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod amqp;
mod fake_broker;
mod hostile_broker;
mod hostile_stream;
mod live;
mod sse;
mod raw_stream_server;
