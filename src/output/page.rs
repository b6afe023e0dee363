//! The status page: an overview of all feeds, and a page for each feed; HTML that is complete without scripts or
//! anything from elsewhere.
//!
//! Guarantees: names, reasons and URLs are shown as text, whatever they hold; feeds that need attention come first,
//! with the reason in words; no information is given by colour alone; nothing on the page changes anything. For pages
//! that stay open, changed elements can be sent one by one ([`SentElements`]). The templates are in `templates/`.

mod chart;
mod feed;
mod filter;
mod login;
mod overview;
mod elements;
mod page_data;
mod time;

use jiff::Timestamp;

use crate::feed::Health;

pub use elements::{PageElements, SentElements};
pub use feed::{feed, feed_elements};
pub use login::login;
pub use overview::{overview, overview_elements};
pub use page_data::{FeedPageData, OverviewData};

/// The media type.
pub const MEDIA_TYPE: &str = "text/html; charset=utf-8";

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What every page needs, whatever it shows.
#[derive(Clone, Copy, Debug)]
pub struct PageContext<'a> {
    /// The time at which the page is made.
    pub now: Timestamp,
    /// The nonce of the page's content security policy, new for each page.
    pub nonce: &'a str,
    /// Why the database takes no writes.
    pub blocked: Option<&'a str>,
}

/// The page's content security policy: what it may load and do; `nonce` is new for each page.
pub fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}

/// CSS class of a health; a health of a later version looks bad.
fn class(health: &str) -> &'static str {
    match Health::from_word(health) {
        Some(Health::Ok) => "good",
        Some(Health::Retrying | Health::Paused | Health::Removed) => "odd",
        _ => "bad",
    }
}

#[cfg(test)]
mod tests;
