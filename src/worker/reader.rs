//! The one reader of pages that follows `next`: for the daemon's walks, for `verify --against-source`, `explain --live`
//! and `check --online`. It decides which page comes next and when a walk has come to its end; what happens to the
//! pages is the caller's decision.
//!
//! It never requests pages in a tight loop: a walk without progress (a circle, pages that only repeat, empty pages)
//! ends, or goes on with one page each `poll.min`. Every wait is a future that the caller may drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Heartbeat;
use super::page_source::{PageDownload, PageFailure, PageSource};
use super::read_ahead::ReadAhead;
use super::visited::{PageFingerprint, RecentPages, VisitedUrls};
use super::walk::describe_failure;
use crate::decode::next;
use crate::decode::rpde::CheckedPage;
use crate::feed::{Finding, NextPage, Page};
use crate::mode::FailureKind;
use crate::source::body::DecompressedBody;
use crate::source::budget::Reservation;
use crate::source::headers::ResponseMeta;
use crate::source::host_limiter::Priority;
use crate::source::http::HttpFailure;

/// Empty pages in a row that are followed at once; after that, one each `poll.min`.
const EMPTY_PAGES: u32 = 10;
/// Pages in a row without a record that the last pages did not have: after so many the walk is in fact at the end.
const REPEATED_PAGES: u32 = 10;
/// The last of the empty pages is requested again after this: time enough for a clock of whole seconds to advance.
const CLOCK_TICK: Duration = Duration::from_millis(1_100);

/// The validator for a conditional request of a level feed's last page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    /// The page's URL.
    pub url: String,
    /// Its entity tag.
    pub etag: String,
}

/// What was found out about a feed's end. It is kept from one walk to the next, since a feed whose end never satisfies
/// the standard is not to be requested ten times at each poll.
#[derive(Debug, Default)]
pub struct EndEvidence {
    recent_pages: RecentPages,
    /// Pages in a row, the last one included, without a record that the pages before did not have.
    repeated_pages: u32,
    /// The feed's end was found to repeat its records, with a new `next` each time.
    repeating_end: bool,
    /// The `next` of the feed's empty pages was found to contain the time.
    moving_end: bool,
}

/// How a walk reads its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// The priority of the first page's request; the others have that of a refresh.
    pub first_priority: Priority,
    /// Whether the next page is fetched while one is decoded.
    pub read_ahead: bool,
}

/// An answer to one request of a walk.
pub enum ReadAnswer {
    /// A page; [`PageReader::next_part`] gives its records.
    Page(Box<FetchedPage>),
    /// Nothing new since the response that the validator is of.
    NotModified(ResponseMeta),
}

/// A page as it was fetched.
pub struct FetchedPage {
    /// The page's URL, without secrets.
    pub url: String,
    /// The response's headers.
    pub meta: ResponseMeta,
    body: Option<CheckedPage>,
    /// Whether the first part was taken: that one is decoded already.
    part_taken: bool,
    reservation: Option<Arc<Reservation>>,
    page_fingerprint: PageFingerprint,
}

/// Some of a page's records, in the publisher's order.
pub struct PagePart {
    pub page: Page,
    /// The memory that the whole page is charged; released when its last part is dropped.
    pub reservation: Option<Arc<Reservation>>,
    /// Where the page leads; only of its last part.
    pub page_position: Option<PagePosition>,
}

/// Where a page leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagePosition {
    /// Where to go on reading, now or later: the publisher's `next`, except where that can't be followed.
    pub cursor: String,
    /// Whether `cursor` is the publisher's own `next`, and the end, if it was seen, the end by the standard's rule.
    pub clean: bool,
    /// What follows the page.
    pub next_step: NextStep,
}

/// What follows a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Another page, which the reader fetches next.
    Page,
    /// The end of the feed.
    Level,
    /// Only assumed to be the feed's end; the fixed word of the finding says why.
    AssumedLevel(&'static str),
    /// Nothing: `next` is no URL that may or can be requested.
    Failed(FailureKind, String),
}

