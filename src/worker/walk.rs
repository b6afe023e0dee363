//! A walk: follows `next` from a position to the end, page by page, and hands the pages to the store; the next page is
//! fetched while this one is written. Which page comes next is the reader's decision.

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

/// The kinds of walks, by the cursor that they move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkKind {
    /// The poll cursor.
    Poll {
        /// Whether the feed's end was seen before.
        level: bool,
    },
    /// The resync's own cursor.
    Resync,
    /// No cursor.
    LookBack,
}

/// How a walk ended, and what it received.
#[derive(Debug)]
pub struct WalkReport {
    /// Why it ended.
    pub end: WalkEnd,
    /// Pages received, the not modified ones included.
    pub pages: u64,
    pub records: u64,
    /// What the store did with the records.
    pub applied: Applied,
    /// The publisher's clock, milliseconds since 1970 UTC.
    pub publisher_time_ms: Option<i64>,
    /// What the last page can be requested with conditionally.
    pub validator: Option<Validator>,
    /// What was found out about the feed's end, for the next walk.
    pub end_evidence: EndEvidence,
}

/// Why a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// At the end of the feed.
    Level {
        /// Why the end was only assumed: the fixed word of the finding.
        reason: Option<&'static str>,
        /// How long the last page is fresh.
        fresh_for: Option<Duration>,
    },
    /// The stored cursor or generation is no longer the walk's: begin again from what is stored.
    Superseded,
    /// The walk has read as many pages as it may.
    PageLimit,
    /// Cancelled, or the store has stopped.
    Stopped,
    /// A page could not be fetched, decoded or committed.
    Failed {
        /// What kind of failure it is.
        kind: FailureKind,
        /// A text for the operator, beginning with a fixed word.
        reason: String,
        /// The page's URL; empty for a failure of the store.
        url: String,
    },
}

impl WalkReport {
    /// Whether a page was received that did not only lead back to an earlier one: then the failures before are over.
    pub fn made_progress(&self) -> bool {
        self.pages > 0 && !matches!(self.end, WalkEnd::Failed { kind: FailureKind::Loop, .. })
    }
}

/// A delivery that is not committed yet.
struct PendingDelivery {
    /// Whether the delivery is the last part of a page.
    ends_page: bool,
    answer: oneshot::Receiver<Result<Applied, StoreError>>,
}

