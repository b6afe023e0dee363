//! The poll endpoint's loop: reads the feed to its end, then polls the end at a learnt pace, and handles every failure
//! by the rules of [`crate::mode`]. It begins resyncs and leaves walking them to [`super::resync`].

mod failure;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::{EndEvidence, Validator};
use super::walk::{FeedWalk, WalkEnd, WalkKind, WalkReport};
use super::{FeedRuntime, jitter};
use crate::feed::{Health, Mode};
use crate::mode::push::Moment;
use crate::mode::{FailureHistory, FailureKind};
use crate::schedule::{self, PollObservation, PollPace};
use crate::source::host_limiter::LevelGuard;
use crate::store::feeds::{HealthNote, StoredFeed};
use crate::store::resync::SourceTrust;
use crate::store::{Millis, StoreError, millis, now};

/// A resync without an order begins at most this often.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The longest waits that can have been stored, jitter included: after the third 503 in a row, and of a gone feed.
const LONGEST_RETRY: Duration = Duration::from_secs(2 * 3_600);
const LONGEST_GONE: Duration = Duration::from_secs(27 * 3_600);
/// How long a superseded walk waits before it begins again: what superseded it may still be going on.
const SUPERSEDED_PAUSE: Duration = Duration::from_millis(100);

/// One feed's poll loop.
pub struct PollLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    cancel: &'a CancellationToken,
    pace: PollPace,
    history: FailureHistory,
    failing_since: Option<Instant>,
    last_poll: Instant,
    last_ok: Option<Instant>,
    /// `poll_at_pace` polls no sooner than this.
    earliest_at_pace: Instant,
    /// How long the feed was not read before the present run, by the monotonic clock.
    unread_for: Duration,
    /// When the feed was last found gone, or when this loop began while it was.
    gone_at: Option<Instant>,
    /// Whether to request the feed's own URL before its cursor, since that was not allowed when the cursor failed.
    probe_first: bool,
    validator: Option<Validator>,
    /// What the walks before found out about the feed's end.
    end_evidence: EndEvidence,
    level: Option<LevelGuard>,
    /// How often the secrets had changed when the present or last walk began.
    secret_changes: u64,
    /// Whether the publisher refused a secret.
    secret_refused: bool,
    /// When the present or last walk began.
    walk_began: Moment,
}

/// How one run of the loop's body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollOutcome {
    /// The feed is level; poll again after this wait.
    Level(Duration),
    /// The walk failed.
    Failed {
        /// What kind of failure it is.
        kind: FailureKind,
        /// A text for the operator, beginning with a fixed word.
        reason: String,
        /// Failures in a row.
        failures: u32,
        /// 503s in a row without `Retry-After`.
        unavailable: u32,
        /// How long to wait before the next run.
        wait: Duration,
    },
    /// Begin again, from what is stored now.
    Restart,
    /// Nothing to do until a resync has set the cursor.
    NoCursor,
    /// Cancelled, or the store has stopped.
    Stopped,
}

impl<'a> PollLoop<'a> {
    /// A loop for `feed`, to be cancelled by `cancel`.
    pub fn new(feed: &'a Arc<FeedRuntime>, cancel: &'a CancellationToken) -> Self {
        Self {
            feed,
            cancel,
            pace: PollPace::default(),
            history: FailureHistory::default(),
            failing_since: None,
            last_poll: Instant::now(),
            last_ok: None,
            earliest_at_pace: Instant::now(),
            unread_for: Duration::ZERO,
            gone_at: None,
            probe_first: false,
            validator: None,
            end_evidence: EndEvidence::default(),
            level: None,
            secret_changes: 0,
            secret_refused: false,
            walk_began: Moment::ZERO,
        }
    }

    /// Runs until cancelled.
    pub async fn run(mut self, stored: &StoredFeed) {
        let feed = self.feed;
        self.history.failures = stored.failures;
        self.gone_at = (stored.health == Health::Gone).then(Instant::now);
        feed.source.not_before.postpone(schedule::remaining_wait(stored.held_until, now(), self.longest_retry()));
        let mut due = Instant::now() + self.first_wait(stored);
        if stored.failures > 0 {
            self.earliest_at_pace = due;
        }
        loop {
            if self.wait_until_due(due).await.is_break() {
                return;
            }
            let (wait, pause) = match self.run_once_overridable().await {
                PollOutcome::Level(wait) => (wait, wait.min(feed.poll.min)),
                PollOutcome::Failed { wait, .. } => (wait, wait),
                PollOutcome::Restart => (SUPERSEDED_PAUSE, Duration::ZERO),
                PollOutcome::NoCursor => (feed.poll.max, Duration::ZERO),
                PollOutcome::Stopped => return,
            };
            due = Instant::now() + wait;
            self.earliest_at_pace = Instant::now() + pause;
        }
    }

