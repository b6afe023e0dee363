//! A queue of an AMQP 0-9-1 broker: message by message, acknowledged in batches. Never decodes what they say.
//!
//! A consumer is one connection, and ends for good with its first failure: when to connect again is for others to say.
//! What was not acknowledged by then, the broker delivers again, to whoever connects next. No message shows the password.
//! Whatever a broker sends, a connection holds 8 MiB of it, or one message of 16 MiB: beyond that it is not read from. A
//! larger message, more messages than were asked for, and what is no answer to a consumer end it.

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
use failure::Words;
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
    /// The queue.
    pub queue: String,
    /// Whether it is declared, durable, when it isn't there; it must be there otherwise.
    pub declare: bool,
    /// Messages sent ahead of their acknowledgement.
    pub prefetch: u16,
    /// Further certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its key, PEM.
    pub identity: Option<super::webhook::TlsFiles>,
}

/// To connect, to log in and to begin to consume, each.
const PATIENCE: Duration = Duration::from_secs(10);
/// Two of these without a word from the broker, and the connection counts as broken; seconds.
const HEARTBEAT: u16 = 30;
/// To say good-bye.
const PARTING: Duration = Duration::from_secs(2);

/// One connection to a queue. Dropped, it is cut, and what was not acknowledged goes back to the queue.
pub struct Consumer {
    consumer: Option<lapin::Consumer>,
    channel: Channel,
    connection: Connection,
    flow: FlowControl,
    words: Words,
    _socket: Socket,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its body.
    pub bytes: Vec<u8>,
    /// Its number on this connection, from 1, to acknowledge it by.
    pub tag: u64,
}

impl Consumer {
    /// Connects and begins to consume; `url` is what `settings.url` says now, `tag` names us at the broker. Reads the
    /// certificate files: blocking, small local files.
    ///
    /// # Errors
    /// Whatever kept it from consuming.
    pub async fn open(settings: &AmqpSettings, url: &SecretString, tag: &str) -> Result<Self, Failure> {
        let flow = FlowControl::new(prefetch(settings));
        let (connection, words, socket) = log_in(settings, url, tag, &flow).await?;
        let (channel, consumer) =
            patient("consumer", consume(&connection, settings, tag)).await?.map_err(|error| words.explain(&error))?;
        Ok(Self { consumer: Some(consumer), channel, connection, flow, words, _socket: socket })
    }

    /// The next message; `None` when the broker has ended it (the queue was deleted), and after a failure. No message is
    /// lost when a call is dropped before it is ready.
    ///
    /// # Errors
    /// [`Failure::Broken`] and the like when the connection or the broker goes away.
    pub async fn next(&mut self) -> Result<Option<Message>, Failure> {
        let Some(consumer) = &mut self.consumer else { return Ok(None) };
        let next = match consumer.next().await {
            Some(Ok(delivery)) => {
                return Ok(Some(Message { bytes: delivery.data, tag: delivery.delivery_tag }));
            }
            Some(Err(error)) => Err(self.words.consuming(&error)),
            None => Ok(None),
        };
        self.consumer = None;
        next
    }

    /// Acknowledges every message up to the one with this tag.
    ///
    /// # Errors
    /// When the connection is gone: the messages come again.
    pub async fn ack_up_to(&self, tag: u64) -> Result<(), Failure> {
        let _acknowledging = self.flow.acknowledge(tag);
        let acknowledged = self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
        acknowledged.map_err(|error| self.words.consuming(&error))
    }

    /// Says good-bye; acknowledgements sent before arrive first. What is not acknowledged goes back to the queue.
    pub async fn close(self) {
        // The connection is cut behind it, whatever the broker answers.
        let _ = timeout(PARTING, self.connection.close(200, "OK".into())).await;
    }
}

/// Looks whether the queue is there, and takes nothing: how many messages wait in it, `None` where it is still to be
/// declared. Reads the certificate files: blocking, small local files.
///
/// # Errors
/// Whatever would keep [`Consumer::open`] from consuming.
pub async fn look(settings: &AmqpSettings, url: &SecretString) -> Result<Option<u32>, Failure> {
    let (connection, words, _socket) = log_in(settings, url, "feedmirror-check", &FlowControl::new(0)).await?;
    let found = patient("queue", async {
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let queue = channel.queue_declare(settings.queue.as_str().into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    });
    let found: Result<u32, lapin::Error> = found.await?;
    // It was only looked at.
    let _ = timeout(PARTING, connection.close(200, "OK".into())).await;
    match found.map_err(|error| words.explain(&error)) {
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
) -> Result<(Connection, Words, Socket), Failure> {
    let uri = uri(url)?;
    let anonymous = encrypted(&uri) && settings.identity.is_none();
    let words = Words::new(&uri.authority.userinfo.password, anonymous, &settings.queue, flow);
    let tls = tls(settings)?;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Socket::new(flow);
    let connection = patient("connection", connect(uri, tls, properties, &socket)).await?;
    let connection = connection.map_err(|error| words.connecting(&error))?;
    Ok((connection, words, socket))
}

async fn patient<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::Timeout(format!("no {what} within {PATIENCE:?}"));
    timeout(PATIENCE, work).await.map_err(late)
}

async fn consume(
    connection: &Connection,
    settings: &AmqpSettings,
    tag: &str,
) -> Result<(Channel, lapin::Consumer), lapin::Error> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch(settings), BasicQosOptions::default()).await?;
    let declared = QueueDeclareOptions { passive: !settings.declare, durable: true, ..Default::default() };
    let queue = settings.queue.as_str();
    channel.queue_declare(queue.into(), declared, FieldTable::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), tag.into(), options, FieldTable::default()).await?;
    Ok((channel, consumer))
}

/// AMQP takes 0 for "no limit".
fn prefetch(settings: &AmqpSettings) -> u16 {
    settings.prefetch.max(1)
}

/// The URL's parts; the words of what can't be parsed may hold the password.
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
    // The library makes room for 32 frames as large as the broker likes, unless we say how large they may be; 0 is no limit.
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

/// Whether the connection is to be encrypted.
fn encrypted(uri: &AMQPUri) -> bool {
    uri.scheme == AMQPScheme::AMQPS
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_taken_apart_and_an_address_stays_what_it_is() {
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
    fn no_complaint_about_a_url_shows_it() {
        for wrong in ["hunter2", "https://u:hunter2@h/", "amqp:u:hunter2", "amqp://u:hunter2@h:port/", "amqp://"] {
            let failure = uri(&SecretString::from(wrong)).unwrap_err();
            assert!(matches!(failure, Failure::Settings(_)), "{wrong}");
            assert!(!failure.to_string().contains("hunter2"), "{failure}");
        }
    }
}
