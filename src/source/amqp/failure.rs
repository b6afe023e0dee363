//! Why a queue can't be consumed, and whether the operator has to act. Never shows the password; decides no retry.

use std::io::ErrorKind;

use super::flow_control::FlowControl;
use super::window::{MAX_MESSAGE_BYTES, Violation};
use crate::source::mask::Mask;

/// Why a queue could not be consumed, or is not any more. Each message begins with a fixed word.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The broker refuses our user, password or certificate, or denies them the permission.
    #[error("access-refused: {0}")]
    Refused(String),
    /// The queue doesn't exist, is exclusive to another connection, or was declared with other options.
    #[error("queue: {0}")]
    Queue(String),
    /// TLS: the broker's certificate, or the broker refuses ours.
    #[error("tls: {0}")]
    Tls(String),
    /// A secret, a certificate file or the URL can't be used.
    #[error("settings: {0}")]
    Settings(String),
    /// The connection was refused.
    #[error("refused-connection: {0}")]
    ConnectionRefused(String),
    /// No connection: DNS, routing.
    #[error("connect: {0}")]
    Connect(String),
    /// The broker did not answer in time.
    #[error("timeout: {0}")]
    Timeout(String),
    /// The connection broke, or the broker closed it.
    #[error("broken-connection: {0}")]
    Broken(String),
    /// A message is larger than the limit, and is delivered again until somebody removes it from the queue.
    #[error("too-large: {0}")]
    TooLarge(String),
    /// The broker sends more messages than were requested.
    #[error("over-prefetch: {0}")]
    OverPrefetch(String),
    /// The broker sends a frame that is not AMQP 0-9-1, or that no consumer expects.
    #[error("bad-frame: {0}")]
    BadFrame(String),
}

impl Failure {
    /// Whether the operator has to act; another attempt from time to time is worth it all the same.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Queue(_) | Self::Tls(_) | Self::Settings(_) => true,
            Self::ConnectionRefused(_) | Self::Connect(_) | Self::Timeout(_) | Self::Broken(_) => false,
            Self::TooLarge(_) | Self::OverPrefetch(_) | Self::BadFrame(_) => false,
        }
    }

    /// Whether the broker sent something that is not accepted: most likely the next connection fails at it again,
    /// however many messages it delivers before.
    pub fn recurs(&self) -> bool {
        matches!(self, Self::TooLarge(_) | Self::OverPrefetch(_) | Self::BadFrame(_))
    }
}

/// Maps the AMQP library's errors to failures, with the password masked.
pub(super) struct FailureMapper {
    mask: Mask,
    anonymous: bool,
    queue: String,
    flow: FlowControl,
}

impl FailureMapper {
    /// `anonymous` says that the connection is encrypted and we show no certificate.
    pub(super) fn new(password: &str, anonymous: bool, queue: &str, flow: &FlowControl) -> Self {
        let mut mask = Mask::default();
        mask.hide("password", password);
        Self { mask, anonymous, queue: queue.to_owned(), flow: flow.clone() }
    }

    fn redacted(&self, error: &dyn std::error::Error) -> String {
        self.mask.redact(&error.to_string())
    }

    /// The failure of an attempt to connect.
    pub(super) fn of_connection(&self, error: &lapin::Error) -> Failure {
        match self.explain(error) {
            // TLS 1.3 refuses a client after the client has finished: often only a reset arrives (RFC 8446 §4.4.2.4).
            Failure::Broken(reason) if error.is_io_error() && self.anonymous => {
                Failure::Connect(format!("{reason}; the broker may want a certificate of ours (amqp.identity)"))
            }
            Failure::Broken(reason) if error.is_io_error() => Failure::Connect(reason),
            other => other,
        }
    }

    /// The failure that ended a working consumer. A broker closes the channel with the same codes after a late
    /// acknowledgement (RabbitMQ's `consumer_timeout`): if the operator has to act, the next connection's failure says
    /// so.
    pub(super) fn of_consumer(&self, error: &lapin::Error) -> Failure {
        match self.explain(error) {
            Failure::Refused(reason) | Failure::Queue(reason) => Failure::Broken(reason),
            other => other,
        }
    }

    /// The failure that an error stands for.
    pub(super) fn explain(&self, error: &lapin::Error) -> Failure {
        if let Some(violation) = self.flow.violation() {
            return self.of_violation(violation);
        }
        match self.of_error(error) {
            Failure::Broken(reason) if self.flow.is_full() => {
                Failure::Broken(format!("{reason}; nothing was read while what had come waited to be written"))
            }
            other => other,
        }
    }

    fn of_violation(&self, violation: Violation) -> Failure {
        let queue = &self.queue;
        match violation {
            Violation::TooLarge(bytes) => Failure::TooLarge(format!(
                "the queue {queue:?} holds a message of {bytes} bytes, and {MAX_MESSAGE_BYTES} are taken at most: what \
                 waits behind it comes once it is taken out of the queue"
            )),
            Violation::OverPrefetch(prefetch) => Failure::OverPrefetch(format!(
                "the broker sent more than {prefetch} messages of the queue {queue:?} ahead of their acknowledgement, \
                 which is what amqp.prefetch allows"
            )),
            Violation::BadFrame(what) => Failure::BadFrame(format!("the broker sent {what}")),
        }
    }

    fn of_error(&self, error: &lapin::Error) -> Failure {
        match error.kind() {
            lapin::ErrorKind::IOError(error) => self.of_io(error),
            lapin::ErrorKind::ProtocolError(error) => self.of_protocol(error),
            lapin::ErrorKind::AuthProviderError(_) => Failure::Refused(self.redacted(error)),
            _ => Failure::Broken(self.redacted(error)),
        }
    }

    fn of_io(&self, error: &std::io::Error) -> Failure {
        let reason = self.redacted(error);
        match error.kind() {
            ErrorKind::ConnectionRefused => Failure::ConnectionRefused(reason),
            ErrorKind::TimedOut => Failure::Timeout(reason),
            // Certificates and keys that can't be parsed are invalid data too.
            ErrorKind::InvalidData if error.get_ref().is_some_and(|inner| !inner.is::<rustls::Error>()) => {
                Failure::Settings(reason)
            }
            _ if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => Failure::Tls(reason),
            _ => Failure::Broken(reason),
        }
    }

    /// AMQP 0-9-1 §1.2, reply codes.
    fn of_protocol(&self, error: &lapin::protocol::AMQPError) -> Failure {
        let reason = self.redacted(error);
        match error.get_id() {
            // Access refused; not allowed, which is a broker's answer to an unknown virtual host.
            403 | 530 => Failure::Refused(reason),
            // RabbitMQ's answer for a durable queue while the queue's node is down: that heals by itself.
            404 if reason.contains("is down or inaccessible") => Failure::Broken(reason),
            // Not found, locked by another connection, declared with other options.
            404..=406 => Failure::Queue(reason),
            _ => Failure::Broken(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_queue_whose_node_is_down_heals_and_a_missing_one_needs_the_operator() {
        let explained = |text: &str| {
            let error = lapin::protocol::AMQPError::from_id(404, text.into()).unwrap();
            FailureMapper::new("hunter2", false, "q", &FlowControl::new(1))
                .explain(&lapin::ErrorKind::ProtocolError(error).into())
        };
        // The broker's words, RabbitMQ 3.x and 4.x.
        let node_is_down = "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible";
        assert!(!explained(node_is_down).needs_operator());
        assert!(explained("NOT_FOUND - no queue 'q' in vhost '/'").needs_operator());
    }
}