    /// One run, during which an operator's `poll-now` ends "not before": the run may be waiting for that.
    async fn run_once_overridable(&mut self) -> PollOutcome {
        let feed = self.feed;
        let mut run = std::pin::pin!(self.run_once());
        let mut override_requested = false;
        let outcome = loop {
            tokio::select! {
                outcome = &mut run => break outcome,
                () = feed.poll_now.notified() => {
                    override_requested = true;
                    feed.clear_not_before().await;
                }
            }
        };
        if override_requested {
            feed.poll_now.notify_one();
        }
        outcome
    }

    fn longest_retry(&self) -> Duration {
        LONGEST_RETRY.max(self.feed.retry.max.mul_f64(1.1))
    }

    /// The rest of the stored wait. A failed feed is polled at once: by a restart an operator says that its cause is
    /// repaired.
    fn first_wait(&self, stored: &StoredFeed) -> Duration {
        let longest = match stored.health {
            Health::Failed => Duration::ZERO,
            Health::Gone => LONGEST_GONE,
            Health::Retrying | Health::Stuck => self.longest_retry(),
            _ => self.feed.poll.max.mul_f64(1.1),
        };
        schedule::remaining_wait(stored.next_poll_at, now(), longest)
    }

    /// Waits until the poll is due, or is requested sooner: `poll_at_pace` waits for the feed's pace and for "not
    /// before", `poll_when_allowed` for "not before" alone, and the operator's `poll_now` for neither.
    async fn wait_until_due(&self, mut due: Instant) -> ControlFlow<()> {
        let feed = self.feed;
        let mut wake_on_secrets = self.secret_refused;
        loop {
            let wake = due.max(Instant::now() + feed.source.not_before.remaining());
            feed.heartbeats.poll.expect_within(wake.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.cancel.cancelled() => return ControlFlow::Break(()),
                () = tokio::time::sleep_until(wake) => {
                    if feed.source.not_before.remaining().is_zero() {
                        return ControlFlow::Continue(());
                    }
                }
                () = feed.poll_now.notified() => {
                    feed.clear_not_before().await;
                    return ControlFlow::Continue(());
                }
                () = feed.source.requests.secrets_changed(self.secret_changes), if wake_on_secrets => {
                    (due, wake_on_secrets) = (Instant::now(), false);
                }
                () = feed.poll_when_allowed.notified() => due = Instant::now(),
                () = feed.poll_at_pace.notified() => due = due.min(self.earliest_at_pace),
            }
        }
    }

    /// One walk from the stored cursor, and the handling of its end.
    pub async fn run_once(&mut self) -> PollOutcome {
        let feed = self.feed;
        let mut stored = match feed.context.store.feed(&feed.name).await {
            Ok(stored) => stored,
            Err(StoreError::Closed) => return PollOutcome::Stopped,
            Err(error) => return self.handle_failure(None, FailureKind::Store, format!("store: {error}"), "").await,
        };
        if stored.paused {
            // Paused by a purge: where the operator pauses a feed, the supervisor stops its loops.
            return PollOutcome::NoCursor;
        }
        let Some(cursor) = stored.cursor.clone() else { return PollOutcome::NoCursor };
        self.notice_away(&mut stored).await;
        let probe = match std::mem::take(&mut self.probe_first) {
            true => Some(self.probe().await),
            false => None,
        };
        let level = stored.mode != Mode::Refresh;
        self.walk_began = feed.push_state.moment();
        self.secret_changes = feed.source.requests.secret_changes();
        self.secret_refused = false;
        let walk = FeedWalk::new(feed, WalkKind::Poll { level }, stored.generation, self.cancel, &feed.heartbeats.poll);
        let end_evidence = std::mem::take(&mut self.end_evidence);
        let mut report =
            walk.with_seq_at_start(stored.last_seq).run(cursor, self.validator.clone(), end_evidence).await;
        self.end_evidence = std::mem::take(&mut report.end_evidence);
        if report.pages > 0 && !matches!(report.end, WalkEnd::Superseded | WalkEnd::Stopped) {
            self.record_answer(&stored, &report).await;
        }
        match report.end.clone() {
            WalkEnd::Level { reason, fresh_for } => self.handle_level(report, reason, fresh_for).await,
            WalkEnd::Superseded | WalkEnd::PageLimit => PollOutcome::Restart,
            WalkEnd::Stopped => PollOutcome::Stopped,
            WalkEnd::Failed { kind, reason, url } => {
                self.history.probe = probe;
                self.handle_failure(Some(&stored), kind, reason, &url).await
            }
        }
    }

    /// Records that the feed was not read for longer than its publisher keeps tombstones. This happens before the feed
    /// is read, since each page stores that it was read just now. [`Self::record_answer`] decides whether the feed is
    /// stale.
    async fn notice_away(&mut self, stored: &mut StoredFeed) {
        let feed = self.feed;
        let by_wall_clock = || stored.polled_at.map_or(Duration::ZERO, |at| between(at, now()));
        self.unread_for = self.last_ok.map_or(Duration::ZERO, |last_ok| last_ok.elapsed());
        let unread_for = if self.last_ok.is_some() { self.unread_for } else { by_wall_clock() };
        if unread_for > feed.retention && !stored.stale && stored.away_since.is_none() {
            stored.away_since = stored.polled_at;
            if let Some(since) = stored.polled_at {
                self.log_store_error(
                    "a time away could not be noted",
                    feed.context.store.set_away_since(feed.id, since).await,
                );
            }
        }
    }

