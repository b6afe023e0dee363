//! The secrets of an endpoint's requests: sends them, and masks them in what the publisher sends back. Never decides
//! which origin gets them.

use std::error::Error as _;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::client::chain;
use super::failure::HttpFailure;
use super::http::{parse, percent_encode_query};
use super::mask::Mask;
use super::secret::{ConfiguredValue, SecretSource};

/// The sources of an endpoint's headers, query parameters and other secrets.
#[derive(Default)]
pub(super) struct CredentialSources {
    pub(super) headers: Vec<(String, ConfiguredValue)>,
    pub(super) query: Vec<(String, ConfiguredValue)>,
    /// The feed's other secrets, which these requests don't send.
    pub(super) others: Vec<(String, SecretSource)>,
}

/// The values that were read last.
#[derive(Default)]
pub(super) struct Credentials {
    headers: HeaderMap,
    /// Parameter, and value percent-encoded as sent.
    query: Vec<(String, SecretString)>,
    others: Vec<SecretString>,
    mask: Mask,
}

impl Credentials {
    /// Reads the sources: blocking, small local files. A secret that isn't sent and can't be read is left out.
    pub(super) fn read(sources: &CredentialSources) -> Result<Self, HttpFailure> {
        let mut read = Self::default();
        for (name, value) in &sources.headers {
            let (value, hidden) = resolve(value)?;
            let unusable = |what: &str| HttpFailure::Settings(format!("header {name}: its {what} can't be sent"));
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unusable("name"))?;
            let mut sent = HeaderValue::from_str(value.expose_secret()).map_err(|_| unusable("value"))?;
            sent.set_sensitive(hidden);
            read.headers.insert(key, sent);
            if hidden {
                let parameter = sources.query.iter().any(|(parameter, _)| parameter == name);
                let shown = if parameter { format!("header.{name}") } else { name.clone() };
                read.mask.hide(&shown, value.expose_secret());
            }
        }
        for (name, value) in &sources.query {
            let (value, hidden) = resolve(value)?;
            if hidden {
                read.mask.hide_parameter(name, value.expose_secret());
            }
            read.query.push((name.clone(), SecretString::from(percent_encode_query(value.expose_secret()))));
        }
        let sent = |source: &SecretSource| {
            let mut values = sources.headers.iter().chain(&sources.query).map(|(_, value)| value);
            values.any(|value| matches!(value, ConfiguredValue::Secret(sent) if sent == source))
        };
        for (name, source) in sources.others.iter().filter(|(_, source)| !sent(source)) {
            if let Ok(secret) = source.read() {
                read.mask.hide(name, secret.expose_secret());
                read.others.push(secret);
            }
        }
        Ok(read)
    }

    pub(super) fn equals(&self, other: &Self) -> bool {
        let exposed = |secrets: &Self| -> Vec<String> {
            let sent = secrets.query.iter().map(|(_, value)| value);
            sent.chain(&secrets.others).map(|secret| secret.expose_secret().to_owned()).collect()
        };
        self.headers == other.headers && exposed(self) == exposed(other)
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(super) fn mask(&self) -> &Mask {
        &self.mask
    }

    /// A URL of the endpoint's own origin as it is sent: masked secrets are put in again, missing parameters are added.
    pub(super) fn url_with_secrets(&self, url: &str) -> Result<Url, HttpFailure> {
        let mut full = self.mask.unmask_url(url);
        let target = parse(&full).map_err(|failure| self.redacted(failure))?;
        for (name, value) in &self.query {
            if !target.query_pairs().any(|(key, _)| key == name.as_str()) {
                let joint = if full.contains('?') { '&' } else { '?' };
                full = format!("{full}{joint}{}={}", percent_encode_query(name), value.expose_secret());
            }
        }
        parse(&full).map_err(|failure| self.redacted(failure))
    }

    fn redacted(&self, failure: HttpFailure) -> HttpFailure {
        match failure {
            HttpFailure::Url(words) => HttpFailure::Url(self.mask.redact(&words)),
            other => other,
        }
    }

    /// Classifies a client's error; its own message may hold the URL with secrets, so only the causes are shown.
    pub(super) fn to_failure(&self, error: &reqwest::Error) -> HttpFailure {
        let words = self.mask.redact(&chain(error));
        let mut cause = error.source();
        while let Some(inner) = cause {
            if inner.is::<rustls::Error>() {
                return HttpFailure::Tls(words);
            }
            let io = inner.downcast_ref::<std::io::Error>();
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
                return HttpFailure::ConnectionRefused(words);
            }
            // An I/O error's `source` skips the error that it wraps.
            let wrapped = io.and_then(std::io::Error::get_ref);
            cause = wrapped.map(|wrapped| wrapped as &(dyn std::error::Error + 'static)).or_else(|| inner.source());
        }
        if error.is_timeout() {
            HttpFailure::Timeout(words)
        } else if error.is_connect() {
            HttpFailure::Connect(words)
        } else {
            HttpFailure::Broken(words)
        }
    }
}

fn resolve(value: &ConfiguredValue) -> Result<(SecretString, bool), HttpFailure> {
    match value {
        ConfiguredValue::Plain(text) => Ok((SecretString::from(text.as_str()), false)),
        ConfiguredValue::Secret(source) => {
            let secret = source.read().map_err(|error| HttpFailure::Settings(error.to_string()))?;
            Ok((secret, true))
        }
    }
}
