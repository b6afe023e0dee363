//! The one HTTP client: limits, redirects, origins, secrets.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::asked::{Asked, EVENT_STREAM, Streaming};
use super::body::{Body, Coding};
use super::budget::Reservation;
use super::client::{Clients, chain};
pub use super::failure::Failure;
use super::headers::{Meta, meta, retry_after};
use super::secret::Value;
use super::{mask, redirect};

/// `[http]`, and a feed's `http.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// The `User-Agent` sent.
    pub user_agent: String,
    /// To open a connection, TLS included.
    pub connect_timeout: Duration,
    /// The longest silence while a response is awaited or read.
    pub read_timeout: Duration,
    /// For a whole page.
    pub page_timeout: Duration,
    /// The largest page taken, in bytes once decompressed.
    pub max_page_bytes: u64,
    /// A proxy for all requests; the environment's when not set.
    pub proxy: Option<String>,
    /// Further certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Other origins that `next` and redirects may lead to: `host` or `host:port`.
    pub allow_hosts: Vec<String>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            user_agent: concat!("feedmirror/", env!("CARGO_PKG_VERSION")).into(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
            page_timeout: Duration::from_secs(300),
            max_page_bytes: 64 << 20,
            proxy: None,
            ca_file: None,
            allow_hosts: Vec::new(),
        }
    }
}

/// How much may be asked of one host, or of all hosts that match a pattern together.
#[derive(Clone, Debug, PartialEq)]
pub struct HostBudget {
    /// Requests at once, over all feeds.
    pub per_host: usize,
    /// Requests a second; no limit when not set.
    pub rate: Option<f64>,
}

impl Default for HostBudget {
    fn default() -> Self {
        Self { per_host: 2, rate: None }
    }
}

/// The budget of every host and those with one of their own (`[hosts."*.example.org"]`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostSettings {
    /// For a host that no pattern matches: each host and port has this for itself.
    pub each: HostBudget,
    /// Pattern (`example.org`, `example.org:8443` or `*.example.org`) and the budget all that match share.
    pub matching: Vec<(String, HostBudget)>,
}

/// An answer.
pub enum Answer {
    /// A page.
    Page(Body, Meta),
    /// 304 to a request that carried a validator: nothing has changed.
    NotModified(Meta),
    /// A request that carried a validator was answered 412, or 200 without a page: whoever asked gives the validator up
    /// and asks again without one.
    ValidatorRefused(Meta),
}

/// A response, redirects followed.
struct Reached {
    response: reqwest::Response,
    /// Where redirects led, if what the URL asked for was lost on the way.
    lost_cursor: Option<String>,
}

/// Requests of one feed: its client, limits, origin and secrets.
pub struct Requests {
    client: reqwest::Client,
    settings: HttpSettings,
    home: Url,
    headers: Vec<(String, Value)>,
    query: Vec<(String, Value)>,
    secrets: RwLock<Arc<Secrets>>,
}

#[derive(Default)]
pub(super) struct Secrets {
    headers: HeaderMap,
    /// Parameter, value as sent, and whether it must not be shown.
    query: Vec<(String, SecretString, bool)>,
}

const REDIRECTS: usize = 5;

impl Requests {
    /// Requests to the origin of `url`. Reads the secrets: blocking, small local files.
    ///
    /// # Errors
    /// [`Failure::Url`] and [`Failure::Settings`].
    pub fn new(
        clients: &Clients,
        url: &str,
        settings: &HttpSettings,
        headers: &[(String, Value)],
        query: &[(String, Value)],
    ) -> Result<Self, Failure> {
        let home = parse(url)?;
        let requests = Self {
            client: clients.get(settings)?,
            settings: settings.clone(),
            home,
            headers: headers.to_vec(),
            query: query.to_vec(),
            secrets: RwLock::default(),
        };
        requests.read_secrets()?;
        Ok(requests)
    }

    /// The feed's own URL.
    pub fn home(&self) -> &Url {
        &self.home
    }

