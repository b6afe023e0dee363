//! How fast a page comes: pure, with time passed in.

use std::time::Duration;

use tokio::time::Instant;

/// A page is slow once what it brought has not lasted, by the least rate, for this long; time that it spent in waiting
/// for us doesn't count.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Bytes a second.
const LEAST_RATE: f64 = 32.0 * 1024.0;

/// How fast a page comes, while its publisher is waited for: what it brings lasts for as long as the least rate takes.
#[derive(Default)]
pub(super) struct TransferRate {
    receiving_since: Option<Instant>,
    receiving_time: Duration,
    slow_after: Duration,
}

impl TransferRate {
    pub(super) fn receiving_time_at(&self, now: Instant) -> Duration {
        self.receiving_time + self.receiving_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.slow_after = self.receiving_time_at(now) + WINDOW;
    }

    pub(super) fn record_bytes(&mut self, bytes: u64, now: Instant) {
        let time = self.receiving_time_at(now);
        let lasts = Duration::from_secs_f64(bytes as f64 / LEAST_RATE).min(WINDOW);
        self.slow_after = (self.slow_after.max(time) + lasts).min(time + WINDOW);
    }

    /// Whether its publisher is waited for now.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving_since.is_some()
    }

    /// Its publisher is waited for, or no more.
    pub(super) fn set_receiving(&mut self, waits: bool, now: Instant) {
        self.receiving_time = self.receiving_time_at(now);
        self.receiving_since = waits.then_some(now);
    }

    pub(super) fn is_slow(&self, now: Instant) -> bool {
        // Who waits for us has just brought something: a page that comes at all well has most of its time left then.
        let left = if self.receiving_since.is_some() { Duration::ZERO } else { WINDOW / 2 };
        self.receiving_time_at(now) + left >= self.slow_after
    }
}
