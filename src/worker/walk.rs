//! Following `next` from a position to the end, page by page: the next page is fetched while this one is written.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::reader::{
    EndEvidence, FetchedPage, NextStep, PagePart, PagePosition, PageReader, ReadAnswer, ReadOptions, Validator,
};
use super::{FeedCounters, FeedRuntime, Heartbeat};
use crate::feed::{BodyText, Generation, Page, Seq, Transport};
use crate::mode::FailureKind;
use crate::source::budget::Reservation;
use crate::source::headers::ResponseMeta;
use crate::source::host_limiter::Priority;
use crate::source::http::HttpFailure;
use crate::store::StoreError;
use crate::store::apply::{Applied, DeliveryVerdict, PageStep, Provenance, Purpose, Release, ReleaseOnCommit};

/// Pages handed to the store and not yet committed.
const MAX_PENDING_DELIVERIES: usize = 12;
/// A look-back reads at most this many pages.
pub(super) const LOOK_BACK_PAGES: u32 = 20;

/// Which cursor a walk moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkKind {
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
pub struct WalkReport {
    /// Why it ended.
    pub end: WalkEnd,
    /// Pages that came.
    pub pages: u64,
    /// Records read.
    pub records: u64,
    /// What became of them.
    pub applied: Applied,
    /// The publisher's clock, milliseconds since 1970 UTC.
    pub publisher_time_ms: Option<i64>,
    /// How to ask for the last page again.
    pub validator: Option<Validator>,
    /// What is known of the feed's end, for the next walk.
    pub end_evidence: EndEvidence,
}

/// Why a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// The end of the feed.
    Level {
        /// Why it was only taken as the end.
        reason: Option<&'static str>,
        /// How long the answer is fresh.
        fresh_for: Option<Duration>,
    },
    /// The stored cursor or generation is no longer the walk's own: begin again from what is stored.
    Superseded,
    /// As many pages as allowed.
    PageLimit,
    /// Cancelled, or the store has stopped.
    Stopped,
    /// A page could not be had.
    Failed {
        /// What the rules need to know.
        trouble: FailureKind,
        /// In words, beginning with a fixed one.
        reason: String,
        /// Where it was asked for.
        url: String,
    },
}

impl WalkReport {
    /// Whether a page came, and not only to lead round in a circle: then whatever failed before has healed.
    pub fn made_progress(&self) -> bool {
        self.pages > 0 && !matches!(self.end, WalkEnd::Failed { trouble: FailureKind::Loop, .. })
    }
}

/// A delivery on its way into the store.
struct PendingDelivery {
    /// Whether a page ends with it.
    ends_page: bool,
    answer: oneshot::Receiver<Result<Applied, StoreError>>,
}

/// A walk under way.
pub struct FeedWalk<'a> {
    feed: &'a Arc<FeedRuntime>,
    kind: WalkKind,
    generation: Generation,
    seq_at_start: Seq,
    cancel: &'a CancellationToken,
    heartbeat: &'a Heartbeat,
    pending: VecDeque<PendingDelivery>,
    walk_report: WalkReport,
}

impl<'a> FeedWalk<'a> {
    /// A walk of this kind under `generation`.
    pub fn new(
        feed: &'a Arc<FeedRuntime>,
        kind: WalkKind,
        generation: Generation,
        cancel: &'a CancellationToken,
        pulse: &'a Heartbeat,
    ) -> Self {
        let walked = WalkReport {
            end: WalkEnd::Stopped,
            pages: 0,
            records: 0,
            applied: Applied::default(),
            publisher_time_ms: None,
            validator: None,
            end_evidence: EndEvidence::default(),
        };
        let (stood, pending) = (Seq::MAX, VecDeque::new());
        Self { feed, kind, generation, seq_at_start: stood, cancel, heartbeat: pulse, pending, walk_report: walked }
    }

    /// That the mirror's last change number was this when the publisher was asked first.
    pub fn with_seq_at_start(self, seq: Seq) -> Self {
        Self { seq_at_start: seq, ..self }
    }

    /// Walks from `start` to an end, and waits until all of it is committed.
    pub async fn run(mut self, start: String, validator: Option<Validator>, memory: EndEvidence) -> WalkReport {
        let first = if self.kind == (WalkKind::Poll { level: true }) { Priority::Level } else { Priority::Refresh };
        let manner = ReadOptions { first_priority: first, read_ahead: self.kind != WalkKind::LookBack };
        let mut reader =
            PageReader::new(&self.feed.source, manner, start, validator.clone(), memory, Some(self.heartbeat));
        let mut end = self.read_pages(&mut reader, validator).await;
        while let Some(pending) = self.pending.pop_front() {
            if let Err(earlier) = self.record_commit(pending).await {
                end = earlier;
                break;
            }
        }
        self.walk_report.end = end;
        self.walk_report.end_evidence = reader.into_end_evidence();
        self.walk_report
    }

