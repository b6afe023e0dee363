//! The one order of `modified` values: a pure, total function of two values, the same on every transport.
//!
//! Publishers send integers up to 2^63−1 and beyond, integer strings, hex row versions, floats, dates and opaque text
//! (RPDE 1.0, "modified"). The order has three classes: numbers and text of digits; RFC 3339 date-times; other text.
//! Units are never guessed, and no clock is read.

use std::cmp::Ordering;

/// How a feed's `modified` text is ordered (configuration key `modified`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModifiedOrder {
    /// Numbers and digits first, then date-times by instant, then other text by bytes.
    #[default]
    Standard,
    /// All text by its bytes.
    Bytes,
}

/// A publisher's `modified`, exactly as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modified {
    /// A JSON integer that fits 64 bits and is written in the usual way.
    Int(i64),
    /// Any other JSON number, in the publisher's digits.
    Number(Box<str>),
    /// A JSON string.
    Text(Box<str>),
}

impl Modified {
    /// A JSON number by its source text.
    pub fn from_number(raw: &str) -> Self {
        match raw.parse::<i64>() {
            Ok(n) if raw != "-0" => Self::Int(n),
            _ => Self::Number(raw.into()),
        }
    }

    /// Which of the three classes of the order this value falls into: 1, 2 or 3.
    pub fn class(&self, order: ModifiedOrder) -> u8 {
        match self.rank(order) {
            Rank::Number(_) => 1,
            Rank::Instant(_) => 2,
            Rank::Text(_) => 3,
        }
    }

    /// Older, equal or newer than `other`.
    pub fn compare(&self, other: &Self, order: ModifiedOrder) -> Ordering {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            return a.cmp(b);
        }
        match (self.rank(order), other.rank(order)) {
            (Rank::Number(a), Rank::Number(b)) => a.compare(&b),
            (Rank::Instant(a), Rank::Instant(b)) => a.cmp(&b),
            (Rank::Text(a), Rank::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Rank::Number(_), _) | (Rank::Instant(_), Rank::Text(_)) => Ordering::Less,
            (_, Rank::Number(_)) | (Rank::Text(_), Rank::Instant(_)) => Ordering::Greater,
        }
    }

    fn rank(&self, order: ModifiedOrder) -> Rank<'_> {
        match self {
            Self::Int(n) => Rank::Number(Digits::of_int(*n)),
            Self::Number(raw) => Digits::of_decimal(raw).map_or(Rank::Text(raw), Rank::Number),
            Self::Text(text) if order == ModifiedOrder::Bytes => Rank::Text(text),
            Self::Text(text) => rank_of_text(text),
        }
    }
}

impl std::fmt::Display for Modified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(n) => write!(f, "{n}"),
            Self::Number(raw) | Self::Text(raw) => f.write_str(raw),
        }
    }
}

enum Rank<'a> {
    Number(Digits),
    Instant(Rfc3339Instant),
    Text(&'a str),
}

/// Text of hex digits alone is digits, `1e3` too: a row version is far likelier than an exponent in quotes.
fn rank_of_text(text: &str) -> Rank<'_> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Rank::Number(Digits::new(false, text.len() as i64, text.bytes()));
    }
    if let Some(digits) = Digits::of_decimal(text) {
        return Rank::Number(digits);
    }
    Rfc3339Instant::parse(text).map_or(Rank::Text(text), Rank::Instant)
}

/// A number as 0.d₁d₂d₃… × base^point, with neither leading nor trailing zeros among the digits.
struct Digits {
    negative: bool,
    point: i64,
    digits: Vec<u8>,
}

impl Digits {
    fn new(negative: bool, integer_digits: i64, digits: impl Iterator<Item = u8>) -> Self {
        let mut digits: Vec<u8> = digits.map(|b| b.to_ascii_lowercase()).collect();
        let leading = digits.iter().take_while(|b| **b == b'0').count();
        digits.drain(..leading);
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        if digits.is_empty() {
            return Self { negative: false, point: i64::MIN, digits };
        }
        Self { negative, point: integer_digits.saturating_sub(leading as i64), digits }
    }

    fn of_int(n: i64) -> Self {
        let text = n.unsigned_abs().to_string();
        Self::new(n < 0, text.len() as i64, text.bytes())
    }

    /// A decimal in the grammar of a JSON number (RFC 8259 §6), leading zeros allowed.
    fn of_decimal(text: &str) -> Option<Self> {
        let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], parse_exponent(&rest[at + 1..])?),
            None => (rest, 0),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return None,
            None => (mantissa, ""),
        };
        if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let point = (whole.len() as i64).saturating_add(exponent);
        Some(Self::new(negative, point, whole.bytes().chain(fraction.bytes())))
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => self.magnitude(other),
            (true, true) => other.magnitude(self),
        }
    }

    fn magnitude(&self, other: &Self) -> Ordering {
        self.point.cmp(&other.point).then_with(|| self.digits.cmp(&other.digits))
    }
}

/// Saturates: a number with an exponent beyond 64 bits still sorts as very large or very small.
fn parse_exponent(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse::<i64>().unwrap_or(i64::MAX / 2).min(i64::MAX / 2);
    Some(if negative { -value } else { value })
}

/// A point in time: whole seconds since 1970 UTC, then the fraction's digits without trailing zeros.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rfc3339Instant(i64, Vec<u8>);

