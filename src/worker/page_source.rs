//! Fetches one publisher's pages: the host's permit, the download, decompressing, decoding. It knows nothing of walks,
//! and of the store only where to report what a request waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::not_before::NotBefore;
use super::walk::describe_failure;
use super::{FeedCounters, Heartbeat};
use crate::decode::DecodeError;
use crate::decode::rpde::{CheckedPage, DecodeSettings};
use crate::feed::{Dialect, FeedName, Page, RequestOutcome};
use crate::mode::FailureKind;
use crate::source::body::DecompressedBody;
use crate::source::budget::{MemoryBudget, ReservationWatch};
use crate::source::decoder_pool::{DecoderPool, StopFlag};
use crate::source::headers::ResponseMeta;
use crate::source::host_limiter::{HostPermit, HostQueue, Priority};
use crate::source::http::{EndpointClient, HttpFailure, PageResponse};
use crate::store::Store;
use crate::store::apply::Redact;

/// A wait for the host's permit, or for memory, is reported after this long, and again each time.
pub(super) const WAIT_REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// The expected size of a feed's first page.
const EXPECTED_BYTES: u64 = 256 << 10;

/// All that fetching and decoding a feed's pages needs.
pub struct PageSource {
    /// The feed's name, under which it waits for the host's permit.
    pub name: FeedName,
    /// Sends the feed's requests.
    pub requests: EndpointClient,
    /// The queue of the feed's host.
    pub host: Arc<HostQueue>,
    /// How the feed's records are decoded.
    pub decode_options: DecodeSettings,
    /// How a missing `next` is generated.
    pub dialect: Option<Dialect>,
    /// The shortest time between two requests for pages without anything new.
    pub interval: Duration,
    /// The longest a single request may take.
    pub page_timeout: Duration,
    /// The budget of bytes in flight.
    pub budget: MemoryBudget,
    /// Bounds how many pages are decoded at once: more than there are cores would only hold memory.
    pub decoders: DecoderPool,
    /// Counters of the feed since the daemon's start.
    pub counts: Arc<FeedCounters>,
    /// Set once the publisher has answered a conditional request uselessly: requests are unconditional from then on.
    pub skip_validators: AtomicBool,
    /// The time before which no request is allowed.
    pub not_before: NotBefore,
    /// Where long waits are reported, if anywhere.
    pub wait_reporter: Option<WaitReporter>,
}

impl Redact for PageSource {
    fn redact(&self, text: &str) -> String {
        self.requests.redact(text)
    }
}

/// Reports to the operators, through the store, what a feed's request waits for.
pub struct WaitReporter {
    pub store: Store,
    /// The feed's number in the store.
    pub feed: i64,
}

/// What a publisher answered.
pub(super) enum PageDownload {
    Page(DecompressedBody, ResponseMeta),
    NotModified(ResponseMeta),
    /// The publisher could not tell whether anything has changed: to be requested without a validator.
    ValidatorRefused,
}

/// What kind of failure it is, and its text.
pub type PageFailure = (FailureKind, String);

impl PageSource {
    /// Fetches a page and decompresses it; `etag` makes the request conditional. Counts one request, by its outcome.
    pub(super) async fn download(
        &self,
        url: &str,
        etag: Option<&str>,
        priority: Priority,
        heartbeat: Option<&Heartbeat>,
    ) -> Result<PageDownload, PageFailure> {
        let result = self.request_page(url, etag, priority, heartbeat).await;
        self.counts.count_request(match &result {
            Ok(PageDownload::Page(..)) => RequestOutcome::Page,
            Ok(PageDownload::NotModified(_)) => RequestOutcome::NotModified,
            Ok(PageDownload::ValidatorRefused) | Err(_) => RequestOutcome::Failed,
        });
        result
    }

    async fn request_page(
        &self,
        url: &str,
        etag: Option<&str>,
        priority: Priority,
        heartbeat: Option<&Heartbeat>,
    ) -> Result<PageDownload, PageFailure> {
        let permit = self.acquire_when_allowed(priority, heartbeat).await;
        let response = self.fetch_response(url, etag, heartbeat).await;
        drop(permit);
        let (body, mut meta) = match response.map_err(|failure| describe_failure(&failure))? {
            PageResponse::NotModified(meta) => {
                self.host.record_success();
                return Ok(PageDownload::NotModified(meta));
            }
            PageResponse::ValidatorRefused(_) => return Ok(PageDownload::ValidatorRefused),
            PageResponse::Page(body, meta) => (body, meta),
        };
        self.host.record_success();
        FeedCounters::add(&self.counts.bytes, body.wire_bytes());
        let watch = body.watch();
        let decompressed = self.with_wait_reports(watch, heartbeat, body.decompress(&self.decoders)).await;
        let decompressed = decompressed.map_err(|failure| describe_failure(&failure))?;
        meta.findings.extend_from_slice(&decompressed.findings);
        self.counts.expected_page_bytes.store(decompressed.bytes.len() as u64 * 5 / 4, Ordering::Relaxed);
        Ok(PageDownload::Page(decompressed, meta))
    }

