//! The poll endpoint's loop: refresh to the end, then look at the end at a learnt pace, look back now and then, and
//! judge every failure by the rules of [`crate::mode`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::{EndMemory, Validator};
use super::walk::{End, Kind, LOOK_BACK_PAGES, Walk, Walked, explain};
use super::{Feed, POLL_PULSE, chance};
use crate::feed::{Health, Mode};
use crate::mode::push::Moment;
use crate::mode::{self, History, Probe, Ruling, Step, Trouble};
use crate::schedule::{self, Pace, Polled, Wait};
use crate::source::http::{Answer, Failure};
use crate::source::turns::{LevelMark, Priority};
use crate::store::feeds::{Note, StoredFeed};
use crate::store::resync::Trust;
use crate::store::{Millis, StoreError, now};

/// A resync that nobody asked for begins at most this often.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The longest waits that can have been stored, jitter included: after the third 503, and of a gone feed.
const LONGEST_RETRY: Duration = Duration::from_secs(2 * 3_600);
const LONGEST_GONE: Duration = Duration::from_secs(27 * 3_600);
/// How long an overtaken walk waits before it begins again: what overtook it may still be going on.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(100);

/// One feed's poll loop.
pub struct PollLoop<'a> {
    feed: &'a Arc<Feed>,
    cancel: &'a CancellationToken,
    pace: Pace,
    history: History,
    failing_since: Option<Instant>,
    last_poll: Instant,
    last_ok: Option<Instant>,
    look_back_at: Instant,
    look_back_failures: u32,
    validator: Option<Validator>,
    /// What the walks before learnt of the feed's end.
    memory: EndMemory,
    level: Option<LevelMark>,
    /// When the walk under way began.
    began: Moment,
}

/// How one turn of the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The feed is level; look again after this wait.
    Level(Duration),
    /// It failed.
    Failed {
        /// What the rules know of it.
        trouble: Trouble,
        /// In words.
        reason: String,
        /// Failures in a row.
        failures: u32,
        /// 503s in a row without a word when to come again.
        unavailable: u32,
        /// How long to wait.
        wait: Duration,
    },
    /// Begin again, from what is stored now.
    Again,
    /// Nothing to do until a resync has found a cursor.
    NoCursor,
    /// Cancelled, or the store has stopped.
    Stopped,
}

