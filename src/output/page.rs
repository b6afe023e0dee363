//! The status page: all feeds at a glance, and one feed whole; HTML that is complete without scripts or anything from
//! elsewhere.
//!
//! Guarantees: names, reasons and URLs are text, whatever they hold; feeds that need attention stand first, with the
//! reason in words; nothing is told by colour alone; nothing on it changes anything. What is shown can be told anew part
//! by part ([`Told`]), for pages that stay open. The templates stand in `templates/`.

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

/// What a page is made with, whatever it shows.
#[derive(Clone, Copy, Debug)]
pub struct PageContext<'a> {
    /// The time that it is to show.
    pub now: Timestamp,
    /// Its own word for its policy, new for each page.
    pub nonce: &'a str,
    /// Why the database takes no writes.
    pub blocked: Option<&'a str>,
}

/// What a page may load and do; `nonce` is its own word, new for each page.
pub fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
}

/// How a health looks; one of a later version looks bad.
fn class(health: &str) -> &'static str {
    match Health::from_word(health) {
        Some(Health::Ok) => "good",
        Some(Health::Retrying | Health::Paused | Health::Removed) => "odd",
        _ => "bad",
    }
}

#[cfg(test)]
mod tests;
