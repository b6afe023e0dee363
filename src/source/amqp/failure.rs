//! Why there is no message, sorted by who can help.

use std::io::ErrorKind;

use super::flow_control::FlowControl;
use super::window::{MAX_MESSAGE_BYTES, Violation};
use crate::source::mask::Mask;

/// Why a queue could not be consumed, or is not any more. Each begins with a fixed word.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The broker refuses our user, password or certificate, or what they may do.
    #[error("access-refused: {0}")]
    Refused(String),
    /// The queue is not there, is another's alone, or was declared in another way.
    #[error("queue: {0}")]
    Queue(String),
    /// TLS: the broker's certificate, or the broker refuses ours.
    #[error("tls: {0}")]
    Tls(String),
    /// A secret, a certificate file or the URL can't be used.
    #[error("settings: {0}")]
    Settings(String),
    /// Nothing listens there.
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
    /// A message is larger than what is taken, and comes again until somebody takes it out of the queue.
    #[error("too-large: {0}")]
    TooLarge(String),
    /// The broker sends more messages than were asked for.
    #[error("over-prefetch: {0}")]
    OverPrefetch(String),
    /// The broker sends what is no AMQP 0-9-1, or what nobody asked for.
    #[error("bad-frame: {0}")]
    BadFrame(String),
}

impl Failure {
    /// Whether somebody has to do something about it; it is worth another try now and then all the same.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Queue(_) | Self::Tls(_) | Self::Settings(_) => true,
            Self::ConnectionRefused(_) | Self::Connect(_) | Self::Timeout(_) | Self::Broken(_) => false,
            Self::TooLarge(_) | Self::OverPrefetch(_) | Self::BadFrame(_) => false,
        }
    }

    /// Whether the broker sent what is not taken, which the next connection will most likely meet again, however much it
    /// brings before it.
    pub fn recurs(&self) -> bool {
        matches!(self, Self::TooLarge(_) | Self::OverPrefetch(_) | Self::BadFrame(_))
    }
}

/// Tells of failures without ever showing the password.
pub(super) struct Words {
    mask: Mask,
    anonymous: bool,
    queue: String,
    flow: FlowControl,
}

impl Words {
    /// `anonymous` says that the connection is encrypted and we show no certificate.
    pub(super) fn new(password: &str, anonymous: bool, queue: &str, flow: &FlowControl) -> Self {
        let mut mask = Mask::default();
        mask.hide("password", password);
        Self { mask, anonymous, queue: queue.to_owned(), flow: flow.clone() }
    }

    fn of(&self, error: &dyn std::error::Error) -> String {
        self.mask.redact(&error.to_string())
    }

    /// What went wrong before there was a connection.
    pub(super) fn connecting(&self, error: &lapin::Error) -> Failure {
        match self.explain(error) {
            // TLS 1.3 refuses a client when that has finished already: often a reset is all that comes (RFC 8446 §4.4.2.4).
            Failure::Broken(words) if error.is_io_error() && self.anonymous => {
                Failure::Connect(format!("{words}; the broker may want a certificate of ours (amqp.identity)"))
            }
            Failure::Broken(words) if error.is_io_error() => Failure::Connect(words),
            other => other,
        }
    }

    /// What ended a consumer that worked. A broker closes the channel with the same codes over an acknowledgement that
    /// came too late (RabbitMQ's `consumer_timeout`): if there is something for the operator, the next opening says so.
    pub(super) fn consuming(&self, error: &lapin::Error) -> Failure {
        match self.explain(error) {
            Failure::Refused(words) | Failure::Queue(words) => Failure::Broken(words),
            other => other,
        }
    }

    /// What went wrong.
    pub(super) fn explain(&self, error: &lapin::Error) -> Failure {
        if let Some(violation) = self.flow.violation() {
            return self.of_violation(violation);
        }
        match self.of_error(error) {
            Failure::Broken(words) if self.flow.is_full() => {
                Failure::Broken(format!("{words}; nothing was read while what had come waited to be written"))
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
            lapin::ErrorKind::AuthProviderError(_) => Failure::Refused(self.of(error)),
            _ => Failure::Broken(self.of(error)),
        }
    }

    fn of_io(&self, error: &std::io::Error) -> Failure {
        let words = self.of(error);
        match error.kind() {
            ErrorKind::ConnectionRefused => Failure::ConnectionRefused(words),
            ErrorKind::TimedOut => Failure::Timeout(words),
            // Certificates and keys that can't be parsed are invalid data too.
            ErrorKind::InvalidData if error.get_ref().is_some_and(|inner| !inner.is::<rustls::Error>()) => {
                Failure::Settings(words)
            }
            _ if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => Failure::Tls(words),
            _ => Failure::Broken(words),
        }
    }

    /// AMQP 0-9-1 §1.2, reply codes.
    fn of_protocol(&self, error: &lapin::protocol::AMQPError) -> Failure {
        let words = self.of(error);
        match error.get_id() {
            // Access refused; not allowed, which is how a broker answers to an unknown virtual host.
            403 | 530 => Failure::Refused(words),
            // RabbitMQ says so of a durable queue while the node that holds it is away: that heals by itself.
            404 if words.contains("is down or inaccessible") => Failure::Broken(words),
            // Not found, locked by another, declared in another way.
            404..=406 => Failure::Queue(words),
            _ => Failure::Broken(words),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_queue_whose_node_is_away_heals_and_a_missing_one_is_the_operators() {
        let explained = |text: &str| {
            let error = lapin::protocol::AMQPError::from_id(404, text.into()).unwrap();
            Words::new("hunter2", false, "q", &FlowControl::new(1))
                .explain(&lapin::ErrorKind::ProtocolError(error).into())
        };
        // The broker's words, RabbitMQ 3.x and 4.x.
        let away = "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible";
        assert!(!explained(away).needs_operator());
        assert!(explained("NOT_FOUND - no queue 'q' in vhost '/'").needs_operator());
    }
}
