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
            Next::Wait(wait) => wait,
        };
        tokio::select! {
            () = cancel.cancelled() => return Brought::Stopped,
            () = tokio::time::sleep(wait) => {}
        }
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
    Wait(Duration),
    GiveUp(String),
    Stopped,
}

impl Next {
    fn of_poll(turn: poll::Turn, tries: u32) -> Self {
        match turn {
            poll::Turn::Level(_) => Self::Level,
            poll::Turn::Again => Self::Wait(PAUSE),
            poll::Turn::NoCursor => Self::GiveUp("no-cursor: there is no position to read from: resync it".to_owned()),
            poll::Turn::Stopped => Self::Stopped,
            poll::Turn::Failed { trouble, reason, failures, unavailable, wait } => {
                let patience = failures < tries && unavailable < UNAVAILABLE;
                Self::after_failure(trouble, reason, patience, wait)
            }
        }
    }

    fn of_resync(turn: resync::Turn, tries: u32) -> Self {
        match turn {
            resync::Turn::Idle | resync::Turn::Again | resync::Turn::Later(_) => Self::Wait(Duration::ZERO),
            resync::Turn::Stopped => Self::Stopped,
            resync::Turn::Failed { trouble, reason, failures, wait } => {
                Self::after_failure(trouble, reason, failures < tries, wait)
            }
        }
    }

    fn after_failure(trouble: Trouble, reason: String, patience: bool, wait: Duration) -> Self {
        if patience && trouble.heals() { Self::Wait(wait) } else { Self::GiveUp(reason) }
    }
}
