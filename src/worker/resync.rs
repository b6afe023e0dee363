//! The resync loop: waits until a resync has begun, walks the feed from its beginning beside the poll loop, and ends
//! the resync with its sweep. Which items the sweep removes is the store's decision.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::reader::EndEvidence;
use super::walk::{FeedWalk, WalkEnd, WalkKind, WalkReport};
use super::{FeedRuntime, jitter};
use crate::mode::{self, FailureHistory, FailureKind, FirstStep};
use crate::schedule::{self, RetryWait};
use crate::store::feeds::{HealthNote, StoredFeed};
use crate::store::resync::{ResyncEnd, ResyncStage, ResyncState, SourceTrust};
use crate::store::{StoreError, millis, now};

/// How one run of the resync loop's body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncOutcome {
    /// There is nothing to do, or only the operator can go on.
    Idle,
    /// A walk has ended, or has to begin again; run again at once.
    Continue,
    /// The resync's cursor is dead, and the resync begins again after this wait.
    RestartAfter(Duration),
    /// The walk failed; run again after this wait.
    Failed {
        /// What kind of failure it is.
        kind: FailureKind,
        /// A text for the operator, beginning with a fixed word.
        reason: String,
        /// Failures in a row.
        failures: u32,
        /// How long to wait before the next run.
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
    /// 503s in a row without `Retry-After`.
    unavailable: u32,
    /// When this loop last found the feed gone.
    gone_at: Option<Instant>,
    /// Whether the operator wants the resync now, whatever it waits for.
    skip_wait: bool,
}

