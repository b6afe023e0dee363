//! Requests of one endpoint over HTTP.
//!
//! Guarantees: secrets are sent to the endpoint's own origin only, and masked in all that is shown; redirects are
//! followed only to permitted origins; every request is within limits of size, time and memory. Never decodes a page,
//! never decides when to request again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::header::{self, HeaderMap};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::body::{ContentCoding, EncodedBody};
use super::budget::Reservation;
use super::client::{HttpClients, Leniency};
use super::credentials::{CredentialSources, Credentials};
pub use super::failure::HttpFailure;
use super::headers::{self, ResponseMeta, meta, retry_after};
use super::origin::{is_own_origin, upgraded_to_https};
use super::redirect;
use super::request_kind::{EVENT_STREAM, EventStreamBody, RequestKind};
use super::secret::{ConfiguredValue, SecretSource};
use crate::feed::Finding;

/// `[http]`, and a feed's `http.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    pub user_agent: String,
    /// For opening a connection, TLS included.
    pub connect_timeout: Duration,
    /// The longest silence while a response is awaited or read.
    pub read_timeout: Duration,
    /// For a whole page.
    pub page_timeout: Duration,
    /// The largest page accepted, in bytes once decompressed.
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

/// The limits for one host, or for all hosts that match a pattern together.
#[derive(Clone, Debug, PartialEq)]
pub struct HostLimits {
    /// Requests at once, over all feeds.
    pub per_host: usize,
    /// Requests a second; no limit when not set.
    pub rate: Option<f64>,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self { per_host: 2, rate: None }
    }
}

/// The limits of hosts: the default, and those of host patterns (`[hosts."*.example.org"]`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostSettings {
    /// For hosts that no pattern matches; each host and port has these limits for itself.
    pub each: HostLimits,
    /// Pattern (`example.org`, `example.org:8443` or `*.example.org`), and the limits that all matching hosts share.
    pub matching: Vec<(String, HostLimits)>,
}

/// The response to a request for a page.
pub enum PageResponse {
    Page(EncodedBody, ResponseMeta),
    /// 304 to a request that carried a validator: nothing has changed.
    NotModified(ResponseMeta),
    /// A request that carried a validator was answered 412, or 200 without a page: the caller discards the validator
    /// and requests the page without one.
    ValidatorRefused(ResponseMeta),
}

/// The response after the last redirect.
struct FinalResponse {
    response: reqwest::Response,
    /// The URL that redirects led to, if they lost the request's cursor.
    cursor_lost_at: Option<String>,
    findings: Vec<Finding>,
}

/// An HTTP client bound to one endpoint: its URL, limits and secrets.
pub struct EndpointClient {
    clients: HttpClients,
    client: reqwest::Client,
    leniency: Leniency,
    settings: HttpSettings,
    endpoint_url: Url,
    sources: CredentialSources,
    credentials: RwLock<Arc<Credentials>>,
    /// How often the secrets have changed.
    secret_changes: AtomicU64,
}

const REDIRECTS: usize = 5;
/// How often secrets are read again after one was refused.
pub(super) const SECRETS_REREAD_EVERY: Duration = Duration::from_secs(5);
/// The largest buffer allocated at once for a page with a `Content-Length`, bytes.
const FIRST_BYTES: u64 = 1 << 20;

impl EndpointClient {
    /// A client for the endpoint `url`. Reads the secrets: blocking, small local files.
    ///
    /// # Errors
    /// [`HttpFailure::Url`] and [`HttpFailure::Settings`].
    pub fn new(
        clients: &HttpClients,
        url: &str,
        settings: &HttpSettings,
        headers: &[(String, ConfiguredValue)],
        query: &[(String, ConfiguredValue)],
    ) -> Result<Self, HttpFailure> {
        let endpoint_url = parse(url)?;
        let endpoint = Self {
            clients: clients.clone(),
            client: clients.get(settings)?,
            leniency: Leniency::default(),
            settings: settings.clone(),
            endpoint_url,
            sources: CredentialSources { headers: headers.to_vec(), query: query.to_vec(), others: Vec::new() },
            credentials: RwLock::default(),
            secret_changes: AtomicU64::new(0),
        };
        endpoint.read_secrets()?;
        Ok(endpoint)
    }

