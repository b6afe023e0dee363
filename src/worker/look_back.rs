//! The look-back loop: while the feed is level, regularly walks it again from where its cursor was a while ago. It
//! finds items that the publisher committed behind the cursor, and a feed that went back. It runs beside polling and
//! moves no cursor.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::EndEvidence;
use super::walk::{FeedWalk, LOOK_BACK_PAGES, WalkEnd, WalkKind, WalkReport};
use super::{FeedRuntime, jitter};
use crate::mode::{self, FailureHistory, FailureKind};
use crate::schedule;
use crate::store::feeds::StoredFeed;
use crate::store::{Millis, StoreError, millis, now};

/// One feed's look-backs.
pub struct LookBackLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    cancel: &'a CancellationToken,
    /// When the next look-back is due.
    due_at: Instant,
    failures: u32,
    /// 503s in a row without `Retry-After`.
    unavailable: u32,
}

impl<'a> LookBackLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, cancel: &'a CancellationToken) -> Self {
        Self { feed, cancel, due_at: Instant::now(), failures: 0, unavailable: 0 }
    }

    /// Runs until cancelled.
    pub async fn run(mut self, stored: &StoredFeed) {
        let lookback = self.feed.poll.lookback;
        let next = stored.looked_back_at.map(|at| at.saturating_add(millis(lookback)));
        if stored.look_back_due == 0 {
            let spread = lookback.mul_f64(0.25 * jitter());
            self.due_at += schedule::remaining_wait(next, now(), lookback).max(spread);
        }
        let heartbeat = &self.feed.heartbeats.look_back;
        let mut level = self.feed.level.subscribe();
        loop {
            heartbeat.suspend();
            tokio::select! {
                () = self.cancel.cancelled() => return,
                level_seen = async { level.wait_for(|level| *level).await.is_ok() } => if !level_seen { return },
            }
            heartbeat.expect_within(self.due_at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep_until(self.due_at) => self.run_once().await,
                () = self.feed.look_back_now.notified() => self.due_at = Instant::now(),
                _ = async { level.wait_for(|level| !*level).await.is_ok() } => {}
            }
        }
    }

    /// One look-back. A failed one is tried again from as far back: the time between two completed look-backs is always
    /// covered twice.
    async fn run_once(&mut self) {
        let feed = self.feed;
        let store = &feed.context.store;
        let began = now();
        self.due_at = Instant::now() + feed.poll.lookback.mul_f64(1.0 + 0.05 * jitter());
        let stored = match store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(error) => return self.handle_store_error(error).await,
        };
        let lookback = millis(feed.poll.lookback);
        let due = stored.looked_back_at.map_or(began, |at| at.saturating_add(lookback)).min(began);
        let before = due.saturating_sub(lookback.saturating_mul(2));
        // A young feed has no position old enough: the look-back begins as far back as it may. Items that were
        // committed late while the feed was read for the first time would be found by no later look-back.
        let position = match store.look_back_start(feed.id, before, LOOK_BACK_PAGES).await {
            Ok(Some(position)) => position,
            Ok(None) => return,
            Err(error) => return self.handle_store_error(error).await,
        };
        let walk = FeedWalk::new(feed, WalkKind::LookBack, stored.generation, self.cancel, &feed.heartbeats.look_back);
        let report = walk.run(position.clone(), None, EndEvidence::default()).await;
        self.report_late_items(&report, began, &position).await;
        match report.end {
            WalkEnd::Level { .. } if report.records == 0 => self.mark_went_back(&position).await,
            WalkEnd::Level { .. } | WalkEnd::PageLimit => {}
            WalkEnd::Superseded | WalkEnd::Stopped => return,
            WalkEnd::Failed { kind, reason, url } => {
                let is_dead = url == position && matches!(kind, FailureKind::Status { code: 404 | 410, .. });
                return self.handle_failure(kind, &reason, Some(position).filter(|_| is_dead)).await;
            }
        }
        (self.failures, self.unavailable) = (0, 0);
        feed.log_store_error(store.record_look_back(feed.id, began, stored.look_back_due).await);
    }

    async fn report_late_items(&self, report: &WalkReport, began: Millis, position: &str) {
        let (feed, written) = (self.feed, report.applied.written());
        if written > 0 {
            tracing::info!(feed = %feed.name, written, "a look-back found late items");
            let detail = format!("{written} items that had not come at the cursor, found from {position}");
            feed.log_store_error(feed.context.store.record_event(Some(feed.id), began, "late-items", &detail).await);
        }
    }

    /// `dead_position`: where the look-back began, if the publisher no longer knows that position.
    async fn handle_failure(&mut self, kind: FailureKind, reason: &str, dead_position: Option<String>) {
        let feed = self.feed;
        if let Some(position) = dead_position {
            feed.log_store_error(feed.context.store.drop_positions_until(feed.id, position).await);
        }
        self.failures = self.failures.saturating_add(1);
        self.unavailable = if kind.is_unavailable() { self.unavailable + 1 } else { 0 };
        let (failures, unavailable) = (self.failures, self.unavailable);
        let policy = mode::classify(
            kind,
            &FailureHistory { failures, unavailable, ever_answered: true, ..FailureHistory::default() },
        );
        if policy.throttle_host {
            feed.source.host.throttle();
        }
        // The long waits, for an operator or of a gone feed, are polling's alone.
        let wait = if policy.sets_not_before { policy.wait } else { schedule::RetryWait::Backoff };
        let wait = schedule::wait_after_failure(&feed.retry, wait, failures, jitter());
        if policy.sets_not_before {
            feed.set_not_before(wait).await;
        }
        self.due_at = Instant::now() + if policy.sets_not_before { wait } else { wait.min(feed.poll.lookback) };
        if failures.is_power_of_two() {
            tracing::info!(feed = %feed.name, reason, failures, "a look-back failed and is tried again");
        }
    }

    async fn handle_store_error(&mut self, error: StoreError) {
        if !matches!(error, StoreError::Closed) {
            self.handle_failure(FailureKind::Store, &format!("store: {error}"), None).await;
        }
    }

    async fn mark_went_back(&self, position: &str) {
        let reason = format!(
            "went-back: it sends nothing from {position}, after which live items were polled; if it was restored or \
             replaced: feedmirror resync --trust-source"
        );
        tracing::warn!(feed = %self.feed.name, reason, "the publisher contradicts the mirror");
        self.feed.log_store_error(self.feed.context.store.mark_suspect(self.feed.id, now(), reason).await);
    }
}