/// Reads pages from a position on.
pub struct PageReader<'a> {
    source: &'a Arc<PageSource>,
    read_options: ReadOptions,
    heartbeat: Option<&'a Heartbeat>,
    /// The next page's URL; none once the walk is over.
    next_url: Option<String>,
    validator: Option<Validator>,
    visited: Arc<VisitedUrls>,
    read_ahead: Option<ReadAhead>,
    end_evidence: EndEvidence,
    empty_pages: u32,
    pages: u64,
}

impl<'a> PageReader<'a> {
    /// Reads from `start` on. `validator` makes the first request conditional, if it is of the same page.
    pub fn new(
        source: &'a Arc<PageSource>,
        read_options: ReadOptions,
        start: String,
        validator: Option<Validator>,
        end_evidence: EndEvidence,
        heartbeat: Option<&'a Heartbeat>,
    ) -> Self {
        let conditional = !source.skip_validators.load(Ordering::Relaxed);
        let validator = validator.filter(|validator| conditional && validator.url == start);
        let next_url = Some(start);
        let visited = Arc::default();
        Self {
            source,
            read_options,
            heartbeat,
            next_url,
            validator,
            visited,
            read_ahead: None,
            end_evidence,
            empty_pages: 0,
            pages: 0,
        }
    }

    /// The next page's URL; none once the walk is over.
    pub fn next_url(&self) -> Option<&str> {
        self.next_url.as_deref()
    }

    /// What was found out about the feed's end, for the next walk.
    pub fn into_end_evidence(self) -> EndEvidence {
        self.end_evidence
    }

    /// The next answer; none once the walk is over. After an error the same page may be requested again.
    ///
    /// # Errors
    /// When the page can't be fetched.
    pub async fn next(&mut self) -> Result<Option<ReadAnswer>, PageFailure> {
        let Some(url) = self.next_url.clone() else { return Ok(None) };
        if self.empty_pages >= EMPTY_PAGES {
            self.wait(self.source.interval).await;
        }
        let mut fetched = match self.fetch(&url).await? {
            ReadAnswer::Page(fetched) => fetched,
            ReadAnswer::NotModified(meta) => {
                self.next_url = None;
                return Ok(Some(ReadAnswer::NotModified(meta)));
            }
        };
        if self.empty_pages + 1 == EMPTY_PAGES
            && !self.end_evidence.moving_end
            && let Some(next) = self.next_of_empty_page(&fetched)
        {
            drop(fetched);
            fetched = self.refetch_empty_page(url, &next).await?;
        }
        self.pages += 1;
        Ok(Some(ReadAnswer::Page(fetched)))
    }

    /// The next part of a page's records; none after the last.
    ///
    /// # Errors
    /// When it can't be decoded after all.
    pub async fn next_part(&mut self, fetched: &mut FetchedPage) -> Result<Option<PagePart>, PageFailure> {
        let Some(mut body) = fetched.body.take() else { return Ok(None) };
        let page = if fetched.part_taken {
            let part;
            (body, part) = self.source.decode_part(body).await?;
            part
        } else {
            body.next_part()
        };
        let Some(mut page) = page else { return Ok(None) };
        if !fetched.part_taken {
            notice_content_type(&mut page, &fetched.meta);
            page.findings.extend_from_slice(&fetched.meta.findings);
        }
        fetched.part_taken = true;
        self.end_evidence.recent_pages.add_part(&mut fetched.page_fingerprint, &page);
        if body.has_more() {
            fetched.body = Some(body);
            return Ok(Some(PagePart { page, reservation: fetched.reservation.clone(), page_position: None }));
        }
        let page_position = Some(self.resolve_position(fetched, &mut page));
        Ok(Some(PagePart { page, reservation: fetched.reservation.take(), page_position }))
    }

    async fn wait(&self, time: Duration) {
        if let Some(heartbeat) = self.heartbeat {
            heartbeat.expect_within(time);
        }
        tokio::time::sleep(time).await;
    }