    /// Reads the secrets again; whether any has changed. Blocking, small local files.
    ///
    /// # Errors
    /// [`Failure::Settings`] when one can't be read.
    pub fn read_secrets(&self) -> Result<bool, Failure> {
        let fresh = Secrets::read(&self.headers, &self.query)?;
        let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
        let changed = !fresh.equals(&secrets);
        *secrets = Arc::new(fresh);
        Ok(changed)
    }

    fn secrets(&self) -> Arc<Secrets> {
        Arc::clone(&self.secrets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// `text` with every secret query value, however it is percent-encoded, replaced by its parameter's name in braces:
    /// what may be stored and shown.
    pub fn mask(&self, text: &str) -> String {
        self.secrets().mask(text)
    }

    /// Whether `url` may be asked for at all: the feed's own origin, its https, or one that is allowed.
    ///
    /// # Errors
    /// [`Failure::ForeignNext`], [`Failure::Url`].
    pub fn permit(&self, url: &str) -> Result<(), Failure> {
        let target = parse(url)?;
        if self.permitted(&target) { Ok(()) } else { Err(Failure::ForeignNext(origin(&target))) }
    }

    fn permitted(&self, target: &Url) -> bool {
        let host = target.host_str().unwrap_or_default();
        let address = format!("{host}:{}", target.port_or_known_default().unwrap_or(0));
        let allowed = |entry: &String| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(&address);
        self.is_home(target) || self.settings.allow_hosts.iter().any(allowed)
    }

    /// The feed's origin, or the https of the same host where that is http.
    fn is_home(&self, target: &Url) -> bool {
        let upgraded = self.home.scheme() == "http" && target.scheme() == "https";
        self.home.origin() == target.origin() || upgraded && self.home.host() == target.host()
    }

    /// The URL with secrets put in: placeholders are filled, missing parameters added.
    fn address(&self, url: &str) -> Result<Url, Failure> {
        let target = parse(url)?;
        if !self.is_home(&target) {
            return Ok(target);
        }
        let mut full = url.to_owned();
        for (name, value, hidden) in &self.secrets().query {
            let placeholder = format!("{{{name}}}");
            if *hidden && full.contains(&placeholder) {
                full = full.replace(&placeholder, value.expose_secret());
            } else if !target.query_pairs().any(|(key, _)| key == name.as_str()) {
                let joint = if full.contains('?') { '&' } else { '?' };
                full = format!("{full}{joint}{}={}", escape(name), value.expose_secret());
            }
        }
        parse(&full)
    }

    /// Asks for a page; `etag` makes it conditional, `reservation` is the room for what it is expected to be.
    ///
    /// # Errors
    /// Whatever kept a page from coming.
    pub async fn get(&self, url: &str, etag: Option<&str>, reservation: Reservation) -> Result<Answer, Failure> {
        let deadline = Instant::now() + self.settings.page_timeout;
        let limit = self.settings.page_timeout;
        let answer = timeout_at(deadline, self.follow(url, etag, reservation)).await;
        answer.unwrap_or_else(|_| {
            Err(Failure::Timeout(format!("the page took longer than {limit:?} (http.page_timeout)")))
        })
    }

    async fn follow(&self, url: &str, etag: Option<&str>, reservation: Reservation) -> Result<Answer, Failure> {
        let Reached { response, lost_cursor } = self.reach(url, Asked::Page { etag }).await?;
        let meta = Meta { lost_cursor, ..meta(response.headers()) };
        match (response.status().as_u16(), etag) {
            (304, Some(_)) => Ok(Answer::NotModified(meta)),
            (304, None) => Err(Failure::UnaskedNotModified),
            (412, Some(_)) => Ok(Answer::ValidatorRefused(meta)),
            (200, _) => {
                let body = self.read(response, reservation).await?;
                let refused = etag.is_some() && body.is_blank();
                Ok(if refused { Answer::ValidatorRefused(meta) } else { Answer::Page(body, meta) })
            }
            (code, _) => Err(self.status(code, response).await),
        }
    }

    /// Opens an event stream (WHATWG HTML §9.2.3). `http.read_timeout` is for its head; what follows may be silent.
    ///
    /// # Errors
    /// Whatever kept it from opening; [`Failure::Broken`] for what is no event stream.
    pub async fn stream(&self, url: &str, last_event_id: Option<&str>) -> Result<Streaming, Failure> {
        let Reached { response, .. } = self.reach(url, Asked::Stream { last_event_id }).await?;
        let code = response.status().as_u16();
        if code != 200 {
            return Err(self.status(code, response).await);
        }
        let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        let media = text(header::CONTENT_TYPE).unwrap_or("none").split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case(EVENT_STREAM) {
            return Err(Failure::Broken(format!("no event stream: its content type is {media:?}")));
        }
        if Coding::from_header(text(header::CONTENT_ENCODING))? != Coding::Identity {
            return Err(Failure::Coding("the stream is compressed, which was not asked for".into()));
        }
        Ok(Streaming::new(response, self.secrets(), self.settings.max_page_bytes))
    }

    /// Sends `body` to the home URL with this method; a 2xx is all that is wanted. No redirect is followed: what they
    /// make of a body is the server's guess.
    ///
    /// # Errors
    /// Any other answer, or whatever kept one from coming.
    pub async fn submit(&self, method: &str, body: String) -> Result<(), Failure> {
        let method = reqwest::Method::from_bytes(method.as_bytes())
            .map_err(|_| Failure::Settings(format!("{method:?} is no HTTP method")))?;
        let target = self.address(self.home.as_str())?;
        let request = self.client.request(method, target).header(header::USER_AGENT, &self.settings.user_agent);
        let request = request.headers(self.secrets().headers.clone()).body(body);
        let silence = self.settings.read_timeout;
        let response = match timeout(silence, request.send()).await {
            Ok(sent) => sent.map_err(|error| self.secrets().explain(&error))?,
            Err(_) => return Err(Failure::Timeout(format!("no answer for {silence:?} (http.read_timeout)"))),
        };
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(self.status(status.as_u16(), response).await),
        }
    }

    /// The answer to a request, redirects followed.
    async fn reach(&self, url: &str, asked: Asked<'_>) -> Result<Reached, Failure> {
        self.permit(url)?;
        let mut target = self.address(url)?;
        for redirects in 0..=REDIRECTS {
            let response = self.send(&target, asked).await?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => target = self.redirected(&target, response.headers())?,
                _ => {
                    let lost = redirects > 0 && redirect::loses_cursor(&self.home, url, &target);
                    return Ok(Reached { response, lost_cursor: lost.then(|| self.mask(target.as_str())) });
                }
            }
        }
        Err(Failure::Redirect(format!("more than {REDIRECTS} redirects")))
    }

