//! Following `next`: the one reader of pages, for the daemon's walks, for `verify --against-source`, `explain --live`
//! and `check --online`. It decides where a page leads and when a walk has come to an end; what becomes of the pages is
//! its caller's.
//!
//! It never goes hot: what gets nowhere (a circle, pages that only repeat, empty pages) ends, or goes on one page each
//! `poll.min`. Every wait is a future that its caller may drop.

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

/// Empty pages in a row that are followed at once; beyond, one each `poll.min`.
const EMPTY_PAGES: u32 = 10;
/// Pages in a row that bring nothing but what the last pages had: then the walk is at the end in all but name.
const REPEATED_PAGES: u32 = 10;
/// The last of the empty pages is asked for again after this: time enough for a clock of whole seconds to go on.
const CLOCK_TICK: Duration = Duration::from_millis(1_100);

/// What a level feed's last page can be asked for with, to be told "nothing new".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    /// The page's URL.
    pub url: String,
    /// Its entity tag.
    pub etag: String,
}

/// What a reader knows of a feed's end. It is kept from one walk to the next, since a publisher whose end never shows
/// as one is not to be asked ten times over at each poll.
#[derive(Debug, Default)]
pub struct EndEvidence {
    recent: RecentPages,
    /// Pages in a row, the last one included, that brought nothing but what the last pages had.
    repeated_pages: u32,
    /// Its end was found to repeat its records under an ever-new `next`.
    repeating_end: bool,
    /// The `next` of its empty pages was found to carry the clock.
    moving_end: bool,
}

/// How a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Whose turn its first page is; the others are a refresh's.
    pub first_priority: Priority,
    /// Whether the next page is fetched while one is decoded.
    pub read_ahead: bool,
}

/// An answer to one request of a walk.
pub enum ReadAnswer {
    /// A page; its records come by [`PageReader::part`].
    Page(Box<FetchedPage>),
    /// Nothing new since the validator was given.
    NotModified(ResponseMeta),
}

/// A page as it came.
pub struct FetchedPage {
    /// Where it was asked for, without secrets.
    pub url: String,
    /// Its headers.
    pub meta: ResponseMeta,
    body: Option<CheckedPage>,
    /// Whether a part was taken: the first one is decoded already.
    part_taken: bool,
    reservation: Option<Arc<Reservation>>,
    records: PageFingerprint,
}

/// Some of a page's records, in the publisher's order.
pub struct PagePart {
    /// The records.
    pub page: Page,
    /// The room that the page takes; free again when the last part is dealt with.
    pub reservation: Option<Arc<Reservation>>,
    /// Of the last part: where the page leads.
    pub page_position: Option<PagePosition>,
}

/// Where a page leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagePosition {
    /// Where to go on reading, now or later: the publisher's word but where it can't be followed.
    pub cursor: String,
    /// Whether `cursor` is the publisher's own word, and the end, if it was seen, the standard's sign.
    pub clean: bool,
    /// What follows.
    pub next_step: NextStep,
}

/// What follows a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Another page, which the reader gives next.
    Page,
    /// The end of the feed.
    Level,
    /// What is only taken as its end; the word says why.
    AssumedLevel(&'static str),
    /// Nothing: it leads nowhere that may or can be asked.
    Failed(FailureKind, String),
}

/// Reads pages from a position on.
pub struct PageReader<'a> {
    source: &'a Arc<PageSource>,
    read_options: ReadOptions,
    heartbeat: Option<&'a Heartbeat>,
    /// Where the next page is asked for; none once the walk is over.
    next_url: Option<String>,
    validator: Option<Validator>,
    visited: Arc<VisitedUrls>,
    read_ahead: Option<ReadAhead>,
    end_evidence: EndEvidence,
    empty_pages: u32,
    pages: u64,
}

impl<'a> PageReader<'a> {
    /// From `start` on. `validator` makes the first request conditional, if it is for the same page.
    pub fn new(
        source: &'a Arc<PageSource>,
        manner: ReadOptions,
        start: String,
        validator: Option<Validator>,
        memory: EndEvidence,
        pulse: Option<&'a Heartbeat>,
    ) -> Self {
        let conditional = !source.skip_validators.load(Ordering::Relaxed);
        let validator = validator.filter(|validator| conditional && validator.url == start);
        let place = Some(start);
        let visited = Arc::default();
        Self {
            source,
            read_options: manner,
            heartbeat: pulse,
            next_url: place,
            validator,
            visited,
            read_ahead: None,
            end_evidence: memory,
            empty_pages: 0,
            pages: 0,
        }
    }

