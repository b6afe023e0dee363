//! The resync loop: waits until a resync is under way, walks it beside the poll loop, and ends it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::reader::EndMemory;
use super::walk::{End, Kind, Walk, Walked};
use super::{Feed, RESYNC_PULSE, chance};
use crate::mode::{self, History, Step, Trouble};
use crate::schedule::{self, Wait};
use crate::store::feeds::{Note, StoredFeed};
use crate::store::resync::{Ended, Resync, Stage, Trust};
use crate::store::{Millis, StoreError, now};

/// How a turn of the resync loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is nothing to do, or nothing without the operator.
    Idle,
    /// A walk has ended, or has to begin again; look at once what is to do now.
    Again,
    /// It met a dead page, and begins again after this wait.
    Later(Duration),
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
    feed: &'a Arc<Feed>,
    cancel: &'a CancellationToken,
    failures: u32,
    /// 503s in a row without a word when to come again.
    unavailable: u32,
    /// Whether somebody wants it now, whatever it waits for.
    wanted: bool,
}

impl<'a> ResyncLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<Feed>, cancel: &'a CancellationToken) -> Self {
        Self { feed, cancel, failures: 0, unavailable: 0, wanted: false }
    }

    /// Until cancelled.
    pub async fn run(mut self) {
        loop {
            let wait = match self.turn().await {
                Turn::Idle => None,
                Turn::Again => continue,
                Turn::Failed { wait, .. } | Turn::Later(wait) => Some(wait),
                Turn::Stopped => return,
            };
            match wait {
                Some(wait) => self.feed.pulses[RESYNC_PULSE].within(wait),
                None => self.feed.pulses[RESYNC_PULSE].rest(),
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
    pub async fn turn(&mut self) -> Turn {
        let feed = self.feed;
        let stored = match feed.shared.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(error) => return self.store_failed(error).await,
        };
        let Some(resync) = stored.resync.clone() else { return Turn::Idle };
        match resync.stage {
            Stage::Held => Turn::Idle,
            Stage::Sweep => {
                feed.pulses[RESYNC_PULSE].rest();
                let swept = feed.shared.store.sweep(feed.id, resync.walk, now()).await;
                self.ended(swept).await
            }
            Stage::Walk if resync.not_before.is_some() => self.begin_again(&resync).await,
            Stage::Walk => self.walk(&resync, &stored).await,
        }
    }

    /// The resync's own cursor was dead: the publisher's positions may have changed meanwhile, so it begins again; one
    /// that meets a dead page each time only rarely.
    async fn begin_again(&mut self, resync: &Resync) -> Turn {
        let wait = resync.wait(now());
        if !wait.is_zero() && !std::mem::take(&mut self.wanted) {
            return Turn::Later(wait);
        }
        match self.feed.shared.store.restart_resync(&self.feed.name, resync.walk, now()).await {
            Ok(()) => Turn::Again,
            Err(error) => self.store_failed(error).await,
        }
    }

    async fn walk(&mut self, resync: &Resync, stored: &StoredFeed) -> Turn {
        let feed = self.feed;
        self.wanted = false;
        if resync.trust != Trust::No {
            feed.begun_anew.notify_waiters();
        }
        feed.pulses[RESYNC_PULSE].rest();
        let _place = tokio::select! {
            () = self.cancel.cancelled() => return Turn::Stopped,
            place = feed.source.host.resync_place() => place,
        };
        let mut walked = self.follow(resync.cursor.clone(), stored).await;
        if let (End::Level { .. }, Some(end)) = (&walked.end, self.doubtful_end().await) {
            feed.pulses[RESYNC_PULSE].within(feed.poll.min);
            tokio::select! {
                () = self.cancel.cancelled() => return Turn::Stopped,
                () = tokio::time::sleep(feed.poll.min) => {}
            }
            walked = self.follow(end, stored).await;
        }
        if walked.got_on() {
            (self.failures, self.unavailable) = (0, 0);
        }
        match walked.end {
            End::Level { .. } => {
                feed.pulses[RESYNC_PULSE].rest();
                let order = feed.source.reading.order;
                let ended = feed.shared.store.end_resync(feed.id, resync.walk, now(), feed.max_sweep, order).await;
                self.ended(ended).await
            }
            End::Overtaken | End::Limit => Turn::Again,
            End::Stopped => Turn::Stopped,
            End::Failed { trouble, reason, asked } => {
                let first_page = asked == feed.url;
                let again = match is_dead(trouble, first_page) {
                    true => feed.shared.store.resync_died(feed.id, resync.walk, now()).await,
                    false => Ok(Duration::ZERO),
                };
                match again {
                    Ok(again) => self.failed(Some(stored), trouble, reason, first_page, again).await,
                    Err(error) => self.store_failed(error).await,
                }
            }
        }
    }

    async fn follow(&self, from: String, stored: &StoredFeed) -> Walked {
        let pulse = &self.feed.pulses[RESYNC_PULSE];
        Walk::new(self.feed, Kind::Resync, stored.generation, self.cancel, pulse)
            .run(from, None, EndMemory::default())
            .await
    }

    /// Where the walk ended, if polling has come to another place. A cache that serves an old last page again ends a
    /// walk too early, and what is behind it would look gone: such an end has to be seen twice.
    async fn doubtful_end(&self) -> Option<String> {
        let stored = self.feed.shared.store.feed(&self.feed.name).await.ok()?;
        let end = stored.resync?.cursor;
        stored.cursor.filter(|cursor| *cursor != end).map(|_| end)
    }

    async fn ended(&mut self, ended: Result<Ended, StoreError>) -> Turn {
        let feed = self.feed;
        match ended {
            Ok(Ended::Held(unseen, live)) => {
                tracing::warn!(feed = %feed.name, unseen, live, "a sweep is held until it is accepted");
            }
            Ok(Ended::Unclean) => tracing::warn!(feed = %feed.name, "a resync saw no clean end: nothing was swept"),
            Ok(Ended::Done(swept)) => tracing::info!(feed = %feed.name, swept, "resync done"),
            Ok(Ended::Replaced) => {}
            Err(error) => return self.store_failed(error).await,
        }
        feed.poll_anew.notify_one();
        Turn::Again
    }

    async fn store_failed(&mut self, error: StoreError) -> Turn {
        match error {
            StoreError::Closed => Turn::Stopped,
            error => self.failed(None, Trouble::Store, format!("store: {error}"), false, Duration::ZERO).await,
        }
    }

    async fn failed(
        &mut self,
        stored: Option<&StoredFeed>,
        trouble: Trouble,
        reason: String,
        first_page: bool,
        again: Duration,
    ) -> Turn {
        let feed = self.feed;
        self.failures = self.failures.saturating_add(1);
        self.unavailable = if trouble.is_unavailable() { self.unavailable + 1 } else { 0 };
        let (failures, unavailable) = (self.failures, self.unavailable);
        let answered = stored.is_some_and(|stored| stored.polled_at.is_some());
        let gone_for = stored.map_or(Duration::ZERO, |stored| stored.gone_for);
        let history = History { failures, unavailable, answered, first_page, gone_for, ..History::default() };
        let ruling = mode::judge(trouble, &history);
        if ruling.step == Step::Secrets
            && let Err(failure) = feed.source.requests.read_secrets()
        {
            tracing::warn!(feed = %feed.name, %failure, "secrets can't be read again");
        }
        if ruling.slow_host {
            feed.source.host.slow_down();
        }
        let wait = schedule::after_failure(&feed.retry, ruling.wait, failures, chance()).max(again);
        if ruling.holds {
            feed.hold(wait).await;
        }
        if matches!(ruling.wait, Wait::Gone { .. }) && stored.is_some_and(|stored| stored.cursor.is_none()) {
            feed.told(feed.shared.store.gone_for(feed.id, gone_for + wait).await);
        }
        if failures.is_power_of_two() {
            tracing::warn!(feed = %feed.name, reason, failures, "a resync failed and goes on later");
        }
        let told = match stored {
            // Without a poll cursor nothing else reads the feed: how the resync does is how the feed does.
            Some(stored) if stored.cursor.is_none() => {
                let next_poll_at =
                    Some(now().saturating_add(Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX)));
                let note = Note { health: ruling.health, reason: Some(reason.clone()), failures, next_poll_at };
                feed.shared.store.note(feed.id, now(), note).await
            }
            Some(_) if failures == 1 => feed.shared.store.event(Some(feed.id), now(), "resync-failed", &reason).await,
            _ => Ok(()),
        };
        if let Err(error) = told {
            tracing::warn!(feed = %feed.name, %error, "a failed resync could not be noted");
        }
        Turn::Failed { trouble, reason, failures, wait }
    }
}

fn is_dead(trouble: Trouble, first_page: bool) -> bool {
    matches!(trouble, Trouble::Status { code: 404 | 410, .. }) && !first_page
}
