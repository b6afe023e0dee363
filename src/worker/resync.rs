//! The resync loop: waits until a resync is under way, walks it beside the poll loop, and ends it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::reader::EndEvidence;
use super::walk::{FeedWalk, WalkEnd, WalkKind, WalkReport};
use super::{FeedRuntime, RESYNC_HEARTBEAT, jitter};
use crate::mode::{self, FailureHistory, FailureKind, FirstStep};
use crate::schedule::{self, RetryWait};
use crate::store::feeds::{HealthNote, StoredFeed};
use crate::store::resync::{ResyncEnd, ResyncStage, ResyncState, SourceTrust};
use crate::store::{Millis, StoreError, now};

/// How a turn of the resync loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncOutcome {
    /// There is nothing to do, or nothing without the operator.
    Idle,
    /// A walk has ended, or has to begin again; look at once what is to do now.
    Continue,
    /// It met a dead page, and begins again after this wait.
    RestartAfter(Duration),
    /// It failed; try again after this wait.
    Failed {
        /// What the rules know of it.
        trouble: FailureKind,
        /// In words.
        reason: String,
        /// Failures in a row.
        failures: u32,
        /// How long to wait.
        wait: Duration,
    },
    /// Cancelled, or the store has stopped.
    Stopped,
}

/// One feed's resync loop.
pub struct ResyncLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    cancel: &'a CancellationToken,
    failures: u32,
    /// 503s in a row without a word when to come again.
    unavailable: u32,
    /// Whether somebody wants it now, whatever it waits for.
    wanted: bool,
}

