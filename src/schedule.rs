//! When to ask again: outcome + now → the next wake. Pure; time and randomness are passed in.

use std::time::Duration;

/// `[poll]`: how often a level feed is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollSettings {
    /// The shortest wait between two polls of a level feed.
    pub min: Duration,
    /// The longest.
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
