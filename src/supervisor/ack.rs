//! Until when a feed's alerts are silenced, parsed from an operator's text.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::store::Millis;

/// How long an ack lasts without `until`.
pub const DEFAULT: &str = "24h";

/// A feed whose alerts are silenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub until: Millis,
    /// Why, or who takes care of it.
    pub note: Option<String>,
}

/// The longest note, in characters: it is stored with the feed and in its events.
const MAX_NOTE_CHARS: usize = 500;

impl Ack {
    /// From an RFC 3339 time, or a duration from `now` (`7d`, `12h`, `1h30m`), by default [`DEFAULT`].
    ///
    /// # Errors
    /// A text for the operator, when `until` is neither, lies in the past, or the note is too long.
    pub fn parse(until: Option<&str>, note: Option<String>, now: Timestamp) -> Result<Self, String> {
        if note.as_ref().is_some_and(|note| note.chars().count() > MAX_NOTE_CHARS) {
            return Err(format!("note must be at most {MAX_NOTE_CHARS} characters"));
        }
        let until = moment(until.unwrap_or(DEFAULT), now)?;
        Ok(Self { until: until.as_millisecond(), note: note.filter(|note| !note.trim().is_empty()) })
    }

    /// The end of the silence, as RFC 3339 in UTC.
    pub fn until_text(&self) -> String {
        // Only a parsed time gets here, so it can be formatted.
        Timestamp::from_millisecond(self.until).map_or_else(|_| self.until.to_string(), |until| until.to_string())
    }
}

fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let invalid = || {
        format!("until must be a time like \"2026-12-01T09:00:00Z\" or a duration like \"12h\" or \"7d\", not {text:?}")
    };
    let until = match text.parse::<Timestamp>() {
        Ok(until) => until,
        Err(_) => {
            let span: Span = text.parse().map_err(|_| invalid())?;
            now.to_zoned_datetime(TimeZone::UTC).checked_add(span).map_err(|_| invalid())?.timestamp()
        }
    };
    if until <= now {
        return Err(format!("until must lie ahead, not at {until}"));
    }
    Ok(until)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn until(text: Option<&str>) -> Result<String, String> {
        let now = "2026-03-28T12:00:00Z".parse().unwrap();
        Ack::parse(text, None, now).map(|ack| ack.until_text())
    }

    #[test]
    fn a_time_a_duration_or_nothing_says_until_when() {
        assert_eq!(until(None).unwrap(), "2026-03-29T12:00:00Z");
        assert_eq!(until(Some("7d")).unwrap(), "2026-04-04T12:00:00Z");
        assert_eq!(until(Some("12h")).unwrap(), "2026-03-29T00:00:00Z");
        assert_eq!(until(Some("1h30m")).unwrap(), "2026-03-28T13:30:00Z");
        assert_eq!(until(Some("2w")).unwrap(), "2026-04-11T12:00:00Z");
        assert_eq!(until(Some("2026-12-01T09:00:00+01:00")).unwrap(), "2026-12-01T08:00:00Z");
    }

    #[test]
    fn what_is_neither_a_time_nor_a_duration_or_is_past_is_refused() {
        for (text, expected) in [
            ("tomorrow", "until must be a time like"),
            ("", "until must be a time like"),
            ("7", "until must be a time like"),
            ("99999999d", "until must be a time like"),
            ("2026-03-28T11:59:59Z", "must lie ahead"),
            ("-1h", "must lie ahead"),
            ("0s", "must lie ahead"),
        ] {
            let error = until(Some(text)).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_note_is_bounded_and_an_empty_one_is_none() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(Ack::parse(None, Some("x".repeat(501)), now).unwrap_err().contains("500 characters"));
        assert_eq!(Ack::parse(None, Some("  ".into()), now).unwrap().note, None);
        assert_eq!(Ack::parse(None, Some("é".repeat(500)), now).unwrap().note.unwrap().chars().count(), 500);
    }
}