/// A walk in progress.
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
        heartbeat: &'a Heartbeat,
    ) -> Self {
        let walk_report = WalkReport {
            end: WalkEnd::Stopped,
            pages: 0,
            records: 0,
            applied: Applied::default(),
            publisher_time_ms: None,
            validator: None,
            end_evidence: EndEvidence::default(),
        };
        let (seq_at_start, pending) = (Seq::MAX, VecDeque::new());
        Self { feed, kind, generation, seq_at_start, cancel, heartbeat, pending, walk_report }
    }

    /// Sets the mirror's last change number at the time of the walk's first request.
    pub fn with_seq_at_start(self, seq: Seq) -> Self {
        Self { seq_at_start: seq, ..self }
    }

    /// Walks from `start` until the walk ends, and waits until all its pages are committed.
    pub async fn run(mut self, start: String, validator: Option<Validator>, end_evidence: EndEvidence) -> WalkReport {
        let first_priority =
            if self.kind == (WalkKind::Poll { level: true }) { Priority::Level } else { Priority::Refresh };
        let read_options = ReadOptions { first_priority, read_ahead: self.kind != WalkKind::LookBack };
        let mut reader = PageReader::new(
            &self.feed.source,
            read_options,
            start,
            validator.clone(),
            end_evidence,
            Some(self.heartbeat),
        );
        let mut end = self.read_pages(&mut reader, validator).await;
        while let Some(pending) = self.pending.pop_front() {
            if let Err(commit_end) = self.record_commit(pending).await {
                end = commit_end;
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
            let answer = tokio::select! {
                () = cancel.cancelled() => return WalkEnd::Stopped,
                answer = reader.next() => answer,
            };
            let mut fetched = match answer {
                Ok(Some(ReadAnswer::Page(fetched))) => fetched,
                Ok(Some(ReadAnswer::NotModified(meta))) => return self.not_modified(url, validator, &meta),
                Ok(None) => return WalkEnd::Stopped,
                Err((kind, reason)) => return WalkEnd::Failed { kind, reason, url },
            };
            self.walk_report.pages += 1;
            self.walk_report.publisher_time_ms = self.walk_report.publisher_time_ms.or(fetched.meta.date);
            if let Err(end) = self.submit_page(reader, &mut fetched).await {
                return end;
            }
            if self.kind == WalkKind::LookBack && self.walk_report.pages >= u64::from(LOOK_BACK_PAGES) {
                return WalkEnd::PageLimit;
            }
        }
    }

    /// Hands a page to the store, part by part; the cursor, and all else that is known of the page as a whole, goes
    /// with the last part, so that after a kill in between the page is read again.
    async fn submit_page(&mut self, reader: &mut PageReader<'a>, fetched: &mut FetchedPage) -> Result<(), WalkEnd> {
        loop {
            let part = match reader.next_part(fetched).await {
                Ok(Some(part)) => part,
                Ok(None) => return Ok(()),
                Err((kind, reason)) => return Err(WalkEnd::Failed { kind, reason, url: fetched.url.clone() }),
            };
            let PagePart { page, reservation, page_position } = part;
            self.walk_report.records += page.record_count();
            let (url, provenance) = (fetched.url.clone(), self.origin(&fetched.url, &fetched.meta));
            let Some(page_position) = page_position else {
                let step = PageStep { from_cursor: url.clone(), next_cursor: url, level: false, clean: true };
                self.submit_delivery(page, step, provenance, reservation, false);
                self.record_ready_commits().await?;
                continue;
            };
            let (level, cursor) = (
                matches!(page_position.next_step, NextStep::Level | NextStep::AssumedLevel(_)),
                page_position.cursor.clone(),
            );
            let step = PageStep { from_cursor: url.clone(), next_cursor: cursor, level, clean: page_position.clean };
            self.submit_delivery(page, step, provenance, reservation, true);
            return self.end_after_page(url, page_position, &fetched.meta).map_or(Ok(()), Err);
        }
    }

    /// Why the walk ends with this page, if it does.
    fn end_after_page(&mut self, url: String, page_position: PagePosition, meta: &ResponseMeta) -> Option<WalkEnd> {
        match page_position.next_step {
            NextStep::Page => None,
            NextStep::Level => {
                let etag = meta.etag.clone();
                self.walk_report.validator = etag.map(|etag| Validator { url, etag });
                Some(WalkEnd::Level { reason: None, fresh_for: meta.fresh_for })
            }
            NextStep::AssumedLevel(reason) => Some(WalkEnd::Level { reason: Some(reason), fresh_for: meta.fresh_for }),
            NextStep::Failed(kind, reason) => Some(WalkEnd::Failed { kind, reason, url }),
        }
    }

    /// Only a last page that was the end by the standard's rule is requested conditionally: its 304 is level too.
    fn not_modified(&mut self, url: String, validator: Option<Validator>, meta: &ResponseMeta) -> WalkEnd {
        self.walk_report.validator = validator;
        self.walk_report.pages += 1;
        self.walk_report.publisher_time_ms = meta.date;
        let step = PageStep { from_cursor: url.clone(), next_cursor: url, level: true, clean: true };
        self.submit_delivery(Page::default(), step, Provenance::default(), None, false);
        WalkEnd::Level { reason: None, fresh_for: meta.fresh_for }
    }

    /// Where a page came from. Only a 200 has a page.
    fn origin(&self, url: &str, meta: &ResponseMeta) -> Provenance {
        Provenance {
            url: Some(url.to_owned()),
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
        provenance: Provenance,
        reservation: Option<Arc<Reservation>>,
        ends_page: bool,
    ) {
        let purpose = match self.kind {
            WalkKind::Poll { .. } => Purpose::Poll(step),
            WalkKind::Resync => Purpose::Resync(step),
            WalkKind::LookBack => Purpose::Reread,
        };
        let mut delivery = self.feed.build_delivery(self.generation, Transport::Poll, page, purpose);
        delivery.provenance = provenance;
        delivery.start_seq = self.seq_at_start;
        delivery.keep_order = !self.pending.is_empty();
        delivery.release_on_commit = ReleaseOnCommit(reservation.map(|reservation| Box::new(reservation) as _));
        let answer = self.feed.context.store.apply(delivery);
        self.pending.push_back(PendingDelivery { ends_page, answer });
    }

    /// Records the deliveries that are committed; waits where too many are not.
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
        // A full disk may keep the writer from writing for any time: that is reported elsewhere, and is no hang of this
        // loop.
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
                return Err(WalkEnd::Failed { kind: FailureKind::Store, reason, url: String::new() });
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

/// What kind of failure it is, and its text.
pub fn describe_failure(failure: &HttpFailure) -> (FailureKind, String) {
    let kind = match failure {
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
    (kind, failure.to_string())
}
