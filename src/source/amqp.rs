//! A queue of an AMQP 0-9-1 broker: message by message, acknowledged in batches. Never decodes what they say.

use std::path::PathBuf;

use super::secret::SecretSource;

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