impl<'a> ResyncLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, cancel: &'a CancellationToken) -> Self {
        Self { feed, cancel, failures: 0, unavailable: 0, wanted: false }
    }

    /// Until cancelled.
    pub async fn run(mut self) {
        loop {
            let wait = match self.run_once().await {
                ResyncOutcome::Idle => None,
                ResyncOutcome::Continue => continue,
                ResyncOutcome::Failed { wait, .. } | ResyncOutcome::RestartAfter(wait) => Some(wait),
                ResyncOutcome::Stopped => return,
            };
            match wait {
                Some(wait) => self.feed.heartbeats[RESYNC_HEARTBEAT].expect_within(wait),
                None => self.feed.heartbeats[RESYNC_HEARTBEAT].suspend(),
            }
            let timer = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = timer => {}
                () = self.feed.resync_now.notified() => self.wanted = true,
            }
        }
    }

    /// One walk of the resync under way, if there is one.
    pub async fn run_once(&mut self) -> ResyncOutcome {
        let feed = self.feed;
        let stored = match feed.context.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(error) => return self.handle_store_error(error).await,
        };
        let Some(resync) = stored.resync.clone() else { return ResyncOutcome::Idle };
        match resync.stage {
            ResyncStage::Held => ResyncOutcome::Idle,
            ResyncStage::Sweep => {
                feed.heartbeats[RESYNC_HEARTBEAT].suspend();
                let swept = feed.context.store.sweep(feed.id, resync.walk_id, now()).await;
                self.handle_resync_end(swept).await
            }
            ResyncStage::Walk if resync.not_before.is_some() => self.restart_if_due(&resync).await,
            ResyncStage::Walk => self.run_resync_walk(&resync, &stored).await,
        }
    }

    /// The resync's own cursor was dead: the publisher's positions may have changed meanwhile, so it begins again; one
    /// that meets a dead page each time only rarely.
    async fn restart_if_due(&mut self, resync: &ResyncState) -> ResyncOutcome {
        let wait = resync.restart_wait_left(now());
        if !wait.is_zero() && !std::mem::take(&mut self.wanted) {
            return ResyncOutcome::RestartAfter(wait);
        }
        match self.feed.context.store.restart_resync(&self.feed.name, resync.walk_id, now()).await {
            Ok(()) => ResyncOutcome::Continue,
            Err(error) => self.handle_store_error(error).await,
        }
    }

    async fn run_resync_walk(&mut self, resync: &ResyncState, stored: &StoredFeed) -> ResyncOutcome {
        let feed = self.feed;
        self.wanted = false;
        if resync.trust != SourceTrust::No {
            feed.reopen_stream.notify_waiters();
        }
        feed.heartbeats[RESYNC_HEARTBEAT].suspend();
        let _place = tokio::select! {
            () = self.cancel.cancelled() => return ResyncOutcome::Stopped,
            place = feed.source.host.acquire_resync() => place,
        };
        let mut walked = self.walk_from(resync.cursor.clone(), stored).await;
        if let (WalkEnd::Level { .. }, Some(end)) = (&walked.end, self.unconfirmed_end().await) {
            feed.heartbeats[RESYNC_HEARTBEAT].expect_within(feed.poll.min);
            tokio::select! {
                () = self.cancel.cancelled() => return ResyncOutcome::Stopped,
                () = tokio::time::sleep(feed.poll.min) => {}
            }
            walked = self.walk_from(end, stored).await;
        }
        if walked.made_progress() {
            (self.failures, self.unavailable) = (0, 0);
        }
        match walked.end {
            WalkEnd::Level { .. } => {
                feed.heartbeats[RESYNC_HEARTBEAT].suspend();
                let order = feed.source.decode_options.order;
                let ended = feed.context.store.end_resync(feed.id, resync.walk_id, now(), feed.max_sweep, order).await;
                self.handle_resync_end(ended).await
            }
            WalkEnd::Superseded | WalkEnd::PageLimit => ResyncOutcome::Continue,
            WalkEnd::Stopped => ResyncOutcome::Stopped,
            WalkEnd::Failed { trouble, reason, url: asked } => {
                let first_page = asked == feed.url;
                let again = match is_dead_cursor(trouble, first_page) {
                    true => feed.context.store.note_dead_cursor(feed.id, resync.walk_id, now()).await,
                    false => Ok(Duration::ZERO),
                };
                match again {
                    Ok(again) => self.handle_failure(Some(stored), trouble, reason, first_page, again).await,
                    Err(error) => self.handle_store_error(error).await,
                }
            }
        }
    }

    async fn walk_from(&self, from: String, stored: &StoredFeed) -> WalkReport {
        let pulse = &self.feed.heartbeats[RESYNC_HEARTBEAT];
        FeedWalk::new(self.feed, WalkKind::Resync, stored.generation, self.cancel, pulse)
            .run(from, None, EndEvidence::default())
            .await
    }

    /// Where the walk ended, if polling has come to another place. A cache that serves an old last page again ends a
    /// walk too early, and what is behind it would look gone: such an end has to be seen twice.
    async fn unconfirmed_end(&self) -> Option<String> {
        let stored = self.feed.context.store.feed(&self.feed.name).await.ok()?;
        let end = stored.resync?.cursor;
        stored.cursor.filter(|cursor| *cursor != end).map(|_| end)
    }

    async fn handle_resync_end(&mut self, ended: Result<ResyncEnd, StoreError>) -> ResyncOutcome {
        let feed = self.feed;
        match ended {
            Ok(ResyncEnd::Held(unseen, live)) => {
                tracing::warn!(feed = %feed.name, unseen, live, "a sweep is held until it is accepted");
            }
            Ok(ResyncEnd::Unclean) => tracing::warn!(feed = %feed.name, "a resync saw no clean end: nothing was swept"),
            Ok(ResyncEnd::Done(swept)) => tracing::info!(feed = %feed.name, swept, "resync done"),
            Ok(ResyncEnd::Replaced) => {}
            Err(error) => return self.handle_store_error(error).await,
        }
        feed.poll_when_allowed.notify_one();
        ResyncOutcome::Continue
    }

    async fn handle_store_error(&mut self, error: StoreError) -> ResyncOutcome {
        match error {
            StoreError::Closed => ResyncOutcome::Stopped,
            error => {
                self.handle_failure(None, FailureKind::Store, format!("store: {error}"), false, Duration::ZERO).await
            }
        }
    }

    async fn handle_failure(
        &mut self,
        stored: Option<&StoredFeed>,
        trouble: FailureKind,
        reason: String,
        first_page: bool,
        again: Duration,
    ) -> ResyncOutcome {
        let feed = self.feed;
        self.failures = self.failures.saturating_add(1);
        self.unavailable = if trouble.is_unavailable() { self.unavailable + 1 } else { 0 };
        let (failures, unavailable) = (self.failures, self.unavailable);
        let answered = stored.is_some_and(|stored| stored.polled_at.is_some());
        let gone_for = stored.map_or(Duration::ZERO, |stored| stored.gone_for);
        let history = FailureHistory {
            failures,
            unavailable,
            ever_answered: answered,
            first_page,
            gone_for,
            ..FailureHistory::default()
        };
        let ruling = mode::classify(trouble, &history);
        if ruling.first_step == FirstStep::Secrets
            && let Err(failure) = feed.source.requests.read_secrets()
        {
            tracing::warn!(feed = %feed.name, %failure, "secrets can't be read again");
        }
        if ruling.slow_host {
            feed.source.host.throttle();
        }
        let wait = schedule::wait_after_failure(&feed.retry, ruling.wait, failures, jitter()).max(again);
        if ruling.sets_not_before {
            feed.set_not_before(wait).await;
        }
        if matches!(ruling.wait, RetryWait::Gone { .. }) && stored.is_some_and(|stored| stored.cursor.is_none()) {
            feed.log_store_error(feed.context.store.set_gone_for(feed.id, gone_for + wait).await);
        }
        if failures.is_power_of_two() {
            tracing::warn!(feed = %feed.name, reason, failures, "a resync failed and goes on later");
        }
        let told = match stored {
            // Without a poll cursor nothing else reads the feed: how the resync does is how the feed does.
            Some(stored) if stored.cursor.is_none() => {
                let next_poll_at =
                    Some(now().saturating_add(Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX)));
                let note = HealthNote { health: ruling.health, reason: Some(reason.clone()), failures, next_poll_at };
                feed.context.store.record_health(feed.id, now(), note).await
            }
            Some(_) if failures == 1 => {
                feed.context.store.record_event(Some(feed.id), now(), "resync-failed", &reason).await
            }
            _ => Ok(()),
        };
        if let Err(error) = told {
            tracing::warn!(feed = %feed.name, %error, "a failed resync could not be noted");
        }
        ResyncOutcome::Failed { trouble, reason, failures, wait }
    }
}

fn is_dead_cursor(trouble: FailureKind, first_page: bool) -> bool {
    matches!(trouble, FailureKind::Status { code: 404 | 410, .. }) && !first_page
}