    /// Adds the feed's other secrets, by name: they are not sent, and masked all the same. Reads them as
    /// [`EndpointClient::new`] does.
    #[must_use]
    pub fn hiding(mut self, others: Vec<(String, SecretSource)>) -> Self {
        self.sources.others = others;
        // The secrets that are sent were read a moment ago.
        let _ = self.read_secrets();
        self
    }

    /// The endpoint's configured URL.
    pub fn endpoint_url(&self) -> &Url {
        &self.endpoint_url
    }

    /// Reads the secrets again; returns how often any has changed so far. Blocking, small local files.
    ///
    /// # Errors
    /// [`HttpFailure::Settings`] when one can't be read.
    pub fn read_secrets(&self) -> Result<u64, HttpFailure> {
        let fresh = Credentials::read(&self.sources)?;
        let mut credentials = self.credentials.write().unwrap_or_else(PoisonError::into_inner);
        if !fresh.equals(&credentials) {
            self.secret_changes.fetch_add(1, Ordering::Relaxed);
        }
        *credentials = Arc::new(fresh);
        Ok(self.secret_changes.load(Ordering::Relaxed))
    }

    /// How often a secret has changed so far.
    pub fn secret_changes(&self) -> u64 {
        self.secret_changes.load(Ordering::Relaxed)
    }

    /// Waits until [`Self::secret_changes`] is another number than `changes`: a feed whose secret was refused is polled
    /// again at once when the secret is replaced.
    pub async fn secrets_changed(&self, changes: u64) {
        while !matches!(self.read_secrets(), Ok(now) if now != changes) {
            tokio::time::sleep(SECRETS_REREAD_EVERY).await;
        }
    }

    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Masks a URL that the publisher sent, such as its `next`: each of the feed's secrets is replaced by its name in
    /// braces, so that the URL may be stored and shown. The secrets are put in again when the URL is requested.
    pub fn mask(&self, url: &str) -> String {
        self.credentials().mask().mask_url(url)
    }

    /// The publisher's text without the feed's secrets, before it is truncated, shown, logged or stored.
    pub fn redact(&self, text: &str) -> String {
        self.credentials().mask().redact(text)
    }

    /// Checks that `url` may be requested: it is of the endpoint's own origin, its https origin, or an allowed host.
    ///
    /// # Errors
    /// [`HttpFailure::ForeignNext`], [`HttpFailure::Url`].
    pub fn check_permitted(&self, url: &str) -> Result<(), HttpFailure> {
        let target = parse(url)?;
        if self.is_permitted(&target) { Ok(()) } else { Err(HttpFailure::ForeignNext(self.redact(&origin(&target)))) }
    }

    fn is_permitted(&self, target: &Url) -> bool {
        let host = target.host_str().unwrap_or_default();
        let address = format!("{host}:{}", target.port_or_known_default().unwrap_or(0));
        let allowed = |entry: &String| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(&address);
        is_own_origin(&self.endpoint_url, target)
            || upgraded_to_https(&self.endpoint_url, target).is_some()
            || self.settings.allow_hosts.iter().any(allowed)
    }

    /// The URL as requested: by https where the endpoint's URL is, and with secrets where it is of the endpoint's
    /// origin.
    fn request_url(&self, url: &str) -> Result<Url, HttpFailure> {
        let target = parse(url)?;
        match upgraded_to_https(&self.endpoint_url, &target) {
            Some(target) => self.credentials().url_with_secrets(target.as_str()),
            None if is_own_origin(&self.endpoint_url, &target) => self.credentials().url_with_secrets(url),
            None => Ok(target),
        }
    }

