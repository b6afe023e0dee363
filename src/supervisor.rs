//! A feed's endpoints and mode: starts their loops, restarts them after a panic, pauses and drains them.

pub mod control;

use std::time::Duration;

use crate::feed::{Dialect, FeedName, Order, Ties};
use crate::schedule::{PollSettings, RetrySettings};
use crate::source::http::{HttpSettings, Value};

/// `[resync]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ResyncSettings {
    /// How often every feed is read anew; never unless set.
    pub every: Option<Duration>,
    /// The share of a feed's live items (0 to 1) that a sweep may remove unasked.
    pub max_sweep: f64,
}

impl Default for ResyncSettings {
    fn default() -> Self {
        Self { every: None, max_sweep: 0.2 }
    }
}

/// One feed, all defaults applied.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedSettings {
    /// Its unique name.
    pub name: FeedName,
    /// The provider it belongs to.
    pub provider: Option<String>,
    /// The poll endpoint's URL, as written.
    pub url: String,
    /// The kind of items that carry none.
    pub kind: Option<String>,
    /// How to make a `next` where the publisher sends none.
    pub dialect: Option<Dialect>,
    /// How `modified` text is ordered.
    pub modified: Order,
    /// What becomes of ties.
    pub ties: Ties,
    /// How long the publisher remembers deleted items.
    pub retention: Duration,
    /// How long a gone feed's rows are kept; for good unless set.
    pub purge_gone_after: Option<Duration>,
    /// Sent with each request to the feed's own origin.
    pub headers: Vec<(String, Value)>,
    /// Query parameters sent with each request to the feed's own origin.
    pub query: Vec<(String, Value)>,
    /// How often it is asked.
    pub poll: PollSettings,
    /// How errors back off.
    pub retry: RetrySettings,
    /// When it is read anew, and how much a sweep may remove.
    pub resync: ResyncSettings,
    /// Limits of its requests.
    pub http: HttpSettings,
}
