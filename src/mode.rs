//! What a failure means for a feed: pure rules from what happened to health, wait and what to try next.
//!
//! Knows no clock; durations are passed in. Never reads message text.

pub mod push;

use std::time::Duration;

use crate::feed::Health;
use crate::schedule::Wait;

/// `push`: when push is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushSettings {
    /// A stream that stays open this long is believed, though nothing came.
    pub prove_after: Duration,
    /// How often a feed that push keeps level is polled all the same.
    pub audit: Duration,
    /// How much later than a poll push may bring an item.
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

/// A failure, as far as the rules tell failures apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// An HTTP status.
    Status {
        /// The code.
        code: u16,
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// Nothing listens at the host.
    ConnectionRefused,
    /// The network, a time-out, a broken response.
    Network,
    /// A page that had to be refused.
    Page,
    /// A walk that came round again: its pages answer, and yet it gets nowhere.
    Loop,
    /// TLS, a refused redirect or origin, settings: nothing that waiting heals.
    Operator,
    /// The mirror's own store: the publisher has nothing to do with it, and is not asked what is wrong.
    Store,
}

/// What is known of a feed when it fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Failures in a row, this one included.
    pub failures: u32,
    /// 503s in a row without `Retry-After`, this one included.
    pub unavailable: u32,
    /// Whether it has ever answered well.
    pub answered: bool,
    /// For how long it has been failing.
    pub failing_for: Duration,
    /// For how long it has been gone.
    pub gone_for: Duration,
    /// Whether what failed was the feed's own URL, its first page.
    pub first_page: bool,
    /// What asking the feed's own URL brought, once it was asked.
    pub probe: Option<Probe>,
}

/// What the feed's own URL answers while its cursor fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A page.
    Answers,
    /// 404 or 410 as well.
    Gone,
    /// Something else.
    Fails,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The endpoint's health.
    pub health: Health,
    /// How long to wait.
    pub wait: Wait,
    /// What to do first.
    pub step: Step,
    /// Whether the whole host should be asked less.
    pub slow_host: bool,
    /// Whether nobody may ask the feed before the wait is over: its publisher said so, or had enough.
    pub holds: bool,
}

/// What to do before waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// Ask the feed's own URL, then judge again with what it answered.
    Probe,
    /// Read the secrets again.
    Secrets,
    /// The cursor is dead: read the feed anew.
    Resync,
}

/// A cursor that fails this long while the first page answers is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(3_600);

/// The ruling on a failure.
pub fn judge(trouble: Trouble, history: &History) -> Ruling {
    let retrying = |wait| Ruling { health: Health::Retrying, wait, step: Step::None, slow_host: false, holds: false };
    let failed = |step| Ruling { health: Health::Failed, wait: Wait::Hourly, step, slow_host: false, holds: false };
    match trouble {
        Trouble::Operator => failed(Step::None),
        Trouble::Status { code: 401, .. } => failed(Step::Secrets),
        Trouble::Status { code: 403, .. } if !history.answered => failed(Step::Secrets),
        Trouble::Status { code: 403 | 429, retry_after } => Ruling {
            slow_host: matches!(trouble, Trouble::Status { code: 429, .. }),
            holds: true,
            ..retrying(retry_after.map_or(Wait::Backoff, Wait::Told))
        },
        Trouble::Status { code: 404 | 410, .. } => lost(history),
        Trouble::Status { code: 503, retry_after: None } if history.unavailable >= 3 => {
            Ruling { holds: true, ..retrying(Wait::Unavailable) }
        }
        Trouble::Status { retry_after: Some(told), .. } => {
            Ruling { slow_host: true, holds: true, ..stuck_or(history, retrying(Wait::Told(told))) }
        }
        Trouble::ConnectionRefused => Ruling { slow_host: true, ..retrying(Wait::Backoff) },
        Trouble::Status { .. } | Trouble::Page | Trouble::Loop => stuck_or(history, retrying(Wait::Backoff)),
        Trouble::Network => stuck_or(history, retrying(Wait::Backoff)),
        Trouble::Store => retrying(Wait::Backoff),
    }
}

/// 404 and 410: the feed's own URL tells a dead cursor from a removed feed.
fn lost(history: &History) -> Ruling {
    let gone = Ruling {
        health: Health::Gone,
        wait: Wait::Gone { since: history.gone_for },
        step: Step::None,
        slow_host: false,
        holds: false,
    };
    let retrying =
        |step| Ruling { health: Health::Retrying, wait: Wait::Backoff, step, slow_host: false, holds: false };
    match (history.first_page, history.probe) {
        (true, _) | (_, Some(Probe::Gone)) => gone,
        (_, None) => retrying(Step::Probe),
        (_, Some(Probe::Answers)) => retrying(Step::Resync),
        (_, Some(Probe::Fails)) => retrying(Step::None),
    }
}

/// The ruling on a failure of a push endpoint: the rule of the third 503, and the waits for a feed that is gone, are
/// polling's. A stream that is away while its publisher is deployed anew is back within minutes.
pub fn judge_push(trouble: Trouble, history: &History) -> Ruling {
    let ruling = judge(trouble, &History { unavailable: 0, ..*history });
    match ruling.wait {
        Wait::Unavailable | Wait::Gone { .. } => Ruling { wait: Wait::Backoff, ..ruling },
        Wait::Backoff | Wait::Told(_) | Wait::Hourly => ruling,
    }
}