    /// Requests a page; `etag` makes the request conditional, `reservation` holds the memory that the page is expected
    /// to need. Time spent waiting for memory counts towards no limit.
    ///
    /// # Errors
    /// Whatever kept a page from coming.
    pub async fn get(
        &self,
        url: &str,
        etag: Option<&str>,
        reservation: Reservation,
    ) -> Result<PageResponse, HttpFailure> {
        let deadline = Instant::now() + self.settings.page_timeout;
        let last = self.in_time(deadline, self.send_following_redirects(url, RequestKind::Page { etag })).await??;
        let FinalResponse { response, cursor_lost_at, findings } = last;
        let mut meta = ResponseMeta { cursor_lost_at, ..meta(response.headers(), &|text| self.redact(text)) };
        meta.findings.extend(findings);
        let code = response.status().as_u16();
        match (code, etag) {
            (304, Some(_)) => return Ok(PageResponse::NotModified(meta)),
            (304, None) => return Err(HttpFailure::UnaskedNotModified),
            (412, Some(_)) => return Ok(PageResponse::ValidatorRefused(meta)),
            (200, _) => {}
            (202 | 203, _) => meta.add_finding("status", format!("a page was sent with status {code}")),
            (206, _) if headers::is_whole(response.headers()) => {
                meta.add_finding("status", "a whole page was sent with status 206, as if it were a part".to_owned());
            }
            _ => return Err(self.in_time(deadline, self.status_failure(code, response)).await?),
        }
        let body = self.read(response, reservation, deadline, &mut meta).await?;
        match (body.is_blank(), etag, code) {
            (true, Some(_), _) => Ok(PageResponse::ValidatorRefused(meta)),
            (true, None, 202 | 203 | 206) => Err(HttpFailure::Status {
                code,
                retry_after: None,
                beginning: String::new(),
                remark: meta.cookie_remark,
            }),
            _ => Ok(PageResponse::Page(body, meta)),
        }
    }

    async fn in_time<T>(&self, deadline: Instant, work: impl Future<Output = T>) -> Result<T, HttpFailure> {
        let limit = self.settings.page_timeout;
        let late = |_| HttpFailure::Timeout(format!("the page took longer than {limit:?} (http.page_timeout)"));
        timeout_at(deadline, work).await.map_err(late)
    }

    /// Opens an event stream (WHATWG HTML §9.2.3). `http.read_timeout` is for the response's head; the stream itself
    /// may be silent for longer.
    ///
    /// # Errors
    /// Whatever kept it from opening; [`HttpFailure::Broken`] for a response that is no event stream.
    pub async fn stream(&self, url: &str, last_event_id: Option<&str>) -> Result<EventStreamBody, HttpFailure> {
        let last_event_id = last_event_id.map(|id| self.credentials().mask().unmask_header(id));
        let last_event_id = last_event_id.as_deref();
        let FinalResponse { response, .. } =
            self.send_following_redirects(url, RequestKind::Stream { last_event_id }).await?;
        let code = response.status().as_u16();
        if code != 200 {
            return Err(self.status_failure(code, response).await);
        }
        let text = |name| headers::header_text(response.headers(), &name);
        let media = text(header::CONTENT_TYPE);
        let media = media.as_deref().unwrap_or("none").split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case(EVENT_STREAM) {
            return Err(HttpFailure::Broken(format!("no event stream: its content type is {:?}", self.redact(media))));
        }
        if ContentCoding::declared(text(header::CONTENT_ENCODING).as_deref()) != ContentCoding::Identity {
            return Err(HttpFailure::Coding("the stream is compressed, which was not asked for".into()));
        }
        Ok(EventStreamBody::new(response, self.credentials(), self.settings.max_page_bytes))
    }

