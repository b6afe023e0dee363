//! Following `next` from a position to the end, page by page: the next page is fetched while this one is written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::ahead::{Ahead, Met};
use super::fetch::{self, Downloaded};
use super::{Counts, Feed, Pulse};
use crate::decode::next;
use crate::feed::{Finding, Generation, Next, Page, Text, Transport};
use crate::mode::Trouble;
use crate::source::budget::Reservation;
use crate::source::headers::Meta;
use crate::source::http::Failure;
use crate::source::turns::Priority;
use crate::store::StoreError;
use crate::store::apply::{Applied, Held, Hold, Origin, Purpose, Step, Verdict};

/// Pages handed to the store and not yet committed.
const WINDOW: usize = 12;
/// A look-back reads at most this many pages.
pub(super) const LOOK_BACK_PAGES: u32 = 20;
/// Empty pages in a row that are followed at once; beyond, one each `poll.min`.
const EMPTY_PAGES: u32 = 10;

/// Which cursor a walk moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The poll cursor.
    Poll {
        /// Whether the feed's end was seen before.
        level: bool,
    },
    /// The resync's own.
    Resync,
    /// None.
    LookBack,
}

/// What a level feed's last page can be asked for with, to be told "nothing new".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    /// The page's URL.
    pub url: String,
    /// Its entity tag.
    pub etag: String,
}

/// How a walk ended, and what it brought.
#[derive(Debug)]
pub struct Walked {
    /// Why it ended.
    pub end: End,
    /// Pages that came.
    pub pages: u64,
    /// Records read.
    pub records: u64,
    /// What became of them.
    pub applied: Applied,
    /// The publisher's clock, milliseconds since 1970 UTC.
    pub date: Option<i64>,
    /// How to ask for the last page again.
    pub validator: Option<Validator>,
}

/// Why a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The end of the feed.
    Level {
        /// Why it was only taken as the end.
        reason: Option<&'static str>,
        /// How long the answer is fresh.
        fresh_for: Option<Duration>,
    },
    /// The stored cursor or generation is no longer the walk's own: begin again from what is stored.
    Overtaken,
    /// As many pages as allowed.
    Limit,
    /// Cancelled, or the store has stopped.
    Stopped,
    /// A page could not be had.
    Failed {
        /// What the rules need to know.
        trouble: Trouble,
        /// In words, beginning with a fixed one.
        reason: String,
        /// Where it was asked for.
        asked: String,
    },
}

impl Walked {
    /// Whether a page came, and not only to lead round in a circle: then whatever failed before has healed.
    pub fn got_on(&self) -> bool {
        self.pages > 0 && !matches!(self.end, End::Failed { trouble: Trouble::Loop, .. })
    }
}

type Pending = oneshot::Receiver<Result<Applied, StoreError>>;

/// A walk under way.
pub struct Walk<'a> {
    feed: &'a Arc<Feed>,
    kind: Kind,
    generation: Generation,
    cancel: &'a CancellationToken,
    pulse: &'a Pulse,
    pending: VecDeque<Pending>,
    met: Arc<Met>,
    empty: u32,
    walked: Walked,
}

/// A page as it came: its text, its place in the budget, its headers.
struct Fetched {
    page: Page,
    reservation: Reservation,
    meta: Meta,
}

enum Got {
    Fetched(Box<Fetched>),
    NotModified(Meta),
}

impl<'a> Walk<'a> {
    /// A walk of this kind under `generation`.
    pub fn new(
        feed: &'a Arc<Feed>,
        kind: Kind,
        generation: Generation,
        cancel: &'a CancellationToken,
        pulse: &'a Pulse,
    ) -> Self {
        let walked = Walked {
            end: End::Stopped,
            pages: 0,
            records: 0,
            applied: Applied::default(),
            date: None,
            validator: None,
        };
        Self { feed, kind, generation, cancel, pulse, pending: VecDeque::new(), met: Arc::default(), empty: 0, walked }
    }

    /// Walks from `start` to an end, and waits until all of it is committed.
    pub async fn run(mut self, start: String, validator: Option<&Validator>) -> Walked {
        let mut end = self.pages(start, validator).await;
        while let Some(pending) = self.pending.pop_front() {
            if let Err(earlier) = self.settle(pending).await {
                end = earlier;
                break;
            }
        }
        self.walked.end = end;
        self.walked
    }

