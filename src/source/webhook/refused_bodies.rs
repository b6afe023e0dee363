//! Bodies that a publisher sends again and again though they are refused. A publisher sends nothing else until its body
//! is accepted, so an unreadable body would end push for good: after four refusals of a body within an hour, the fifth
//! time it is accepted, to be kept whole in quarantine.
//!
//! Counts per feed, and only authenticated bodies. Knows no clock. Bounded: of many such bodies, the ones refused
//! longest ago are forgotten.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Refusals of one body before it is accepted.
pub const REFUSALS: usize = 4;
/// The time within which the refusals happen.
pub const WITHIN: Duration = Duration::from_secs(3600);
/// Bodies remembered at most.
const MOST: usize = 64;

/// A feed's refused bodies.
#[derive(Debug, Default)]
pub struct RefusedBodies {
    /// In the order of their last refusals.
    bodies: VecDeque<Body>,
}

#[derive(Debug)]
struct Body {
    hash: u64,
    /// The last refusals, at most [`REFUSALS`].
    refusals: VecDeque<Instant>,
}

impl RefusedBodies {
    /// Whether the body with this hash was refused so often that it must be accepted.
    pub fn is_refused_too_often(&self, hash: u64, now: Instant) -> bool {
        let body = self.bodies.iter().find(|body| body.hash == hash);
        let recent = |at: &&Instant| now.saturating_duration_since(**at) <= WITHIN;
        body.is_some_and(|body| body.refusals.iter().filter(recent).count() >= REFUSALS)
    }

    /// Counts a refusal because of the body's content, not because the feed is busy, paused or unknown.
    pub fn record_refusal(&mut self, hash: u64, now: Instant) {
        let mut body = self.remove(hash).unwrap_or(Body { hash, refusals: VecDeque::with_capacity(REFUSALS) });
        if body.refusals.len() == REFUSALS {
            body.refusals.pop_front();
        }
        body.refusals.push_back(now);
        if self.bodies.len() == MOST {
            self.bodies.pop_front();
        }
        self.bodies.push_back(body);
    }

    /// Forgets a body that was accepted.
    pub fn forget(&mut self, hash: u64) {
        self.remove(hash);
    }

    fn remove(&mut self, hash: u64) -> Option<Body> {
        let at = self.bodies.iter().position(|body| body.hash == hash)?;
        self.bodies.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_fifth_time_within_an_hour_is_accepted() {
        let (mut refused_bodies, start) = (RefusedBodies::default(), Instant::now());
        for time in 0..4 {
            assert!(!refused_bodies.is_refused_too_often(7, start + MINUTE * time), "after {time} refusals");
            refused_bodies.record_refusal(7, start + MINUTE * time);
        }
        assert!(refused_bodies.is_refused_too_often(7, start + MINUTE * 60));
        assert!(!refused_bodies.is_refused_too_often(8, start + MINUTE * 60), "another body");
        assert!(!refused_bodies.is_refused_too_often(7, start + MINUTE * 61), "the first refusal is over an hour ago");
        refused_bodies.record_refusal(7, start + MINUTE * 61);
        assert!(refused_bodies.is_refused_too_often(7, start + MINUTE * 61), "the last four are not");
    }

    #[test]
    fn an_accepted_body_is_forgotten() {
        let (mut refused_bodies, now) = (RefusedBodies::default(), Instant::now());
        (0..4).for_each(|_| refused_bodies.record_refusal(7, now));
        refused_bodies.forget(7);
        assert!(!refused_bodies.is_refused_too_often(7, now));
        refused_bodies.forget(7);
    }

    #[test]
    fn memory_is_bounded_and_the_body_refused_longest_ago_is_forgotten() {
        let (mut refused_bodies, now) = (RefusedBodies::default(), Instant::now());
        for hash in [1, 2] {
            (0..4).for_each(|_| refused_bodies.record_refusal(hash, now));
        }
        (100..162).for_each(|hash| refused_bodies.record_refusal(hash, now));
        assert_eq!(refused_bodies.bodies.len(), MOST);
        // Refused again, the first body is no longer the oldest.
        refused_bodies.record_refusal(1, now);
        refused_bodies.record_refusal(200, now);
        assert_eq!(refused_bodies.bodies.len(), MOST);
        assert!(refused_bodies.is_refused_too_often(1, now) && !refused_bodies.is_refused_too_often(2, now));
    }
}