    async fn read_pages(&mut self, reader: &mut PageReader<'a>, validator: Option<Validator>) -> WalkEnd {
        loop {
            if let Err(end) = self.record_ready_commits().await {
                return end;
            }
            let cancel = self.cancel;
            let url = reader.next_url().unwrap_or_default().to_owned();
            let answered = tokio::select! {
                () = cancel.cancelled() => return WalkEnd::Stopped,
                answered = reader.next() => answered,
            };
            let mut read = match answered {
                Ok(Some(ReadAnswer::Page(read))) => read,
                Ok(Some(ReadAnswer::NotModified(meta))) => return self.not_modified(url, validator, &meta),
                Ok(None) => return WalkEnd::Stopped,
                Err((trouble, reason)) => return WalkEnd::Failed { trouble, reason, url },
            };
            self.walk_report.pages += 1;
            self.walk_report.publisher_time_ms = self.walk_report.publisher_time_ms.or(read.meta.date);
            if let Err(end) = self.submit_page(reader, &mut read).await {
                return end;
            }
            if self.kind == WalkKind::LookBack && self.walk_report.pages >= u64::from(LOOK_BACK_PAGES) {
                return WalkEnd::PageLimit;
            }
        }
    }

    /// Hands a page to the store, part by part; the cursor, and whatever else the page says as a whole, goes with the
    /// last part, so that a kill in between reads the page again.
    async fn submit_page(&mut self, reader: &mut PageReader<'a>, read: &mut FetchedPage) -> Result<(), WalkEnd> {
        loop {
            let part = match reader.next_part(read).await {
                Ok(Some(part)) => part,
                Ok(None) => return Ok(()),
                Err((trouble, reason)) => return Err(WalkEnd::Failed { trouble, reason, url: read.url.clone() }),
            };
            let PagePart { page, reservation, page_position: place } = part;
            self.walk_report.records += page.record_count();
            let (url, origin) = (read.url.clone(), self.origin(&read.url, &read.meta));
            let Some(place) = place else {
                let step = PageStep { from_cursor: url.clone(), next_cursor: url, level: false, clean: true };
                self.submit_delivery(page, step, origin, reservation, false);
                self.record_ready_commits().await?;
                continue;
            };
            let (level, cursor) =
                (matches!(place.next_step, NextStep::Level | NextStep::AssumedLevel(_)), place.cursor.clone());
            let step = PageStep { from_cursor: url.clone(), next_cursor: cursor, level, clean: place.clean };
            self.submit_delivery(page, step, origin, reservation, true);
            return self.end_after_page(url, place, &read.meta).map_or(Ok(()), Err);
        }
    }

    /// Why the walk ends with this page, if it does.
    fn end_after_page(&mut self, url: String, place: PagePosition, meta: &ResponseMeta) -> Option<WalkEnd> {
        match place.next_step {
            NextStep::Page => None,
            NextStep::Level => {
                let etag = meta.etag.clone();
                self.walk_report.validator = etag.map(|etag| Validator { url, etag });
                Some(WalkEnd::Level { reason: None, fresh_for: meta.fresh_for })
            }
            NextStep::AssumedLevel(reason) => Some(WalkEnd::Level { reason: Some(reason), fresh_for: meta.fresh_for }),
            NextStep::Failed(trouble, reason) => Some(WalkEnd::Failed { trouble, reason, url }),
        }
    }

    /// Only a last page that was the end by the standard's sign is asked for conditionally: its 304 is level too.
    fn not_modified(&mut self, asked: String, validator: Option<Validator>, meta: &ResponseMeta) -> WalkEnd {
        self.walk_report.validator = validator;
        self.walk_report.pages += 1;
        self.walk_report.publisher_time_ms = meta.date;
        let step = PageStep { from_cursor: asked.clone(), next_cursor: asked, level: true, clean: true };
        self.submit_delivery(Page::default(), step, Provenance::default(), None, false);
        WalkEnd::Level { reason: None, fresh_for: meta.fresh_for }
    }

