//! The resync loop: waits until a resync is under way, walks it beside the poll loop, and ends it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::walk::{End, Kind, Walk};
use super::{Feed, chance};
use crate::mode::Trouble;
use crate::schedule::{self, Wait};
use crate::store::resync::{Ended, Resync, Stage, Trust};
use crate::store::{StoreError, now};

/// How a turn of the resync loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is nothing to do, or nothing without the operator.
    Idle,
    /// A walk has ended, or has to begin again; look at once what is to do now.
    Again,
    /// It failed; try again after this wait.
    Failed {
        /// What the rules know of it.
        trouble: Trouble,
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
    feed: &'a Feed,
    cancel: &'a CancellationToken,
    failures: u32,
}

impl<'a> ResyncLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Feed, cancel: &'a CancellationToken) -> Self {
        Self { feed, cancel, failures: 0 }
    }

    /// Until cancelled.
    pub async fn run(mut self) {
        loop {
            let wait = match self.turn().await {
                Turn::Idle => None,
                Turn::Again => continue,
                Turn::Failed { wait, .. } => Some(wait),
                Turn::Stopped => return,
            };
            match wait {
                Some(wait) => self.feed.pulses[1].within(wait),
                None => self.feed.pulses[1].rest(),
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
                () = self.feed.resync_now.notified() => {}
            }
        }
    }

    /// One walk of the resync under way, if there is one.
    pub async fn turn(&mut self) -> Turn {
        let feed = self.feed;
        let stored = match feed.shared.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(error) => return self.store_failed(error),
        };
        let Some(resync) = stored.resync else { return Turn::Idle };
        match resync.stage {
            Stage::Held => Turn::Idle,
            Stage::Sweep => match feed.shared.store.sweep(feed.id, now()).await {
                Ok(_) => Turn::Again,
                Err(error) => self.store_failed(error),
            },
            Stage::Walk => self.walk(&resync, stored.generation).await,
        }
    }

    async fn walk(&mut self, resync: &Resync, generation: i64) -> Turn {
        let feed = self.feed;
        feed.pulses[1].rest();
        let _place = tokio::select! {
            () = self.cancel.cancelled() => return Turn::Stopped,
            place = feed.host.resync_place() => place,
        };
        let walk = Walk::new(feed, Kind::Resync, generation, self.cancel, &feed.pulses[1]);
        let walked = walk.run(resync.cursor.clone(), None).await;
        if walked.pages > 0 {
            self.failures = 0;
        }
        match walked.end {
            End::Level { .. } => self.end().await,
            End::Overtaken | End::Limit => Turn::Again,
            End::Stopped => Turn::Stopped,
            End::Failed { trouble, reason, asked } => {
                let dead = matches!(trouble, Trouble::Status { code: 404 | 410, .. }) && asked != feed.url;
                if dead && let Err(error) = self.begin_anew(resync.trust).await {
                    return self.store_failed(error);
                }
                self.failed(trouble, reason)
            }
        }
    }

    /// The resync's own cursor is dead: it begins again.
    async fn begin_anew(&self, trust: Trust) -> Result<(), StoreError> {
        let store = &self.feed.shared.store;
        store.cancel_resync(self.feed.id).await?;
        store.begin_resync(&self.feed.name, now(), trust, false).await.map(drop)
    }

    async fn end(&mut self) -> Turn {
        let feed = self.feed;
        let ended = match feed.shared.store.end_resync(feed.id, now(), feed.max_sweep).await {
            Ok(ended) => ended,
            Err(error) => return self.store_failed(error),
        };
        feed.poll_now.notify_one();
        match ended {
            Ended::Held(unseen, live) => {
                tracing::warn!(feed = %feed.name, unseen, live, "a sweep is held until it is accepted");
            }
            Ended::Unclean => tracing::warn!(feed = %feed.name, "a resync saw no clean end: nothing was swept"),
            Ended::Done(swept) => tracing::info!(feed = %feed.name, swept, "resync done"),
        }
        Turn::Again
    }

    fn store_failed(&mut self, error: StoreError) -> Turn {
        match error {
            StoreError::Closed => Turn::Stopped,
            error => self.failed(Trouble::Page, format!("store: {error}")),
        }
    }

    fn failed(&mut self, trouble: Trouble, reason: String) -> Turn {
        self.failures = self.failures.saturating_add(1);
        let wait = match trouble {
            Trouble::Status { retry_after: Some(told), .. } => Wait::Told(told),
            Trouble::Operator => Wait::Hourly,
            _ => Wait::Backoff,
        };
        let failures = self.failures;
        let wait = schedule::after_failure(&self.feed.retry, wait, failures, chance());
        if failures.is_power_of_two() {
            tracing::warn!(feed = %self.feed.name, reason, failures, "a resync failed and goes on later");
        }
        Turn::Failed { trouble, reason, failures, wait }
    }
}
