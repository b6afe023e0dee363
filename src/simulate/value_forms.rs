//! The forms of a feed's ids and of its `modified`: those that publishers have been seen to use.

use std::fmt;

use super::dialect::Dialect;
use super::random::{Random, mix};

/// An id, in the publisher's order: numbers by value, text by bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Id {
    Number(u64),
    Text(Box<str>),
}

impl Id {
    /// Parses a URL parameter; digits without leading zeros are a number.
    pub(super) fn read(text: &str) -> Self {
        match text.parse::<u64>() {
            Ok(number) if number.to_string() == text => Self::Number(number),
            _ => Self::Text(text.into()),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The form of a feed's ids.
#[derive(Clone, Copy, Debug)]
pub(super) enum IdForm {
    Number,
    Guid,
    Padded,
    Braced,
    Slashed,
}

/// What `modified` counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum ModifiedUnit {
    Milliseconds,
    Ticks,
    RowVersions,
}

impl IdForm {
    /// The form of the feed with this number.
    pub(super) fn of(index: usize) -> Self {
        [Self::Guid, Self::Number, Self::Padded, Self::Slashed, Self::Braced, Self::Number, Self::Guid][index % 7]
    }

    /// The id of the item with this number in the feed with this salt.
    pub(super) fn id(self, salt: u64, number: u32) -> Id {
        let chance = mix(salt ^ u64::from(number).rotate_left(32));
        match self {
            Self::Number => Id::Number(10_000 + salt % 10_000 + u64::from(number)),
            Self::Padded => Id::Text(format!("{:020}", 170_005_743 + u64::from(number)).into()),
            Self::Slashed => Id::Text(format!("{:03}/{number:010}:00Z", chance % 400).into()),
            Self::Guid => Id::Text(guid(chance).into()),
            Self::Braced => Id::Text(format!("{{{}}}", guid(chance).to_uppercase()).into()),
        }
    }
}

impl ModifiedUnit {
    /// The unit of the feed with this number; change numbers are row versions.
    pub(super) fn of(index: usize, dialect: Dialect) -> Self {
        match (dialect, index / 2 % 3) {
            (Dialect::ChangeNumber, _) | (_, 2) => Self::RowVersions,
            (_, 0) => Self::Milliseconds,
            _ => Self::Ticks,
        }
    }

    /// A value before the first item's.
    pub(super) fn first(self) -> i64 {
        match self {
            Self::Milliseconds => 1_760_000_000_000,
            Self::Ticks => 638_900_000_000_000_000,
            Self::RowVersions => 247_302,
        }
    }

    /// The difference to the next `modified`: at least 2, so that a late commit fits in between.
    pub(super) fn step(self, random: &mut Random) -> i64 {
        let (least, spread) = match self {
            Self::Milliseconds => (2, 9_998),
            Self::Ticks => (20_000, 99_980_000),
            Self::RowVersions => (2, 3),
        };
        least + i64::try_from(random.below(spread)).unwrap_or_default()
    }
}

fn guid(chance: u64) -> String {
    let (high, low) = (mix(chance), mix(chance ^ u64::MAX));
    let digits = format!("{high:016x}{low:016x}");
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}