fn stuck_or(history: &History, otherwise: Ruling) -> Ruling {
    if history.first_page || history.failing_for < STUCK_AFTER {
        return otherwise;
    }
    match history.probe {
        None => Ruling { step: Step::Probe, ..otherwise },
        Some(Probe::Answers) => Ruling { health: Health::Stuck, ..otherwise },
        Some(Probe::Gone | Probe::Fails) => otherwise,
    }
}

impl Trouble {
    /// Whether waiting can heal it, for one who only wants to read a feed once.
    pub fn heals(self) -> bool {
        !matches!(self, Self::Operator | Self::Status { code: 401 | 404 | 410, .. })
    }

    /// Whether it is a 503 that doesn't say when to come again.
    pub fn is_unavailable(self) -> bool {
        matches!(self, Self::Status { code: 503, retry_after: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn status(code: u16) -> Trouble {
        Trouble::Status { code, retry_after: None }
    }
    fn health(trouble: Trouble, history: History) -> (Health, Step) {
        let ruling = judge(trouble, &history);
        (ruling.health, ruling.step)
    }

    #[test]
    fn the_failure_table() {
        let new = History { failures: 1, ..History::default() };
        let known = History { answered: true, ..new };
        let first = History { first_page: true, ..known };
        let probed = |probe| History { probe: Some(probe), ..known };
        let long = |probe| History { failing_for: HOUR, probe, ..known };
        for (trouble, history, expected) in [
            (status(500), known, (Health::Retrying, Step::None)),
            (status(425), known, (Health::Retrying, Step::None)),
            (Trouble::Network, known, (Health::Retrying, Step::None)),
            (Trouble::Page, known, (Health::Retrying, Step::None)),
            (Trouble::Loop, known, (Health::Retrying, Step::None)),
            (Trouble::Operator, known, (Health::Failed, Step::None)),
            (Trouble::Store, long(None), (Health::Retrying, Step::None)),
            (status(401), known, (Health::Failed, Step::Secrets)),
            (status(403), new, (Health::Failed, Step::Secrets)),
            (status(403), known, (Health::Retrying, Step::None)),
            (status(404), first, (Health::Gone, Step::None)),
            (status(404), known, (Health::Retrying, Step::Probe)),
            (status(410), probed(Probe::Gone), (Health::Gone, Step::None)),
            (status(410), probed(Probe::Answers), (Health::Retrying, Step::Resync)),
            (status(410), probed(Probe::Fails), (Health::Retrying, Step::None)),
            (status(500), long(None), (Health::Retrying, Step::Probe)),
            (status(500), long(Some(Probe::Answers)), (Health::Stuck, Step::None)),
            (Trouble::Page, long(Some(Probe::Answers)), (Health::Stuck, Step::None)),
            (status(500), long(Some(Probe::Fails)), (Health::Retrying, Step::None)),
            (status(500), History { first_page: true, ..long(None) }, (Health::Retrying, Step::None)),
        ] {
            assert_eq!(health(trouble, history), expected, "{trouble:?} {history:?}");
        }
    }

    #[test]
    fn waits_follow_the_publisher_and_the_standard() {
        let wait = |trouble, history| judge(trouble, &history).wait;
        let third = History { unavailable: 3, answered: true, ..History::default() };
        assert_eq!(wait(status(503), third), Wait::Unavailable);
        assert_eq!(wait(status(503), History { unavailable: 2, ..third }), Wait::Backoff);
        let told = Trouble::Status { code: 503, retry_after: Some(HOUR) };
        assert_eq!(wait(told, third), Wait::Told(HOUR));
        assert_eq!(wait(Trouble::Status { code: 429, retry_after: Some(HOUR) }, third), Wait::Told(HOUR));
        assert_eq!(wait(status(401), third), Wait::Hourly);
    }

    #[test]
    fn a_429_a_retry_after_or_a_refused_connection_slows_the_host_and_the_publishers_word_holds_the_feed() {
        let known = History { answered: true, ..History::default() };
        let third = History { unavailable: 3, ..known };
        let told = |code| Trouble::Status { code, retry_after: Some(HOUR) };
        for (trouble, history, slow_host, holds) in [
            (status(429), known, true, true),
            (told(429), known, true, true),
            (told(503), known, true, true),
            (told(500), History { failing_for: HOUR, ..known }, true, true),
            (status(403), known, false, true),
            (told(403), known, false, true),
            (status(503), known, false, false),
            (status(503), third, false, true),
            (Trouble::ConnectionRefused, known, true, false),
            (Trouble::Network, known, false, false),
            (status(404), known, false, false),
            (status(401), known, false, false),
        ] {
            let ruling = judge(trouble, &history);
            assert_eq!((ruling.slow_host, ruling.holds), (slow_host, holds), "{trouble:?}");
        }
    }

    #[test]
    fn a_push_endpoint_backs_off_however_often_it_is_unavailable_or_not_found() {
        let known = History { answered: true, first_page: true, unavailable: 3, gone_for: HOUR, ..History::default() };
        let told = Trouble::Status { code: 503, retry_after: Some(HOUR) };
        for (trouble, health, wait) in [
            (status(503), Health::Retrying, Wait::Backoff),
            (status(404), Health::Gone, Wait::Backoff),
            (status(410), Health::Gone, Wait::Backoff),
            (told, Health::Retrying, Wait::Told(HOUR)),
            (status(401), Health::Failed, Wait::Hourly),
        ] {
            let ruling = judge_push(trouble, &known);
            assert_eq!((ruling.health, ruling.wait), (health, wait), "{trouble:?}");
        }
    }
}
