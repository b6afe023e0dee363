//! Which feeds a search shows; the page's script does the same with `data-` attributes, so both must agree.

use crate::store::read::FeedRow;

/// The terms of a search: all must match. `health:`, `mode:` and `provider:` match that field exactly; other terms are
/// searched in the feed's name, provider, URL, health, mode and reason, ignoring case.
#[derive(Clone, Debug, Default)]
pub(super) struct FeedFilter {
    terms: Vec<String>,
}

impl FeedFilter {
    pub(super) fn new(text: &str) -> Self {
        Self { terms: text.to_lowercase().split_whitespace().map(str::to_owned).collect() }
    }

    pub(super) fn shows(&self, feed: &FeedRow, reason: &str) -> bool {
        let provider = feed.provider.as_deref().unwrap_or_default();
        let texts = [&feed.name, provider, &feed.url, &feed.health, &feed.mode, reason];
        self.terms.iter().all(|term| match term.split_once(':') {
            Some(("health", health)) => feed.health == health,
            Some(("mode", mode)) => feed.mode == mode,
            Some(("provider", name)) => provider.to_lowercase() == name,
            _ => texts.iter().any(|text| text.to_lowercase().contains(term)),
        })
    }
}
