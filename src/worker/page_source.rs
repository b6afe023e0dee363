//! A publisher as it is asked for pages: a place at its host, the download, decompressing, decoding. Knows neither a
//! walk's memory nor a store, but for saying what a request waits for.

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

/// A wait for a place at the host, or for memory, is told after this long.
pub(super) const WAIT_REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// A feed's first page is expected to be this large.
const EXPECTED_BYTES: u64 = 256 << 10;

/// All that reading a feed's pages needs.
pub struct PageSource {
    /// The feed's name, under which it waits for its turn at the host.
    pub name: FeedName,
    /// Its requests.
    pub requests: EndpointClient,
    /// Its host's line.
    pub host: Arc<HostQueue>,
    /// How its records are read.
    pub decode_options: DecodeSettings,
    /// How a missing `next` is made.
    pub dialect: Option<Dialect>,
    /// The least time between two requests for pages that bring nothing.
    pub interval: Duration,
    /// The longest a single request may take.
    pub page_timeout: Duration,
    /// Bytes in flight.
    pub budget: MemoryBudget,
    /// Pages decoded at once: more than there are cores would only hold memory.
    pub decoders: DecoderPool,
    /// What it has done since the start.
    pub counts: Arc<FeedCounters>,
    /// Set once it has answered a conditional request in a way that says nothing: it is asked without from then on.
    pub skip_validators: AtomicBool,
    /// When it may be asked next.
    pub not_before: NotBefore,
    /// Where long waits are told, if anywhere.
    pub wait_reporter: Option<WaitReporter>,
}

impl Redact for PageSource {
    fn redact(&self, text: &str) -> String {
        self.requests.redact(text)
    }
}

/// A feed of the store, whose operators are told what it waits for.
pub struct WaitReporter {
    /// The mirror.
    pub store: Store,
    /// The feed's number in it.
    pub feed: i64,
}

/// What a publisher answered.
pub(super) enum PageDownload {
    Page(DecompressedBody, ResponseMeta),
    NotModified(ResponseMeta),
    /// It can't say whether anything has changed: to be asked without a validator.
    ValidatorRefused,
}

/// What the rules need to know of a failure, and its words.
pub type PageFailure = (FailureKind, String);

impl PageSource {
    /// Asks for a page and decompresses it; `etag` makes it conditional. Each time counts once, by what it got.
    pub(super) async fn download(
        &self,
        url: &str,
        etag: Option<&str>,
        priority: Priority,
        pulse: Option<&Heartbeat>,
    ) -> Result<PageDownload, PageFailure> {
        let got = self.request_page(url, etag, priority, pulse).await;
        self.counts.count_request(match &got {
            Ok(PageDownload::Page(..)) => RequestOutcome::Page,
            Ok(PageDownload::NotModified(_)) => RequestOutcome::NotModified,
            Ok(PageDownload::ValidatorRefused) | Err(_) => RequestOutcome::Failed,
        });
        got
    }

    async fn request_page(
        &self,
        url: &str,
        etag: Option<&str>,
        priority: Priority,
        pulse: Option<&Heartbeat>,
    ) -> Result<PageDownload, PageFailure> {
        let turn = self.acquire_when_allowed(priority, pulse).await;
        let answer = self.fetch_response(url, etag, pulse).await;
        drop(turn);
        let (body, mut meta) = match answer.map_err(|failure| describe_failure(&failure))? {
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
        let opened = self.with_wait_reports(watch, pulse, body.decompress(&self.decoders)).await;
        let opened = opened.map_err(|failure| describe_failure(&failure))?;
        meta.findings.extend_from_slice(&opened.findings);
        self.counts.expected_page_bytes.store(opened.bytes.len() as u64 * 5 / 4, Ordering::Relaxed);
        Ok(PageDownload::Page(opened, meta))
    }

    /// Reads a page to its end, off the async threads; its first part is decoded on the way. Where a web page came in its
    /// place, the `cookies` that it wants to set are told too.
    pub(super) async fn check(&self, bytes: Vec<u8>, cookies: Option<&str>) -> Result<CheckedPage, PageFailure> {
        let reading = self.decode_options.clone();
        let checked = self.off_thread(move |stop| CheckedPage::check(bytes, &reading, &|| stop.is_set())).await?;
        checked.map_err(|refused| {
            let cookies = cookies.filter(|_| matches!(refused, DecodeError::Html { .. }));
            let cookies = cookies.map(|cookies| format!("; {cookies}")).unwrap_or_default();
            (FailureKind::Page, refused.reason(|text| self.requests.redact(text)) + &cookies)
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

    /// Asks once there is a place for what may come. While the writer is kept from writing, that takes as long as it
    /// does.
    pub(super) async fn fetch_response(
        &self,
        url: &str,
        etag: Option<&str>,
        pulse: Option<&Heartbeat>,
    ) -> Result<PageResponse, HttpFailure> {
        let expected = match self.counts.expected_page_bytes.load(Ordering::Relaxed) {
            0 => EXPECTED_BYTES,
            bytes => bytes,
        };
        let reservation = self.budget.open_page(self.host.name(), expected);
        let watch = reservation.watch();
        let answer = async {
            reservation.wait_for_admission(expected).await;
            self.requests.get(url, etag, reservation).await
        };
        self.with_wait_reports(watch, pulse, answer).await
    }

    /// Waits for a page under way; where it waits for memory itself, that is told, and is no hang.
    async fn with_wait_reports<T>(
        &self,
        watch: ReservationWatch,
        pulse: Option<&Heartbeat>,
        work: impl Future<Output = T>,
    ) -> T {
        let alive = || pulse.inspect(|pulse| pulse.expect_within(self.page_timeout));
        alive();
        let tell = async {
            loop {
                tokio::time::sleep(WAIT_REPORT_INTERVAL).await;
                if watch.is_waiting() {
                    alive();
                    self.report_wait(self.budget.describe_wait()).await;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = tell => never,
        }
    }

    /// A place at the host, once the publisher may be asked: what another loop was told while this one waited counts too.
    async fn acquire_when_allowed(&self, priority: Priority, pulse: Option<&Heartbeat>) -> HostPermit {
        loop {
            let held = self.not_before.remaining();
            if !held.is_zero() {
                if let Some(pulse) = pulse {
                    pulse.expect_within(held);
                }
                let reason = format!("waiting: its publisher asked not to be asked for {} s", held.as_secs() + 1);
                self.report_wait(reason).await;
                self.not_before.wait_until_passed().await;
            }
            let turn = self.acquire_permit(priority, pulse).await;
            if self.not_before.remaining().is_zero() {
                return turn;
            }
        }
    }

    async fn acquire_permit(&self, priority: Priority, pulse: Option<&Heartbeat>) -> HostPermit {
        let mut turn = std::pin::pin!(self.host.acquire(&self.name, priority));
        loop {
            if let Some(pulse) = pulse {
                pulse.expect_within(WAIT_REPORT_INTERVAL);
            }
            if let Ok(turn) = tokio::time::timeout(WAIT_REPORT_INTERVAL, &mut turn).await {
                return turn;
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
