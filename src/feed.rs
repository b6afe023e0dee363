//! The domain's words as types: what travels from a publisher to the SQLite file, and the states that a feed can have.
//!
//! Guarantees: each word has one spelling everywhere. Nothing here does I/O, reads a clock, or decides anything but the
//! order of `modified`.

pub mod modified;
mod text;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use modified::{Modified, ModifiedOrder};
pub use text::{BodyText, truncate_text};

/// Declares an enum whose values have one fixed spelling everywhere: SQL, metrics, logs, JSON and documents.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The fixed spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value with this spelling.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str() == word)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// How an endpoint delivers.
    Transport {
        /// GET, page by page.
        Poll = "poll",
        /// Server-Sent Events.
        Sse = "sse",
        /// Pages POSTed to us.
        Webhook = "webhook",
        /// Messages from a queue.
        Amqp = "amqp",
    }
}

words! {
    /// What keeps a feed current at the moment.
    Mode {
        /// Reading from the cursor to the end for the first time.
        Refresh = "refresh",
        /// Level, and kept current by polling.
        Poll = "poll",
        /// Live by Server-Sent Events.
        Sse = "sse",
        /// Live by webhook.
        Webhook = "webhook",
        /// Live by AMQP.
        Amqp = "amqp",
    }
}

impl Mode {
    /// Whether push keeps the feed current.
    pub fn is_push(self) -> bool {
        matches!(self, Self::Sse | Self::Webhook | Self::Amqp)
    }
}

words! {
    /// How an endpoint is doing; the feed's health is its poll endpoint's.
    Health {
        /// Nothing is wrong; an idle feed is healthy.
        Ok = "ok",
        /// Failing, and tried again without the operator.
        Retrying = "retrying",
        /// The cursor fails for an hour while the first page answers.
        Stuck = "stuck",
        /// The publisher answers, but its answers contradict the mirror.
        Suspect = "suspect",
        /// Stopped by the operator.
        Paused = "paused",
        /// The publisher has removed the feed.
        Gone = "gone",
        /// Needs the operator.
        Failed = "failed",
        /// No longer configured.
        Removed = "removed",
    }
}

words! {
    /// How far push is trusted.
    PushTrust {
        /// Not configured.
        None = "none",
        /// Configured, and not yet shown to work.
        Unproven = "unproven",
        /// Has delivered, or its connection stayed open long enough.
        Proven = "proven",
        /// An audit poll found items that it missed.
        Demoted = "demoted",
    }
}

words! {
    /// What became of a delivered record.
    RecordOutcome {
        /// An update of an item that was not stored.
        New = "new",
        /// An update written over an older version.
        Changed = "changed",
        /// A tombstone written.
        Deleted = "deleted",
        /// Stored already.
        Same = "same",
        /// Refused, being older than the stored version.
        Older = "older",
        /// Refused, having the stored version's `modified` and other content.
        Tied = "tied",
        /// Could not be understood.
        Quarantined = "quarantined",
    }
}

words! {
    /// The result of a request for a page.
    RequestOutcome {
        /// A page.
        Page = "page",
        /// An answer that nothing has changed.
        NotModified = "not-modified",
        /// No answer that could be read.
        Failed = "failed",
    }
}

words! {
    /// An item's state (RPDE 1.0 spelling).
    ItemState {
        /// Live, with data.
        Updated = "updated",
        /// A tombstone: no data, kept so that a late update can't revive it.
        Deleted = "deleted",
    }
}

words! {
    /// What becomes of an update that equals the stored one in `modified` but not in content.
    TiePolicy {
        /// The stored version stays.
        Keep = "keep",
        /// The incoming version replaces the stored one.
        Replace = "replace",
    }
}

words! {
    /// How RPDE versions spell a page's position, for a page that lacks `next`.
    Dialect {
        /// RPDE 0.2.1: `from` and `after`.
        Draft = "0.2.1",
        /// RPDE 1.0: `afterTimestamp` and `afterId`.
        Timestamp = "1.0",
        /// RPDE 1.0: `afterChangeNumber`.
        ChangeNumber = "1.0-change-number",
    }
}

impl Transport {
    /// The transport's number in the database.
    pub const fn code(self) -> i64 {
        self as i64
    }

