//! What the store is told of the configured feeds.

use super::{ConfiguredFeed, FleetSettings};
use crate::feed::Attribution;
use crate::store::feeds::{FeedRegistration, StoredFeed};
use crate::store::{Store, StoreError, now};

/// Tells the store what is configured, and renames there what is configured under another name than before: whole or not at
/// all. With `all`, feeds that are not named become `removed`.
///
/// # Errors
/// When the store can't do it.
pub async fn configure(store: &Store, fleet: &FleetSettings, all: bool) -> Result<Vec<StoredFeed>, StoreError> {
    let rename = |configured: &ConfiguredFeed| match configured {
        ConfiguredFeed::Ready(settings) => Some((settings.was.clone()?, settings.name.clone())),
        ConfiguredFeed::Broken { .. } => None,
    };
    let renames = fleet.feeds.iter().filter_map(rename).collect();
    let (made, stored) = store.configure(now(), renames, registrations(fleet), all).await?;
    for (was, feed) in made {
        tracing::info!(%feed, %was, "renamed");
    }
    Ok(stored)
}

/// How the store knows the configured feeds.
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