    /// Sends `body` to the endpoint's URL with this method and expects a 2xx. No redirect is followed: servers differ
    /// in what a redirect does to a body.
    ///
    /// # Errors
    /// Any other status, or whatever kept a response from coming.
    pub async fn submit(&self, method: &str, body: String) -> Result<(), HttpFailure> {
        let method = reqwest::Method::from_bytes(method.as_bytes())
            .map_err(|_| HttpFailure::Settings(format!("{method:?} is no HTTP method")))?;
        let target = self.request_url(self.endpoint_url.as_str())?;
        // Only the status of the response is used, so its head may be malformed.
        let client = self.clients.lenient(&self.settings)?;
        let request = client.request(method, target).header(header::USER_AGENT, &self.settings.user_agent);
        let request = request.headers(self.credentials().headers().clone()).body(body);
        let silence = self.settings.read_timeout;
        let response = match timeout(silence, request.send()).await {
            Ok(sent) => sent.map_err(|error| self.credentials().to_failure(&error))?,
            Err(_) => return Err(HttpFailure::Timeout(format!("no answer for {silence:?} (http.read_timeout)"))),
        };
        match response.status() {
            status if status.is_success() => Ok(()),
            status => Err(self.status_failure(status.as_u16(), response).await),
        }
    }

    /// Sends a request and follows redirects.
    async fn send_following_redirects(&self, url: &str, kind: RequestKind<'_>) -> Result<FinalResponse, HttpFailure> {
        self.check_permitted(url)?;
        let mut target = self.request_url(url)?;
        let (mut findings, mut cookie_remark) = (Vec::new(), None);
        if parse(url).is_ok_and(|sent| upgraded_to_https(&self.endpoint_url, &sent).is_some()) {
            let detail = format!("a page of a feed that is asked by https is said to be at {url}");
            findings.push(Finding { rule: "http-next", detail, count: 1 });
        }
        for redirects in 0..=REDIRECTS {
            let (response, lenient) = self.send(&target, kind).await?;
            if lenient && findings.iter().all(|finding| finding.rule != "header-line") {
                let detail = "the head of an answer has a line that is no header, or one written as none may be";
                findings.push(Finding { rule: "header-line", detail: detail.to_owned(), count: 1 });
            }
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {
                    let remark = headers::cookie_remark(response.headers(), &|text| self.redact(text));
                    cookie_remark = remark.or(cookie_remark);
                    target = self.redirected(&target, response.headers())?;
                }
                _ => {
                    let lost = redirects > 0 && redirect::loses_cursor(&self.endpoint_url, url, &target);
                    let cursor_lost_at = lost.then(|| self.mask(target.as_str()));
                    return Ok(FinalResponse { response, cursor_lost_at, findings });
                }
            }
        }
        let cookies = cookie_remark.map(|remark| format!("; {remark}")).unwrap_or_default();
        Err(HttpFailure::Redirect(format!("more than {REDIRECTS} redirects{cookies}")))
    }

    /// The response, and whether only the lenient client could read it.
    async fn send(&self, target: &Url, kind: RequestKind<'_>) -> Result<(reqwest::Response, bool), HttpFailure> {
        if !self.leniency.is_on() {
            match self.attempt(&self.client, target, kind).await? {
                Ok(response) => return Ok((response, false)),
                Err(error) if !Leniency::may_help(&error) => return Err(self.credentials().to_failure(&error)),
                Err(_) => {}
            }
        }
        let answer = self.attempt(&self.clients.lenient(&self.settings)?, target, kind).await?;
        let response = answer.map_err(|error| self.credentials().to_failure(&error))?;
        self.leniency.record_success();
        Ok((response, true))
    }

    async fn attempt(
        &self,
        client: &reqwest::Client,
        target: &Url,
        kind: RequestKind<'_>,
    ) -> Result<reqwest::Result<reqwest::Response>, HttpFailure> {
        let mut request = client.get(target.clone()).header(header::USER_AGENT, &self.settings.user_agent);
        request = kind.headers(request);
        if is_own_origin(&self.endpoint_url, target) {
            request = request.headers(self.credentials().headers().clone());
        }
        let silence = self.settings.read_timeout;
        let answer = timeout(silence, request.send()).await;
        answer.map_err(|_| HttpFailure::Timeout(format!("no answer for {silence:?} (http.read_timeout)")))
    }

    fn redirected(&self, from: &Url, headers: &HeaderMap) -> Result<Url, HttpFailure> {
        let location = headers::header_text(headers, &header::LOCATION);
        let location = location.ok_or_else(|| HttpFailure::Redirect("a redirect without a Location".into()))?;
        let target = from.join(&location).map_err(|error| {
            HttpFailure::Redirect(format!("its Location can't be read, {:?}: {error}", self.redact(&location)))
        })?;
        if !["http", "https"].contains(&target.scheme()) || !self.is_permitted(&target) {
            return Err(HttpFailure::ForeignRedirect(self.redact(&origin(&target))));
        }
        self.request_url(target.as_str())
    }

    async fn read(
        &self,
        mut response: reqwest::Response,
        mut reservation: Reservation,
        deadline: Instant,
        meta: &mut ResponseMeta,
    ) -> Result<EncodedBody, HttpFailure> {
        let max = self.settings.max_page_bytes;
        let header = headers::header_text(response.headers(), &header::CONTENT_ENCODING);
        let coding = ContentCoding::declared(header.as_deref());
        let length = response.content_length();
        if length.is_some_and(|length| length > max) {
            return Err(HttpFailure::TooLarge(max));
        }
        if let Some(length) = length {
            reservation.set_expected(coding.estimate_bytes(length, reservation.expected_bytes(), max));
        }
        reservation.grow_to(1).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(length.unwrap_or(0).min(FIRST_BYTES)).unwrap_or(0));
        loop {
            let chunk = reservation.receive(self.chunk(&mut response));
            let Some(chunk) = self.in_time(deadline + reservation.waited(), chunk).await??? else { break };
            let size = (bytes.len() + chunk.len()) as u64;
            if size > max {
                return Err(HttpFailure::TooLarge(max));
            }
            reservation.grow_to(size).await?;
            bytes.extend_from_slice(&chunk);
        }
        reservation.mark_arrived();
        let (coding, finding) =
            ContentCoding::of_body(header.as_deref().map(|text| self.redact(text)).as_deref(), &bytes)?;
        meta.findings.extend(finding);
        Ok(EncodedBody { bytes, coding, reservation, max })
    }

    async fn chunk(&self, response: &mut reqwest::Response) -> Result<Option<bytes::Bytes>, HttpFailure> {
        let silence = self.settings.read_timeout;
        match timeout(silence, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| self.credentials().to_failure(&error)),
            Err(_) => Err(HttpFailure::Timeout(format!("no bytes for {silence:?} (http.read_timeout)"))),
        }
    }

    async fn status_failure(&self, code: u16, mut response: reqwest::Response) -> HttpFailure {
        let hide = |text: &str| self.redact(text);
        let (retry_after, mut remarks) = match retry_after(response.headers()) {
            Ok(retry_after) => (retry_after, Vec::new()),
            Err(unreadable) => (None, vec![format!("its Retry-After can't be read, {:?}", hide(&unreadable))]),
        };
        if [401, 403, 429, 503].contains(&code) {
            remarks.extend(headers::cookie_remark(response.headers(), &hide));
        }
        // The body is only shown to the operator: an error while reading it changes nothing.
        let first = self.chunk(&mut response).await.ok().flatten().unwrap_or_default();
        let beginning = self.credentials().mask().redacted_beginning(&first);
        let remark = Some(remarks.join("; ")).filter(|remark| !remark.is_empty());
        HttpFailure::Status { code, retry_after, beginning, remark }
    }
}

/// Percent-encodes a query name or value.
pub(super) fn percent_encode_query(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

pub(super) fn parse(url: &str) -> Result<Url, HttpFailure> {
    let parsed = Url::parse(url).map_err(|error| HttpFailure::Url(format!("{url:?}: {error}")))?;
    if !["http", "https"].contains(&parsed.scheme()) || parsed.host().is_none() {
        return Err(HttpFailure::Url(format!("{url:?} is neither http nor https")));
    }
    Ok(parsed)
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}
