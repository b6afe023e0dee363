//! Following `next`: the one reader of pages, for the daemon's walks, for `verify --against-source`, `explain --live`
//! and `check --online`. It decides where a page leads and when a walk has come to an end; what becomes of the pages is
//! its caller's.
//!
//! It never goes hot: what gets nowhere (a circle, pages that only repeat, empty pages) ends, or goes on one page each
//! `poll.min`. Every wait is a future that its caller may drop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Pulse;
use super::page_source::{Downloaded, Failed, PageSource};
use super::read_ahead::ReadAhead;
use super::visited::{PageRecords, RecentRecords, VisitedUrls};
use super::walk::explain;
use crate::decode::next;
use crate::decode::rpde::Body;
use crate::feed::{Finding, Next, Page};
use crate::mode::Trouble;
use crate::source::body::Opened;
use crate::source::budget::Reservation;
use crate::source::headers::Meta;
use crate::source::http::Failure;
use crate::source::turns::Priority;

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
pub struct EndMemory {
    recent: RecentRecords,
    /// Pages in a row, the last one included, that brought nothing but what the last pages had.
    repeated: u32,
    /// Its end was found to repeat its records under an ever-new `next`.
    repeats: bool,
    /// The `next` of its empty pages was found to carry the clock.
    moves: bool,
}

/// How a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Whose turn its first page is; the others are a refresh's.
    pub first: Priority,
    /// Whether the next page is fetched while one is decoded.
    pub ahead: bool,
}

/// An answer to one request of a walk.
pub enum Answered {
    /// A page; its records come by [`PageReader::part`].
    Page(Box<ReadPage>),
    /// Nothing new since the validator was given.
    NotModified(Meta),
}

/// A page as it came.
pub struct ReadPage {
    /// Where it was asked for, without secrets.
    pub url: String,
    /// Its headers.
    pub meta: Meta,
    body: Option<Body>,
    /// Whether a part was taken: the first one is decoded already.
    begun: bool,
    reservation: Option<Arc<Reservation>>,
    records: PageRecords,
}

/// Some of a page's records, in the publisher's order.
pub struct Part {
    /// The records.
    pub page: Page,
    /// The room that the page takes; free again when the last part is dealt with.
    pub reservation: Option<Arc<Reservation>>,
    /// Of the last part: where the page leads.
    pub place: Option<Place>,
}

/// Where a page leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where to go on reading, now or later: the publisher's word but where it can't be followed.
    pub cursor: String,
    /// Whether `cursor` is the publisher's own word, and the end, if it was seen, the standard's sign.
    pub clean: bool,
    /// What follows.
    pub onward: Onward,
}

/// What follows a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Onward {
    /// Another page, which the reader gives next.
    Page,
    /// The end of the feed.
    Level,
    /// What is only taken as its end; the word says why.
    AsLevel(&'static str),
    /// Nothing: it leads nowhere that may or can be asked.
    Failed(Trouble, String),
}

/// Reads pages from a position on.
pub struct PageReader<'a> {
    source: &'a Arc<PageSource>,
    manner: Manner,
    pulse: Option<&'a Pulse>,
    /// Where the next page is asked for; none once the walk is over.
    place: Option<String>,
    validator: Option<Validator>,
    visited: Arc<VisitedUrls>,
    ahead: Option<ReadAhead>,
    memory: EndMemory,
    empty: u32,
    pages: u64,
}

impl<'a> PageReader<'a> {
    /// From `start` on. `validator` makes the first request conditional, if it is for the same page.
    pub fn new(
        source: &'a Arc<PageSource>,
        manner: Manner,
        start: String,
        validator: Option<Validator>,
        memory: EndMemory,
        pulse: Option<&'a Pulse>,
    ) -> Self {
        let conditional = !source.unconditional.load(Ordering::Relaxed);
        let validator = validator.filter(|validator| conditional && validator.url == start);
        let place = Some(start);
        let visited = Arc::default();
        Self { source, manner, pulse, place, validator, visited, ahead: None, memory, empty: 0, pages: 0 }
    }

    /// Where the next page is asked for; none once the walk is over.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// What it knows of the feed's end, for the next walk.
    pub fn into_memory(self) -> EndMemory {
        self.memory
    }

