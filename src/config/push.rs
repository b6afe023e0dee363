//! Push: `[push]`, `[webhooks]`, and a feed's `sse`, `webhook` and `amqp`.
//!
//! A provider may hold settings that its feeds have in common, such as a secret or a broker. So each endpoint is read
//! into a draft, and only a feed's own draft has to be complete.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use secrecy::ExposeSecret;
use url::Url;

use super::secrets::{headers, secret, secrets};
use super::sections::{certificates, listen, pem};
use super::table::{ConfigValue, Table};
use super::units::{count, duration, or_off, size, text, word};
use super::urls::{as_written, http_url, is_loopback};
use crate::mode::PushSettings;
use crate::source::amqp::AmqpSettings;
use crate::source::secret::{ConfiguredValue, SecretSource};
use crate::source::sse::SseSettings;
use crate::source::webhook::proxies::TrustedProxies;
use crate::source::webhook::{RegisterSettings, TlsFiles, WebhookListenerSettings, WebhookSettings};

/// Messages sent ahead of their acknowledgement, unless set.
const PREFETCH: u16 = 500;

/// `[push]`, global or of a provider or a feed.
pub(super) fn push(table: Table<'_>, base: &PushSettings) -> PushSettings {
    let mut push = base.clone();
    table.set("prove_after", &mut push.prove_after, duration);
    table.set("audit", &mut push.audit, duration);
    table.set("grace", &mut push.grace, duration);
    table.finish();
    push
}

/// `[webhooks]`.
pub(super) fn webhooks(table: Table<'_>) -> WebhookListenerSettings {
    let mut webhooks = WebhookListenerSettings::default();
    table.set("listen", &mut webhooks.listen, listen);
    table.set("path", &mut webhooks.path, path);
    webhooks.public_url = table.get_unshown("public_url", public_url);
    table.set("max_body_bytes", &mut webhooks.max_body_bytes, size);
    webhooks.tls = tls_files(&table, "tls_cert_file", "tls_key_file");
    table.set("trusted_proxies", &mut webhooks.trusted_proxies, proxies);
    if let Some(Err(error)) = webhooks.tls.as_ref().map(TlsFiles::load) {
        table.problem("tls_cert_file", error.to_string());
    }
    if !webhooks.listen.ip().is_loopback() && webhooks.tls.is_none() && table.peek("listen").is_some() {
        let message = "takes plain http from other machines, secrets included: set tls_cert_file and tls_key_file, or \
                       listen on loopback behind a proxy";
        table.warn("listen", message.to_owned());
    }
    table.finish();
    webhooks
}

fn proxies(value: &ConfigValue<'_>) -> Result<TrustedProxies, String> {
    let right = "must be a list of addresses and networks, as [\"10.0.0.7\", \"fd00::/8\"]";
    let network = |text: &str| text.parse().map_err(|()| format!("{right}: {text:?} is none"));
    let networks: Result<Vec<_>, String> = value.list().ok_or(right)?.into_iter().map(network).collect();
    Ok(TrustedProxies::new(networks?))
}

fn path(value: &ConfigValue<'_>) -> Result<String, String> {
    let right = "must begin with / and hold only letters, digits and / . _ ~ -";
    let fit = |b: u8| b.is_ascii_alphanumeric() || b"/._~-".contains(&b);
    let path = value.text().filter(|path| path.starts_with('/') && path.bytes().all(fit)).ok_or(right)?;
    Ok(path.trim_end_matches('/').to_owned())
}

