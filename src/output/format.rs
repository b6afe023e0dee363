//! Formats numbers, times and hostile text for people.

use jiff::Timestamp;

pub(super) use crate::terminal::sanitise_line as plain;

/// `12,345,678`.
pub(super) fn number(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3 + 1);
    if value < 0 {
        grouped.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 feed`, `2 feeds`.
pub(super) fn counted(count: i64, what: &str) -> String {
    format!("{} {what}{}", number(count), if count == 1 { "" } else { "s" })
}

/// `3 s`, `5 min`, `2 h`, `4 d`: whole units, rounded down.
pub(super) fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    match seconds.max(0) {
        s if s < 2 * MINUTE => format!("{s} s"),
        s if s < 2 * HOUR => format!("{} min", s / MINUTE),
        s if s < 2 * DAY => format!("{} h", s / HOUR),
        s => format!("{} d", number(s / DAY)),
    }
}

/// Seconds from a stored time to now; negative when it lies ahead.
pub(super) fn seconds_since(at: Option<&str>, now: Timestamp) -> Option<i64> {
    let at: Timestamp = at?.parse().ok()?;
    Some(now.as_second() - at.as_second())
}

/// At most `width` characters, the end kept: cursors differ at their ends.
pub(super) fn tail(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().skip(length - width.saturating_sub(1)).collect();
    format!("…{kept}")
}

/// At most `width` characters, the beginning kept.
pub(super) fn head(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (7_912_345, "7,912,345"), (-1234, "-1,234")] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [(-5, "0 s"), (3, "3 s"), (600, "10 min"), (7200, "2 h"), (200_000, "2 d")] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn what_is_too_long_keeps_its_telling_end() {
        assert_eq!(tail("afterId=12345", 6), "…12345");
        assert_eq!(head("timeout: no answer", 8), "timeout…");
        assert_eq!(tail("short", 6), "short");
    }
}
