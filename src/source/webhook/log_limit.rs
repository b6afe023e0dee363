//! Log lines that strangers can bring about: one of a sort in a while, with the count of those that were not told.

use std::time::{Duration, Instant};

/// Lines of one sort are logged so often at most.
const QUIET: Duration = Duration::from_secs(60);

/// Lets one line of a sort through in a while.
#[derive(Debug, Default)]
pub struct LogLimiter {
    last: Option<Instant>,
    untold: u64,
}

impl LogLimiter {
    /// Whether to tell now, and how often it was not told since the last time.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_once_in_a_while_and_counted_between() {
        let (mut told, start) = (LogLimiter::default(), Instant::now());
        let is_due = [0, 1, 59, 60, 61].map(|second| told.allow(start + Duration::from_secs(second)));
        assert_eq!(is_due, [Some(0), None, None, Some(2), None]);
    }
}
