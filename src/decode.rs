//! Bytes → items and the next place, or quarantine. Pure: no async, no HTTP, no SQL.
//!
//! A page that can't be read at all is refused whole; a record that can't be understood never takes its page with it.

pub mod next;
pub mod rpde;

/// Why a body was refused whole: nothing of it is written and the cursor stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not UTF-8 (RFC 8259 §8.1).
    #[error("wrong-encoding: the page is not UTF-8 at byte {at}; it begins {beginning:?}")]
    Encoding {
        /// Offset of the first bad byte.
        at: usize,
        /// The first bytes.
        beginning: String,
    },
    /// Not JSON, or cut short.
    #[error("not-json: {problem}; the page begins {beginning:?}")]
    NotJson {
        /// What the parser said.
        problem: String,
        /// The first bytes.
        beginning: String,
    },
    /// HTML where JSON should be.
    #[error("html: the publisher sent a web page; it begins {beginning:?}")]
    Html {
        /// The first bytes.
        beginning: String,
    },
    /// JSON, but no list of items.
    #[error("no-items: the page has no list `items`; it begins {beginning:?}")]
    NoItems {
        /// The first bytes.
        beginning: String,
    },
}

/// The first bytes of a body, for a reason in words.
pub fn beginning(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    shown.trim().to_owned()
}
