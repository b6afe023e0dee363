//! The failure rules: pure functions from a kind of failure and the feed's history to health, wait and next step.
//!
//! They know no clock: durations are passed in. They never read message text.

pub mod push;

use std::time::Duration;

use crate::feed::Health;
use crate::schedule::RetryWait;

/// `[push]`: when push is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushSettings {
    /// A stream that stays open this long is trusted even if no item came.
    pub prove_after: Duration,
    /// How often a feed that push keeps level is polled all the same.
    pub audit: Duration,
    /// How much later than a poll push may deliver an item.
    pub grace: Duration,
}

impl Default for PushSettings {
    fn default() -> Self {
        Self {
            prove_after: Duration::from_secs(60),
            audit: Duration::from_secs(15 * 60),
            grace: Duration::from_secs(30),
        }
    }
}

/// A kind of failure, as far as the rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// An HTTP status.
    Status {
        /// The code.
        code: u16,
        /// The value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The host refuses connections.
    ConnectionRefused,
    /// The network, a time-out, a broken response.
    Network,
    /// A page that had to be refused.
    Page,
    /// A walk in a circle: its pages answer, and yet it makes no progress.
    Loop,
    /// TLS, a refused redirect or origin, settings: nothing that waiting can heal.
    NeedsOperator,
    /// The mirror's own store. The publisher is not the cause, so that its URL is not probed.
    Store,
}

/// What is known of a feed when it fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureHistory {
    /// Failures in a row, this one included.
    pub failures: u32,
    /// 503s in a row without `Retry-After`, this one included.
    pub unavailable: u32,
    /// Whether a page of the feed has ever been received.
    pub ever_answered: bool,
    /// For how long the feed has been failing.
    pub failing_for: Duration,
    /// For how long the feed has been gone.
    pub gone_for: Duration,
    /// Whether the failed request was for the feed's own URL, its first page.
    pub first_page: bool,
    /// The result of requesting the feed's own URL, once that was done.
    pub probe: Option<ProbeResult>,
}

/// How the feed's own URL answers while its cursor fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// A page.
    Answers,
    /// 404 or 410 as well.
    Gone,
    /// Something else.
    Fails,
}

/// How to handle a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePolicy {
    /// The endpoint's health.
    pub health: Health,
    /// How long to wait.
    pub wait: RetryWait,
    /// What to do first.
    pub first_step: FirstStep,
    /// Whether to send fewer requests to the whole host.
    pub throttle_host: bool,
    /// Whether no request may go to the feed before the wait is over: its publisher said so, or limits requests.
    pub sets_not_before: bool,
}

/// What to do before waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstStep {
    /// Nothing.
    None,
    /// Request the feed's own URL, then classify again with the result.
    Probe,
    /// Read the secrets again.
    RereadSecrets,
    /// The cursor is dead: resync the feed.
    Resync,
}

/// A cursor that fails this long while the first page answers is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(3_600);

/// The policy for a failure of a feed's polling.
pub fn classify(kind: FailureKind, history: &FailureHistory) -> FailurePolicy {
    let retrying = |wait| FailurePolicy {
        health: Health::Retrying,
        wait,
        first_step: FirstStep::None,
        throttle_host: false,
        sets_not_before: false,
    };
    let failed = |step| FailurePolicy {
        health: Health::Failed,
        wait: RetryWait::Hourly,
        first_step: step,
        throttle_host: false,
        sets_not_before: false,
    };
    match kind {
        FailureKind::NeedsOperator => failed(FirstStep::None),
        FailureKind::Status { code: 401, .. } => failed(FirstStep::RereadSecrets),
        FailureKind::Status { code: 403, .. } if !history.ever_answered => failed(FirstStep::RereadSecrets),
        FailureKind::Status { code: 403 | 429, retry_after } => FailurePolicy {
            throttle_host: matches!(kind, FailureKind::Status { code: 429, .. }),
            sets_not_before: true,
            ..retrying(retry_after.map_or(RetryWait::Backoff, RetryWait::RetryAfter))
        },
        FailureKind::Status { code: 404 | 410, .. } => classify_not_found(history),
        FailureKind::Status { code: 503, retry_after: None } if history.unavailable >= 3 => {
            FailurePolicy { sets_not_before: true, ..retrying(RetryWait::Unavailable) }
        }
        FailureKind::Status { retry_after: Some(retry_after), .. } => FailurePolicy {
            throttle_host: true,
            sets_not_before: true,
            ..stuck_or(history, retrying(RetryWait::RetryAfter(retry_after)))
        },
        FailureKind::ConnectionRefused => FailurePolicy { throttle_host: true, ..retrying(RetryWait::Backoff) },
        FailureKind::Status { .. } | FailureKind::Page | FailureKind::Loop => {
            stuck_or(history, retrying(RetryWait::Backoff))
        }
        FailureKind::Network => stuck_or(history, retrying(RetryWait::Backoff)),
        FailureKind::Store => retrying(RetryWait::Backoff),
    }
}