    /// The next answer; none once the walk is over. A page that could not be had may be asked for again.
    ///
    /// # Errors
    /// Whatever kept the page from coming.
    pub async fn next(&mut self) -> Result<Option<Answered>, Failed> {
        let Some(url) = self.place.clone() else { return Ok(None) };
        if self.empty >= EMPTY_PAGES {
            self.wait(self.source.interval).await;
        }
        let mut read = match self.fetch(&url).await? {
            Answered::Page(read) => read,
            Answered::NotModified(meta) => {
                self.place = None;
                return Ok(Some(Answered::NotModified(meta)));
            }
        };
        if self.empty + 1 == EMPTY_PAGES
            && !self.memory.moves
            && let Some(next) = self.leads_on(&read)
        {
            drop(read);
            read = self.look_again(url, &next).await?;
        }
        self.pages += 1;
        Ok(Some(Answered::Page(read)))
    }

    /// The next part of a page's records; none behind the last.
    ///
    /// # Errors
    /// When it can't be decoded after all.
    pub async fn part(&mut self, read: &mut ReadPage) -> Result<Option<Part>, Failed> {
        let Some(mut body) = read.body.take() else { return Ok(None) };
        let page = if read.begun {
            let part;
            (body, part) = self.source.part(body).await?;
            part
        } else {
            body.next_part()
        };
        let Some(mut page) = page else { return Ok(None) };
        if !read.begun {
            notice_content_type(&mut page, &read.meta);
            page.findings.extend_from_slice(&read.meta.findings);
        }
        read.begun = true;
        self.memory.recent.note(&mut read.records, &page);
        if body.has_more() {
            read.body = Some(body);
            return Ok(Some(Part { page, reservation: read.reservation.clone(), place: None }));
        }
        let place = Some(self.judge(read, &mut page));
        Ok(Some(Part { page, reservation: read.reservation.take(), place }))
    }

    async fn wait(&self, time: Duration) {
        if let Some(pulse) = self.pulse {
            pulse.within(time);
        }
        tokio::time::sleep(time).await;
    }

    async fn fetch(&mut self, url: &str) -> Result<Answered, Failed> {
        let validator = self.validator.take();
        match self.download(url, validator.as_ref()).await? {
            Downloaded::Page(opened, meta) => self.decode(url, opened, meta).await.map(Answered::Page),
            Downloaded::NotModified(meta) => Ok(Answered::NotModified(meta)),
            Downloaded::ValidatorRefused => {
                tracing::info!(feed = %self.source.name, "it answers no conditional requests: asked without from now on");
                self.source.unconditional.store(true, Ordering::Relaxed);
                match self.download(url, None).await? {
                    Downloaded::Page(opened, meta) => self.decode(url, opened, meta).await.map(Answered::Page),
                    Downloaded::NotModified(_) | Downloaded::ValidatorRefused => {
                        Err(explain(&Failure::UnaskedNotModified))
                    }
                }
            }
        }
    }

    /// The page, asked for now or already under way.
    async fn download(&mut self, url: &str, validator: Option<&Validator>) -> Result<Downloaded, Failed> {
        if let Some(pulse) = self.pulse {
            pulse.within(self.source.page_timeout);
        }
        if let Some(ahead) = &mut self.ahead
            && let Some(downloaded) = ahead.page(url, self.pulse).await
        {
            return downloaded;
        }
        self.ahead = None;
        let priority = if self.pages == 0 { self.manner.first } else { Priority::Refresh };
        let etag = validator.map(|validator| validator.etag.as_str());
        self.source.download(url, etag, priority, self.pulse).await
    }

    /// The next page is begun before this one is decoded.
    async fn decode(&mut self, url: &str, opened: Opened, meta: Meta) -> Result<Box<ReadPage>, Failed> {
        if self.manner.ahead && self.ahead.is_none() {
            self.ahead = ReadAhead::begin(self.source, &self.visited, url, &opened.bytes);
        }
        let body = Some(self.source.check(opened.bytes, meta.cookies.as_deref()).await?);
        let (reservation, records) = (Some(Arc::new(opened.reservation)), PageRecords::default());
        Ok(Box::new(ReadPage { url: url.to_owned(), meta, body, begun: false, reservation, records }))
    }

    /// Where an empty page sends on, secrets masked; none if it doesn't, or if the page is not empty.
    fn leads_on(&self, read: &ReadPage) -> Option<String> {
        let body = read.body.as_ref().filter(|body| body.is_empty())?;
        let next = next::resolve(&read.url, &self.source.requests.mask(body.next()?));
        (next != read.url).then_some(next)
    }