impl<'a> ResyncLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, cancel: &'a CancellationToken) -> Self {
        Self { feed, cancel, failures: 0, unavailable: 0, gone_at: None, skip_wait: false }
    }

    /// Runs until cancelled.
    pub async fn run(mut self) {
        loop {
            let wait = match self.run_once().await {
                ResyncOutcome::Idle => None,
                ResyncOutcome::Continue => continue,
                ResyncOutcome::Failed { wait, .. } | ResyncOutcome::RestartAfter(wait) => Some(wait),
                ResyncOutcome::Stopped => return,
            };
            match wait {
                Some(wait) => self.feed.heartbeats.resync.expect_within(wait),
                None => self.feed.heartbeats.resync.suspend(),
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
                () = self.feed.resync_now.notified() => self.skip_wait = true,
            }
        }
    }

    /// The next step of the present resync, if there is one.
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
                feed.heartbeats.resync.suspend();
                let result = feed.context.store.sweep(feed.id, resync.walk_id, now()).await;
                self.handle_resync_end(result).await
            }
            ResyncStage::Walk if resync.not_before.is_some() => self.restart_if_due(&resync).await,
            ResyncStage::Walk => self.run_resync_walk(&resync, &stored).await,
        }
    }

    /// Begins the resync again, since its cursor was dead: the publisher's positions may have changed meanwhile. A
    /// resync whose cursor is dead each time begins again only rarely.
    async fn restart_if_due(&mut self, resync: &ResyncState) -> ResyncOutcome {
        let wait = resync.restart_wait_left(now());
        if !wait.is_zero() && !std::mem::take(&mut self.skip_wait) {
            return ResyncOutcome::RestartAfter(wait);
        }
        match self.feed.context.store.restart_resync(&self.feed.name, resync.walk_id, now()).await {
            Ok(()) => ResyncOutcome::Continue,
            Err(error) => self.handle_store_error(error).await,
        }
    }

    async fn run_resync_walk(&mut self, resync: &ResyncState, stored: &StoredFeed) -> ResyncOutcome {
        let feed = self.feed;
        self.skip_wait = false;
        if resync.trust != SourceTrust::No {
            feed.reopen_stream.notify_waiters();
        }
        feed.heartbeats.resync.suspend();
        let _permit = tokio::select! {
            () = self.cancel.cancelled() => return ResyncOutcome::Stopped,
            permit = feed.source.host.acquire_resync() => permit,
        };
        let mut report = self.walk_from(resync.cursor.clone(), stored).await;
        if let (WalkEnd::Level { .. }, Some(end)) = (&report.end, self.unconfirmed_end().await) {
            feed.heartbeats.resync.expect_within(feed.poll.min);
            tokio::select! {
                () = self.cancel.cancelled() => return ResyncOutcome::Stopped,
                () = tokio::time::sleep(feed.poll.min) => {}
            }
            report = self.walk_from(end, stored).await;
        }
        if report.made_progress() {
            (self.failures, self.unavailable) = (0, 0);
        }
        match report.end {
            WalkEnd::Level { .. } => {
                feed.heartbeats.resync.suspend();
                let order = feed.source.decode_options.order;
                let result = feed.context.store.end_resync(feed.id, resync.walk_id, now(), feed.max_sweep, order).await;
                self.handle_resync_end(result).await
            }
            WalkEnd::Superseded | WalkEnd::PageLimit => ResyncOutcome::Continue,
            WalkEnd::Stopped => ResyncOutcome::Stopped,
            WalkEnd::Failed { kind, reason, url } => {
                let first_page = url == feed.url;
                let restart_after = match is_dead_cursor(kind, first_page) {
                    true => feed.context.store.note_dead_cursor(feed.id, resync.walk_id, now()).await,
                    false => Ok(Duration::ZERO),
                };
                match restart_after {
                    Ok(restart_after) => {
                        self.handle_failure(Some(stored), kind, reason, first_page, restart_after).await
                    }
                    Err(error) => self.handle_store_error(error).await,
                }
            }
        }
    }

    async fn walk_from(&self, from: String, stored: &StoredFeed) -> WalkReport {
        let heartbeat = &self.feed.heartbeats.resync;
        FeedWalk::new(self.feed, WalkKind::Resync, stored.generation, self.cancel, heartbeat)
            .run(from, None, EndEvidence::default())
            .await
    }

    /// The cursor at which the walk ended, if the poll cursor is another one. A cache that serves an old last page
    /// again ends a walk too early, and the items behind it would look gone: such an end has to be seen twice.
    async fn unconfirmed_end(&self) -> Option<String> {
        let stored = self.feed.context.store.feed(&self.feed.name).await.ok()?;
        let end = stored.resync?.cursor;
        stored.cursor.filter(|cursor| *cursor != end).map(|_| end)
    }

    async fn handle_resync_end(&mut self, result: Result<ResyncEnd, StoreError>) -> ResyncOutcome {
        let feed = self.feed;
        match result {
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
        kind: FailureKind,
        reason: String,
        first_page: bool,
        restart_after: Duration,
    ) -> ResyncOutcome {
        let feed = self.feed;
        self.failures = self.failures.saturating_add(1);
        self.unavailable = if kind.is_unavailable() { self.unavailable + 1 } else { 0 };
        let (failures, unavailable) = (self.failures, self.unavailable);
        let ever_answered = stored.is_some_and(|stored| stored.polled_at.is_some());
        // The waits are added up instead of reading the wall clock, which may be set ahead.
        let since = self.gone_at.take().map_or(Duration::ZERO, |at| at.elapsed());
        let gone_for = stored.map_or(Duration::ZERO, |stored| stored.gone_for) + since;
        let history =
            FailureHistory { failures, unavailable, ever_answered, first_page, gone_for, ..FailureHistory::default() };
        let policy = mode::classify(kind, &history);
        if policy.first_step == FirstStep::RereadSecrets
            && let Err(failure) = feed.source.requests.read_secrets()
        {
            tracing::warn!(feed = %feed.name, %failure, "secrets can't be read again");
        }
        if policy.throttle_host {
            feed.source.host.throttle();
        }
        let wait = schedule::wait_after_failure(&feed.retry, policy.wait, failures, jitter()).max(restart_after);
        if policy.sets_not_before {
            feed.set_not_before(wait).await;
        }
        if matches!(policy.wait, RetryWait::Gone { .. }) && stored.is_some_and(|stored| stored.cursor.is_none()) {
            self.gone_at = Some(Instant::now());
            feed.log_store_error(feed.context.store.set_gone_for(feed.id, gone_for).await);
        }
        if failures.is_power_of_two() {
            tracing::warn!(feed = %feed.name, reason, failures, "a resync failed and goes on later");
        }
        let result = match stored {
            // Without a poll cursor nothing else reads the feed: the resync's health is the feed's.
            Some(stored) if stored.cursor.is_none() => {
                let next_poll_at = Some(now().saturating_add(millis(wait)));
                let note = HealthNote { health: policy.health, reason: Some(reason.clone()), failures, next_poll_at };
                feed.context.store.record_health(feed.id, now(), note).await
            }
            Some(_) if failures == 1 => {
                feed.context.store.record_event(Some(feed.id), now(), "resync-failed", &reason).await
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(feed = %feed.name, %error, "a failed resync could not be noted");
        }
        ResyncOutcome::Failed { kind, reason, failures, wait }
    }
}

fn is_dead_cursor(kind: FailureKind, first_page: bool) -> bool {
    matches!(kind, FailureKind::Status { code: 404 | 410, .. }) && !first_page
}
