//! When to send the next request: computes waits from outcomes. Pure: time and randomness are passed in.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// `[poll]`: how often a level feed is polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollSettings {
    /// The shortest wait between two polls of a level feed.
    pub min: Duration,
    /// The longest wait between two polls of a level feed.
    pub max: Duration,
    /// How often a level feed is walked again from where its cursor was a while ago.
    pub lookback: Duration,
}

impl Default for PollSettings {
    fn default() -> Self {
        Self { min: Duration::from_secs(8), max: Duration::from_secs(600), lookback: Duration::from_secs(3_600) }
    }
}

/// `[retry]`: exponential backoff with full jitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySettings {
    /// The first wait after an error.
    pub min: Duration,
    /// The longest wait after errors; also the most that a `Retry-After` can ask for.
    pub max: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { min: Duration::from_secs(1), max: Duration::from_secs(900) }
    }
}

/// How often a level feed is polled: learns how often it really changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PollPace {
    wait: Duration,
    /// The usual time between two changes, once there were two.
    usual_gap: Option<Duration>,
    since_change: Duration,
}

/// The result of a poll of a level feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollObservation {
    /// Whether the poll found a change.
    pub changed: bool,
    /// The time since the poll before.
    pub elapsed: Duration,
    /// How long the response is fresh, if the publisher says so.
    pub fresh_for: Option<Duration>,
}

impl PollPace {
    /// The wait before the next poll; `random` (0 to 1) spreads the polls of many feeds.
    ///
    /// After a change the wait shrinks towards half the usual gap between changes. Without one it grows by half, up to
    /// `poll.max`, and no faster than the usual gap warrants. A response is not requested again while it is fresh.
    pub fn next_wait(&mut self, settings: &PollSettings, observation: PollObservation, random: f64) -> Duration {
        self.since_change += observation.elapsed;
        if observation.changed {
            let gap = self.since_change.max(settings.min);
            self.usual_gap = Some(self.usual_gap.map_or(gap, |usual| (usual * 3 + gap) / 4));
            self.since_change = Duration::ZERO;
            self.wait = self.usual_gap.map_or(settings.min, |gap| gap / 2).min(self.wait / 2);
        } else {
            self.wait = self.wait * 3 / 2;
        }
        let overdue = self.usual_gap.is_none_or(|gap| self.since_change > gap * 4);
        let usual = self.usual_gap.map_or(settings.max, |gap| gap / 2);
        let longest = if overdue { settings.max } else { usual.clamp(settings.min, settings.max) };
        self.wait = self.wait.clamp(settings.min, longest);
        let fresh = observation.fresh_for.unwrap_or_default().min(settings.max);
        add_jitter(self.wait.max(fresh), random)
    }
}

/// Up to a tenth longer.
fn add_jitter(wait: Duration, random: f64) -> Duration {
    wait.mul_f64(1.0 + 0.1 * random.clamp(0.0, 1.0))
}

/// The kind of wait after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryWait {
    /// Exponential backoff with full jitter.
    Backoff,
    /// The value of `Retry-After`, clamped.
    RetryAfter(Duration),
    /// The third 503 in a row without `Retry-After`: 60 to 120 minutes (RPDE 1.0).
    Unavailable,
    /// Only an operator can help; tried again hourly all the same.
    Hourly,
    /// A feed that is gone: hourly for a day, then daily.
    Gone {
        /// For how long the feed has been gone.
        since: Duration,
    },
}

const HOUR: Duration = Duration::from_secs(3_600);

/// The wait after a failure, the `failures`-th in a row (from 1); `random` is 0 to 1.
pub fn wait_after_failure(settings: &RetrySettings, wait: RetryWait, failures: u32, random: f64) -> Duration {
    match wait {
        RetryWait::Backoff => {
            let longest = max_backoff(settings, failures);
            settings.min + longest.saturating_sub(settings.min).mul_f64(random.clamp(0.0, 1.0))
        }
        RetryWait::RetryAfter(retry_after) => {
            add_jitter(retry_after.clamp(settings.min, settings.max), random).min(settings.max)
        }
        RetryWait::Unavailable => HOUR.mul_f64(1.0 + random.clamp(0.0, 1.0)),
        RetryWait::Hourly => add_jitter(HOUR, random),
        RetryWait::Gone { since } if since < HOUR * 24 => add_jitter(HOUR, random),
        RetryWait::Gone { .. } => add_jitter(HOUR * 24, random),
    }
}

/// The longest wait after so many failures: doubled with each, up to `retry.max`.
fn max_backoff(settings: &RetrySettings, failures: u32) -> Duration {
    // After so many doublings any `retry.max` is reached.
    let steps = failures.min(64) as usize;
    let waits = ExponentialBuilder::new().with_min_delay(settings.min).with_max_delay(settings.max);
    waits.without_max_times().build().nth(steps).unwrap_or(settings.max)
}

