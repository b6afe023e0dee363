//! Counts wrong secrets by client address: the more of them, the longer the answer is delayed. A request with a right
//! secret is never delayed: it may come from the same address. Knows no clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::log_limit::LogLimiter;

/// Failures answered without delay: a publisher may not have rolled out a new secret everywhere yet.
const FREE_ATTEMPTS: u32 = 5;
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(3);
/// An address without a failure for this long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Addresses remembered at most; the one whose last failure is oldest is dropped.
const MOST: usize = 1024;

/// The failures of the last minute, by address.
#[derive(Debug, Default)]
pub struct FailedLogins(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    by_address: HashMap<IpAddr, (u32, Instant)>,
    log_limiter: LogLimiter,
}

impl FailedLogins {
    /// Counts one more failure. Returns the delay of its answer, and what [`LogLimiter::allow`] says.
    pub fn record_failure(&self, from: Option<IpAddr>, now: Instant) -> (Duration, Option<u64>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unlogged = counts.log_limiter.allow(now);
        let Some(from) = from else { return (FIRST, unlogged) };
        let recent = |at: Instant| now.saturating_duration_since(at) < FORGOTTEN;
        if counts.by_address.len() >= MOST && !counts.by_address.contains_key(&from) {
            counts.by_address.retain(|_, (_, at)| recent(*at));
            let oldest = counts.by_address.iter().min_by_key(|(_, (_, at))| *at).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| counts.by_address.len() >= MOST) {
                counts.by_address.remove(&oldest);
            }
        }
        let (count, at) = counts.by_address.entry(from).or_insert((0, now));
        *count = if recent(*at) { count.saturating_add(1) } else { 1 };
        *at = now;
        let doublings = count.saturating_sub(FREE_ATTEMPTS);
        let wait = match doublings {
            0 => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - 1).min(10)).min(LONGEST),
        };
        (wait, unlogged)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_to_wrong_secrets_take_longer_and_longer_and_are_forgotten() {
        let (failed_logins, start) = (FailedLogins::default(), Instant::now());
        let from = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        let waits: Vec<_> = (0..12).map(|_| failed_logins.record_failure(from(1), start).0.as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(failed_logins.record_failure(from(2), start).0, Duration::ZERO, "another address");
        let (wait, unlogged) = failed_logins.record_failure(from(1), start + FORGOTTEN);
        assert_eq!((wait, unlogged), (Duration::ZERO, Some(12)));
    }

    #[test]
    fn addresses_are_bounded() {
        let (failed_logins, start) = (FailedLogins::default(), Instant::now());
        for n in 0..5_000_u32 {
            failed_logins.record_failure(Some(IpAddr::from(n.to_be_bytes())), start);
        }
        assert!(failed_logins.0.lock().unwrap().by_address.len() <= MOST);
    }
}