    async fn fetch(&mut self, url: &str) -> Result<ReadAnswer, PageFailure> {
        let validator = self.validator.take();
        match self.download(url, validator.as_ref()).await? {
            PageDownload::Page(decompressed, meta) => self.decode(url, decompressed, meta).await.map(ReadAnswer::Page),
            PageDownload::NotModified(meta) => Ok(ReadAnswer::NotModified(meta)),
            PageDownload::ValidatorRefused => {
                tracing::info!(feed = %self.source.name, "it answers no conditional requests: asked without from now on");
                self.source.skip_validators.store(true, Ordering::Relaxed);
                match self.download(url, None).await? {
                    PageDownload::Page(decompressed, meta) => {
                        self.decode(url, decompressed, meta).await.map(ReadAnswer::Page)
                    }
                    PageDownload::NotModified(_) | PageDownload::ValidatorRefused => {
                        Err(describe_failure(&HttpFailure::UnaskedNotModified))
                    }
                }
            }
        }
    }

    /// The page, requested now or already being fetched ahead.
    async fn download(&mut self, url: &str, validator: Option<&Validator>) -> Result<PageDownload, PageFailure> {
        if let Some(heartbeat) = self.heartbeat {
            heartbeat.expect_within(self.source.page_timeout);
        }
        if let Some(read_ahead) = &mut self.read_ahead
            && let Some(download) = read_ahead.page(url, self.heartbeat).await
        {
            return download;
        }
        self.read_ahead = None;
        let priority = if self.pages == 0 { self.read_options.first_priority } else { Priority::Refresh };
        let etag = validator.map(|validator| validator.etag.as_str());
        self.source.download(url, etag, priority, self.heartbeat).await
    }

    /// Decodes a page; reading ahead to the next one begins before that.
    async fn decode(
        &mut self,
        url: &str,
        decompressed: DecompressedBody,
        meta: ResponseMeta,
    ) -> Result<Box<FetchedPage>, PageFailure> {
        if self.read_options.read_ahead && self.read_ahead.is_none() {
            self.read_ahead = ReadAhead::begin(self.source, &self.visited, url, &decompressed.bytes);
        }
        let body = Some(self.source.check(decompressed.bytes, meta.cookie_remark.as_deref()).await?);
        let (reservation, page_fingerprint) = (Some(Arc::new(decompressed.reservation)), PageFingerprint::default());
        Ok(Box::new(FetchedPage { url: url.to_owned(), meta, body, part_taken: false, reservation, page_fingerprint }))
    }

    /// The resolved `next` of an empty page, secrets masked; none if it is the page itself, or if the page is not
    /// empty.
    fn next_of_empty_page(&self, fetched: &FetchedPage) -> Option<String> {
        let body = fetched.body.as_ref().filter(|body| body.is_empty())?;
        let next = next::resolve(&fetched.url, &self.source.requests.mask(body.next()?));
        (next != fetched.url).then_some(next)
    }

    /// Requests an empty page for a second time: if its `next` is another one then, it contains the time, and following
    /// it would never end.
    async fn refetch_empty_page(&mut self, url: String, before: &str) -> Result<Box<FetchedPage>, PageFailure> {
        self.read_ahead = None;
        self.wait(self.source.interval.min(CLOCK_TICK)).await;
        let ReadAnswer::Page(second) = self.fetch(&url).await? else {
            return Err(describe_failure(&HttpFailure::UnaskedNotModified));
        };
        self.end_evidence.moving_end = self.next_of_empty_page(&second).is_some_and(|next| next != before);
        Ok(second)
    }