    async fn send(&self, target: &Url, asked: Asked<'_>) -> Result<reqwest::Response, Failure> {
        let mut request = self.client.get(target.clone()).header(header::USER_AGENT, &self.settings.user_agent);
        request = asked.headers(request);
        if self.is_home(target) {
            request = request.headers(self.secrets().headers.clone());
        }
        let silence = self.settings.read_timeout;
        match timeout(silence, request.send()).await {
            Ok(sent) => sent.map_err(|error| self.secrets().explain(&error)),
            Err(_) => Err(Failure::Timeout(format!("no answer for {silence:?} (http.read_timeout)"))),
        }
    }

    fn redirected(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| Failure::Redirect("a redirect without a readable Location".into()))?;
        let target = from.join(location).map_err(|error| Failure::Redirect(format!("to no URL: {error}")))?;
        if !["http", "https"].contains(&target.scheme()) || !self.permitted(&target) {
            return Err(Failure::ForeignRedirect(origin(&target)));
        }
        Ok(target)
    }

    async fn read(&self, mut response: reqwest::Response, mut reservation: Reservation) -> Result<Body, Failure> {
        let max = self.settings.max_page_bytes;
        let coding = response.headers().get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
        let coding = Coding::from_header(coding)?;
        let length = response.content_length().unwrap_or(0);
        if length > max {
            return Err(Failure::TooLarge(max));
        }
        reservation.grow_to(coding.likely(length, max)).await;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        while let Some(chunk) = self.chunk(&mut response).await? {
            let size = (bytes.len() + chunk.len()) as u64;
            if size > max {
                return Err(Failure::TooLarge(max));
            }
            reservation.grow_to(size).await;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Body { bytes, coding, reservation, max })
    }

    async fn chunk(&self, response: &mut reqwest::Response) -> Result<Option<bytes::Bytes>, Failure> {
        let silence = self.settings.read_timeout;
        match timeout(silence, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| self.secrets().explain(&error)),
            Err(_) => Err(Failure::Timeout(format!("no bytes for {silence:?} (http.read_timeout)"))),
        }
    }

    async fn status(&self, code: u16, mut response: reqwest::Response) -> Failure {
        let retry_after = retry_after(response.headers());
        // Only the words for the operator: an error while reading them changes nothing.
        let first = self.chunk(&mut response).await.ok().flatten().unwrap_or_default();
        let beginning = String::from_utf8_lossy(&first[..first.len().min(80)]).trim().to_owned();
        Failure::Status { code, retry_after, beginning: self.mask(&beginning) }
    }
}