    /// The transport with this number.
    pub fn from_code(code: i64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

/// A feed's unique name: `[a-z0-9][a-z0-9._-]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedName(Arc<str>);

impl FeedName {
    /// The name; `None` where the text has another form.
    pub fn new(name: &str) -> Option<Self> {
        let first = name.bytes().next()?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ok = plain(first) && name.bytes().all(|b| plain(b) || b"._-".contains(&b));
        ok.then(|| Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FeedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number of a feed; a delivery that was read under an older generation is discarded.
pub type Generation = i64;

/// The mirror's own change number, over all feeds.
pub type Seq = i64;

/// Who publishes a feed and on what terms, as its dataset site or the operator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attribution {
    pub publisher: Option<String>,
    /// The licence, where the feed's pages name none; mostly a URL.
    pub license: Option<String>,
    /// The feed's dataset site.
    pub dataset_url: Option<String>,
    /// Approximate number of items.
    pub total_items: Option<u64>,
}

/// One record of a page; the data are a range of the page's text.
#[derive(Clone, Debug)]
pub struct Item {
    /// The RPDE kind; the order of items is promised within a kind only.
    pub kind: Arc<str>,
    /// The publisher's id; a number and the same digits as text are one id.
    pub id: Box<str>,
    /// As the publisher sent the value.
    pub modified: Modified,
    pub state: ItemState,
    /// The data in the page's text, in bytes; empty when deleted.
    pub data_range: Range<usize>,
    /// The whole record in the page's text, in bytes.
    pub record_range: Range<usize>,
}

/// A version of an item in a committed delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemVersion {
    pub kind: Arc<str>,
    pub id: Box<str>,
    pub modified: Modified,
    /// Whether this delivery wrote the version: the mirror did not have it yet.
    pub written: bool,
}

/// A record that could not be understood, kept whole with the reason.
#[derive(Clone, Debug)]
pub struct UnreadableRecord {
    /// A fixed kebab-case word.
    pub reason: &'static str,
    /// What exactly is wrong.
    pub detail: String,
    /// The record as published.
    pub raw: String,
    /// The record with the feed's secrets redacted; `None` where it holds none.
    pub redacted: Option<String>,
    /// The record's id, where that could be read.
    pub id: Option<Box<str>>,
    /// How often the same bytes came.
    pub count: u64,
}

/// Records that could not be understood, beyond what quarantine can hold.
#[derive(Clone, Debug, Default)]
pub struct OverflowCount {
    /// Number of records.
    pub count: u64,
    /// Ids of those records whose id could be read.
    pub ids: Vec<Box<str>>,
}

/// A way in which a publisher departs from the standard, seen once or more in one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A fixed kebab-case word.
    pub rule: &'static str,
    /// A sample.
    pub detail: String,
    /// How often it was seen.
    pub count: u64,
}

/// One delivery, decoded: items, records to quarantine, and findings about the publisher.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The body, as UTF-8; items' data are ranges of this text.
    pub text: BodyText,
    /// In the publisher's order.
    pub items: Vec<Item>,
    /// Records that could not be understood; equal ones once, with a count.
    pub unreadable: Vec<UnreadableRecord>,
    /// Further such records, counted but not kept.
    pub overflow: OverflowCount,
    /// Departures from the standard.
    pub findings: Vec<Finding>,
    /// The publisher's `next`, verbatim.
    pub next: Option<Arc<str>>,
    /// The page's `license`.
    pub license: Option<String>,
    /// Whether `items` was null: read as empty, but not as the end of the feed.
    pub null_items: bool,
}

impl Page {
    /// The item's data as published; empty for a tombstone.
    #[inline]
    pub fn data(&self, item: &Item) -> &str {
        self.text.get(item.data_range.clone()).unwrap_or_default()
    }

    /// Whether the page has no records, unreadable ones included.
    pub fn is_empty(&self) -> bool {
        self.record_count() == 0
    }

    /// Number of records on the page, unreadable ones included.
    pub fn record_count(&self) -> u64 {
        self.items.len() as u64 + self.unreadable_count()
    }

    /// Number of records that could not be understood.
    pub fn unreadable_count(&self) -> u64 {
        self.unreadable.iter().map(|record| record.count).sum::<u64>() + self.overflow.count
    }

    /// Counts a departure from the standard; the first sample is kept.
    pub fn add_finding(&mut self, rule: &'static str, detail: impl FnOnce() -> String) {
        match self.findings.iter_mut().find(|f| f.rule == rule) {
            Some(finding) => finding.count += 1,
            None => self.findings.push(Finding { rule, detail: truncate_text(detail()), count: 1 }),
        }
    }
}

/// What follows a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextPage {
    /// Another page.
    Follow {
        /// The next page's URL, resolved against the URL asked for.
        url: String,
        /// Whether this program made the URL, since the publisher sent none.
        generated: bool,
    },
    /// No page: the feed's end has been seen (empty `items` and `next` equal to the URL asked for).
    Level,
    /// No page, though the standard's sign of the end is missing; the word says why.
    TreatedAsLevel(&'static str),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_plain() {
        assert!(FeedName::new("acme-sessions.v1_b").is_some());
        for bad in ["", "-a", "A", "a b", "é", "a/b"] {
            assert!(FeedName::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn words_read_back() {
        for health in Health::ALL {
            assert_eq!(Health::from_word(health.as_str()), Some(*health));
        }
        assert_eq!(Transport::from_code(3), Some(Transport::Amqp));
        assert_eq!(Transport::from_code(4), None);
    }
}
