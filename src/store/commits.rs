//! How long commits take: counted by the writer, read by anyone.
//!
//! Guarantees: counting takes a few additions and no lock. A time is that of a whole group, from its beginning to its
//! commit, waiting for the checkpoint gate included; a group that is rolled back and run again counts once, for its
//! last attempt. No single times are kept: a quantile is as exact as the bounds are close.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in milliseconds, from the time of a small commit to that of a commit on a failing disk.
const BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];
const BUCKETS: usize = BOUNDS_MS.len() + 1;

#[derive(Debug, Default)]
pub(super) struct CommitHistogram {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

impl CommitHistogram {
    pub(super) fn observe(&self, time: Duration) {
        let bucket = BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < time);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn times(&self) -> CommitTimes {
        CommitTimes {
            buckets: std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed)),
            total: Duration::from_micros(self.micros.load(Ordering::Relaxed)),
        }
    }
}

/// How long the commits since the start took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitTimes {
    buckets: [u64; BUCKETS],
    /// Sum of all their times.
    pub total: Duration,
}

impl CommitTimes {
    /// Number of commits.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bounds, each with the number of commits that took at most this long and longer than the previous bound;
    /// the last bucket has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BOUNDS_MS.iter().map(|bound| Some(Duration::from_millis(*bound))).chain([None]);
        bounds.zip(self.buckets)
    }

    /// The bound that this share (0 to 1) of the commits stayed within: never shorter than the true quantile, and
    /// longer by less than one bucket. `None` without commits, and where the quantile is longer than the last bound.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let needed = (self.count() as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0);
        let mut seen = 0;
        for (bound, count) in self.buckets() {
            seen += count;
            if seen as f64 >= needed {
                return bound;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn after(times: &[Duration]) -> CommitTimes {
        let commits = CommitHistogram::default();
        times.iter().for_each(|time| commits.observe(*time));
        commits.times()
    }

    #[test]
    fn a_time_counts_in_the_first_bucket_that_holds_it() {
        let ms = Duration::from_millis;
        let times = after(&[Duration::ZERO, ms(1), Duration::from_micros(1_001), ms(10_000), ms(10_001)]);
        let counted: Vec<(Option<Duration>, u64)> = times.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Some(ms(1)), 2), (Some(ms(2)), 1), (Some(ms(10_000)), 1), (None, 1)]);
        assert_eq!((times.count(), times.total), (5, Duration::from_micros(20_003_001)));
    }

    #[test]
    fn a_quantile_is_the_bound_that_so_many_stayed_within() {
        let ms = Duration::from_millis;
        let mut times = vec![ms(3); 98];
        times.extend([ms(80), ms(30_000)]);
        let times = after(&times);
        assert_eq!(times.quantile(0.5), Some(ms(5)));
        assert_eq!(times.quantile(0.98), Some(ms(5)));
        assert_eq!(times.quantile(0.99), Some(ms(100)));
        assert_eq!(times.quantile(1.0), None, "longer than the last bound");
        assert_eq!(CommitTimes::default().quantile(0.5), None);
    }
}
