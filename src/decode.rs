//! Decodes bytes to items and the next URL. Pure: no async, no HTTP, no SQL.
//!
//! A page that can't be read at all is refused whole; a record that can't be understood is quarantined, and the rest of
//! its page is read all the same.

pub mod next;
pub mod rpde;

/// Why a body was refused whole: nothing of it is stored and the cursor stays. It holds the publisher's own text,
/// secrets perhaps among it, so it is shown only through [`DecodeError::reason`].
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
        /// The parser's message.
        problem: String,
        /// The first bytes.
        beginning: String,
    },
    /// HTML where JSON should be.
    Html {
        /// The first bytes.
        beginning: String,
    },
    /// Nobody waited for the page any more.
    Stopped,
    /// JSON, but no list of items.
    NoItems {
        /// The first bytes.
        beginning: String,
    },
}

impl DecodeError {
    /// The reason in words. `hide` masks secrets in the body's text; only then is the text truncated.
    pub fn reason(&self, hide: impl Fn(&str) -> String) -> String {
        let shown = |beginning: &str| truncated(&hide(beginning)).to_owned();
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

/// The first bytes of a body, more than are shown: a secret at the end of what is shown must be found whole.
pub fn beginning(bytes: &[u8]) -> String {
    const KEPT_BYTES: usize = 4 << 10;
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(KEPT_BYTES)]).into_owned();
    beginning.trim().to_owned()
}

fn truncated(beginning: &str) -> &str {
    const SHOWN_BYTES: usize = 80;
    let fits = (0..=SHOWN_BYTES.min(beginning.len())).rev().find(|at| beginning.is_char_boundary(*at));
    beginning.get(..fits.unwrap_or(0)).unwrap_or_default().trim()
}
