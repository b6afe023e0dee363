//! What publishers POST to us: a router over an inbox, which authenticates and hands bodies on. Never decodes them.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::secret::{SecretSource, Value};

/// `webhook` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSettings {
    /// Secrets that are valid, the new one first during a rotation; at least one.
    pub secrets: Vec<SecretSource>,
    /// Whether pages are refused until the feed is level.
    pub defer: bool,
    /// The request that registers us with the publisher at start, if it wants one.
    pub register: Option<RegisterSettings>,
}

/// `webhook.register` of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterSettings {
    /// Where the request goes.
    pub url: String,
    /// Its method, `POST` by default.
    pub method: String,
    /// Its headers.
    pub headers: Vec<(String, Value)>,
    /// Its body, in which `{callback}` stands for our URL.
    pub body: String,
    /// How often it is repeated; only at start unless set.
    pub renew: Option<std::time::Duration>,
}

/// `[webhooks]`: the listener that faces publishers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhooksSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The path in front of the feeds' names.
    pub path: String,
    /// Its address as publishers see it, without the path; needed to register.
    pub public_url: Option<String>,
    /// The largest body taken, bytes.
    pub max_body_bytes: u64,
    /// Certificate chain and key, PEM; behind a proxy unless set.
    pub tls: Option<TlsFiles>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, with its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for WebhooksSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8471)),
            path: "/webhooks".to_owned(),
            public_url: None,
            max_body_bytes: 32 << 20,
            tls: None,
        }
    }
}
