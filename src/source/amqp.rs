//! Consumes a queue of an AMQP 0-9-1 broker: message by message, acknowledged in batches. Never decodes a message.
//!
//! A consumer is one connection, and ends for good with its first failure: the caller decides when to connect again.
//! Messages that were not acknowledged by then are delivered again, to the next consumer. No error shows the password.
//! A connection buffers at most 8 MiB, or a single message of up to 16 MiB; then reading stops. A
//! larger message, more messages than were requested, and a frame that no consumer expects end the connection.

use std::net::Shutdown;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;

use super::secret::SecretSource;
use connect::{Socket, connect};
pub use failure::Failure;
use failure::FailureMapper;
use flow_control::FlowControl;
use frames::FRAME_MAX;

mod connect;
mod failure;
mod flow_control;
mod frames;
mod limited_stream;
mod table;
mod window;

/// `amqp` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpSettings {
    /// The broker's URL, `amqp://` or `amqps://`, which holds a password.
    pub url: SecretSource,
    pub queue: String,
    /// Whether a missing queue is declared, durable; otherwise the queue must exist.
    pub declare: bool,
    /// Messages sent ahead of their acknowledgement.
    pub prefetch: u16,
    /// Further certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its key, PEM.
    pub identity: Option<super::webhook::TlsFiles>,
}

/// For each step of opening: to connect, to log in, to begin to consume.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// After two heartbeat intervals without a frame of the broker the connection counts as broken; seconds.
const HEARTBEAT: u16 = 30;
/// For closing a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection to a queue. When dropped, its socket is shut down, and unacknowledged messages return to the queue.
pub struct Consumer {
    consumer: Option<lapin::Consumer>,
    channel: Channel,
    connection: Connection,
    flow: FlowControl,
    failures: FailureMapper,
    _socket: Socket,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The message's body.
    pub bytes: Vec<u8>,
    /// The delivery tag: the message's number on this connection, from 1, by which it is acknowledged.
    pub tag: u64,
}

impl Consumer {
    /// Connects and begins to consume; `url` is the current secret of `settings.url`, `tag` names this consumer to the
    /// broker. Reads the certificate files: blocking, small local files.
    ///
    /// # Errors
    /// Whatever kept it from consuming.
    pub async fn open(settings: &AmqpSettings, url: &SecretString, tag: &str) -> Result<Self, Failure> {
        let flow = FlowControl::new(prefetch(settings));
        let (connection, failures, socket) = log_in(settings, url, tag, &flow).await?;
        let (channel, consumer) = within_timeout("consumer", consume(&connection, settings, tag))
            .await?
            .map_err(|error| failures.explain(&error))?;
        Ok(Self { consumer: Some(consumer), channel, connection, flow, failures, _socket: socket })
    }

    /// The next message; `None` when the broker has cancelled the consumer (the queue was deleted), and after a
    /// failure. No message is lost when a call is dropped before it is ready.
    ///
    /// # Errors
    /// [`Failure::Broken`] and the like when the connection breaks or the broker closes it.
    pub async fn next(&mut self) -> Result<Option<Message>, Failure> {
        let Some(consumer) = &mut self.consumer else { return Ok(None) };
        let next = match consumer.next().await {
            Some(Ok(delivery)) => {
                return Ok(Some(Message { bytes: delivery.data, tag: delivery.delivery_tag }));
            }
            Some(Err(error)) => Err(self.failures.of_consumer(&error)),
            None => Ok(None),
        };
        self.consumer = None;
        next
    }

    /// Acknowledges every message up to the one with this tag.
    ///
    /// # Errors
    /// When the connection has ended: the broker delivers the messages again.
    pub async fn ack_up_to(&self, tag: u64) -> Result<(), Failure> {
        let _acknowledging = self.flow.acknowledge(tag);
        let acknowledged = self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
        acknowledged.map_err(|error| self.failures.of_consumer(&error))
    }

    /// Closes the connection; acknowledgements sent before arrive first. Unacknowledged messages return to the queue.
    pub async fn close(self) {
        // The socket is shut down afterwards, whatever the broker answers.
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(200, "OK".into())).await;
    }
}