impl Rfc3339Instant {
    /// RFC 3339 §5.6 with its notes: `t`, `z` and a space are allowed; fractions may have any length. A local time
    /// without an offset is no instant and stays text.
    fn parse(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || b[13] != b':' || b[16] != b':' || !b"Tt ".contains(&b[10]) {
            return None;
        }
        let (year, month, day) = (number(&b[0..4])?, number(&b[5..7])?, number(&b[8..10])?);
        let (hour, minute, second) = (number(&b[11..13])?, number(&b[14..16])?, number(&b[17..19])?);
        if !(1..=12).contains(&month)
            || day < 1
            || day > days_in(year, month)
            || hour > 23
            || minute > 59
            || second > 60
        {
            return None;
        }
        let mut at = 19;
        let mut fraction = Vec::new();
        if b[at] == b'.' {
            let end = at + 1 + b[at + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
            if end == at + 1 {
                return None;
            }
            fraction.extend_from_slice(&b[at + 1..end]);
            while fraction.last() == Some(&b'0') {
                fraction.pop();
            }
            at = end;
        }
        let offset = parse_offset(&b[at..])?;
        let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset;
        Some(Self(seconds, fraction))
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// Seconds east of UTC.
fn parse_offset(b: &[u8]) -> Option<i64> {
    let direction = match b {
        [b'Z' | b'z'] => return Some(0),
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let (hours, minutes) = (number(&b[1..3])?, number(&b[4..6])?);
    (hours < 24 && minutes < 60).then_some(direction * (hours * 3_600 + minutes * 60))
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar, counting years from March so that the leap day is last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn text(s: &str) -> Modified {
        Modified::Text(s.into())
    }
    fn json(s: &str) -> Modified {
        Modified::from_number(s)
    }
    fn cmp(a: &Modified, b: &Modified) -> Ordering {
        a.compare(b, ModifiedOrder::Standard)
    }

    #[test]
    fn values_from_oldest_to_newest() {
        let sorted = [
            json("-1e3"),
            json("-20"),
            json("-1.5"),
            json("-1"),
            json("0"),
            json("1e-400"),
            json("0.001"),
            json("0.5"),
            json("1"),
            json("1.0000000000000000001"),
            text("9"),
            text("000A"),
            text("00fF"),
            json("1448285608.25"),
            json("1448285608.5"),
            text("1448285609"),
            json("1520343434000"),
            json("638966025666647075"),
            json("9223372036854775807"),
            json("9223372036854775808"),
            text("00000000000000000000000099999999999999999999"),
            json("1e30"),
            text("ABCDEF0123456789ABCDEF01234567890"),
            json("1e999999999999999999999"),
            text("2014-09-15T09:12:51.706+01:00"),
            text("2014-09-15T08:12:51.7061Z"),
            text("2014-09-15 08:12:52z"),
            text("2014-09-15t09:12:51-01:00"),
            text(""),
            text("0x1F"),
            text("2014-02-30T00:00:00Z"),
            text("2014-09-15"),
            text("v12"),
            text("v2"),
        ];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(cmp(a, b), i.cmp(&j), "{a} against {b}");
            }
        }
    }

    #[test]
    fn one_value_in_several_spellings_is_equal() {
        for (a, b) in [
            (json("5"), text("5")),
            (json("5"), text("005")),
            (json("1520343434.0"), json("1520343434")),
            (json("1.5e3"), json("1500")),
            (json("-0"), json("0")),
            (text("00ff"), text("FF")),
            (text("2014-09-15T09:12:51+01:00"), text("2014-09-15T08:12:51.000Z")),
        ] {
            assert_eq!(cmp(&a, &b), Ordering::Equal, "{a} against {b}");
        }
    }

    #[test]
    fn a_quoted_1e3_is_a_row_version_and_a_bare_one_a_thousand() {
        assert_eq!(cmp(&text("1e3"), &json("1000")), Ordering::Less);
        assert_eq!(cmp(&json("1e3"), &json("1000")), Ordering::Equal);
    }

    #[test]
    fn bytes_puts_all_text_after_all_numbers() {
        assert_eq!(text("10").compare(&text("9"), ModifiedOrder::Bytes), Ordering::Less);
        assert_eq!(text("1").compare(&json("999"), ModifiedOrder::Bytes), Ordering::Greater);
        assert_eq!(text("1").class(ModifiedOrder::Bytes), 3);
    }

    #[test]
    fn days_agree_with_the_calendar() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 2, 29), 11_016);
        assert_eq!(days_since_1970(2026, 11, 22), 20_779);
        assert_eq!(days_since_1970(1969, 12, 31), -1);
    }

    fn any_modified() -> impl Strategy<Value = Modified> {
        prop_oneof![
            any::<i64>().prop_map(Modified::Int),
            (-50i64..50).prop_map(Modified::Int),
            "-?[0-9]{1,4}(\\.[0-9]{1,3})?(e-?[0-9]{1,2})?".prop_map(|s| Modified::from_number(&s)),
            "[0-9a-fA-F]{1,6}".prop_map(|s| Modified::Text(s.into())),
            "20(14|24)-0[1-3]-[0-3][0-9]T0[0-9]:00:00(\\.[0-9]{1,3})?(Z|\\+01:00)"
                .prop_map(|s| Modified::Text(s.into())),
            ".{0,4}".prop_map(|s| Modified::Text(s.into())),
        ]
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in any_modified(), b in any_modified(), c in any_modified()) {
            for order in [ModifiedOrder::Standard, ModifiedOrder::Bytes] {
                prop_assert_eq!(a.compare(&a, order), Ordering::Equal);
                prop_assert_eq!(a.compare(&b, order), b.compare(&a, order).reverse());
                if a.compare(&b, order).is_le() && b.compare(&c, order).is_le() {
                    prop_assert!(a.compare(&c, order).is_le());
                }
            }
        }

        #[test]
        fn integers_agree_with_arithmetic(a in any::<i64>(), b in any::<i64>()) {
            prop_assert_eq!(Modified::Text(a.to_string().into()).compare(&Modified::Int(b), ModifiedOrder::Standard), a.cmp(&b));
        }
    }
}
