//! Registers the configured feeds with the store.

use super::{ConfiguredFeed, FleetSettings};
use crate::feed::Attribution;
use crate::store::feeds::{FeedRegistration, StoredFeed};
use crate::store::{Store, StoreError, now};

/// Registers the configured feeds, and renames those that are configured under another name than before: all in one
/// transaction. With `all`, feeds that are not configured become `removed`.
///
/// # Errors
/// When the store refuses or fails.
pub async fn configure(store: &Store, fleet: &FleetSettings, all: bool) -> Result<Vec<StoredFeed>, StoreError> {
    let rename = |configured: &ConfiguredFeed| match configured {
        ConfiguredFeed::Ready(settings) => Some((settings.was.clone()?, settings.name.clone())),
        ConfiguredFeed::Broken { .. } => None,
    };
    let renames = fleet.feeds.iter().filter_map(rename).collect();
    let (renamed, stored) = store.configure(now(), renames, registrations(fleet), all).await?;
    for (old_name, feed) in renamed {
        tracing::info!(%feed, was = %old_name, "renamed");
    }
    Ok(stored)
}

/// The configured feeds as the store's registrations.
fn registrations(fleet: &FleetSettings) -> Vec<FeedRegistration> {
    let registration = |configured: &ConfiguredFeed| match configured {
        ConfiguredFeed::Ready(settings) => FeedRegistration {
            name: settings.name.clone(),
            provider: settings.provider.clone(),
            url: settings.url.clone(),
            attribution: settings.attribution.clone(),
            config_error: None,
        },
        ConfiguredFeed::Broken { name, reason } => FeedRegistration {
            name: name.clone(),
            provider: None,
            url: String::new(),
            attribution: Attribution::default(),
            config_error: Some(format!("settings: {reason}")),
        },
    };
    fleet.feeds.iter().map(registration).collect()
}
