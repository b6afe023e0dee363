//! The poll endpoint's loop: refresh to the end, then look at the end at a learnt pace, and judge every failure by the
//! rules of [`crate::mode`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::{EndMemory, Validator};
use super::walk::{End, Kind, Walk, Walked};
use super::{Feed, POLL_PULSE, chance};
use crate::feed::{Health, Mode};
use crate::mode::push::Moment;
use crate::mode::{self, History, Probe, Ruling, Step, Trouble};
use crate::schedule::{self, Pace, Polled, Wait};
use crate::source::turns::{LevelMark, Priority};
use crate::store::feeds::{Note, StoredFeed};
use crate::store::resync::Trust;
use crate::store::{Millis, StoreError, now};

/// A resync that nobody asked for begins at most this often.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The longest waits that can have been stored, jitter included: after the third 503, and of a gone feed.
const LONGEST_RETRY: Duration = Duration::from_secs(2 * 3_600);
const LONGEST_GONE: Duration = Duration::from_secs(27 * 3_600);
const UNAVAILABLE: &str = "; the third in a row that doesn't say for how long: it is asked again in one to two hours";
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
    /// Whoever only guesses that something is new waits until then.
    earliest: Instant,
    /// How long it was not read before the turn under way.
    away: Duration,
    /// When it was last found gone, or begun to be watched while it is.
    gone_at: Option<Instant>,
    /// Whether its own URL is to be asked before its cursor, since that could not be done when the cursor failed.
    probe_first: bool,
    validator: Option<Validator>,
    /// What the walks before learnt of the feed's end.
    memory: EndMemory,
    level: Option<LevelMark>,
    /// How often the secrets had changed when the walk under way, or the last one, began.
    secret_changes: u64,
    /// Whether a secret was what the publisher refused.
    refused: bool,
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
            earliest: Instant::now(),
            away: Duration::ZERO,
            gone_at: None,
            probe_first: false,
            validator: None,
            memory: EndMemory::default(),
            level: None,
            secret_changes: 0,
            refused: false,
            began: Moment::ZERO,
        }
    }

    /// Until cancelled.
    pub async fn run(mut self, stored: &StoredFeed) {
        let feed = self.feed;
        self.history.failures = stored.failures;
        self.gone_at = (stored.health == Health::Gone).then(Instant::now);
        feed.source.not_before.hold(schedule::left(stored.held_until, now(), self.longest_retry()));
        let mut due = Instant::now() + self.first_wait(stored);
        if stored.failures > 0 {
            self.earliest = due;
        }
        loop {
            if self.rest(due).await.is_break() {
                return;
            }
            let (wait, pause) = match self.heard_turn().await {
                Turn::Level(wait) => (wait, wait.min(feed.poll.min)),
                Turn::Failed { wait, .. } => (wait, wait),
                Turn::Again => (OVERTAKEN_PAUSE, Duration::ZERO),
                Turn::NoCursor => (feed.poll.max, Duration::ZERO),
                Turn::Stopped => return,
            };
            due = Instant::now() + wait;
            self.earliest = Instant::now() + pause;
        }
    }

    /// A turn in which an operator's `poll-now` is heard: it may be what the turn waits for.
    async fn heard_turn(&mut self) -> Turn {
        let feed = self.feed;
        let mut turn = std::pin::pin!(self.turn());
        let mut heard = false;
        let ended = loop {
            tokio::select! {
                ended = &mut turn => break ended,
                () = feed.poll_now.notified() => {
                    heard = true;
                    feed.lift_hold().await;
                }
            }
        };
        if heard {
            feed.poll_now.notify_one();
        }
        ended
    }

    fn longest_retry(&self) -> Duration {
        LONGEST_RETRY.max(self.feed.retry.max.mul_f64(1.1))
    }

    /// What is left of the wait that was stored. A feed that failed is asked at once: a start is how an operator says
    /// that something was put right.
    fn first_wait(&self, stored: &StoredFeed) -> Duration {
        let longest = match stored.health {
            Health::Failed => Duration::ZERO,
            Health::Gone => LONGEST_GONE,
            Health::Retrying | Health::Stuck => self.longest_retry(),
            _ => self.feed.poll.max.mul_f64(1.1),
        };
        schedule::left(stored.next_poll_at, now(), longest)
    }

    /// Until it is due, or sooner where somebody wants it. Who only guesses that something is new waits for the feed's pace
    /// and for what its publisher said, who has put something in order for that word alone, and the operator for neither.
    async fn rest(&self, mut due: Instant) -> ControlFlow<()> {
        let feed = self.feed;
        let mut refused = self.refused;
        loop {
            let wake = due.max(Instant::now() + feed.source.not_before.left());
            feed.pulses[POLL_PULSE].within(wake.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.cancel.cancelled() => return ControlFlow::Break(()),
                () = tokio::time::sleep_until(wake) => {
                    if feed.source.not_before.left().is_zero() {
                        return ControlFlow::Continue(());
                    }
                }
                () = feed.poll_now.notified() => {
                    feed.lift_hold().await;
                    return ControlFlow::Continue(());
                }
                () = feed.source.requests.secrets_changed(self.secret_changes), if refused => {
                    (due, refused) = (Instant::now(), false);
                }
                () = feed.poll_anew.notified() => due = Instant::now(),
                () = feed.poll_soon.notified() => due = due.min(self.earliest),
            }
        }
    }

    /// One walk from the stored cursor, and what follows from its end.
    pub async fn turn(&mut self) -> Turn {
        let feed = self.feed;
        let mut stored = match feed.shared.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(StoreError::Closed) => return Turn::Stopped,
            Err(error) => return self.failed(None, Trouble::Store, format!("store: {error}"), "").await,
        };
        if stored.paused {
            // Paused by its own purge: the supervisor stops loops that the operator pauses.
            return Turn::NoCursor;
        }
        let Some(cursor) = stored.cursor.clone() else { return Turn::NoCursor };
        self.notice_away(&mut stored).await;
        let probed = match std::mem::take(&mut self.probe_first) {
            true => Some(self.probe().await),
            false => None,
        };
        let level = stored.mode != Mode::Refresh;
        self.began = feed.book.moment();
        self.secret_changes = feed.source.requests.secret_changes();
        self.refused = false;
        let walk = Walk::new(feed, Kind::Poll { level }, stored.generation, self.cancel, &feed.pulses[POLL_PULSE]);
        let memory = std::mem::take(&mut self.memory);
        let mut walked = walk.asked_at(stored.seq).run(cursor, self.validator.clone(), memory).await;
        self.memory = std::mem::take(&mut walked.memory);
        if walked.pages > 0 && !matches!(walked.end, End::Overtaken | End::Stopped) {
            self.answered(&stored, &walked).await;
        }
        match walked.end.clone() {
            End::Level { reason, fresh_for } => self.levelled(walked, reason, fresh_for).await,
            End::Overtaken | End::Limit => Turn::Again,
            End::Stopped => Turn::Stopped,
            End::Failed { trouble, reason, asked } => {
                self.history.probe = probed;
                self.failed(Some(&stored), trouble, reason, &asked).await
            }
        }
    }

    /// A feed that was not read for longer than its publisher remembers deletions is noted before it is read: each page
    /// says that it was read just now. Whether it is so is judged by [`Self::answered`].
    async fn notice_away(&mut self, stored: &mut StoredFeed) {
        let feed = self.feed;
        let by_wall = || stored.polled_at.map_or(Duration::ZERO, |at| between(at, now()));
        self.away = self.last_ok.map_or(Duration::ZERO, |last_ok| last_ok.elapsed());
        let seems = if self.last_ok.is_some() { self.away } else { by_wall() };
        if seems > feed.retention && !stored.stale && stored.away_since.is_none() {
            stored.away_since = stored.polled_at;
            if let Some(since) = stored.polled_at {
                self.logged("a time away could not be noted", feed.shared.store.seems_away(feed.id, since).await);
            }
        }
    }

    /// At least one page came. How long the feed was not read is known by the monotonic clock at run time; over a restart
    /// by the wall clock, and only as far as the publisher's own clock agrees, so that a clock that was set wrong resyncs
    /// nothing.
    async fn answered(&mut self, stored: &StoredFeed, walked: &Walked) {
        let feed = self.feed;
        self.last_ok = Some(Instant::now());
        if walked.got_on() {
            self.healed();
        }
        if !stored.gone_for.is_zero() {
            self.gone_at = None;
            self.logged("could not be noted", feed.shared.store.gone_for(feed.id, Duration::ZERO).await);
        }
        let Some(since) = stored.away_since else { return };
        let today = walked.date.map_or(now(), |date| date.min(now()));
        let away = self.away.max(between(since, today));
        let stale = (away > feed.retention)
            .then(|| format!("away for {away:?}, longer than deletions are remembered ({:?})", feed.retention));
        self.logged("a time away could not be judged", feed.shared.store.judge_away(feed.id, now(), stale).await);
    }

    fn healed(&mut self) {
        if self.history.failures > 0 {
            tracing::info!(feed = %self.feed.name, failures = self.history.failures, "polling works again");
        }
        self.failing_since = None;
        self.history = History { answered: true, ..History::default() };
    }

    async fn levelled(&mut self, walked: Walked, reason: Option<&'static str>, fresh_for: Option<Duration>) -> Turn {
        let feed = self.feed;
        self.validator = walked.validator;
        if self.level.is_none() {
            self.level = Some(feed.source.host.mark_level());
        }
        feed.level.send_if_modified(|level| !std::mem::replace(level, true));
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
        let stored = match feed.shared.store.feed(&feed.name).await {
            Ok(stored) if stored.resync.is_none() => stored,
            Ok(_) => return,
            // The next poll sees it.
            Err(error) => return self.logged("whether a resync is due could not be seen", Err(error)),
        };
        let due = |every: Duration, at: Millis| {
            let next = at.saturating_add(millis(every));
            schedule::left(Some(next), now(), every.mul_f64(1.1)).is_zero()
        };
        let due = feed.resync_every.is_some_and(|every| stored.read_anew_at.is_some_and(|at| due(every, at)));
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
        let next_poll_at = at.saturating_add(millis(wait.max(self.feed.source.not_before.left())));
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
        feed.level.send_if_modified(|level| std::mem::replace(level, false));
        self.validator = None;
        self.remember(stored, trouble, asked);
        let mut reason = reason;
        let mut ruling = mode::judge(trouble, &self.history);
        self.probe_first = ruling.step == Step::Probe && ruling.holds;
        if ruling.step == Step::Probe && !ruling.holds {
            self.history.probe = Some(self.probe().await);
            ruling = mode::judge(trouble, &self.history);
        }
        let failures = self.history.failures;
        match ruling.step {
            Step::Secrets if self.secrets_changed(&mut reason) => return Turn::Again,
            Step::Secrets => self.refused = true,
            Step::Resync => reason = self.dead_cursor(stored, &mut ruling, &reason).await,
            _ => {}
        }
        if ruling.slow_host {
            feed.source.host.slow_down();
        }
        let unavailable = ruling.wait == Wait::Unavailable;
        if unavailable {
            reason.push_str(UNAVAILABLE);
        }
        let wait = schedule::after_failure(&feed.retry, ruling.wait, failures, chance());
        if ruling.holds {
            feed.hold(wait).await;
        }
        self.count_gone(&ruling).await;
        // A failure that persists is told at its start and rarely after, and when the long waits begin.
        if failures.is_power_of_two() || unavailable && self.history.unavailable == 3 {
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
        // Waits are counted, since a clock that is set ahead ends nobody's time.
        let since = self.gone_at.map_or(Duration::ZERO, |at| at.elapsed());
        history.gone_for = stored.map_or(Duration::ZERO, |stored| stored.gone_for) + since;
        history.first_page = asked == self.feed.url;
    }

    async fn count_gone(&mut self, ruling: &Ruling) {
        let Wait::Gone { since } = ruling.wait else { return self.gone_at = None };
        self.gone_at = Some(Instant::now());
        self.logged("could not be noted", self.feed.shared.store.gone_for(self.feed.id, since).await);
    }

    fn secrets_changed(&self, reason: &mut String) -> bool {
        match self.feed.source.requests.read_secrets() {
            Ok(changes) => changes != self.secret_changes,
            Err(failure) => {
                *reason = format!("{failure}; {reason}");
                false
            }
        }
    }

    async fn probe(&self) -> Probe {
        let feed = self.feed;
        if !feed.source.not_before.left().is_zero() {
            return Probe::Fails;
        }
        let asked = tokio::select! {
            () = self.cancel.cancelled() => return Probe::Fails,
            asked = feed.source.download(&feed.url, None, Priority::Refresh, Some(&feed.pulses[POLL_PULSE])) => asked,
        };
        match asked {
            Ok(_) => Probe::Answers,
            Err((Trouble::Status { code: 404 | 410, .. }, _)) => Probe::Gone,
            Err((trouble, reason)) => {
                let ruling = mode::judge(trouble, &History { answered: true, ..History::default() });
                if ruling.holds {
                    feed.hold(schedule::after_failure(&feed.retry, ruling.wait, 1, chance())).await;
                }
                tracing::debug!(feed = %feed.name, reason, "the feed's own URL fails too");
                Probe::Fails
            }
        }
    }

    /// The cursor is dead while the feed answers: a resync, at most weekly; until then it is stuck.
    async fn dead_cursor(&self, stored: Option<&StoredFeed>, ruling: &mut Ruling, reason: &str) -> String {
        let Some(stored) = stored else { return reason.to_owned() };
        if let Some(resync) = &stored.resync {
            let wait = resync.wait(now());
            if wait.is_zero() {
                return format!("dead-cursor: the feed is being read anew ({reason})");
            }
            ruling.health = Health::Stuck;
            let seconds = wait.as_secs();
            return format!(
                "dead-cursor: reading it anew met a dead page too, and begins again in {seconds} s ({reason})"
            );
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
}

/// Resyncs that nobody asked for go at most weekly, or as often as `resync.every` asks for. A stored time that lies in
/// the future is no reason to wait for it.
fn may_resync(feed: &Feed, stored: &StoredFeed) -> bool {
    let least = feed.resync_every.map_or(WEEK, |every| every.min(WEEK));
    stored.resynced_at.is_none_or(|at| at > now() || between(at, now()) >= least)
}

/// The time from one stored moment to another; none when it lies ahead.
fn between(from: Millis, to: Millis) -> Duration {
    Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}
