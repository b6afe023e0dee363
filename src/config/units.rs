//! Parses values from text into their types: durations, sizes, counts, words. Each error says what would be right.

use std::time::Duration;

use super::table::ConfigValue;

const DURATION: &str = "not a duration: write it as \"200ms\", \"8s\", \"15m\", \"2h\", \"7d\", \"1w\" or \"1h30m\"";

const SIZE: &str = "not a size: write bytes, or \"16KiB\", \"16MiB\", \"1GiB\" (or KB, MB, GB for powers of 1000)";

/// The longest duration: a longer one means a mistyped unit, and could overflow a clock.
const MAX_DURATION: Duration = Duration::from_secs(3_650 * 86_400);

/// A duration above zero.
pub(super) fn duration(value: &ConfigValue<'_>) -> Result<Duration, String> {
    let duration = duration_or_zero(value)?;
    if duration.is_zero() {
        return Err("must be longer than nothing".to_owned());
    }
    Ok(duration)
}

/// A duration that may be `"0s"`.
pub(super) fn duration_or_zero(value: &ConfigValue<'_>) -> Result<Duration, String> {
    let Some(text) = value.text() else {
        return Err(if value.integer().is_some() {
            "needs a unit: ms, s, m, h, d or w, as in \"8s\"".to_owned()
        } else {
            DURATION.to_owned()
        });
    };
    let duration = parse_duration(text).ok_or(DURATION)?;
    if duration > MAX_DURATION {
        return Err("must be at most \"3650d\"".to_owned());
    }
    Ok(duration)
}

/// The value as `parse` reads it; none for `"off"`.
pub(super) fn or_off<T>(
    parse: impl FnOnce(&ConfigValue<'_>) -> Result<T, String>,
) -> impl FnOnce(&ConfigValue<'_>) -> Result<Option<T>, String> {
    |value| match value.text() {
        Some("off") => Ok(None),
        _ => parse(value).map(Some).map_err(|message| format!("{message}, or \"off\"")),
    }
}

/// Parses `2h30m` and the like; none when it isn't a duration. Units may come in any order; each number is whole.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let milliseconds: u64 = match rest.get(..end)? {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(count.checked_mul(milliseconds)?))?;
        rest = rest.get(end..)?.trim_start();
    }
    Some(total)
}

/// A duration as text that [`parse_duration`] reads back, in its largest units.
pub(super) fn duration_text(duration: Duration) -> String {
    let mut left = duration.as_millis();
    let mut text = String::new();
    for (unit, milliseconds) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if left >= milliseconds {
            text.push_str(&format!("{}{unit}", left / milliseconds));
            left %= milliseconds;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A size in bytes, above zero.
pub(super) fn size(value: &ConfigValue<'_>) -> Result<u64, String> {
    let bytes = match value.integer() {
        Some(bytes) => u64::try_from(bytes).ok(),
        None => value.text().and_then(parse_size),
    };
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| SIZE.to_owned())
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text.get(..digits)?.parse().ok()?;
    let unit: u64 = match text.get(digits..)?.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    count.checked_mul(unit)
}

/// A whole number of at least one.
pub(super) fn count(value: &ConfigValue<'_>) -> Result<usize, String> {
    let number = value.integer().and_then(|n| usize::try_from(n).ok()).filter(|n| *n >= 1);
    number.ok_or_else(|| "must be a whole number of at least 1".to_owned())
}

/// Requests per second.
pub(super) fn rate(value: &ConfigValue<'_>) -> Result<f64, String> {
    let number = value.number().filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "must be a number of requests a second, over 0".to_owned())
}

/// A share from 0 to 1.
pub(super) fn share(value: &ConfigValue<'_>) -> Result<f64, String> {
    let number = value.number().filter(|n| (0.0..=1.0).contains(n));
    number.ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

/// Text that isn't empty.
pub(super) fn text(value: &ConfigValue<'_>) -> Result<String, String> {
    let text = value.text().filter(|text| !text.trim().is_empty());
    text.map(str::to_owned).ok_or_else(|| "must be text, and not empty".to_owned())
}

/// One of some fixed words.
pub(super) fn word<T>(
    from_word: impl FnOnce(&str) -> Option<T>,
    right: &'static str,
) -> impl FnOnce(&ConfigValue<'_>) -> Result<T, String> {
    move |value| value.text().and_then(from_word).ok_or_else(|| format!("must be {right}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, milliseconds) in
            [("200ms", 200), ("8s", 8_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("1w", 604_800_000), ("0s", 0)]
        {
            assert_eq!(parse_duration(text).unwrap().as_millis(), milliseconds, "{text}");
        }
        for text in ["", "8", "s", "8 s", "-8s", "1.5s", "8x", "8s!", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn durations_read_back_as_written() {
        for text in ["200ms", "8s", "1h30m", "7d", "1d1ms", "0s"] {
            assert_eq!(duration_text(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("16KiB", 16_384),
            ("16MiB", 16 << 20),
            ("1GiB", 1 << 30),
            ("16MB", 16_000_000),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "16 mib", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