/// 404 and 410: the feed's own URL distinguishes a dead cursor from a feed that is gone.
fn classify_not_found(history: &FailureHistory) -> FailurePolicy {
    let gone = FailurePolicy {
        health: Health::Gone,
        wait: RetryWait::Gone { since: history.gone_for },
        first_step: FirstStep::None,
        throttle_host: false,
        sets_not_before: false,
    };
    let retrying = |step| FailurePolicy {
        health: Health::Retrying,
        wait: RetryWait::Backoff,
        first_step: step,
        throttle_host: false,
        sets_not_before: false,
    };
    match (history.first_page, history.probe) {
        (true, _) | (_, Some(ProbeResult::Gone)) => gone,
        (_, None) => retrying(FirstStep::Probe),
        (_, Some(ProbeResult::Answers)) => retrying(FirstStep::Resync),
        (_, Some(ProbeResult::Fails)) => retrying(FirstStep::None),
    }
}

/// The policy for a failure of a push endpoint: the rule of the third 503, and the waits of a gone feed, are for
/// polling alone. A stream that is down while its publisher is deployed is back within minutes.
pub fn classify_push(kind: FailureKind, history: &FailureHistory) -> FailurePolicy {
    let policy = classify(kind, &FailureHistory { unavailable: 0, ..*history });
    match policy.wait {
        RetryWait::Unavailable | RetryWait::Gone { .. } => FailurePolicy { wait: RetryWait::Backoff, ..policy },
        RetryWait::Backoff | RetryWait::RetryAfter(_) | RetryWait::Hourly => policy,
    }
}

fn stuck_or(history: &FailureHistory, otherwise: FailurePolicy) -> FailurePolicy {
    if history.first_page || history.failing_for < STUCK_AFTER {
        return otherwise;
    }
    match history.probe {
        None => FailurePolicy { first_step: FirstStep::Probe, ..otherwise },
        Some(ProbeResult::Answers) => FailurePolicy { health: Health::Stuck, ..otherwise },
        Some(ProbeResult::Gone | ProbeResult::Fails) => otherwise,
    }
}

impl FailureKind {
    /// Whether waiting can heal the failure, for a `sync`.
    pub fn heals(self) -> bool {
        !matches!(self, Self::NeedsOperator | Self::Status { code: 401 | 404 | 410, .. })
    }