/// The rest of a stored wait. A stored time beyond `now` plus the longest wait is due at once, since the clock was set
/// back. Times in milliseconds since 1970 UTC.
pub fn remaining_wait(stored: Option<i64>, now: i64, longest: Duration) -> Duration {
    let remaining = stored.map_or(0, |at| at.saturating_sub(now));
    let remaining = Duration::from_millis(u64::try_from(remaining).unwrap_or(0));
    if remaining > longest { Duration::ZERO } else { remaining }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn idle(elapsed: Duration) -> PollObservation {
        PollObservation { changed: false, elapsed, fresh_for: None }
    }
    fn change(elapsed: Duration) -> PollObservation {
        PollObservation { changed: true, elapsed, fresh_for: None }
    }

    #[test]
    fn an_idle_feed_is_asked_ever_more_rarely() {
        let settings = PollSettings::default();
        let mut pace = PollPace::default();
        let mut last = Duration::ZERO;
        let first = pace.next_wait(&settings, idle(S), 0.0);
        assert_eq!(first, settings.min);
        for _ in 0..20 {
            let wait = pace.next_wait(&settings, idle(last), 0.0);
            assert!(wait >= last && wait <= settings.max);
            last = wait;
        }
        assert_eq!(last, settings.max);
    }

    #[test]
    fn a_feed_that_changes_every_minute_is_asked_about_every_half() {
        let settings = PollSettings::default();
        let mut pace = PollPace::default();
        let (mut now, mut next_change) = (0.0, 60.0);
        let mut wait = Duration::ZERO;
        for _ in 0..200 {
            now += wait.as_secs_f64();
            let changed = now >= next_change;
            while next_change <= now {
                next_change += 60.0;
            }
            wait = pace.next_wait(&settings, PollObservation { changed, elapsed: wait, fresh_for: None }, 0.5);
        }
        assert!(wait >= settings.min && wait <= S * 60, "{wait:?}");
    }

    #[test]
    fn something_new_brings_a_sleepy_feed_back() {
        let settings = PollSettings::default();
        let mut pace = PollPace::default();
        for _ in 0..30 {
            pace.next_wait(&settings, idle(S * 600), 0.0);
        }
        let mut wait = settings.max;
        for _ in 0..12 {
            wait = pace.next_wait(&settings, change(S * 10), 0.0);
        }
        assert!(wait < S * 120, "{wait:?}");
    }

    #[test]
    fn a_fresh_answer_is_not_asked_for_again_but_freshness_is_clamped() {
        let settings = PollSettings::default();
        let fresh = |seconds| PollObservation { changed: false, elapsed: S, fresh_for: Some(S * seconds) };
        assert_eq!(PollPace::default().next_wait(&settings, fresh(100), 0.0), S * 100);
        assert_eq!(PollPace::default().next_wait(&settings, fresh(1_000_000), 0.0), settings.max);
        assert_eq!(PollPace::default().next_wait(&settings, fresh(0), 0.0), settings.min);
    }

    #[test]
    fn errors_back_off_with_full_jitter_within_bounds() {
        let settings = RetrySettings::default();
        let wait = |failures, random| wait_after_failure(&settings, RetryWait::Backoff, failures, random);
        assert_eq!(wait(1, 0.0), S);
        assert_eq!(wait(1, 1.0), S * 2);
        assert_eq!(wait(5, 1.0), S * 32);
        assert_eq!(wait(5, 0.0), S);
        assert_eq!(wait(4_000_000, 1.0), settings.max);
    }

    #[test]
    fn what_the_publisher_asks_for_is_clamped_both_ways() {
        let settings = RetrySettings::default();
        let wait_for = |wait_for| wait_after_failure(&settings, RetryWait::RetryAfter(wait_for), 1, 0.0);
        assert_eq!(wait_for(Duration::ZERO), settings.min);
        assert_eq!(wait_for(S * 30), S * 30);
        assert_eq!(wait_for(S * 1_000_000), settings.max);
        assert_eq!(wait_after_failure(&settings, RetryWait::RetryAfter(S * 1_000_000), 1, 1.0), settings.max);
    }

    #[test]
    fn the_third_503_waits_an_hour_or_two_and_a_gone_feed_hours_then_days() {
        let settings = RetrySettings::default();
        let wait = |wait, random| wait_after_failure(&settings, wait, 3, random);
        assert_eq!(wait(RetryWait::Unavailable, 0.0), HOUR);
        assert_eq!(wait(RetryWait::Unavailable, 1.0), HOUR * 2);
        assert_eq!(wait(RetryWait::Gone { since: HOUR }, 0.0), HOUR);
        assert_eq!(wait(RetryWait::Gone { since: HOUR * 25 }, 0.0), HOUR * 24);
    }

    #[test]
    fn a_stored_time_that_lies_too_far_ahead_is_due() {
        let longest = S * 600;
        assert_eq!(remaining_wait(None, 1_000, longest), Duration::ZERO);
        assert_eq!(remaining_wait(Some(500), 1_000, longest), Duration::ZERO);
        assert_eq!(remaining_wait(Some(61_000), 1_000, longest), S * 60);
        assert_eq!(remaining_wait(Some(10_000_000), 1_000, longest), Duration::ZERO);
    }
}