    /// At least one page was received. How long the feed was not read is known by the monotonic clock at run time; over
    /// a restart by the wall clock, and only as far as the publisher's own clock agrees, so that a wrong clock causes
    /// no resync.
    async fn record_answer(&mut self, stored: &StoredFeed, report: &WalkReport) {
        let feed = self.feed;
        self.last_ok = Some(Instant::now());
        if report.made_progress() {
            self.reset_failures();
        }
        if !stored.gone_for.is_zero() {
            self.gone_at = None;
            self.log_store_error("could not be noted", feed.context.store.set_gone_for(feed.id, Duration::ZERO).await);
        }
        let Some(since) = stored.away_since else { return };
        let publisher_now = report.publisher_time_ms.map_or(now(), |date| date.min(now()));
        let unread_for = self.unread_for.max(between(since, publisher_now));
        let stale = (unread_for > feed.retention)
            .then(|| format!("away for {unread_for:?}, longer than deletions are remembered ({:?})", feed.retention));
        self.log_store_error(
            "a time away could not be judged",
            feed.context.store.resolve_away(feed.id, now(), stale).await,
        );
    }

    fn reset_failures(&mut self) {
        if self.history.failures > 0 {
            tracing::info!(feed = %self.feed.name, failures = self.history.failures, "polling works again");
        }
        self.failing_since = None;
        self.history = FailureHistory { ever_answered: true, ..FailureHistory::default() };
    }

    async fn handle_level(
        &mut self,
        report: WalkReport,
        reason: Option<&'static str>,
        fresh_for: Option<Duration>,
    ) -> PollOutcome {
        let feed = self.feed;
        self.validator = report.validator;
        if self.level.is_none() {
            self.level = Some(feed.source.host.mark_level());
        }
        feed.level.send_if_modified(|level| !std::mem::replace(level, true));
        let changed = report.applied.written() > 0;
        let mode =
            feed.record_level_poll(self.walk_began, report.applied.item_versions, "the end of the feed was seen").await;
        let wait = if mode.is_push() {
            feed.audit.mul_f64(0.95 + 0.1 * jitter())
        } else {
            let observation = PollObservation { changed, elapsed: self.last_poll.elapsed(), fresh_for };
            self.pace.next_wait(&feed.poll, observation, jitter())
        };
        self.last_poll = Instant::now();
        let reason = reason
            .map(|finding| format!("{finding}: taken as level, though the end is not shown as the standard says"));
        self.record_health(Health::Ok, reason, wait).await;
        self.resync_if_due().await;
        PollOutcome::Level(wait)
    }

    /// Begins a resync of a level feed that is stale, or whose `resync.every` has passed.
    async fn resync_if_due(&self) {
        let feed = self.feed;
        let stored = match feed.context.store.feed(&feed.name).await {
            Ok(stored) if stored.resync.is_none() => stored,
            Ok(_) => return,
            // The next poll tries again.
            Err(error) => return self.log_store_error("whether a resync is due could not be seen", Err(error)),
        };
        let due = |every: Duration, at: Millis| {
            let next = at.saturating_add(millis(every));
            schedule::remaining_wait(Some(next), now(), every.mul_f64(1.1)).is_zero()
        };
        let due = feed.resync_every.is_some_and(|every| stored.read_anew_at.is_some_and(|at| due(every, at)));
        if due || stored.stale && may_resync(feed, &stored) {
            self.begin_resync(!due).await;
        }
    }

    async fn begin_resync(&self, automatic: bool) {
        let feed = self.feed;
        let result = feed.context.store.begin_resync(&feed.name, now(), SourceTrust::No, automatic).await;
        self.log_store_error("a resync could not begin", result.map(drop));
        feed.resync_now.notify_one();
    }

    async fn record_health(&self, health: Health, reason: Option<String>, wait: Duration) {
        let at = now();
        let next_poll_at = at.saturating_add(millis(wait.max(self.feed.source.not_before.remaining())));
        let note = HealthNote { health, reason, failures: self.history.failures, next_poll_at: Some(next_poll_at) };
        self.log_store_error(
            "health could not be noted",
            self.feed.context.store.record_health(self.feed.id, at, note).await,
        );
    }

    /// A failed write of health or events is no reason to stop reading; a stopped store is reported elsewhere.
    fn log_store_error(&self, what: &str, result: Result<(), StoreError>) {
        match result {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(feed = %self.feed.name, %error, "{what}"),
        }
    }
}

/// Whether a resync may begin without an order: at most weekly, or as often as `resync.every` says. A stored time that
/// lies in the future is ignored.
fn may_resync(feed: &FeedRuntime, stored: &StoredFeed) -> bool {
    let least = feed.resync_every.map_or(WEEK, |every| every.min(WEEK));
    stored.resynced_at.is_none_or(|at| at > now() || between(at, now()) >= least)
}

/// The time from one stored moment to another; zero when the other is earlier.
fn between(from: Millis, to: Millis) -> Duration {
    Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}
