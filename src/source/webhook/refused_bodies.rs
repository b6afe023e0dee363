//! Bodies that a publisher sends again and again though they are refused. It sends nothing else until one is taken, so
//! one that can't be would end push for good: after four refusals within an hour the fifth is let through, to be kept
//! whole in quarantine.
//!
//! Counts per feed, and only what was authenticated. Knows no clock. Bounded: of many such bodies the ones refused
//! longest ago are forgotten.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Refusals of one body before it is let through.
pub const REFUSALS: usize = 4;
/// Within which they happen.
pub const WITHIN: Duration = Duration::from_secs(3600);
/// Bodies remembered.
const MOST: usize = 64;

/// A feed's refused bodies.
#[derive(Debug, Default)]
pub struct RefusedBodies {
    /// The one refused last stands last.
    bodies: VecDeque<Body>,
}

#[derive(Debug)]
struct Body {
    hash: u64,
    /// The last refusals, at most [`REFUSALS`].
    refused: VecDeque<Instant>,
}

impl RefusedBodies {
    /// Whether the body with this hash was refused so often that it must be let through.
    pub fn is_refused_too_often(&self, hash: u64, now: Instant) -> bool {
        let body = self.bodies.iter().find(|body| body.hash == hash);
        let recent = |at: &&Instant| now.saturating_duration_since(**at) <= WITHIN;
        body.is_some_and(|body| body.refused.iter().filter(recent).count() >= REFUSALS)
    }

    /// Notes that the body was refused for what it is: not for being busy, paused or unknown.
    pub fn record_refusal(&mut self, hash: u64, now: Instant) {
        let mut body = self.take(hash).unwrap_or(Body { hash, refused: VecDeque::with_capacity(REFUSALS) });
        if body.refused.len() == REFUSALS {
            body.refused.pop_front();
        }
        body.refused.push_back(now);
        if self.bodies.len() == MOST {
            self.bodies.pop_front();
        }
        self.bodies.push_back(body);
    }

    /// Forgets a body that was taken.
    pub fn forget(&mut self, hash: u64) {
        self.take(hash);
    }

    fn take(&mut self, hash: u64) -> Option<Body> {
        let at = self.bodies.iter().position(|body| body.hash == hash)?;
        self.bodies.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_fifth_time_within_an_hour_is_let_through() {
        let (mut poison, start) = (RefusedBodies::default(), Instant::now());
        for time in 0..4 {
            assert!(!poison.is_refused_too_often(7, start + MINUTE * time), "after {time} refusals");
            poison.record_refusal(7, start + MINUTE * time);
        }
        assert!(poison.is_refused_too_often(7, start + MINUTE * 60));
        assert!(!poison.is_refused_too_often(8, start + MINUTE * 60), "another body");
        assert!(!poison.is_refused_too_often(7, start + MINUTE * 61), "the first refusal is over an hour ago");
        poison.record_refusal(7, start + MINUTE * 61);
        assert!(poison.is_refused_too_often(7, start + MINUTE * 61), "the last four are not");
    }

    #[test]
    fn what_was_taken_begins_anew() {
        let (mut poison, now) = (RefusedBodies::default(), Instant::now());
        (0..4).for_each(|_| poison.record_refusal(7, now));
        poison.forget(7);
        assert!(!poison.is_refused_too_often(7, now));
        poison.forget(7);
    }

    #[test]
    fn memory_is_bounded_and_the_one_refused_longest_ago_goes() {
        let (mut poison, now) = (RefusedBodies::default(), Instant::now());
        for hash in [1, 2] {
            (0..4).for_each(|_| poison.record_refusal(hash, now));
        }
        (100..162).for_each(|hash| poison.record_refusal(hash, now));
        assert_eq!(poison.bodies.len(), MOST);
        // Seen again, it is no longer the oldest.
        poison.record_refusal(1, now);
        poison.record_refusal(200, now);
        assert_eq!(poison.bodies.len(), MOST);
        assert!(poison.is_refused_too_often(1, now) && !poison.is_refused_too_often(2, now));
    }
}
