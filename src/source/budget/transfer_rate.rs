//! How fast a page's bytes arrive. Pure, with time passed in.

use std::time::Duration;

use tokio::time::Instant;

/// A page is slow once it is this far behind the least rate; time that it spends waiting for us doesn't count.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Bytes a second.
const LEAST_RATE: f64 = 32.0 * 1024.0;

/// A page's transfer rate while its publisher is waited for: each chunk buys the time that the least rate takes for it.
#[derive(Default)]
pub(super) struct TransferRate {
    receiving_since: Option<Instant>,
    receiving_time: Duration,
    /// The receiving time after which the page is slow.
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
        let bought = Duration::from_secs_f64(bytes as f64 / LEAST_RATE).min(WINDOW);
        self.slow_after = (self.slow_after.max(time) + bought).min(time + WINDOW);
    }

    /// Whether the page waits for its publisher now.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving_since.is_some()
    }

    /// Records whether the page waits for its publisher.
    pub(super) fn set_receiving(&mut self, is_receiving: bool, now: Instant) {
        self.receiving_time = self.receiving_time_at(now);
        self.receiving_since = is_receiving.then_some(now);
    }

    pub(super) fn is_slow(&self, now: Instant) -> bool {
        // A page that waits for us has just delivered bytes: at a good rate it has most of its time left then.
        let left = if self.receiving_since.is_some() { Duration::ZERO } else { WINDOW / 2 };
        self.receiving_time_at(now) + left >= self.slow_after
    }
}
