//! Following `next` from a position to the end, page by page: the next page is fetched while this one is written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::reader::{Answered, EndMemory, Manner, Onward, PageReader, Part, Place, ReadPage, Validator};
use super::{Counts, Feed, Pulse};
use crate::feed::{Generation, Page, Seq, Text, Transport};
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
    /// What is known of the feed's end, for the next walk.
    pub memory: EndMemory,
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

/// A delivery on its way into the store.
struct Pending {
    /// Whether a page ends with it.
    ends_page: bool,
    answer: oneshot::Receiver<Result<Applied, StoreError>>,
}

/// A walk under way.
pub struct Walk<'a> {
    feed: &'a Arc<Feed>,
    kind: Kind,
    generation: Generation,
    stood: Seq,
    cancel: &'a CancellationToken,
    pulse: &'a Pulse,
    pending: VecDeque<Pending>,
    walked: Walked,
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
            memory: EndMemory::default(),
        };
        let (stood, pending) = (Seq::MAX, VecDeque::new());
        Self { feed, kind, generation, stood, cancel, pulse, pending, walked }
    }

    /// That the mirror's last change number was this when the publisher was asked first.
    pub fn asked_at(self, seq: Seq) -> Self {
        Self { stood: seq, ..self }
    }

    /// Walks from `start` to an end, and waits until all of it is committed.
    pub async fn run(mut self, start: String, validator: Option<Validator>, memory: EndMemory) -> Walked {
        let first = if self.kind == (Kind::Poll { level: true }) { Priority::Level } else { Priority::Refresh };
        let manner = Manner { first, ahead: self.kind != Kind::LookBack };
        let mut reader = PageReader::new(&self.feed.source, manner, start, validator.clone(), memory, Some(self.pulse));
        let mut end = self.pages(&mut reader, validator).await;
        while let Some(pending) = self.pending.pop_front() {
            if let Err(earlier) = self.settle(pending).await {
                end = earlier;
                break;
            }
        }
        self.walked.end = end;
        self.walked.memory = reader.into_memory();
        self.walked
    }

    async fn pages(&mut self, reader: &mut PageReader<'a>, validator: Option<Validator>) -> End {
        loop {
            if let Err(end) = self.settle_ready().await {
                return end;
            }
            let cancel = self.cancel;
            let url = reader.place().unwrap_or_default().to_owned();
            let answered = tokio::select! {
                () = cancel.cancelled() => return End::Stopped,
                answered = reader.next() => answered,
            };
            let mut read = match answered {
                Ok(Some(Answered::Page(read))) => read,
                Ok(Some(Answered::NotModified(meta))) => return self.not_modified(url, validator, &meta),
                Ok(None) => return End::Stopped,
                Err((trouble, reason)) => return End::Failed { trouble, reason, asked: url },
            };
            self.walked.pages += 1;
            self.walked.date = self.walked.date.or(read.meta.date);
            if let Err(end) = self.hand_over(reader, &mut read).await {
                return end;
            }
            if self.kind == Kind::LookBack && self.walked.pages >= u64::from(LOOK_BACK_PAGES) {
                return End::Limit;
            }
        }
    }

    /// Hands a page to the store, part by part; the cursor, and whatever else the page says as a whole, goes with the
    /// last part, so that a kill in between reads the page again.
    async fn hand_over(&mut self, reader: &mut PageReader<'a>, read: &mut ReadPage) -> Result<(), End> {
        loop {
            let part = match reader.part(read).await {
                Ok(Some(part)) => part,
                Ok(None) => return Ok(()),
                Err((trouble, reason)) => return Err(End::Failed { trouble, reason, asked: read.url.clone() }),
            };
            let Part { page, reservation, place } = part;
            self.walked.records += page.records();
            let (url, origin) = (read.url.clone(), self.origin(&read.url, &read.meta));
            let Some(place) = place else {
                let step = Step { asked: url.clone(), cursor: url, level: false, clean: true };
                self.deliver(page, step, origin, reservation, false);
                self.settle_ready().await?;
                continue;
            };
            let (level, cursor) = (matches!(place.onward, Onward::Level | Onward::AsLevel(_)), place.cursor.clone());
            let step = Step { asked: url.clone(), cursor, level, clean: place.clean };
            self.deliver(page, step, origin, reservation, true);
            return self.end(url, place, &read.meta).map_or(Ok(()), Err);
        }
    }

    /// Why the walk ends with this page, if it does.
    fn end(&mut self, url: String, place: Place, meta: &Meta) -> Option<End> {
        match place.onward {
            Onward::Page => None,
            Onward::Level => {
                let etag = meta.etag.clone();
                self.walked.validator = etag.map(|etag| Validator { url, etag });
                Some(End::Level { reason: None, fresh_for: meta.fresh_for })
            }
            Onward::AsLevel(reason) => Some(End::Level { reason: Some(reason), fresh_for: meta.fresh_for }),
            Onward::Failed(trouble, reason) => Some(End::Failed { trouble, reason, asked: url }),
        }
    }

    /// Only a last page that was the end by the standard's sign is asked for conditionally: its 304 is level too.
    fn not_modified(&mut self, asked: String, validator: Option<Validator>, meta: &Meta) -> End {
        self.walked.validator = validator;
        self.walked.pages += 1;
        self.walked.date = meta.date;
        let step = Step { asked: asked.clone(), cursor: asked, level: true, clean: true };
        self.deliver(Page::default(), step, Origin::default(), None, false);
        End::Level { reason: None, fresh_for: meta.fresh_for }
    }

    /// Only a 200 brings a page.
    fn origin(&self, asked: &str, meta: &Meta) -> Origin {
        Origin {
            url: Some(asked.to_owned()),
            event_id: None,
            status: Some(200),
            age: meta.age,
            etag: meta.etag.as_deref().map(|etag| self.feed.source.requests.mask(etag)),
            date: meta.date,
            last_modified: meta.last_modified,
        }
    }

    fn deliver(
        &mut self,
        page: Page,
        step: Step,
        origin: Origin,
        reservation: Option<Arc<Reservation>>,
        ends_page: bool,
    ) {
        let purpose = match self.kind {
            Kind::Poll { .. } => Purpose::Poll(step),
            Kind::Resync => Purpose::Resync(step),
            Kind::LookBack => Purpose::Again,
        };
        let mut delivery = self.feed.delivery(self.generation, Transport::Poll, page, purpose);
        delivery.origin = origin;
        delivery.stood = self.stood;
        delivery.follows = !self.pending.is_empty();
        delivery.held = Held(reservation.map(|reservation| Box::new(reservation) as _));
        let answer = self.feed.shared.store.apply(delivery);
        self.pending.push_back(Pending { ends_page, answer });
    }

    /// Takes in what has been committed; waits where too much is not.
    async fn settle_ready(&mut self) -> Result<(), End> {
        while let Some(mut pending) = self.pending.pop_front() {
            match pending.answer.try_recv() {
                Ok(result) => self.tally(result, pending.ends_page)?,
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
        match pending.answer.await {
            Ok(result) => self.tally(result, pending.ends_page),
            Err(_) => Err(End::Stopped),
        }
    }

    fn tally(&mut self, result: Result<Applied, StoreError>, ends_page: bool) -> Result<(), End> {
        let applied = match result {
            Ok(applied) => applied,
            Err(StoreError::Closed) => return Err(End::Stopped),
            Err(error) => {
                let reason = format!("store: {error}");
                return Err(End::Failed { trouble: Trouble::Store, reason, asked: String::new() });
            }
        };
        if applied.verdict != Verdict::Taken {
            return Err(End::Overtaken);
        }
        let counts = &self.feed.source.counts;
        Counts::add(&counts.pages, u64::from(ends_page));
        counts.applied(Transport::Poll, &applied);
        self.walked.applied.add(applied);
        Ok(())
    }
}

impl Hold for Arc<Reservation> {
    fn release(self: Box<Self>, text: Text) {
        if let (Ok(reservation), Some(text)) = (Arc::try_unwrap(*self), text.into_last()) {
            reservation.recycle(text.into_bytes());
        }
    }
}

/// What the rules need to know of a failure, and its words.
pub fn explain(failure: &Failure) -> (Trouble, String) {
    let trouble = match failure {
        Failure::Status { code, retry_after, .. } => Trouble::Status { code: *code, retry_after: *retry_after },
        Failure::ConnectionRefused(_) => Trouble::ConnectionRefused,
        Failure::Connect(_) | Failure::Timeout(_) | Failure::Broken(_) | Failure::GaveWay(_) => Trouble::Network,
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
