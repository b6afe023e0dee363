//! Limits log lines that unauthenticated requests can cause: one line of a kind in a minute, with the count of the
//! lines suppressed since the last one. Knows no clock.

use std::time::{Duration, Instant};

/// The shortest time between two lines of one kind.
const QUIET: Duration = Duration::from_secs(60);

/// The limit for log lines of one kind.
#[derive(Debug, Default)]
pub struct LogLimiter {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimiter {
    /// `None` where the line must not be logged now; otherwise the number of lines suppressed since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_is_logged_and_those_between_are_counted() {
        let (mut limiter, start) = (LogLimiter::default(), Instant::now());
        let allowed = [0, 1, 59, 60, 61].map(|second| limiter.allow(start + Duration::from_secs(second)));
        assert_eq!(allowed, [Some(0), None, None, Some(2), None]);
    }
}