    /// An empty page is asked for a second time: if its `next` is another one then, it carries the clock, and following
    /// it would never end.
    async fn look_again(&mut self, url: String, before: &str) -> Result<Box<ReadPage>, Failed> {
        self.ahead = None;
        self.wait(self.source.interval.min(CLOCK_TICK)).await;
        let Answered::Page(again) = self.fetch(&url).await? else {
            return Err(explain(&Failure::UnaskedNotModified));
        };
        self.memory.moves = self.leads_on(&again).is_some_and(|next| next != before);
        Ok(again)
    }

    /// Where a page leads, once its last part is there. A `next` that leads back, or to a place that may not be asked,
    /// is no cursor: the page's items are taken, and the page is asked for again.
    fn judge(&mut self, read: &mut ReadPage, page: &mut Page) -> Place {
        let is_empty = page.is_empty();
        let repeats = self.memory.recent.repeats(std::mem::take(&mut read.records));
        self.memory.repeated = if repeats { self.memory.repeated + 1 } else { 0 };
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        if self.empty == EMPTY_PAGES {
            page.find("empty-pages", || format!("{EMPTY_PAGES} empty pages in a row, up to {}", read.url));
        }
        self.visited.insert(&read.url);
        let published = page.next.as_deref().map(|next| self.source.requests.mask(next));
        let next = next::place(&read.url, page, published.as_deref(), self.source.dialect);
        let place = match &read.meta.lost_cursor {
            Some(reached) => lost(&read.url, reached, page),
            None => self.follow(&read.url, next, page),
        };
        self.place = matches!(place.onward, Onward::Page).then(|| place.cursor.clone());
        place
    }

    fn follow(&mut self, url: &str, next: Next, page: &mut Page) -> Place {
        let stay = |clean, onward| Place { cursor: url.to_owned(), clean, onward };
        let (next, made) = match next {
            Next::Level => {
                self.memory = EndMemory::default();
                return stay(true, Onward::Level);
            }
            Next::AsLevel(reason) => return stay(false, Onward::AsLevel(reason)),
            Next::Follow { url, made } => (url, made),
        };
        if let Some(reason) = next::too_long(&next) {
            return stay(false, Onward::Failed(Trouble::Loop, reason));
        }
        if self.visited.contains(&next) {
            page.find("loop", || format!("{url} sends back to {next}"));
            let reason = format!("loop: `next` leads back to a page of this walk, {next}");
            return stay(false, Onward::Failed(Trouble::Loop, reason));
        }
        if let Err(failure) = self.source.requests.permit(&next) {
            let (trouble, reason) = explain(&failure);
            return stay(false, Onward::Failed(trouble, reason));
        }
        match self.hidden_end(url, page) {
            Some(onward) => Place { cursor: next, clean: false, onward },
            None => Place { cursor: next, clean: !made, onward: Onward::Page },
        }
    }

    /// An end that never shows as one: its `next` is another one each time it is asked.
    fn hidden_end(&mut self, url: &str, page: &mut Page) -> Option<Onward> {
        if page.is_empty() && self.memory.moves {
            page.find("moving-end", || format!("an empty page whose `next` is another one each time: {url}"));
            return Some(Onward::AsLevel("moving-end"));
        }
        self.memory.repeats |= self.memory.repeated >= REPEATED_PAGES;
        if self.memory.repeated > 0 && self.memory.repeats {
            page.find("repeating-end", || format!("pages that repeat their items under an ever-new `next`: {url}"));
            return Some(Onward::AsLevel("repeating-end"));
        }
        None
    }
}

/// A redirect lost what was asked for: the answer is to another question. Its items are taken, since newest wins, and
/// the page is asked for again.
fn lost(url: &str, reached: &str, page: &mut Page) -> Place {
    page.find("lost-cursor", || format!("{url} redirects to {reached}, which asks for something else"));
    let reason = format!("lost-cursor: a redirect to {reached} asks for something else than {url}");
    Place { cursor: url.to_owned(), clean: false, onward: Onward::Failed(Trouble::Page, reason) }
}

fn notice_content_type(page: &mut Page, meta: &Meta) {
    let sent = meta.content_type.as_deref().unwrap_or("");
    let media = sent.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media != "application/json" && !media.ends_with("+json") {
        page.findings.push(Finding { rule: "content-type", detail: format!("a page was sent as {sent:?}"), count: 1 });
    }
}
