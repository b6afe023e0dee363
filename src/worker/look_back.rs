//! The look-back loop: while the feed is level, walks it again now and then from where its cursor was a while ago. It runs
//! beside polling and moves no cursor: late commits behind the cursor arrive, and a feed that went back is noticed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::EndMemory;
use super::walk::{End, Kind, LOOK_BACK_PAGES, Walk, Walked};
use super::{Feed, LOOK_BACK_PULSE, chance};
use crate::mode::{self, History, Trouble};
use crate::schedule;
use crate::store::feeds::StoredFeed;
use crate::store::{Millis, StoreError, now};

/// One feed's look-backs.
pub struct LookBackLoop<'a> {
    feed: &'a Arc<Feed>,
    cancel: &'a CancellationToken,
    /// When the next one is due.
    at: Instant,
    failures: u32,
    /// 503s in a row without a word when to come again.
    unavailable: u32,
}

impl<'a> LookBackLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<Feed>, cancel: &'a CancellationToken) -> Self {
        Self { feed, cancel, at: Instant::now(), failures: 0, unavailable: 0 }
    }

    /// Until cancelled.
    pub async fn run(mut self, stored: &StoredFeed) {
        let lookback = self.feed.poll.lookback;
        let next = stored.looked_back_at.map(|at| at.saturating_add(millis(lookback)));
        if stored.look_back_due == 0 {
            let spread = lookback.mul_f64(0.25 * chance());
            self.at += schedule::left(next, now(), lookback).max(spread);
        }
        let pulse = &self.feed.pulses[LOOK_BACK_PULSE];
        let mut level = self.feed.level.subscribe();
        loop {
            pulse.rest();
            tokio::select! {
                () = self.cancel.cancelled() => return,
                seen = async { level.wait_for(|level| *level).await.is_ok() } => if !seen { return },
            }
            pulse.within(self.at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep_until(self.at) => self.turn().await,
                () = self.feed.look_back_now.notified() => self.at = Instant::now(),
                _ = async { level.wait_for(|level| !*level).await.is_ok() } => {}
            }
        }
    }

    /// One that fails is tried again, from as far back as the first: the time between two that came to their end is
    /// always covered twice.
    async fn turn(&mut self) {
        let feed = self.feed;
        let store = &feed.shared.store;
        let began = now();
        self.at = Instant::now() + feed.poll.lookback.mul_f64(1.0 + 0.05 * chance());
        let stored = match store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(error) => return self.store_failed(error).await,
        };
        let lookback = millis(feed.poll.lookback);
        let due = stored.looked_back_at.map_or(began, |at| at.saturating_add(lookback)).min(began);
        let before = due.saturating_sub(lookback.saturating_mul(2));
        // Of a young feed no position is old enough: it is looked at as far back as a look-back reaches. What was
        // committed late while it was read the first time would be found by none of the later ones.
        let position = match store.position(feed.id, before, LOOK_BACK_PAGES).await {
            Ok(Some(position)) => position,
            Ok(None) => return,
            Err(error) => return self.store_failed(error).await,
        };
        let walk = Walk::new(feed, Kind::LookBack, stored.generation, self.cancel, &feed.pulses[LOOK_BACK_PULSE]);
        let walked = walk.run(position.clone(), None, EndMemory::default()).await;
        self.tell_found(&walked, began, &position).await;
        match walked.end {
            End::Level { .. } if walked.records == 0 => self.went_back(&position).await,
            End::Level { .. } | End::Limit => {}
            End::Overtaken | End::Stopped => return,
            End::Failed { trouble, reason, asked } => {
                let dead = asked == position && matches!(trouble, Trouble::Status { code: 404 | 410, .. });
                return self.failed(trouble, &reason, Some(position).filter(|_| dead)).await;
            }
        }
        (self.failures, self.unavailable) = (0, 0);
        feed.told(store.looked_back(feed.id, began, stored.look_back_due).await);
    }

    async fn tell_found(&self, walked: &Walked, began: Millis, position: &str) {
        let (feed, written) = (self.feed, walked.applied.written());
        if written > 0 {
            tracing::info!(feed = %feed.name, written, "a look-back found late items");
            let found = format!("{written} items that had not come at the cursor, found from {position}");
            feed.told(feed.shared.store.event(Some(feed.id), began, "late-items", &found).await);
        }
    }

    /// `dead`: the position that it began at, if the publisher no longer knows it.
    async fn failed(&mut self, trouble: Trouble, reason: &str, dead: Option<String>) {
        let feed = self.feed;
        if let Some(position) = dead {
            feed.told(feed.shared.store.forget_position(feed.id, position).await);
        }
        self.failures = self.failures.saturating_add(1);
        self.unavailable = if trouble.is_unavailable() { self.unavailable + 1 } else { 0 };
        let (failures, unavailable) = (self.failures, self.unavailable);
        let ruling = mode::judge(trouble, &History { failures, unavailable, answered: true, ..History::default() });
        if ruling.slow_host {
            feed.source.host.slow_down();
        }
        // What waits for an operator, or for a feed that is gone, is polling's to say.
        let wait = if ruling.holds { ruling.wait } else { schedule::Wait::Backoff };
        let wait = schedule::after_failure(&feed.retry, wait, failures, chance());
        if ruling.holds {
            feed.hold(wait).await;
        }
        self.at = Instant::now() + if ruling.holds { wait } else { wait.min(feed.poll.lookback) };
        if failures.is_power_of_two() {
            tracing::info!(feed = %feed.name, reason, failures, "a look-back failed and is tried again");
        }
    }

    async fn store_failed(&mut self, error: StoreError) {
        if !matches!(error, StoreError::Closed) {
            self.failed(Trouble::Store, &format!("store: {error}"), None).await;
        }
    }

    async fn went_back(&self, position: &str) {
        let reason = format!(
            "went-back: it sends nothing from {position}, after which live items were polled; if it was restored or \
             replaced: feedmirror resync --trust-source"
        );
        tracing::warn!(feed = %self.feed.name, reason, "the publisher contradicts the mirror");
        self.feed.told(self.feed.shared.store.suspect(self.feed.id, now(), reason).await);
    }
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}