    /// Where the next page is asked for; none once the walk is over.
    pub fn next_url(&self) -> Option<&str> {
        self.next_url.as_deref()
    }

    /// What it knows of the feed's end, for the next walk.
    pub fn into_end_evidence(self) -> EndEvidence {
        self.end_evidence
    }

    /// The next answer; none once the walk is over. A page that could not be had may be asked for again.
    ///
    /// # Errors
    /// Whatever kept the page from coming.
    pub async fn next(&mut self) -> Result<Option<ReadAnswer>, PageFailure> {
        let Some(url) = self.next_url.clone() else { return Ok(None) };
        if self.empty_pages >= EMPTY_PAGES {
            self.wait(self.source.interval).await;
        }
        let mut read = match self.fetch(&url).await? {
            ReadAnswer::Page(read) => read,
            ReadAnswer::NotModified(meta) => {
                self.next_url = None;
                return Ok(Some(ReadAnswer::NotModified(meta)));
            }
        };
        if self.empty_pages + 1 == EMPTY_PAGES
            && !self.end_evidence.moving_end
            && let Some(next) = self.next_of_empty_page(&read)
        {
            drop(read);
            read = self.refetch_empty_page(url, &next).await?;
        }
        self.pages += 1;
        Ok(Some(ReadAnswer::Page(read)))
    }

    /// The next part of a page's records; none behind the last.
    ///
    /// # Errors
    /// When it can't be decoded after all.
    pub async fn next_part(&mut self, read: &mut FetchedPage) -> Result<Option<PagePart>, PageFailure> {
        let Some(mut body) = read.body.take() else { return Ok(None) };
        let page = if read.part_taken {
            let part;
            (body, part) = self.source.decode_part(body).await?;
            part
        } else {
            body.next_part()
        };
        let Some(mut page) = page else { return Ok(None) };
        if !read.part_taken {
            notice_content_type(&mut page, &read.meta);
            page.findings.extend_from_slice(&read.meta.findings);
        }
        read.part_taken = true;
        self.end_evidence.recent.add_part(&mut read.records, &page);
        if body.has_more() {
            read.body = Some(body);
            return Ok(Some(PagePart { page, reservation: read.reservation.clone(), page_position: None }));
        }
        let place = Some(self.resolve_position(read, &mut page));
        Ok(Some(PagePart { page, reservation: read.reservation.take(), page_position: place }))
    }

    async fn wait(&self, time: Duration) {
        if let Some(pulse) = self.heartbeat {
            pulse.expect_within(time);
        }
        tokio::time::sleep(time).await;
    }

    async fn fetch(&mut self, url: &str) -> Result<ReadAnswer, PageFailure> {
        let validator = self.validator.take();
        match self.download(url, validator.as_ref()).await? {
            PageDownload::Page(opened, meta) => self.decode(url, opened, meta).await.map(ReadAnswer::Page),
            PageDownload::NotModified(meta) => Ok(ReadAnswer::NotModified(meta)),
            PageDownload::ValidatorRefused => {
                tracing::info!(feed = %self.source.name, "it answers no conditional requests: asked without from now on");
                self.source.skip_validators.store(true, Ordering::Relaxed);
                match self.download(url, None).await? {
                    PageDownload::Page(opened, meta) => self.decode(url, opened, meta).await.map(ReadAnswer::Page),
                    PageDownload::NotModified(_) | PageDownload::ValidatorRefused => {
                        Err(describe_failure(&HttpFailure::UnaskedNotModified))
                    }
                }
            }
        }
    }

    /// The page, asked for now or already under way.
    async fn download(&mut self, url: &str, validator: Option<&Validator>) -> Result<PageDownload, PageFailure> {
        if let Some(pulse) = self.heartbeat {
            pulse.expect_within(self.source.page_timeout);
        }
        if let Some(ahead) = &mut self.read_ahead
            && let Some(downloaded) = ahead.page(url, self.heartbeat).await
        {
            return downloaded;
        }
        self.read_ahead = None;
        let priority = if self.pages == 0 { self.read_options.first_priority } else { Priority::Refresh };
        let etag = validator.map(|validator| validator.etag.as_str());
        self.source.download(url, etag, priority, self.heartbeat).await
    }

