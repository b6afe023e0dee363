//! Builds HTTP clients: only here, one for each set of connection settings. Knows no feed and no secret.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::address_policy::AddressPolicy;
use super::failure::HttpFailure;
use super::http::HttpSettings;

/// The clients built so far, one for each set of connection settings; feeds with equal settings share connections.
#[derive(Clone, Default)]
pub struct HttpClients(Arc<Mutex<HashMap<ClientKey, reqwest::Client>>>);

/// Proxy, CA file, connect timeout, and whether malformed heads are read.
type ClientKey = (Option<String>, Option<PathBuf>, Duration, bool);

/// What an HTTP/2 peer may send before it is read, bytes: the memory budget doesn't count it.
const HTTP2_WINDOW: u32 = 256 << 10;

impl HttpClients {
    /// A client that reads what the standard allows.
    pub(super) fn get(&self, settings: &HttpSettings) -> Result<reqwest::Client, HttpFailure> {
        self.cached(settings, false)
    }

    /// A client that reads what browsers read: blanks before the colon, folded lines, a thousand headers; lines that
    /// are no headers are skipped. For publishers that the strict client can't read: there is no further server behind
    /// them that a malformed head could deceive.
    pub(super) fn lenient(&self, settings: &HttpSettings) -> Result<reqwest::Client, HttpFailure> {
        self.cached(settings, true)
    }

    fn cached(&self, settings: &HttpSettings, lenient: bool) -> Result<reqwest::Client, HttpFailure> {
        let key = (settings.proxy.clone(), settings.ca_file.clone(), settings.connect_timeout, lenient);
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build_from_settings(settings, lenient)?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// A client without proxy, limits or secrets, for requests to a daemon on this machine; `timeout` is for a whole
/// response.
///
/// # Errors
/// [`HttpFailure::Settings`].
pub fn plain_client(timeout: Duration) -> Result<reqwest::Client, HttpFailure> {
    build_client(builder().no_proxy().timeout(timeout))
}

/// A client for web pages of any publisher, which connects only to addresses that `policy` permits.
pub(super) fn guarded_client(settings: &HttpSettings, policy: &AddressPolicy) -> Result<reqwest::Client, HttpFailure> {
    let client = builder().connect_timeout(settings.connect_timeout).pool_max_idle_per_host(1);
    build_client(if policy.allows_all() { client } else { client.no_proxy().dns_resolver(Arc::new(policy.clone())) })
}

#[expect(clippy::disallowed_methods, reason = "the one place where clients are made")]
fn builder() -> reqwest::ClientBuilder {
    // The TLS library takes its cryptography from the process; a second installation is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none())
}

fn lenient_builder() -> reqwest::ClientBuilder {
    builder()
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .http1_max_headers(1_000)
}

/// Whether a feed's responses are read leniently: for an hour after that helped, then the strict client is tried again.
#[derive(Default)]
pub(super) struct Leniency(Mutex<Option<Instant>>);

impl Leniency {
    /// How long the strict client is not tried again.
    const LASTS: Duration = Duration::from_secs(3_600);

    pub(super) fn is_on(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|helped| helped.elapsed() < Self::LASTS)
    }

    pub(super) fn record_success(&self) {
        let mut helped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if helped.is_none_or(|helped| helped.elapsed() >= Self::LASTS) {
            *helped = Some(Instant::now());
        }
    }

    /// Whether the error is that the response's head could not be parsed.
    pub(super) fn may_help(error: &reqwest::Error) -> bool {
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            if inner.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
                return true;
            }
            cause = inner.source();
        }
        false
    }
}

fn build_client(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, HttpFailure> {
    builder.build().map_err(|error| HttpFailure::Settings(format!("the HTTP client can't be made: {}", chain(&error))))
}

fn build_from_settings(settings: &HttpSettings, lenient: bool) -> Result<reqwest::Client, HttpFailure> {
    let mut builder = if lenient { lenient_builder() } else { builder() }
        .connect_timeout(settings.connect_timeout)
        .http2_initial_stream_window_size(HTTP2_WINDOW)
        .http2_initial_connection_window_size(2 * HTTP2_WINDOW)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(60));
    if let Some(proxy) = &settings.proxy {
        let proxy = reqwest::Proxy::all(proxy).map_err(|_| HttpFailure::Settings("http.proxy is no URL".into()))?;
        builder = builder.proxy(proxy);
    }
    if let Some(path) = &settings.ca_file {
        let unusable = |problem: String| HttpFailure::Settings(format!("ca_file {}: {problem}", path.display()));
        let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
        builder = builder.tls_certs_merge(certificates);
    }
    build_client(builder)
}

/// The causes of an error without its own message, which names the URL.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        cause = inner.source();
    }
    if words.is_empty() { "the request failed".into() } else { words.join(": ") }
}