impl<'a> PollLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<Feed>, cancel: &'a CancellationToken) -> Self {
        Self {
            feed,
            cancel,
            pace: Pace::default(),
            history: History::default(),
            failing_since: None,
            last_poll: Instant::now(),
            last_ok: None,
            look_back_at: Instant::now(),
            look_back_failures: 0,
            validator: None,
            memory: EndMemory::default(),
            level: None,
            began: Moment::ZERO,
        }
    }

    /// Until cancelled.
    pub async fn run(mut self, stored: &StoredFeed) {
        self.history.failures = stored.failures;
        let mut due = Instant::now() + self.first_wait(stored);
        let lookback = self.feed.poll.lookback;
        let next_look_back = stored.looked_back_at.map(|at| at.saturating_add(millis(lookback)));
        let spread = lookback.mul_f64(0.25 * chance());
        self.look_back_at = Instant::now() + schedule::left(next_look_back, now(), lookback).max(spread);
        loop {
            if self.rest(due).await.is_break() {
                return;
            }
            if self.feed.look_back.swap(false, Ordering::Relaxed) {
                self.look_back_at = Instant::now();
            }
            if self.level.is_some() && Instant::now() >= self.look_back_at && Instant::now() < due {
                self.look_back().await;
                continue;
            }
            let wait = match self.turn().await {
                Turn::Level(wait) | Turn::Failed { wait, .. } => wait,
                Turn::Again => OVERTAKEN_PAUSE,
                Turn::NoCursor => self.feed.poll.max,
                Turn::Stopped => return,
            };
            due = Instant::now() + wait;
        }
    }

    /// What is left of the wait that was stored. A feed that failed is asked at once: a start is how an operator says
    /// that something was put right.
    fn first_wait(&self, stored: &StoredFeed) -> Duration {
        let longest = match stored.health {
            Health::Failed => Duration::ZERO,
            Health::Gone => LONGEST_GONE,
            Health::Retrying | Health::Stuck => LONGEST_RETRY.max(self.feed.retry.max.mul_f64(1.1)),
            _ => self.feed.poll.max.mul_f64(1.1),
        };
        schedule::left(stored.next_poll_at, now(), longest)
    }

    async fn rest(&self, due: Instant) -> ControlFlow<()> {
        let wake = if self.level.is_some() { due.min(self.look_back_at) } else { due };
        self.feed.pulses[POLL_PULSE].within(wake.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = self.cancel.cancelled() => return ControlFlow::Break(()),
            () = tokio::time::sleep_until(wake) => {}
            () = self.feed.poll_now.notified() => {}
        }
        ControlFlow::Continue(())
    }

    /// One walk from the stored cursor, and what follows from its end.
    pub async fn turn(&mut self) -> Turn {
        let feed = self.feed;
        let stored = match feed.shared.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(StoreError::Closed) => return Turn::Stopped,
            Err(error) => return self.failed(None, Trouble::Page, format!("store: {error}"), "").await,
        };
        if stored.paused {
            // Paused by its own purge: the supervisor stops loops that the operator pauses.
            return Turn::NoCursor;
        }
        let Some(cursor) = stored.cursor.clone() else { return Turn::NoCursor };
        let level = stored.mode != Mode::Refresh;
        self.began = feed.book.moment();
        let walk = Walk::new(feed, Kind::Poll { level }, stored.generation, self.cancel, &feed.pulses[POLL_PULSE]);
        let memory = std::mem::take(&mut self.memory);
        let mut walked = walk.run(cursor, self.validator.clone(), memory).await;
        self.memory = std::mem::take(&mut walked.memory);
        if walked.pages > 0 && !matches!(walked.end, End::Overtaken | End::Stopped) {
            self.answered(&stored, &walked).await;
        }
        match walked.end.clone() {
            End::Level { reason, fresh_for } => self.levelled(walked, reason, fresh_for).await,
            End::Overtaken | End::Limit => Turn::Again,
            End::Stopped => Turn::Stopped,
            End::Failed { trouble, reason, asked } => self.failed(Some(&stored), trouble, reason, &asked).await,
        }
    }

    /// At least one page came.
    async fn answered(&mut self, stored: &StoredFeed, walked: &Walked) {
        let feed = self.feed;
        let away = self.away(stored, walked);
        self.last_ok = Some(Instant::now());
        if walked.got_on() {
            self.healed();
        }
        if away > feed.retention && !stored.stale && stored.polled_at.is_some() {
            let detail = format!("away for {away:?}, longer than deletions are remembered ({:?})", feed.retention);
            self.logged("stale could not be noted", feed.shared.store.mark_stale(feed.id, now(), detail).await);
        }
    }

    fn healed(&mut self) {
        if self.history.failures > 0 {
            tracing::info!(feed = %self.feed.name, failures = self.history.failures, "polling works again");
        }
        self.failing_since = None;
        self.history = History { answered: true, ..History::default() };
    }

    /// How long the feed was not read. At run time by the monotonic clock; over a restart by the wall clock, and only
    /// as far as the publisher's own clock agrees, so that a clock that was set wrong resyncs nothing.
    fn away(&self, stored: &StoredFeed, walked: &Walked) -> Duration {
        if let Some(last_ok) = self.last_ok {
            return last_ok.elapsed();
        }
        let today = walked.date.map_or(now(), |date| date.min(now()));
        stored.polled_at.map_or(Duration::ZERO, |at| between(at, today))
    }

    async fn levelled(&mut self, walked: Walked, reason: Option<&'static str>, fresh_for: Option<Duration>) -> Turn {
        let feed = self.feed;
        self.validator = walked.validator;
        if self.level.is_none() {
            self.level = Some(feed.source.host.mark_level());
        }
        let changed = walked.applied.written() > 0;
        let mode = feed.polled_level(self.began, walked.applied.brought, "the end of the feed was seen").await;
        let wait = if mode.is_push() {
            feed.audit.mul_f64(0.95 + 0.1 * chance())
        } else {
            let polled = Polled { changed, elapsed: self.last_poll.elapsed(), fresh_for };
            self.pace.wait(&feed.poll, polled, chance())
        };
        self.last_poll = Instant::now();
        let reason =
            reason.map(|word| format!("{word}: taken as level, though the end is not shown as the standard says"));
        self.note(Health::Ok, reason, wait).await;
        self.resync_if_due().await;
        Turn::Level(wait)
    }

    /// A level feed is read anew when it was away too long, or when its time has come.
    async fn resync_if_due(&self) {
        let feed = self.feed;
        let Ok(stored) = feed.shared.store.feed(&feed.name).await else { return };
        if stored.resync.is_some() {
            return;
        }
        let since_read = stored.read_anew_at.map(|at| between(at, now()));
        let due = feed.resync_every.is_some_and(|every| since_read.is_some_and(|since| since >= every));
        if due || stored.stale && may_resync(feed, &stored) {
            self.begin_resync(!due).await;
        }
    }

    async fn begin_resync(&self, automatic: bool) {
        let feed = self.feed;
        let begun = feed.shared.store.begin_resync(&feed.name, now(), Trust::No, automatic).await;
        self.logged("a resync could not begin", begun.map(drop));
        feed.resync_now.notify_one();
    }

    async fn note(&self, health: Health, reason: Option<String>, wait: Duration) {
        let at = now();
        let next_poll_at = at.saturating_add(millis(wait));
        let note = Note { health, reason, failures: self.history.failures, next_poll_at: Some(next_poll_at) };
        self.logged("health could not be noted", self.feed.shared.store.note(self.feed.id, at, note).await);
    }

    /// What could not be noted is no reason to stop reading; a store that has stopped is told elsewhere.
    fn logged(&self, what: &str, result: Result<(), StoreError>) {
        match result {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(feed = %self.feed.name, %error, "{what}"),
        }
    }

    async fn failed(&mut self, stored: Option<&StoredFeed>, trouble: Trouble, reason: String, asked: &str) -> Turn {
        let feed = self.feed;
        self.level = None;
        self.validator = None;
        self.remember(stored, trouble, asked);
        let mut reason = reason;
        let mut ruling = mode::judge(trouble, &self.history);
        if ruling.step == Step::Probe {
            self.history.probe = Some(self.probe().await);
            ruling = mode::judge(trouble, &self.history);
        }
        let failures = self.history.failures;
        match ruling.step {
            Step::Secrets if self.secrets_changed(&mut reason) && failures == 1 => {
                return Turn::Failed { trouble, reason, failures, unavailable: 0, wait: OVERTAKEN_PAUSE };
            }
            Step::Resync => reason = self.dead_cursor(stored, &mut ruling, &reason).await,
            _ => {}
        }
        if ruling.slow_host {
            feed.source.host.slow_down();
        }
        let wait = schedule::after_failure(&feed.retry, ruling.wait, failures, chance());
        // A failure that persists is told at its start and rarely after.
        if failures.is_power_of_two() {
            let health = ruling.health.as_str();
            tracing::warn!(feed = %feed.name, health, failures, wait_s = wait.as_millis() as f64 / 1000.0, reason, "polling failed");
        }
        self.note(ruling.health, Some(reason.clone()), wait).await;
        self.purge_if_gone_long(&ruling).await;
        Turn::Failed { trouble, reason, failures, unavailable: self.history.unavailable, wait }
    }

    fn remember(&mut self, stored: Option<&StoredFeed>, trouble: Trouble, asked: &str) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let history = &mut self.history;
        history.failures = history.failures.saturating_add(1);
        history.unavailable = if trouble.is_unavailable() { history.unavailable + 1 } else { 0 };
        history.answered |= stored.is_some_and(|stored| stored.polled_at.is_some());
        history.failing_for = since.elapsed();
        history.gone_for = stored.map_or(Duration::ZERO, gone_for);
        history.first_page = asked == self.feed.url;
        history.probe = None;
    }

    fn secrets_changed(&self, reason: &mut String) -> bool {
        match self.feed.source.requests.read_secrets() {
            Ok(changed) => changed,
            Err(failure) => {
                *reason = format!("{failure}; {reason}");
                false
            }
        }
    }

    async fn probe(&self) -> Probe {
        let feed = self.feed;
        let _turn = feed.source.host.turn(&feed.name, Priority::Refresh).await;
        let room = feed.source.room(Some(&feed.pulses[POLL_PULSE])).await;
        feed.pulses[POLL_PULSE].within(feed.page_timeout);
        match feed.source.requests.get(&feed.url, None, room).await {
            Ok(Answer::Page(..) | Answer::NotModified(_) | Answer::ValidatorRefused(_)) => Probe::Answers,
            Err(Failure::Status { code: 404 | 410, .. }) => Probe::Gone,
            Err(failure) => {
                let (_, reason) = explain(&failure);
                tracing::debug!(feed = %feed.name, reason, "the feed's own URL fails too");
                Probe::Fails
            }
        }
    }

    /// The cursor is dead while the feed answers: a resync, at most weekly; until then it is stuck.
    async fn dead_cursor(&self, stored: Option<&StoredFeed>, ruling: &mut Ruling, reason: &str) -> String {
        let Some(stored) = stored else { return reason.to_owned() };
        if stored.resync.is_some() {
            return format!("dead-cursor: the feed is being read anew ({reason})");
        }
        if may_resync(self.feed, stored) {
            self.begin_resync(true).await;
            return format!("dead-cursor: the cursor is gone, the feed is read anew ({reason})");
        }
        ruling.health = Health::Stuck;
        format!(
            "dead-cursor: the cursor is gone, and the feed was read anew not long ago ({reason}); \
             if it is urgent: feedmirror resync, or seek"
        )
    }

    async fn purge_if_gone_long(&self, ruling: &Ruling) {
        let feed = self.feed;
        let (Wait::Gone { since }, Some(kept)) = (ruling.wait, feed.purge_gone_after) else { return };
        if since >= kept {
            self.logged("a gone feed could not be purged", feed.shared.store.purge(&feed.name, now()).await.map(drop));
        }
    }

    /// Walks again from where the cursor was a while ago; no cursor moves. One that fails is tried again, from as far
    /// back as the first: the time between two that came to their end is always covered twice.
    async fn look_back(&mut self) {
        let feed = self.feed;
        let store = &feed.shared.store;
        let began = now();
        self.look_back_at = Instant::now() + feed.poll.lookback.mul_f64(1.0 + 0.05 * chance());
        let Ok(stored) = store.feed(&feed.name).await else { return };
        let lookback = millis(feed.poll.lookback);
        let due = stored.looked_back_at.map_or(began, |at| at.saturating_add(lookback)).min(began);
        let before = due.saturating_sub(lookback.saturating_mul(2));
        // Of a young feed no position is old enough: it is looked at as far back as a look-back reaches. What was
        // committed late while it was read the first time would be found by none of the later ones.
        let Ok(Some(position)) = store.position(feed.id, before, LOOK_BACK_PAGES).await else { return };
        let walk = Walk::new(feed, Kind::LookBack, stored.generation, self.cancel, &feed.pulses[POLL_PULSE]);
        let walked = walk.run(position.clone(), None, EndMemory::default()).await;
        let written = walked.applied.written();
        if written > 0 {
            tracing::info!(feed = %feed.name, written, "a look-back found late items");
            let found = format!("{written} items that had not come at the cursor, found from {position}");
            self.logged("an event could not be written", store.event(Some(feed.id), began, "late-items", &found).await);
        }
        match walked.end {
            End::Level { .. } if walked.records == 0 => self.went_back(&position).await,
            End::Level { .. } | End::Limit => {}
            End::Overtaken | End::Stopped => return,
            End::Failed { trouble, reason, asked } => {
                if asked == position && matches!(trouble, Trouble::Status { code: 404 | 410, .. }) {
                    let forgotten = store.forget_position(feed.id, position).await;
                    self.logged("a dead position could not be forgotten", forgotten);
                }
                self.look_back_failures = self.look_back_failures.saturating_add(1);
                let failures = self.look_back_failures;
                let wait = schedule::after_failure(&feed.retry, Wait::Backoff, failures, chance());
                self.look_back_at = Instant::now() + wait.min(feed.poll.lookback);
                tracing::info!(feed = %feed.name, reason, failures, "a look-back failed and is tried again");
                return;
            }
        }
        self.look_back_failures = 0;
        self.logged("a look-back could not be noted", store.looked_back(feed.id, began).await);
    }

    async fn went_back(&self, position: &str) {
        let reason = format!(
            "went-back: it sends nothing from {position}, after which live items were polled; if it was restored or \
             replaced: feedmirror resync --trust-source"
        );
        tracing::warn!(feed = %self.feed.name, reason, "the publisher contradicts the mirror");
        self.logged("could not be marked suspect", self.feed.shared.store.suspect(self.feed.id, now(), reason).await);
    }
}

/// Resyncs that nobody asked for go at most weekly, or as often as `resync.every` asks for. A stored time that lies in
/// the future is no reason to wait for it.
fn may_resync(feed: &Feed, stored: &StoredFeed) -> bool {
    let least = feed.resync_every.map_or(WEEK, |every| every.min(WEEK));
    stored.resynced_at.is_none_or(|at| at > now() || between(at, now()) >= least)
}

fn gone_for(stored: &StoredFeed) -> Duration {
    let since = stored.since.filter(|_| stored.health == Health::Gone);
    since.map_or(Duration::ZERO, |since| between(since, now()))
}

/// The time from one stored moment to another; none when it lies ahead.
fn between(from: Millis, to: Millis) -> Duration {
    Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}