    /// Only a 200 brings a page.
    fn origin(&self, asked: &str, meta: &ResponseMeta) -> Provenance {
        Provenance {
            url: Some(asked.to_owned()),
            event_id: None,
            status: Some(200),
            age: meta.age,
            etag: meta.etag.as_deref().map(|etag| self.feed.source.requests.mask(etag)),
            date: meta.date,
            last_modified: meta.last_modified,
        }
    }

    fn submit_delivery(
        &mut self,
        page: Page,
        step: PageStep,
        origin: Provenance,
        reservation: Option<Arc<Reservation>>,
        ends_page: bool,
    ) {
        let purpose = match self.kind {
            WalkKind::Poll { .. } => Purpose::Poll(step),
            WalkKind::Resync => Purpose::Resync(step),
            WalkKind::LookBack => Purpose::Reread,
        };
        let mut delivery = self.feed.build_delivery(self.generation, Transport::Poll, page, purpose);
        delivery.provenance = origin;
        delivery.start_seq = self.seq_at_start;
        delivery.keep_order = !self.pending.is_empty();
        delivery.release_on_commit = ReleaseOnCommit(reservation.map(|reservation| Box::new(reservation) as _));
        let answer = self.feed.context.store.apply(delivery);
        self.pending.push_back(PendingDelivery { ends_page, answer });
    }

    /// Takes in what has been committed; waits where too much is not.
    async fn record_ready_commits(&mut self) -> Result<(), WalkEnd> {
        while let Some(mut pending) = self.pending.pop_front() {
            match pending.answer.try_recv() {
                Ok(result) => self.record_applied(result, pending.ends_page)?,
                Err(oneshot::error::TryRecvError::Closed) => return Err(WalkEnd::Stopped),
                Err(oneshot::error::TryRecvError::Empty) if self.pending.len() + 1 >= MAX_PENDING_DELIVERIES => {
                    self.record_commit(pending).await?;
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    self.pending.push_front(pending);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn record_commit(&mut self, pending: PendingDelivery) -> Result<(), WalkEnd> {
        // A full disk may keep the writer for as long as it likes: that is told elsewhere, and is no hang of this loop.
        self.heartbeat.suspend();
        match pending.answer.await {
            Ok(result) => self.record_applied(result, pending.ends_page),
            Err(_) => Err(WalkEnd::Stopped),
        }
    }

    fn record_applied(&mut self, result: Result<Applied, StoreError>, ends_page: bool) -> Result<(), WalkEnd> {
        let applied = match result {
            Ok(applied) => applied,
            Err(StoreError::Closed) => return Err(WalkEnd::Stopped),
            Err(error) => {
                let reason = format!("store: {error}");
                return Err(WalkEnd::Failed { trouble: FailureKind::Store, reason, url: String::new() });
            }
        };
        if applied.verdict != DeliveryVerdict::Committed {
            return Err(WalkEnd::Superseded);
        }
        let counts = &self.feed.source.counts;
        FeedCounters::add(&counts.pages, u64::from(ends_page));
        counts.count_applied(Transport::Poll, &applied);
        self.walk_report.applied.add(applied);
        Ok(())
    }
}

impl Release for Arc<Reservation> {
    fn release(self: Box<Self>, text: BodyText) {
        if let (Ok(reservation), Some(text)) = (Arc::try_unwrap(*self), text.into_unshared()) {
            reservation.recycle(text.into_bytes());
        }
    }
}

/// What the rules need to know of a failure, and its words.
pub fn describe_failure(failure: &HttpFailure) -> (FailureKind, String) {
    let trouble = match failure {
        HttpFailure::Status { code, retry_after, .. } => FailureKind::Status { code: *code, retry_after: *retry_after },
        HttpFailure::ConnectionRefused(_) => FailureKind::ConnectionRefused,
        HttpFailure::Connect(_) | HttpFailure::Timeout(_) | HttpFailure::Broken(_) | HttpFailure::Preempted(_) => {
            FailureKind::Network
        }
        HttpFailure::TooLarge(_) | HttpFailure::Coding(_) | HttpFailure::UnaskedNotModified => FailureKind::Page,
        HttpFailure::Tls(_)
        | HttpFailure::ForeignNext(_)
        | HttpFailure::ForeignRedirect(_)
        | HttpFailure::PrivateAddress(_)
        | HttpFailure::Redirect(_)
        | HttpFailure::Url(_)
        | HttpFailure::Settings(_) => FailureKind::NeedsOperator,
    };
    (trouble, failure.to_string())
}
