//! Bringing one feed level once, for `sync`: the same loops as the daemon's, turn by turn, with an end.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::mode::FailureKind;
use crate::store::resync::{ResyncStage, ResyncState};
use crate::store::{StoreError, now};
use crate::worker::FeedRuntime;
use crate::worker::poll::{self, PollLoop};
use crate::worker::resync::{self, ResyncLoop};

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncOutcome {
    /// Level.
    Level,
    /// The operator has paused it: not asked.
    Paused,
    /// Given up; the reason in words.
    GivenUp(String),
    /// Cancelled, or the store has stopped.
    Stopped,
}

/// 503s in a row without a word when to come again: the next wait would be an hour or two (RPDE 1.0).
const MAX_UNAVAILABLE: u32 = 3;
/// Between two looks at a feed whose cursor something else has moved.
const PAUSE: Duration = Duration::from_millis(50);

/// Polls, and resyncs where one is under way or due, until the feed is level, or gives it up after `tries` failures in
/// a row, or at once where waiting can't help.
pub async fn sync_feed(feed: &Arc<FeedRuntime>, tries: u32, cancel: &CancellationToken) -> SyncOutcome {
    let mut polling = PollLoop::new(feed, cancel);
    let mut resyncing = ResyncLoop::new(feed, cancel);
    loop {
        let stored = match feed.context.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(StoreError::Closed) => return SyncOutcome::Stopped,
            Err(error) => return SyncOutcome::GivenUp(error.to_string()),
        };
        if stored.paused {
            return SyncOutcome::Paused;
        }
        let resync = stored.resync.as_ref().is_some_and(is_due);
        let next = match resync {
            true => SyncStep::from_resync(resyncing.run_once().await, tries),
            false => SyncStep::from_poll(polling.run_once().await, tries),
        };
        let wait = match next {
            SyncStep::Level if !is_resync_due(feed).await => return SyncOutcome::Level,
            SyncStep::Level => continue,
            SyncStep::Stopped => return SyncOutcome::Stopped,
            // A dead cursor fails and begins a resync at the same time: that is what comes next.
            SyncStep::GiveUp(_) if !resync && is_resync_due(feed).await => continue,
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

/// Whether there is something to do for it now.
fn is_due(resync: &ResyncState) -> bool {
    resync.stage != ResyncStage::Held && resync.restart_wait_left(now()).is_zero()
}

enum SyncStep {
    Level,
    /// Why it waits, if not for itself.
    Wait(Duration, Option<String>),
    GiveUp(String),
    Stopped,
}

impl SyncStep {
    fn from_poll(turn: poll::PollOutcome, tries: u32) -> Self {
        match turn {
            poll::PollOutcome::Level(_) => Self::Level,
            poll::PollOutcome::Restart => Self::Wait(PAUSE, None),
            poll::PollOutcome::NoCursor => {
                Self::GiveUp("no-cursor: there is no position to read from: resync it".to_owned())
            }
            poll::PollOutcome::Stopped => Self::Stopped,
            poll::PollOutcome::Failed { trouble, reason, .. } if asks_too_long(trouble) => {
                Self::GiveUp(with_retry_time(trouble, reason))
            }
            poll::PollOutcome::Failed { trouble, reason, failures, unavailable, wait } => {
                let patience = failures < tries && unavailable < MAX_UNAVAILABLE;
                Self::after_failure(trouble, reason, patience, wait)
            }
        }
    }

    fn from_resync(turn: resync::ResyncOutcome, tries: u32) -> Self {
        match turn {
            resync::ResyncOutcome::Idle | resync::ResyncOutcome::Continue | resync::ResyncOutcome::RestartAfter(_) => {
                Self::Wait(Duration::ZERO, None)
            }
            resync::ResyncOutcome::Stopped => Self::Stopped,
            resync::ResyncOutcome::Failed { trouble, reason, .. } if asks_too_long(trouble) => {
                Self::GiveUp(with_retry_time(trouble, reason))
            }
            resync::ResyncOutcome::Failed { trouble, reason, failures, wait } => {
                Self::after_failure(trouble, reason, failures < tries, wait)
            }
        }
    }

    fn after_failure(trouble: FailureKind, reason: String, patience: bool, wait: Duration) -> Self {
        if patience && trouble.heals() { Self::Wait(wait, Some(reason)) } else { Self::GiveUp(reason) }
    }
}

/// How long the publisher asks not to be asked.
fn retry_after(trouble: FailureKind) -> Option<Duration> {
    match trouble {
        FailureKind::Status { retry_after, .. } => retry_after,
        _ => None,
    }
}

/// Who wants to read a feed once doesn't stay for longer than this because the publisher asks for it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

fn asks_too_long(trouble: FailureKind) -> bool {
    retry_after(trouble).is_some_and(|told| told > MAX_RETRY_AFTER)
}

/// When it may be asked again, in words.
fn with_retry_time(trouble: FailureKind, reason: String) -> String {
    let Some(told) = retry_after(trouble) else { return reason };
    let words = match told.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3_600)),
    };
    let at = jiff::SignedDuration::try_from(told).ok().and_then(|told| jiff::Timestamp::now().checked_add(told).ok());
    let at = at.map(|at| format!(", at {at:.0}")).unwrap_or_default();
    format!("{reason}; it asks to be left alone for {words}: try again then{at}")
}