impl Secrets {
    fn read(headers: &[(String, Value)], query: &[(String, Value)]) -> Result<Self, Failure> {
        let mut secrets = Self::default();
        for (name, value) in headers {
            let (value, hidden) = resolve(value)?;
            let unusable = |what: &str| Failure::Settings(format!("header {name}: its {what} can't be sent"));
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unusable("name"))?;
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| unusable("value"))?;
            value.set_sensitive(hidden);
            secrets.headers.insert(key, value);
        }
        for (name, value) in query {
            let (value, hidden) = resolve(value)?;
            secrets.query.push((name.clone(), SecretString::from(escape(value.expose_secret())), hidden));
        }
        Ok(secrets)
    }

    fn equals(&self, other: &Self) -> bool {
        let values = |secrets: &Self| -> Vec<String> {
            secrets.query.iter().map(|(_, value, _)| value.expose_secret().to_owned()).collect()
        };
        self.headers == other.headers && values(self) == values(other)
    }

    fn mask(&self, text: &str) -> String {
        let mut masked = text.to_owned();
        for (name, value, _) in self.query.iter().filter(|(_, _, hidden)| *hidden) {
            masked = mask::without(&masked, value.expose_secret(), &format!("{{{name}}}"));
        }
        masked
    }

    /// Sorts what the client says; its own words may hold the URL with secrets, so only the causes are passed on.
    pub(super) fn explain(&self, error: &reqwest::Error) -> Failure {
        let words = self.mask(&chain(error));
        let mut cause = error.source();
        while let Some(inner) = cause {
            if inner.is::<rustls::Error>() {
                return Failure::Tls(words);
            }
            let io = inner.downcast_ref::<std::io::Error>();
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
                return Failure::ConnectionRefused(words);
            }
            // Asked for its source, an I/O error passes over the error that it wraps.
            let wrapped = io.and_then(std::io::Error::get_ref);
            cause = wrapped.map(|wrapped| wrapped as &(dyn std::error::Error + 'static)).or_else(|| inner.source());
        }
        if error.is_timeout() {
            Failure::Timeout(words)
        } else if error.is_connect() {
            Failure::Connect(words)
        } else {
            Failure::Broken(words)
        }
    }
}

fn resolve(value: &Value) -> Result<(SecretString, bool), Failure> {
    match value {
        Value::Plain(text) => Ok((SecretString::from(text.as_str()), false)),
        Value::Secret(source) => {
            let secret = source.read().map_err(|error| Failure::Settings(error.to_string()))?;
            Ok((secret, true))
        }
    }
}

/// Percent-encodes a query name or value.
pub(super) fn escape(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

fn parse(url: &str) -> Result<Url, Failure> {
    let parsed = Url::parse(url).map_err(|error| Failure::Url(format!("{url:?}: {error}")))?;
    if !["http", "https"].contains(&parsed.scheme()) || parsed.host().is_none() {
        return Err(Failure::Url(format!("{url:?} is neither http nor https")));
    }
    Ok(parsed)
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}