    async fn pages(&mut self, start: String, validator: Option<&Validator>) -> End {
        let mut asked = start;
        let mut ahead = None;
        let mut validator = validator.filter(|validator| validator.url == asked);
        loop {
            if let Err(end) = self.settle_ready().await {
                return end;
            }
            let got = tokio::select! {
                () = self.cancel.cancelled() => return End::Stopped,
                got = self.fetch(&asked, validator, &mut ahead) => got,
            };
            let step = match got {
                Ok(Got::Fetched(fetched)) => self.hand_over(asked, *fetched),
                Ok(Got::NotModified(meta)) => return self.not_modified(asked, validator, &meta),
                Err((trouble, reason)) => return End::Failed { trouble, reason, asked },
            };
            match step {
                Ok(url) => asked = url,
                Err(end) => return end,
            }
            validator = None;
            if self.kind == Kind::LookBack && self.walked.pages >= u64::from(LOOK_BACK_PAGES) {
                return End::Limit;
            }
            if self.empty >= EMPTY_PAGES && self.wait(self.feed.poll.min).await.is_err() {
                return End::Stopped;
            }
        }
    }

    async fn wait(&self, time: Duration) -> Result<(), End> {
        self.pulse.within(time);
        tokio::select! {
            () = self.cancel.cancelled() => Err(End::Stopped),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// The page, asked for now or already under way; the next one is begun before this one is decoded.
    async fn fetch(
        &self,
        asked: &str,
        validator: Option<&Validator>,
        ahead: &mut Option<Ahead>,
    ) -> Result<Got, (Trouble, String)> {
        self.pulse.within(self.feed.page_timeout);
        let begun = match ahead {
            Some(begun) => begun.page(asked, self.pulse).await,
            None => None,
        };
        let downloaded = match begun {
            Some(downloaded) => downloaded,
            None => {
                *ahead = None;
                let looks_at_the_end = matches!(self.kind, Kind::Poll { level: true }) && self.walked.pages == 0;
                let priority = if looks_at_the_end { Priority::Level } else { Priority::Refresh };
                let etag = validator.map(|validator| validator.etag.as_str());
                fetch::download(self.feed, asked, etag, priority, Some(self.pulse)).await
            }
        };
        match downloaded? {
            Downloaded::NotModified(meta) => Ok(Got::NotModified(meta)),
            Downloaded::Page(opened, meta) => {
                if ahead.is_none() && self.kind != Kind::LookBack {
                    *ahead = Ahead::begin(self.feed, &self.met, asked, &opened.bytes);
                }
                let (page, reservation) = fetch::decode(self.feed, opened).await?;
                Ok(Got::Fetched(Box::new(Fetched { page, reservation, meta })))
            }
        }
    }

    /// Hands a page to the store; where to go on, or why the walk ends.
    fn hand_over(&mut self, asked: String, fetched: Fetched) -> Result<String, End> {
        let Fetched { mut page, reservation, meta } = fetched;
        notice_content_type(&mut page, &meta);
        page.findings.extend_from_slice(&meta.findings);
        self.walked.pages += 1;
        self.walked.records += page.records();
        self.walked.date = self.walked.date.or(meta.date);
        self.empty = if page.is_empty() { self.empty + 1 } else { 0 };
        if self.empty == EMPTY_PAGES {
            page.find("empty-pages", || format!("{EMPTY_PAGES} empty pages in a row, up to {asked}"));
        }
        self.met.insert(&asked);
        let published = page.next.as_deref().map(|next| self.feed.requests.mask(next));
        let next = next::place(&asked, &mut page, published.as_deref(), self.feed.dialect);
        let origin = self.origin(&asked, &meta);
        let (step, onward) = self.judge(asked, next, &mut page, &meta);
        self.deliver(page, step, origin, Some(reservation));
        onward
    }

    /// The step that the store takes with the page, and where the walk goes. A `next` that leads back, or to a place
    /// that may not be asked, doesn't move the cursor: the page's items are taken, and the page is asked for again.
    fn judge(&mut self, asked: String, next: Next, page: &mut Page, meta: &Meta) -> (Step, Result<String, End>) {
        let stay = |level, clean| Step { asked: asked.clone(), cursor: asked.clone(), level, clean };
        let failed = |(trouble, reason)| End::Failed { trouble, reason, asked: asked.clone() };
        match next {
            Next::Level => {
                let etag = meta.etag.clone();
                self.walked.validator = etag.map(|etag| Validator { url: asked.clone(), etag });
                (stay(true, true), Err(End::Level { reason: None, fresh_for: meta.fresh_for }))
            }
            Next::AsLevel(reason) => {
                (stay(true, false), Err(End::Level { reason: Some(reason), fresh_for: meta.fresh_for }))
            }
            Next::Follow { url, .. } if self.met.contains(&url) => {
                page.find("loop", || format!("{asked} sends back to {url}"));
                let reason = format!("loop: `next` leads back to a page of this walk, {url}");
                (stay(false, false), Err(failed((Trouble::Loop, reason))))
            }
            Next::Follow { url, made } => match self.feed.requests.permit(&url) {
                Ok(()) => (Step { asked, cursor: url.clone(), level: false, clean: !made }, Ok(url)),
                Err(failure) => (stay(false, false), Err(failed(explain(&failure)))),
            },
        }
    }

    /// Only a last page that was the end by the standard's sign is asked for conditionally: its 304 is level too.
    fn not_modified(&mut self, asked: String, validator: Option<&Validator>, meta: &Meta) -> End {
        self.walked.validator = validator.cloned();
        self.walked.pages += 1;
        self.walked.date = meta.date;
        let step = Step { asked: asked.clone(), cursor: asked, level: true, clean: true };
        self.deliver(Page::default(), step, Origin::default(), None);
        End::Level { reason: None, fresh_for: meta.fresh_for }
    }

    /// Only a 200 brings a page.
    fn origin(&self, asked: &str, meta: &Meta) -> Origin {
        Origin {
            url: Some(asked.to_owned()),
            event_id: None,
            status: Some(200),
            age: meta.age,
            etag: meta.etag.as_deref().map(|etag| self.feed.requests.mask(etag)),
            date: meta.date,
            last_modified: meta.last_modified,
        }
    }

    fn deliver(&mut self, page: Page, step: Step, origin: Origin, reservation: Option<Reservation>) {
        let purpose = match self.kind {
            Kind::Poll { .. } => Purpose::Poll(step),
            Kind::Resync => Purpose::Resync(step),
            Kind::LookBack => Purpose::Again,
        };
        let mut delivery = self.feed.delivery(self.generation, Transport::Poll, page, purpose);
        delivery.origin = origin;
        delivery.follows = !self.pending.is_empty();
        delivery.held = Held(reservation.map(|reservation| Box::new(reservation) as _));
        self.pending.push_back(self.feed.shared.store.apply(delivery));
    }

    /// Takes in what has been committed; waits where too much is not.
    async fn settle_ready(&mut self) -> Result<(), End> {
        while let Some(mut pending) = self.pending.pop_front() {
            match pending.try_recv() {
                Ok(result) => self.tally(result)?,
                Err(oneshot::error::TryRecvError::Closed) => return Err(End::Stopped),
                Err(oneshot::error::TryRecvError::Empty) if self.pending.len() + 1 >= WINDOW => {
                    self.settle(pending).await?;
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.pending.push_front(pending);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn settle(&mut self, pending: Pending) -> Result<(), End> {
        // A full disk may keep the writer for as long as it likes: that is told elsewhere, and is no hang of this loop.
        self.pulse.rest();
        match pending.await {
            Ok(result) => self.tally(result),
            Err(_) => Err(End::Stopped),
        }
    }

    fn tally(&mut self, result: Result<Applied, StoreError>) -> Result<(), End> {
        let applied = match result {
            Ok(applied) => applied,
            Err(StoreError::Closed) => return Err(End::Stopped),
            Err(error) => {
                let reason = format!("store: {error}");
                return Err(End::Failed { trouble: Trouble::Page, reason, asked: String::new() });
            }
        };
        if applied.verdict != Verdict::Taken {
            return Err(End::Overtaken);
        }
        let counts = &self.feed.counts;
        Counts::add(&counts.pages, 1);
        counts.applied(Transport::Poll, &applied);
        self.walked.applied.add(applied);
        Ok(())
    }
}

impl Hold for Reservation {
    fn release(self: Box<Self>, text: Text) {
        if let Some(text) = text.into_last() {
            self.recycle(text.into_bytes());
        }
    }
}

/// What the rules need to know of a failure, and its words.
pub fn explain(failure: &Failure) -> (Trouble, String) {
    let trouble = match failure {
        Failure::Status { code, retry_after, .. } => Trouble::Status { code: *code, retry_after: *retry_after },
        Failure::ConnectionRefused(_) => Trouble::ConnectionRefused,
        Failure::Connect(_) | Failure::Timeout(_) | Failure::Broken(_) => Trouble::Network,
        Failure::TooLarge(_) | Failure::Coding(_) | Failure::UnaskedNotModified => Trouble::Page,
        Failure::Tls(_)
        | Failure::ForeignNext(_)
        | Failure::ForeignRedirect(_)
        | Failure::PrivateAddress(_)
        | Failure::Redirect(_)
        | Failure::Url(_)
        | Failure::Settings(_) => Trouble::Operator,
    };
    (trouble, failure.to_string())
}

fn notice_content_type(page: &mut Page, meta: &Meta) {
    let sent = meta.content_type.as_deref().unwrap_or("");
    let media = sent.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if media != "application/json" && !media.ends_with("+json") {
        page.findings.push(Finding { rule: "content-type", detail: format!("a page was sent as {sent:?}"), count: 1 });
    }
}
