//! Wrong secrets, by the address that they came from: the more of them, the longer an answer takes. A right one is never
//! kept waiting: it may come from behind the same address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::log_limit::LogLimiter;

/// So many are answered at once: a new secret that was not put everywhere yet.
const FREE_ATTEMPTS: u32 = 5;
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(3);
/// After so long without another they are forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Addresses remembered; of more the oldest go.
const MOST: usize = 1024;

/// Who showed wrong secrets lately.
#[derive(Debug, Default)]
pub struct FailedLogins(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    by: HashMap<IpAddr, (u32, Instant)>,
    told: LogLimiter,
}

impl FailedLogins {
    /// Notes another; how long its answer waits, and, where it is time to tell, how many were not told.
    pub fn record_failure(&self, from: Option<IpAddr>, now: Instant) -> (Duration, Option<u64>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = counts.told.allow(now);
        let Some(from) = from else { return (FIRST, told) };
        let recent = |at: Instant| now.saturating_duration_since(at) < FORGOTTEN;
        if counts.by.len() >= MOST && !counts.by.contains_key(&from) {
            counts.by.retain(|_, (_, at)| recent(*at));
            let oldest = counts.by.iter().min_by_key(|(_, (_, at))| *at).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| counts.by.len() >= MOST) {
                counts.by.remove(&oldest);
            }
        }
        let (count, at) = counts.by.entry(from).or_insert((0, now));
        *count = if recent(*at) { count.saturating_add(1) } else { 1 };
        *at = now;
        let doublings = count.saturating_sub(FREE_ATTEMPTS);
        let wait = match doublings {
            0 => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - 1).min(10)).min(LONGEST),
        };
        (wait, told)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_to_wrong_secrets_take_longer_and_longer_and_are_forgotten() {
        let (strikes, start) = (FailedLogins::default(), Instant::now());
        let from = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        let waits: Vec<_> = (0..12).map(|_| strikes.record_failure(from(1), start).0.as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(strikes.record_failure(from(2), start).0, Duration::ZERO, "another address");
        let (wait, told) = strikes.record_failure(from(1), start + FORGOTTEN);
        assert_eq!((wait, told), (Duration::ZERO, Some(12)));
    }

    #[test]
    fn addresses_are_bounded() {
        let (strikes, start) = (FailedLogins::default(), Instant::now());
        for n in 0..5_000_u32 {
            strikes.record_failure(Some(IpAddr::from(n.to_be_bytes())), start);
        }
        assert!(strikes.0.lock().unwrap().by.len() <= MOST);
    }
}