fn public_url(value: &ConfigValue<'_>) -> Result<String, String> {
    let url = http_url(value)?;
    if url.query().is_some() {
        return Err("must hold no query".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A certificate and its key: both or neither.
fn tls_files(table: &Table<'_>, certificate: &str, key: &str) -> Option<TlsFiles> {
    let cert = table.get(certificate, certificates);
    let private = table.get(key, |value| pem(value, "PRIVATE KEY-----", "private key"));
    for (one, other) in [(certificate, key), (key, certificate)] {
        if table.peek(one).is_some() && table.peek(other).is_none() {
            table.problem(one, format!("needs {other} beside it"));
        }
    }
    Some(TlsFiles { certificate: cert?, key: private? })
}

/// A feed's endpoints as read so far: from its provider, then from the feed itself.
#[derive(Clone, Default)]
pub(super) struct EndpointDrafts {
    sse: SseDraft,
    webhook: Option<WebhookDraft>,
    amqp: AmqpDraft,
}

#[derive(Clone)]
struct SseDraft {
    from: String,
    after: String,
}

impl Default for SseDraft {
    fn default() -> Self {
        Self { from: "from".to_owned(), after: "after".to_owned() }
    }
}

#[derive(Clone, Default)]
struct WebhookDraft {
    secrets: Vec<SecretSource>,
    defer: bool,
    register: Option<RegisterDraft>,
}

#[derive(Clone)]
struct RegisterDraft {
    url: Option<String>,
    method: String,
    headers: Vec<(String, ConfiguredValue)>,
    body: String,
    renew: Option<Duration>,
}

impl Default for RegisterDraft {
    fn default() -> Self {
        Self { url: None, method: "POST".to_owned(), headers: Vec::new(), body: String::new(), renew: None }
    }
}

#[derive(Clone, Default)]
struct AmqpDraft {
    url: Option<SecretSource>,
    declare: bool,
    prefetch: Option<u16>,
    ca_file: Option<PathBuf>,
    identity: Option<TlsFiles>,
}

/// A feed's endpoints besides its poll URL.
#[derive(Default)]
pub(super) struct PushEndpointSettings {
    pub(super) sse: Option<SseSettings>,
    pub(super) webhook: Option<WebhookSettings>,
    pub(super) amqp: Option<AmqpSettings>,
}

impl EndpointDrafts {
    /// These drafts with the changes of a provider's table. Keys that name one endpoint can't be shared by feeds.
    pub(super) fn of_provider(&self, table: &Table<'_>) -> Self {
        let mut drafts = self.clone();
        let sse = table.table("sse");
        sse.refuse("url", "belongs to a feed, [feeds.NAME]");
        drafts.sse.parameters(&sse);
        sse.finish();
        drafts.webhook = webhook(table.table("webhook"), self.webhook.as_ref());
        let amqp = table.table("amqp");
        amqp.refuse("queue", "belongs to a feed, [feeds.NAME]: two would share its messages out");
        drafts.amqp.read_shared_keys(&amqp);
        amqp.finish();
        drafts
    }

    /// The endpoints of the feed `name` whose table this is; `webhooks` has the URL at which publishers reach us.
    pub(super) fn of_feed(
        mut self,
        table: &Table<'_>,
        name: &str,
        webhooks: &WebhookListenerSettings,
    ) -> PushEndpointSettings {
        PushEndpointSettings {
            sse: self.sse.of_feed(table.table("sse")),
            webhook: webhook(table.table("webhook"), self.webhook.as_ref())
                .and_then(|draft| draft.of_feed(&table.table("webhook"), name, webhooks)),
            amqp: self.amqp.of_feed(table.table("amqp")),
        }
    }
}

impl SseDraft {
    fn parameters(&mut self, sse: &Table<'_>) {
        let params = sse.table("params");
        params.set("from", &mut self.from, text);
        params.set("after", &mut self.after, text);
        if params.is_present() && self.from == self.after {
            params.problem("after", "must differ from what stands for from".to_owned());
        }
        params.finish();
    }

    fn of_feed(&mut self, sse: Table<'_>) -> Option<SseSettings> {
        let url = sse.get_unshown("url", as_written);
        self.parameters(&sse);
        if sse.is_present() && sse.peek("url").is_none() {
            sse.problem("url", "is missing: the URL of the stream".to_owned());
        }
        sse.finish();
        Some(SseSettings { url: url?, from: self.from.clone(), after: self.after.clone() })
    }
}

fn webhook(table: Table<'_>, base: Option<&WebhookDraft>) -> Option<WebhookDraft> {
    let mut draft = base.cloned().unwrap_or_default();
    if let Some(secrets) = secrets(&table, "secret") {
        draft.secrets = secrets;
    }
    let from_word = |word: &str| match word {
        "accept" => Some(false),
        "defer" => Some(true),
        _ => None,
    };
    table.set("during_refresh", &mut draft.defer, word(from_word, "\"accept\" or \"defer\""));
    draft.register = register(table.table("register"), draft.register.as_ref());
    let is_present = table.is_present();
    table.finish();
    (is_present || base.is_some()).then_some(draft)
}

fn register(table: Table<'_>, base: Option<&RegisterDraft>) -> Option<RegisterDraft> {
    let mut draft = base.cloned().unwrap_or_default();
    if let Some(url) = table.get_unshown("url", as_written) {
        draft.url = Some(url);
    }
    table.set("method", &mut draft.method, method);
    draft.headers = headers(&table, "headers", &draft.headers);
    // A body may hold a secret.
    if let Some(body) = table.get_unshown("body", text) {
        draft.body = body;
    }
    table.set("renew", &mut draft.renew, or_off(duration));
    let is_present = table.is_present();
    table.finish();
    (is_present || base.is_some()).then_some(draft)
}

fn method(value: &ConfigValue<'_>) -> Result<String, String> {
    let right = "must be \"POST\", \"PUT\", \"PATCH\" or \"GET\"";
    let method = text(value)?;
    let known = [Method::POST, Method::PUT, Method::PATCH, Method::GET];
    known.iter().any(|one| one.as_str() == method).then_some(method).ok_or_else(|| right.to_owned())
}

impl WebhookDraft {
    fn of_feed(self, table: &Table<'_>, name: &str, webhooks: &WebhookListenerSettings) -> Option<WebhookSettings> {
        if self.secrets.is_empty() && table.peek("secret").is_none() && table.peek("secret_file").is_none() {
            table.problem("secret", "is missing: nobody could tell the publisher from anybody else".to_owned());
        }
        let register = match self.register {
            Some(draft) => Some(draft.of_feed(&table.table("register"), name, webhooks)?),
            None => None,
        };
        Some(WebhookSettings { secrets: self.secrets, defer: self.defer, register })
    }
}

impl RegisterDraft {
    fn of_feed(self, table: &Table<'_>, name: &str, webhooks: &WebhookListenerSettings) -> Option<RegisterSettings> {
        let callback = webhooks.callback(name);
        if callback.is_none() {
            let message = "needs public_url in [webhooks]: how the publisher reaches us".to_owned();
            table.problem_here(message);
        }
        if self.url.is_none() && table.peek("url").is_none() {
            table.problem("url", "is missing: where the request goes".to_owned());
        }
        let (url, callback) = (self.url?, callback?);
        if !url.contains("{callback}") && !self.body.contains("{callback}") {
            table.warn("body", "holds no {callback}, nor does url: the publisher isn't told where to post".to_owned());
        }
        let Self { method, headers, body, renew, .. } = self;
        Some(RegisterSettings { url, method, headers, body, renew, callback })
    }
}

impl AmqpDraft {
    /// Reads the keys that feeds may have in common.
    fn read_shared_keys(&mut self, table: &Table<'_>) {
        if let Some(source) = secret(table, "url") {
            match broker(&source) {
                Ok(()) => self.url = Some(source),
                Err(message) => table.problem("url", message.to_owned()),
            }
        }
        let from_word = |word: &str| match word {
            "passive" => Some(false),
            "durable" => Some(true),
            _ => None,
        };
        table.set("declare", &mut self.declare, word(from_word, "\"passive\" or \"durable\""));
        table.set("prefetch", &mut self.prefetch, |value| prefetch(value).map(Some));
        table.set("ca_file", &mut self.ca_file, |value| certificates(value).map(Some));
        if let Some(identity) = tls_files(table, "cert_file", "key_file") {
            self.identity = Some(identity);
        }
    }

    fn of_feed(&mut self, table: Table<'_>) -> Option<AmqpSettings> {
        self.read_shared_keys(&table);
        let queue = table.get("queue", queue);
        if table.is_present() {
            if table.peek("queue").is_none() {
                table.problem("queue", "is missing: the name of the queue".to_owned());
            }
            if self.url.is_none() && table.peek("url").is_none() && table.peek("url_file").is_none() {
                table.problem("url", "is missing: the broker's, as url_file = \"…\"".to_owned());
            }
        }
        table.finish();
        Some(AmqpSettings {
            url: self.url.clone()?,
            queue: queue?,
            declare: self.declare,
            prefetch: self.prefetch.unwrap_or(PREFETCH),
            ca_file: self.ca_file.clone(),
            identity: self.identity.clone(),
        })
    }
}

/// Reads the broker's URL once, to check that it is one.
fn broker(source: &SecretSource) -> Result<(), &'static str> {
    let right = "must hold an amqp or amqps URL, as amqps://user:password@broker.example/vhost (what it holds is not \
                 shown: it is secret)";
    let secret = source.read().map_err(|_| right)?;
    let url = Url::parse(secret.expose_secret()).map_err(|_| right)?;
    (matches!(url.scheme(), "amqp" | "amqps") && url.has_host()).then_some(()).ok_or(right)
}

fn prefetch(value: &ConfigValue<'_>) -> Result<u16, String> {
    let number = count(value).ok().and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| "must be a whole number from 1 to 65535".to_owned())
}

/// AMQP 0-9-1 holds a queue's name in a short string.
fn queue(value: &ConfigValue<'_>) -> Result<String, String> {
    let queue = text(value)?;
    (queue.len() <= 255).then_some(queue).ok_or_else(|| "must be at most 255 bytes long".to_owned())
}

/// Warns of a stream whose secrets anyone on the network path can read.
pub(super) fn warn_about_stream(table: &Table<'_>, stream: &SseSettings, secret: bool) {
    let plain = Url::parse(&stream.url).is_ok_and(|url| url.scheme() == "http" && !is_loopback(&url));
    if plain && secret {
        let message = "is plain http, and secrets are sent with it: anyone on the way can read them";
        table.table("sse").warn("url", message.to_owned());
    }
}