    /// Checks a whole page, off the async threads; its first part is decoded on the way. If the body is HTML, the error
    /// names the `cookies` that the response wanted to set.
    pub(super) async fn check(&self, bytes: Vec<u8>, cookies: Option<&str>) -> Result<CheckedPage, PageFailure> {
        let decode_options = self.decode_options.clone();
        let checked =
            self.off_thread(move |stop| CheckedPage::check(bytes, &decode_options, &|| stop.is_set())).await?;
        checked.map_err(|error| {
            let cookies = cookies.filter(|_| matches!(error, DecodeError::Html { .. }));
            let cookies = cookies.map(|cookies| format!("; {cookies}")).unwrap_or_default();
            (FailureKind::Page, error.reason(|text| self.requests.redact(text)) + &cookies)
        })
    }

    /// Decodes the next part of a page off the async threads.
    pub(super) async fn decode_part(&self, mut body: CheckedPage) -> Result<(CheckedPage, Option<Page>), PageFailure> {
        self.off_thread(move |_| {
            let part = body.next_part();
            (body, part)
        })
        .await
    }

    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StopFlag) -> T + Send + 'static,
    ) -> Result<T, PageFailure> {
        let done = self.decoders.run(work).await;
        done.map_err(|panic| (FailureKind::Page, panic.to_string()))
    }

    /// Sends the request once the budget has room for the expected page. While the writer cannot write, that takes as
    /// long as the cause lasts.
    pub(super) async fn fetch_response(
        &self,
        url: &str,
        etag: Option<&str>,
        heartbeat: Option<&Heartbeat>,
    ) -> Result<PageResponse, HttpFailure> {
        let expected = match self.counts.expected_page_bytes.load(Ordering::Relaxed) {
            0 => EXPECTED_BYTES,
            bytes => bytes,
        };
        let reservation = self.budget.open_page(self.host.name(), expected);
        let watch = reservation.watch();
        let response = async {
            reservation.wait_for_admission(expected).await;
            self.requests.get(url, etag, reservation).await
        };
        self.with_wait_reports(watch, heartbeat, response).await
    }

    /// Waits for the work on a page; where that waits for memory, the wait is reported, and is no hang.
    async fn with_wait_reports<T>(
        &self,
        watch: ReservationWatch,
        heartbeat: Option<&Heartbeat>,
        work: impl Future<Output = T>,
    ) -> T {
        let renew_heartbeat = || heartbeat.inspect(|heartbeat| heartbeat.expect_within(self.page_timeout));
        renew_heartbeat();
        let report_waits = async {
            loop {
                tokio::time::sleep(WAIT_REPORT_INTERVAL).await;
                if watch.is_waiting() {
                    renew_heartbeat();
                    self.report_wait(self.budget.describe_wait()).await;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = report_waits => never,
        }
    }

    /// The host's permit, once the publisher allows requests: it may forbid them in its answer to another loop while
    /// this one waits for the permit.
    async fn acquire_when_allowed(&self, priority: Priority, heartbeat: Option<&Heartbeat>) -> HostPermit {
        loop {
            let remaining = self.not_before.remaining();
            if !remaining.is_zero() {
                if let Some(heartbeat) = heartbeat {
                    heartbeat.expect_within(remaining);
                }
                let reason = format!("waiting: its publisher asked not to be asked for {} s", remaining.as_secs() + 1);
                self.report_wait(reason).await;
                self.not_before.wait_until_passed().await;
            }
            let permit = self.acquire_permit(priority, heartbeat).await;
            if self.not_before.remaining().is_zero() {
                return permit;
            }
        }
    }

    async fn acquire_permit(&self, priority: Priority, heartbeat: Option<&Heartbeat>) -> HostPermit {
        let mut permit = std::pin::pin!(self.host.acquire(&self.name, priority));
        loop {
            if let Some(heartbeat) = heartbeat {
                heartbeat.expect_within(WAIT_REPORT_INTERVAL);
            }
            if let Ok(permit) = tokio::time::timeout(WAIT_REPORT_INTERVAL, &mut permit).await {
                return permit;
            }
            self.report_wait(self.host.describe_wait()).await;
        }
    }

    async fn report_wait(&self, reason: String) {
        let Some(WaitReporter { store, feed }) = &self.wait_reporter else { return };
        if let Err(error) = store.note_waiting(*feed, reason).await {
            tracing::debug!(feed = %self.name, %error, "the wait could not be noted");
        }
    }
}
