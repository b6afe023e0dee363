//! Bytes → items and the next place, or quarantine. Pure: no async, no HTTP, no SQL.
//!
//! A page that can't be read at all is refused whole; a record that can't be understood never takes its page with it.

pub mod next;
pub mod rpde;

/// Why a body was refused whole: nothing of it is written and the cursor stays. It holds the publisher's own words, so it
/// has words of its own only by [`Refused::words`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Not UTF-8 (RFC 8259 §8.1).
    Encoding {
        /// Offset of the first bad byte.
        at: usize,
        /// The first bytes.
        beginning: String,
    },
    /// Not JSON, or cut short.
    NotJson {
        /// What the parser said.
        problem: String,
        /// The first bytes.
        beginning: String,
    },
    /// HTML where JSON should be.
    Html {
        /// The first bytes.
        beginning: String,
    },
    /// Nobody waited for it any more.
    Stopped,
    /// JSON, but no list of items.
    NoItems {
        /// The first bytes.
        beginning: String,
    },
}

impl DecodeError {
    /// The reason in words. `hide` takes secrets out of what the body says; only then is that cut to what is shown.
    pub fn reason(&self, hide: impl Fn(&str) -> String) -> String {
        let shown = |beginning: &str| shown(&hide(beginning)).to_owned();
        match self {
            Self::Encoding { at, beginning } => {
                format!("wrong-encoding: the page is not UTF-8 at byte {at}; it begins {:?}", shown(beginning))
            }
            Self::NotJson { problem, beginning } => {
                format!("not-json: {}; the page begins {:?}", hide(problem), shown(beginning))
            }
            Self::Html { beginning } => {
                format!("html: the publisher sent a web page; it begins {:?}", shown(beginning))
            }
            Self::Stopped => "decoder-stopped: nobody waited for the page any more".to_owned(),
            Self::NoItems { beginning } => {
                format!("no-items: the page has no list `items`; it begins {:?}", shown(beginning))
            }
        }
    }
}

/// The first bytes of a body, more than are shown: a secret that stands where it is cut has to be known as one.
pub fn beginning(bytes: &[u8]) -> String {
    const LOOKED_AT: usize = 4 << 10;
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(LOOKED_AT)]).into_owned();
    beginning.trim().to_owned()
}

fn shown(beginning: &str) -> &str {
    const SHOWN: usize = 80;
    let fits = (0..=SHOWN.min(beginning.len())).rev().find(|at| beginning.is_char_boundary(*at));
    beginning.get(..fits.unwrap_or(0)).unwrap_or_default().trim()
}