    /// Whether the failure is a 503 without `Retry-After`.
    pub fn is_unavailable(self) -> bool {
        matches!(self, Self::Status { code: 503, retry_after: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn status(code: u16) -> FailureKind {
        FailureKind::Status { code, retry_after: None }
    }
    fn health(kind: FailureKind, history: FailureHistory) -> (Health, FirstStep) {
        let policy = classify(kind, &history);
        (policy.health, policy.first_step)
    }

    #[test]
    fn the_failure_table() {
        let new = FailureHistory { failures: 1, ..FailureHistory::default() };
        let known = FailureHistory { ever_answered: true, ..new };
        let first = FailureHistory { first_page: true, ..known };
        let probed = |probe| FailureHistory { probe: Some(probe), ..known };
        let long = |probe| FailureHistory { failing_for: HOUR, probe, ..known };
        for (kind, history, expected) in [
            (status(500), known, (Health::Retrying, FirstStep::None)),
            (status(425), known, (Health::Retrying, FirstStep::None)),
            (FailureKind::Network, known, (Health::Retrying, FirstStep::None)),
            (FailureKind::Page, known, (Health::Retrying, FirstStep::None)),
            (FailureKind::Loop, known, (Health::Retrying, FirstStep::None)),
            (FailureKind::NeedsOperator, known, (Health::Failed, FirstStep::None)),
            (FailureKind::Store, long(None), (Health::Retrying, FirstStep::None)),
            (status(401), known, (Health::Failed, FirstStep::RereadSecrets)),
            (status(403), new, (Health::Failed, FirstStep::RereadSecrets)),
            (status(403), known, (Health::Retrying, FirstStep::None)),
            (status(404), first, (Health::Gone, FirstStep::None)),
            (status(404), known, (Health::Retrying, FirstStep::Probe)),
            (status(410), probed(ProbeResult::Gone), (Health::Gone, FirstStep::None)),
            (status(410), probed(ProbeResult::Answers), (Health::Retrying, FirstStep::Resync)),
            (status(410), probed(ProbeResult::Fails), (Health::Retrying, FirstStep::None)),
            (status(500), long(None), (Health::Retrying, FirstStep::Probe)),
            (status(500), long(Some(ProbeResult::Answers)), (Health::Stuck, FirstStep::None)),
            (FailureKind::Page, long(Some(ProbeResult::Answers)), (Health::Stuck, FirstStep::None)),
            (status(500), long(Some(ProbeResult::Fails)), (Health::Retrying, FirstStep::None)),
            (status(500), FailureHistory { first_page: true, ..long(None) }, (Health::Retrying, FirstStep::None)),
        ] {
            assert_eq!(health(kind, history), expected, "{kind:?} {history:?}");
        }
    }

    #[test]
    fn waits_follow_the_publisher_and_the_standard() {
        let wait = |kind, history| classify(kind, &history).wait;
        let third = FailureHistory { unavailable: 3, ever_answered: true, ..FailureHistory::default() };
        assert_eq!(wait(status(503), third), RetryWait::Unavailable);
        assert_eq!(wait(status(503), FailureHistory { unavailable: 2, ..third }), RetryWait::Backoff);
        let with_retry_after = FailureKind::Status { code: 503, retry_after: Some(HOUR) };
        assert_eq!(wait(with_retry_after, third), RetryWait::RetryAfter(HOUR));
        assert_eq!(
            wait(FailureKind::Status { code: 429, retry_after: Some(HOUR) }, third),
            RetryWait::RetryAfter(HOUR)
        );
        assert_eq!(wait(status(401), third), RetryWait::Hourly);
    }

    #[test]
    fn a_429_a_retry_after_or_a_refused_connection_slows_the_host_and_the_publishers_word_sets_not_before() {
        let known = FailureHistory { ever_answered: true, ..FailureHistory::default() };
        let third = FailureHistory { unavailable: 3, ..known };
        let with_retry_after = |code| FailureKind::Status { code, retry_after: Some(HOUR) };
        for (kind, history, throttle_host, sets_not_before) in [
            (status(429), known, true, true),
            (with_retry_after(429), known, true, true),
            (with_retry_after(503), known, true, true),
            (with_retry_after(500), FailureHistory { failing_for: HOUR, ..known }, true, true),
            (status(403), known, false, true),
            (with_retry_after(403), known, false, true),
            (status(503), known, false, false),
            (status(503), third, false, true),
            (FailureKind::ConnectionRefused, known, true, false),
            (FailureKind::Network, known, false, false),
            (status(404), known, false, false),
            (status(401), known, false, false),
        ] {
            let policy = classify(kind, &history);
            assert_eq!((policy.throttle_host, policy.sets_not_before), (throttle_host, sets_not_before), "{kind:?}");
        }
    }

    #[test]
    fn a_push_endpoint_backs_off_however_often_it_is_unavailable_or_not_found() {
        let known = FailureHistory {
            ever_answered: true,
            first_page: true,
            unavailable: 3,
            gone_for: HOUR,
            ..FailureHistory::default()
        };
        let with_retry_after = FailureKind::Status { code: 503, retry_after: Some(HOUR) };
        for (kind, health, expected_wait) in [
            (status(503), Health::Retrying, RetryWait::Backoff),
            (status(404), Health::Gone, RetryWait::Backoff),
            (status(410), Health::Gone, RetryWait::Backoff),
            (with_retry_after, Health::Retrying, RetryWait::RetryAfter(HOUR)),
            (status(401), Health::Failed, RetryWait::Hourly),
        ] {
            let policy = classify_push(kind, &known);
            assert_eq!((policy.health, policy.wait), (health, expected_wait), "{kind:?}");
        }
    }
}