/// Checks that the queue exists, without consuming: how many messages wait in it, `None` where it is still to be
/// declared. Reads the certificate files: blocking, small local files.
///
/// # Errors
/// Whatever would keep [`Consumer::open`] from consuming.
pub async fn look(settings: &AmqpSettings, url: &SecretString) -> Result<Option<u32>, Failure> {
    let (connection, failures, _socket) = log_in(settings, url, "feedmirror-check", &FlowControl::new(0)).await?;
    let checked = within_timeout("queue", async {
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let queue = channel.queue_declare(settings.queue.as_str().into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    });
    let checked: Result<u32, lapin::Error> = checked.await?;
    // The result is known: an error while closing changes nothing.
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
    match checked.map_err(|error| failures.explain(&error)) {
        Ok(messages) => Ok(Some(messages)),
        Err(Failure::Queue(_)) if settings.declare => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn log_in(
    settings: &AmqpSettings,
    url: &SecretString,
    name: &str,
    flow: &FlowControl,
) -> Result<(Connection, FailureMapper, Socket), Failure> {
    let uri = uri(url)?;
    let anonymous = is_encrypted(&uri) && settings.identity.is_none();
    let failures = FailureMapper::new(&uri.authority.userinfo.password, anonymous, &settings.queue, flow);
    let tls = tls(settings)?;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Socket::new(flow);
    let connection = within_timeout("connection", connect(uri, tls, properties, &socket)).await?;
    let connection = connection.map_err(|error| failures.of_connection(&error))?;
    Ok((connection, failures, socket))
}

async fn within_timeout<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::Timeout(format!("no {what} within {OPEN_TIMEOUT:?}"));
    timeout(OPEN_TIMEOUT, work).await.map_err(late)
}

async fn consume(
    connection: &Connection,
    settings: &AmqpSettings,
    tag: &str,
) -> Result<(Channel, lapin::Consumer), lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch(settings), BasicQosOptions::default()).await?;
    let declare = QueueDeclareOptions { passive: !settings.declare, durable: true, ..Default::default() };
    let queue = settings.queue.as_str();
    channel.queue_declare(queue.into(), declare, FieldTable::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), tag.into(), options, FieldTable::default()).await?;
    Ok((channel, consumer))
}

/// AMQP takes 0 for "no limit".
fn prefetch(settings: &AmqpSettings) -> u16 {
    settings.prefetch.max(1)
}

/// Parses the URL; the parser's own error may hold the password, so it is not shown.
fn uri(url: &SecretString) -> Result<AMQPUri, Failure> {
    let unusable = |problem: &str| Failure::Settings(format!("the broker's URL {problem}"));
    let parsed = url::Url::parse(url.expose_secret()).map_err(|error| unusable(&format!("is none: {error}")))?;
    if !["amqp", "amqps"].contains(&parsed.scheme()) {
        return Err(unusable("is neither amqp:// nor amqps://"));
    }
    let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(|| unusable("names no host"))?;
    let mut uri: AMQPUri = url.expose_secret().parse().map_err(|_| unusable("can't be read"))?;
    // The parser takes every IPv6 address for localhost.
    host.trim_matches(['[', ']']).clone_into(&mut uri.authority.host);
    uri.query.heartbeat = uri.query.heartbeat.or(Some(HEARTBEAT));
    // The library allocates 32 frames of any size that the broker asks for, unless the URL limits it; 0 is no limit.
    let frame_max = uri.query.frame_max.filter(|bytes| *bytes > 0);
    uri.query.frame_max = Some(frame_max.unwrap_or(FRAME_MAX).min(FRAME_MAX));
    Ok(uri)
}

fn tls(settings: &AmqpSettings) -> Result<OwnedTLSConfig, Failure> {
    let read = |what: &str, path: &PathBuf| {
        let unusable = |error| Failure::Settings(format!("amqp.{what} {}: {error}", path.display()));
        std::fs::read_to_string(path).map_err(unusable)
    };
    let cert_chain = settings.ca_file.as_ref().map(|path| read("ca_file", path)).transpose()?;
    let identity = match &settings.identity {
        Some(files) => Some(OwnedIdentity::PKCS8 {
            pem: read("identity", &files.certificate)?.into_bytes(),
            key: read("identity", &files.key)?.into_bytes(),
        }),
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

fn is_encrypted(uri: &AMQPUri) -> bool {
    uri.scheme == AMQPScheme::AMQPS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_parsed_and_an_ip_address_is_kept() {
        let parts = |text: &str| {
            let uri = uri(&SecretString::from(text)).unwrap();
            (uri.authority.host, uri.authority.port, uri.vhost, uri.query.heartbeat)
        };
        assert_eq!(parts("amqp://u:p@broker.example"), ("broker.example".into(), 5672, "/".into(), Some(HEARTBEAT)));
        assert_eq!(
            parts("amqps://broker.example/acme"),
            ("broker.example".into(), 5671, "acme".into(), Some(HEARTBEAT))
        );
        assert_eq!(parts("amqp://[2001:db8::1]:99/%2f?heartbeat=5"), ("2001:db8::1".into(), 99, "/".into(), Some(5)));
    }

    #[test]
    fn frames_are_limited_whatever_the_url_says() {
        for (query, bytes) in [("", FRAME_MAX), ("frame_max=0", FRAME_MAX), ("frame_max=8192", 8_192)] {
            let uri = uri(&SecretString::from(format!("amqp://h/?{query}"))).unwrap();
            assert_eq!(uri.query.frame_max, Some(bytes), "{query}");
        }
    }

    #[test]
    fn no_error_about_a_url_shows_it() {
        for wrong in ["hunter2", "https://u:hunter2@h/", "amqp:u:hunter2", "amqp://u:hunter2@h:port/", "amqp://"] {
            let failure = uri(&SecretString::from(wrong)).unwrap_err();
            assert!(matches!(failure, Failure::Settings(_)), "{wrong}");
            assert!(!failure.to_string().contains("hunter2"), "{failure}");
        }
    }
}
