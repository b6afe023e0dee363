//! Brings one feed level once, for `sync`: runs the bodies of the daemon's loops until the feed is level or given up.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::mode::FailureKind;
use crate::store::resync::{ResyncStage, ResyncState};
use crate::store::{StoreError, now};
use crate::worker::FeedRuntime;
use crate::worker::poll::{self, PollLoop};
use crate::worker::resync::{self, ResyncLoop};

/// How [`sync_feed`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncOutcome {
    /// The feed is level.
    Level,
    /// The operator has paused the feed: it was not polled.
    Paused,
    /// Given up; with the reason as a text.
    GivenUp(String),
    /// Cancelled, or the store has stopped.
    Stopped,
}

/// 503s in a row without `Retry-After` that are too many: the next wait would be an hour or two (RPDE 1.0).
const MAX_UNAVAILABLE: u32 = 3;
/// The wait before a superseded walk begins again.
const PAUSE: Duration = Duration::from_millis(50);

/// Polls, and resyncs where one is under way or due, until the feed is level, or gives it up after `tries` failures in
/// a row, or at once where waiting can't help.
pub async fn sync_feed(feed: &Arc<FeedRuntime>, tries: u32, cancel: &CancellationToken) -> SyncOutcome {
    let mut poll_loop = PollLoop::new(feed, cancel);
    let mut resync_loop = ResyncLoop::new(feed, cancel);
    loop {
        let stored = match feed.context.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(StoreError::Closed) => return SyncOutcome::Stopped,
            Err(error) => return SyncOutcome::GivenUp(error.to_string()),
        };
        if stored.paused {
            return SyncOutcome::Paused;
        }
        let resync_due = stored.resync.as_ref().is_some_and(is_due);
        let next = match resync_due {
            true => SyncStep::from_resync(resync_loop.run_once().await, tries),
            false => SyncStep::from_poll(poll_loop.run_once().await, tries),
        };
        let wait = match next {
            SyncStep::Level if !is_resync_due(feed).await => return SyncOutcome::Level,
            SyncStep::Level => continue,
            SyncStep::Stopped => return SyncOutcome::Stopped,
            // A dead cursor fails the poll and begins a resync at the same time: the resync is the next step.
            SyncStep::GiveUp(_) if !resync_due && is_resync_due(feed).await => continue,
            SyncStep::GiveUp(reason) => return SyncOutcome::GivenUp(reason),
            SyncStep::Wait(wait, why) => {
                feed.source.counts.set_failure_wait(why.map(|why| (why, wait)));
                wait
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return SyncOutcome::Stopped,
            () = tokio::time::sleep(wait) => {}
        }
        feed.source.counts.set_failure_wait(None);
    }
}

async fn is_resync_due(feed: &FeedRuntime) -> bool {
    let stored = feed.context.store.feed(&feed.name).await;
    stored.is_ok_and(|stored| stored.resync.as_ref().is_some_and(is_due))
}

/// Whether the resync can go on now.
fn is_due(resync: &ResyncState) -> bool {
    resync.stage != ResyncStage::Held && resync.restart_wait_left(now()).is_zero()
}

enum SyncStep {
    Level,
    /// With the reason, where a failure causes the wait.
    Wait(Duration, Option<String>),
    GiveUp(String),
    Stopped,
}

impl SyncStep {
    fn from_poll(outcome: poll::PollOutcome, tries: u32) -> Self {
        match outcome {
            poll::PollOutcome::Level(_) => Self::Level,
            poll::PollOutcome::Restart => Self::Wait(PAUSE, None),
            poll::PollOutcome::NoCursor => {
                Self::GiveUp("no-cursor: there is no position to read from: resync it".to_owned())
            }
            poll::PollOutcome::Stopped => Self::Stopped,
            poll::PollOutcome::Failed { kind, reason, .. } if asks_too_long(kind) => {
                Self::GiveUp(with_retry_time(kind, reason))
            }
            poll::PollOutcome::Failed { kind, reason, failures, unavailable, wait } => {
                let may_retry = failures < tries && unavailable < MAX_UNAVAILABLE;
                Self::after_failure(kind, reason, may_retry, wait)
            }
        }
    }

    fn from_resync(outcome: resync::ResyncOutcome, tries: u32) -> Self {
        match outcome {
            resync::ResyncOutcome::Idle | resync::ResyncOutcome::Continue | resync::ResyncOutcome::RestartAfter(_) => {
                Self::Wait(Duration::ZERO, None)
            }
            resync::ResyncOutcome::Stopped => Self::Stopped,
            resync::ResyncOutcome::Failed { kind, reason, .. } if asks_too_long(kind) => {
                Self::GiveUp(with_retry_time(kind, reason))
            }
            resync::ResyncOutcome::Failed { kind, reason, failures, wait } => {
                Self::after_failure(kind, reason, failures < tries, wait)
            }
        }
    }

    fn after_failure(kind: FailureKind, reason: String, may_retry: bool, wait: Duration) -> Self {
        if may_retry && kind.heals() { Self::Wait(wait, Some(reason)) } else { Self::GiveUp(reason) }
    }
}

/// How long the publisher allows no request.
fn retry_after(kind: FailureKind) -> Option<Duration> {
    match kind {
        FailureKind::Status { retry_after, .. } => retry_after,
        _ => None,
    }
}

/// The longest `Retry-After` that a single `sync` waits for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

fn asks_too_long(kind: FailureKind) -> bool {
    retry_after(kind).is_some_and(|retry_after| retry_after > MAX_RETRY_AFTER)
}

/// Adds to a reason when the publisher allows requests again.
fn with_retry_time(kind: FailureKind, reason: String) -> String {
    let Some(wait) = retry_after(kind) else { return reason };
    let text = match wait.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3_600)),
    };
    let at = jiff::SignedDuration::try_from(wait).ok().and_then(|wait| jiff::Timestamp::now().checked_add(wait).ok());
    let at = at.map(|at| format!(", at {at:.0}")).unwrap_or_default();
    format!("{reason}; it asks to be left alone for {text}: try again then{at}")
}
