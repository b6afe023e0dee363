//! Bringing one feed level once, for `sync`: the same loops as the daemon's, turn by turn, with an end.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::mode::Trouble;
use crate::store::resync::{Resync, Stage};
use crate::store::{StoreError, now};
use crate::worker::Feed;
use crate::worker::poll::{self, PollLoop};
use crate::worker::resync::{self, ResyncLoop};

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Brought {
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
const UNAVAILABLE: u32 = 3;
/// Between two looks at a feed whose cursor something else has moved.
const PAUSE: Duration = Duration::from_millis(50);

/// Polls, and resyncs where one is under way or due, until the feed is level, or gives it up after `tries` failures in
/// a row, or at once where waiting can't help.
pub async fn bring_level(feed: &Arc<Feed>, tries: u32, cancel: &CancellationToken) -> Brought {
    let mut polling = PollLoop::new(feed, cancel);
    let mut resyncing = ResyncLoop::new(feed, cancel);
    loop {
        let stored = match feed.shared.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(StoreError::Closed) => return Brought::Stopped,
            Err(error) => return Brought::GivenUp(error.to_string()),
        };
        if stored.paused {
            return Brought::Paused;
        }
        let resync = stored.resync.as_ref().is_some_and(is_due);
        let next = match resync {
            true => Next::of_resync(resyncing.turn().await, tries),
            false => Next::of_poll(polling.turn().await, tries),
        };
        let wait = match next {
            Next::Level if !resync_began(feed).await => return Brought::Level,
            Next::Level => continue,
            Next::Stopped => return Brought::Stopped,
            // A dead cursor fails and begins a resync at the same time: that is what comes next.
            Next::GiveUp(_) if !resync && resync_began(feed).await => continue,
            Next::GiveUp(reason) => return Brought::GivenUp(reason),
            Next::Wait(wait, why) => {
                feed.source.counts.waits(why.map(|why| (why, wait)));
                wait
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Brought::Stopped,
            () = tokio::time::sleep(wait) => {}
        }
        feed.source.counts.waits(None);
    }
}

async fn resync_began(feed: &Feed) -> bool {
    let stored = feed.shared.store.feed(&feed.name).await;
    stored.is_ok_and(|stored| stored.resync.as_ref().is_some_and(is_due))
}

/// Whether there is something to do for it now.
fn is_due(resync: &Resync) -> bool {
    resync.stage != Stage::Held && resync.wait(now()).is_zero()
}

enum Next {
    Level,
    /// Why it waits, if not for itself.
    Wait(Duration, Option<String>),
    GiveUp(String),
    Stopped,
}

impl Next {
    fn of_poll(turn: poll::Turn, tries: u32) -> Self {
        match turn {
            poll::Turn::Level(_) => Self::Level,
            poll::Turn::Again => Self::Wait(PAUSE, None),
            poll::Turn::NoCursor => Self::GiveUp("no-cursor: there is no position to read from: resync it".to_owned()),
            poll::Turn::Stopped => Self::Stopped,
            poll::Turn::Failed { trouble, reason, .. } if asks_for_long(trouble) => {
                Self::GiveUp(later(trouble, reason))
            }
            poll::Turn::Failed { trouble, reason, failures, unavailable, wait } => {
                let patience = failures < tries && unavailable < UNAVAILABLE;
                Self::after_failure(trouble, reason, patience, wait)
            }
        }
    }

    fn of_resync(turn: resync::Turn, tries: u32) -> Self {
        match turn {
            resync::Turn::Idle | resync::Turn::Again | resync::Turn::Later(_) => Self::Wait(Duration::ZERO, None),
            resync::Turn::Stopped => Self::Stopped,
            resync::Turn::Failed { trouble, reason, .. } if asks_for_long(trouble) => {
                Self::GiveUp(later(trouble, reason))
            }
            resync::Turn::Failed { trouble, reason, failures, wait } => {
                Self::after_failure(trouble, reason, failures < tries, wait)
            }
        }
    }

    fn after_failure(trouble: Trouble, reason: String, patience: bool, wait: Duration) -> Self {
        if patience && trouble.heals() { Self::Wait(wait, Some(reason)) } else { Self::GiveUp(reason) }
    }
}

/// How long the publisher asks not to be asked.
fn told(trouble: Trouble) -> Option<Duration> {
    match trouble {
        Trouble::Status { retry_after, .. } => retry_after,
        _ => None,
    }
}

/// Who wants to read a feed once doesn't stay for longer than this because the publisher asks for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn asks_for_long(trouble: Trouble) -> bool {
    told(trouble).is_some_and(|told| told > PATIENCE)
}

/// When it may be asked again, in words.
fn later(trouble: Trouble, reason: String) -> String {
    let Some(told) = told(trouble) else { return reason };
    let words = match told.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3_600)),
    };
    let at = jiff::SignedDuration::try_from(told).ok().and_then(|told| jiff::Timestamp::now().checked_add(told).ok());
    let at = at.map(|at| format!(", at {at:.0}")).unwrap_or_default();
    format!("{reason}; it asks to be left alone for {words}: try again then{at}")
}