    /// Where a page leads, once its last part is decoded. A `next` that leads back, or to a URL that may not be
    /// requested, is no cursor: the page's items are taken, and the page is requested again.
    fn resolve_position(&mut self, fetched: &mut FetchedPage, page: &mut Page) -> PagePosition {
        let is_empty = page.is_empty();
        let is_repeat = self.end_evidence.recent_pages.finish_page(std::mem::take(&mut fetched.page_fingerprint));
        self.end_evidence.repeated_pages = if is_repeat { self.end_evidence.repeated_pages + 1 } else { 0 };
        self.empty_pages = if is_empty { self.empty_pages + 1 } else { 0 };
        if self.empty_pages == EMPTY_PAGES {
            page.add_finding("empty-pages", || format!("{EMPTY_PAGES} empty pages in a row, up to {}", fetched.url));
        }
        self.visited.insert(&fetched.url);
        let published = page.next.as_deref().map(|next| self.source.requests.mask(next));
        let next = next::decide_next(&fetched.url, page, published.as_deref(), self.source.dialect);
        let page_position = match &fetched.meta.cursor_lost_at {
            Some(redirect_target) => lost_cursor(&fetched.url, redirect_target, page),
            None => self.resolve_next(&fetched.url, next, page),
        };
        self.next_url = matches!(page_position.next_step, NextStep::Page).then(|| page_position.cursor.clone());
        page_position
    }

    fn resolve_next(&mut self, url: &str, next: NextPage, page: &mut Page) -> PagePosition {
        let stay = |clean, next_step| PagePosition { cursor: url.to_owned(), clean, next_step };
        let (next, generated) = match next {
            NextPage::Level => {
                self.end_evidence = EndEvidence::default();
                return stay(true, NextStep::Level);
            }
            NextPage::TreatedAsLevel(reason) => return stay(false, NextStep::AssumedLevel(reason)),
            NextPage::Follow { url, generated } => (url, generated),
        };
        if let Some(reason) = next::length_refusal(&next) {
            return stay(false, NextStep::Failed(FailureKind::Loop, reason));
        }
        if self.visited.contains(&next) {
            page.add_finding("loop", || format!("{url} sends back to {next}"));
            let reason = format!("loop: `next` leads back to a page of this walk, {next}");
            return stay(false, NextStep::Failed(FailureKind::Loop, reason));
        }
        if let Err(failure) = self.source.requests.check_permitted(&next) {
            let (kind, reason) = describe_failure(&failure);
            return stay(false, NextStep::Failed(kind, reason));
        }
        match self.hidden_end(url, page) {
            Some(next_step) => PagePosition { cursor: next, clean: false, next_step },
            None => PagePosition { cursor: next, clean: !generated, next_step: NextStep::Page },
        }
    }

    /// The finding for an end that never satisfies the standard: its `next` is another one at each request.
    fn hidden_end(&mut self, url: &str, page: &mut Page) -> Option<NextStep> {
        if page.is_empty() && self.end_evidence.moving_end {
            page.add_finding("moving-end", || format!("an empty page whose `next` is another one each time: {url}"));
            return Some(NextStep::AssumedLevel("moving-end"));
        }
        self.end_evidence.repeating_end |= self.end_evidence.repeated_pages >= REPEATED_PAGES;
        if self.end_evidence.repeated_pages > 0 && self.end_evidence.repeating_end {
            page.add_finding("repeating-end", || {
                format!("pages that repeat their items under an ever-new `next`: {url}")
            });
            return Some(NextStep::AssumedLevel("repeating-end"));
        }
        None
    }
}

/// A redirect dropped the cursor: the response is of another page. Its items are taken, since the newest version wins,
/// and the page is requested again.
fn lost_cursor(url: &str, redirect_target: &str, page: &mut Page) -> PagePosition {
    page.add_finding("lost-cursor", || format!("{url} redirects to {redirect_target}, which asks for something else"));
    let reason = format!("lost-cursor: a redirect to {redirect_target} asks for something else than {url}");
    PagePosition { cursor: url.to_owned(), clean: false, next_step: NextStep::Failed(FailureKind::Page, reason) }
}

fn notice_content_type(page: &mut Page, meta: &ResponseMeta) {
    let sent = meta.content_type.as_deref().unwrap_or("");
    let media = sent.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media != "application/json" && !media.ends_with("+json") {
        page.findings.push(Finding { rule: "content-type", detail: format!("a page was sent as {sent:?}"), count: 1 });
    }
}
