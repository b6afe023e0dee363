//! Push endpoints over real sockets: event streams of a server that does exactly what a test says, and queues of a real
//! RabbitMQ, or of a broker that does what a test says.

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
