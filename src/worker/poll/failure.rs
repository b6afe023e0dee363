//! A failed poll: what it means for the feed, whether its own URL is probed, and how long the loop waits.

use std::time::Duration;

use tokio::time::Instant;

use super::super::jitter;
use super::{PollLoop, PollOutcome, may_resync};
use crate::feed::Health;
use crate::mode::{self, FailureHistory, FailureKind, FailurePolicy, FirstStep, ProbeResult};
use crate::schedule::{self, RetryWait};
use crate::source::host_limiter::Priority;
use crate::store::feeds::StoredFeed;
use crate::store::now;

const UNAVAILABLE_HINT: &str =
    "; the third in a row that doesn't say for how long: it is asked again in one to two hours";

impl PollLoop<'_> {
    pub(super) async fn handle_failure(
        &mut self,
        stored: Option<&StoredFeed>,
        kind: FailureKind,
        reason: String,
        url: &str,
    ) -> PollOutcome {
        let feed = self.feed;
        self.level = None;
        feed.level.send_if_modified(|level| std::mem::replace(level, false));
        self.validator = None;
        self.record_failure(stored, kind, url);
        let mut reason = reason;
        let mut policy = mode::classify(kind, &self.history);
        self.probe_first = policy.first_step == FirstStep::Probe && policy.sets_not_before;
        if policy.first_step == FirstStep::Probe && !policy.sets_not_before {
            self.history.probe = Some(self.probe().await);
            policy = mode::classify(kind, &self.history);
        }
        let failures = self.history.failures;
        match policy.first_step {
            FirstStep::RereadSecrets if self.reload_secrets(&mut reason) => return PollOutcome::Restart,
            FirstStep::RereadSecrets => self.secret_refused = true,
            FirstStep::Resync => reason = self.handle_dead_cursor(stored, &mut policy, &reason).await,
            _ => {}
        }
        if policy.throttle_host {
            feed.source.host.throttle();
        }
        let unavailable = policy.wait == RetryWait::Unavailable;
        if unavailable {
            reason.push_str(UNAVAILABLE_HINT);
        }
        let wait = schedule::wait_after_failure(&feed.retry, policy.wait, failures, jitter());
        if policy.sets_not_before {
            feed.set_not_before(wait).await;
        }
        self.record_gone_time(&policy).await;
        // A failure that persists is logged at its start and rarely after, and when the long waits begin.
        if failures.is_power_of_two() || unavailable && self.history.unavailable == 3 {
            let health = policy.health.as_str();
            tracing::warn!(feed = %feed.name, health, failures, wait_s = wait.as_millis() as f64 / 1000.0, reason, "polling failed");
        }
        self.record_health(policy.health, Some(reason.clone()), wait).await;
        self.purge_if_gone_long(&policy).await;
        PollOutcome::Failed { kind, reason, failures, unavailable: self.history.unavailable, wait }
    }

    fn record_failure(&mut self, stored: Option<&StoredFeed>, kind: FailureKind, url: &str) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let history = &mut self.history;
        history.failures = history.failures.saturating_add(1);
        history.unavailable = if kind.is_unavailable() { history.unavailable + 1 } else { 0 };
        history.ever_answered |= stored.is_some_and(|stored| stored.polled_at.is_some());
        history.failing_for = since.elapsed();
        // The waits are added up instead of reading the wall clock, which may be set ahead.
        let since = self.gone_at.map_or(Duration::ZERO, |at| at.elapsed());
        history.gone_for = stored.map_or(Duration::ZERO, |stored| stored.gone_for) + since;
        history.first_page = url == self.feed.url;
    }

    async fn record_gone_time(&mut self, policy: &FailurePolicy) {
        let RetryWait::Gone { since } = policy.wait else { return self.gone_at = None };
        self.gone_at = Some(Instant::now());
        self.log_store_error("could not be noted", self.feed.context.store.set_gone_for(self.feed.id, since).await);
    }

    fn reload_secrets(&self, reason: &mut String) -> bool {
        match self.feed.source.requests.read_secrets() {
            Ok(changes) => changes != self.secret_changes,
            Err(failure) => {
                *reason = format!("{failure}; {reason}");
                false
            }
        }
    }

    pub(super) async fn probe(&self) -> ProbeResult {
        let feed = self.feed;
        if !feed.source.not_before.remaining().is_zero() {
            return ProbeResult::Fails;
        }
        let answer = tokio::select! {
            () = self.cancel.cancelled() => return ProbeResult::Fails,
            answer = feed.source.download(&feed.url, None, Priority::Refresh, Some(&feed.heartbeats.poll)) => answer,
        };
        match answer {
            Ok(_) => ProbeResult::Answers,
            Err((FailureKind::Status { code: 404 | 410, .. }, _)) => ProbeResult::Gone,
            Err((kind, reason)) => {
                let policy = mode::classify(kind, &FailureHistory { ever_answered: true, ..FailureHistory::default() });
                if policy.sets_not_before {
                    feed.set_not_before(schedule::wait_after_failure(&feed.retry, policy.wait, 1, jitter())).await;
                }
                tracing::debug!(feed = %feed.name, reason, "the feed's own URL fails too");
                ProbeResult::Fails
            }
        }
    }

    /// The cursor is dead while the feed's own URL answers: begins a resync, at most weekly; until then the feed is
    /// stuck.
    async fn handle_dead_cursor(
        &self,
        stored: Option<&StoredFeed>,
        policy: &mut FailurePolicy,
        reason: &str,
    ) -> String {
        let Some(stored) = stored else { return reason.to_owned() };
        if let Some(resync) = &stored.resync {
            let wait = resync.restart_wait_left(now());
            if wait.is_zero() {
                return format!("dead-cursor: the feed is being read anew ({reason})");
            }
            policy.health = Health::Stuck;
            let seconds = wait.as_secs();
            return format!(
                "dead-cursor: reading it anew met a dead page too, and begins again in {seconds} s ({reason})"
            );
        }
        if may_resync(self.feed, stored) {
            self.begin_resync(true).await;
            return format!("dead-cursor: the cursor is gone, the feed is read anew ({reason})");
        }
        policy.health = Health::Stuck;
        format!(
            "dead-cursor: the cursor is gone, and the feed was read anew not long ago ({reason}); \
             if it is urgent: feedmirror resync, or seek"
        )
    }

    async fn purge_if_gone_long(&self, policy: &FailurePolicy) {
        let feed = self.feed;
        let (RetryWait::Gone { since }, Some(kept_for)) = (policy.wait, feed.purge_gone_after) else { return };
        if since >= kept_for {
            self.log_store_error(
                "a gone feed could not be purged",
                feed.context.store.purge(&feed.name, now()).await.map(drop),
            );
        }
    }
}