    /// The next page is begun before this one is decoded.
    async fn decode(
        &mut self,
        url: &str,
        opened: DecompressedBody,
        meta: ResponseMeta,
    ) -> Result<Box<FetchedPage>, PageFailure> {
        if self.read_options.read_ahead && self.read_ahead.is_none() {
            self.read_ahead = ReadAhead::begin(self.source, &self.visited, url, &opened.bytes);
        }
        let body = Some(self.source.check(opened.bytes, meta.cookie_remark.as_deref()).await?);
        let (reservation, records) = (Some(Arc::new(opened.reservation)), PageFingerprint::default());
        Ok(Box::new(FetchedPage { url: url.to_owned(), meta, body, part_taken: false, reservation, records }))
    }

    /// Where an empty page sends on, secrets masked; none if it doesn't, or if the page is not empty.
    fn next_of_empty_page(&self, read: &FetchedPage) -> Option<String> {
        let body = read.body.as_ref().filter(|body| body.is_empty())?;
        let next = next::resolve(&read.url, &self.source.requests.mask(body.next()?));
        (next != read.url).then_some(next)
    }

    /// An empty page is asked for a second time: if its `next` is another one then, it carries the clock, and following
    /// it would never end.
    async fn refetch_empty_page(&mut self, url: String, before: &str) -> Result<Box<FetchedPage>, PageFailure> {
        self.read_ahead = None;
        self.wait(self.source.interval.min(CLOCK_TICK)).await;
        let ReadAnswer::Page(again) = self.fetch(&url).await? else {
            return Err(describe_failure(&HttpFailure::UnaskedNotModified));
        };
        self.end_evidence.moving_end = self.next_of_empty_page(&again).is_some_and(|next| next != before);
        Ok(again)
    }

    /// Where a page leads, once its last part is there. A `next` that leads back, or to a place that may not be asked,
    /// is no cursor: the page's items are taken, and the page is asked for again.
    fn resolve_position(&mut self, read: &mut FetchedPage, page: &mut Page) -> PagePosition {
        let is_empty = page.is_empty();
        let repeats = self.end_evidence.recent.finish_page(std::mem::take(&mut read.records));
        self.end_evidence.repeated_pages = if repeats { self.end_evidence.repeated_pages + 1 } else { 0 };
        self.empty_pages = if is_empty { self.empty_pages + 1 } else { 0 };
        if self.empty_pages == EMPTY_PAGES {
            page.add_finding("empty-pages", || format!("{EMPTY_PAGES} empty pages in a row, up to {}", read.url));
        }
        self.visited.insert(&read.url);
        let published = page.next.as_deref().map(|next| self.source.requests.mask(next));
        let next = next::decide_next(&read.url, page, published.as_deref(), self.source.dialect);
        let place = match &read.meta.cursor_lost_at {
            Some(reached) => lost_cursor(&read.url, reached, page),
            None => self.resolve_next(&read.url, next, page),
        };
        self.next_url = matches!(place.next_step, NextStep::Page).then(|| place.cursor.clone());
        place
    }

    fn resolve_next(&mut self, url: &str, next: NextPage, page: &mut Page) -> PagePosition {
        let stay = |clean, onward| PagePosition { cursor: url.to_owned(), clean, next_step: onward };
        let (next, made) = match next {
            NextPage::Level => {
                self.end_evidence = EndEvidence::default();
                return stay(true, NextStep::Level);
            }
            NextPage::TreatedAsLevel(reason) => return stay(false, NextStep::AssumedLevel(reason)),
            NextPage::Follow { url, generated: made } => (url, made),
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
            let (trouble, reason) = describe_failure(&failure);
            return stay(false, NextStep::Failed(trouble, reason));
        }
        match self.hidden_end(url, page) {
            Some(onward) => PagePosition { cursor: next, clean: false, next_step: onward },
            None => PagePosition { cursor: next, clean: !made, next_step: NextStep::Page },
        }
    }

    /// An end that never shows as one: its `next` is another one each time it is asked.
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

/// A redirect lost what was asked for: the answer is to another question. Its items are taken, since newest wins, and
/// the page is asked for again.
fn lost_cursor(url: &str, reached: &str, page: &mut Page) -> PagePosition {
    page.add_finding("lost-cursor", || format!("{url} redirects to {reached}, which asks for something else"));
    let reason = format!("lost-cursor: a redirect to {reached} asks for something else than {url}");
    PagePosition { cursor: url.to_owned(), clean: false, next_step: NextStep::Failed(FailureKind::Page, reason) }
}

fn notice_content_type(page: &mut Page, meta: &ResponseMeta) {
    let sent = meta.content_type.as_deref().unwrap_or("");
    let media = sent.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media != "application/json" && !media.ends_with("+json") {
        page.findings.push(Finding { rule: "content-type", detail: format!("a page was sent as {sent:?}"), count: 1 });
    }
}
