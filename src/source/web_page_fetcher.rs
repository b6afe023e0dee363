//! Fetches web pages for discovery, of any host, within limits.
//!
//! Guarantees: connections go only where the [`AddressPolicy`] permits, redirects included; one request at a time to a
//! host and a few in all; no page is held that is larger than `http.max_page_bytes`, compressed or not, and none is
//! waited for longer than `http.page_timeout`. No secret is sent. Never parses a page.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex as Lock, PoisonError};

use reqwest::header;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use url::Url;

use super::address_policy::{AddressPolicy, PrivateAddress, private_address_failure};
use super::body::{ContentCoding, EncodedBody};
use super::budget::MemoryBudget;
use super::client::guarded_client;
use super::credentials::Credentials;
use super::decoder_pool::DecoderPool;
use super::headers::header_text;
use super::http::{HttpFailure, HttpSettings};

const ACCEPT: &str = "application/ld+json, text/html;q=0.9, application/json;q=0.8, */*;q=0.1";
/// Requests at once, over all hosts.
const AT_ONCE: usize = 4;
const REDIRECTS: usize = 5;
/// The memory of all pages together while they are read, bytes.
const HELD_BYTES: u64 = 32 << 20;

pub struct WebPageFetcher {
    client: reqwest::Client,
    settings: HttpSettings,
    policy: AddressPolicy,
    hosts: Lock<HashMap<String, Arc<Mutex<()>>>>,
    permits: Semaphore,
    budget: MemoryBudget,
}

/// A page as fetched.
pub struct WebPage {
    /// The URL after the last redirect.
    pub url: Url,
    /// Decompressed.
    pub bytes: Vec<u8>,
}

enum Hop {
    Page(Vec<u8>),
    Redirect(Url),
}

impl WebPageFetcher {
    /// A fetcher with these limits; a proxy is used only with a policy that permits any address, since it is the proxy
    /// that then connects.
    ///
    /// # Errors
    /// [`HttpFailure::Settings`].
    pub fn new(settings: HttpSettings, policy: AddressPolicy) -> Result<Self, HttpFailure> {
        Ok(Self {
            client: guarded_client(&settings, &policy)?,
            settings,
            policy,
            hosts: Lock::default(),
            permits: Semaphore::new(AT_ONCE),
            budget: MemoryBudget::new(HELD_BYTES),
        })
    }

    /// Which addresses may be connected to.
    pub fn guard(&self) -> &AddressPolicy {
        &self.policy
    }

    /// The page at `url`, redirects followed to any host but never from https to http.
    ///
    /// # Errors
    /// Whatever kept it from coming.
    pub async fn get(&self, url: &Url) -> Result<WebPage, HttpFailure> {
        let mut target = url.clone();
        for _ in 0..=REDIRECTS {
            match self.hop(&target).await? {
                Hop::Page(bytes) => return Ok(WebPage { url: target, bytes }),
                Hop::Redirect(next) => target = next,
            }
        }
        Err(HttpFailure::Redirect(format!("more than {REDIRECTS} redirects")))
    }

    async fn hop(&self, target: &Url) -> Result<Hop, HttpFailure> {
        self.policy.permit_address(target).map_err(private_address_failure)?;
        // The host's lock first: a slow host keeps no permit from the others.
        let host = self.host(target);
        let _host_lock = host.lock().await;
        // The semaphore is never closed; without a permit there would only be no limit.
        let _permit = self.permits.acquire().await.ok();
        let limit = self.settings.page_timeout;
        let hop = timeout(limit, self.request(target)).await;
        hop.unwrap_or_else(|_| Err(HttpFailure::Timeout(format!("the page took longer than {limit:?}"))))
    }

    fn host(&self, target: &Url) -> Arc<Mutex<()>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hosts.entry(target.origin().ascii_serialization()).or_default())
    }

    async fn request(&self, target: &Url) -> Result<Hop, HttpFailure> {
        let request = self
            .client
            .get(target.clone())
            .header(header::USER_AGENT, &self.settings.user_agent)
            .header(header::ACCEPT, ACCEPT)
            .header(header::ACCEPT_ENCODING, "gzip, br, zstd");
        let silence = self.settings.read_timeout;
        let response = match timeout(silence, request.send()).await {
            Ok(sent) => sent.map_err(|error| to_failure(&error))?,
            Err(_) => return Err(HttpFailure::Timeout(format!("no answer for {silence:?}"))),
        };
        match response.status().as_u16() {
            200 => self.read(response).await.map(Hop::Page),
            301 | 302 | 303 | 307 | 308 => redirected(target, response.headers()).map(Hop::Redirect),
            code => Err(HttpFailure::Status { code, retry_after: None, beginning: String::new(), remark: None }),
        }
    }

    async fn read(&self, mut response: reqwest::Response) -> Result<Vec<u8>, HttpFailure> {
        let max = self.settings.max_page_bytes;
        let header = header_text(response.headers(), &header::CONTENT_ENCODING);
        let mut reservation = self.budget.reserve(64 << 10).await;
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            let size = (bytes.len() + chunk.len()) as u64;
            if size > max {
                return Err(HttpFailure::TooLarge(max));
            }
            reservation.grow_to(size).await?;
            bytes.extend_from_slice(&chunk);
        }
        let (coding, _) = ContentCoding::of_body(header.as_deref(), &bytes)?;
        // As many pages are decompressed at once as are fetched: each holds its permit meanwhile.
        let decompressed = EncodedBody { bytes, coding, reservation, max }.decompress(&DecoderPool::new(1)).await?;
        Ok(decompressed.bytes)
    }

    async fn chunk(&self, response: &mut reqwest::Response) -> Result<Option<bytes::Bytes>, HttpFailure> {
        let silence = self.settings.read_timeout;
        match timeout(silence, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| to_failure(&error)),
            Err(_) => Err(HttpFailure::Timeout(format!("no bytes for {silence:?}"))),
        }
    }
}

fn redirected(from: &Url, headers: &header::HeaderMap) -> Result<Url, HttpFailure> {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| HttpFailure::Redirect("a redirect without a readable Location".into()))?;
    let target = from.join(location).map_err(|error| HttpFailure::Redirect(format!("to no URL: {error}")))?;
    let origin = || target.origin().ascii_serialization();
    match (from.scheme(), target.scheme()) {
        ("https", "http") => Err(HttpFailure::Redirect(format!("from https to http, at {}", origin()))),
        (_, "http" | "https") => Ok(target),
        _ => Err(HttpFailure::Redirect(format!("to {}, neither http nor https", target.scheme()))),
    }
}

/// The address policy's refusal comes back as the cause of a failed connection.
fn to_failure(error: &reqwest::Error) -> HttpFailure {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<PrivateAddress>() {
            return private_address_failure(refused.clone());
        }
        cause = inner.source();
    }
    Credentials::default().to_failure(error)
}
